"""What the report says, section by section; each is a function from the run to its paragraphs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from prenas import artifacts
from prenas.cost import CostAxis, shown_axes
from prenas.report.cells import block_score_panels
from prenas.report.forms import NONE, amount, percent, plural, words
from prenas.report.markdown import code, escape, folded, link, picture, table
from prenas.report.reproduction import command_of
from prenas.selection.evolved import EvolvedSet

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Evaluation, Metrics
    from prenas.runs.images import RecordedImages
    from prenas.runs.log import EpochRecord, ValidationRecord
    from prenas.runs.results import Calibration
    from prenas.selection.preferred import PreferredSet, SeedAgreement

_ONLY_SEARCHES = "This recipe only searches: it names no training."


class RunSoFar(NamedTuple):
    """What a run folder holds."""

    folder: str
    """Its name."""
    preferred: PreferredSet
    epochs: Sequence[EpochRecord]
    """The finished ones."""
    validations: Sequence[ValidationRecord]
    """Those during the training, in their order."""
    rows: Sequence[Evaluation]
    """One per preferred subnet, or none before the evaluation."""
    best: int | None
    """Number of the best subnet by validation."""
    models: Mapping[int, str]
    """Subnet -> its handed-over model, as a path inside the folder."""
    images: RecordedImages | None
    """Those that it was begun with; None before the training."""
    calibration: Calibration | None
    """None where nothing is calibrated, or not yet."""


_WEIGHTS = {
    "last": "the last weights",
    "ema": "their moving average",
    "best": "the weights of the best validation",
}


def summary(run: RunSoFar) -> list[str]:
    """Title and three lines: what was searched, how far it is trained, what came out."""
    preferred, recipe = run.preferred, run.preferred.recipe
    num_subnets = plural(len(preferred.subnets), f"{preferred.kind} subnet")
    searched = (
        f"recipe {escape(recipe.name)}, seed {recipe.seed}; space {escape(recipe.space.name)} "
        f"({escape(recipe.space.family)}) of {amount(preferred.num_archs)} architectures; "
        f"{plural(preferred.num_classes_of_isomers, 'isomer class', 'isomer classes')} scored"
    )
    data = f"data {escape(recipe.data.name)}" if recipe.data else "no data"
    if run.images is not None:
        sizes = ", ".join(f"{name} {size:,}" for name, size in run.images.num_images.items())
        data += f": {sizes} images in {plural(len(run.images.class_names), 'class', 'classes')}"
    trained = (
        f"{data}; {len(run.epochs):,} of {plural(recipe.training.epochs, 'epoch')} trained"
        if recipe.training
        else f"{data}; this recipe only searches"
    )
    found = num_subnets
    if run.best is not None:
        row = run.rows[run.best]
        costs = [axis.about(row.costs[axis.name]) for axis in shown_axes([row.costs])]
        accuracies = ", ".join(
            f"{split} {percent(metrics.top1)} %" for split, metrics in row.splits.items()
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
            f"- **Evolution:** one-shot NAS, trained on the whole space; {sizes} subnets compared "
            "on validation, budget by budget."
        )
    lines.append(f"- **Found:** {found}.")
    if run.images is not None:
        lines += [f"- **Images:** {escape(note)}." for note in run.images.notes]
    return [f"# {escape(recipe.name)}: {num_subnets}", "\n".join(lines)]


def subnets(run: RunSoFar) -> list[str]:
    """The table of the subnets that are handed over, and the budgets without one."""
    preferred = run.preferred
    splits = list(run.rows[0].splits) if run.rows else []
    with_top5 = bool(run.rows) and run.rows[0].splits[splits[0]].top5 is not None
    names = ["top-1, %", *(["top-5, %"] if with_top5 else []), "loss"]
    axes = shown_axes(subnet.costs for subnet in preferred.subnets)
    heads = ["subnet", *(axis.header for axis in axes)]
    heads += ["architecture", "score", "lead, %", "best of"]
    has_blocks = any(subnet.score_of_blocks is not None for subnet in preferred.subnets)
    if has_blocks:
        heads.insert(heads.index("score") + 1, "of layers")
    heads += [f"{split} {name}" for split in splits for name in names]
    if run.models:
        heads.append("model")
    rows = []
    for number, subnet in enumerate(preferred.subnets):
        choices = [choice for choice in preferred.choices if choice.subnet == number]
        cells = [
            str(number),
            *_cost_cells(axes, subnet.costs),
            escape(subnet.arch.summary),
            _score(subnet.score),
            *([_score(subnet.score_of_blocks)] if has_blocks else []),
            "; ".join(
                NONE if choice.margin is None else f"{100 * choice.margin:.2g}"
                for choice in choices
            ),
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
        "The score ranks subnets of one budget before any training; it grows with size and tells "
        "nothing between budgets, nor between resolutions. The lead is how far, relative to it, "
        "the best subnet of the budget that was not chosen stays behind: a lead that is tiny may "
        "turn with another seed."
    )
    if isinstance(preferred, EvolvedSet):
        lead = (
            "Each is the best of its budget by validation, found by evolution in the trained "
            "supernet: of the best of many, validation shows a little too much. No score took part."
        )
    parts = [
        f"## {preferred.kind.capitalize()} subnets",
        table(heads, rows, left=["architecture", "best of", "model"]),
    ]
    if run.rows:
        sizes = ", ".join(
            f"{split} {plural(metrics.num_images, 'image')}"
            for split, metrics in run.rows[0].splits.items()
        )
        parts.append(
            f"Accuracies over {sizes}; bold is the best by validation. Choose by validation: "
            "whoever chooses by test has no test left."
        )
    if has_blocks:
        lead += " The score of layers leaves out what belongs to no layer, such as the head."
    if preferred.origin is None:
        parts.append(lead)
    empty = [escape(preferred.budgets[number]) for number in preferred.empty_budgets]
    if empty:
        reachable = escape(preferred.reachable)
        parts.append(f"No subnet fits {'; '.join(empty)}. The space reaches {reachable}.")
    if preferred.partial_budgets:
        left_out = "; ".join(map(escape, preferred.partial_budgets))
        parts.append(
            f"Left out, because no whole step of its grid: {left_out} "
            "(`--set search.keep_partial=true` keeps it)."
        )
    return parts


def accuracy(run: RunSoFar) -> list[str]:
    """Accuracy over every cost."""
    heading = "## Accuracy against cost"
    if run.preferred.recipe.training is None:
        return [heading, _ONLY_SEARCHES]
    if not run.rows:
        word, command = ("evolved", "evolve") if _is_to_evolve(run) else ("evaluated", "evaluate")
        return [heading, f"Not {word} yet: `prenas {command} {_word(run.folder)}`."]
    first, *others = (f"against {axis.noun}" for axis in shown_axes(row.costs for row in run.rows))
    against = " and ".join(filter(None, [", ".join([first, *others[:-1]]), *others[-1:]]))
    return [
        heading,
        _picture("accuracy", f"Top-1 accuracy {against}"),
        "Numbers above are the subnets of the table, those of nearly equal cost together; lines "
        "join the best by validation of each group. Bars are 95 % Wilson intervals: what a split "
        "of that many images leaves open about one subnet's accuracy. They say nothing about "
        "another training, and all subnets see the same images, so their differences are surer "
        "than the bars suggest.",
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
        "One row per subnet, from the cheapest on, one column per layer, from the input on"
        f"{stages}; darker is larger, blank is no layer. The space offers {options}.",
    ]


def training(run: RunSoFar) -> list[str]:
    """Loss, learning rate and validation accuracies over epochs."""
    heading, recipe = "## Training", run.preferred.recipe
    if recipe.training is None:
        return [heading, _ONLY_SEARCHES]
    if not run.epochs:
        return [heading, f"No epoch is finished yet: `prenas train {_word(run.folder)}`."]
    last = run.epochs[-1]
    speeds = [record.images_per_second for record in run.epochs if record.images_per_second]
    speed = f", {median(speeds):,.0f} images/s (median of epochs)" if speeds else ""
    skipped = sum(record.skipped for record in run.epochs)
    left_out = f" {plural(skipped, 'step')} gave no finite numbers and changed nothing."
    curves = "loss, learning rate and accuracies" if run.validations else "loss and learning rate"
    paragraphs = [
        heading,
        _picture("training", f"Training {curves} over epochs"),
        f"After epoch {last.epoch + 1:,} of {recipe.training.epochs:,}: loss {last.loss:.3f}, "
        f"learning rate {last.lr:.2e}{speed}. The loss is that of the training, the mean over the "
        "epoch's steps and their subnets, with label smoothing, stochastic depth, augmentation "
        "and what else the recipe teaches by; it is not that of the table. Handed over are "
        f"{_WEIGHTS[recipe.training.handed_over_weights]}.{left_out if skipped else ''}",
    ]
    if run.calibration is not None:
        paragraphs.append(
            "BatchNorm was calibrated in every subnet after the training, on "
            f"{run.calibration.num_images:,} augmented training images in batches of "
            f"{run.calibration.batch_size:,}."
        )
    if run.validations:
        paragraphs.append(
            "Top-1 on the validation images during the training, per subnet"
            + (" of the zero-cost search, not the evolved ones" if recipe.evolution else "")
            + ", darker for larger ones"
            + (
                "; `ema`, dotted, is that of averaged weights."
                if recipe.training.ema_decay
                else "."
            )
        )
    return paragraphs


def stability(run: RunSoFar) -> list[str]:
    """How far other initialisations would choose the same."""
    heading, agreement = "## Stability of the choice", run.preferred.agreement
    if (origin := run.preferred.origin) is not None:
        return [heading, f"Nothing was chosen here: the run was {escape(origin.summary)}."]
    if isinstance(run.preferred, EvolvedSet):
        return [heading, "Not measured: other seeds would train another supernet."]
    if not agreement:
        return [
            heading,
            "Not measured. The command of the search, given again with `--further-seeds 3`, "
            "scores three more initialisations and reports how far they agree; what was chosen "
            "stays.",
        ]
    axes = list(agreement[0].block_score_tau)
    heads = ["seed", "tau of S", *(f"tau of block scores, {words(axis)}" for axis in axes)]
    heads += ["same class", "options changed, per budget"]
    return [
        heading,
        table(heads, [_agreement_row(seed, axes) for seed in agreement]),
        f"Each row is another initialisation beside seed {run.preferred.recipe.seed}, which chose. "
        "Kendall's tau runs from -1 (reversed) over 0 (unrelated) to 1 (equal ranking): of the "
        "score S over all classes of the space, and of the block scores by which layers are "
        "ranked. Same class: in so many budgets the best subnet has equal widths, depths and "
        f"counts of options. Then, per budget, the layers' options that differ; {NONE} where width "
        "or depth do, or where the budget is empty.",
    ]


def whole_space(run: RunSoFar) -> list[str]:
    """What the isomer rule gave up in score, where the recipe asks for it."""
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
    return [
        "## Against the whole space",
        table(heads, rows, left=["budget", "architecture"]),
        "The highest score of any subnet within the budget, found by an integer program over all "
        "choices of all layers; the gap is how far the chosen subnet stays behind it, unproven "
        "what the program left open. The chosen one is the best of those that give larger options "
        "to layers by their block scores, as the method asks; that a higher score reached against "
        "that rule makes a better network is claimed nowhere.",
    ]


def block_scores(run: RunSoFar) -> list[str]:
    """Why layers got their options."""
    preferred = run.preferred
    if not block_score_panels(preferred.block_scores, preferred.recipe.space.chain):
        return []
    return [
        "## Block scores",
        _picture("block_scores", "Block score of every option in every layer"),
        "What decided, between subnets made of the same parts, which layer gets the larger option: "
        "the block score of a larger option in each layer, in % of the largest of its axis and "
        "stage; darker is larger. At random initialisation little of this ranking survives another "
        "seed: the stability above says how much.",
    ]


def reproduction(run: RunSoFar) -> list[str]:
    """Recipe, versions, device and command."""
    preferred, recipe = run.preferred, run.preferred.recipe
    command = command_of(recipe, f"runs/{run.folder}")
    if preferred.imported is not None:
        file = shlex.quote(preferred.imported.file)
        how = code(f"prenas import {file} --out {shlex.quote(run.folder)}", "sh")
    elif preferred.adapted is not None:
        how = (
            f"`prenas finetune` made this run of {escape(preferred.adapted.source)} (sha256 of its "
            f"weights {preferred.adapted.sha256}); recipe, `--data`, `--image-size` and `--set` of "
            "that command came to the fields below."
        )
    elif command:
        device = shlex.quote(preferred.device)
        how = code(f"{command} --device {device} --threads {preferred.num_threads}", "sh")
    else:
        how = (
            "No command with a named recipe makes this one: it comes from Python or a space file. "
            "`prenas.recipe.recipe_from_dict` makes it from the JSON below; "
            f"`{artifacts.RECIPE}` in this folder holds it too."
        )
    versions = [[escape(name), escape(number)] for name, number in preferred.versions.items()]
    searched_on = [
        ["device of the search", escape(preferred.device)],
        ["threads of the search", str(preferred.num_threads)],
    ]
    return [
        "## How to reproduce",
        how,
        table(["what", "value"], [*versions, *searched_on], left=["what", "value"]),
        "A search gives the same bytes on the same machine with the same versions and threads; "
        "elsewhere sums of floats differ in their last bits, and a choice of tiny lead may turn.",
        folded("The recipe, every field", code(_recipe_json(run), "json")),
    ]


SECTIONS = (
    summary,
    subnets,
    accuracy,
    architectures,
    training,
    stability,
    whole_space,
    block_scores,
    reproduction,
)


def _is_to_evolve(run: RunSoFar) -> bool:
    """Whether the subnets shown are not yet those that the run will hand over."""
    is_one_shot = run.preferred.recipe.evolution is not None
    return is_one_shot and not isinstance(run.preferred, EvolvedSet)


def _cost_cells(axes: Sequence[CostAxis], costs: Mapping[str, int]) -> list[str]:
    return [axis.cell(costs[axis.name], pads=True) for axis in axes]


def _score(score: float | None) -> str:
    return NONE if score is None else f"{score:,.1f}"


def _word(folder: str) -> str:
    """A folder's name inside a command shown between backticks."""
    return shlex.quote(folder).replace("`", "")


def _picture(name: str, text: str) -> str:
    return picture(f"{artifacts.REPORT_PICTURES}/{name}", text)


def _recipe_json(run: RunSoFar) -> str:
    return artifacts.json_text(run.preferred.recipe.model_dump(mode="json"))


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
