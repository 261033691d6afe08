"""Calibration gives every subnet the statistics it would have gathered alone, and no other."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from families.drawing import ALL_SPACES, images_for, new_supernet
from prenas import artifacts
from prenas.data import ImageData, training_batches
from prenas.evaluation.accuracy import evaluate_archs, top1_of_archs
from prenas.evaluation.calibration import (
    calibrate,
    calibrate_on,
    calibration_batches,
    calibration_size,
    num_calibrated,
)
from prenas.families import get_space
from prenas.families.base import Arch, SearchSpace
from prenas.processes import Processes
from prenas.recipe import CalibrationRecipe, SearchRecipe
from prenas.recipe import Recipe as RunRecipe
from prenas.recipe.data import DataRecipe, Preprocessing
from prenas.runs.run import Run
from prenas.supernet import Statistics, Supernet
from training.runs import own_data

each_space = pytest.mark.parametrize("space", ALL_SPACES)
RECIPE = CalibrationRecipe(num_images=40, batch_size=8)


def by_hand(network: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """BatchNorm alone in training mode, its momentum None, as any PyTorch user would do it."""
    network.eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for images in batches:
            network(images)
    return {name: tensor for name, tensor in network.named_buffers() if name in _names(network)}


def _names(network: nn.Module) -> set[str]:
    norms = [n for n, module in network.named_modules() if isinstance(module, _BatchNorm)]
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    return {f"{norm}.{kind}" for norm in norms for kind in kinds}


def archs_of(space: SearchSpace) -> list[Arch]:
    return [space.smallest, space.scored, space.supernet]


@each_space
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_statistics_are_those_of_the_cut_network(space: SearchSpace, training: bool) -> None:
    """To the bit, in either mode of the supernet, which stays as it was."""
    supernet = new_supernet(space, drop_path=0.5).train(training)
    before = {name: tensor.clone() for name, tensor in supernet.network.state_dict().items()}
    batches = [images_for(space, batch=5, seed=seed) for seed in range(3)]
    found = calibrate(supernet, archs_of(space), batches)
    assert supernet.training == training
    for name, tensor in supernet.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    for arch, statistics in zip(archs_of(space), found, strict=True):
        expected = by_hand(supernet.train().cut(arch), batches)
        assert statistics.keys() == expected.keys()
        assert bool(statistics) == supernet.has_statistics
        for name, tensor in expected.items():
            assert torch.equal(statistics[name], tensor)


@each_space
def test_processes_share_the_subnets_and_get_the_same(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of three gathers is zero in the others before it is added up."""
    supernet = new_supernet(space)
    batches = [images_for(space, seed=seed) for seed in range(2)]
    alone = calibrate(supernet, archs_of(space), batches)
    sums: dict[int, list[Tensor]] = {}

    def collect(self: Processes, tensor: Tensor) -> None:
        sums.setdefault(self.rank, []).append(tensor.clone())

    monkeypatch.setattr(Processes, "add_up", collect)
    for rank in range(3):
        calibrate(supernet, archs_of(space), batches, processes=Processes(rank, 3))
    expected = [tensor for statistics in alone for tensor in statistics.values()]
    added = [sum(parts) for parts in zip(*sums.values(), strict=True)]
    assert len(added) == len(expected)
    assert all(torch.equal(a, e) for a, e in zip(added, expected, strict=True))  # type: ignore[arg-type]


def test_statistics_of_another_subnet_or_a_part_of_them_are_refused() -> None:
    """Those of a training that kept none would stand for what is missing."""
    supernet = new_supernet(SPACE).eval()
    small, large = SPACE.smallest, SPACE.largest
    images = images_for(SPACE, batch=4)
    of_small, of_large = calibrate(supernet, [small, large], [images])
    part = dict(itertools.islice(of_small.items(), 3))
    for arch, statistics in ((small, of_large), (large, of_small), (small, part)):
        with pytest.raises(ValueError, match=f"do not belong to subnet {arch.id}"):
            supernet(images, arch, statistics=statistics)
        with pytest.raises(ValueError, match=f"do not belong to subnet {arch.id}"):
            supernet.cut(arch, statistics)


