"""Pictures made of cells: the options of every layer of every subnet, and the block scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prenas.report.figure import GREY
from prenas.report.forms import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from prenas.families.base import Arch, LayerAxis, Stage

_CELL = (0.32, 0.27)  # inches, wide and high
_LETTER = 0.075  # inches, at most, for a letter of _FONT points
_FONT = 8
_BOLD_LETTER = 0.095  # likewise in a title
_HEAD, _GAP, _EDGE = 0.44, 0.3, 0.08  # inches: title of a panel, between panels, margin
_WHITE_INK_FROM = 0.78  # shade at which white reads better than black
_MOST_COLUMNS = 36  # of all panels side by side; with more, panels are stacked


class Cell(NamedTuple):
    """One printed value, and its shade between 0 (smallest, light) and 1 (largest, dark)."""

    text: str
    shade: float


class Panel(NamedTuple):
    """One block of cells under a title; None leaves a cell blank."""

    title: str
    rows: tuple[tuple[Cell | None, ...], ...]
    columns: tuple[str, ...]
    """Names of the columns of cells: the layers."""
    heads: tuple[str, ...]
    """Names of the first columns, which contain words."""
    labels: tuple[tuple[str, ...], ...]
    """The words in those columns, per row."""

    @property
    def num_columns(self) -> int:
        """Number of columns of cells."""
        return len(self.columns)


def architecture_panels(archs: Sequence[Arch], axes: Sequence[LayerAxis]) -> list[Panel]:
    """One panel per layer axis: rows are subnets, columns are layers, cells are chosen options.

    Stages are drawn side by side; each has as many columns as its deepest subnet has layers.
    """
    network = [arch.network_options for arch in archs]
    heads = ("subnet", *map(words, network[0]))
    labels = tuple(
        (str(number), *(f"{value:g}" for value in options.values()))
        for number, options in enumerate(network)
    )
    panels = []
    for axis in axes:
        options = [arch.layer_options[axis.name] for arch in archs]
        depths = [max(map(len, stages)) for stages in zip(*options, strict=True)]
        rows = tuple(
            tuple(
                Cell(f"{stage[layer]:g}", _rank(stage[layer], axis.options))
                if layer < len(stage)
                else None
                for stage, depth in zip(stages, depths, strict=True)
                for layer in range(depth)
            )
            for stages in options
        )
        panels.append(Panel(words(axis.name), rows, _columns(depths), heads, labels))
    return panels


def _columns(depths: Sequence[int]) -> tuple[str, ...]:
    """The number of each layer; with several stages, stage and layer, such as 2.1."""
    return tuple(
        f"{number}.{layer}" if len(depths) > 1 else f"{layer}"
        for number, depth in enumerate(depths, start=1)
        for layer in range(1, depth + 1)
    )


def block_score_panels(
    block_scores: Mapping[str, Sequence[Sequence[Sequence[float]]]], stages: Sequence[Stage]
) -> list[Panel]:
    """One panel per axis with a choice: rows are options, columns are layers, cells are gains.

    Gains are printed in % of the largest in their stage, and shaded from smallest to largest. The
    smallest option is left out, because gains are measured from it; so are stages without gains.
    """
    panels = []
    for name, of_stages in block_scores.items():
        columns: list[dict[float, Cell]] = []
        depths = []
        for stage, layers in zip(stages, of_stages, strict=True):
            if stage.depths[-1] == 0:
                continue
            options = next((axis.options for axis in stage.axes if axis.name == name), ())
            values = [gain for layer in layers for gain in layer[1:]]
            low, high = min(values, default=0.0), max(values, default=0.0)
            depths.append(len(layers) if high > 0 else 0)
            for layer in layers[: depths[-1]]:
                cells = (
                    Cell(f"{100 * gain / high:.0f}", (gain - low) / ((high - low) or 1.0))
                    for gain in layer[1:]
                )
                columns.append(dict(zip(options[1:], cells, strict=True)))
        shown = sorted(set().union(*columns))
        if not shown:
            continue
        rows = tuple(tuple(column.get(option) for column in columns) for option in shown)
        labels = tuple((f"{option:g}",) for option in shown)
        panels.append(Panel(words(name), rows, _columns(depths), ("option",), labels))
    return panels


def _rank(option: float, options: Sequence[float]) -> float:
    """Position among the options, from 0 for the smallest to 1 for the largest."""
    return sorted(options).index(option) / max(len(options) - 1, 1)


def draw_panels(figure: Figure, panels: Sequence[Panel]) -> None:
    """Draws panels side by side, or stacked if they would be too wide."""
    is_stacked = sum(panel.num_columns for panel in panels) > _MOST_COLUMNS
    positions: list[tuple[float, float, bool]] = []  # left, top, whether words come first
    x = y = _EDGE
    right = bottom = 0.0
    for panel in panels:
        # The words are not repeated next to a panel with the same rows.
        has_words = is_stacked or panel.labels != panels[0].labels or not positions
        positions.append((x, y, has_words))
        cells = max(panel.num_columns * _CELL[0], _BOLD_LETTER * len(panel.title))
        width = sum(_word_widths(panel)) * has_words + cells
        height = _HEAD + len(panel.rows) * _CELL[1]
        right, bottom = max(right, x + width), max(bottom, y + height)
        x, y = (x, y + height + _GAP) if is_stacked else (x + width + _GAP, y)
    size = right + _EDGE, bottom + _EDGE
    figure.set_size_inches(*size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))  # in inches, downwards
    axes.set_axis_off()
    for panel, position in zip(panels, positions, strict=True):
        _draw_panel(axes, panel, *position)


def _word_widths(panel: Panel) -> list[float]:
    """The width of each column of words, in inches."""
    columns = zip(panel.heads, *panel.labels, strict=True)
    return [_LETTER * max(map(len, column)) + 0.12 for column in columns]


def _draw_panel(axes: Axes, panel: Panel, left: float, top: float, has_words: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    wide, high = _CELL
    middle: dict[str, Any] = {"va": "center", "fontsize": _FONT}
    above = top + _HEAD - 0.1
    if has_words:
        columns = zip(panel.heads, *panel.labels, strict=True)
        for (head, *labels), width in zip(columns, _word_widths(panel), strict=True):
            left += width
            axes.text(left - 0.12, above, head, ha="right", color=GREY, **middle)
            for number, label in enumerate(labels):
                y = top + _HEAD + (number + 0.5) * high
                axes.text(left - 0.12, y, label, ha="right", **middle)
    axes.text(left, top + 0.12, panel.title, va="center", fontsize=9, fontweight="bold")
    for column, name in enumerate(panel.columns):
        x = left + (column + 0.5) * wide
        axes.text(x, above, name, ha="center", color=GREY, **middle)
    for number, row in enumerate(panel.rows):
        for column, cell in enumerate(row):
            if cell is None:
                continue
            x, y = left + column * wide, top + _HEAD + number * high
            # The ends of the colour map are not used: white looks blank, black hides the number.
            colour = colormaps["Blues"](0.12 + 0.68 * cell.shade)
            axes.add_patch(
                Rectangle((x, y), wide, high, facecolor=colour, edgecolor="white", linewidth=1)
            )
            ink = "white" if cell.shade > _WHITE_INK_FROM else "black"
            axes.text(x + wide / 2, y + high / 2, cell.text, ha="center", color=ink, **middle)
