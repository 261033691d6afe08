"""The best ways through a graph within a budget, by bounds, for budgets with lower ends.

For any price of a unit of each cost, the best way without a budget, at its score less its price, is
at least as good as every way within the budget (Lagrangian relaxation). With the prices for which
this bound is lowest, few ways come near it. So all ways with a bound above a threshold are listed,
and the threshold is lowered until as many of them as are wanted lie within the budget and above it.
What was left out is worse: the answer is exact, ties included.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prenas.cost import bounded_names
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.recipe.budgets import Budget
from prenas.selection.front import Prune, TooManyWaysError, Ways, signed, walk
from prenas.selection.graph import Candidate, Graph
from prenas.selection.ranking import ranked, signs

_MOST_WAYS = 2_000_000
"""To look at before a node: as many take 100 MB and half a second."""
_ROUNDING = 1e-9
"""Relative to the largest sum: what the order of additions may change in a bound."""
_MOST_PRICES = 60
"""To try per cost. The price that gives the lowest bound usually is among the first ten."""
_ROUNDS = 3
"""How often the price of each cost is improved, if a budget bounds several."""

Limits = dict[int, tuple[int, int]]
"""Number of a cost axis -> the least and the most that a way may cost."""


class Windows:
    """The best ways of a graph for budgets that bound any costs.

    Args:
        num: the largest number of ways that is wanted per budget.
    """

    def __init__(self, graph: Graph, num: int) -> None:
        self._graph, self._num = graph, num
        self._sides = [(sign, _Side(signed(graph, sign))) for sign in signs(graph)]

    def best(self, budget: Budget) -> list[Candidate] | None:
        """The best candidates of a budget, best first; None if too many ways come near them."""
        limits = {
            bounded_names().index(name): (low, high - 1)
            for name, (low, high) in budget.intervals.items()
        }
        try:
            found = [(sign, side.best(limits, self._num)) for sign, side in self._sides]
        except TooManyWaysError:
            return None
        return ranked(self._graph, found, budget, self._num)


class _Side:
    """Searches for the highest sums of scores in one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._pairs = graph, _Pairs(graph)
        axes = range(graph.edges.cost.shape[1])
        self._least = [graph.cheapest_rest(axis) for axis in axes]
        self._most = [graph.cheapest_rest(axis, most=True) for axis in axes]
        largest = self._pairs.best_to_end(np.abs(graph.edges.score))[0]
        self._slack = self._rounding = _ROUNDING * float(largest)

    def best(self, limits: Limits, num: int) -> Ways:
        """Ways that include the `num` best of those within the limits.

        Raises:
            TooManyWaysError: too many ways come near the best one.
        """
        edges, pairs = self._graph.edges, self._pairs
        prices = self._prices(limits)
        values = edges.score - edges.cost @ prices
        # What the prices of a way within the limits amount to at most.
        most = sum(prices[axis] * limits[axis][int(prices[axis] > 0)] for axis in limits)
        to_end, from_start = pairs.best_to_end(values), pairs.best_from_start(values)
        through = from_start[edges.tail] + values + to_end[edges.head]
        spread = float(to_end[0] + pairs.best_to_end(-values)[0])
        slack = self._slack
        while True:
            least = float(to_end[0]) - slack - self._rounding

            def bound(
                node: int, costs: Integers, scores: Floats, least: float = least
            ) -> npt.NDArray[np.bool_]:
                may: npt.NDArray[np.bool_] = scores - costs @ prices + to_end[node] >= least
                for axis, (low, high) in limits.items():
                    may &= costs[:, axis] + self._least[axis][node] <= high
                    may &= costs[:, axis] + self._most[axis][node] >= low
                return may

            ways = walk(
                self._graph, _best_per_cost(num), bound, in_use=through >= least, most=_MOST_WAYS
            )
            num_sure = np.count_nonzero(ways.scores >= to_end[0] + most - slack)
            if num_sure >= num or slack >= spread:
                break
            slack *= 2
        self._slack = max(min(slack, spread) / 2, self._rounding)  # the next budget is often alike
        return ways

    def _prices(self, limits: Limits) -> Floats:
        """[cost axes] prices of a unit for which the bound is low; 0 for costs without limits."""
        prices = np.zeros(self._graph.edges.cost.shape[1])
        for _ in range(_ROUNDS if len(limits) > 1 else 1):
            for axis, ends in limits.items():
                prices[axis] = 0.0
                prices[axis] = self._price(prices, axis, ends)
        return prices

    def _price(self, prices: Floats, axis: int, ends: tuple[int, int]) -> float:
        """The price on one axis for which the bound is lowest, given those on the others.

        The bound is a convex function of the price, made of one straight line per way. At its
        lowest point, the line of a way beyond the limits meets that of one that is not.
        """
        edges, (low, high) = self._graph.edges, ends
        cost, least, most = edges.cost[:, axis], self._least[axis][0], self._most[axis][0]
        values = edges.score - edges.cost @ prices

        def best(price: float) -> tuple[int, float]:
            way = self._pairs.best_way(values - price * cost)
            return int(cost[way].sum()), float(values[way].sum())

        beyond = best(0.0)
        if low <= beyond[0] <= high or least > high or most < low or least == most:
            return 0.0
        is_dear = beyond[0] > high

        def is_beyond(amount: int) -> bool:
            return amount > high if is_dear else amount < low

        price = float(np.ptp(values) + self._rounding) / float(most - least)
        price = price if is_dear else -price
        for _ in range(_MOST_PRICES):
            inside = best(price)
            if not is_beyond(inside[0]):
                break
            beyond, price = inside, 2 * price
        for _ in range(_MOST_PRICES):
            price = (beyond[1] - inside[1]) / (beyond[0] - inside[0] or 1)
            found = best(price)
            if found[1] - price * found[0] <= inside[1] - price * inside[0] + self._rounding:
                break
            if is_beyond(found[0]):
                beyond = found
            else:
                inside = found
        return price


