"""A dry run: the subnets of the real run, arithmetic that can be done by hand, nothing written."""

import gc
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from prenas import pipeline
from prenas.cli import app
from prenas.cli.tables import print_estimate
from prenas.cost import count
from prenas.data import num_samples, training_batches
from prenas.families import get_space
from prenas.families.base import Arch
from prenas.families.vit.space import VitArch
from prenas.length import Length
from prenas.recipe import CalibrationRecipe, TeacherRecipe, TrainingRecipe, with_overrides
from prenas.supernet import Supernet
from prenas.training import estimate
from prenas.training.estimate import (
    Estimate,
    Measured,
    SubnetCost,
    estimate_training,
    within_time,
)
from prenas.training.sampler import BalancedSampler, SandwichSampler, SingleSampler
from prenas.training.step import TrainingStep
from prenas.training.subnets import BoundSubnets
from prenas.training.validation import validations_due
from training.runs import MINI, WHOLE, contents, global_state_untouched, mini_recipe, own_data

pytest_plugins = "training.runs"


def archs(number: int) -> list[VitArch]:
    """From the cheapest on, in groups of two widths."""
    found = [
        VitArch(embed_dim=width, num_heads=(heads, 1), mlp_ratio=(ratio, 1.0))
        for width in (8, 16)
        for heads in (1, 2)
        for ratio in (1.0, 1.5, 2.0)
    ]
    ordered = sorted(found, key=lambda arch: count(arch, MINI.settings)["params"])
    return ordered[:number]


def test_a_dry_run_chooses_what_the_run_chooses(searched_run: Path) -> None:
    with global_state_untouched():
        plan = pipeline.dry_run(mini_recipe(), device="cpu")
    assert plan.preferred.archs == pipeline.read_preferred(searched_run).archs


def test_counts_are_the_trainings() -> None:
    recipe, data = mini_recipe(), own_data(num_images=40)
    assert recipe.training is not None
    training = recipe.training.model_copy(update={"batch_size": 16, "epochs": 7})
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    found = estimate_training(supernet, archs(3), data, training)
    assert (found.steps_per_epoch, found.num_steps) == (3, 21)
    assert found.images_per_step == 16
    assert found.state_bytes == 4 * 4 * count(WHOLE, MINI.settings)["params"]
    assert [cost.arch for cost in found.costs] == archs(3)
    kept = [cost.activation_bytes for cost in found.costs]
    assert found.activation_bytes == 16 * max(kept)
    mean = sum(cost.seconds for cost in found.costs)
    assert 0 < found.training_seconds < 7 * 40 * (mean + found.loading_seconds)
    assert found.evaluation_seconds > 0
    assert found.calibration_seconds == 0


def test_what_is_kept_grows_with_the_images_and_the_network() -> None:
    """Kept bytes are counted, not timed: equal per image at any batch, larger for more layers."""
    recipe, data = mini_recipe(), own_data(num_images=32)
    assert recipe.training is not None
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0)).train()
    measure = estimate._Measure(supernet, recipe.training)
    batches = {
        size: next(iter(training_batches(data, MINI.settings, size, 0, 0))) for size in (8, 32)
    }
    small, whole = archs(1)[0], WHOLE
    for arch in (small, whole):
        few, many = (measure(arch, batch).activation_bytes for batch in batches.values())
        assert few == pytest.approx(many, rel=0.05)
    assert measure(small, batches[32]).activation_bytes < many
    # By hand, a lower bound: the hidden units before and after GELU of every layer.
    tokens = 5
    hidden = sum(whole.hidden_dims) * tokens * 4
    assert many > 2 * hidden


@pytest.mark.parametrize("seed", [0, 3])
def test_the_mean_is_over_the_draws_of_the_sampler(seed: int) -> None:
    chosen = archs(5)
    costs = [SubnetCost(arch, float(place + 1), 0) for place, arch in enumerate(chosen)]
    sampler = BalancedSampler(chosen, seed)
    single = SingleSampler(sampler)
    drawn = Counter(sampler(step) for step in range(500))
    by_hand = sum(drawn[cost.arch] * cost.seconds for cost in costs) / 500
    assert estimate._mean_seconds(costs, single, MINI.settings) == pytest.approx(by_hand)


def test_unmeasured_subnets_lie_between_their_neighbours_by_macs() -> None:
    chosen, settings = archs(5), MINI.settings
    macs = [count(arch, settings)["macs"] for arch in chosen]
    every = [SubnetCost(arch, float(m), 0) for arch, m in zip(chosen, macs, strict=True)]
    some = [every[place] for place in (0, 2, 4)]
    single = SingleSampler(BalancedSampler(chosen, 0))
    expected = estimate._mean_seconds(every, single, settings)
    assert estimate._mean_seconds(some, single, settings) == pytest.approx(expected)


