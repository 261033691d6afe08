"""Budgets and limits: what a subnet may cost, on one cost axis or several at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prenas.cost import (
    BYTES_PER_PARAMETER,
    FILE_SIZE,
    CostAxis,
    bounded_axis,
    bounded_names,
    unknown_axis,
)
from prenas.families.base import SearchSpace
from prenas.proxy.layout import Integers, counts_all
from prenas.values import shortened

_NO_LIMIT = 2**62
_MOST_BUDGETS = 10_000
_SHAPE = (
    "write AXIS=LIMIT, AXIS=LO:HI or AXIS=LO:HI:STEP, separated by commas, "
    "e.g. params=6M or params=5M:12M:1M,macs=1.4G; add resolution=192/224 to choose resolutions"
)


class Budget(NamedTuple):
    """An interval [lo, hi) per limited cost axis; a subnet fits if all its costs lie inside."""

    intervals: dict[str, tuple[int, int]]
    resolution: int | None = None
    """Resolution of all subnets in this budget. None before `prenas.selection.placing` chooses one,
    and in a space without a choice of resolution."""

    def __str__(self) -> str:
        parts = [
            f"{name} in [{axis.format(lo)}, {axis.format(hi)})"
            if lo
            else f"{name} <= {axis.format(hi - 1)}"
            for name, (lo, hi) in self.intervals.items()
            for axis in (bounded_axis(name),)
        ]
        return ", ".join([*parts, *([f"resolution {self.resolution}"] if self.resolution else [])])

    def beside(self, whole: Mapping[str, int]) -> str:
        """The budget for people: rounded, and as shares of the costs of a whole network.

        Such as "192.0 M MACs (50 %)", which is the most that a subnet may cost.
        """
        parts = []
        for name, (low, high) in self.intervals.items():
            axis = bounded_axis(name)
            ends = [high - 1] if low == 0 else [low, high]
            shares = " to ".join(f"{100 * end / whole[name]:.3g}" for end in ends)
            parts.append(f"{' to '.join(map(axis.about, ends))} ({shares} %)")
        return ", ".join([*parts, *([f"resolution {self.resolution}"] if self.resolution else [])])

    def holds(self, cost: Mapping[str, int]) -> bool:
        """Whether a subnet of this cost fits."""
        return all(low <= cost[axis] < high for axis, (low, high) in self.intervals.items())

    def contains(self, costs: Integers) -> npt.NDArray[np.bool_]:
        """[...] whether subnets of these costs [..., cost axes] fit."""
        lower, upper = self.bounds.T
        inside: npt.NDArray[np.bool_] = ((costs >= lower) & (costs < upper)).all(axis=-1)
        return inside

    @property
    def axes_in_order(self) -> list[int]:
        """Indices of the cost axes in the order in which they break ties: limited axes first."""
        names = bounded_names()
        return sorted(range(len(names)), key=lambda axis: names[axis] not in self.intervals)

    def expense(self, cost: Mapping[str, int]) -> tuple[int, ...]:
        """A sort key, smaller for the cheaper subnet; limited axes are compared first."""
        names = bounded_names()
        return tuple(cost.get(names[axis], 0) for axis in self.axes_in_order)

    def preference(self, score: float, cost: Mapping[str, int]) -> tuple[float, ...]:
        """A sort key, smaller for the better subnet: the higher score, then the lower costs."""
        return -score, *self.expense(cost)

    @property
    def bounds(self) -> Integers:
        """[cost axes, 2] lower and upper ends; an axis without a limit gets an open interval."""
        return np.array(
            [self.intervals.get(name, (0, _NO_LIMIT)) for name in bounded_names()], dtype=np.int64
        )


class Budgets(NamedTuple):
    """Parsed budgets, and the intervals of a grid that were left out as shorter than its step."""

    kept: tuple[Budget, ...]
    partial: tuple[Budget, ...]


def parse_budgets(texts: Iterable[str], *, keep_partial: bool = False) -> Budgets:
    """Parses budgets, in order.

    Each text describes one budget or a grid of budgets: `params=6M` (at most 6,000,000),
    `params=5M:6M` (5M <= params < 6M), `params=5M:12M:1M` (seven intervals of 1M),
    `params=6M,macs=1.4G` (both limits at once), `size=24MB` (a file of float32 weights of at most
    24 MB: 6M parameters). `macs=300M,resolution=192/224` is two budgets, one
    for each resolution. If the step of a grid does not divide its range, the shorter last interval
    is left out unless `keep_partial` is set (the original code also never searched 66 to 70 M of
    `base`).

    Raises:
        ValueError: the text cannot be read, or describes too many budgets; the message says why and
            how to write a budget.
    """
    kept: list[Budget] = []
    partial: list[Budget] = []
    for text in texts:
        boxes: list[tuple[dict[str, tuple[int, int]], bool]] = [({}, True)]
        resolutions: list[int | None] = [None]
        grids = 0
        for part in text.split(","):
            axis, _, amounts = (piece.strip() for piece in part.partition("="))
            if not amounts:
                raise ValueError(f"cannot read the budget {text!r}: {_SHAPE}")
            if axis == "resolution":
                if resolutions != [None]:
                    raise ValueError(
                        f"the budget {text!r} gives resolution twice: write both as 192/224"
                    )
                resolutions = [*map(_parse_resolution, amounts.split("/"))]
                continue
            if axis not in (*bounded_names(), FILE_SIZE.name):
                raise unknown_axis("budget axis", axis, (*bounded_names(), "resolution"))
            given, (axis, amounts) = axis, _counted(axis, amounts)
            if axis in boxes[0][0]:
                words = "" if given == axis else f", as {given} stands for {axis}"
                raise ValueError(
                    f"the budget {text!r} limits {axis} twice{words}: give each axis once"
                )
            intervals = _intervals(text, bounded_axis(axis), amounts)
            grids += len(intervals) > 1
            boxes = [
                ({**box, axis: interval}, whole and is_whole)
                for box, whole in boxes
                for interval, is_whole in intervals
            ]
        if grids > 1:
            raise ValueError(
                f"the budget {text!r} has a step on two axes: only one may have a step"
            )
        if not boxes[0][0]:
            raise ValueError(f"the budget {text!r} limits nothing: {_SHAPE}")
        for box, is_whole in boxes:
            found = kept if is_whole or keep_partial else partial
            found += [Budget(box, resolution) for resolution in resolutions]
        if len(kept) + len(partial) > _MOST_BUDGETS:
            raise _too_many(text, len(kept) + len(partial))
    if not kept:
        raise ValueError(f"no budget given: {_SHAPE}")
    return Budgets(tuple(kept), tuple(partial))


def _counted(axis: str, amounts: str) -> tuple[str, str]:
    """An axis and its amounts; sizes of files as the parameters that fit into them."""
    if _axis_named(axis) is not FILE_SIZE:
        return axis, amounts
    sizes = [0 if text.strip() == "0" else FILE_SIZE.parse(text) for text in amounts.split(":")]
    if small := [size for size in sizes if 0 < size < BYTES_PER_PARAMETER]:
        raise ValueError(
            f"the budget {axis}={amounts} has an amount of {small[0]} bytes, less than one "
            f"parameter of {BYTES_PER_PARAMETER}: write more, such as {axis}=5MB"
        )
    if len(sizes) == 1:
        return "params", str(sizes[0] // BYTES_PER_PARAMETER)
    # Of a range, the first size is in it and the last is not.
    return "params", ":".join(str(-(-size // BYTES_PER_PARAMETER)) for size in sizes)


def _axis_named(name: str) -> CostAxis:
    """The axis of amounts in a budget or limit: a bounded one, or the size of files."""
    if name == FILE_SIZE.name and name not in bounded_names():  # somebody may have such an axis
        return FILE_SIZE
    return bounded_axis(name)


def _parse_resolution(text: str) -> int:
    if not re.fullmatch(r"\s*[1-9][0-9]{0,5}\s*", text):
        raise ValueError(f"cannot read the resolution {text!r}: write a number of pixels, e.g. 224")
    return int(text)


def _intervals(text: str, axis: CostAxis, amounts: str) -> list[tuple[tuple[int, int], bool]]:
    """((lo, hi), whether it spans a full step) for one axis of a budget."""
    first, *rest = amounts.split(":")
    if not all(amount.strip() for amount in (first, *rest)):
        raise ValueError(f"cannot read the amount '' in the budget {text!r}: {_SHAPE}")
    lowest = 0 if rest and first.strip() == "0" else axis.parse(first)
    values = [lowest, *map(axis.parse, rest)]
    if len(values) == 1:
        return [((0, values[0] + 1), True)]  # costs are integers, so this means at most the limit
    if len(values) > 3:
        raise ValueError(f"cannot read the budget {text!r}: {_SHAPE}")
    lo, hi = values[:2]
    if lo >= hi:
        raise ValueError(
            f"the budget {text!r} is empty: the lower end must be smaller than the upper end"
        )
    if len(values) == 2:
        return [((lo, hi), True)]
    step = values[2]
    if step > hi - lo:
        raise ValueError(
            f"the budget {text!r} is shorter than one step of {axis.format(step)}: "
            "use a smaller step or a wider range, or write LO:HI for a single interval"
        )
    starts = range(lo, hi, step)
    if len(starts) > _MOST_BUDGETS:
        raise _too_many(text, len(starts))
    return [((start, min(start + step, hi)), start + step <= hi) for start in starts]


def _too_many(text: str, number: int) -> ValueError:
    return ValueError(
        f"the budget {shortened(text)!r} makes {number:,} budgets: at most {_MOST_BUDGETS:,} are "
        "allowed, so use a larger step"
    )


def check_resolutions(budgets: Iterable[Budget], space: SearchSpace) -> None:
    """Raises ValueError, with the choices, if a budget asks for a resolution the space lacks."""
    sides = [side for side in space.resolutions if side is not None]
    for budget in budgets:
        if budget.resolution is not None and budget.resolution not in sides:
            choices = f"choose from {', '.join(map(str, sides))}" if sides else "leave it out"
            raise ValueError(
                f"the budget {budget} asks for a resolution that space {space.name!r} does not "
                "have: "
                f"{choices}"
            )


def check_counted(budgets: Iterable[Budget], space: SearchSpace) -> None:
    """Raises ValueError if a budget limits a cost that nobody measured for this space."""
    for budget in budgets:
        missing = [name for name in budget.intervals if not counts_all(space, bounded_axis(name))]
        if missing:
            raise not_counted(budget, missing[0], f"the space {space.name!r}")


def not_counted(budget: object, name: str, what: str) -> ValueError:
    """The error for a budget that limits a cost of something which no table knows in full."""
    return ValueError(
        f"the budget {budget} limits the {name} of {what}, whose layers are not all in the table: "
        "measure it as it is searched, with the same images and settings (prenas measure)"
    )


Limits = str | Mapping[str, int | str]
"""The most that a subnet may cost: "params=6M,macs=1.4G" or {"params": "6M", "macs": 1_400_000}.

An integer counts what `count` and the costs of evaluations do: bytes, or nanoseconds for latencies.
"""


def parse_limits(limits: Limits | None) -> dict[str, int]:
    """Inclusive limits by name of the cost axis, in the order of the axis table; empty for None.

    Raises:
        ValueError: an unknown cost, a cost that is limited twice, or an unreadable amount.
    """
    pairs = (limits or {}).items() if not isinstance(limits, str) else _limit_pairs(limits)
    found: dict[str, int] = {}
    for given, most in pairs:
        text = most if isinstance(most, str) else f"{most}{_axis_named(given).base_unit}"
        name, amount = _counted(given, text)
        axis = bounded_axis(name)
        if name in found:
            raise ValueError(f"{name} is limited twice: give one limit for each cost")
        found[name] = axis.parse(amount)
    return {name: found[name] for name in bounded_names() if name in found}


def _limit_pairs(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(","):
        name, _, amount = (piece.strip() for piece in part.partition("="))
        if not amount:
            raise ValueError(
                f"cannot read the limit {text!r}: write COST=AMOUNT, separated by commas, "
                "e.g. params=6M or params=6M,macs=1.4G"
            )
        pairs.append((name, amount))
    return pairs
