"""`prenas run --from`: a family of models cut out of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prenas import artifacts
from prenas.cli.parsing import recorded_steps, seconds_alone
from prenas.cli.tables import console, print_evaluations, print_plan, print_time
from prenas.cli.terminal import Terminal
from prenas.cost import bounded_axes, count
from prenas.sources.cutting import CutPlan

_TRAININGS = ("adaptation", "training")
"""What lengths of a cut run are set by, as in `--set adaptation.epochs=5`."""


def run_from(
    source: str,
    out: Path | None,
    *,
    data: Sequence[str],
    budgets: Sequence[str],
    recipe: str,
    image_size: int | None,
    overrides: Sequence[str],
    time: str | None,
    device: str,
    track: Sequence[str],
) -> None:
    """Cuts a family of models out of a source, and prints the whole network next to its cuts.

    Args:
        out: the run folder; None only measures.
        time: how long both trainings may take together.
    """
    from prenas import pipeline
    from prenas.runs.run import Run
    from prenas.sources.cutting import cut_plan
    from prenas.sources.transfer import read_source

    seconds = None if time is None else seconds_alone(time, overrides, _TRAININGS)
    with console.status(f"Reading {source} ..."):
        plan = cut_plan(
            read_source(source),
            data,
            budgets,
            recipe=recipe,
            image_size=image_size,
            overrides=overrides,
        )
    print_source(plan)
    if out is None:
        with console.status("Choosing subnets and measuring training steps ..."):
            measured = pipeline.dry_run_cuts(plan, device=device, seconds=seconds)
        print_plan(measured.adaptation)
        print_plan(measured.cuts)
        return
    if seconds is not None:
        plan = _within_time(plan, seconds, time, out, device)
    with Terminal() as terminal:
        rows = pipeline.run_cuts(plan, out, device=device, observer=terminal, track=track)
    whole = Run(out / artifacts.SOURCE, device=device)
    title = f"{out}: cuts, and last the whole network ({out / artifacts.SOURCE})"
    print_evaluations([*rows, *whole.evaluations], title, whole.class_names)


def _within_time(
    plan: CutPlan, seconds: float, time: str | None, out: Path, device: str
) -> CutPlan:
    """The plan with the steps that fit into `--time`; a run that was started keeps its own."""
    from prenas import pipeline

    if (steps := recorded_steps(out)) is not None:
        folder = out / artifacts.SOURCE
        adaptation = recorded_steps(folder) if folder.exists() else None
        return plan.lasting(steps, adaptation=adaptation)
    with console.status("Choosing subnets and measuring training steps ..."):
        measured = pipeline.dry_run_cuts(plan, device=device, seconds=seconds)
    parts = measured.adaptation.estimate, measured.cuts.estimate
    print_time(str(time), *parts)
    return plan.lasting(parts[1].num_steps, adaptation=parts[0].num_steps)


def print_source(plan: CutPlan) -> None:
    """Prints what is known of the source before anything is spent."""
    source, settings = plan.source, plan.recipe.space.settings
    costs = count(source.supernet.arch, settings)
    sizes = ", ".join(axis.about(costs[axis.name]) for axis in bounded_axes())
    height, width = settings.image_size
    prepared = plan.recipe.preprocessing
    lines = [
        ("Source", f"{source.name}: {sizes}"),
        ("Weights", f"{source.origin or source.name}, licence: {source.licence or 'not stated'}"),
        (
            "Images",
            f"{height} x {width} pixels, {prepared.interpolation}, centre crop "
            f"{prepared.crop_pct:g}, mean {_numbers(prepared.mean)}, "
            f"deviation {_numbers(prepared.std)}",
        ),
        ("Budgets", "; ".join(plan.recipe.search.budgets)),
    ]
    for name, value in lines:
        console.print(f"{name:<9} {value}", soft_wrap=True, markup=False)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