def test_a_sandwich_costs_the_sum_of_its_subnets() -> None:
    chosen = archs(5)
    costs = [SubnetCost(arch, 2.0, 0) for arch in chosen]
    sandwich = SandwichSampler(BalancedSampler(chosen, 0), chosen[0], chosen[-1], 2)
    assert estimate._mean_seconds(costs, sandwich, MINI.settings) == 8.0


def test_of_many_subnets_some_are_measured_the_largest_among_them() -> None:
    recipe, data = mini_recipe(), own_data()
    assert recipe.training is not None
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    found = estimate_training(supernet, archs(12), data, recipe.training)
    measured = [cost.arch for cost in found.costs]
    assert len(measured) <= 8
    assert measured == [arch for arch in archs(12) if arch in measured]
    assert measured[-1] == archs(12)[-1]


def test_the_command_line_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "digits", "--dry-run", "--out", "runs/digits", "--set", "training.epochs=2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    for text in (
        "6 preferred subnets",
        "34 of 64 images",
        "images/s",
        "Dry run: nothing was written",
    ):
        assert text in result.output
    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_run_needs_a_folder() -> None:
    result = CliRunner().invoke(app, ["run", "digits"])
    assert isinstance(result.exception, ValueError)
    assert "--out FOLDER" in str(result.exception)


@pytest.mark.parametrize(
    ("batch_size", "parts", "device", "expected"),
    [(512, 1, "cpu", 32), (8, 1, "cpu", 8), (512, 1, "cuda", 512), (512, 3, "cuda", 171)],
)
def test_an_accelerator_is_measured_with_whole_parts_of_a_batch(
    batch_size: int, parts: int, device: str, expected: int
) -> None:
    """It takes nearly as long for a few images, as it waits for each kernel to be launched."""
    recipe = TrainingRecipe(epochs=1, batch_size=batch_size, grad_accum_steps=parts)
    assert estimate._measured_at_once(recipe, torch.device(device)) == expected


def test_an_estimate_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cycle holds gradients and moments while the training begins."""
    steps = list[Any]()

    def noted(*arguments: Any, **options: Any) -> TrainingStep:
        step = TrainingStep(*arguments, **options)
        steps.append(weakref.ref(step))
        return step

    recipe = TrainingRecipe(epochs=1, batch_size=8)
    images = own_data(num_images=34)
    monkeypatch.setattr(estimate, "TrainingStep", noted)
    for _ in range(2):  # the first imports what the optimiser needs
        gc.collect()
        gc.disable()
        try:
            supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
            estimate_training(supernet, [WHOLE], images, recipe)
            left = steps.pop()()
        finally:
            gc.enable()
    assert left is None


def test_an_empty_training_split_is_refused() -> None:
    recipe, data = mini_recipe(), own_data(num_images=0)
    assert num_samples(data.train) == 0
    assert recipe.training is not None
    with pytest.raises(ValueError, match="training split is empty"):
        estimate_training(Supernet(WHOLE, MINI.settings), archs(1), data, recipe.training)


@pytest.mark.parametrize(
    ("workers", "cores", "seconds"),
    [(0, 8, 1 + 2), (4, 8, 1), (1, 8, 2), (4, 3, (2 * 1 + 2) / 3), (2, 2, (2 * 1 + 2) / 2)],
)
def test_reading_is_added_or_shared(
    workers: int, cores: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without workers, reading and computing alternate. Workers read in parallel with computing,
    and where there are too few cores for both, they share those."""
    monkeypatch.setattr(estimate, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    recipe, data = mini_recipe(), replace(own_data(num_images=40), num_workers=workers)
    assert recipe.training is not None
    training = recipe.training.model_copy(update={"batch_size": 8, "epochs": 1})
    ticks = iter([0, *range(32, 10_000, 8)])  # 32 s for loading, 8 s for each step
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(ticks)))
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    found = estimate_training(supernet, archs(1), data, training)
    assert found.loading_seconds == 32 / 16  # two batches of 8
    assert found.costs[0].seconds == 1.0
    assert found.training_seconds == pytest.approx(40 * seconds)


