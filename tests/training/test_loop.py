"""The training loop: learns, stays inside its subnets, reports, and stops with clear messages."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from prenas.data import Batch, ImageData, load_data, training_batches
from prenas.families.vit.network import VisionTransformer
from prenas.families.vit.space import VitArch
from prenas.recipe import TrainingRecipe
from prenas.recipe.catalogue import RECIPES, get_recipe
from prenas.recipe.data import DataRecipe
from prenas.supernet import Supernet
from prenas.training.loop import Progress, train_supernet
from prenas.training.sampler import make_sampler
from prenas.training.step import Outcome, TrainingStep
from training.runs import (
    MINI,
    SMALLEST,
    WHOLE,
    assert_same_tensors,
    assert_same_values,
    global_state_untouched,
    metrics_of,
    own_data,
    value_error_of,
)

INNER = VitArch(embed_dim=8, num_heads=(1, 2), mlp_ratio=(2.0, 1.0))
FLAT = {"min_lr": 0.0, "weight_decay": 0.0, "label_smoothing": 0.0}


def new_supernet(arch: VitArch = WHOLE, drop_path: float = 0.0) -> Supernet:
    supernet = Supernet(arch, MINI.settings, drop_path=drop_path)
    return supernet.initialize(torch.Generator().manual_seed(0))


def trained(
    training: TrainingRecipe,
    data: ImageData | None = None,
    archs: tuple[VitArch, ...] = (INNER, WHOLE),
    **kwargs: Any,
) -> tuple[Supernet, list[Progress]]:
    supernet = new_supernet(drop_path=training.drop_path)
    seen: list[Progress] = []
    train_supernet(supernet, archs, data or own_data(), training, watch=seen.append, **kwargs)
    return supernet, seen


# --- learning ------------------------------------------------------------------------------------


def test_training_lowers_the_loss_on_digits() -> None:
    recipe = get_recipe("digits")
    digits = load_data(recipe.data or DataRecipe(name="missing"), recipe.space.settings)
    recipe = TrainingRecipe(
        epochs=6, batch_size=64, lr_per_512_images=6e-2, warmup_epochs=1, clip_grad_norm=1.0
    )
    _, seen = trained(recipe, digits)
    losses = np.array([progress.loss for progress in seen])
    assert losses[0] == pytest.approx(math.log(10), abs=0.1)  # knows nothing
    assert losses[-17:].mean() < losses[:17].mean() - 0.25


def test_training_is_a_function_of_the_seed() -> None:
    recipe = TrainingRecipe(epochs=2, batch_size=8, lr_per_512_images=0.1, drop_path=0.3)
    first, seen = trained(recipe, seed=1)
    torch.rand(3)
    again, seen_again = trained(recipe, seed=1)
    assert_same_tensors(first.state_dict(), again.state_dict())
    assert seen == seen_again
    other, _ = trained(recipe, seed=2)
    assert not torch.equal(other.network.head.weight, first.network.head.weight)


def test_training_leaves_global_generators_alone() -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=8, drop_path=0.3)
    with global_state_untouched():
        trained(recipe)


def test_a_trained_supernet_is_in_evaluation_mode() -> None:
    supernet, _ = trained(TrainingRecipe(epochs=1))
    assert not any(module.training for module in supernet.modules())


def test_only_weights_of_the_trained_subnets_change() -> None:
    """Without decay, what no subnet owns keeps its initial bits; what they own learns."""
    before = new_supernet().network.state_dict()
    supernet, _ = trained(
        TrainingRecipe(epochs=2, batch_size=8, lr_per_512_images=0.1, **FLAT),
        archs=(SMALLEST, INNER),
    )
    owned = [supernet.owned_boxes(arch) for arch in (SMALLEST, INNER)]
    kept = 0
    for name, parameter in supernet.network.named_parameters():
        inside = torch.zeros_like(parameter, dtype=torch.bool)
        for boxes in owned:
            if name in boxes:
                inside[boxes[name]] = True
        assert torch.equal(parameter[~inside], before[name][~inside]), name
        kept += int((~inside).sum())
        if inside.any():
            assert not torch.equal(parameter[inside], before[name][inside]), name
    assert kept > 1000


def test_watched_steps_and_the_log_agree(tmp_path: Path) -> None:
    recipe = TrainingRecipe(epochs=2, batch_size=16)
    _, seen = trained(recipe, folder=tmp_path)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert {progress.num_steps for progress in seen} == {6}
    assert [progress.epoch for progress in seen] == [0, 0, 0, 1, 1, 1]
    assert [progress.num_images for progress in seen] == [16, 16, 8] * 2
    lines = metrics_of(tmp_path, "epoch")
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        steps = seen[3 * epoch : 3 * epoch + 3]
        assert line["loss"] == pytest.approx(sum(step.loss for step in steps) / 3)
        assert line["lr"] == steps[-1].lr


def test_label_smoothing_is_the_losses() -> None:
    """A network that is sure of the label pays for being sure."""
    losses = {}
    source = TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
    data = ImageData(source, source, None, tuple("0123456789"))
    for smoothing in (0.0, 0.2):
        seen: list[Progress] = []
        supernet = new_supernet()
        with torch.no_grad():
            supernet.network.head.bias.copy_(torch.tensor([9.0] + [0.0] * 9))
        recipe = TrainingRecipe(epochs=1, label_smoothing=smoothing)
        train_supernet(supernet, [WHOLE], data, recipe, watch=seen.append)
        losses[smoothing] = seen[0].loss
    assert losses[0.0] == pytest.approx(math.log(1 + 9 * math.exp(-9)), abs=0.05)
    # 0.2 of the label's weight is spread over ten classes, nine of which are 9 away.
    assert losses[0.2] - losses[0.0] == pytest.approx(0.2 * 0.9 * 9, abs=0.05)


# --- learning rate -------------------------------------------------------------------------------


def rates(training: TrainingRecipe) -> list[float]:
    """The rate of every step, 5 per epoch."""
    _, seen = trained(training, archs=(SMALLEST,))
    return [progress.lr for progress in seen]


def test_learning_rate_is_a_cosine_from_peak_to_min() -> None:
    recipe = TrainingRecipe(epochs=4, batch_size=8, lr_per_512_images=0.64, min_lr=1e-3)
    peak = 0.64 * 8 / 512
    assert recipe.peak_lr == pytest.approx(peak)
    found = rates(recipe)
    assert len(found) == 20
    for step in (0, 1, 10, 19):
        cosine = 1e-3 + (peak - 1e-3) * (1 + math.cos(math.pi * step / 20)) / 2
        assert found[step] == pytest.approx(cosine), step
    assert found[0] == pytest.approx(peak)
    assert found[10] == pytest.approx((peak + 1e-3) / 2)


def test_learning_rate_warms_up_linearly_then_joins_the_cosine() -> None:
    recipe = TrainingRecipe(
        epochs=4,
        batch_size=8,
        lr_per_512_images=0.64,
        min_lr=0.0,
        warmup_epochs=2,
        warmup_lr=1e-4,
    )
    found, peak = rates(recipe), 0.01
    for step in range(10):
        assert found[step] == pytest.approx(1e-4 + (peak - 1e-4) * step / 10), step
    for step in range(10, 20):
        assert found[step] == pytest.approx(peak * (1 + math.cos(math.pi * step / 20)) / 2), step


def test_a_training_shorter_than_its_warm_up_ends_on_the_way_up() -> None:
    recipe = TrainingRecipe(
        epochs=1, batch_size=8, lr_per_512_images=0.64, warmup_epochs=2, warmup_lr=0.0
    )
    assert rates(recipe) == pytest.approx([0.0, 0.001, 0.002, 0.003, 0.004])


@pytest.mark.parametrize("length", [{"epochs": 4}, {"steps": 20}])
def test_a_warm_up_takes_at_most_its_share(length: dict[str, int]) -> None:
    """Three epochs of warm-up in a run of four end after a fifth of the run: 4 of 20 steps."""
    recipe = TrainingRecipe.model_validate(
        {
            **length,
            "batch_size": 8,
            "lr_per_512_images": 0.64,
            "warmup_epochs": 3,
            "warmup_share": 0.2,
            "warmup_lr": 0.0,
            "min_lr": 0.0,
        }
    )
    found, peak = rates(recipe), 0.01
    for step in range(4):
        assert found[step] == pytest.approx(peak * step / 4), step
    for step in range(4, 20):
        assert found[step] == pytest.approx(peak * (1 + math.cos(math.pi * step / 20)) / 2), step


def test_no_recipe_warms_up_for_long() -> None:
    """Also when it is shortened: by default, at most a fifth of the steps."""
    for name in RECIPES:
        training = get_recipe(name).training
        assert training is None or training.warmup_share == 0.2, name


def test_a_part_of_an_epoch_may_warm_up() -> None:
    recipe = TrainingRecipe(
        epochs=2, batch_size=8, lr_per_512_images=0.64, warmup_epochs=0.4, warmup_lr=0.0
    )
    assert rates(recipe)[:2] == pytest.approx([0.0, 0.005])
    assert max(rates(recipe)[2:]) == pytest.approx(
        1e-5 + (0.01 - 1e-5) * (1 + math.cos(math.pi * 2 / 10)) / 2
    )


def test_a_min_above_the_peak_does_not_raise_the_rate() -> None:
    recipe = TrainingRecipe(epochs=2, batch_size=8, lr_per_512_images=0.064, min_lr=1.0)
    assert rates(recipe) == pytest.approx([0.001] * 10)


# --- stochastic depth ----------------------------------------------------------------------------


def noise_by_label(batch_size: int, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Label -> the noise that the loop gives to that sample's branches in the first epoch."""
    found: dict[int, list[float]] = {}
    forward = VisionTransformer.forward

    def spy(self: VisionTransformer, images: Tensor, noise: Tensor | None = None) -> Tensor:
        if not self.training:  # its validation
            return forward(self, images)
        assert noise is not None
        assert noise.shape == (len(images), 4)
        for image, row in zip(images, noise, strict=True):
            found[round(float(image[0, 0, 0]))] = row.tolist()
        return forward(self, images, noise)

    with monkeypatch.context() as patch:
        patch.setattr(VisionTransformer, "forward", spy)
        trained(TrainingRecipe(epochs=1, batch_size=batch_size, drop_path=0.5), data)
    return found


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_samples_noise_does_not_depend_on_its_batch(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(20, 1, 8, 8)
    images[:, 0, 0, 0] = torch.arange(20)
    source = TensorDataset(images, torch.arange(20) % 10)
    data = ImageData(source, source, None, tuple("0123456789"))
    expected = noise_by_label(5, data, monkeypatch)
    assert noise_by_label(batch_size, data, monkeypatch) == expected
    numbers = [number for row in expected.values() for number in row]
    assert len(numbers) == 80 == len(set(numbers))
    assert 0 <= min(numbers) < max(numbers) < 1
    assert np.mean(numbers) == pytest.approx(0.5, abs=0.15)


def test_stochastic_depth_acts_on_each_sample_alone() -> None:
    """In training mode a sample's logits are those of the sample alone with its noise."""
    supernet = new_supernet(drop_path=0.5).train()
    images, noise = torch.randn(6, 1, 8, 8), torch.rand(6, 4)
    noise[:, 2:] = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.1, 0.1], [0.9, 0.9]] * 2)[:6]
    together = supernet(images, WHOLE, noise)
    for index in range(6):
        alone = supernet(images[[index]], WHOLE, noise[[index]])
        assert torch.allclose(alone[0], together[index], atol=1e-6)
    kept = supernet(images[:1].expand(4, -1, -1, -1), WHOLE, noise[:4])
    assert len({tuple(row.tolist()) for row in kept}) == 4


