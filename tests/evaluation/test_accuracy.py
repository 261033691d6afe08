"""Evaluation: numbers that a pencil would give, for networks that are really there."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prenas import artifacts, pipeline
from prenas.cost import count
from prenas.data import load_data
from prenas.data.pictures import Pixels
from prenas.evaluation import accuracy
from prenas.evaluation.accuracy import (
    Evaluation,
    Metrics,
    evaluate_archs,
    evaluate_networks,
    images_at_once,
    top1_of_archs,
)
from prenas.families.vit.space import VitArch, VitSettings
from prenas.models.export import load
from prenas.processes import Processes
from prenas.supernet import Supernet
from training.runs import MINI, SMALLEST, WHOLE, contents, mini_recipe, never, own_data

pytest_plugins = "training.runs"


class Table(nn.Module):
    """Gives row i of a table of logits for an image whose first pixel is i."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def source(labels: list[int]) -> TensorDataset:
    images = torch.arange(float(len(labels))).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return TensorDataset(images, torch.tensor(labels))


def settings(num_classes: int) -> VitSettings:
    return VitSettings(image_size=(4, 4), in_chans=1, num_classes=num_classes, patch_size=2)


def by_hand(logits: np.ndarray, labels: list[int]) -> tuple[float, float, float]:
    """Top-1, top-5 and cross-entropy, one image at a time."""
    top1 = top5 = loss = 0.0
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        better = sum(other > row[label] for other in row)
        top1 += better < 1
        top5 += better < 5
        loss += math.log(sum(math.exp(other) for other in row)) - row[label]
    return top1 / len(labels), top5 / len(labels), loss / len(labels)


def evaluate_network(network: nn.Module, *args: Any, **options: Any) -> Metrics:
    (metrics,) = evaluate_networks([network], *args, **options)
    return metrics


