"""The tables and lines that the command line prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prenas.cli.frontier import print_frontier
from prenas.cli.output import IS_QUIET, PlainConsole, console
from prenas.cost import CostAxis, bounded_axis, count, shown_axes, size_axis
from prenas.length import length_of
from prenas.runs.contests import OPTIMISTIC, were_decided
from prenas.values import amount, few_of, plural, printable

if TYPE_CHECKING:
    from rich.measure import Measurement
    from rich.table import Table

    from prenas.data import ImageData
    from prenas.evaluation.accuracy import Evaluation
    from prenas.families.base import SearchSpace
    from prenas.pipeline import DryRun
    from prenas.recipe import Recipe
    from prenas.runs.contests import Contest
    from prenas.runs.run import Run
    from prenas.selection.evolved import Evolved
    from prenas.selection.preferred import PreferredSet
    from prenas.training.estimate import Estimate

_NUM_WEAKEST = 3
_ANOTHER_PACE = 0.05  # median error of predicted times
_NUM_LISTED = 10  # lines; of more, one line names the first


def print_data(data: ImageData, recipe: Recipe) -> None:
    """Prints the sizes of the splits, and how pictures are prepared for the network."""
    from prenas.data import num_samples

    sizes = ", ".join(
        f"{name} {num_samples(source):,}"
        for name, source in {"train": data.train, **data.splits}.items()
    )
    console.print(f"Images: {sizes}; {len(data.class_names)} classes", soft_wrap=True)
    settings, preprocessing = recipe.space.settings, recipe.preprocessing
    height, width = settings.image_size
    mean, std = (
        " ".join(f"{number:g}" for number in numbers)
        for numbers in (preprocessing.mean, preprocessing.std)
    )
    console.print(
        f"Input:  {width} x {height} pixels, {plural(settings.in_chans, 'channel')}; mean {mean}, "
        f"deviation {std}",
        soft_wrap=True,
    )


def print_pretrained_start(recipe: Recipe, data: Sequence[str]) -> None:
    """For a training on own pictures, says in one line how to start from trained weights.

    Args:
        data: the images as they were given; empty if the recipe names them.
    """
    from prenas.recipe.data import FOLDER, IMAGENET_MEAN

    if recipe.data is None or recipe.data.name != FOLDER or recipe.training is None:
        return
    if recipe.space.settings.in_chans != len(IMAGENET_MEAN):
        return
    texts = data or [recipe.data.root or "FOLDER"]
    given = shlex.join(part for text in texts for part in ("--data", text))
    console.print(
        "These networks start from random weights. Models cut out of a trained one need far fewer "
        f"pictures: prenas run --from timm/tf_efficientnet_lite0 {given} --out RUN",
        soft_wrap=True,
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table: numbers right-aligned, words left-aligned.

    Each row is on one line, except on a terminal that is too narrow: there, words are folded.
    """
    cells = [[printable(str(cell), keeps="") for cell in row] for row in rows]
    console.print(title, style="bold", soft_wrap=True)
    table = _table(columns, cells)
    natural = _measure(table).maximum
    if console.is_terminal and natural > console.width:
        for gap in (2, 1):
            narrow = _table(columns, cells, folded_gap=gap)
            if _measure(narrow).minimum <= console.width:
                console.print(narrow)
                return
    PlainConsole(width=natural, file=console.file, quiet=IS_QUIET).print(table)


