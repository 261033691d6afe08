"""What the page shows, as plain JSON: everything is counted and ordered here, not in the page."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prenas import artifacts
from prenas.cost import FILE_SIZE, CostAxis, rounded_up, shown_axes
from prenas.devices.whole import recorded_times
from prenas.latency import UNITS, Conditions, LatencyAxis, counting_as
from prenas.models.choice import contests_of, ranked
from prenas.models.comparison import compared
from prenas.report.cells import Panel, architecture_panels, block_score_panels
from prenas.report.classes import class_results, shown_split
from prenas.report.forms import score_text
from prenas.report.html.pictures import MOST_BYTES, thumbnails
from prenas.report.intervals import wilson_interval
from prenas.report.page import read_so_far
from prenas.report.reproduction import command_of
from prenas.report.sections import (
    CONTEST_HEADS,
    RunSoFar,
    agreement_of,
    block_score_meaning,
    contest_rows,
    images_in_words,
    whole_length,
)
from prenas.runs.contests import OPTIMISTIC, were_decided
from prenas.runs.run import Run
from prenas.values import amount, plural, printable

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Evaluation, Metrics

T = TypeVar("T")

_MOST_POINTS = 400  # of a curve
_MOST_BYTES_OF_CLASSES = 1_200_000
_FILE = "file"


class Axis(NamedTuple):
    """A kind of cost on the page."""

    name: str
    label: str
    """Its name, such as "MACs per image"."""
    title: str
    """The same with the unit of plots, such as "MACs, M per image"."""
    scale: int
    """The size of that unit."""
    units: Mapping[str, int]
    """Unit -> its size, for amounts that people write."""
    is_counted: bool
    """Whether `prenas specialize --max` knows it."""


class _Amount(NamedTuple):
    """What one network costs on one axis."""

    amount: int
    cell: str
    """For people."""
    limit: str
    """A limit that it just keeps, as people write it."""


def content_of(
    runs: Sequence[Run], *, with_pictures: bool = True, live: str | None = None
) -> dict[str, Any]:
    """The content of the page for one or several runs, as JSON can hold it.

    Args:
        with_pictures: whether to show images that the subnets classify wrongly.
        live: for a page that follows a training, how far that is; runs may then be unfinished.

    Raises:
        ValueError: the search of a run is not finished, or its results are damaged or belong to
            other weights.
    """
    axes: dict[str, Axis] = {}
    most = MOST_BYTES // len(runs) if with_pictures else 0
    names = _names(runs)
    found = []
    for run, name in zip(runs, names, strict=True):
        with counting_as(run.folder):
            found.append(
                _run(run, name, axes, most_picture_bytes=most)
                if live is None or run.is_searched
                else _unsearched(run, name)
            )
    return {
        "title": found[0]["heading"] if len(runs) == 1 else f"{len(runs)} runs compared",
        "live": live,
        "axes": {name: axis._asdict() for name, axis in axes.items()},
        "runs": found,
    }


def _names(runs: Sequence[Run]) -> list[str]:
    """A different name for each run: that of its folder, or its path."""
    short = [run.folder.resolve().name for run in runs]
    names = short if len({*short}) == len(short) else [str(run.folder) for run in runs]
    if len({*names}) < len(names):
        raise ValueError(f"a run is named twice ({', '.join(names)}): name each run once")
    return [printable(name, keeps="") for name in names]


def _unsearched(run: Run, name: str) -> dict[str, Any]:
    """A run that is not searched yet; one that cuts a network may be training that."""
    return {
        "name": name,
        "heading": f"{name}: subnets are not chosen yet",
        "command": "",
        "waiting": "The subnets are not chosen yet.",
        "facts": [],
        "axes": [],
        "splits": [],
        "subnets": [],
        "order": [],
        "others": [],
        "class_names": [],
        "shown_split": None,
        "pictures": [],
        "no_pictures": None,
        "trainings": _inner_trainings(run),
        "architectures": [],
        "importance": [],
        "importance_text": "",
        "stability": None,
        "contests": None,
        "reproduce": None,
        "versions": [],
        "recipe": artifacts.json_text(run.recipe.model_dump(mode="json")),
    }


def _run(run: Run, name: str, axes: dict[str, Axis], *, most_picture_bytes: int) -> dict[str, Any]:
    """Everything about one run; its axes are added to `axes`."""
    so_far = read_so_far(run)
    preferred, recipe = so_far.preferred, so_far.preferred.recipe
    costs = _costs(run, so_far, axes)
    split = shown_split(so_far.rows[0]) if so_far.rows else None
    names = [printable(one, keeps="") for one in so_far.images.class_names] if so_far.images else []
    subnets = [
        _subnet(so_far, number, costs[number], names) for number in range(len(preferred.subnets))
    ]
    order = ranked(so_far.rows) if so_far.rows else []
    _keep_classes(subnets, order)
    pictures, no_pictures = _pictures(run, subnets, order, split, most_picture_bytes)
    stability = agreement_of(preferred)
    return {
        "name": name,
        "heading": f"{printable(recipe.name, keeps='')}: "
        f"{plural(len(subnets), f'{preferred.kind} subnet')}",
        "command": f"prenas specialize {shlex.quote(str(run.folder))}",
        "waiting": "The subnets are not evaluated yet.",
        "facts": _facts(so_far),
        "axes": [*costs[0]],
        "splits": [*so_far.rows[0].splits] if so_far.rows else [],
        "subnets": subnets,
        "order": order,
        "others": _others(run, so_far, axes),
        "class_names": names,
        "shown_split": split,
        "pictures": pictures,
        "no_pictures": no_pictures,
        "trainings": _trainings(run, so_far, name),
        "architectures": _panels(architecture_panels(preferred.archs, recipe.space.layer_axes)),
        "importance": _panels(block_score_panels(preferred.block_scores, recipe.space.chain)),
        "importance_text": block_score_meaning(preferred),
        "contests": _contests(so_far),
        "stability": stability and stability._asdict(),
        "reproduce": command_of(recipe, f"runs/{so_far.folder}"),
        "versions": [*preferred.versions.items(), ("device of the search", preferred.device)],
        "recipe": artifacts.json_text(recipe.model_dump(mode="json")),
    }


def _contests(run: RunSoFar) -> dict[str, Any] | None:
    """The best of each budget by validation; None if no budget has several subnets."""
    found = contests_of(run.preferred, run.rows)
    if not were_decided(found):
        return None
    return {"heads": CONTEST_HEADS, "rows": contest_rows(found), "text": OPTIMISTIC}


# --- networks ------------------------------------------------------------------------------------


def _subnet(
    run: RunSoFar, number: int, costs: Mapping[str, _Amount], names: Sequence[str]
) -> dict[str, Any]:
    preferred, row = run.preferred, run.rows[number] if run.rows else None
    subnet = preferred.subnets[number]
    choices = [choice for choice in preferred.choices if choice.subnet == number]
    score, lead = None, ""
    if not preferred.counts_parameters:
        leads = [choice.margin for choice in choices if choice.margin is not None]
        score = None if subnet.score is None else score_text(subnet.score)
        lead = "; ".join(f"{100 * one:.2g}" for one in leads)
    return {
        "number": number,
        "summary": subnet.arch.summary,
        "amounts": {name: one.amount for name, one in costs.items()},
        "cells": {name: one.cell for name, one in costs.items()},
        "limits": {name: one.limit for name, one in costs.items()},
        "results": _results(row),
        "budgets": [preferred.budgets[choice.budget] for choice in choices],
        "score": score,
        "lead": lead,
        "classes": None if row is None else _classes(row, names),
        "mistakes": [] if row is None else _mistakes(row.splits[shown_split(row)]),
    }


def _results(row: Evaluation | None) -> dict[str, Any]:
    found = {}
    for split, metrics in row.splits.items() if row is not None else ():
        low, high = wilson_interval(metrics)
        found[split] = {**metrics.summary, "low": low, "high": high}
    return found


def _classes(row: Evaluation, names: Sequence[str]) -> dict[str, Any] | None:
    """Results by class on the split that is shown; rows of the matrix are [class, images, ...]."""
    split = shown_split(row)
    metrics = row.splits[split]
    found = class_results(metrics, names)
    if not found:
        return None
    confusion = metrics.confusion and [
        [*chain.from_iterable((n, count) for n, count in enumerate(counts) if count)]
        for counts in metrics.confusion
    ]
    return {
        "split": split,
        "balanced_accuracy": metrics.balanced_accuracy,
        "rows": [[one.name, one.num_right, one.num_images, one.taken_for] for one in found],
        "confusion": confusion,
        "is_shortened": False,
    }


def _mistakes(metrics: Metrics) -> list[dict[str, Any]]:
    return [{**one.model_dump(), "picture": None} for one in metrics.mistakes or ()]


def _keep_classes(subnets: Sequence[dict[str, Any]], order: Sequence[int]) -> None:
    """If all would be too long, drops matrices, then results by class, of the worst subnets."""
    left = _MOST_BYTES_OF_CLASSES
    for part in ("rows", "confusion"):
        for number in order:
            classes = subnets[number]["classes"]
            if classes is None or classes[part] is None:
                continue
            left -= len(json.dumps(classes[part]))
            if left >= 0:
                continue
            if part == "rows":
                subnets[number]["classes"] = None
            else:
                classes["confusion"], classes["is_shortened"] = None, True


def _pictures(
    run: Run,
    subnets: Sequence[dict[str, Any]],
    order: Sequence[int],
    split: str | None,
    most_bytes: int,
) -> tuple[list[dict[str, Any]], str | None]:
    """Pictures of the mistakes, which then name theirs; and why there are none, if there are none.

    The surest mistake of every subnet comes first, then the second of every subnet, and so on, so
    that a page that cannot hold all of them has some for each.
    """
    of_all = [subnets[number]["mistakes"] for number in order]
    depth = max(map(len, of_all), default=0)
    turns = [mistakes[n]["image"] for n in range(depth) for mistakes in of_all if n < len(mistakes)]
    if split is None or not turns or most_bytes == 0:
        return [], None
    try:
        found = thumbnails(run, split, dict.fromkeys(turns), most_bytes)
    except (ValueError, OSError) as error:
        return [], printable(f"Pictures are not shown, because the images cannot be read: {error}.")
    places = {image: place for place, image in enumerate(found)}
    for mistake in chain.from_iterable(of_all):
        mistake["picture"] = places.get(mistake["image"])
    return [one._asdict() for one in found.values()], None


def _others(run: Run, so_far: RunSoFar, axes: Mapping[str, Axis]) -> list[dict[str, Any]]:
    """The whole network that subnets were cut out of, and stock models."""
    if so_far.preferred.recipe.source is None or not so_far.rows:
        return []
    kinds = {"whole": "whole network", "stock": "stock model"}
    found = []
    for one in compared(run).networks:
        if one.kind == "cut":
            continue
        costs = {
            axis.name: _counted(axis, one.row.costs[axis.name])
            for axis in shown_axes([one.row.costs])
            if axis.name in axes
        }
        model = run.folder / one.folder / artifacts.MODEL
        if _FILE in axes and model.exists():
            costs[_FILE] = _size_of(model)
        found.append(
            {
                "kind": kinds[one.kind],
                "name": printable(one.name, keeps=""),
                "summary": f"{kinds[one.kind]} {printable(one.name, keeps='')}",
                "amounts": {name: each.amount for name, each in costs.items()},
                "cells": {name: each.cell for name, each in costs.items()},
                "results": _results(one.row),
                "budgets": [],
            }
        )
    return found


# --- costs ---------------------------------------------------------------------------------------


def _costs(run: Run, so_far: RunSoFar, axes: dict[str, Axis]) -> list[dict[str, _Amount]]:
    """What every subnet costs, by axis: counted costs, the model file, and measured times."""
    preferred = so_far.preferred
    rows = [row.costs for row in so_far.rows] or [one.costs for one in preferred.subnets]
    found: list[dict[str, _Amount]] = [{} for _ in rows]
    for axis in shown_axes(rows):
        scale = axis.units[axis.table_unit]
        label, title = _titles(axis)
        axes[axis.name] = Axis(axis.name, label, title, scale, dict(axis.units), is_counted=True)
        for costs, row in zip(found, rows, strict=True):
            costs[axis.name] = _counted(axis, row[axis.name])
    written = [run.folder / model / artifacts.MODEL for model in so_far.models.values()]
    if len(written) == len(rows) and all(model.exists() for model in written):
        units, unit = FILE_SIZE.units, FILE_SIZE.table_unit
        title = f"model file, {unit}"
        axes[_FILE] = Axis(_FILE, "model file", title, units[unit], dict(units), is_counted=False)
        for costs, model in zip(found, written, strict=True):
            costs[_FILE] = _size_of(model)
    for times in recorded_times(run) if so_far.rows else ():
        label, title = _titles_of_time("measured time", times.conditions)
        known = {axis.label: name for name, axis in axes.items()}
        name = known.get(label, f"time-{len(axes)}")
        axes[name] = Axis(name, label, title, UNITS["ms"], UNITS, is_counted=False)
        for costs, time in zip(found, times.subnets, strict=True):
            costs[name] = _rounded(time.nanoseconds, "ms", UNITS["ms"])
    return found


def _titles(axis: CostAxis) -> tuple[str, str]:
    """The name of an axis, without and with its unit; that of a latency says its engine."""
    if isinstance(axis, LatencyAxis):
        return _titles_of_time("predicted latency", axis.table.conditions)
    return f"{axis.label} {axis.per}".strip(), f"{axis.header} {axis.per}".strip()


def _titles_of_time(name: str, conditions: Conditions) -> tuple[str, str]:
    """As above; the unit comes before the conditions, which a narrow plot cuts off."""
    return f"{name} ({conditions.summary})", f"{name}, ms ({conditions.summary})"


def _counted(axis: CostAxis, number: int) -> _Amount:
    return _Amount(number, axis.number(number), axis.limit(number))


def _size_of(model: Path) -> _Amount:
    unit = FILE_SIZE.table_unit
    return _rounded(model.stat().st_size, unit, FILE_SIZE.units[unit])


def _rounded(number: int, unit: str, scale: int) -> _Amount:
    """An amount that `specialize` cannot count."""
    return _Amount(number, f"{number / scale:.3f} {unit}", rounded_up(number, unit, scale))


# --- training ------------------------------------------------------------------------------------


def _trainings(run: Run, so_far: RunSoFar, name: str) -> list[dict[str, Any]]:
    """The training of the run, then those of runs inside it."""
    own = [] if not so_far.epochs else [_training(so_far, name)]
    return own + _inner_trainings(run)


def _inner_trainings(run: Run) -> list[dict[str, Any]]:
    """The trainings of the whole network and of stock models, in a run that cuts a network."""
    source = run.recipe.source
    if source is None:
        return []
    folders = [artifacts.SOURCE, *(artifacts.rival_folder(one.name) for one in source.rivals)]
    inner = [Run(run.folder / folder, device="cpu") for folder in folders]
    known = [(one, read_so_far(one)) for one in inner if one.is_searched]
    return [
        _training(
            so_far, f"{'whole network' if one is inner[0] else 'stock model'} {so_far.folder}"
        )
        for one, so_far in known
        if so_far.epochs
    ]


def _training(run: RunSoFar, name: str) -> dict[str, Any]:
    epochs = [
        [one.epoch + 1, None if math.isnan(one.loss) else one.loss, one.lr]
        for one in _thinned(run.epochs)
    ]
    lines = sorted({(one.subnet, one.weights) for one in run.validations})
    return {
        "name": printable(name, keeps=""),
        "text": f"{len(run.epochs):,} of {whole_length(run)} trained. The loss is that of the "
        "training, with everything that the recipe adds to it, so it cannot be compared with the "
        "losses in the table.",
        "epochs": epochs,
        "validations": [
            {
                "subnet": subnet,
                "weights": weights,
                "points": [
                    [one.epoch + 1, one.top1]
                    for one in _thinned(
                        [v for v in run.validations if (v.subnet, v.weights) == (subnet, weights)]
                    )
                ],
            }
            for subnet, weights in lines
        ],
    }


def _thinned(records: Sequence[T]) -> list[T]:
    """At most some hundred records, evenly spread, the last one among them."""
    step = max(1, math.ceil(len(records) / _MOST_POINTS))
    return list(records[::-step])[::-1]


# --- the rest ------------------------------------------------------------------------------------


def _facts(run: RunSoFar) -> list[tuple[str, str]]:
    preferred, recipe = run.preferred, run.preferred.recipe
    facts = [
        ("Recipe", f"{recipe.name}, seed {recipe.seed}"),
        (
            "Search space",
            preferred.origin.summary
            if preferred.origin is not None
            else f"{recipe.space.name} ({recipe.space.family}), "
            f"{amount(preferred.num_archs)} architectures",
        ),
    ]
    if run.images is not None and recipe.data is not None:
        facts.append(("Images", f"{recipe.data.name}: {images_in_words(run.images)}"))
        facts += [("Note", note) for note in run.images.notes]
    if recipe.training is not None:
        facts.append(("Training", f"{len(run.epochs):,} of {whole_length(run)}"))
    return [(name, printable(text, keeps="")) for name, text in facts]


def _panels(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Panels as JSON; a cell is [text, shade]."""
    return [
        {
            "title": panel.title,
            "columns": panel.columns,
            "heads": panel.heads,
            "labels": panel.labels,
            "rows": [
                [cell and [cell.text, round(cell.shade, 3)] for cell in row] for row in panel.rows
            ],
        }
        for panel in panels
    ]
