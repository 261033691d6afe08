"""Who listens to a run: what it does, how far it is, what it found."""

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
    "adapt",
    "train",
    "evolve",
    "calibrate",
    "evaluate",
    "hand over",
    "report",
]


class Observer:
    """Listens, and decides nothing; override what you want to hear of.

    Of several processes each has an observer. What a step made is in the run: `run.preferred` after
    a search, `run.evaluations` after an evaluation.
    """

    def began(self, step: Step, run: Run) -> None:
        """A step begins, or goes on where it was interrupted."""

    def finished(self, step: Step, run: Run, seconds: float) -> None:
        """A step is finished, so many seconds after it began here."""

    def was_complete(self, step: Step, run: Run) -> None:
        """A step has nothing to do: its result is there."""

    def trained_step(self, progress: Progress) -> None:
        """A training step is finished."""

    def logged(self, record: Mapping[str, Any]) -> None:
        """The training wrote a record into `metrics.jsonl`; see `prenas.runs.log`."""

    def evolved_generation(self, generation: Generation) -> None:
        """Evolution finished a generation."""


SILENT = Observer()


@contextmanager
def observed(observer: Observer, step: Step, run: Run) -> Iterator[None]:
    """Tells an observer when a step begins, and when it is finished, unless it fails."""
    observer.began(step, run)
    started = time.perf_counter()
    yield
    observer.finished(step, run, time.perf_counter() - started)
