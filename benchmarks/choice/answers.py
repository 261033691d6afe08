"""Paired differences with intervals, verdicts, tables and a picture, from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from math import sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy.stats import t

from benchmarks.choice.questions import QUESTIONS
from benchmarks.rows import Row
from prenas.report.figure import BLUE, GREY
from prenas.report.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "-"
_FRONT = {"hypervolume": "hypervolume, %", "seconds_to_choose": "choosing, s"}


class Difference(NamedTuple):
    """An arm minus its control, in points of test accuracy, over paired seeds."""

    arm: str
    control: str
    where: str
    """Data and length of the training; of a cell, also the budget."""
    of_seeds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return fmean(self.of_seeds)

    @property
    def error(self) -> float | None:
        """The standard error over the seeds; None with a single seed."""
        number = len(self.of_seeds)
        return stdev(self.of_seeds) / sqrt(number) if number > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean by Student's t over the seeds; None with a single seed."""
        if self.error is None:
            return None
        half = float(t.ppf(0.975, len(self.of_seeds) - 1)) * self.error
        return self.mean - half, self.mean + half

    @property
    def is_ahead(self) -> bool:
        """Whether the arm is ahead by more than two standard errors."""
        return self.error is not None and self.mean > 2 * self.error

    @property
    def in_words(self) -> str:
        """For example "+0.31 (-0.10 to +0.72)"."""
        if self.interval is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} ({self.interval[0]:+.2f} to {self.interval[1]:+.2f})"


def cells(rows: Sequence[Row], question: str, arm: str, control: str) -> list[Difference]:
    """The difference of every budget that both arms answer, in every data set and length."""
    measure = QUESTIONS[question].measure
    found: dict[str, list[float]] = {}
    for row, other in _pairs(rows, question, arm, control):
        for budget in row["cells"].keys() & other["cells"].keys():
            where = f"{_where(row)}, {budget}"
            difference = row["cells"][budget][measure] - other["cells"][budget][measure]
            found.setdefault(where, []).append(difference)
    return [Difference(arm, control, where, tuple(found[where])) for where in sorted(found)]


def overall(rows: Sequence[Row], question: str, arm: str, control: str) -> list[Difference]:
    """The difference of the mean over all common budgets, in every data set and length.

    The budgets of a seed are trained together, so only seeds count as independent.
    """
    measure = QUESTIONS[question].measure
    found: dict[str, list[float]] = {}
    for row, other in _pairs(rows, question, arm, control):
        common = row["cells"].keys() & other["cells"].keys()
        if common:
            found.setdefault(_where(row), []).append(
                fmean(row["cells"][one][measure] - other["cells"][one][measure] for one in common)
            )
    return [Difference(arm, control, where, tuple(values)) for where, values in found.items()]


def fronts(rows: Sequence[Row], question: str, arm: str, control: str) -> list[Difference]:
    """The difference in hypervolume, in every data set and length; in percentage points."""
    found: dict[str, list[float]] = {}
    for row, other in _pairs(rows, question, arm, control):
        found.setdefault(_where(row), []).append(row["hypervolume"] - other["hypervolume"])
    return [Difference(arm, control, where, tuple(values)) for where, values in found.items()]


def verdict(differences: Sequence[Difference]) -> bool | None:
    """Whether an arm beats its control over all cells; None if nothing can be said yet.

    It does if it is ahead by more than two standard errors in at least half of the cells, and
    behind by one point or more in none.
    """
    if not differences or any(one.error is None for one in differences):
        return None
    num_ahead = sum(one.is_ahead for one in differences)
    return 2 * num_ahead >= len(differences) and all(one.mean > -1 for one in differences)


def document(rows: Sequence[Row], question: str) -> str:
    """Everything that the rows say about a question, in Markdown."""
    asked = QUESTIONS[question]
    parts = [f"# {asked.title}"]
    own = [row for row in rows if row["question"] == question]
    for where in dict.fromkeys(map(_where, own)):
        here = [row for row in own if _where(row) == where]
        parts += [f"## {where}", _accuracies(here, question)]
    parts += ["## Differences", _differences(rows, question)]
    if asked.has_fronts:
        parts += ["## Differences in hypervolume", _differences_of_fronts(rows, question)]
    measured = {
        "best": "the best of its subnets by validation",
        "first": "the first of its subnets that was chosen",
    }
    parts.append(
        f"A budget is answered by {measured[asked.measure]}; accuracies are on test, in %. "
        "`mean`: of what answers the budgets; `of all subnets`: of all subnets of all budgets. "
        "Differences are in points. Their 95 % intervals are Student's t over the seeds, of the "
        "mean over the budgets that both arms have. Cells are single budgets: ahead means by more "
        "than two standard errors. The verdict is about the cells of all data sets and lengths."
    )
    if asked.has_fronts:
        parts.append(
            "Hypervolume: the share of the rectangle between no cost and the largest that the "
            "budgets allow, and between 0 and 100 % of test accuracy, that the subnets dominate."
        )
    return "\n\n".join(parts) + "\n"


