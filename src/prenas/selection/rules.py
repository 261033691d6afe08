"""How many units the layers of a trained network keep, where a rule ties the layers together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

from prenas.cost import bounded_names
from prenas.families.base import Choices, SearchSpace, Stage, StageChoice
from prenas.proxy.tables import SpaceTables
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Candidate

_NUM_SHARES = 1000
"""In how many steps the share of every layer is lowered."""


class Rule(NamedTuple):
    """How the subnet of a budget is found."""

    find: Callable[[SearchSpace, SpaceTables, Budget], Candidate | None]
    """None if no subnet fits the budget."""
    kept: str
    """What its subnets keep, in words."""


def equal_shares(space: SearchSpace, tables: SpaceTables, budget: Budget) -> Candidate | None:
    """The largest subnet in a budget that keeps the same share of the units of every layer.

    Every layer takes the option that is nearest to the share.
    """
    tried = None
    for step in range(_NUM_SHARES, -1, -1):
        choices = tuple(_nearest(stage, step / _NUM_SHARES) for stage in space.chain)
        if choices != tried and (found := _within(choices, tables, budget)):
            return found
        tried = choices
    return None


def _nearest(stage: Stage, share: float) -> StageChoice:
    if not stage.axes:
        return StageChoice(0, 0)
    depth = stage.depths[-1]
    places = [
        min(range(len(axis.options)), key=lambda i: abs(axis.options[i] - wanted))
        for axis in stage.axes
        for wanted in [share * axis.options[-1]]
    ]
    return StageChoice(0, depth, tuple((place,) * depth for place in places))


def uniform_numbers(space: SearchSpace, tables: SpaceTables, budget: Budget) -> Candidate | None:
    """The best subnet in a budget in which every layer keeps the same number of each kind of unit.

    Among equal scores the cheapest, by the costs that the budget limits.
    """
    candidates = (_within(choices, tables, budget) for choices in _uniform(space))
    first, *others = (bounded_names()[number] for number in budget.axes_in_order)

    def rank(one: Candidate) -> tuple[float, ...]:
        return (-one.score, *(one.cost[name] for name in (first, *others)))

    return min(filter(None, candidates), key=rank, default=None)


def _uniform(space: SearchSpace) -> Iterator[Choices]:
    """All choices in which every layer takes the same option of each axis."""
    options = space.uniform_options
    for numbers in product(*options.values()):
        chosen = dict(zip(options, numbers, strict=True))
        yield tuple(_of_numbers(stage, chosen) for stage in space.chain)


def _of_numbers(stage: Stage, chosen: Mapping[str, float]) -> StageChoice:
    depth = stage.depths[-1]
    places = ((axis.options.index(chosen[axis.name]),) * depth for axis in stage.axes)
    return StageChoice(0, depth, tuple(places))


def _within(choices: Choices, tables: SpaceTables, budget: Budget) -> Candidate | None:
    cost = tables.cost(choices)
    if not budget.contains(cost):
        return None
    costs = dict(zip(bounded_names(), map(int, cost), strict=True))
    return Candidate(choices, budget.resolution, costs, tables.score(choices))


RULES: Mapping[str, Rule] = {
    "equal": Rule(equal_shares, "the same share of every layer"),
    "uniform": Rule(uniform_numbers, "equally many units in every layer"),
}
"""Name of an allocation in recipes -> its rule; `best` is the selector's own."""
