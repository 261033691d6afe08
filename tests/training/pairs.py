"""Two processes of one run, and what becomes of one when something happens to the other.

    python -m training.pairs FOLDER

Each case leaves a run in FOLDER, and says in `ends.json` how its processes ended. Like
`training.killing` it forks from a process that runs nothing of PyTorch.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sklearn.datasets
from safetensors.torch import save_file

from prenas import cli, pipeline
from prenas.data import Batch
from prenas.training.step import Outcome, TrainingStep
from training.killing import end_of, in_child, prepare_to_fork, start
from training.runs import mini_recipe

RECIPE = mini_recipe(training={"epochs": 2, "checkpoint_steps": 4, "ema_decay": 0.9})
"""Nine steps per epoch; checkpoints after 4, 8, 9, 12, 16, 18."""

Act = Callable[[int, int, Batch], Batch]
"""(rank, step from 0, batch) -> the batch to train on; or does something before that step."""


def signalled(rank: int, number: int, at: int = 5) -> Act:
    """One process gets a signal before a step."""

    def act(of: int, step: int, batch: Batch) -> Batch:
        if (of, step) == (rank, at):
            os.kill(os.getpid(), number)
        return batch

    return act


def spoilt(of: int, step: int, batch: Batch) -> Batch:
    """Makes the images NaN, in the second process only."""
    is_it = (of, step) == (1, 5)
    return batch._replace(images=batch.images * math.nan) if is_it else batch


def undisturbed(of: int, step: int, batch: Batch) -> Batch:
    """Nothing happens."""
    return batch


def one_of(run: Path, rank: int, world_size: int, port: int, act: Act) -> None:
    """Runs the command in this process; keeps its output and last weights next to the run."""
    descriptor = os.open(f"{run}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if world_size > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    call = TrainingStep.__call__

    def disturbed(self: TrainingStep, step: int, batch: Batch, **options: Any) -> Outcome:
        outcome = call(self, step, act(rank, step, batch), **options)
        if step == 17:
            save_file(self.supernet.network.state_dict(), f"{run}.{rank}.safetensors")
        return outcome

    TrainingStep.__call__ = disturbed  # type: ignore[method-assign]
    sys.argv = ["prenas", "train", str(run), "--device", "cpu", "--threads", "1"]
    cli.main()


def train(run: Path, act: Act, world_size: int = 2) -> list[int]:
    """Starts the processes as torchrun does; returns their exit statuses once all have ended."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    ranks = [partial(one_of, run, rank, world_size, port, act) for rank in range(world_size)]
    return [end_of(child) for child in [start(rank) for rank in ranks]]


CASES: dict[str, tuple[tuple[Act, int], ...]] = {
    "whole": ((undisturbed, 2),),
    "stopped": ((signalled(1, signal.SIGTERM), 2), (undisturbed, 2)),
    "first-killed": ((signalled(0, signal.SIGKILL), 2), (undisturbed, 2)),
    "second-killed": ((signalled(1, signal.SIGKILL), 2), (undisturbed, 2)),
    "spoilt": ((spoilt, 2),),
    "alone": ((signalled(0, signal.SIGTERM), 2), (undisturbed, 1)),
}
"""Name -> what happens in one life after the other, and with how many processes."""


def main(home: Path) -> None:
    """Makes all runs; `ends.json` has what each process said and its exit status, by life."""
    sklearn.datasets.load_digits()
    prepare_to_fork()
    searched = home / "searched"
    assert in_child(lambda: pipeline.search(RECIPE, searched)) == 0
    ends: dict[str, list[list[tuple[int, str]]]] = {}
    for name, lives in CASES.items():
        run = home / name
        shutil.copytree(searched, run)
        ends[name] = []
        for act, world_size in lives:
            statuses = train(run, act, world_size)
            words = [Path(f"{run}.{rank}.txt").read_text() for rank in range(world_size)]
            ends[name].append(list(zip(statuses, words, strict=True)))
    (home / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
