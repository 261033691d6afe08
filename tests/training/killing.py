"""Trainings that kill themselves at a chosen point, and are then continued by the same call.

    python -m training.killing FOLDER

The trainings are forked from a process that has imported everything, and that runs nothing of
PyTorch itself, whose backward pass works only in one generation of processes. Runs are left in
FOLDER: `whole`, `point-N` for every named point, `change-N` for every Nth change of a file.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm.optim  # noqa: F401, that every killed training would import again: two thirds of its time
import torch

from data.making import shards
from prenas import artifacts, pipeline
from prenas.data import ImageData
from prenas.recipe.data import Augmentation, DataRecipe
from prenas.runs.log import MetricsLog
from prenas.training import checkpoint, loop
from prenas.training.gradients import GradientBuffer
from training.runs import MINI, mini_recipe, own_data, own_recipe

RECIPE = own_recipe(
    training={
        "epochs": 3,
        "batch_size": 16,
        "checkpoint_steps": 2,
        "log_steps": 1,
        "ema_decay": 0.9,
        "final_weights": "best",
    }
)
"""Three steps per epoch; checkpoints after steps 2, 3, 4, 6, 8, 9; validation after 3, 6, 9."""

IN_SHARDS = ("in a step, before the update", "in a step, after the update")
"""The points at which a training on shards is killed."""

Patch = Callable[[], None]


def die(*args: object, **options: object) -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, is_it: Callable[..., bool]) -> Patch:
    """Dies instead of the call that `is_it` tells from others."""
    return _patch(owner, name, is_it, lambda original, *args, **options: die())


def after(owner: Any, name: str, is_it: Callable[..., bool]) -> Patch:
    """Dies after that call."""

    def act(original: Callable[..., Any], *args: Any, **options: Any) -> None:
        original(*args, **options)
        die()

    return _patch(owner, name, is_it, act)


def half_written(is_it: Callable[[Path], bool]) -> Patch:
    """Dies when half of a file is on the disk, under whatever name it is written."""

    def act(original: Callable[..., Any], path: Path, content: bytes) -> None:
        replace = Path.replace
        Path.replace = lambda source, target: die()  # type: ignore[method-assign, assignment]
        original(path, content[: len(content) // 2])
        Path.replace = replace  # type: ignore[method-assign]

    return _patch(artifacts, "write_bytes", lambda path, content: is_it(path), act)


def half_a_line(event: str, step: int) -> Patch:
    """Dies when half of a record is on the disk."""

    def act(original: Callable[..., Any], log: MetricsLog, event: str, **numbers: Any) -> None:
        assert log._path is not None
        with log._path.open("a") as file:
            file.write(f'{{"event": "{event}", "epoch": 1, "st')
        die()

    return _patch(MetricsLog, "append", lambda log, e, **n: e == event and n["step"] == step, act)


def _patch(owner: Any, name: str, is_it: Callable[..., bool], act: Callable[..., Any]) -> Patch:
    original = getattr(owner, name)

    def patched(*args: Any, **options: Any) -> Any:
        if is_it(*args, **options):
            return act(original, *args, **options)
        return original(*args, **options)

    return lambda: setattr(owner, name, patched)


def calls(number: int) -> Callable[..., bool]:
    """True of the call of that number, from 1."""
    count = iter(range(1, 10**6))
    return lambda *args, **options: next(count) == number


def _in(folder: str, name: str) -> Callable[[Path], bool]:
    return lambda path: (path.parent.name, path.name) == (folder, name)


def _named(name: str) -> Callable[..., bool]:
    return lambda path, *args, **options: Path(path).name == name


NEW, OLD = ".step-00000006.tmp", ".step-00000003.old.tmp"
FINAL = "step-00000006"
POINTS: dict[str, Patch] = {
    "in the first step": before(GradientBuffer, "norm", calls(1)),
    "in a step, before the update": before(GradientBuffer, "norm", calls(5)),
    "in a step, after the update": before(GradientBuffer, "zero", calls(6)),
    "half the weights of the first checkpoint": half_written(
        _in(".step-00000002.tmp", artifacts.SUPERNET)
    ),
    "half the weights of a checkpoint": half_written(_in(NEW, artifacts.SUPERNET)),
    "half the average of a checkpoint": half_written(_in(NEW, artifacts.EMA)),
    "half the state of a checkpoint": half_written(_in(NEW, "state.pt")),
    "before a checkpoint is renamed": before(Path, "rename", _named(NEW)),
    "after a checkpoint is renamed": after(Path, "rename", _named(NEW)),
    "before an old checkpoint is dropped": before(
        checkpoint, "_remove", lambda path: path.name == "step-00000003"
    ),
    "before an old checkpoint is removed": before(shutil, "rmtree", _named(OLD)),
    "while an old checkpoint is removed": after(os, "unlink", calls(3)),
    "half the last checkpoint": half_written(_in(".step-00000009.tmp", "state.pt")),
    "after the last checkpoint": after(Path, "rename", _named(".step-00000009.tmp")),
    "before a validation": before(loop, "validate", calls(3)),
    "after a validation": after(loop, "validate", calls(3)),
    "half the best weights": half_written(_in("checkpoints", artifacts.BEST)),
    "after the best weights": after(
        artifacts, "write_tensors", lambda path, tensors: path.name == artifacts.BEST
    ),
    "in the last validation": before(loop, "validate", calls(6)),
    "half a line of a step": half_a_line("step", 5),
    "half a line of an epoch": half_a_line("epoch", 6),
    "half a line of the last validation": half_a_line("validation", 9),
    "half the supernet": half_written(
        lambda path: path.name == artifacts.SUPERNET and (path.parent.name.startswith("point"))
    ),
    "after the supernet": after(
        artifacts, "write_tensors", lambda path, tensors: path.parent.name.startswith("point")
    ),
}
"""Where a training is killed -> what brings that about."""

STRIDE = 7
"""Of the changes of files, every seventh is one before which a training is killed."""
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def watch_changes(run: Path, act: Callable[[int], None]) -> None:
    """Calls `act` with the number, from 1, of every change of a file, before it is made."""
    num_changes = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal num_changes
        is_change = event in _CHANGES or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if is_change and not isinstance(args[0], int):
            path = os.fsdecode(args[0])
            if path.startswith(str(run)) or not os.path.isabs(path):  # relative: below a descriptor
                num_changes += 1
                act(num_changes)

    sys.addaudithook(hook)


def start(action: Callable[[], object]) -> int:
    """Runs it in a new process; returns the process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def end_of(child: int) -> int:
    """Waits for a process; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(action: Callable[[], object]) -> int:
    """Runs it in a new process to the end; returns the exit status."""
    return end_of(start(action))


def train(run: Path, data: ImageData | None) -> None:
    """The call that is killed, and the one that continues."""
    pipeline.train(run, data=data, device="cpu")


def kill_and_continue(run: Path, data: ImageData | None, prepare: Callable[[], None]) -> None:
    """Both must end as they should: by SIGKILL, and well."""
    shutil.copytree(run.parent / "searched", run)

    def killed() -> None:
        prepare()
        train(run, data)

    assert in_child(killed) == -signal.SIGKILL, f"{run.name} was not killed"
    assert in_child(lambda: train(run, data)) == 0, f"{run.name} was not continued"


def prepare_to_fork() -> None:
    """What all children would do again, and what no killed process needs, is left out.

    What was imported stays to the end, and is looked through for garbage in no child. And what a
    process has written survives it without waiting for the disk, which only a power cut could tell.
    """
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    os.fsync = lambda descriptor: None


def main(home: Path) -> None:
    """Makes all runs."""
    prepare_to_fork()
    data = own_data()
    searched, whole, counted = home / "searched", home / "whole", home / "counted"
    assert in_child(lambda: pipeline.search(RECIPE, searched, data=data)) == 0
    for run in (whole, counted):
        shutil.copytree(searched, run)
    assert in_child(lambda: train(whole, data)) == 0
    tally = home / "tally"

    def count() -> None:
        with tally.open("w", buffering=1) as file:
            watch_changes(counted, lambda number: print(number, file=file))
            train(counted, data)

    assert in_child(count) == 0
    num_changes = len(tally.read_text().split())
    for number, patch in enumerate(POINTS.values()):
        kill_and_continue(home / f"point-{number}", data, patch)
    for number in range(1, num_changes + 1, STRIDE):
        run = home / f"change-{number}"

        def prepare(run: Path = run, number: int = number) -> None:
            watch_changes(run, lambda found: die() if found == number else None)

        kill_and_continue(run, data, prepare)
    kill_with_shards(home / "shards")


def kill_with_shards(home: Path) -> None:
    """The same with pictures that a reader takes from shards, each augmented twice.

    As in RECIPE, there are three steps per epoch, and checkpoints in the middle of it.
    """
    os.environ["PRENAS_DATA"] = str(home / "cache")
    images = DataRecipe(
        name="folder",
        root=str(shards(home / "set")),
        memory_gib=0,
        num_workers=1,
        augmentation=Augmentation(crop_scale=(0.5, 1.0), flip=0.5, repeats=2, mixup=0.2),
    )
    assert RECIPE.training is not None
    recipe = mini_recipe(
        space=MINI.with_settings(num_classes=3, in_chans=3),
        data=images,
        training={**RECIPE.training.model_dump(), "batch_size": 8},
    )
    searched = home / "searched"
    assert in_child(lambda: pipeline.search(recipe, searched)) == 0
    shutil.copytree(searched, home / "whole")
    assert in_child(lambda: train(home / "whole", None)) == 0
    for number, point in enumerate(IN_SHARDS):
        kill_and_continue(home / f"point-{number}", None, POINTS[point])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
