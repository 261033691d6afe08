"""Subnets as ways through a graph: every way from its first node to its last one is a subnet.

Nodes lie between stages, one for each width there. An edge is one choice for what comes next, with
what it adds to cost and score. Neighbouring stages share only the width between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prenas.cost import bounded_axes, bounded_names
from prenas.families.base import Choices, StageChoice
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.proxy.tables import SpaceTables, StageTable
from prenas.recipe import Enumeration
from prenas.selection.allocations import Allocations
from prenas.selection.isomers import axis_items, num_items, stage_items

MOST_ITEMS = 250_000
"""Classes of isomers of a stage of given width that are listed one by one: with their options and
costs they take some 50 MB."""


@dataclass(frozen=True)
class Candidate:
    """One subnet: its choices, its costs and its score."""

    choices: Choices
    resolution: int | None
    cost: dict[str, int]
    score: float
    is_proven: bool = True
    """False if the search was stopped before it was certain that none is better."""


@dataclass(frozen=True)
class Items:
    """Parts of a stage that each hold all that is known of some layers."""

    options: Integers
    """[parts, layers] numbers of the layers' options, -1 for no layer."""

    def of(self, part: int) -> Integers:
        """[layers] the options of a part."""
        row: Integers = self.options[part]
        return row

    @property
    def depths(self) -> Integers:
        """[parts] number of layers."""
        found: Integers = np.count_nonzero(self.options >= 0, axis=1)
        return found


@dataclass(frozen=True)
class Additions:
    """Parts of a stage that each say what one axis of one class of layers adds to the numbers of
    the options of all layers. The layers are told apart only when a part is asked for."""

    blocks: tuple[tuple[int, Allocations], ...]
    """Depth of the stage, and the ways to add something to it; parts are numbered through all."""

    def of(self, part: int) -> Integers:
        """[layers] what a part adds."""
        sizes = np.cumsum([len(found) for _, found in self.blocks])
        block = int(np.searchsorted(sizes, part, side="right"))
        depth, found = self.blocks[block]
        added = np.zeros(depth, dtype=np.int64)
        way = part - int(sizes[block]) + len(found)
        added[list(found.layers)] = found.numbers(np.array([way]))
        return added

    @property
    def depths(self) -> Integers:
        """[parts] number of layers."""
        return np.repeat(*np.array([(depth, len(found)) for depth, found in self.blocks]).T)


class _Edges(NamedTuple):
    tail: Integers
    """[edges] nodes; their numbers are lower than those of the heads."""
    head: Integers
    width: Integers
    """Index of the stage's width."""
    cost: Integers
    """[edges, cost axes]"""
    score: Floats
    part: Integers
    """Index of the stage's part that an edge adds."""


