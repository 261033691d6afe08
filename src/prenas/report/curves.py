"""Plots: accuracy over cost; loss, learning rate and accuracy over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from prenas.cost import CostAxis, shown_axes, size_axis
from prenas.report.figure import BLUE, GREY, VERMILION
from prenas.report.intervals import wilson_interval
from prenas.values import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

    from prenas.evaluation.accuracy import Evaluation, Metrics
    from prenas.runs.log import EpochRecord, ValidationRecord


class _Look(NamedTuple):
    marker: str
    line: str
    colour: str
    shift: float
    """In points, so that bars of equal cost are drawn side by side."""


_LOOKS = {
    "validation": _Look("s", ":", BLUE, -2),
    "test": _Look("o", "-", VERMILION, 2),
}
_MOST_MARKED_EPOCHS = 40
_LETTERS_PER_PANEL = 55  # that fit next to each other above a panel


def draw_accuracy(
    figure: Figure,
    rows: Sequence[Evaluation],
    *,
    others: Sequence[tuple[str, Evaluation]] = (),
    title: str | None = None,
) -> None:
    """Draws top-1 over every cost, per split, with 95 % intervals.

    Subnets of nearly equal cost share a label above the panel. The lines of both splits pass
    through the best of each such group on validation, because test must not choose.

    Args:
        others: networks that are not subnets of the run, by name. Their markers are hollow.
    """
    from matplotlib.transforms import ScaledTranslation

    shown = shown_axes(row.costs for row in (*rows, *(row for _, row in others)))
    figure.set_size_inches(4.5 * len(shown), 3.9)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    looks = {split: look for split, look in _LOOKS.items() if split in rows[0].splits}
    for axes, cost in zip(panels, shown, strict=True):
        costs = [float(row.costs[cost.name]) for row in rows]
        beside = [float(row.costs[cost.name]) for _, row in others]
        low, high = min(costs + beside), max(costs + beside)
        margin = 0.06 * (high - low) or 0.1 * costs[0]
        axes.set_xlim(low - margin, high + margin)
        groups = grouped(costs, (high - low + 2 * margin) / _LETTERS_PER_PANEL)
        leaders = [max(g, key=lambda n: rows[n].splits["validation"].top1) for g in groups]
        for split, look in looks.items():
            shifted = axes.transData + ScaledTranslation(look.shift / 72, 0, figure.dpi_scale_trans)
            _draw_split(axes, costs, [row.splits[split] for row in rows], leaders, look, shifted)
            axes.plot([], [], look.marker + look.line, color=look.colour, label=split)
            if others:
                found = [row.splits[split] for _, row in others]
                _draw_points(axes, beside, found, look, shifted, markerfacecolor="white")
        _name_others(axes, beside, others)
        _name_on_top(axes, costs, groups)
        axes.set_xlabel(" ".join(filter(None, [cost.noun, cost.per])))
        axes.xaxis.set_major_formatter(partial(_tick, cost))
    panels[0].set_ylabel("top-1 accuracy, %")
    handles, splits = panels[0].get_legend_handles_labels()
    figure.legend(handles, splits, loc="outside lower center", ncols=len(splits))
    if title is not None:
        # Nothing in it is a formula or a control character, which an SVG could not contain.
        figure.suptitle(printable(title, keeps=""), parse_math=False)


def _tick(cost: CostAxis, amount: float, position: int | None = None) -> str:
    return cost.tick(amount)


def _draw_split(
    axes: Axes,
    costs: Sequence[float],
    results: Sequence[Metrics],
    leaders: Sequence[int],
    look: _Look,
    shifted: Transform,
) -> None:
    leading = [100 * results[n].top1 for n in leaders]
    xs = [costs[n] for n in leaders]
    axes.plot(xs, leading, look.line, color=look.colour, transform=shifted)
    _draw_points(axes, costs, results, look, shifted)


def _draw_points(
    axes: Axes,
    costs: Sequence[float],
    results: Sequence[Metrics],
    look: _Look,
    shifted: Transform,
    **marked: Any,
) -> None:
    """Draws a marker and an interval for every result."""
    style: dict[str, Any] = {"color": look.colour, "transform": shifted}
    shares = [100 * metrics.top1 for metrics in results]
    bars = [[100 * end for end in wilson_interval(metrics)] for metrics in results]
    axes.plot(costs, shares, look.marker, **style, **marked)
    lows, highs = zip(*bars, strict=True)
    axes.vlines(costs, lows, highs, alpha=0.6, linewidth=1, **style)
    # Matplotlib does not widen the view for shifted lines.
    axes.update_datalim(
        [(cost, end) for cost, ends in zip(costs, bars, strict=True) for end in ends]
    )
    axes.autoscale_view(scalex=False)


def grouped(xs: Sequence[float], letter: float) -> list[list[int]]:
    """Groups the points from left to right, so that their labels do not overlap.

    Args:
        letter: the width of a letter on the axis.
    """
    groups = [[number] for number in sorted(range(len(xs)), key=lambda number: xs[number])]
    while True:
        for left, right in pairwise(groups):
            letters = (len(ranges(left)) + len(ranges(right))) / 2 + 1
            if _middle(xs, right) - _middle(xs, left) < letters * letter:
                groups[groups.index(left)] = left + right
                groups.remove(right)
                break
        else:
            return groups


def ranges(numbers: Sequence[int]) -> str:
    """Abbreviates numbers: 0-2, 4."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _middle(xs: Sequence[float], group: Sequence[int]) -> float:
    return sum(xs[number] for number in group) / len(group)