_LONGEST_UNFOLDED = 12  # letters of a word; in a narrow table, a longer one is broken


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, folded_gap: int | None = None
) -> Table:
    """A table.

    Args:
        folded_gap: breaks columns of words into lines, and leaves so many spaces between columns.
    """
    from rich import box
    from rich.table import Table

    folds = folded_gap is not None
    padding = (0, 1) if folded_gap is None else (0, folded_gap - 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    for number, name in enumerate(columns):
        column = [row[number] for row in rows]
        if not any(c.isalpha() or c == "[" for cell in column for c in cell):
            table.add_column(name, justify="right", no_wrap=True)
            continue
        longest = max(len(word) for cell in (name, *column) for word in cell.split() or [""])
        least = min(longest, _LONGEST_UNFOLDED) if folds else None
        table.add_column(name, no_wrap=not folds, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*row)
    return table


def _measure(table: Table) -> Measurement:
    """The widths between which a table can be printed."""
    return Console(width=10_000).measure(table)


def print_preferred(preferred: PreferredSet) -> None:
    """Prints the preferred subnets, budgets without one, and how well other seeds agree."""
    from prenas.report.forms import score_text
    from prenas.report.sections import AGREEMENT

    leads = {
        choice.subnet: "-" if choice.margin is None else f"{100 * choice.margin:.2g} %"
        for choice in reversed(preferred.choices)
    }
    title = (
        f"{plural(len(preferred.subnets), 'preferred subnet')} of {amount(preferred.num_archs)} "
        f"({amount(preferred.num_classes_of_isomers)} isomer classes scored)"
    )
    if preferred.origin is not None:
        title = f"{plural(len(preferred.subnets), 'subnet')}, {preferred.origin.summary}"
    trained = preferred.trained
    if trained is not None:
        title = f"{plural(len(preferred.subnets), 'subnet')} {trained.summary}"
    untrained = trained.top1_untrained if trained is not None else None
    has_lead = not preferred.counts_parameters and preferred.has_leads
    axes = shown_axes(subnet.costs for subnet in preferred.subnets)
    print_table(
        f"{preferred.recipe.name}: {title}",
        [
            "#",
            *(axis.header for axis in axes),
            "architecture",
            *([] if preferred.counts_parameters else ["score"]),
            *(["lead"] if has_lead else []),
            *(["gap"] if preferred.optima else []),
            *(["untrained\nval top-1"] if untrained is not None else []),
            "budget",
        ],
        [
            (
                number,
                *_cost_cells(axes, subnet.costs),
                subnet.arch.summary,
                *([] if preferred.counts_parameters else [score_text(subnet.score)]),
                *([leads[number]] if has_lead else []),
                *([_gaps(preferred.gaps_of(number))] if preferred.optima else []),
                *([f"{100 * untrained[number]:.2f}"] if untrained is not None else []),
                "; ".join(preferred.budgets_of(number)),
            )
            for number, subnet in enumerate(preferred.subnets)
        ],
    )
    if preferred.recipe.search.strategy == "random" and preferred.origin is None:
        console.print(
            "drawn at random: all architectures within a budget are equally likely; scores played "
            "no part",
            soft_wrap=True,
        )
    if preferred.recipe.search.strategy == "skeletons" and preferred.origin is None:
        console.print(
            "skeletons: all subnets of a budget differ in the width or depth of some stage",
            soft_wrap=True,
        )
    if preferred.counts_parameters:
        if preferred.recipe.search.strategy != "random" and preferred.recipe.evolution is None:
            console.print("chosen by counting parameters (search.score=params)", soft_wrap=True)
    elif any(choice.margin is not None for choice in preferred.choices):
        console.print(
            "lead: how far the score is above that of the best subnet in the budget that was not "
            "chosen",
            soft_wrap=True,
        )
    if trained is not None:
        console.print(
            "score: the importance that a subnet keeps, in % of the whole network's"
            + ("; untrained: before any training of the cuts, in %" if untrained else ""),
            soft_wrap=True,
        )
        for number, tried in trained.tried_in_words.items():
            console.print(f"{preferred.budgets[number]}: tried {tried}", soft_wrap=True)
        if trained.halves is not None:
            console.print(trained.halves.summary, soft_wrap=True)
    if preferred.optima:
        console.print(
            "gap: how far the score is below the highest that any subnet of the space reaches "
            "within the budget; a higher score does not guarantee a better network",
            soft_wrap=True,
        )
    if preferred.recipe.evolution is not None:
        console.print(
            "For comparison only: this recipe trains on the whole space and then searches by "
            "evolution",
            soft_wrap=True,
        )
    if preferred.origin is None:
        _print_idle_budgets(preferred.recipe)
    empty = [preferred.budgets[number] for number in preferred.empty_budgets]
    if len(empty) > _NUM_LISTED:
        console.print(
            f"No subnet fits {len(empty):,} of the {len(preferred.budgets):,} budgets: "
            f"{few_of(empty)}",
            soft_wrap=True,
        )
    else:
        for budget in empty:
            console.print(f"No subnet fits the budget {budget}", soft_wrap=True)
    if unproven := preferred.unproven_budgets:
        console.print(
            f"A better subnet may exist for {few_of(unproven)}: the search was stopped before it "
            "was certain",
            soft_wrap=True,
        )
    if preferred.partial_budgets:
        console.print(
            f"Left out {few_of(preferred.partial_budgets)}: shorter than one step "
            "(search.keep_partial=true keeps it)",
            soft_wrap=True,
        )
    for seed in preferred.agreement:
        changed = ", ".join("-" if n is None else str(n) for n in seed.changed_options)
        taus = ", ".join(f"{axis} {tau:.2f}" for axis, tau in seed.block_score_tau.items())
        console.print(
            f"Seed {seed.seed}: Kendall's tau {seed.score_tau:.3f} for scores, "
            f"for block scores {taus}; "
            f"same widths, depths and option counts in {seed.same_class.count(True)} of "
            f"{len(seed.same_class) - seed.same_class.count(None)} budgets; "
            f"number of layers whose options differ, per budget: {changed}",
            soft_wrap=True,
        )
    if preferred.agreement:
        console.print(AGREEMENT, soft_wrap=True)


def _print_idle_budgets(recipe: Recipe) -> None:
    """Names the budgets that are above the largest network."""
    from prenas.recipe.budgets import parse_budgets
    from prenas.recipe.reach import limits_nothing

    needed = count(recipe.space.largest, recipe.space)
    for budget in parse_budgets(recipe.search.budgets, keep_partial=True).kept:
        if limits_nothing(budget, recipe.space):
            costs = [bounded_axis(name).in_words(needed[name]) for name in budget.intervals]
            console.print(
                f"The budget {budget} limits nothing: the largest network of the space "
                f"{recipe.space.name} needs only {', '.join(costs)}",
                soft_wrap=True,
            )


def _gaps(gaps: Sequence[tuple[float, float]]) -> str:
    """The gap in every budget; what the solver left open is added, as a bound."""
    return (
        "; ".join(
            f"{'at most ' if unproven else ''}{100 * (gap + unproven):.2g} %"
            for gap, unproven in gaps
        )
        or "-"
    )


def _cost_cells(axes: Sequence[CostAxis], costs: Mapping[str, int]) -> list[str]:
    return [axis.cell(costs[axis.name]) for axis in axes]


def print_times(run: Run) -> None:
    """Prints how long the subnets of a run take in every engine in which they were timed."""
    from prenas.devices.whole import recorded_times

    found = recorded_times(run)
    if not found:
        return
    columns = ["#"]
    for one in found:
        columns.append(f"{one.conditions.engine_in_words}, ms")
        if one.subnets[0].predicted is not None:
            columns += ["predicted", "error, %"]
    rows = []
    for number, arch in enumerate(run.subnets.archs):
        cells = [str(number)]
        for one in found:
            time = one.subnets[number]
            cells.append(f"{time.nanoseconds / 1e6:.4g}")
            if time.predicted is not None and time.error is not None:
                cells += [f"{time.predicted / 1e6:.4g}", f"{100 * time.error:+.1f}"]
        rows.append((*cells, arch.summary))
    print_table(f"{run.folder}: measured times", [*columns, "architecture"], rows)
    for one in found:
        console.print(f"{one.conditions.summary}: {one.conditions.machine}", soft_wrap=True)
        errors = [time.error for time in one.subnets if time.error is not None]
        if errors and abs(median(errors)) > _ANOTHER_PACE and len({one > 0 for one in errors}) == 1:
            console.print(
                f"All subnets were {'faster' if errors[0] > 0 else 'slower'} than predicted, by "
                f"{100 * abs(median(errors)):.0f} % in the median: this machine has another pace "
                "now than when its table was measured. Which subnet is faster still holds; for "
                "times that hold, measure the table again (prenas measure --again)",
                soft_wrap=True,
            )


def print_evaluations(
    rows: Sequence[Evaluation],
    title: str,
    class_names: Sequence[str] | None = None,
    others: Sequence[tuple[str, str, Evaluation]] = (),
) -> None:
    """Prints the costs of subnets, their results on every split, and the weakest classes.

    Accuracies are shares from 0 to 1 in Python and in files, and in % here.

    Args:
        others: networks to show below the subnets: what stands in place of a number, and of an
            architecture, and the results.
    """
    from prenas.report.intervals import tied_in_words

    splits = list(rows[0].splits)
    with_top5 = rows[0].splits[splits[0]].top5 is not None
    shown = [(str(number), row.arch.summary, row) for number, row in enumerate(rows)] + [*others]
    axes = shown_axes(row.costs for _, _, row in shown)
    columns = ["#", *(axis.header for axis in axes), "architecture"]
    for split in splits:
        heads = ["top-1", *(["top-5"] if with_top5 else []), "loss"]
        columns += [f"{split[:4].removesuffix('i')}\n{head}" for head in heads]
    table = []
    for mark, architecture, row in shown:
        cells = [mark, *_cost_cells(axes, row.costs), architecture]
        for metrics in row.splits.values():
            cells.append(f"{100 * metrics.top1:.2f}")
            if metrics.top5 is not None:
                cells.append(f"{100 * metrics.top5:.2f}")
            cells.append(f"{metrics.loss:.3f}")
        table.append(cells)
    print_table(title, columns, table)
    print_frontier(rows, [row for _, _, row in others])
    sizes = ", ".join(f"{split} {m.num_images} images" for split, m in rows[0].splits.items())
    advice = []
    if "validation" in splits and len(rows) > 1:
        also = "; test accuracy is only for reporting" if "test" in splits else ""
        advice = [f"Choose by validation accuracy{also}.", *tied_in_words(rows)]
    console.print(" ".join([f"Accuracies in % on {sizes}.", *advice]), soft_wrap=True)
    _print_classes(rows, class_names)


def print_contests(found: Sequence[Contest]) -> None:
    """Prints the best subnet of every budget by validation, if any budget has several."""
    if not were_decided(found):
        return
    print_table(
        "The best of each budget by validation",
        ["#", "budget", "candidates", "best", "val\ntop-1", "spread", "test\ntop-1"],
        [
            (
                one.budget,
                one.named,
                " ".join(map(str, one.subnets)),
                one.winner,
                f"{100 * one.top1[0]:.2f}",
                f"{100 * one.spread:.2f}",
                "-" if one.test_top1 is None else f"{100 * one.test_top1:.2f}",
            )
            for one in found
        ],
    )
    console.print(
        f"Candidates are subnets, the best first. {OPTIMISTIC} `prenas specialize RUN --of-budget "
        "#` hands over the best of a budget.",
        soft_wrap=True,
    )


def _print_classes(rows: Sequence[Evaluation], class_names: Sequence[str] | None) -> None:
    """Prints the balanced accuracy of the best subnet, and its weakest classes."""
    from prenas.models.choice import pick
    from prenas.report.classes import class_results, shown_split

    number = pick(rows, {})
    split = shown_split(rows[number])
    metrics = rows[number].splits[split]
    found = class_results(metrics, class_names)
    if metrics.balanced_accuracy is None or len(found) < 2:
        return
    weakest = ", ".join(
        f"{printable(one.name)} {100 * one.accuracy:.1f} % of {one.num_images:,}"
        for one in found[:_NUM_WEAKEST]
    )
    console.print(
        f"Classes of subnet {number} on {split}: balanced accuracy "
        f"{100 * metrics.balanced_accuracy:.2f} %; weakest: {weakest}",
        soft_wrap=True,
    )


def print_evolved(found: Sequence[Evolved], title: str) -> None:
    """Prints the best subnet of every budget, and how many were compared."""
    axes = shown_axes(one.costs for one in found)
    print_table(
        title,
        ["budget", *(axis.header for axis in axes), "architecture", "val top-1", "evaluated"],
        [
            (
                one.budget,
                *_cost_cells(axes, one.costs),
                one.arch.summary,
                f"{100 * one.accuracy:.2f}",
                f"{one.num_evaluated:,}",
            )
            for one in found
        ],
    )
    console.print(
        "Chosen as the best of many on validation, so the validation accuracy is slightly "
        "optimistic.",
        soft_wrap=True,
    )


def print_plan(plan: DryRun) -> None:
    """Prints a dry run: images, subnets, and the time and memory that training would take."""
    _print_measured(plan)
    console.print("Dry run: nothing was written.", soft_wrap=True)


def print_plans(plans: Mapping[str, DryRun], choice_seconds: float) -> None:
    """Prints the dry runs of trainings, by name, that follow each other, and their whole time.

    Args:
        choice_seconds: what the choice of subnets takes, which comes after the first training.
    """
    for plan in plans.values():
        _print_measured(plan)
    seconds = {name: plan.estimate.total_seconds for name, plan in plans.items()}
    print_table(
        "Estimate for all trainings, with validation, calibration and evaluation",
        ["training", "steps", "time"],
        [
            *(
                (name, f"{plans[name].estimate.num_steps:,}", duration(seconds[name]))
                for name in plans
            ),
            ("all", "", duration(sum(seconds.values()))),
        ],
    )
    console.print(
        f"Scoring and choosing, after the first training, take about {duration(choice_seconds)} "
        "more.",
        soft_wrap=True,
    )
    console.print("Dry run: nothing was written.", soft_wrap=True)


def _print_measured(plan: DryRun) -> None:
    print_data(plan.images, plan.recipe)
    print_preferred(plan.preferred)
    print_estimate(plan.estimate, plan.recipe)


def print_time(time: str, *estimates: Estimate) -> None:
    """Prints the lengths of trainings, one after the other, that were chosen for a time."""
    training = sum(one.training_seconds + one.validation_seconds for one in estimates)
    after = sum(one.total_seconds for one in estimates) - training
    steps = " and ".join(f"{one.num_steps:,}" for one in estimates)
    console.print(
        f"Time      {steps} steps fit into {time}: training with validation takes "
        f"about {duration(training)}, calibration and evaluation about {duration(after)}",
        soft_wrap=True,
    )


def print_estimate(estimate: Estimate, recipe: Recipe) -> None:
    """Prints the estimated time and memory of a training."""
    training, size = recipe.training, size_axis()
    assert training is not None, "a dry run trains"
    print_table(
        f"Training speed, measured in steps of {estimate.images_per_step} images",
        [size.header, "architecture", "images/s", "memory per image, MB"],
        [
            (
                size.cell(count(cost.arch, recipe.space)[size.name]),
                cost.arch.summary,
                f"{1 / cost.seconds:,.0f}",
                f"{cost.activation_bytes / 1e6:,.1f}",
            )
            for cost in estimate.costs
        ],
    )
    memory = estimate.state_bytes + estimate.activation_bytes
    calibration = duration(estimate.calibration_seconds)
    print_table(
        "Estimate for the whole training",
        ["item", "value"],
        [
            (
                "steps",
                f"{estimate.num_steps:,} of {training.batch_size} images, "
                f"{estimate.steps_per_epoch:,} per epoch, "
                f"{plural(length_of(training, estimate.steps_per_epoch).num_epochs, 'epoch')}",
            ),
            ("reading images", _reading(estimate)),
            ("training", duration(estimate.training_seconds)),
            ("validation during training", duration(estimate.validation_seconds)),
            *([("calibration of all subnets", calibration)] * (estimate.calibration_seconds > 0)),
            ("evaluation of all subnets", duration(estimate.evaluation_seconds)),
            (
                "memory for one step",
                f"{_size(memory)}: weights, gradients and optimiser {_size(estimate.state_bytes)}; "
                f"activations of the largest subnet {_size(estimate.activation_bytes)}",
            ),
        ],
    )
    if memory > estimate.machine_bytes:
        console.print(
            f"This machine has only {_size(estimate.machine_bytes)}: lower training.batch_size",
            soft_wrap=True,
        )


def _reading(estimate: Estimate) -> str:
    """The time per image, and what its processes need."""
    time = _per_image(estimate.loading_seconds)
    if not estimate.reading_bytes:
        return time
    readers = plural(estimate.num_readers, "process", "processes")
    return f"{time}, by {readers}; shared memory {_size(estimate.reading_bytes)}"


def _per_image(seconds: float) -> str:
    least = 1e-5  # two decimals of a millisecond
    return f"{1e3 * seconds:.2f} ms per image" if seconds >= least else "under 0.01 ms per image"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """A duration in a readable unit: 41 s, 12 min, 3.4 h, 5.1 days."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{0 if unit != 'h' else 1}f} {unit}"
    return f"{seconds / 86400:,.1f} days"


def print_space(space: SearchSpace) -> None:
    """Prints the axes and settings, the smallest and largest network, and possible budgets."""
    from prenas.recipe import flat_fields
    from prenas.selection.isomers import num_isomer_classes

    stages = [stage for stage in space.chain if stage.axes]
    per_layer = [axis.name for axis in space.layer_axes]
    rows: dict[str, list[tuple[str, str, str]]] = {"per network": [], "per layer": [], "fixed": []}
    for name, value in flat_fields(space):
        if name in ("family", "name") or value in (None, []) or _holds(value, dict):
            continue
        is_list = isinstance(value, list) and not _holds(value, list)
        is_axis = is_list and not name.startswith("settings.")
        once = "per network" if is_axis else "fixed"
        chosen = "per layer" if name in per_layer else once
        rows[chosen].append((name, json.dumps(value), chosen))
    print_table(
        f"Space {space.name} ({space.family}): {amount(space.num_archs)} architectures in "
        f"{amount(num_isomer_classes(space))} isomer classes",
        ["field", "value", "chosen"],
        [row for group in rows.values() for row in group],
    )
    if len(stages) > 1:
        names = per_layer
        print_table(
            "Stages",
            ["stage", "width", "depth", *names, "chosen"],
            [
                (
                    number,
                    _listed(stage.widths),
                    _listed(stage.depths),
                    *(_listed({a.name: a.options for a in stage.axes}.get(n, ())) for n in names),
                    "per stage" if stage.tied else "per layer",
                )
                for number, stage in enumerate(stages, start=1)
            ],
        )
    archs = {
        "smallest": space.smallest,
        "largest": space.largest,
        "supernet for scoring": space.supernet,
    }
    costs = {word: count(arch, space) for word, arch in archs.items()}
    axes = shown_axes(costs.values())
    print_table(
        "Smallest and largest network",
        ["network", *(axis.header for axis in axes), "architecture"],
        [(word, *_cost_cells(axes, costs[word]), arch.summary) for word, arch in archs.items()],
    )
    reach = ", and ".join(
        f"from {axis.name}={_rounded(axis, costs['smallest'])} to "
        f"{_rounded(axis, costs['largest'])}"
        for axis in axes
    )
    console.print(f"Budgets can range {reach}.\n", soft_wrap=True)


def _holds(value: object, kind: type) -> bool:
    """Whether a value is a list that contains entries of this type."""
    return isinstance(value, list) and any(isinstance(one, kind) for one in value)


def _listed(options: Sequence[float]) -> str:
    return " ".join(f"{option:g}" for option in options)


def _rounded(axis: CostAxis, costs: Mapping[str, int]) -> str:
    """An amount as budgets write it, rounded up to three digits so that it fits: 5.37M."""
    amount = costs[axis.name]
    step = 10 ** max(len(str(amount)) - 3, 0)
    return axis.format(-(-amount // step) * step)


def print_lists() -> None:
    """Prints all recipes, of every kind, and all search spaces."""
    from prenas.families import all_spaces
    from prenas.recipe.catalogue import (
        CUT_RECIPES,
        RECIPES,
        TRANSFER_RECIPES,
        get_cut_recipe,
        get_recipe,
        get_transfer_recipe,
    )

    recipes = [(name, get_recipe(name)) for name in RECIPES]
    print_table(
        "Recipes",
        ["name", "description"],
        [
            (
                name,
                f"space {recipe.space.name}; {', '.join(recipe.search.budgets)}; "
                + (
                    f"trains {recipe.training.length_in_words} on {recipe.data.name}"
                    + (
                        ", on the whole space, then searches by evolution"
                        if recipe.evolution
                        else ""
                    )
                    if recipe.training and recipe.data
                    else "searches only"
                ),
            )
            for name, recipe in recipes
        ],
    )
    print_table(
        "Fine-tuning recipes, for prenas finetune --recipe",
        ["name", "description"],
        [
            (
                name,
                f"trains {transfer.training.length_in_words} on "
                f"{', '.join(transfer.images or ()) or 'the images given with --data'}"
                + (" or, without it, the source's" if transfer.images is None else ""),
            )
            for name, transfer in ((name, get_transfer_recipe(name)) for name in TRANSFER_RECIPES)
        ],
    )
    print_table(
        "Recipes for a pretrained network, for prenas run --from",
        ["name", "description"],
        [
            (
                name,
                f"{', '.join(cut.budgets)} of the network; trains it on the images given with "
                f"--data ({cut.adaptation.length_in_words}), then its parts together "
                f"({cut.training.length_in_words})",
            )
            for name, cut in ((name, get_cut_recipe(name)) for name in CUT_RECIPES)
        ],
    )
    print_table(
        "Search spaces",
        ["name", "description"],
        [
            (name, f"{space.family}, {amount(space.num_archs)} architectures")
            for name, space in all_spaces().items()
        ],
    )
