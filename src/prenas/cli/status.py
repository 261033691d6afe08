"""What `prenas status` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prenas.cli.output import console
from prenas.cli.tables import duration, print_contests, print_table
from prenas.cost import size_axis
from prenas.values import plural

if TYPE_CHECKING:
    from prenas.runs.status import Status, TrainingStatus

_WORDS: dict[str, str] = {
    "missing": "not started",
    "running": "running",
    "begun": "interrupted",
    "done": "done",
    "imported": "imported",
    "none": "not part of this recipe",
}


def print_status(status: Status) -> None:
    """The steps of the method, the training in detail, and what to do next."""
    progress = status.progress
    if status.recipe or not status.problems:  # a folder without a run has no steps
        # Handing over only some of the subnets is not an interruption.
        words = _WORDS | ({"begun": "started"} if status.num_models else {})
        found = plural(status.num_subnets, "subnet") if status.num_subnets else ""
        models = (
            f"{status.num_models} of {plural(status.num_subnets, 'subnet')}"
            if status.num_subnets
            else plural(status.num_models, "subnet")
        )
        steps = [
            ("adaptation", words[status.adaptation], training_line(status.adapting)),
            ("search", words[status.search], found),
            ("training", words[status.training], training_line(progress)),
            ("evolution", words[status.evolution], ""),
            ("calibration", "done", f"{status.calibration_images or 0:,} images"),
            ("evaluation", words[status.evaluation], ""),
            ("hand-over", words[status.hand_over], models if status.num_models else ""),
        ]
        steps += [
            (f"stock model {rival.name.partition('=')[0]}", words[rival.stage], "")
            for rival in status.rivals
        ]
        hidden = {
            "adaptation": status.adaptation == "none",
            "evolution": status.evolution == "none",
            "calibration": status.calibration_images is None,
        }
        steps = [step for step in steps if not hidden.get(step[0])]
        print_table(
            f"{status.folder}: {status.recipe or 'no recipe yet'}",
            ["step", "state", "progress"],
            steps,
        )
    if progress is not None:
        _print_training(progress)
    print_contests(status.contests)
    for problem in status.problems:
        console.print(f"Problem   {problem}", soft_wrap=True)
    if status.is_busy:
        console.print("A process is working on this run right now.", soft_wrap=True)
    elif status.next_command:
        console.print(f"Next      {status.next_command}", soft_wrap=True)
        if status.finish_command not in (None, status.next_command):
            console.print(
                f"Or        {status.finish_command}, which does all the remaining steps",
                soft_wrap=True,
            )


def training_line(progress: TrainingStatus | None) -> str:
    """How far a training is, on one line; empty before its start."""
    if progress is None or progress.epoch is None:
        return ""
    of_all = f" of {progress.num_epochs:,}" if progress.num_epochs else ""
    parts = [f"epoch {progress.epoch + 1:,}{of_all}"]
    if progress.step is not None:
        of_all = f" of {progress.num_steps:,}" if progress.num_steps else ""
        parts.insert(0, f"step {progress.step:,}{of_all}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.lr is not None:
        parts.append(f"lr {progress.lr:.2e}")
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:,.0f} images/s")
    if progress.seconds_left is not None:
        parts.append(f"about {duration(progress.seconds_left)} left")
    return ", ".join(parts)


def _print_training(progress: TrainingStatus) -> None:
    if progress.validations:
        top1 = {(v.subnet, v.weights): f"{100 * v.top1:.2f}" for v in progress.validations}
        weights = list(dict.fromkeys(v.weights for v in progress.validations))
        size = size_axis()
        sizes = {v.subnet: size.cell(v.costs[size.name]) for v in progress.validations}
        print_table(
            f"Validation after epoch {progress.validations[0].epoch + 1:,}: top-1, %",
            ["#", size.header, *weights],
            [
                (subnet, sizes[subnet], *(top1.get((subnet, name), "-") for name in weights))
                for subnet in sizes
            ],
        )
    if progress.skipped:
        noun = "step" if progress.skipped == 1 else "steps"
        console.print(
            f"Skipped   {progress.skipped:,} {noun} with a non-finite loss or gradient",
            soft_wrap=True,
        )
    if progress.checkpoint:
        console.print(f"Newest    {progress.checkpoint}", soft_wrap=True)
        if progress.best:
            console.print(f"Best      {progress.best}", soft_wrap=True)
