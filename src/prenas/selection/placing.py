"""Gives each budget a resolution before the search, because scores do not depend on it."""

from __future__ import annotations

from collections.abc import Iterable

from prenas.families.base import SearchSpace
from prenas.proxy.tables import cost_tables
from prenas.recipe import Enumeration
from prenas.recipe.budgets import Budget, Budgets, check_counted, check_resolutions, parse_budgets
from prenas.selection.select import Candidates


def placed_budgets(
    space: SearchSpace,
    texts: Iterable[str],
    *,
    keep_partial: bool = False,
    enumeration: Enumeration = "all",
) -> Budgets:
    """Reads budgets from text and gives each a resolution if the space has several.

    A budget may name its resolution. Otherwise, a budget in MACs gets the one from the space's
    schedule for its lower end (its upper end if it has no lower one), or the next smaller
    resolution at which any subnet fits. All other budgets get the scored resolution.

    Raises:
        ValueError: a text is not a budget, the space does not have its resolution, or a cost that
            it limits is not known.
    """
    budgets = parse_budgets(texts, keep_partial=keep_partial)
    check_counted(budgets.kept, space)
    place = _Places(space, enumeration).place
    return Budgets(tuple(map(place, budgets.kept)), tuple(map(place, budgets.partial)))


class _Places:
    def __init__(self, space: SearchSpace, enumeration: Enumeration) -> None:
        self._space, self._enumeration = space, enumeration
        self._candidates: dict[int | None, Candidates] = {}

    def place(self, budget: Budget) -> Budget:
        sides = [side for side in self._space.resolutions if side is not None]
        check_resolutions([budget], self._space)
        if len(sides) < 2:
            return budget._replace(resolution=None)
        if budget.resolution is not None:
            return budget
        if "macs" not in budget.intervals:
            return budget._replace(resolution=self._space.scored_resolution)
        low, high = budget.intervals["macs"]
        wanted = self._space.resolution_for(low or high - 1)
        assert wanted is not None, f"a schedule of resolutions {sides} without an answer"
        places = [budget._replace(resolution=side) for side in sides if side <= wanted]
        fitting = (place for place in reversed(places) if self._holds_any(place))
        return next(fitting, places[-1])

    def _holds_any(self, budget: Budget) -> bool:
        side = budget.resolution
        if side not in self._candidates:
            tables = cost_tables(self._space, side)
            self._candidates[side] = Candidates(tables, self._enumeration)
        return self._candidates[side].holds_any(budget)