# --- own loaders and kinds of numbers ------------------------------------------------------------


def test_an_own_loader_trains_with_its_own_batches() -> None:
    train = own_data().train
    assert isinstance(train, Dataset)
    loader = DataLoader(train, batch_size=3, drop_last=True)
    data = ImageData(loader, loader, None, tuple("0123456789"))
    _, seen = trained(TrainingRecipe(epochs=2, batch_size=999), data)
    assert [progress.num_images for progress in seen] == [3] * 26
    assert seen[-1].num_steps == 26


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        pytest.param(torch.float64, torch.int64, id="images-of-numpy"),
        pytest.param(torch.float16, torch.int64, id="half-images"),
        pytest.param(torch.float32, torch.int32, id="int-labels"),
        pytest.param(torch.float32, torch.uint8, id="byte-labels"),
    ],
)
def test_other_dtypes_are_accepted_or_refused_with_a_message(
    images: torch.dtype, labels: torch.dtype
) -> None:
    """NumPy gives double precision by default; PyTorch's own error names neither data nor way."""
    source = TensorDataset(torch.randn(8, 1, 8, 8).to(images), torch.arange(8).to(labels))
    data = ImageData(source, source, None, tuple("0123456789"))
    message = value_error_of(lambda: trained(TrainingRecipe(epochs=2), data))
    assert message is None or str(images if images != torch.float32 else labels) in message


