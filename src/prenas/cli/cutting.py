"""`prenas run --from`: a family of models cut out of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prenas import artifacts
from prenas.cli.parsing import recorded_steps, seconds_alone
from prenas.cli.tables import console, print_evaluations, print_plans, print_time
from prenas.cli.terminal import Terminal
from prenas.cost import count, shown_axes
from prenas.families.base import Settings
from prenas.recipe import Recipe
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.fields import names_a_file
from prenas.sources.cutting import CutPlan
from prenas.sources.transfer import Source

_TRAININGS = ("adaptation", "training")
"""What lengths of a cut run are set by, as in `--set adaptation.epochs=5`."""


def run_from(
    source: str,
    out: Path | None,
    *,
    dry_run: bool,
    data: Sequence[str],
    budgets: Sequence[str],
    recipe: str,
    image_size: int | None,
    overrides: Sequence[str],
    time: str | None,
    compare: Sequence[str],
    device: str,
    track: Sequence[str],
) -> None:
    """Cuts a family of models out of a source, and prints the whole network next to its cuts.

    Args:
        out: the run folder; None for a dry run in none.
        dry_run: whether to measure and write nothing.
        time: how long the adaptation and the training of the cuts may take together.
        compare: names of stock models.
    """
    from prenas import pipeline
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
            compare=compare,
        )
    print_source(plan)
    if out is not None:
        plan, seconds = _as_started(plan, out, seconds)
    if out is None or dry_run:
        with console.status("Choosing subnets and measuring training steps ..."):
            measured = pipeline.dry_run_cuts(plan, device=device, seconds=seconds)
        named = {"whole network": measured.adaptation, "cuts": measured.cuts}
        named |= {one.name: run for one, run in zip(plan.rivals, measured.rivals, strict=True)}
        print_plans(named, measured.choice_seconds)
        return
    if seconds is not None:
        plan = _within_time(plan, seconds, str(time), device)
    with Terminal(shows_tables=False) as terminal:
        pipeline.run_cuts(plan, out, device=device, observer=terminal, track=track)
    _print_comparison(out)


def continue_cuts(recipe: Recipe, out: Path, *, device: str, track: Sequence[str]) -> None:
    """Finishes a run whose whole network is adapted, with the recipe that it was started with."""
    from prenas import pipeline

    with Terminal(shows_tables=False) as terminal:
        pipeline.run(recipe, out, device=device, observer=terminal, track=track)
        pipeline.compare(out, device=device, observer=terminal, track=track)
    _print_comparison(out)


def _print_comparison(out: Path) -> None:
    """Prints the cuts, the whole network and the stock models, and what is better at a budget."""
    from prenas.models.comparison import compared
    from prenas.runs.run import Run

    run = Run(out, device="cpu")
    found = compared(run)
    others = [(one.kind, one.name, one.row) for one in found.networks if one.kind != "cut"]
    what = "cuts, the whole network" + " and stock models" * bool(found.of_kind("stock"))
    print_evaluations(run.evaluations, f"{out}: {what}", run.class_names, others)
    for sentence in found.in_words:
        console.print(sentence, soft_wrap=True)


def _as_started(plan: CutPlan, out: Path, seconds: float | None) -> tuple[CutPlan, float | None]:
    """The plan, and the seconds into which its trainings are yet to be fitted.

    A run that was started with `--time` keeps its steps. ValueError if the folder holds another run
    or other files.
    """
    from prenas.runs.run import Run

    if seconds is not None and (steps := recorded_steps(out)) is not None:
        folder = out / artifacts.SOURCE
        adaptation = recorded_steps(folder) if folder.exists() else None
        plan, seconds = plan.lasting(steps, adaptation=adaptation), None
    Run(out, plan.recipe, device="cpu").files.require_run_folder()
    return plan, seconds


def _within_time(plan: CutPlan, seconds: float, time: str, device: str) -> CutPlan:
    """The plan with the steps that fit into `--time`."""
    from prenas import pipeline

    with console.status("Choosing subnets and measuring training steps ..."):
        alone = plan._replace(rivals=())
        measured = pipeline.dry_run_cuts(alone, device=device, seconds=seconds)
    parts = measured.adaptation.estimate, measured.cuts.estimate
    print_time(time, *parts)
    return plan.lasting(parts[1].num_steps, adaptation=parts[0].num_steps)


def print_source(plan: CutPlan) -> None:
    """Prints what is known of the source before anything is spent."""
    source, settings = plan.source, plan.recipe.space.settings
    costs = count(source.supernet.arch, settings)
    sizes = ", ".join(axis.about(costs[axis.name]) for axis in shown_axes([costs]))
    height, width = settings.image_size
    prepared = plan.recipe.preprocessing
    from_file = names_a_file(source.name)
    search = plan.recipe.search
    budgets = parse_budgets(search.budgets, keep_partial=search.keep_partial).kept
    lines = [
        ("Source", f"{source.name}: {sizes}"),
        (
            "Weights",
            f"{source.origin or source.name}, licence: {source.licence or 'not stated'}"
            + (" (as timm states for the model; check your file's)" if from_file else ""),
        ),
        (
            "Images",
            f"{height} x {width} pixels, {prepared.interpolation}, centre crop "
            f"{prepared.crop_pct:g}, mean {_numbers(prepared.mean)}, "
            f"deviation {_numbers(prepared.std)}",
        ),
        ("Budgets", "; ".join(budget.beside(costs) for budget in budgets)),
        *(
            ("Stock", _rival_line(rival, recipe, settings))
            for rival, recipe in zip(plan.rivals, plan.rival_recipes(), strict=True)
        ),
    ]
    for name, value in lines:
        console.print(f"{name:<9} {value}", soft_wrap=True, markup=False)


def _rival_line(rival: Source, recipe: Recipe, ours: Settings) -> str:
    """A stock model with its costs, and its own image size if it cannot take ours."""
    settings = recipe.space.settings
    costs = count(rival.supernet.arch, settings)
    sizes = ", ".join(axis.about(costs[axis.name]) for axis in shown_axes([costs]))
    size, other = (" x ".join(map(str, one.image_size)) for one in (settings, ours))
    own = "" if size == other else f" (it cannot take {other})"
    licence = rival.licence or "not stated"
    return f"{rival.name}: {sizes} at {size} pixels{own}; licence: {licence}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