@dataclass(frozen=True)
class Graph:
    """The subnets of a space at one resolution; nodes are numbers from 0 to `end`."""

    tables: SpaceTables
    parts: tuple[Items | Additions, ...]
    """Per stage, what its edges say about layers."""
    edges: _Edges
    starts: tuple[int, ...]
    """Number of the first edge of each stage, followed by the number of edges."""
    end: int
    """The last node, at which every way ends."""

    @property
    def by_axis(self) -> tuple[bool, ...]:
        """Per stage, whether the edges of a way each say something about all layers."""
        return tuple(isinstance(parts, Additions) for parts in self.parts)

    def stage_of(self, edge: int) -> int:
        """The stage that an edge belongs to."""
        return int(np.searchsorted(self.starts, edge, side="right")) - 1

    def candidate(self, way: Sequence[int]) -> Candidate:
        """The subnet of a way, given as its edges; its score is the sum before `finish`."""
        found: list[list[Integers]] = [[] for _ in self.parts]
        widths = [0] * len(self.parts)
        cost, score = np.zeros(len(bounded_axes()), dtype=np.int64), 0.0
        for edge in way:
            stage = self.stage_of(edge)
            found[stage].append(self.parts[stage].of(int(self.edges.part[edge])))
            widths[stage] = int(self.edges.width[edge])
            cost = cost + self.edges.cost[edge]
            score += float(self.edges.score[edge])
        options = []
        for parts, adds_up in zip(found, self.by_axis, strict=True):
            numbers = np.sum(parts, axis=0) if adds_up else np.concatenate(parts)
            options.append(numbers[numbers >= 0].tolist())
        choices = tuple(
            StageChoice(width, len(numbers), _per_axis(table, numbers))
            for table, width, numbers in zip(self.tables.stages, widths, options, strict=True)
        )
        costs = dict(zip(bounded_names(), cost.tolist(), strict=True))
        return Candidate(choices, self.tables.resolution, costs, score)

    @cached_property
    def incoming(self) -> tuple[Integers, ...]:
        """For each node, the edges that lead to it, in order."""
        order = np.argsort(self.edges.head, kind="stable")
        places = np.searchsorted(self.edges.head[order], np.arange(self.end + 2))
        return tuple(order[first:last] for first, last in pairwise(places))

    def cheapest(self, axis: int, *, most: bool = False) -> Integers:
        """[nodes] the least, or the most, that any way from the first node to each node costs."""
        found = np.zeros(self.end + 1, dtype=np.int64)
        best = np.max if most else np.min
        for node, edges in enumerate(self.incoming[1:], start=1):
            found[node] = best(found[self.edges.tail[edges]] + self.edges.cost[edges, axis])
        return found

    def most(self, values: Floats) -> float:
        """The highest sum of values [edges] of any way from the first node to the end."""
        found = np.zeros(self.end + 1)
        for node, edges in enumerate(self.incoming[1:], start=1):
            found[node] = np.max(found[self.edges.tail[edges]] + values[edges])
        return float(found[self.end])

    def cheapest_rest(self, axis: int, *, most: bool = False) -> Integers:
        """[nodes] the least, or the most, that any way from each node to the end costs."""
        best, worst = (np.maximum, -1) if most else (np.minimum, np.iinfo(np.int64).max // 2)
        found = np.full(self.end + 1, worst)
        found[self.end] = 0
        for node in range(self.end, 0, -1):
            edges = self.incoming[node]
            rest = found[node] + self.edges.cost[edges, axis]
            best.at(found, self.edges.tail[edges], rest)
        return found


def _per_axis(table: StageTable, numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    if not table.num_options:
        return ()
    per_axis = np.unravel_index(np.array(numbers, dtype=np.int64), table.num_options)
    return tuple(tuple(axis.tolist()) for axis in per_axis)


def item_graph(tables: SpaceTables, enumeration: Enumeration = "all") -> Graph:
    """A graph whose ways are the classes of isomers.

    It has one edge per stage, width before, width and item. If these are more than `MOST_ITEMS` in
    a stage in which the axes of a layer cost and score independently, it has one edge for what each
    axis adds, one after another. Edges are in the order of enumeration: by the width before, the
    width, the item.

    Raises:
        ValueError: the published enumeration leaves no item in a stage, or there are too many.
    """
    drawing = _Drawing(tables)
    for table in tables.stages:
        if num_items(table, enumeration) > MOST_ITEMS and _is_sum(table):
            drawing.add_axes(table, enumeration)
        else:
            drawing.add_items(table, stage_items(table, enumeration))
    return drawing.finished()


def _is_sum(table: StageTable) -> bool:
    """Whether each axis of a layer adds its own cost and score, whatever the others have."""
    if table.is_whole or len(table.num_options) < 2:
        return False
    layers = table.scores.shape[:3]
    costs = table.costs.reshape(*layers, *table.num_options, -1)
    scores = table.scores.reshape(*layers, *table.num_options, 1)
    tolerance = 1e-9 * float(np.abs(scores).max(initial=0))
    return bool((costs == _sum_of_axes(costs)).all()) and np.allclose(
        scores, _sum_of_axes(scores), rtol=0, atol=tolerance
    )


def _sum_of_axes(found: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What [before, width, layers, axis, axis, ..., kinds] would be if the axes added up."""
    places = range(3, found.ndim - 1)
    base = found
    for place in places:
        base = base.take([0], axis=place)
    alone = []
    for own in places:
        one = found
        for place in places:
            one = one if place == own else one.take([0], axis=place)
        alone.append(one - base)
    return sum(alone, base)


def free_graph(tables: SpaceTables) -> Graph:
    """A graph whose ways are all subnets; layers that are not tied have one edge per option."""
    drawing = _Drawing(tables)
    for table in tables.stages:
        if table.is_whole:
            drawing.add_items(table, stage_items(table, "all"))
        else:
            drawing.add_layers(table)
    return drawing.finished()


class _Drawing:
    """Builds a graph stage by stage."""

    def __init__(self, tables: SpaceTables) -> None:
        self._tables = tables
        self._parts: list[Items | Additions] = []
        self._edges: list[_Edges] = []
        self._starts = [0]
        self._last_node = 0
        self._before = [0]  # the nodes before the next stage

    def add_items(self, table: StageTable, items: Integers) -> None:
        """Adds a stage whose edges each contain all of its layers."""
        # An item's -1 takes the padded last entry: a missing layer costs and scores nothing.
        layer_costs = np.pad(table.costs, [(0, 0), (0, 0), (0, 0), (0, 1), (0, 0)])
        layer_scores = np.pad(table.scores, [(0, 0), (0, 0), (0, 0), (0, 1)])
        costs = np.repeat(table.fixed_costs[:, :, None], len(items), axis=2)
        scores = np.repeat(table.fixed_scores[:, :, None], len(items), axis=2)
        for layer, options in enumerate(items.T):
            costs += layer_costs[:, :, layer, options]
            scores += layer_scores[:, :, layer, options]
        heads = self._heads(table)
        for before, width in np.ndindex(table.fixed_scores.shape):
            tail, head = self._before[before], heads[width]
            parts = np.arange(len(items))
            self._add(tail, head, costs[before, width], scores[before, width], width, parts)
        self._close(Items(items), heads)

    def add_axes(self, table: StageTable, enumeration: Enumeration) -> None:
        """Adds a stage with an edge for each class of layers and axis, one after another.

        Nodes lie between them, level by level: as many for every depth, so that ways to the nodes
        of a level compare. The last edge of a way adds nothing; the ways to its tail are pruned.
        """
        num_before, num_widths = table.fixed_scores.shape
        levels = [(depth, axis_items(table, depth, enumeration)) for depth in table.depths]
        levels = [(depth, found) for depth, found in levels if all(map(len, found))]
        ends = list(np.ndindex(num_before, num_widths))
        tails = [self._before[before] for before, _ in ends for _ in levels]
        added, num_added = list[tuple[int, Allocations]](), 0
        heads: list[int] = []
        entries = np.concatenate([table.costs, table.scores[..., None]], axis=-1)
        for level in range(len(levels[0][1])):
            if level + 1 < len(levels[0][1]):
                inner = self._nodes(len(tails))
            else:
                heads = self._heads(table)
                inner = [heads[width] for _, width in ends for _ in levels]
            own = [found[level] for _, found in levels]
            sums = [one.sums(np.moveaxis(entries, (2, 3), (0, 1))) for one in own]
            places = num_added + np.cumsum([0, *map(len, own)])
            nodes = iter(zip(tails, inner, strict=True))
            for before, width in ends:
                for (depth, _), found, first in zip(levels, sums, places, strict=False):
                    costs = np.rint(found[:, before, width, :-1]).astype(np.int64)
                    scores = found[:, before, width, -1]
                    if level == 0:
                        costs = costs + table.fixed_costs[before, width]
                        costs = costs + table.costs[before, width, :depth, 0].sum(axis=0)
                        scores = scores + table.fixed_scores[before, width]
                        scores = scores + table.scores[before, width, :depth, 0].sum()
                    parts = first + np.arange(len(found))
                    self._add(*next(nodes), costs, scores, width, parts)
            added += [(depth, one) for (depth, _), one in zip(levels, own, strict=True)]
            num_added = int(places[-1])
            tails = inner
        self._close(Additions(tuple(added)), heads)

    def add_layers(self, table: StageTable) -> None:
        """Adds a stage whose edges each contain one layer, or end the stage."""
        num_before, num_widths, deepest, number = table.scores.shape
        inner = iter(self._nodes(num_before * num_widths * deepest))
        heads = self._heads(table)
        options, ends = np.arange(number), np.array([number])
        nothing = np.zeros((1, len(bounded_axes())), dtype=np.int64), np.zeros(1)
        for before, width in np.ndindex(num_before, num_widths):
            fixed_cost = table.fixed_costs[before, width]
            fixed_score = table.fixed_scores[before, width]
            tail = self._before[before]
            if 0 in table.depths:
                costs, scores = fixed_cost[None], fixed_score[None]
                self._add(tail, heads[width], costs, scores, width, ends)
            for layer in range(deepest):
                costs, scores = (
                    table.costs[before, width, layer],
                    table.scores[before, width, layer],
                )
                if layer == 0:
                    costs, scores = costs + fixed_cost, scores + fixed_score
                node = next(inner)
                self._add(tail, node, costs, scores, width, options)
                tail = node
                if layer + 1 in table.depths:
                    self._add(tail, heads[width], *nothing, width, ends)
        self._close(Items(np.array([*range(number), -1])[:, None]), heads)

    def finished(self) -> Graph:
        """The complete graph."""
        edges = _Edges._make(map(np.concatenate, zip(*self._edges, strict=True)))
        return Graph(
            self._tables,
            tuple(self._parts),
            edges,
            tuple(self._starts),
            self._last_node,
        )

    def _nodes(self, number: int) -> list[int]:
        self._last_node += number
        return list(range(self._last_node - number + 1, self._last_node + 1))

    def _heads(self, table: StageTable) -> list[int]:
        """The nodes after a stage: one per width, but only one node after the last stage."""
        num_widths = int(table.fixed_scores.shape[1])
        if len(self._parts) < len(self._tables.stages) - 1:
            return self._nodes(num_widths)
        return self._nodes(1) * num_widths

    def _add(
        self, tail: int, head: int, costs: Integers, scores: Floats, width: int, parts: Integers
    ) -> None:
        """Adds one edge per part between the same two nodes."""
        tails, heads, widths = (np.full(len(parts), one) for one in (tail, head, width))
        self._edges.append(_Edges(tails, heads, widths, costs, scores, parts))

    def _close(self, parts: Items | Additions, heads: list[int]) -> None:
        self._parts.append(parts)
        self._starts.append(sum(len(edges.part) for edges in self._edges))
        self._before = heads