# --- its images ----------------------------------------------------------------------------------


def batches_of(data: ImageData, num_images: int = 40, **fields: Any) -> list[Tensor]:
    recipe = RECIPE.model_copy(update=fields)
    settings = SPACE.settings
    return list(calibration_batches(data, settings, recipe, num_images, seed=3, first_epoch=2))


SPACE = get_space("mobilenet-micro").with_settings(image_size=8, in_chans=1)


def test_images_are_those_of_the_epochs_after_the_training() -> None:
    """Whole batches only, as many as fit into the number, over as many epochs as it takes."""
    data = own_data(num_images=20)
    found = batches_of(data, num_images=47)
    assert [len(batch) for batch in found] == [8] * 5
    unmixed = replace(data, mixing=None, repeats=1)
    expected = [
        batch.images
        for epoch in (2, 3, 4)
        for batch in training_batches(unmixed, SPACE.settings, 8, 3, epoch)
        if len(batch.images) == 8
    ][:5]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, batches_of(data), strict=True))


def test_few_images_are_one_batch() -> None:
    """Fewer in the data than a batch, or fewer asked for."""
    data = own_data(num_images=20)
    assert [len(batch) for batch in batches_of(data, batch_size=256)] == [20, 20]
    recipe = CalibrationRecipe(num_images=400, batch_size=256)
    assert calibration_size(data, recipe, 47) == (20, 2)
    assert [len(batch) for batch in batches_of(data, num_images=3)] == [3]


@pytest.mark.parametrize(
    ("num_images", "fields", "num_batches"),
    [
        (16_384, {}, 20),
        (16_384, {"max_passes": 1}, 5),
        (16_384, {"max_passes": 3, "batch_size": 256}, 3),
        (64, {}, 8),
    ],
)
def test_a_small_set_is_read_a_few_times_only(
    num_images: int, fields: dict[str, int], num_batches: int
) -> None:
    """Forty images in batches of 8, whatever number is asked for."""
    data = own_data(num_images=40)
    assert len(batches_of(data, num_images=num_images, **fields)) == num_batches
    assert num_calibrated(data, CalibrationRecipe(), num_images) == min(num_images, 160)


def loader_of(num_images: int, batch_size: int, **fields: Any) -> ImageData:
    data = own_data(num_images=num_images)
    return replace(data, train=DataLoader(data.train, batch_size=batch_size, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [3, 8, 20])
def test_images_of_a_loader_are_taken_in_whole_batches_of_ours(batch_size: int) -> None:
    """Whatever its own: epoch by epoch, a rest left out."""
    data = loader_of(20, batch_size)
    found = batches_of(data)
    assert [len(batch) for batch in found] == [8] * 5
    for epoch, pair in zip((2, 3), (found[:2], found[2:4]), strict=True):
        loaded = training_batches(data, SPACE.settings, 8, 3, epoch)
        expected = torch.cat([batch.images for batch in loaded])[:16]
        assert torch.equal(torch.cat(pair), expected)


def test_a_loader_without_a_whole_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"yields 0 images, fewer than the 8 .* check drop_last"):
        batches_of(loader_of(20, 21, drop_last=True))


