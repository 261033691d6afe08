"""An interrupted training ends with the same bits as one that was never interrupted."""

import dataclasses
import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from edits import write_edited
from prenas import artifacts, pipeline
from prenas.data import ImageData
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import Augmentation
from prenas.runs.log import MetricsLog
from prenas.runs.status import read_status
from prenas.training.loop import Progress
from training.runs import (
    StoppedError,
    assert_same_training,
    hearing,
    metrics_of,
    mini_recipe,
    own_data,
    own_recipe,
    stop_at,
    value_error_of,
)

pytest_plugins = "training.runs"

STEPS = 9  # per epoch: 1,078 images in batches of 128; three epochs


@pytest.fixture(scope="module")
def two_epochs(searched_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interrupted in the third epoch: two checkpoints are there."""
    out = shutil.copytree(searched_run, tmp_path_factory.mktemp("two") / "run")
    with pytest.raises(StoppedError):
        pipeline.train(out, observer=hearing(steps=stop_at(2 * STEPS + 3)))
    return out


@pytest.fixture
def unfinished(two_epochs: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage and continue."""
    return shutil.copytree(two_epochs, tmp_path / "unfinished")


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, id="first-step"),
        pytest.param(4, id="first-epoch"),
        pytest.param(STEPS, id="before-the-first-checkpoint"),
        pytest.param(STEPS + 1, id="after-the-first-checkpoint"),
        pytest.param(2 * STEPS + 5, id="last-epoch"),
        pytest.param(3 * STEPS, id="last-step"),
    ],
)
def test_an_interrupted_training_continues_bit_exactly(
    step: int, searched: Path, finished_run: Path
) -> None:
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(step)))
    assert not (searched / "supernet.safetensors").exists()
    seen = []
    pipeline.train(searched, observer=hearing(steps=lambda progress: seen.append(progress.step)))
    assert_same_training(searched, finished_run)
    # Whole epochs are not trained again.
    assert seen[0] == (step - 1) // STEPS * STEPS + 1
    assert seen[-1] == 3 * STEPS


def test_many_interruptions_change_nothing(searched: Path, finished_run: Path) -> None:
    for step in (2, STEPS + 8, STEPS + 2, 2 * STEPS + 1):
        with pytest.raises(StoppedError):
            pipeline.train(searched, observer=hearing(steps=stop_at(step)))
    pipeline.train(searched)
    assert_same_training(searched, finished_run)


def test_an_interruption_of_the_process_leaves_the_log_whole(
    unfinished: Path, finished_run: Path
) -> None:
    """A line cut short, and lines of epochs whose checkpoint was never written, are dropped."""
    with (unfinished / "metrics.jsonl").open("a") as file:
        for event in ("step", "epoch", "validation", "skipped"):
            numbers = {"epoch": 2, "step": 2 * STEPS + 1, "loss": 9.0, "lr": 9.0}
            file.write(json.dumps({"event": event, **numbers}) + "\n")
        file.write('{"event": "epoch", "epoch": 3, "lo')
    pipeline.train(unfinished)
    assert_same_training(unfinished, finished_run)


@pytest.mark.parametrize("line", ["hello", '{"loss": 2.0}', "[1]"])
def test_a_damaged_log_is_repaired_or_refused_by_name(line: str, unfinished: Path) -> None:
    log = unfinished / "metrics.jsonl"
    log.write_text(line + "\n" + log.read_text())
    message = value_error_of(lambda: pipeline.train(unfinished))
    assert message is None or str(log) in message


def test_the_log_has_one_line_per_epoch(finished_run: Path) -> None:
    lines = metrics_of(finished_run, "epoch")
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 9), (1, 18), (2, 27)]
    fields = {"event", "epoch", "step", "loss", "lr", "skipped"}
    assert all(line.keys() == fields for line in lines)
    assert all(line["skipped"] == 0 for line in lines)


