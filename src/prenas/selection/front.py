"""The best ways through a graph, found with labels: cost so far, score so far, previous label.

Two ways that meet at a node have the same continuations. So a way can be dropped once as many
others as are wanted cost no more and score no less. The ways left at the end answer every budget
that bounds this one cost from above (method.md, section 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.selection.graph import Graph


class _Labels(NamedTuple):
    """Ways from the first node to one node."""

    cost: Integers
    """[labels, cost axes]"""
    score: Floats
    order: Integers
    """Positions in the enumeration of all ways to nodes between the same stages."""
    edge: Integers
    """The last edge."""
    before: Integers
    """Index of the label that this one extends, at the tail of the edge."""

    def chosen(self, places: Integers) -> _Labels:
        return _Labels._make(column[places] for column in self)


Prune = Callable[[Integers, Floats, Integers], Integers]
"""(costs, scores, orders) of the labels at one node -> indices of the labels to keep."""

Bound = Callable[[int, Integers, Floats], npt.NDArray[np.bool_]]
"""(node, costs, scores) of the labels at a node -> whether each may end as a way that is wanted."""


class TooManyWaysError(Exception):
    """A walk was given up because a node has more labels than it may look at."""


@dataclass(frozen=True)
class Ways:
    """Ways through a graph from its first node to its end."""

    graph: Graph
    _labels: tuple[_Labels, ...]

    @property
    def costs(self) -> Integers:
        """[ways, cost axes]"""
        return self._labels[-1].cost

    @property
    def scores(self) -> Floats:
        """[ways] sums of scores, before `finish`."""
        return self._labels[-1].score

    @property
    def order(self) -> Integers:
        """[ways] numbers that rise in the order of enumeration."""
        return self._labels[-1].order

    def __getitem__(self, place: int) -> list[int]:
        """The edges of a way."""
        way, node = list[int](), self.graph.end
        while node:
            labels = self._labels[node]
            edge = int(labels.edge[place])
            way.append(edge)
            node, place = int(self.graph.edges.tail[edge]), int(labels.before[place])
        return way[::-1]


def every_way(graph: Graph) -> Ways:
    """All ways, for a chain of one stage or a small space."""
    return walk(graph, None)


def best_ways(graph: Graph, axis: int, num: int, limit: int, *, sign: int = 1) -> Ways:
    """Ways that include, for any upper end up to `limit`, the `num` best that cost less than it.

    Args:
        axis: number of the cost axis that is bounded.
        sign: -1 treats the lowest scores as the best, and returns the negated scores.
    """
    graph = signed(graph, sign)
    rest = graph.cheapest_rest(axis)

    def bound(node: int, costs: Integers, scores: Floats) -> npt.NDArray[np.bool_]:
        return np.asarray(costs[:, axis] + rest[node] < limit)

    def prune(costs: Integers, scores: Floats, orders: Integers) -> Integers:
        return _front(costs, scores, orders, axis, num)

    return walk(graph, prune, bound)


def signed(graph: Graph, sign: int) -> Graph:
    """The graph itself, or with sign -1 one whose best ways are those of the lowest scores."""
    if sign > 0:
        return graph
    return replace(graph, edges=graph.edges._replace(score=-graph.edges.score))


def spread_ways(graph: Graph, axis: int, num: int = 4096) -> Ways:
    """Ways of up to about `num` different costs, to find out which costs a space reaches."""
    step = int(graph.cheapest(axis, most=True)[graph.end]) // num + 1

    def prune(costs: Integers, scores: Floats, orders: Integers) -> Integers:
        return np.unique(costs[:, axis] // step, return_index=True)[1]

    return walk(graph, prune)


def walk(
    graph: Graph,
    prune: Prune | None,
    bound: Bound | None = None,
    *,
    in_use: npt.NDArray[np.bool_] | None = None,
    most: int | None = None,
) -> Ways:
    """Extends the labels of every node along its edges.

    It prunes at all nodes except the last, so it never prunes a chain of one stage.

    Args:
        bound: leaves out labels at every node.
        in_use: [edges] whether to follow each edge; None: all of them.
        most: the largest number of labels to look at before a node is pruned.

    Raises:
        TooManyWaysError: a node has more than `most` labels.
    """
    zero = np.zeros(1, dtype=np.int64)
    first = _Labels(
        np.zeros((1, graph.edges.cost.shape[1]), np.int64), np.zeros(1), zero, zero, zero
    )
    labels, stage = [first], list[int]()  # `stage`: the nodes after the current stage
    for node, edges in enumerate(graph.incoming[1:], start=1):
        if stage and graph.edges.tail[edges].max() >= stage[0]:
            _rank(labels, stage)
            stage = []
        followed = edges if in_use is None else edges[in_use[edges]]
        found = _extended(graph, labels, followed, prune if node < graph.end else None, most)
        if bound is not None:
            found = found.chosen(np.flatnonzero(bound(node, found.cost, found.score)))
        if prune is not None and node < graph.end:
            found = found.chosen(prune(found.cost, found.score, found.order))
        labels.append(found)
        stage.append(node)
    _rank(labels, stage)
    return Ways(graph, tuple(labels))


def _extended(
    graph: Graph, labels: list[_Labels], edges: Integers, prune: Prune | None, most: int | None
) -> _Labels:
    """Extends every label at the tails of the given edges, which have one head, by one edge."""
    longer = [labels[0].chosen(np.arange(0))]
    tails = graph.edges.tail[edges]
    number = 0
    for tail in np.unique(tails):
        start, along = labels[tail], edges[tails == tail]
        if prune is not None:  # between the same nodes, a worse edge is worse after any label
            along = along[prune(graph.edges.cost[along], graph.edges.score[along], along)]
        size = len(start.score), len(along)
        number += size[0] * size[1]
        if most is not None and number > most:
            raise TooManyWaysError
        cost = start.cost[:, None] + graph.edges.cost[along]
        score = start.score[:, None] + graph.edges.score[along]
        order = start.order[:, None] * len(graph.edges.part) + along
        edge = np.broadcast_to(along, size)
        before = np.broadcast_to(np.arange(size[0])[:, None], size)
        flat = (column.reshape(-1) for column in (score, order, edge, before))
        longer.append(_Labels._make((cost.reshape(-1, cost.shape[-1]), *flat)))
    return _Labels._make(map(np.concatenate, zip(*longer, strict=True)))


def _rank(labels: list[_Labels], nodes: list[int]) -> None:
    """Replaces the orders of the labels at these nodes with their ranks, to keep them small."""
    orders = np.concatenate([labels[node].order for node in nodes])
    ranks = np.empty_like(orders)
    ranks[np.argsort(orders)] = np.arange(len(orders))
    start = 0
    for node in nodes:
        number = len(labels[node].order)
        labels[node] = labels[node]._replace(order=ranks[start : start + number])
        start += number


def _front(costs: Integers, scores: Floats, orders: Integers, axis: int, num: int) -> Integers:
    """Indices of the labels that fewer than `num` others dominate, and perhaps a few more.

    A label dominates another if it costs no more and scores no less. Between equals, the one that
    is cheaper on the other axes dominates, then the one that comes first.
    """
    by_cost = np.argsort(costs[:, axis])
    near = by_cost[_peeled(scores[by_cost], num, keeps_equal=True)]  # quick; the next is exact
    others = [costs[near, other] for other in reversed(range(costs.shape[1])) if other != axis]
    exact = np.lexsort((orders[near], *others, -scores[near], costs[near, axis]))
    ordered = near[exact]
    kept: Integers = ordered[_peeled(scores[ordered], num, keeps_equal=False)]
    return kept


def _peeled(scores: Floats, num: int, *, keeps_equal: bool) -> Integers:
    """Indices at which a score is the highest so far; then, without these, again, `num` times.

    Every index left out comes after `num` scores that are as high or, with `keeps_equal`, higher.
    """
    left, kept = np.arange(len(scores)), []
    for _ in range(num):
        found = scores[left]
        if len(found) == 0:
            break
        highest = np.maximum.accumulate(found)
        if keeps_equal:
            is_highest = found >= highest
        else:
            is_highest = np.concatenate([[True], found[1:] > highest[:-1]])
        kept.append(left[is_highest])
        left = left[~is_highest]
    return np.concatenate(kept) if kept else left
