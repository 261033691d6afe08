"""Subnets as ways through a graph: every way from its first node to its last one is a subnet.

Nodes lie between stages, one for each width there. An edge is one choice for what comes next, with
what it adds to cost and score. Neighbouring stages share only the width between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from prenas.cost import bounded_axes, bounded_names
from prenas.families.base import Choices, StageChoice
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.proxy.tables import SpaceTables, StageTable
from prenas.recipe import Enumeration
from prenas.selection.isomers import stage_items


@dataclass(frozen=True)
class Candidate:
    """One subnet: its choices, its costs and its score."""

    choices: Choices
    resolution: int | None
    cost: dict[str, int]
    score: float


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
    parts: tuple[Integers, ...]
    """Per stage [parts, layers]: options of the layers that a part adds, -1 for no layer."""
    edges: _Edges
    starts: tuple[int, ...]
    """Number of the first edge of each stage, followed by the number of edges."""
    end: int
    """The last node, at which every way ends."""

    def stage_of(self, edge: int) -> int:
        """The stage that an edge belongs to."""
        return int(np.searchsorted(self.starts, edge, side="right")) - 1

    def candidate(self, way: Sequence[int]) -> Candidate:
        """The subnet of a way, given as its edges; its score is the sum before `finish`."""
        options: list[list[int]] = [[] for _ in self.parts]
        widths = [0] * len(self.parts)
        cost, score = np.zeros(len(bounded_axes()), dtype=np.int64), 0.0
        for edge in way:
            stage = self.stage_of(edge)
            found = self.parts[stage][self.edges.part[edge]]
            options[stage] += found[found >= 0].tolist()
            widths[stage] = int(self.edges.width[edge])
            cost = cost + self.edges.cost[edge]
            score += float(self.edges.score[edge])
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

    def cheapest_rest(self, axis: int) -> Integers:
        """[nodes] the least that any way from each node to the end costs."""
        found = np.full(self.end + 1, np.iinfo(np.int64).max // 2)
        found[self.end] = 0
        for node in range(self.end, 0, -1):
            edges = self.incoming[node]
            rest = found[node] + self.edges.cost[edges, axis]
            np.minimum.at(found, self.edges.tail[edges], rest)
        return found


def _per_axis(table: StageTable, numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    if not table.num_options:
        return ()
    per_axis = np.unravel_index(np.array(numbers, dtype=np.int64), table.num_options)
    return tuple(tuple(axis.tolist()) for axis in per_axis)


def item_graph(tables: SpaceTables, enumeration: Enumeration = "all") -> Graph:
    """One edge per stage, width before, width and item: ways are the classes of isomers.

    Edges are in the order of enumeration: by the width before, the width, the item.
    """
    drawing = _Drawing(tables)
    for table in tables.stages:
        drawing.add_items(table, stage_items(table, enumeration))
    return drawing.finished()


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
        self._parts: list[Integers] = []
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
        self._close(items, heads)

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
        self._close(np.array([*range(number), -1])[:, None], heads)

    def finished(self) -> Graph:
        """The complete graph."""
        edges = _Edges._make(map(np.concatenate, zip(*self._edges, strict=True)))
        return Graph(self._tables, tuple(self._parts), edges, tuple(self._starts), self._last_node)

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

    def _close(self, parts: Integers, heads: list[int]) -> None:
        self._parts.append(parts)
        self._starts.append(sum(len(edges.part) for edges in self._edges))
        self._before = heads
