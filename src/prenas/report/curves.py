"""Pictures over a number: accuracy over cost, loss and learning rate over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prenas.report.figure import BLUE, GREY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prenas.evaluation import Evaluation, Metrics
    from prenas.runlog import EpochRecord

_SPLITS = (
    # split, marker, line, colour, shift in points: bars of equal costs stand side by side
    ("validation", "s", ":", BLUE, -2),
    ("test", "o", "-", VERMILION, 2),
)
_MOST_MARKED_EPOCHS = 40


def wilson_interval(metrics: Metrics) -> tuple[float, float]:
    """95 % Wilson score interval of top-1, two shares: what a split of this size leaves open."""
    from scipy.stats import binomtest

    hits = round(metrics.top1 * metrics.num_images)
    interval = binomtest(hits, metrics.num_images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def draw_accuracy(figure: Figure, rows: Sequence[Evaluation], *, title: str | None = None) -> None:
    """Top-1 over parameters and over multiply-accumulates, per split, with 95 % intervals."""
    from matplotlib.ticker import EngFormatter
    from matplotlib.transforms import ScaledTranslation

    figure.set_size_inches(9, 3.9)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost, label in zip(
        panels, ("params", "macs"), ("parameters", "MACs per image"), strict=True
    ):
        costs = [getattr(row, cost) for row in rows]
        for split, marker, line, colour, shift in _SPLITS:
            points = sorted(
                (x, 100 * row.splits[split].top1, *wilson_interval(row.splits[split]))
                for x, row in zip(costs, rows, strict=True)
                if split in row.splits
            )
            if not points:
                continue
            xs, ys, lows, highs = zip(*points, strict=True)
            place = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
            axes.plot(
                xs, ys, marker=marker, linestyle=line, color=colour, label=split, transform=place
            )
            bars = [[100 * end for end in ends] for ends in (lows, highs)]
            axes.vlines(xs, *bars, color=colour, alpha=0.6, linewidth=1, transform=place)
            axes.update_datalim(list(zip(xs * 2, [*bars[0], *bars[1]], strict=True)))
        axes.margins(x=0.06, y=0.08)
        axes.autoscale_view()
        _name_on_top(axes, costs)
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel("top-1 accuracy, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_SPLITS)
    )
    if title is not None:
        figure.suptitle(title)


def merged_labels(xs: Sequence[float], least_gap: float) -> list[tuple[float, str]]:
    """(place, text) of the numbers of points; those nearer than the gap share one label."""
    groups: list[list[int]] = []
    for number in sorted(range(len(xs)), key=lambda number: (xs[number], number)):
        if groups and xs[number] - xs[groups[-1][-1]] < least_gap:
            groups[-1].append(number)
        else:
            groups.append([number])
    return [
        (sum(xs[number] for number in group) / len(group), ", ".join(map(str, group)))
        for group in groups
    ]


def _name_on_top(axes: Axes, costs: Sequence[float]) -> None:
    """Numbers of the subnets above the panel, where they hide nothing."""
    low, high = axes.get_xlim()
    labels = merged_labels(costs, 0.035 * (high - low))
    top = axes.secondary_xaxis("top")
    top.set_xticks([place for place, _ in labels], [text for _, text in labels])
    top.tick_params(length=3, color=GREY, labelcolor=GREY)
    top.spines["top"].set_visible(False)
    top.set_xlabel("subnet", color=GREY)


def draw_training(figure: Figure, epochs: Sequence[EpochRecord], num_planned: int) -> None:
    """Mean loss of each finished epoch, and the learning rate at its end."""
    figure.set_size_inches(9, 3)
    figure.set_layout_engine("constrained")
    marker = "o" if len(epochs) <= _MOST_MARKED_EPOCHS else None
    xs = [record.epoch + 1 for record in epochs]
    for axes, name, label, colour in zip(
        figure.subplots(1, 2),
        ("loss", "lr"),
        ("training loss", "learning rate"),
        (BLUE, GREY),
        strict=True,
    ):
        ys = [getattr(record, name) for record in epochs]
        axes.plot(xs, ys, color=colour, marker=marker, markersize=3.5, linewidth=1.4)
        axes.set_xlim(0.5, max(num_planned, *xs) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if name == "lr":
            axes.set_ylim(bottom=0)
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