def _best_per_cost(num: int) -> Prune:
    """Keeps the `num` best of the labels that cost the same on every axis."""

    def prune(costs: Integers, scores: Floats, orders: Integers) -> Integers:
        if len(scores) <= num:
            return np.arange(len(scores))
        by_cost = np.lexsort((orders, -scores, *costs.T))
        is_other = np.any(costs[by_cost[1:]] != costs[by_cost[:-1]], axis=1)
        starts = np.concatenate([[0], np.flatnonzero(is_other) + 1])
        lengths = np.diff(np.append(starts, len(scores)))
        kept: Integers = by_cost[np.arange(len(scores)) - np.repeat(starts, lengths) < num]
        return kept

    return prune


class _Pairs:
    """The edges of a graph by the nodes that they join."""

    def __init__(self, graph: Graph) -> None:
        edges, self._end = graph.edges, graph.end
        self._order = np.lexsort((edges.head, edges.tail))
        tails, heads = edges.tail[self._order], edges.head[self._order]
        is_other = (tails[1:] != tails[:-1]) | (heads[1:] != heads[:-1])
        self._starts = np.concatenate([[0], np.flatnonzero(is_other) + 1])
        self._tails, self._heads = tails[self._starts].tolist(), heads[self._starts].tolist()

    def _best(self, values: Floats) -> list[float]:
        """The highest value of an edge of each pair."""
        found: list[float] = np.maximum.reduceat(values[self._order], self._starts).tolist()
        return found

    def best_to_end(self, values: Floats) -> Floats:
        """[nodes] the highest sum of values [edges] of any way from each node to the end."""
        return np.array(self._ways_to_end(values)[0])

    def best_from_start(self, values: Floats) -> Floats:
        """[nodes] the highest sum of values [edges] of any way from the first node to each."""
        found = [0.0] + [-np.inf] * self._end
        for tail, head, value in zip(self._tails, self._heads, self._best(values), strict=True):
            found[head] = max(found[head], found[tail] + value)
        return np.array(found)

    def best_way(self, values: Floats) -> Integers:
        """The edges of the way with the highest sum of values [edges]."""
        _, pairs = self._ways_to_end(values)
        way, node = list[int](), 0
        while node != self._end:
            pair = pairs[node]
            edges = self._order[self._starts[pair] : self._stop(pair)]
            way.append(int(edges[np.argmax(values[edges])]))
            node = self._heads[pair]
        return np.array(way)

    def _stop(self, pair: int) -> int:
        is_last = pair + 1 == len(self._starts)
        return len(self._order) if is_last else int(self._starts[pair + 1])

    def _ways_to_end(self, values: Floats) -> tuple[list[float], list[int]]:
        """For each node, the highest sum to the end and the pair that a way of this sum takes."""
        best = self._best(values)
        found, pairs = [-np.inf] * self._end + [0.0], [0] * (self._end + 1)
        for pair in range(len(best) - 1, -1, -1):
            tail = self._tails[pair]
            if (value := best[pair] + found[self._heads[pair]]) > found[tail]:
                found[tail], pairs[tail] = value, pair
        return found, pairs
