"""The sections of the report; each is a function from the run to its paragraphs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from prenas import artifacts
from prenas.cost import CostAxis, shown_axes
from prenas.models.choice import contests_of
from prenas.report.cells import block_score_panels
from prenas.report.classes import classes
from prenas.report.forms import NONE, percent, score_text, words
from prenas.report.intervals import tied_in_words
from prenas.report.markdown import code, escape, folded, link, picture, table
from prenas.report.reproduction import command_of
from prenas.runs.contests import OPTIMISTIC, Contest, were_decided
from prenas.selection.evolved import EvolvedSet
from prenas.values import amount, few_of, plural, printable

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Evaluation, Metrics
    from prenas.models.comparison import Compared, Comparison
    from prenas.recipe import Recipe
    from prenas.runs.images import RecordedImages
    from prenas.runs.log import EpochRecord, ValidationRecord
    from prenas.runs.results import Calibration
    from prenas.selection.preferred import PreferredSet, SeedAgreement

_ONLY_SEARCHES = "This recipe only searches and does not train."


class RunSoFar(NamedTuple):
    """The content of a run folder."""

    folder: str
    """The name of the folder."""
    preferred: PreferredSet
    epochs: Sequence[EpochRecord]
    """The finished epochs."""
    num_epochs: int | None
    """Number of epochs of the whole training; None if it is not known yet."""
    validations: Sequence[ValidationRecord]
    """The validations during training, in their order."""
    rows: Sequence[Evaluation]
    """One per preferred subnet, or none before the evaluation."""
    best: int | None
    """Number of the best subnet by validation."""
    models: Mapping[int, str]
    """Subnet -> its handed-over model, as a path inside the folder."""
    images: RecordedImages | None
    """The images that the run was started with; None before the training."""
    calibration: Calibration | None
    """None if the run is not calibrated (yet)."""
    comparison: Comparison | None = None
    """Of the cuts with the whole network and with stock models, in a run that cuts a network."""


_WEIGHTS = {
    "last": "the last weights",
    "ema": "their moving average",
    "best": "the weights of the best validation",
}


def summary(run: RunSoFar) -> list[str]:
    """Title and a few lines: what was searched, how far it is trained, and the result."""
    preferred, recipe = run.preferred, run.preferred.recipe
    num_subnets = plural(len(preferred.subnets), f"{preferred.kind} subnet")
    searched = (
        f"recipe {escape(recipe.name)}, seed {recipe.seed}; space {escape(recipe.space.name)} "
        f"({escape(recipe.space.family)}) of {amount(preferred.num_archs)} architectures; "
        f"{plural(preferred.num_classes_of_isomers, 'class', 'classes')} of equally expensive "
        "architectures (isomers) scored"
    )
    data = f"data {escape(recipe.data.name)}" if recipe.data else "no data"
    if run.images is not None:
        data += f": {images_in_words(run.images)}"
    trained = (
        f"{data}; {len(run.epochs):,} of {whole_length(run)} trained"
        if recipe.training
        else f"{data}; this recipe does not train"
    )
    found = num_subnets
    if run.best is not None:
        row = run.rows[run.best]
        costs = [axis.about(row.costs[axis.name]) for axis in shown_axes([row.costs])]
        accuracies = ", ".join(
            f"{escape(split)} {percent(metrics.top1)} %" for split, metrics in row.splits.items()
        )
        found += (
            f"; best by validation is subnet {run.best} ({', '.join(costs)}): top-1 {accuracies}"
        )
    elif recipe.training:
        found += "; not evolved yet" if _is_to_evolve(run) else "; not evaluated yet"
    if preferred.origin is not None:
        searched = f"none; {escape(preferred.origin.summary)}"
    if preferred.imported is not None:
        trained = "as released"
    lines = [f"- **Search:** {searched}.", f"- **Training:** {trained}."]
    if isinstance(preferred, EvolvedSet):
        sizes = ", ".join(f"{each.num_evaluated:,}" for each in preferred.evolved)
        lines.append(
            f"- **Evolution:** one-shot NAS: trained on the whole space, then {sizes} subnets "
            "compared on validation images, one budget after the other."
        )
    lines.append(f"- **Result:** {found}.")
    if run.comparison is not None:
        lines += [
            f"- **Stock models:** {escape(verdict.in_words)}."
            for verdict in run.comparison.verdicts
            if verdict.better == "stock"
        ]
    if run.images is not None:
        lines += [f"- **Images:** {escape(note)}." for note in run.images.notes]
    return [f"# {escape(recipe.name)}: {num_subnets}", "\n".join(lines)]


def whole_length(run: RunSoFar) -> str:
    """`20 epochs`, or `2,000 steps` as long as nobody knows how many epochs that is."""
    training = run.preferred.recipe.training
    assert training is not None, "asked only for a training"
    return plural(run.num_epochs, "epoch") if run.num_epochs else training.length_in_words


def subnets(run: RunSoFar) -> list[str]:
    """The table of the subnets that are handed over, and the budgets without a subnet."""
    preferred = run.preferred
    splits = list(run.rows[0].splits) if run.rows else []
    with_top5 = bool(run.rows) and run.rows[0].splits[splits[0]].top5 is not None
    names = ["top-1, %", *(["top-5, %"] if with_top5 else []), "loss"]
    axes = shown_axes(subnet.costs for subnet in preferred.subnets)
    heads = ["subnet", *(axis.header for axis in axes)]
    has_score = not preferred.counts_parameters
    has_lead = has_score and preferred.has_leads
    heads += ["architecture", *(["score"] if has_score else [])]
    heads += [*(["lead, %"] if has_lead else []), "budget"]
    untrained = preferred.trained.top1_untrained if preferred.trained is not None else None
    if untrained is not None:
        heads.insert(heads.index("budget"), "untrained validation top-1, %")
    has_blocks = has_score and any(
        subnet.score_of_blocks is not None for subnet in preferred.subnets
    )
    if has_blocks:
        heads.insert(heads.index("score") + 1, "score of layers")
    heads += [f"{escape(split)} {name}" for split in splits for name in names]
    if run.models:
        heads.append("model")
    rows = []
    for number, subnet in enumerate(preferred.subnets):
        choices = [choice for choice in preferred.choices if choice.subnet == number]
        leads = "; ".join(
            NONE if choice.margin is None else f"{100 * choice.margin:.2g}" for choice in choices
        )
        cells = [
            str(number),
            *_cost_cells(axes, subnet.costs),
            escape(subnet.arch.summary),
            *([score_text(subnet.score)] if has_score else []),
            *([score_text(subnet.score_of_blocks)] if has_blocks else []),
            *([leads] if has_lead else []),
            *([percent(untrained[number])] if untrained is not None else []),
            "; ".join(
                escape(preferred.budgets[choice.budget])
                + (f" (rank {choice.rank + 1})" if preferred.recipe.search.k > 1 else "")
                for choice in choices
            ),
        ]
        for split in splits:
            top1, *others = _results(run.rows[number].splits[split], with_top5)
            is_best = run.best == number and split == "validation"
            cells += [f"**{top1}**" if is_best else top1, *others]
        if run.models:
            model = run.models.get(number)
            cells.append(link(model, model) if model else NONE)
        rows.append(cells)
    lead = (
        "The score compares subnets of the same budget before any training. It grows with size, "
        "so scores of different budgets or resolutions cannot be compared. The lead says by how "
        "much, in % of the score, a subnet beats the best one of its budget that was not chosen. "
        "If it is tiny, another seed may choose differently."
    )
    if preferred.counts_parameters:
        lead = (
            "The subnets with the most parameters were chosen (`search.score=params`). Subnets of "
            "equal size are equals: which of them is taken says nothing about their quality."
        )
    if preferred.trained is not None:
        lead = (
            "The score is the importance that a subnet keeps, in % of the whole network's. "
            + (
                "The lead says by how much, in % of the score, it beats the best subnet of its "
                "budget that was not chosen. "
                if has_lead
                else "Several scores were tried, and the one shown is the first of them. At the "
                "image size of a budget, the cut that was more accurate untrained was taken. "
            )
            + "Untrained accuracies are those of the source's weights as they were "
            "cut, with BatchNorm calibrated: what the choice kept before any training."
        )
    if preferred.recipe.search.strategy == "skeletons":
        lead += (
            " All subnets of a budget differ in shape (the widths and depths of their stages)"
            + (", and so does the one that the lead is over." if has_score else ".")
        )
    if preferred.recipe.search.strategy == "random":
        lead = (
            "The subnets were drawn at random, all architectures within a budget being equally "
            "likely. Scores played no part."
        )
    if isinstance(preferred, EvolvedSet):
        lead = (
            "Each subnet is the best of its budget on validation, found by evolution in the "
            "trained supernet. As the best of many, its validation accuracy is slightly "
            "optimistic. Scores played no part."
        )
    parts = [
        f"## {preferred.kind.capitalize()} subnets",
        table(heads, rows, left=["architecture", "budget", "model"]),
    ]
    if run.rows:
        sizes = ", ".join(
            f"{escape(split)} {plural(metrics.num_images, 'image')}"
            for split, metrics in run.rows[0].splits.items()
        )
        parts.append(
            f"Accuracies on {sizes}; the best on validation is bold. Choose by validation: a test "
            "set that was used for choosing is no longer a test set."
        )
        parts += tied_in_words(run.rows)
    if has_blocks:
        lead += (
            ' "Score of layers" is the score without the parts that belong to no layer, such as '
            "the classifier."
        )
    if preferred.origin is None:
        parts.append(lead)
    empty = [escape(preferred.budgets[number]) for number in preferred.empty_budgets]
    if empty:
        reachable = escape(preferred.reachable)
        parts.append(f"No subnet fits {few_of(empty, 20)}. The space reaches {reachable}.")
    if unproven := preferred.unproven_budgets:
        budgets = few_of([*map(escape, unproven)], 20)
        parts.append(
            f"A better subnet may exist for {budgets}: the search was stopped before it was "
            "certain."
        )
    if preferred.partial_budgets:
        left_out = few_of([*map(escape, preferred.partial_budgets)], 20)
        parts.append(
            f"Left out because it is shorter than one step: {left_out} "
            "(`--set search.keep_partial=true` keeps it)."
        )
    return parts


def accuracy(run: RunSoFar) -> list[str]:
    """The accuracy over every cost."""
    heading = "## Accuracy and cost"
    if run.preferred.recipe.training is None:
        return [heading, _ONLY_SEARCHES]
    if not run.rows:
        word, command = ("evolved", "evolve") if _is_to_evolve(run) else ("evaluated", "evaluate")
        return [heading, f"Not {word} yet. Run `prenas {command} {_word(run.folder)}`."]
    first, *others = (f"against {axis.noun}" for axis in shown_axes(row.costs for row in run.rows))
    against = " and ".join(filter(None, [", ".join([first, *others[:-1]]), *others[-1:]]))
    return [
        heading,
        _picture("accuracy", f"Top-1 accuracy {against}"),
        "Numbers above the plot are those of the table. Subnets of nearly equal cost share a "
        "position, and the line joins the best of each position on validation. Bars are 95 % "
        "Wilson intervals: how uncertain the accuracy of one subnet is, given the number of "
        "images. They do not cover what another training would change. All subnets see the same "
        "images, so differences between them are more certain than the bars suggest."
        + (
            " Hollow markers are the whole network and stock models."
            if run.comparison is not None and run.comparison.of_kind("stock")
            else ""
        ),
    ]


CONTEST_HEADS = (
    "number",
    "budget",
    "subnets, the best first",
    "best",
    "validation top-1, %",
    "spread, points",
    "test top-1, %",
)


def contest_rows(found: Iterable[Contest]) -> list[list[str]]:
    """A row of `CONTEST_HEADS` for every budget."""
    return [
        [
            str(one.budget),
            one.named,
            ", ".join(map(str, one.subnets)),
            str(one.winner),
            percent(one.top1[0]),
            percent(one.spread),
            NONE if one.test_top1 is None else percent(one.test_top1),
        ]
        for one in found
    ]


def contests(run: RunSoFar) -> list[str]:
    """The best subnet of every budget by validation, if any budget has several."""
    found = contests_of(run.preferred, run.rows)
    if not were_decided(found):
        return []
    rows = [[*map(escape, row)] for row in contest_rows(found)]
    return [
        "## The best of each budget",
        table([*CONTEST_HEADS], rows, left=["budget", "subnets, the best first"]),
        f"{OPTIMISTIC} The spread is how far the last subnet of a budget is behind the best on "
        f"validation. `prenas specialize {_word(run.folder)} --of-budget NUMBER` hands the best of "
        "a budget over.",
    ]


def _images_of(network: Compared) -> str:
    """The size of the images that a network takes, and the one that it computes with."""
    taken, side = " x ".join(map(str, network.image_size)), network.row.arch.resized_to
    return taken if side is None else f"{taken}, resized to {side}"


def stock_models(run: RunSoFar) -> list[str]:
    """The cuts next to the whole network and to stock models, and which is better at a budget."""
    if run.comparison is None or not run.comparison.of_kind("stock"):
        return []
    networks = run.comparison.networks
    axes = shown_axes(one.row.costs for one in networks)
    splits = list(networks[0].row.splits)
    heads = ["network", "kind", *(axis.header for axis in axes), "image size", "training images"]
    heads += [f"{escape(split)} top-1, %" for split in splits]
    rows = [
        [
            link(escape(one.name), one.folder),
            {"cut": "cut", "whole": "whole network", "stock": "stock model"}[one.kind],
            *_cost_cells(axes, one.row.costs),
            _images_of(one),
            amount(one.num_images),
            *(percent(one.row.splits[split].top1) for split in splits),
        ]
        for one in networks
    ]
    return [
        "## Compared with stock models",
        table(heads, rows, left=["network", "kind"]),
        "\n".join(f"- {escape(sentence)}" for sentence in run.comparison.in_words),
        "Stock models are fine-tuned as the whole network is adapted, on the same images, and for "
        "as many of them as the whole network and its cuts together. The best subnet within a "
        "budget is compared with the best stock model within it, on validation. They are level if "
        "their accuracies differ by no more than a standard error of the difference.",
    ]


def architectures(run: RunSoFar) -> list[str]:
    """Every subnet layer by layer."""
    space = run.preferred.recipe.space
    axes = space.layer_axes
    has_stages = len(run.preferred.archs[0].layer_options[axes[0].name]) > 1
    stages = ", numbered by stage and layer" if has_stages else ""
    options = "; ".join(
        f"{words(axis.name)} {', '.join(f'{option:g}' for option in axis.options)}" for axis in axes
    )
    return [
        "## Architectures",
        _picture(
            "architectures", f"The option of every layer of every {run.preferred.kind} subnet"
        ),
        "One row per subnet, the cheapest first; one column per layer, from input to output"
        f"{stages}. Darker means larger, blank means no layer. The space offers {options}.",
    ]


def training(run: RunSoFar) -> list[str]:
    """Loss, learning rate and validation accuracy over epochs."""
    heading, recipe = "## Training", run.preferred.recipe
    if recipe.training is None:
        return [heading, _ONLY_SEARCHES]
    if not run.epochs:
        return [heading, f"No epoch has finished yet. Run `prenas train {_word(run.folder)}`."]
    last = run.epochs[-1]
    speeds = [record.images_per_second for record in run.epochs if record.images_per_second]
    speed = f", {median(speeds):,.0f} images/s (median of epochs)" if speeds else ""
    skipped = sum(record.skipped for record in run.epochs)
    was = "was" if skipped == 1 else "were"
    left_out = (
        f" {plural(skipped, 'step')} {was} skipped because the loss or gradient was not finite."
    )
    curves = "loss, learning rate and accuracies" if run.validations else "loss and learning rate"
    paragraphs = [
        heading,
        _picture("training", f"Training {curves} over epochs"),
        f"After epoch {last.epoch + 1:,} of {run.num_epochs or last.epoch + 1:,}: "
        f"{'no finite loss' if math.isnan(last.loss) else f'loss {last.loss:.3f}'}, "
        f"learning rate {last.lr:.2e}{speed}. The loss is the training loss, averaged over the "
        "steps of the epoch and their subnets. It includes label smoothing, stochastic depth, "
        "augmentation and any other strategy of the recipe, so it cannot be compared with the "
        "loss in the table. The weights handed over are "
        f"{_WEIGHTS[recipe.training.handed_over_weights]}.{left_out if skipped else ''}",
    ]
    if run.calibration is not None:
        paragraphs.append(
            "After the training, BatchNorm was calibrated for every subnet on "
            f"{run.calibration.num_images:,} augmented training images in batches of "
            f"{run.calibration.batch_size:,}."
        )
    if run.validations:
        paragraphs.append(
            "Validation top-1 during training, one line per subnet"
            + (" of the zero-cost search, not the evolved ones" if recipe.evolution else "")
            + "; larger subnets are darker."
            + (
                " Dotted lines (`ema`) show the averaged weights."
                if recipe.training.ema_decay
                else ""
            )
        )
    return paragraphs


AGREEMENT = (
    "Agreement says that another seed would choose alike, not that the choice is a good one: "
    "counting parameters agrees with itself perfectly."
)


class Agreement(NamedTuple):
    """What is known about how stable a choice is."""

    sentences: Sequence[str]
    heads: Sequence[str]
    """Of a table with one row per further seed; empty if there were none."""
    rows: Sequence[Sequence[str]]


def agreement_of(preferred: PreferredSet) -> Agreement | None:
    """How well other seeds, or halves of the images, agree with the choice; None if unknown."""
    if preferred.origin is not None:
        return None
    if (trained := preferred.trained) is not None:
        sentences = ["The units of trained weights were scored, so no seed decided the choice."]
        sentences += [
            f"Tried for {preferred.budgets[budget]}: {tried}."
            for budget, tried in trained.tried_in_words.items()
        ]
        if trained.halves is not None:
            sentences.append(trained.halves.summary)
        return Agreement(sentences, [], [])
    if isinstance(preferred, EvolvedSet) or not preferred.agreement:
        return None
    axes = list(preferred.agreement[0].block_score_tau)
    heads = ["seed", "tau of S", *(f"tau of block scores, {words(axis)}" for axis in axes)]
    heads += ["same class", "options changed, per budget"]
    meaning = (
        "Each row is another random initialisation, compared with seed "
        f"{preferred.recipe.seed}, which made the choice. Kendall's tau is 1 for equal "
        'rankings, 0 for unrelated ones and -1 for reversed ones. "Tau of S" compares the scores '
        'of all classes of the space; "tau of block scores" compares how layers are ranked. "Same '
        'class" counts the budgets in which the best subnet has the same widths, depths and counts '
        "of options. The last column gives, for each budget, how many layers have a different "
        f"option; {NONE} if width or depth differ, or if the budget is empty. {AGREEMENT}"
    )
    return Agreement([meaning], heads, [_agreement_row(seed, axes) for seed in preferred.agreement])


def stability(run: RunSoFar) -> list[str]:
    """How well other seeds agree with the choice."""
    heading, found = "## Do other seeds agree?", agreement_of(run.preferred)
    if (origin := run.preferred.origin) is not None:
        return [heading, f"Nothing was chosen here, because the run was {escape(origin.summary)}."]
    if isinstance(run.preferred, EvolvedSet):
        return [heading, "Not measured, because other seeds would train a different supernet."]
    if found is None:
        return [
            heading,
            "Not measured. Give the search command again with `--further-seeds 3`: it scores three "
            "more initialisations and reports how well they agree. The choice stays the same.",
        ]
    seeds = [table([*map(escape, found.heads)], found.rows)] if found.rows else []
    return [heading, *seeds, " ".join(map(escape, found.sentences))]


def whole_space(run: RunSoFar) -> list[str]:
    """How much score the isomer rule gave up, if the recipe asks for it."""
    optima = run.preferred.optima
    if not optima:
        return []
    axes = shown_axes(found.costs for found in optima)
    rows = [
        [
            escape(run.preferred.budgets[found.budget]),
            f"{found.score:,.1f}",
            NONE if found.gap is None else f"{100 * found.gap:.2g}",
            f"{100 * found.unproven:.2g}",
            *_cost_cells(axes, found.costs),
            escape(found.arch.summary),
        ]
        for found in optima
    ]
    heads = ["budget", "highest score", "gap, %", "unproven, %"]
    heads += [*(axis.header for axis in axes), "architecture"]
    rule = run.preferred.recipe.search.isomers
    return [
        "## Compared with the whole space",
        table(heads, rows, left=["budget", "architecture"]),
        "The highest score that any subnet reaches within the budget, computed by an integer "
        "program over all choices of all layers. The gap is how far the chosen subnet falls short "
        'of it; "unproven" is what the program left open. The chosen subnet is the best of those '
        f"that give larger options to the layers that `search.isomers={rule}` names. A higher "
        "score that breaks this rule need not mean a better network.",
    ]


def block_score_meaning(preferred: PreferredSet) -> str:
    """What the picture of the block scores shows."""
    if preferred.trained is not None:
        return (
            "What each larger option keeps in addition to the next smaller one, in % of the "
            "largest in its axis and stage; the stronger the colour, the more. Units are in the "
            "order of their scores, so the first options keep the most."
        )
    shown = (
        "The number by which each larger option in each layer was ranked, in % of the largest in "
        "its axis and stage; the stronger the colour, the larger. It decided which layers of "
        "otherwise equal subnets get the larger option. "
    )
    if preferred.recipe.search.isomers == "random":
        return f"{shown}These numbers are random: the rule is a control."
    return (
        f"{shown}They are block scores at random weights, where layers of equal shape are equals: "
        "the scores decided between equals, and another seed ranks layers differently."
    )


def block_scores(run: RunSoFar) -> list[str]:
    """The block scores, which decide the options of each layer."""
    preferred = run.preferred
    if not block_score_panels(preferred.block_scores, preferred.recipe.space.chain):
        return []
    heading, what = "## Block scores", "What ranked every option in every layer"
    if preferred.trained is not None:
        heading = "## What the options keep"
        what = "What every larger option of every layer adds to the score"
    return [heading, _picture("block_scores", what), block_score_meaning(preferred)]


def how_it_was_made(preferred: PreferredSet, folder: str) -> str:
    """The command that makes such a run again, or what made it; `folder` is its name."""
    recipe = preferred.recipe
    if preferred.imported is not None:
        file = shlex.quote(preferred.imported.file)
        return code(f"prenas import {file} --out {shlex.quote(folder)}", "sh")
    if preferred.adapted is not None:
        return (
            f"`prenas finetune` made this run from {escape(preferred.adapted.source)} (SHA-256 of "
            f"its weights {escape(preferred.adapted.sha256)}). The recipe, `--data`, "
            "`--image-size` and `--set` of that command resulted in the fields below."
        )
    if preferred.trained is not None and recipe.source is not None:
        return (
            f"{code(f'prenas run --from {shlex.quote(recipe.source.name)} ...', 'sh')}\n\n"
            f"The weights have the SHA-256 {escape(recipe.source.sha256)}. The recipe, `--data`, "
            "`--budget`, `--image-size` and `--set` of that command resulted in the fields below."
        )
    if command := command_of(recipe, f"runs/{folder}"):
        device = shlex.quote(preferred.device)
        return code(f"{command} --device {device} --threads {preferred.num_threads}", "sh")
    return (
        "No command reproduces this recipe: it was built in Python or from a space file. "
        "`prenas.recipe.recipe_from_dict` rebuilds it from the JSON below, which is also in "
        f"`{artifacts.RECIPE}`."
    )


def folded_recipe(recipe: Recipe) -> str:
    """Every field of a recipe, which opens with a click."""
    text = artifacts.json_text(recipe.model_dump(mode="json"))
    return folded("The complete recipe", code(text, "json"))


def images_in_words(images: RecordedImages) -> str:
    """How many images each split has, and in how many classes."""
    sizes = ", ".join(f"{escape(name)} {size:,}" for name, size in images.num_images.items())
    return f"{sizes} images in {plural(len(images.class_names), 'class', 'classes')}"


def reproduction(run: RunSoFar) -> list[str]:
    """Recipe, versions, device and command."""
    preferred, recipe = run.preferred, run.preferred.recipe
    how = how_it_was_made(preferred, run.folder)
    versions = [[escape(name), escape(number)] for name, number in preferred.versions.items()]
    searched_on = [
        ["device of the search", escape(preferred.device)],
        ["threads of the search", str(preferred.num_threads)],
    ]
    return [
        "## How to reproduce",
        how,
        table(["item", "value"], [*versions, *searched_on], left=["item", "value"]),
        "On the same machine, with the same versions and number of threads, a search writes "
        "identical files. Elsewhere float sums differ in their last digits, and a choice with a "
        "tiny lead may change.",
        folded_recipe(recipe),
    ]


SECTIONS = (
    summary,
    subnets,
    accuracy,
    contests,
    stock_models,
    classes,
    architectures,
    training,
    stability,
    whole_space,
    block_scores,
    reproduction,
)


def _is_to_evolve(run: RunSoFar) -> bool:
    """Whether evolution has yet to choose the subnets that the run will hand over."""
    is_one_shot = run.preferred.recipe.evolution is not None
    return is_one_shot and not isinstance(run.preferred, EvolvedSet)


def _cost_cells(axes: Sequence[CostAxis], costs: Mapping[str, int]) -> list[str]:
    return [axis.cell(costs[axis.name], pads=True) for axis in axes]


def _word(folder: str) -> str:
    """A folder's name inside a command shown between backticks."""
    return printable(shlex.quote(folder), keeps="").replace("`", "")


def _picture(name: str, text: str) -> str:
    return picture(f"{artifacts.REPORT_PICTURES}/{name}", text)


def _results(metrics: Metrics, with_top5: bool) -> list[str]:
    accuracies = [metrics.top1, metrics.top5] if with_top5 else [metrics.top1]
    shown = [NONE if share is None else percent(share) for share in accuracies]
    return [*shown, f"{metrics.loss:.3f}"]


def _agreement_row(seed: SeedAgreement, axes: Sequence[str]) -> list[str]:
    held = [same for same in seed.same_class if same is not None]
    return [
        str(seed.seed),
        f"{seed.score_tau:.3f}",
        *(f"{seed.block_score_tau[axis]:.2f}" for axis in axes),
        f"{held.count(True)} of {len(held)}",
        ", ".join(NONE if number is None else str(number) for number in seed.changed_options),
    ]
