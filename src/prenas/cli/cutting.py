"""`prenas run --from`: a family of models cut out of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prenas import artifacts
from prenas.cli.tables import console, print_evaluations, print_plan
from prenas.cli.terminal import Terminal
from prenas.cost import bounded_axes, count
from prenas.sources.cutting import CutPlan


def run_from(
    source: str,
    out: Path | None,
    *,
    data: Sequence[str],
    budgets: Sequence[str],
    recipe: str,
    image_size: int | None,
    overrides: Sequence[str],
    device: str,
    track: Sequence[str],
) -> None:
    """Cuts a family of models out of a source, and prints the whole network next to its cuts.

    Args:
        out: the run folder; None only measures.
    """
    from prenas import pipeline
    from prenas.runs.run import Run
    from prenas.sources.cutting import cut_plan
    from prenas.sources.transfer import read_source

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
            measured = pipeline.dry_run_cuts(plan, device=device)
        print_plan(measured.adaptation)
        print_plan(measured.cuts)
        return
    with Terminal() as terminal:
        rows = pipeline.run_cuts(plan, out, device=device, observer=terminal, track=track)
    whole = Run(out / artifacts.SOURCE, device=device)
    title = f"{out}: cuts, and last the whole network ({out / artifacts.SOURCE})"
    print_evaluations([*rows, *whole.evaluations], title, whole.class_names)


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