def _accuracies(rows: Sequence[Row], question: str) -> str:
    fullest_first = sorted(rows, key=lambda row: -len(row["cells"]))  # which has all, in order
    budgets = list(dict.fromkeys(budget for row in fullest_first for budget in row["cells"]))
    asked, lines = QUESTIONS[question], []
    measure, front = asked.measure, _FRONT if asked.has_fronts else {}
    for arm in (one.name for one in QUESTIONS[question].arms):
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        values = [
            [row["cells"][budget][measure] for row in own if budget in row["cells"]]
            for budget in budgets
        ]
        shared = [row["overlap"] for row in own if row["overlap"] is not None]
        lines.append(
            [
                arm,
                ", ".join(str(row["seed"]) for row in own),
                f"{fmean(row['num_subnets'] for row in own):g}",
                f"{100 * fmean(shared):.0f}" if shared else NONE,
                *(f"{fmean(found):.2f}" if found else NONE for found in values),
                f"{fmean(fmean(_all(row, measure)) for row in own):.2f}",
                f"{fmean(fmean(_all(row, 'mean')) for row in own):.2f}",
                f"{fmean(fmean(_all(row, 'spread_on_validation')) for row in own):.2f}",
                *(f"{fmean(row[name] for row in own):.2f}" for name in front),
            ]
        )
    heads = ["arm", "seeds", "subnets", "shared, %", *budgets, "mean", "of all subnets", "spread"]
    heads += front.values()
    return table(heads, lines, left=["arm", "seeds"])


def _all(row: Row, name: str) -> list[float]:
    return [cell[name] for cell in row["cells"].values()]


def _differences(rows: Sequence[Row], question: str) -> str:
    lines = []
    for arm, control in QUESTIONS[question].pairs:
        found = cells(rows, question, arm, control)
        says = {None: "not enough seeds", True: "beats it", False: "does not beat it"}
        places = overall(rows, question, arm, control)
        parts = [
            (one.where, one.in_words, [cell for cell in found if _is_of(cell, one)])
            for one in places
        ]
        if len(places) > 1:
            parts.append(("all", "", found))
        for number, (where, difference, own) in enumerate(parts, 1):
            lines.append(
                [
                    arm,
                    control,
                    where,
                    difference,
                    f"{sum(cell.is_ahead for cell in own)} of {len(own)}",
                    f"{min(cell.mean for cell in own):+.2f}",
                    says[verdict(found)] if number == len(parts) else "",
                ]
            )
    heads = ["arm", "control", "where", "difference", "cells ahead", "worst cell", "verdict"]
    return table(heads, lines, left=["arm", "control", "where", "verdict"])


def _is_of(cell: Difference, whole: Difference) -> bool:
    return cell.where.startswith(f"{whole.where}, ")


def _differences_of_fronts(rows: Sequence[Row], question: str) -> str:
    lines = [
        [one.arm, one.control, one.where, one.in_words]
        for pair in QUESTIONS[question].pairs
        for one in fronts(rows, question, *pair)
    ]
    heads = ["arm", "control", "where", "difference"]
    return table(heads, lines, left=["arm", "control", "where"])


def draw(figure: Figure, rows: Sequence[Row], question: str) -> None:
    """The differences with their intervals; for `number`, also accuracy over number of subnets."""
    is_number = question == "number"
    found = [
        one for pair in QUESTIONS[question].pairs for one in overall(rows, question, *pair)
    ]  # fmt: skip
    height = 1.2 + 0.28 * len(found)
    figure.set_size_inches(7.5, height + 3.2 * is_number)
    if is_number:
        above, axes = figure.subplots(2, 1, height_ratios=[3.2, height])
        _draw_numbers(above, rows)
    else:
        axes = figure.subplots()
    for place, one in enumerate(reversed(found)):
        low, high = one.interval or (one.mean, one.mean)
        axes.plot([low, high], [place, place], color=BLUE)
        axes.plot(one.mean, place, "o", color=BLUE)
    axes.axvline(0, color=GREY, linewidth=0.8)
    names = [f"{one.arm} against {one.control}: {one.where}" for one in reversed(found)]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("difference in test top-1, points\n95 % intervals over the seeds")
    figure.tight_layout()


def _draw_numbers(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy of the budget that all arms have, against the number of subnets."""
    own = [row for row in rows if row["question"] == "number"]
    ticks = set[float]()
    for where, (name, style) in product(
        dict.fromkeys(map(_where, own)), (("S", "o-"), ("random", "s--"), ("counts", "^:"))
    ):
        found = [row for row in own if _where(row) == where]
        here = [row for row in found if row["arm"].startswith(f"{name}, ")]
        if not here or len({row["num_subnets"] for row in found}) == 1:  # nothing to compare
            continue
        alone = next((row for row in here if row["arm"].endswith("one subnet")), None)
        if alone is None:  # not trained yet
            continue
        (common, *_) = alone["cells"]
        numbers = sorted({(row["num_subnets"], row["arm"]) for row in here})
        values = [
            fmean(row["cells"][common]["first"] for row in here if row["arm"] == arm)
            for _, arm in numbers
        ]
        axes.plot([number for number, _ in numbers], values, style, label=f"{name}: {where}")
        ticks |= {number for number, _ in numbers}
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [f"{one:g}" for one in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("number of subnets that are trained together")
    axes.set_ylabel("test top-1, % (middle budget)")
    if axes.lines:
        axes.legend(fontsize=7)


def drawing(rows: Sequence[Row], question: str) -> Any:
    """`draw` for `prenas.report.render`."""
    return partial(draw, rows=rows, question=question)


def _pairs(rows: Sequence[Row], question: str, arm: str, control: str) -> list[tuple[Row, Row]]:
    """Rows of an arm and of its control with the same data, length and seed."""

    def of(name: str) -> dict[tuple[object, ...], Row]:
        chosen = (row for row in rows if (row["question"], row["arm"]) == (question, name))
        return {(row["data"], row["epochs"], row["seed"]): row for row in chosen}

    ours, theirs = of(arm), of(control)
    return [(ours[key], theirs[key]) for key in sorted(ours.keys() & theirs.keys())]


def _where(row: Row) -> str:
    return f"{row['data']}, {row['epochs']} epochs"