def _name_others(
    axes: Axes, costs: Sequence[float], others: Sequence[tuple[str, Evaluation]]
) -> None:
    """Writes the names of networks next to their validation accuracy, towards the middle.

    From left to right below and above in turn, because neighbours are often similar.
    """
    middle = sum(axes.get_xlim()) / 2
    pairs = sorted(zip(costs, others, strict=True), key=lambda pair: pair[0])
    for place, (cost, (name, row)) in enumerate(pairs):
        side, gap = ("left", 6) if cost < middle else ("right", -6)
        axes.annotate(
            printable(name, keeps=""),
            (cost, 100 * row.splits["validation"].top1),
            (gap, 7 if place % 2 else -7),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7,
            color=GREY,
            parse_math=False,
        )


def _name_on_top(axes: Axes, costs: Sequence[float], groups: Sequence[Sequence[int]]) -> None:
    """Writes the numbers of the subnets above the panel, where they hide nothing."""
    top = axes.secondary_xaxis("top")
    top.set_xticks([_middle(costs, group) for group in groups], list(map(ranges, groups)))
    top.tick_params(length=3, color=GREY, labelcolor=GREY)
    top.spines["top"].set_visible(False)
    top.set_xlabel("subnet", color=GREY)


def draw_training(
    figure: Figure,
    epochs: Sequence[EpochRecord],
    num_planned: int,
    validations: Sequence[ValidationRecord] = (),
) -> None:
    """Draws the mean loss of each finished epoch, its last learning rate, and any accuracies."""
    figure.set_size_inches(9, 3)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 3 if validations else 2)
    xs = [record.epoch + 1 for record in epochs]
    for axes, name, label, colour in zip(
        panels[:2], ("loss", "lr"), ("training loss", "learning rate"), (BLUE, GREY), strict=True
    ):
        ys = [getattr(record, name) for record in epochs]
        axes.plot(xs, ys, color=colour, marker=_marker(xs), markersize=3.5, linewidth=1.4)
        axes.set_ylabel(label)
        if name == "lr":
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    if validations:
        _draw_validations(panels[2], validations)
        names = panels[2].get_legend_handles_labels()
        figure.legend(*names, title="subnet", loc="outside right center")
    last = max(num_planned, *xs, *(record.epoch + 1 for record in validations))
    for axes in panels:
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")


def _draw_validations(axes: Axes, validations: Sequence[ValidationRecord]) -> None:
    """Draws a line per subnet, darker for larger ones, and dotted for averaged weights."""
    from matplotlib import colormaps

    size = size_axis().name
    sizes = {record.subnet: record.costs[size] for record in validations}
    ranked = sorted(sizes, key=lambda subnet: sizes[subnet])
    named = set()
    lines = {(record.subnet, record.weights) for record in validations}
    for subnet, weights in sorted(lines, key=lambda line: (line[0], line[1] != "trained")):
        found = [r for r in validations if (r.subnet, r.weights) == (subnet, weights)]
        xs = [record.epoch + 1 for record in found]
        axes.plot(
            xs,
            [100 * record.top1 for record in found],
            "-" if weights == "trained" else ":",
            color=colormaps["viridis_r"](0.1 + 0.9 * ranked.index(subnet) / len(ranked)),
            marker=_marker(xs),
            markersize=3.5,
            linewidth=1.4,
            label=None if subnet in named else str(subnet),
        )
        named.add(subnet)
    axes.set_ylabel("validation top-1, %")


def _marker(xs: Sequence[int]) -> str | None:
    return "o" if len(xs) <= _MOST_MARKED_EPOCHS else None
