"""Budgets beside what a space reaches: its smallest and its largest network."""

from __future__ import annotations

from collections.abc import Sequence

from prenas.cost import bounded_axis, count
from prenas.families.base import SearchSpace
from prenas.recipe.budgets import Budget, parse_budgets


def holds_nothing(budget: Budget, space: SearchSpace) -> bool:
    """Whether a budget lies below the smallest or above the largest network of a space.

    A budget between them may still hold nothing, which only the search finds out.
    """
    least, most = count(space.smallest, space), count(space.largest, space)
    return any(hi <= least[axis] or lo > most[axis] for axis, (lo, hi) in budget.intervals.items())


def limits_nothing(budget: Budget, space: SearchSpace) -> bool:
    """Whether a budget without lower ends holds the largest network, and so every one."""
    return budget.holds(count(space.largest, space)) and all(
        lo == 0 for lo, _ in budget.intervals.values()
    )


def following(texts: Sequence[str], space: SearchSpace) -> tuple[str, ...] | None:
    """As many budgets as the given ones, spread over a space; None if one of those reaches into it.

    They limit the same cost as the first of the given ones, in equal steps from the smallest to
    the largest network.
    """
    budgets = parse_budgets(texts).kept
    if not all(holds_nothing(budget, space) for budget in budgets):
        return None
    name = next(iter(budgets[0].intervals))
    least, most = (count(arch, space)[name] for arch in (space.smallest, space.largest))
    number = len(budgets)
    # Ends and steps are rounded so little that every step still has a part of the range.
    room = (most + 1 - least) // (2 * number * max(number, 10))
    unit: int = 10 ** (len(str(max(room, 1))) - 1)
    start = least // unit * unit
    step = -(-(most + 1 - start) // (number * unit)) * unit
    lo, hi, step_text = map(bounded_axis(name).format, (start, start + number * step, step))
    return (f"{name}={lo}:{hi}:{step_text}",)
