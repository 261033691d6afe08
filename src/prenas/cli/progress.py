"""Progress of a training (a bar on a terminal, a line for every tenth elsewhere), of evolution."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prenas.cli.tables import console

if TYPE_CHECKING:
    from prenas.evolution import Generation
    from prenas.training.loop import Progress


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line for every tenth of the training."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("Training"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("lr {task.fields[lr]:.2e}"),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, epoch=0, loss=0.0, lr=0.0, rate=0.0)
    mean_loss, num_images, started, next_tenth = 0.0, 0, time.perf_counter(), 0

    def watch(progress: Progress) -> None:
        nonlocal mean_loss, num_images, next_tenth
        mean_loss = 0.95 * mean_loss + 0.05 * progress.loss if num_images else progress.loss
        num_images += progress.num_images
        seconds = time.perf_counter() - started
        rate = num_images / seconds
        bar.update(
            task,
            total=progress.num_steps,
            completed=progress.step,
            epoch=progress.epoch + 1,
            loss=mean_loss,
            lr=progress.lr,
            rate=rate,
        )
        tenth = 10 * progress.step // progress.num_steps
        if not console.is_terminal and tenth > next_tenth:
            next_tenth = tenth
            console.print(
                f"Training {10 * tenth} %: epoch {progress.epoch + 1}, loss {mean_loss:.3f}, "
                f"lr {progress.lr:.2e}, {rate:.0f} images/s"
            )

    with bar:
        yield watch


def print_generation(generation: Generation) -> None:
    """A line for every generation of an evolution."""
    console.print(
        f"Evolution, {generation.budget}: generation {generation.number} of "
        f"{generation.num_generations}, {generation.num_evaluated:,} subnets, "
        f"best {100 * generation.accuracy:.2f} %",
        soft_wrap=True,
    )