def test_a_log_without_a_path_keeps_nothing(tmp_path: Path) -> None:
    MetricsLog(None, step=0).append("epoch", epoch=0, step=9, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_only_the_last_two_checkpoints_are_kept(two_epochs: Path, finished_run: Path) -> None:
    assert checkpoints(two_epochs) == ["best.safetensors", "step-00000009", "step-00000018"]
    assert checkpoints(finished_run) == ["best.safetensors", "step-00000018", "step-00000027"]


def test_a_finished_training_whose_result_is_lost_is_not_trained_again(
    finished: Path, finished_run: Path
) -> None:
    """As after a crash between the last checkpoint and the supernet's file."""
    (finished / "supernet.safetensors").unlink()
    seen = []
    pipeline.train(finished, observer=hearing(steps=lambda progress: seen.append(progress.step)))
    assert seen == []
    assert_same_training(finished, finished_run)


# --- in the middle of an epoch -------------------------------------------------------------------


EVERYTHING = {
    "checkpoint_steps": 4,
    "optimizer": "masked_adamw",
    "sandwich": 1,
    "inplace_distillation": True,
    "ema_decay": 0.9,
    "final_weights": "best",
    "log_steps": 3,
}
ALPHANET = {
    "checkpoint_steps": 4,
    "optimizer": "sgd",
    "sandwich": 1,
    "sandwich_loss": "sum",
    "inplace_distillation": "alpha",
    "clip_grad_norm": None,
    "clip_grad_value": 0.05,
    "dropout": 0.2,
    "drops_in": "largest",
}
CHANGED = {"shift_pixels": 1.0, "erasing": 0.5, "mixup": 0.4, "cutmix": 1.0, "repeats": 2}


@pytest.mark.parametrize(
    ("training", "augmentation"),
    [
        pytest.param({"checkpoint_steps": 4}, {}, id="plain"),
        pytest.param({"checkpoint_steps": 1, "keep_checkpoints": 3}, {}, id="every-step"),
        pytest.param(EVERYTHING, {}, id="masked-sandwich-average-best"),
        pytest.param(ALPHANET, {}, id="sgd-clipped-values-dropout"),
        pytest.param({"checkpoint_steps": 4}, CHANGED, id="mixed-erased-repeated"),
    ],
)
def test_an_epoch_is_continued_in_its_middle(
    training: dict[str, Any], augmentation: dict[str, Any], tmp_path: Path
) -> None:
    digits = get_recipe("digits").data
    assert digits is not None
    data = digits.model_copy(update={"augmentation": Augmentation(**augmentation)})
    recipe = mini_recipe(training={"epochs": 2, **training}, data=data)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pipeline.search(recipe, whole)
    shutil.copytree(whole, broken)
    pipeline.train(whole)
    period = training["checkpoint_steps"]
    for step in (3, 7, STEPS + 6):
        seen: list[int] = []

        def watch(progress: Progress, step: int = step, seen: list[int] = seen) -> None:
            seen.append(progress.step)
            stop_at(step)(progress)

        done = steps_saved(broken)[-1]
        with pytest.raises(StoppedError):
            pipeline.train(broken, observer=hearing(steps=watch))
        assert seen[0] == done + 1
        assert steps_saved(broken)[-1] >= step - period
    pipeline.train(broken)
    assert_same_training(broken, whole)
    kept = training.get("keep_checkpoints", 2)
    assert len(steps_saved(whole)) == kept + 1


def steps_saved(run: Path) -> list[int]:
    """From none, 0, to the newest."""
    found = [path.name for path in (run / "checkpoints").glob("step-*")]
    return sorted([0, *(int(name.removeprefix("step-")) for name in found)])


class Stream(IterableDataset[Any]):
    """40 images that can only be iterated."""

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[Any]:
        train = own_data().train
        assert isinstance(train, TensorDataset)
        return iter(train)


def loader(data: ImageData) -> ImageData:
    """Shuffled by the loader itself."""
    assert isinstance(data.train, Dataset)
    return dataclasses.replace(data, train=DataLoader(data.train, batch_size=8, shuffle=True))


def stream(data: ImageData) -> ImageData:
    return dataclasses.replace(data, train=Stream())


@pytest.mark.parametrize("given", [loader, stream])
def test_an_epoch_of_an_own_loader_is_continued_in_its_middle(
    given: Callable[[ImageData], ImageData], tmp_path: Path
) -> None:
    training = {"epochs": 2, "batch_size": 8, "checkpoint_steps": 2, "drop_path": 0.3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run in (whole, broken):
        pipeline.search(own_recipe(training=training), run, data=own_data())
    pipeline.train(whole, data=given(own_data()))
    for step in (3, 9):
        with pytest.raises(StoppedError):
            pipeline.train(broken, data=given(own_data()), observer=hearing(steps=stop_at(step)))
    pipeline.train(broken, data=given(own_data()))
    assert_same_training(broken, whole)


# --- damage --------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def damage(checkpoint: Path, how: str) -> Path:
    """Damages a checkpoint; returns where a bomb would leave its mark."""
    mark = checkpoint.parent.parent / "exploded"
    weights, state = checkpoint / "supernet.safetensors", checkpoint / "state.pt"
    if how == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif how == "weights empty":
        weights.write_bytes(b"")
    elif how == "weights missing":
        weights.unlink()
    elif how == "state cut short":
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    elif how == "state empty":
        state.write_bytes(b"")
    elif how == "state is text":
        state.write_text("not a checkpoint")
    elif how == "state missing":
        state.unlink()
    elif how == "state is a bomb":
        torch.save({"optimizer": Bomb(mark), "scaler": {}, "position": {}}, state)
    elif how == "state is a bare bomb":
        state.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    elif how in ("a bit of the weights", "a bit of the state"):
        path = state if "state" in how else weights
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "everything missing":
        weights.unlink()
        state.unlink()
    else:
        raise AssertionError(how)
    return mark


DAMAGES = [
    "weights cut short",
    "weights empty",
    "weights missing",
    "state cut short",
    "state empty",
    "state is text",
    "state missing",
    "state is a bomb",
    "state is a bare bomb",
    "a bit of the weights",
    "a bit of the state",
    "everything missing",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    how: str, unfinished: Path, finished_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mark = damage(unfinished / "checkpoints" / "step-00000018", how)
    seen = []
    with caplog.at_level(logging.WARNING):
        pipeline.train(
            unfinished, observer=hearing(steps=lambda progress: seen.append(progress.step))
        )
    assert not mark.exists()
    assert seen[0] == STEPS + 1
    assert_same_training(unfinished, finished_run)
    # Another warning says that so short a training seldom learns much.
    others = [record for record in caplog.records if record.name != "prenas.steps.training"]
    warnings = [record.getMessage() for record in others]
    assert len(warnings) == 1
    assert "step-00000018 is damaged" in warnings[0]


def rewritten(change: Callable[[dict[str, Any]], object], checkpoint: Path) -> None:
    """Changes the saved state, and its digest so that only its content can be wrong."""
    path = checkpoint / "state.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    (checkpoint / "state.sha256").write_text(f"{artifacts.sha256(path)}\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["optimizer"]["state"][0].pop("exp_avg_sq"),
        lambda s: s["optimizer"]["state"][0].pop("step"),
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2)),
        lambda s: s["optimizer"]["state"][0]["exp_avg_sq"].fill_(math.nan),
        lambda s: s["optimizer"]["state"][0].update(exp_avg_sq=3),
        lambda s: s["optimizer"]["state"][0].update(exp_avg_sq=torch.zeros(2)),
        lambda s: s["optimizer"]["state"].pop(0),
        lambda s: s["optimizer"]["state"].update({99: s["optimizer"]["state"][0]}),
        lambda s: s["optimizer"].update(state=[]),
        lambda s: s["optimizer"].update(param_groups=[]),
        lambda s: s.update(optimizer=None),
        lambda s: s.pop("position"),
        lambda s: s["position"].update(step=9),
        lambda s: s["position"].update(step="18"),
        lambda s: s["position"].update(best_top1=None),
        lambda s: s["position"]["epoch_loss"].update(total=math.nan),
        lambda s: s["position"]["epoch_loss"].update(number=True),
        lambda s: s.update(world_size="one"),
        lambda s: s.update(scaler={"scale": 2.0}),
    ],
)
def test_a_state_with_odd_values_gives_way_to_the_one_before(
    change: Callable[[dict[str, Any]], object], unfinished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewritten(change, unfinished / "checkpoints" / "step-00000018")
    with pytest.raises(StoppedError):
        pipeline.train(unfinished, observer=hearing(steps=stop_at(STEPS + 1)))
    assert "step-00000018 is damaged" in caplog.text


def test_rates_and_decays_follow_from_the_recipe_not_from_the_file(
    unfinished: Path, finished_run: Path
) -> None:
    def change(state: dict[str, Any]) -> None:
        for group in state["optimizer"]["param_groups"]:
            group.update(weight_decay=0.9, betas=(0.1, 0.2), lr=5.0)

    rewritten(change, unfinished / "checkpoints" / "step-00000018")
    pipeline.train(unfinished)
    found, expected = (
        artifacts.read_tensors(run / "supernet.safetensors") for run in (unfinished, finished_run)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("how", ["weights cut short", "state is a bomb"])
def test_damage_everywhere_is_an_error_that_changes_nothing(how: str, unfinished: Path) -> None:
    """Starting over by itself would throw away what someone may have a copy of."""
    folder = unfinished / "checkpoints"
    marks = [damage(path, how) for path in folder.glob("step-*")]
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}
    with pytest.raises(ValueError, match=f"none of the 2 checkpoints in {folder}.*move it away"):
        pipeline.train(unfinished)
    assert not any(mark.exists() for mark in marks)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (unfinished / "supernet.safetensors").exists()
    shutil.rmtree(folder)  # what the message advises
    pipeline.train(unfinished)


def test_a_leftover_of_a_checkpoint_is_harmless(unfinished: Path, finished_run: Path) -> None:
    """A process killed while writing leaves a temporary folder."""
    for name in (".step-00000018.tmp", ".step-00000027.tmp", ".step-00000009.old.tmp"):
        leftover = unfinished / "checkpoints" / name
        leftover.mkdir()
        (leftover / "supernet.safetensors").write_bytes(b"half a fi")
    (unfinished / "checkpoints" / ".best.safetensors.123.tmp").write_bytes(b"half a fi")
    pipeline.train(unfinished)
    assert_same_training(unfinished, finished_run)  # which has no leftovers either


def test_other_things_among_the_checkpoints_are_left_alone(
    unfinished: Path, finished_run: Path
) -> None:
    (unfinished / "checkpoints" / "step-of-peace.txt").write_text("mine")
    pipeline.train(unfinished)
    (unfinished / "checkpoints" / "step-of-peace.txt").unlink()
    assert_same_training(unfinished, finished_run)


@pytest.mark.parametrize("how", ["foreign weights", "foreign state"])
def test_a_checkpoint_of_another_network_gives_way_to_the_one_before(
    how: str,
    unfinished: Path,
    finished_run: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readable files that do not belong here: named, and not a bare error of PyTorch."""
    newest = unfinished / "checkpoints" / "step-00000018"
    other = tmp_path / "other"
    recipe = mini_recipe(search={"budgets": ("params=1k:2k",)}, training={"epochs": 1})
    pipeline.search(recipe, other)
    pipeline.train(other)
    name = "supernet.safetensors" if how == "foreign weights" else "state.pt"
    shutil.copy(other / "checkpoints" / "step-00000009" / name, newest / name)
    with caplog.at_level(logging.WARNING):
        pipeline.train(unfinished)
    assert "step-00000018 is damaged" in caplog.text
    assert_same_training(unfinished, finished_run)  # from the one before


def test_checkpoints_of_the_older_form_are_not_passed_over(searched: Path) -> None:
    """Nor the log of that training, which starting over would empty."""
    older = searched / "checkpoints" / "epoch-00007"
    older.mkdir(parents=True)
    log = '{"epoch": 6, "loss": 1.0, "lr": 0.1, "images_per_second": 1.0}\n'
    (searched / "metrics.jsonl").write_text(log)
    with pytest.raises(
        ValueError, match=r"epoch-00007 was written by an earlier version of prenas.*move"
    ):
        pipeline.train(searched)
    assert older.is_dir()
    assert (searched / "metrics.jsonl").read_text() == log


# --- lengths in steps: the last epoch may be a part of one ----------------------------------------


IN_STEPS = mini_recipe(training={"epochs": None, "steps": 2 * STEPS + 4})


@pytest.fixture(scope="module")
def finished_in_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steps") / "run"
    pipeline.search(IN_STEPS, out)
    pipeline.train(out)
    return out


def test_steps_end_a_training_within_an_epoch(finished_in_steps: Path) -> None:
    """The part of an epoch is logged, saved and validated like a whole one."""
    ends = [r for r in metrics_of(finished_in_steps) if r["event"] == "epoch"]
    assert [(r["epoch"], r["step"]) for r in ends] == [(0, 9), (1, 18), (2, 22)]
    assert ends[-1]["lr"] < 0.1 * ends[0]["lr"]  # the schedule ends with the training
    validated = {r["step"] for r in metrics_of(finished_in_steps) if r["event"] == "validation"}
    assert validated == {9, 18, 22}
    assert "step-00000022" in checkpoints(finished_in_steps)
    progress = read_status(finished_in_steps).progress
    assert progress is not None
    assert (progress.num_steps, progress.num_epochs, progress.step) == (22, 3, 22)
    assert progress.seconds_left is None


@pytest.mark.parametrize("step", [4, STEPS, 2 * STEPS + 2, 2 * STEPS + 4])
def test_an_interrupted_part_of_an_epoch_continues_bit_exactly(
    step: int, finished_in_steps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pipeline.search(IN_STEPS, out)
    with pytest.raises(StoppedError):
        pipeline.train(out, observer=hearing(steps=stop_at(step)))
    pipeline.train(out)
    assert_same_training(out, finished_in_steps)


def test_a_kill_after_the_last_checkpoint_only_validates(
    finished_in_steps: Path, tmp_path: Path
) -> None:
    """The position of that checkpoint is the end, although its epoch is not whole."""
    out = shutil.copytree(finished_in_steps, tmp_path / "run")
    (out / "supernet.safetensors").unlink()
    seen: list[int] = []
    pipeline.train(out, observer=hearing(steps=lambda progress: seen.append(progress.step)))
    assert seen == []
    assert_same_training(out, finished_in_steps)


def test_epochs_of_one_step_are_neither_all_validated_nor_all_saved(tmp_path: Path) -> None:
    recipe = own_recipe(training={"epochs": 2, "min_steps": 240, "keep_checkpoints": 999})
    out = tmp_path / "run"
    pipeline.search(recipe, out, data=own_data())
    pipeline.train(out, data=own_data())
    records = metrics_of(out)
    assert len([r for r in records if r["event"] == "epoch"]) == 240
    assert len({r["step"] for r in records if r["event"] == "validation"}) == 10
    assert len(checkpoints(out)) <= 1 + 100 + 10  # with the best weights
    assert {"step-00000240", "best.safetensors"} <= set(checkpoints(out))


def test_epochs_that_are_enough_steps_stay_as_they_are(searched: Path, finished_run: Path) -> None:
    """A floor below the length changes nothing, to the bit."""
    path = searched / "recipe.json"
    document = json.loads(path.read_text())
    document["recipe"]["training"]["min_steps"] = 3 * STEPS
    write_edited(path, document)
    pipeline.train(searched)
    assert_same_training(searched, finished_run)