# --- mistakes ------------------------------------------------------------------------------------


def test_an_empty_training_split_is_refused() -> None:
    source = TensorDataset(torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.long))
    with pytest.raises(ValueError, match="training split is empty: give at least one image"):
        trained(TrainingRecipe(epochs=1), ImageData(source, source, None, ("a",)))


def spoilt(images: Tensor, *places: int) -> ImageData:
    """Training images of which some are not numbers; the validation images are as they were."""
    whole = TensorDataset(images.clone(), torch.arange(len(images)) % 10)
    images[list(places)] = math.nan
    train = TensorDataset(images, torch.arange(len(images)) % 10)
    return ImageData(train, whole, None, tuple("0123456789"))


def test_a_step_without_a_finite_loss_is_left_out(tmp_path: Path) -> None:
    """Weights, moments and average stay as they were; the log says which step and why."""
    data = spoilt(torch.randn(24, 1, 8, 8), 0)
    recipe = TrainingRecipe(epochs=1, batch_size=4, ema_decay=0.5)
    batches = list(training_batches(data, MINI.settings, 4, 0, 0))
    bad = next(i for i, batch in enumerate(batches) if batch.images.isnan().any())
    states: list[dict[str, Any]] = []
    seen: list[Progress] = []
    supernet = new_supernet()
    sampler = make_sampler((INNER,), recipe, 0)
    step = TrainingStep(supernet, sampler, recipe, len(batches))
    for number, batch in enumerate(batches):
        outcome = step(number, batch)
        assert outcome.is_skipped == (number == bad)
        assert step.ema is not None
        moving = {"weights": supernet.network.state_dict(), "ema": step.ema.module.state_dict()}
        states.append(copy.deepcopy({**moving, "moments": step.optimizer.state_dict()["state"]}))
    before, after = states[bad - 1], states[bad]
    assert_same_values(before, after)
    assert 0 < bad < 5
    later = states[bad + 1]
    assert not torch.equal(after["weights"]["head.bias"], later["weights"]["head.bias"])

    supernet, archs = new_supernet(), (INNER,)
    train_supernet(supernet, archs, data, recipe, folder=tmp_path, watch=seen.append)
    assert len(seen) == 6
    (line,) = metrics_of(tmp_path, "skipped")
    assert line == {
        "event": "skipped",
        "epoch": 0,
        "step": bad + 1,
        "loss": None,
        "reason": "the loss is not finite",
        "archs": [INNER.id],
    }
    (epoch,) = metrics_of(tmp_path, "epoch")
    assert epoch["skipped"] == 1
    finite = [progress.loss for progress in seen if math.isfinite(progress.loss)]
    assert epoch["loss"] == pytest.approx(sum(finite) / 5)
    assert all(parameter.isfinite().all() for parameter in supernet.parameters())


