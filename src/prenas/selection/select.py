"""The selector: best subnets of every budget, from tables alone (method.md, section 3).

It picks the k best by score with cost in [lo, hi). Ties go to the subnet that is cheaper on the
axes that the budget bounds, then on the others, then to the first in enumeration order; among those
that the integer program answers, to any. A chain of
one stage is listed completely, up to 250,000 classes per width. Otherwise, a front of best ways
answers every budget that bounds one cost, as long as its answers lie above the lower end. Bounds
answer the others, and an integer program those for which too many ways come near the best one.

The k best of different shapes are chosen greedily: first the best subnet, then the best of those
whose shapes are far enough from all that are chosen. Each is found in the same way, in a graph
whose ways keep that distance (`prenas.selection.shapes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prenas.cost import bounded_axes, bounded_names
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.proxy.tables import SpaceTables
from prenas.recipe import Enumeration
from prenas.recipe.budgets import Budget
from prenas.selection.front import TooManyWaysError, Ways, every_way, spread_ways
from prenas.selection.graph import Candidate, Graph, item_graph
from prenas.selection.program import Program, best_by_program
from prenas.selection.ranking import Fronts, finished, ranked
from prenas.selection.shapes import graph_apart, shape_of, steps_from
from prenas.selection.window import Windows
from prenas.values import few_of

Watch = Callable[[], None]


def unwatched() -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Pick:
    """A chosen candidate of one budget."""

    candidate: Candidate
    budget: int
    rank: int
    """0 for the best of its budget."""
    margin: float | None
    """Relative lead in score over the best one not chosen, of those that the next rank could have
    had; None if there was no other."""


class Candidates:
    """The isomer representatives of a space at one resolution."""

    def __init__(self, tables: SpaceTables, enumeration: Enumeration = "all") -> None:
        self.tables = tables
        self._graph = item_graph(tables, enumeration)
        is_listed = self._graph.by_axis == (False,)
        self._listed = every_way(self._graph) if is_listed else None
        self._spread: dict[int, Ways] = {}

    @property
    def scores(self) -> Floats | None:
        """[classes] in enumeration order; None if there are too many to list."""
        return None if self._listed is None else finished(self._graph, self._listed.scores)

    def best(
        self, budgets: Sequence[Budget], num: int, watch: Watch = unwatched
    ) -> list[list[Candidate]]:
        """For each budget, its `num` best candidates, best first."""
        return _best(self._graph, budgets, num, self._listed, watch)

    def apart(
        self, budgets: Sequence[Budget], num: int, distance: int, watch: Watch = unwatched
    ) -> list[list[Candidate]]:
        """For each budget, at most `num` candidates, best first.

        The first is the best of the budget. Each further one is the best of those whose shapes are
        at least `distance` from the shapes of all before it.
        """
        answers = self.best(budgets, 1)
        for budget, found in zip(budgets, answers, strict=True):
            steps = list[Integers]()
            while 0 < len(found) < num:
                shape = shape_of(self.tables, found[-1].choices)
                steps.append(steps_from(self._graph, shape))
                further = self._best_apart(budget, steps, distance)
                if further is None:
                    break
                found.append(further)
            watch()
        return answers

    def _best_apart(
        self, budget: Budget, steps: Sequence[Integers], distance: int
    ) -> Candidate | None:
        """The best candidate of a budget that is at least `distance` steps from some shapes."""
        try:
            graph = graph_apart(self._graph, steps, distance)
        except TooManyWaysError:
            required = [(one, distance) for one in steps]
            return next(iter(best_by_program(self._graph, budget, 1, required)), None)
        if graph is None:
            return None
        listed = None if self._listed is None else every_way(graph)
        return next(iter(_best(graph, [budget], 1, listed)[0]), None)

    def holds_any(self, budget: Budget) -> bool:
        """Whether any candidate fits a budget; scores are ignored."""
        if self._listed is not None:
            return bool(budget.contains(self._listed.costs).any())
        for low, high, (least, most) in zip(*budget.bounds.T, self._ends(), strict=True):
            if most < low or least >= high:
                return False
        axis = bounded_names().index(next(iter(budget.intervals)))
        if axis not in self._spread:
            self._spread[axis] = spread_ways(self._graph, axis)
        if budget.contains(self._spread[axis].costs).any():
            return True
        return Program(self._graph, budget).solve() is not None

    def _ends(self) -> list[tuple[int, int]]:
        """The lowest and the highest amount on each cost axis."""
        graph = self._graph
        return [
            (int(graph.cheapest(axis)[-1]), int(graph.cheapest(axis, most=True)[-1]))
            for axis in range(len(bounded_axes()))
        ]

    def reachable(self) -> str:
        """The range of each cost, as text."""
        return ", ".join(
            f"{axis.name} {axis.number(least)} to {axis.number(most)}"
            for axis, (least, most) in zip(bounded_axes(), self._ends(), strict=True)
        )


def _best(
    graph: Graph,
    budgets: Sequence[Budget],
    num: int,
    listed: Ways | None,
    watch: Watch = unwatched,
) -> list[list[Candidate]]:
    """For each budget, the `num` best ways of a graph; `listed`: all of them, if they are few."""
    if listed is not None:
        return [ranked(graph, [(1, listed)], budget, num) for budget in budgets]
    fronts, windows, answers = Fronts(graph, budgets, num), Windows(graph, num), []
    for budget in budgets:
        found = fronts.best(budget)
        if found is None:
            found = windows.best(budget)
        answers.append(best_by_program(graph, budget, num) if found is None else found)
        watch()
    return answers


def select(
    candidates: Mapping[int | None, Candidates],
    budgets: Sequence[Budget],
    k: int = 1,
    distance: int | None = None,
    watch: Watch = unwatched,
) -> list[Pick]:
    """The k best candidates of every budget, in the order of the budgets.

    Args:
        candidates: resolution -> candidates, for every resolution of the budgets.
        distance: None, or the least distance between the shapes of two candidates of a budget: see
            `Candidates.apart`.
        watch: called after every budget that took more than a look into a list.

    Raises:
        ValueError: no candidate fits any budget; the message gives the range of the space.
    """
    found: dict[int, list[Candidate]] = {}
    for resolution in dict.fromkeys(budget.resolution for budget in budgets):
        numbers = [n for n, budget in enumerate(budgets) if budget.resolution == resolution]
        own, here = [budgets[number] for number in numbers], candidates[resolution]
        if distance is None:
            best = here.best(own, k + 1, watch)
        else:
            best = here.apart(own, k + 1, distance, watch)
        found |= dict(zip(numbers, best, strict=True))
    picks = []
    for number in range(len(budgets)):
        chosen, others = found[number][:k], found[number][k:]
        for rank, candidate in enumerate(chosen):
            margin = None
            if others:
                margin = (candidate.score - others[0].score) / abs(candidate.score or 1.0)
            picks.append(Pick(candidate, number, rank, margin))
    if not picks:
        raise nothing_fits(candidates, budgets)
    return picks


def nothing_fits(
    candidates: Mapping[int | None, Candidates], budgets: Sequence[Budget]
) -> ValueError:
    """The error for budgets that no candidate fits; it gives the range of the space."""
    texts = few_of([*map(str, budgets)])
    which = (
        f"the budget {texts}"
        if len(budgets) == 1
        else f"any of the {len(budgets):,} budgets ({texts})"
    )
    return ValueError(
        f"no subnet fits {which}: this space ranges over {reachable(candidates)}. Change a budget "
        "to lie in this range, or choose another space"
    )


def reachable(candidates: Mapping[int | None, Candidates]) -> str:
    """The range of each cost at every resolution, as text."""
    return "; ".join(
        (f"at resolution {resolution} " if resolution else "") + found.reachable()
        for resolution, found in candidates.items()
    )