@pytest.mark.parametrize(
    ("device", "processes", "seconds"), [("cpu", 1, 1), ("cpu", 2, 1.5), ("cuda", 2, 1)]
)
def test_readers_take_cores_of_their_own_process_from_a_processor(
    device: str, processes: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of a run share the cores of a machine; an accelerator computes without them."""
    monkeypatch.setattr(estimate, "usable_cores", lambda: 4)
    monkeypatch.setattr(estimate, "local_world_size", lambda: processes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert estimate._with_reading(1.0, 1.0, 2, torch.device(device)) == seconds


def test_calibration_is_counted_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are read once, and go forward through every subnet."""
    recipe, data = mini_recipe(), own_data(num_images=40)
    assert recipe.training is not None
    training = recipe.training.model_copy(update={"batch_size": 8, "epochs": 1})
    space = get_space("mobilenet-micro").with_settings(image_size=(8, 8), in_chans=1)
    subnets = [space.smallest, space.largest]
    found = {}
    for supernet, archs_of in (
        (Supernet(space.largest, space.settings), subnets),
        (Supernet(WHOLE, MINI.settings), archs(2)),
    ):
        ticks = iter([0, *range(32, 10_000, 8)])  # 2 s of loading and 1 s of a step per image
        monkeypatch.setattr(estimate.time, "perf_counter", lambda ticks=ticks: float(next(ticks)))
        supernet.initialize(torch.Generator().manual_seed(0))
        calibration = CalibrationRecipe(num_images=30)
        found[supernet.has_statistics] = estimate_training(
            supernet, archs_of, data, training, calibration=calibration
        ).calibration_seconds
    assert found == {True: pytest.approx(30 * (2 + 2 * 1 / 3)), False: 0}


def test_too_little_memory_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["run", "digits", "--dry-run"]
    assert "more than the" not in CliRunner().invoke(app, words).output
    monkeypatch.setattr(estimate, "_machine_bytes", lambda device: 1_000_000)
    output = " ".join(CliRunner().invoke(app, words).output.split())
    assert "This machine has only 1 MB: lower training.batch_size" in output


# --- strategies ----------------------------------------------------------------------------------


def estimated(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Estimate:
    """By a clock on which every step takes a second per subnet, and everything else no time."""
    recipe, data = mini_recipe(), own_data(num_images=40)
    assert recipe.training is not None
    options = {name: fields.pop(name) for name in ("teacher", "space") if name in fields}
    now, subnet_of = [0.0], BoundSubnets.__call__

    def ticking(self: BoundSubnets, arch: Arch, *, drops: bool) -> Any:
        now[0] += 1.0
        return subnet_of(self, arch, drops=drops)

    if "teacher" in options:

        def teacher(images: Tensor) -> Tensor:
            now[0] += 0.25
            return torch.zeros(len(images), 10)

        options["teacher"] = teacher
        fields["teacher"] = TeacherRecipe(name="any")
    monkeypatch.setattr(BoundSubnets, "__call__", ticking)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    training = recipe.training.model_copy(update={"batch_size": 40, "epochs": 5, **fields})
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    return estimate_training(supernet, archs(3), data, training, **options)


@pytest.mark.parametrize(
    ("fields", "seconds_per_step"),
    [
        ({}, 1.0),
        ({"sandwich": 2}, 4.0),
        ({"sandwich": 0, "inplace_distillation": "alpha", "drops_in": "largest"}, 2.0),
        ({"teacher": True}, 1.25),
        ({"sandwich": 2, "teacher": True}, 4.25),
        ({"grad_accum_steps": 4}, 1.0),
        ({"space": MINI}, 1.0),
    ],
)
def test_a_step_takes_its_subnets_and_its_teacher_once(
    fields: dict[str, Any], seconds_per_step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 32 of 40 images were measured; five epochs of one step are trained."""
    found = estimated(monkeypatch, **fields)
    assert found.num_steps == 5
    assert found.training_seconds == pytest.approx(5 * seconds_per_step * 40 / 32)


def test_parts_of_a_batch_divide_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimated(monkeypatch).activation_bytes
    assert estimated(monkeypatch, grad_accum_steps=3).activation_bytes == whole // 40 * 14
    assert estimated(monkeypatch, sandwich=2).activation_bytes == whole  # one after the other


def test_averages_and_step_counts_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = estimated(monkeypatch).state_bytes / 4
    assert estimated(monkeypatch, ema_decay=0.9).state_bytes == 5 * copy
    masked = estimated(monkeypatch, ema_decay=0.9, optimizer="masked_adamw")
    assert masked.state_bytes == 6 * copy
    assert estimated(monkeypatch, optimizer="sgd").state_bytes == 3 * copy


# --- a length for a time -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "seconds", "steps"),
    [
        pytest.param({"validate_epochs": 0, "validate_all_epochs": 0}, 100.0, 80, id="alone"),
        pytest.param({"validate_epochs": 0, "validate_all_epochs": 0}, 1.3, 1, id="one-step"),
    ],
)
def test_the_steps_fill_the_time(
    fields: dict[str, Any], seconds: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 40 images takes 1.25 s, of which evaluation leaves 100 s."""
    found = estimated(monkeypatch, **fields)
    recipe = mini_recipe(training=fields).training
    assert recipe is not None
    (longer,) = within_time(seconds + found.evaluation_seconds, Measured(found, archs(3), recipe))
    assert longer.num_steps == steps
    assert longer.training_seconds == pytest.approx(1.25 * steps)
    assert longer.costs == found.costs


@pytest.mark.parametrize("seconds", [700.0, 2_000.0, 3_600.0, 100_000.0])
def test_validations_are_part_of_the_time(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimated(monkeypatch)
    recipe = mini_recipe().training
    assert recipe is not None
    (chosen,) = within_time(seconds, Measured(found, archs(3), recipe))
    assert 0.8 * seconds < chosen.total_seconds <= seconds
    length = Length(1, chosen.num_steps, is_in_steps=True)
    num_validated = sum(map(len, validations_due(archs(3), recipe, length)))
    assert 3 * 5 < num_validated <= 3 * 10
    assert chosen.validation_seconds == pytest.approx(
        num_validated * found.between.seconds_per_subnet
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 2.0])
def test_one_time_for_two_trainings_scales_both_alike(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"validate_epochs": 0, "validate_all_epochs": 0}
    recipe = mini_recipe(training=fields).training
    assert recipe is not None
    second = estimated(monkeypatch, **fields).with_steps(600, archs(3), recipe)
    first = second.with_steps(300, archs(3), recipe)._replace(training_seconds=900.0)
    parts = [Measured(one, archs(3), recipe) for one in (first, second)]
    evaluations = first.evaluation_seconds + second.evaluation_seconds
    trainings = first.training_seconds + second.training_seconds
    found = within_time(evaluations + share * trainings, *parts)
    assert [one.num_steps for one in found] == [300 * share, 600 * share]
    assert sum(one.total_seconds for one in found) == pytest.approx(evaluations + share * trainings)


def test_a_time_that_is_too_short_or_too_long_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = estimated(monkeypatch)
    recipe = mini_recipe().training
    assert recipe is not None
    with pytest.raises(ValueError, match=r"no training fits into 1 s: .* takes \d+ s\. Give more"):
        within_time(1.0, Measured(found, archs(3), recipe))
    with pytest.raises(ValueError, match=r"training steps fit into 1000000000000 s .* less time"):
        within_time(1e12, Measured(found, archs(3), recipe))


def test_a_dry_run_returns_the_recipe_for_a_time() -> None:
    plan = pipeline.dry_run(mini_recipe(), device="cpu", seconds=3600)
    training = plan.recipe.training
    assert training is not None
    assert (training.epochs, training.steps) == (None, plan.estimate.num_steps)
    assert plan.estimate.num_steps > 1000
    assert plan.estimate.total_seconds <= 3600
    assert plan.recipe == with_overrides(mini_recipe(), [f"training.steps={training.steps}"])


def test_reading_is_timed_even_if_an_epoch_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    data = own_data(num_images=8)
    slow = replace(data, augmentation=lambda images, _: (time.sleep(0.02), images)[1])
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    training = mini_recipe().training
    assert training is not None
    found = estimate_training(supernet, archs(1), slow, training)
    assert found.images_per_step == 8
    assert 0.02 / 8 <= found.loading_seconds < 1


def test_a_time_too_short_to_print_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    plan = pipeline.dry_run(mini_recipe(), device="cpu")
    for seconds, words in (
        (1.234e-3, "1.23"),
        (1e-5, "0.01"),
        (9e-6, "under 0.01"),
        (0, "under 0.01"),
    ):
        print_estimate(plan.estimate._replace(loading_seconds=seconds), mini_recipe())
        (line,) = [s for s in capsys.readouterr().out.splitlines() if "reading images" in s]
        assert line.split("reading images")[1].strip() == f"{words} ms per image"


def test_what_readers_need_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    plan = pipeline.dry_run(mini_recipe(), device="cpu")
    assert (plan.estimate.num_readers, plan.estimate.reading_bytes) == (0, 0)
    for number, words in ((1, "1 process"), (8, "8 processes")):
        needs = {"num_readers": number, "reading_bytes": 1_230_000_000 * number}
        read = plan.estimate._replace(loading_seconds=2e-3, **needs)
        print_estimate(read, mini_recipe())
        (line,) = [s for s in capsys.readouterr().out.splitlines() if "reading images" in s]
        said = f"2.00 ms per image, by {words}; shared memory {1.23 * number:.2f} GB"
        assert line.split("reading images")[1].strip() == said