def test_images_are_not_mixed() -> None:
    def mixing(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("mixed")

    data = replace(own_data(num_images=20), mixing=mixing, repeats=3)
    plain = batches_of(replace(data, mixing=None, repeats=1))
    assert all(torch.equal(a, b) for a, b in zip(batches_of(data), plain, strict=True))


def test_statistics_that_are_not_finite_are_reported() -> None:
    supernet = new_supernet(SPACE)
    with torch.no_grad():
        supernet.network.get_parameter("conv_stem.weight")[0].fill_(torch.inf)
    with pytest.raises(ValueError, match=rf"subnet {SPACE.smallest.id} are not finite"):
        calibrate_on(
            supernet, [SPACE.smallest], own_data(num_images=20), RECIPE, seed=0, first_epoch=1
        )


# --- its use -------------------------------------------------------------------------------------


def test_evaluation_uses_them() -> None:
    """Cut or on the shared weights, and refuses without them, also while the supernet trains."""
    data, supernet, archs = own_data(num_images=40), new_supernet(SPACE), archs_of(SPACE)
    for training in (True, False):
        with pytest.raises(ValueError, match="Calibrate it first"):
            evaluate_archs(supernet.train(training), archs, {"validation": data.validation})
    found = calibrate_on(supernet, archs, data, RECIPE, seed=0, first_epoch=1)
    rows = evaluate_archs(supernet, archs, {"validation": data.validation}, found)
    shared = top1_of_archs(supernet.eval(), archs, data.validation, found)
    assert shared == [row.splits["validation"].top1 for row in rows]
    zeros: list[Statistics] = [
        {n: torch.ones_like(t) for n, t in statistics.items()} for statistics in found
    ]
    others = evaluate_archs(supernet, archs, {"validation": data.validation}, zeros)
    losses = [[r.splits["validation"].loss for r in table] for table in (rows, others)]
    assert losses[0] != losses[1]


def written(folder: Path) -> tuple[Supernet, list[Statistics]]:
    """A folder with a supernet, and the statistics of two subnets."""
    supernet = new_supernet(SPACE)
    batches = [images_for(SPACE, batch=4)]
    found = calibrate(supernet, archs_of(SPACE)[:2], batches)
    channels = SPACE.settings.in_chans
    preprocessing = Preprocessing(mean=(0.5,) * channels, std=(0.25,) * channels)
    recipe = RunRecipe(
        name="x",
        space=SPACE,
        search=SearchRecipe(budgets=("params=1G",)),
        data=DataRecipe(name="own", preprocessing=preprocessing),
        calibration=RECIPE,
    )
    run = Run(folder, recipe)
    run.record_recipe(recipe)
    run.record_supernet(supernet)
    run.results.record_statistics(archs_of(SPACE)[:2], found, num_images=40, batch_size=8)
    return supernet, found


def test_they_survive_the_disk(tmp_path: Path) -> None:
    assert Run(tmp_path).results.statistics(archs_of(SPACE)) is None
    _, found = written(tmp_path)
    for archs, expected in ((archs_of(SPACE)[:2], found), (archs_of(SPACE)[1:2], found[1:])):
        stored = Run(tmp_path).results.statistics(archs)
        assert stored is not None
        for ours, theirs in zip(stored, expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("what", ["supernet", "statistics", "missing", "subnets"])
def test_those_of_others_are_refused(tmp_path: Path, what: str) -> None:
    """Of other weights, of another calibration or none, of subnets that were not calibrated."""
    supernet, found = written(tmp_path)
    archs = archs_of(SPACE)[:2]
    if what == "supernet":
        tensors = {name: tensor + 1 for name, tensor in supernet.network.state_dict().items()}
        artifacts.write_tensors(tmp_path / artifacts.SUPERNET, tensors)
    elif what == "statistics":
        tensors = {f"{archs[0].id}/{name}": tensor for name, tensor in found[0].items()}
        artifacts.write_tensors(tmp_path / artifacts.STATISTICS, tensors)
    elif what == "missing":
        (tmp_path / artifacts.STATISTICS).unlink()
    else:
        smaller = SPACE.compose(
            tuple(itertools.chain(SPACE.extreme(0)[:-1], SPACE.extreme(-1)[-1:]))
        )
        archs = [*archs, smaller]
    with pytest.raises(
        ValueError, match=r"to calibrate again, remove it, and .* in the same folder"
    ):
        Run(tmp_path).results.statistics(archs)
