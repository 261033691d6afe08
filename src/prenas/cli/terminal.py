"""Shows a run on the terminal, or in a notebook: what each step does, and its results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from prenas import artifacts
from prenas.cli.output import console
from prenas.cli.progress import TrainingProgress, print_generation, training_progress
from prenas.cli.tables import (
    print_contests,
    print_data,
    print_evaluations,
    print_evolved,
    print_preferred,
    print_times,
)
from prenas.steps.observer import Observer, Step
from prenas.values import plural

if TYPE_CHECKING:
    from rich.status import Status

    from prenas.rivals.evolution import Generation
    from prenas.runs.run import Run
    from prenas.training.loop import Progress

_SHORT = 2.0  # seconds of choosing that show no progress
_WAITING: dict[Step, str] = {
    "read images": "Reading images ...",
    "search": "Scoring subnets at initialisation ...",
    "measure": "Timing the subnets ...",
    "calibrate": "Calibrating BatchNorm for every subnet ...",
}


class Terminal(AbstractContextManager["Terminal"], Observer):
    """Prints what a run does, as the command line does.

    Use it as a context manager, so that bars end when a step fails. A notebook needs no such care.

    Example:
        with prenas.Terminal() as shown:
            prenas.run(prenas.get_recipe("digits"), "runs/digits", observer=shown)
    """

    def __init__(self, *, shows_tables: bool = True) -> None:
        """`shows_tables`: whether to print every evaluation; else only its best subnet."""
        self._shows_tables = shows_tables
        self._shown = ExitStack()
        self._training: TrainingProgress | None = None
        self._status: Status | None = None
        self._next_tenth, self._chosen_since = 0, 0.0

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def began(self, step: Step, run: Run) -> None:
        """Shows which step is running."""
        self._next_tenth = 0
        if step == "train":
            _announce_compilation(run)
            self._training = self._shown.enter_context(training_progress())
        elif step in _WAITING and console.is_jupyter:  # there, rich's needs an extension
            _say(_WAITING[step])
        elif step in _WAITING:
            self._status = self._shown.enter_context(console.status(_WAITING[step]))

    def finished(self, step: Step, run: Run, seconds: float) -> None:
        """Prints the result of a step, and how long it took."""
        self._shown.close()
        short = f"done in {seconds:.1f} s" if step == "search" else f"done in {seconds:.0f} s"
        self._print(step, run, short)

    def was_complete(self, step: Step, run: Run) -> None:
        """Prints the result of an earlier call."""
        self._print(step, run, "already complete")

    def resumed_training(self, step: int, num_steps: int) -> None:
        """Says from where the training continues."""
        _say(f"Training continues after step {step:,} of {num_steps:,}")

    def trained_step(self, progress: Progress) -> None:
        """Moves the bar, or prints every tenth."""
        if self._training is not None:
            self._training.watch(progress)

    def logged(self, record: Mapping[str, Any]) -> None:
        """Prints validations."""
        if self._training is not None:
            self._training.sink(record)

    def chose_for_budgets(self, number: int, of: int) -> None:
        """Shows how far choosing is, as for a calibration, if it takes longer than two seconds."""
        now = time.monotonic()
        self._chosen_since = now if number == 1 else self._chosen_since
        if now - self._chosen_since > _SHORT:
            self._show_tenth("Choosing", number, of, "budgets")

    def calibrated_images(self, num_images: int, of: int) -> None:
        """Shows how far the calibration is; elsewhere than on a terminal, prints every tenth."""
        self._show_tenth("Calibration", num_images, of, "images")

    def _show_tenth(self, what: str, number: int, of: int, units: str) -> None:
        tenth = 10 * number // of
        if tenth <= self._next_tenth:
            return
        self._next_tenth = tenth
        text = f"{what} {10 * tenth} %: {number:,} of {of:,} {units}"
        if console.is_terminal and self._status is not None:
            self._status.update(text)
        else:
            _say(text)

    def evolved_generation(self, generation: Generation) -> None:
        """Prints every generation."""
        print_generation(generation)

    def _print(self, step: Step, run: Run, done: str) -> None:
        out = run.folder
        if step == "read images":
            print_data(run.images.read(), run.recipe)
        elif step == "search":
            print_preferred(run.preferred)
            _say(f"Search {done}: {out / artifacts.PREFERRED}")
        elif step == "measure":
            print_times(run)
        elif step == "adapt":
            print_preferred(run.preferred)
            _say(f"Adapted weights: {out / artifacts.INITIAL}")
        elif step == "train":
            _say(f"Training {done}: {out / artifacts.SUPERNET}")
        elif step == "evolve":
            print_evolved(run.results.evolved, f"{out}: evolved subnets")
            _say(f"Evolution {done}: {out / artifacts.EVOLUTION}")
        elif step == "calibrate":
            made = run.results.calibration
            assert made is not None, "just finished"
            _say(
                f"Calibration of {plural(len(run.subnets.subnets), 'subnet')} on "
                f"{made.num_images:,} images {done}: "
                f"{out / artifacts.CALIBRATION}"
            )
        elif step == "evaluate" and not self._shows_tables:
            best = max(row.splits["validation"].top1 for row in run.evaluations)
            _say(
                f"Evaluation {done}, best validation top-1 {100 * best:.2f} %: "
                f"{out / artifacts.EVALUATION}"
            )
        elif step == "evaluate":
            from prenas.models.choice import contests_of

            title = f"{run.recipe.name}: {run.subnets.kind} subnets after training"
            print_evaluations(run.evaluations, title, run.class_names)
            print_contests(contests_of(run.subnets, run.evaluations))
        elif step == "report":
            _print_paths(run)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True)


def _announce_compilation(run: Run) -> None:
    training = run.preferred.recipe.training
    if training is not None and training.compile:
        console.print(
            f"Each of the {len(run.preferred.subnets)} subnets is compiled in its first step, "
            "which takes a minute or two"
        )


def _print_paths(run: Run) -> None:
    """Prints where the results are."""
    out, num_subnets = run.folder, len(run.subnets.subnets)
    page = f"Page      {out / artifacts.PAGE}\n" if (out / artifacts.PAGE).exists() else ""
    models = "00" if num_subnets == 1 else f"00 ... {num_subnets - 1:02d}"
    _say(
        f"\nReport    {out / artifacts.REPORT}\n{page}Plot      {out / artifacts.PLOT}\n"
        f"Table     {out / artifacts.EVALUATION_CSV}\n"
        f"Models    {out / artifacts.SUBNETS}/{models}; load one with prenas.load(folder)"
    )
