"""Shows the progress of a training and of an evolution.

A training has a bar on a terminal and in a notebook, and elsewhere prints a line after every tenth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prenas.cli.output import console
from prenas.cost import size_axis

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from prenas.notebook import NotebookBar
    from prenas.rivals.evolution import Generation
    from prenas.training.loop import Progress


class TrainingProgress:
    """Shows a training: `watch` takes its steps, `sink` the records of its log."""

    def __init__(self, bar: Bar | NotebookBar) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)
        self._mean_loss, self._num_images, self._next_tenth = math.nan, 0, 0
        self._started = time.perf_counter()
        self._validations: list[Mapping[str, Any]] = []

    def watch(self, progress: Progress) -> None:
        """Called after every training step."""
        self.flush()
        if math.isfinite(progress.loss):
            before = progress.loss if math.isnan(self._mean_loss) else self._mean_loss
            self._mean_loss = 0.95 * before + 0.05 * progress.loss
        else:  # a skipped step: what was before it is not the loss now
            self._mean_loss = math.nan
        self._num_images += progress.num_images
        rate = self._num_images / (time.perf_counter() - self._started)
        loss = "not finite" if math.isnan(self._mean_loss) else f"{self._mean_loss:.3f}"
        numbers = (
            f"epoch {progress.epoch + 1}, loss {loss}, lr {progress.lr:.2e}, {rate:.0f} images/s"
        )
        self._bar.update(
            self._task, total=progress.num_steps, completed=progress.step, description=numbers
        )
        tenth = 10 * progress.step // progress.num_steps
        if not has_bars() and tenth > self._next_tenth:
            self._next_tenth = tenth
            console.print(f"Training {10 * tenth} %: {numbers}", soft_wrap=True)

    def sink(self, record: Mapping[str, Any]) -> None:
        """Called with every record; the records of one validation are printed together."""
        if record["event"] != "validation":
            self.flush()
            return
        if self._validations and self._validations[0]["step"] != record["step"]:
            self.flush()
        self._validations.append(record)

    def flush(self) -> None:
        """Prints the completed validation, if there is one, above the bar."""
        if self._validations:
            console.print(validation_line(self._validations), soft_wrap=True)
            self._validations = []


def validation_line(records: Sequence[Mapping[str, Any]]) -> str:
    """`epoch 10: validation top-1: smallest 91.2, middle 93.0, largest 93.4`."""
    texts, size = [], size_axis().name
    for weights in dict.fromkeys(record["weights"] for record in records):
        ranked = sorted(
            (record for record in records if record["weights"] == weights),
            key=lambda record: record["costs"][size],
        )
        shown = {"smallest": 0, "middle": len(ranked) // 2, "largest": -1}
        if len(ranked) == 2:
            shown.pop("middle")
        elif len(ranked) == 1:
            shown = {f"subnet {ranked[0]['subnet']}": 0}
        accuracies = ", ".join(
            f"{name} {100 * ranked[number]['top1']:.1f}" for name, number in shown.items()
        )
        texts.append(accuracies if weights == "trained" else f"{weights}: {accuracies}")
    return f"epoch {records[0]['epoch'] + 1}: validation top-1: {'; '.join(texts)}"


def has_bars() -> bool:
    """Whether output can be changed later, on a terminal or in a notebook."""
    return console.is_terminal or console.is_jupyter


@contextmanager
def training_progress() -> Iterator[TrainingProgress]:
    """A bar on a terminal or in a notebook; elsewhere, a line for every tenth of the training."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    if console.is_jupyter:
        from prenas.notebook import NotebookBar

        progress = TrainingProgress(NotebookBar())
        try:
            yield progress
        finally:
            progress.flush()
        return
    room = console.width - 76  # what the numbers leave
    bar = Bar(
        *([TextColumn("Training")] if room > 20 else []),
        BarColumn(max(4, min(room, 40))),
        TextColumn("{task.description}"),  # empty before the first step
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal or console.quiet,
    )
    progress = TrainingProgress(bar)
    with bar:
        try:
            yield progress
        finally:
            progress.flush()


def print_generation(generation: Generation) -> None:
    """Prints one line about a generation of an evolution."""
    console.print(
        f"Evolution, {generation.budget}: generation {generation.number} of "
        f"{generation.num_generations}, {generation.num_evaluated:,} subnets, "
        f"best {100 * generation.accuracy:.2f} %",
        soft_wrap=True,
    )