def test_three_images_by_hand() -> None:
    """Right, wrong, right: 2 of 3; losses log(1 + e^-2), log(1 + e^2), log 2 where both tie."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.9999]])
    metrics = evaluate_network(Table(logits), source([0, 0, 0]), settings(2))
    assert metrics.top1 == pytest.approx(2 / 3)
    assert metrics.top5 is None
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2)) + math.log(2)) / 3
    assert metrics.loss == pytest.approx(expected, abs=1e-4)
    assert metrics.num_images == 3


@pytest.mark.parametrize("num_classes", [2, 5, 19, 20, 37])
def test_metrics_equal_a_computation_by_hand(num_classes: int) -> None:
    """Whatever the batch size, an odd last batch included; top-5 from 20 classes on."""
    generator = np.random.default_rng(num_classes)
    logits = generator.normal(size=(30, num_classes), scale=3).astype(np.float32)
    labels = generator.integers(num_classes, size=30).tolist()
    top1, top5, loss = by_hand(logits, labels)
    for batch_size in (1, 7, 30, 256):
        metrics = evaluate_network(
            Table(torch.from_numpy(logits)),
            source(labels),
            settings(num_classes),
            batch_size=batch_size,
        )
        assert metrics.top1 == pytest.approx(top1)
        assert metrics.top5 == (pytest.approx(top5) if num_classes >= 20 else None)
        assert metrics.loss == pytest.approx(loss, rel=1e-5)
        assert metrics.num_images == 30


def test_logits_of_several_crops_are_averaged() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(3 * 20, 4)).astype(np.float32), [0, 1, 2, 3] * 5
    crops = torch.arange(60.0).view(20, 3, 1, 1, 1).expand(-1, -1, 1, 4, 4)
    metrics = evaluate_network(
        Table(torch.from_numpy(logits)),
        TensorDataset(crops, torch.tensor(labels)),
        settings(4),
        batch_size=7,
    )
    top1, _, loss = by_hand(logits.reshape(20, 3, 4).mean(axis=1), labels)
    assert metrics.top1 == pytest.approx(top1)
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert metrics.num_images == 20


def test_a_loader_with_odd_batches_counts_every_image_once() -> None:
    logits = torch.eye(10)
    loader = DataLoader(source([0, 1, 2, 3, 0, 0, 0]), batch_size=4)
    metrics = evaluate_network(Table(logits), loader, settings(10))
    assert metrics.num_images == 7
    assert metrics.top1 == pytest.approx(4 / 7)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="the split is empty"):
        evaluate_network(Table(torch.eye(2)), source([]), settings(2))


def test_half_precision_logits_are_summed_in_full() -> None:
    logits = torch.randn(30, 5).half()
    metrics = evaluate_network(Table(logits), source([1] * 30), settings(5))
    assert metrics.loss == pytest.approx(by_hand(logits.float().numpy(), [1] * 30)[2], rel=1e-5)


def test_a_network_that_is_not_finite_is_refused_with_a_message() -> None:
    """As after a last step that diverged, which no loss has seen yet."""
    with pytest.raises(ValueError, match="finite") as caught:
        evaluate_network(Table(torch.full((3, 4), math.nan)), source([0, 1, 2]), settings(4))
    assert "errors.pydantic.dev" not in str(caught.value)


# --- architectures -------------------------------------------------------------------------------


def test_a_preferred_subnets_numbers_are_the_handed_over_models(
    finished_run: Path, finished_rows: list[Evaluation]
) -> None:
    """The specialised model, loaded, gives on the same split what the evaluation says."""
    recipe = mini_recipe()
    assert recipe.data is not None
    splits = load_data(recipe.data, recipe.space.settings).splits
    assert [list(row.splits) for row in finished_rows] == [["validation", "test"]] * 3
    for number, row in enumerate(finished_rows):
        network = load(finished_run / "subnets" / f"{number:02d}").network
        assert sum(p.numel() for p in network.parameters()) == row.costs["params"]
        for name, split in splits.items():
            assert isinstance(split, Pixels)
            images, labels = split[list(range(len(split)))]
            with torch.inference_mode():
                logits = network(images)
            hits = (logits.argmax(1) == labels).float().mean()
            assert row.splits[name].top1 == pytest.approx(float(hits), abs=1e-7)
            loss = nn.functional.cross_entropy(logits, labels)
            assert row.splits[name].loss == pytest.approx(float(loss), rel=1e-4)
            assert row.splits[name].num_images == len(labels)


def test_training_has_reached_the_subnets(finished_rows: list[Evaluation]) -> None:
    """Three epochs of a tiny network: far from good, further from guessing."""
    for row in finished_rows:
        assert row.splits["validation"].top1 > 0.3
        assert row.splits["test"].top1 > 0.3


def test_any_architecture_inside_the_supernet_can_be_evaluated(finished_run: Path) -> None:
    preferred = pipeline.read_preferred(finished_run)
    before = contents(finished_run)
    rows = pipeline.evaluate(finished_run, [SMALLEST, preferred.archs[0]])
    assert SMALLEST not in preferred.archs
    assert rows[0].arch == SMALLEST
    cost = count(SMALLEST, MINI.settings)
    assert (rows[0].costs["params"], rows[0].costs["macs"]) == (cost["params"], cost["macs"])
    assert rows[1] == pipeline.evaluate(finished_run)[0]
    assert contents(finished_run) == before  # nothing is written for given architectures


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (VitArch(embed_dim=20, num_heads=(1,), mlp_ratio=(1.0,)), "embed_dim 20 > 16"),
        (VitArch(embed_dim=8, num_heads=(1,) * 3, mlp_ratio=(1.0,) * 3), "depth 3 > 2"),
        (VitArch(embed_dim=8, num_heads=(3,), mlp_ratio=(1.0,)), "num_heads 3 > 2 in layer 0"),
        (VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(9.0,)), r"mlp_ratio 9 \(72 units > 32\)"),
    ],
)
def test_an_architecture_outside_the_supernet_is_refused(
    arch: VitArch, words: str, finished_run: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        pipeline.evaluate(finished_run, [arch])


def test_an_architecture_of_the_space_may_be_outside_the_envelope(finished_run: Path) -> None:
    """The trained supernet is the envelope, not the space."""
    assert pipeline.read_preferred(finished_run).envelope != WHOLE
    with pytest.raises(ValueError, match="does not fit into the supernet"):
        pipeline.evaluate(finished_run, [WHOLE])


def test_evaluation_does_not_depend_on_the_supernets_mode() -> None:
    """Stochastic depth never acts in an evaluation."""
    supernet = Supernet(WHOLE, MINI.settings, drop_path=0.9)
    supernet.initialize(torch.Generator().manual_seed(0))
    splits = own_data().splits
    quiet = evaluate_archs(supernet.eval(), [WHOLE], splits)
    assert evaluate_archs(supernet.train(), [WHOLE], splits) == quiet
    assert supernet.training


def test_networks_that_do_not_fit_into_memory_are_evaluated_in_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same numbers to the bit, with fewer networks at once; one alone is always evaluated."""
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    archs, splits = [SMALLEST, WHOLE, SMALLEST, SMALLEST, WHOLE], own_data().splits
    expected, held = evaluate_archs(supernet, archs, splits), []
    evaluate = accuracy.evaluate_networks

    def counted(networks: Sequence[nn.Module], *args: Any, **options: Any) -> list[Metrics]:
        held.append(len(networks))
        return evaluate(networks, *args, **options)

    monkeypatch.setattr(accuracy, "evaluate_networks", counted)
    size = 4 * count(WHOLE, MINI.settings)["params"]
    for most, groups in ((5 * size, [5]), (size, [1, 1, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(accuracy, "_MOST_HELD", most)
        held.clear()
        assert evaluate_archs(supernet, archs, splits) == expected
        assert held == [number for number in groups for _ in splits]


def test_no_network_is_evaluated_if_one_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = Supernet(SMALLEST, MINI.settings).initialize(torch.Generator().manual_seed(0))
    monkeypatch.setattr(accuracy, "_MOST_HELD", 1)
    monkeypatch.setattr(accuracy, "evaluate_networks", never)
    with pytest.raises(ValueError, match="does not fit into the supernet"):
        evaluate_archs(supernet, [SMALLEST, WHOLE], own_data().splits)


def test_without_a_test_split_only_validation_is_reported() -> None:
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    (row,) = evaluate_archs(supernet, [SMALLEST], {"validation": own_data().validation})
    assert list(row.splits) == ["validation"]


# --- per class -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 5, 20, 100, 101, 130])
def test_classes_are_counted_one_image_at_a_time(num_classes: int) -> None:
    """The matrix up to 100 classes, right answers beyond; sums are those of the other numbers."""
    generator = np.random.default_rng(num_classes)
    logits = generator.normal(size=(60, num_classes)).astype(np.float32)
    labels = generator.integers(num_classes // 2 + 1, size=60).tolist()  # some have no images
    logits[range(60), labels] += 2
    counts = np.zeros((num_classes, num_classes), dtype=int)
    for row, label in zip(logits, labels, strict=True):
        counts[label, row.argmax()] += 1
    for batch_size in (7, 256):
        found = evaluate_network(
            Table(torch.tensor(logits)),
            source(labels),
            settings(num_classes),
            batch_size=batch_size,
        )
        assert (found.confusion is None) == (num_classes > 100)
        assert (found.class_hits is None) == (num_classes <= 100)
        if found.confusion is not None:
            assert found.confusion == tuple(map(tuple, counts.tolist()))
        by_class = [(int(counts[n, n]), int(counts[n].sum())) for n in range(num_classes)]
        assert found.per_class == tuple(by_class)
        assert sum(right for right, _ in by_class) == round(found.top1 * 60)
        recalls = [right / number for right, number in by_class if number]
        assert found.balanced_accuracy == pytest.approx(sum(recalls) / len(recalls))


def test_the_balanced_accuracy_is_not_that_of_the_largest_class() -> None:
    """Always naming the largest of 480, 24 and 4 is right in 94.5 % and worth a third."""
    labels = [0] * 480 + [1] * 24 + [2] * 4
    logits = torch.tensor([1.0, 0.0, 0.0]).expand(len(labels), 3)
    found = evaluate_network(Table(logits), source(labels), settings(3))
    assert found.top1 == pytest.approx(480 / 508)
    assert found.balanced_accuracy == pytest.approx(1 / 3)
    assert found.confusion == ((480, 0, 0), (24, 0, 0), (4, 0, 0))


@pytest.mark.parametrize(
    ("side", "device", "num_crops", "expected"),
    [
        *[(28, "cpu", 1, 256), (32, "cpu", 10, 25), (96, "cpu", 1, 56), (224, "cpu", 1, 10)],
        *[
            (224, "cpu", 5, 2),
            (1024, "cpu", 1, 1),
            (224, "cuda", 1, 256),
            (224, "cuda", 5, 51),
            (512, "cuda", 1, 64),
        ],
    ],
)
def test_fewer_large_images_are_evaluated_at_once(
    side: int, device: str, num_crops: int, expected: int
) -> None:
    size = VitSettings(image_size=(side, side), patch_size=4)
    assert images_at_once(size, torch.device(device), num_crops) == expected


def test_images_are_evaluated_as_many_at_once_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "_MOST_PIXELS", 7 * 16)
    sizes: list[int] = []

    class Counting(Table):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().forward(images)

    labels = [0] * 17
    found = evaluate_network(Counting(torch.eye(17)[:, :2]), source(labels), settings(2))
    assert sizes == [7, 7, 3]
    assert found.num_images == 17


def test_crops_count_among_those_evaluated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By every function that is told how many crops an image has."""
    told: list[int] = []
    original = images_at_once

    def spy(settings: Any, device: torch.device, num_crops: int = 1) -> int:
        told.append(num_crops)
        return original(settings, device, num_crops)

    monkeypatch.setattr(accuracy, "images_at_once", spy)
    images, labels = torch.randn(3, 5, 1, 8, 8), torch.tensor([0, 1, 2])
    split = TensorDataset(images, labels)
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0)).eval()
    evaluate_archs(supernet, [WHOLE], {"validation": split}, num_crops=5)
    top1_of_archs(supernet, [WHOLE], split, [{}], num_crops=5)
    assert told == [5, 5]


def test_ties_are_counted_as_top_1_counts_them() -> None:
    logits = torch.zeros(6, 3)
    found = evaluate_network(Table(logits), source([0, 0, 1, 1, 2, 2]), settings(3))
    assert found.per_class is not None
    assert sum(right for right, _ in found.per_class) == round(6 * found.top1)


def mistakes_by_hand(logits: np.ndarray, labels: list[int]) -> list[Any]:
    """(image, label, predicted, probability) of every mistake, the surest first."""
    found = []
    for image, (row, label) in enumerate(zip(logits.astype(np.float64), labels, strict=True)):
        shares = np.exp(row) / np.exp(row).sum()
        if (predicted := int(row.argmax())) != label:
            found.append((image, label, predicted, shares[predicted]))
    found.sort(key=lambda one: -one[3])
    return [(*one[:3], pytest.approx(one[3], abs=1e-4)) for one in found]  # the network has float32


def as_rows(metrics: Metrics) -> list[tuple[int, int, int, float]]:
    assert metrics.mistakes is not None
    return [(one.image, one.label, one.predicted, one.probability) for one in metrics.mistakes]


@pytest.mark.parametrize("num_images", [7, 90])
def test_the_surest_mistakes_are_kept(num_images: int) -> None:
    """Of every network its own, in batches that do not divide the number of images."""
    rng = np.random.default_rng(num_images)
    tables = [rng.normal(size=(num_images, 3)).astype(np.float32) for _ in range(2)]
    labels = rng.integers(3, size=num_images).tolist()
    networks = [Table(torch.from_numpy(table)) for table in tables]
    found = evaluate_networks(networks, source(labels), settings(3), batch_size=8)
    for metrics, table in zip(found, tables, strict=True):
        assert as_rows(metrics) == mistakes_by_hand(table, labels)[:12]
    assert found[0].mistakes != found[1].mistakes


def test_a_network_without_mistakes_has_none() -> None:
    metrics = evaluate_network(Table(5 * torch.eye(3)), source([0, 1, 2]), settings(3))
    assert metrics.mistakes == ()


def test_several_processes_keep_the_mistakes_of_all() -> None:
    """Each sees its share of the images; their numbers are those of the whole split."""
    logits = np.random.default_rng(4).normal(size=(41, 3)).astype(np.float32)
    labels = [image % 3 for image in range(41)]
    sent: list[Tensor] = []

    class Second(Processes):
        def add_up(self, tensor: Tensor) -> None:
            sent.append(tensor.clone())

    class First(Processes):
        def add_up(self, tensor: Tensor) -> None:
            tensor += sent.pop(0)

    for process in (Second(1, 2), First(0, 2)):
        network = Table(torch.from_numpy(logits))
        found = evaluate_network(
            network, source(labels), settings(3), batch_size=8, processes=process
        )
    assert as_rows(found) == mistakes_by_hand(logits, labels)[:12]


def test_images_of_a_loader_have_no_numbers() -> None:
    loader = DataLoader(source([1, 0, 0]), batch_size=2)
    assert evaluate_network(Table(torch.eye(3)), loader, settings(3)).mistakes is None


def test_earlier_files_have_no_classes(finished: Path) -> None:
    """They are still read; a table leaves the column empty, and nothing is made up."""
    path = finished / "evaluation.json"
    document = artifacts.read_json(path)
    document.pop("schema_version", None)
    for row in document["subnets"]:
        for metrics in row["splits"].values():
            assert len(metrics.pop("confusion")) == 10
            assert "class_hits" not in metrics
    artifacts.write_json(path, document)
    rows = pipeline.evaluate(finished)
    assert [row.splits["test"].balanced_accuracy for row in rows] == [None] * len(rows)
    pipeline.report(finished)
    assert "## Classes" not in (finished / "report.md").read_text()
    assert not (finished / "report" / "confusion.png").exists()
