"""Observers of a run: they are told what it does and how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prenas.rivals.evolution import Generation
    from prenas.runs.run import Run
    from prenas.training.loop import Progress

Step = Literal[
    "read images",
    "search",
    "measure",
    "adapt",
    "train",
    "evolve",
    "calibrate",
    "evaluate",
    "hand over",
    "report",
]


class Observer:
    """Is told what a run does. Override the methods you need; by default they do nothing.

    An observer changes nothing in a run. The result of a step is in the run itself, for example
    `run.preferred` after the search and `run.evaluations` after the evaluation. If a run has
    several processes, each has its own observer.
    """

    def began(self, step: Step, run: Run) -> None:
        """A step begins, or continues after an interruption."""

    def finished(self, step: Step, run: Run, seconds: float) -> None:
        """A step is finished; `seconds` have passed since it began."""

    def was_complete(self, step: Step, run: Run) -> None:
        """A step has nothing to do, because its result already exists."""

    def chose_for_budgets(self, number: int, of: int) -> None:
        """The search has chosen for this many budgets; not told where it takes no time."""

    def resumed_training(self, step: int, num_steps: int) -> None:
        """The training continues after `step` finished steps; told before the first new one.

        Only the main process is told.
        """

    def trained_step(self, progress: Progress) -> None:
        """A training step is finished."""

    def logged(self, record: Mapping[str, Any]) -> None:
        """The training added a record to `metrics.jsonl`; see `prenas.runs.log`."""

    def calibrated_images(self, num_images: int, of: int) -> None:
        """The calibration after the training has read this many of its images."""

    def evolved_generation(self, generation: Generation) -> None:
        """Evolution finished a generation."""


SILENT = Observer()


@contextmanager
def observed(observer: Observer, step: Step, run: Run) -> Iterator[None]:
    """Tells the observer that a step begins and, if nothing fails, that it is finished."""
    observer.began(step, run)
    started = time.perf_counter()
    yield
    observer.finished(step, run, time.perf_counter() - started)