def test_too_many_skipped_steps_in_a_row_stop_with_a_message(tmp_path: Path) -> None:
    """It names step, subnet, last checkpoint and what to try; the weights are unchanged."""
    data = spoilt(torch.randn(24, 1, 8, 8), *range(24))
    recipe = TrainingRecipe(epochs=1, batch_size=4, skipped_steps_limit=3, checkpoint_steps=2)
    supernet, seen = new_supernet(), []
    before = {name: tensor.clone() for name, tensor in supernet.network.state_dict().items()}
    with pytest.raises(ValueError, match="the loss was not finite in 3 steps in a row") as caught:
        train_supernet(supernet, (INNER,), data, recipe, folder=tmp_path, watch=seen.append)
    message = str(caught.value)
    for words in (
        "the last of them step 3 ",
        INNER.id,
        str(tmp_path / "checkpoints" / "step-00000002"),
        "training.lr_per_512_images",
        "training.clip_grad_norm",
        "training.precision",
    ):
        assert words in message
    assert len(seen) == 2
    assert_same_tensors(supernet.network.state_dict(), before)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_skipped_steps_count_in_a_row_only(limit: int) -> None:
    """Two in a row twice: a limit of two ends it, a limit of three does not."""
    data, recipe = own_data(), TrainingRecipe(epochs=1, batch_size=4, skipped_steps_limit=limit)
    bad, ended = {2, 3, 5, 6}, {1: 2, 2: 3}.get(limit)
    forward, seen = TrainingStep.__call__, []

    def spoil(self: TrainingStep, step: int, batch: Batch, **kwargs: Any) -> Outcome:
        images = batch.images * math.nan if step in bad else batch.images
        return forward(self, step, batch._replace(images=images), **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", spoil)
        message = value_error_of(
            lambda: train_supernet(new_supernet(), (INNER,), data, recipe, watch=seen.append)
        )
    assert len(seen) == (10 if ended is None else ended)
    assert (message is None) == (ended is None)


def test_a_diverging_training_stops_with_a_message() -> None:
    recipe = TrainingRecipe(epochs=9, batch_size=8, lr_per_512_images=1e38, validate_epochs=0)
    with pytest.raises(ValueError, match=r"was not finite in 16 steps in a row.*\(subnet"):
        trained(recipe)


class Failing(Dataset[Any]):
    """24 images; after some readings they are not finite, until repaired."""

    def __init__(self, good_readings: int) -> None:
        self.good_readings = good_readings
        self.images = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.good_readings -= 1
        image = self.images[index]
        return (image if self.good_readings >= 0 else image * math.nan), index % 10


def test_the_checkpoint_survives_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """As the message promises: with repaired data the training continues from it, bit for bit."""
    recipe = TrainingRecipe(epochs=2, batch_size=8, drop_path=0.2, skipped_steps_limit=1)
    source = Failing(good_readings=24 + 9)
    data = ImageData(source, Failing(10**6), None, tuple("0123456789"))
    kept = re.escape(str(tmp_path / "checkpoints" / "step-00000003"))
    with pytest.raises(ValueError, match=f"step 5 .*{kept} is the last checkpoint"):
        trained(recipe, data, folder=tmp_path)
    source.good_readings = 10**6
    continued, seen = trained(recipe, data, folder=tmp_path)
    assert [progress.step for progress in seen] == [4, 5, 6]
    unbroken, _ = trained(recipe, data)
    assert_same_tensors(continued.state_dict(), unbroken.state_dict())


# --- uneven classes ------------------------------------------------------------------------------


def uneven_data() -> ImageData:
    """Forty images of class 0 and four of class 1, which nothing tells apart."""
    labels = torch.tensor([0] * 40 + [1] * 4)
    images = torch.zeros(44, 1, 8, 8)
    return replace(own_data(), train=TensorDataset(images, labels))


@pytest.mark.parametrize(
    ("class_weights", "share"), [("none", pytest.approx(1 / 11, abs=0.02)), ("balanced", 0.5)]
)
def test_balanced_weights_make_all_classes_equally_likely(class_weights: Any, share: Any) -> None:
    """Where images say nothing, a network learns how much each class counts."""
    recipe = TrainingRecipe(
        epochs=60, batch_size=44, lr_per_512_images=1.0, class_weights=class_weights, **FLAT
    )
    supernet, _ = trained(recipe, uneven_data(), archs=(SMALLEST,))
    with torch.no_grad():
        likely = supernet(torch.zeros(1, 1, 8, 8), SMALLEST).softmax(dim=1)[0]
    assert float(likely[:2].sum()) > 0.98
    assert float(likely[1]) == (pytest.approx(share, abs=0.02) if share == 0.5 else share)


def test_unknown_classes_cannot_be_balanced() -> None:
    class Unlabelled(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(1, 8, 8), 0

    data = replace(own_data(), train=Unlabelled())
    recipe = TrainingRecipe(epochs=1, batch_size=8, class_weights="balanced")
    with pytest.raises(ValueError, match="give it an attribute `targets`"):
        trained(recipe, data)
    trained(recipe.model_copy(update={"class_weights": "none"}), data)
