"""Ranks ways within a budget, and decides which budgets a front of best ways answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np

from prenas.cost import bounded_names
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.recipe.budgets import Budget
from prenas.selection.front import Ways, best_ways
from prenas.selection.graph import Candidate, Graph

SignedWays = tuple[int, Ways]
"""(1, ways), or (-1, ways whose scores are the negated sums)."""


def finished(graph: Graph, sums: Floats) -> Floats:
    """Turns sums into scores."""
    return graph.tables.finish(sums) if graph.tables.finish else sums


def signs(graph: Graph) -> tuple[int, ...]:
    """Directions to search in: a score with `finish` is highest at the largest or smallest sums."""
    return (1, -1) if graph.tables.finish else (1,)


class Fronts:
    """The best ways of a graph for all budgets that bound a single cost.

    Args:
        num: the largest number of ways that is wanted per budget.
    """

    def __init__(self, graph: Graph, budgets: Sequence[Budget], num: int) -> None:
        self._graph, self._num = graph, num
        self._ways: dict[str, list[SignedWays]] = {}
        for axis, name in enumerate(bounded_names()):
            limits = [b.intervals[name][1] for b in budgets if list(b.intervals) == [name]]
            if limits:
                self._ways[name] = [
                    (sign, best_ways(graph, axis, num, max(limits), sign=sign))
                    for sign in signs(graph)
                ]

    def best(self, budget: Budget) -> list[Candidate] | None:
        """The best candidates of a budget, best first.

        None if the budget bounds several costs, or if a better candidate lies below its lower end,
        because ways inside the budget may then have been dropped.
        """
        if len(budget.intervals) > 1:
            return None
        ((name, (_, limit)),) = budget.intervals.items()
        below = budget._replace(intervals={name: (0, limit)})
        found = ranked(self._graph, self._ways[name], below, self._num)
        return found if all(budget.holds(candidate.cost) for candidate in found) else None


def ranked(graph: Graph, fronts: Iterable[SignedWays], budget: Budget, num: int) -> list[Candidate]:
    """The `num` best ways within a budget, best first."""
    found: dict[tuple[int, ...], tuple[tuple[float, ...], Candidate]] = {}
    for sign, ways in fronts:
        scores = finished(graph, sign * ways.scores)
        for place in _best_places(scores, ways, budget, num).tolist():
            way = ways[place]
            candidate = replace(graph.candidate(way), score=float(scores[place]))
            found[tuple(way)] = budget.preference(candidate.score, candidate.cost), candidate
    # First by edge numbers: positions in the enumeration only compare within one front.
    in_order = sorted(found.items(), key=itemgetter(0))
    ranking = sorted((one for _, one in in_order), key=itemgetter(0))
    return [candidate for _, candidate in ranking[:num]]


def _best_places(scores: Floats, ways: Ways, budget: Budget, num: int) -> Integers:
    inside = np.flatnonzero(budget.contains(ways.costs))
    if len(inside) > num:  # only sort those that can be among the best
        found = scores[inside]
        inside = inside[found >= np.partition(found, -num)[-num]]
    keys = [ways.costs[inside, axis] for axis in reversed(budget.axes_in_order)]
    best: Integers = inside[np.lexsort((ways.order[inside], *keys, -scores[inside]))][:num]
    return best
