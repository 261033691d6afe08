"""Which resolution a budget has: scores say nothing about it, so it is decided beforehand."""

from __future__ import annotations

from collections.abc import Iterable

from prenas.families.base import SearchSpace
from prenas.proxy.tables import cost_tables
from prenas.recipe import Enumeration
from prenas.recipe.budgets import Budget, Budgets, check_resolutions, parse_budgets
from prenas.selection.select import Candidates


def placed_budgets(
    space: SearchSpace,
    texts: Iterable[str],
    *,
    keep_partial: bool = False,
    enumeration: Enumeration = "all",
) -> Budgets:
    """Budgets from their text form, each at a resolution if the space has several.

    That is the one it names; else of MACs the one that the space's schedule gives for the lower end
    (for the upper one where there is no other), or the next smaller that holds any subnet; else the
    one that is scored.

    Raises:
        ValueError: a text that does not read, or a resolution that the space does not have.
    """
    budgets = parse_budgets(texts, keep_partial=keep_partial)
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
