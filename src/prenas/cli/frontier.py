"""A small plot of accuracy over cost in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from prenas.cli.output import console
from prenas.cost import shown_axes

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Evaluation

_HEIGHT = 9  # lines
_WIDEST = 66  # columns of the plot itself, at most
_NARROWEST = 24
_MARGIN = 9  # columns left of it


class _Range(NamedTuple):
    low: float
    high: float

    def place(self, value: float, size: int) -> int:
        """The cell of a value among `size` cells."""
        span = self.high - self.low
        return round((value - self.low) / span * (size - 1)) if span else (size - 1) // 2


def print_frontier(rows: Sequence[Evaluation], others: Sequence[Evaluation] = ()) -> None:
    """Prints validation accuracy over the first cost, on a terminal that is wide enough.

    Subnets are shown by their number, other networks by a plus; of those that would overlap, only
    the most accurate. Nothing is printed for fewer than three networks.

    Args:
        others: networks that are not subnets of the run.
    """
    networks = [*rows, *others]
    width = min(_WIDEST, console.width - _MARGIN - 1)
    if not console.is_terminal or width < _NARROWEST or len(networks) < 3:
        return
    if any("validation" not in row.splits for row in networks):
        return
    for line in frontier(rows, others, width):
        console.print(line, no_wrap=True)


def frontier(rows: Sequence[Evaluation], others: Sequence[Evaluation], width: int) -> list[str]:
    """The lines of the plot.

    Args:
        width: columns of the plot, without what is written to its left.
    """
    networks = [*rows, *others]
    axis = shown_axes(row.costs for row in networks)[0]
    costs = [row.costs[axis.name] for row in networks]
    shares = [100 * row.splits["validation"].top1 for row in networks]
    across, up = _Range(min(costs), max(costs)), _Range(min(shares), max(shares))
    marks = [str(number) for number in range(len(rows))] + ["+"] * len(others)
    grid = [[" "] * width for _ in range(_HEIGHT)]
    # The most accurate first: of marks that would overlap, that is the one to see.
    for network in sorted(range(len(networks)), key=lambda n: -shares[n]):
        mark = marks[network]
        line = grid[_HEIGHT - 1 - up.place(shares[network], _HEIGHT)]
        left = min(across.place(costs[network], width), width - len(mark))
        around = line[max(0, left - 1) : left + len(mark) + 1]
        if not "".join(around).strip():
            line[left : left + len(mark)] = mark
    labels = {0: f"{up.high:.2f}", _HEIGHT - 1: f"{up.low:.2f}"} if up.high > up.low else {}
    labels = labels or {_HEIGHT // 2: f"{up.low:.2f}"}
    plus = "; + is another network" if others else ""
    low, high = axis.cell(min(costs)), axis.cell(max(costs))
    return [
        f"Validation top-1 in % over {axis.header}; numbers are subnets{plus}",
        *(
            f"{labels.get(place, ''):>{_MARGIN - 2}} |{''.join(line).rstrip()}"
            for place, line in enumerate(grid)
        ),
        " " * (_MARGIN - 1) + "+" + "-" * width,
        " " * _MARGIN + low + high.rjust(width - len(low)),
    ]
