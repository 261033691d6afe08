"""The architectures within a budget: membership by look-up, and random draws without a search.

A narrow budget at the end of a space may contain fewer than one in a million architectures, so
drawing until one fits would take forever. Instead, the paths through the graph of the space are
counted by cost, in steps of the budgeted costs, and drawn backwards from their end. A step may be
coarser than the costs; a path that is outside the budget for this reason is drawn again, so the
probabilities are exact.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from prenas.cost import bounded_axes, bounded_names
from prenas.families.base import Choices, SearchSpace
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.proxy.tables import cost_tables
from prenas.randomness import numpy_generator
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Graph, free_graph
from prenas.selection.program import Program

Weighting = Literal["archs", "genes"]
"""The probabilities within the budget.

With "archs", all architectures are equally likely. With "genes", as in `SearchSpace.sample`, all
options of a choice are equally likely, so that each single deeper architecture is less likely.
"""

_NUM_STEPS = 2**14
"""Number of steps for all budgeted costs together."""

_ATTEMPTS = 100
"""Draws for each wanted architecture before an integer program decides whether there are so many
within the budget."""


class Genes(NamedTuple):
    """The arguments from which `SearchSpace.compose` makes an architecture."""

    choices: Choices
    resolution: int | None = None


class NothingWithinError(ValueError):
    """No architecture is within a budget."""


class Within:
    """The architectures of a space within a budget, at the budget's resolution.

    Raises:
        NothingWithinError: there are none; the message names the budget and the range of the space.
    """

    def __init__(self, space: SearchSpace, budget: Budget, weighting: Weighting = "genes") -> None:
        self._budget, self._tables = budget, cost_tables(space, budget.resolution)
        self._graph = free_graph(self._tables)
        self._steps = _steps(self._graph, budget)
        weights = np.ones(len(self._graph.edges.part))
        counts = _counts(self._graph, self._steps, weights)
        self.num_archs = float(self._ends(counts).sum())
        """How many there are: exact up to rounding, or somewhat too many if steps are coarse."""
        if weighting == "genes" and self.num_archs:
            weights = _chances(self._graph)
            counts = _counts(self._graph, self._steps, weights)
        self._weights, self._counts = weights, counts
        self._end_sums = np.cumsum(self._ends(counts))
        if not self._has_any():
            reachable = ", ".join(
                f"{axis.name} {axis.format(int(self._graph.cheapest(number)[-1]))} to "
                f"{axis.format(int(self._graph.cheapest(number, most=True)[-1]))}"
                for number, axis in enumerate(bounded_axes())
            )
            raise NothingWithinError(
                f"no architecture of space {space.name!r} fits the budget {budget}: choose another "
                f"(--budget); the space ranges over {reachable}"
            )

    def draw(self, generator: np.random.Generator) -> Genes:
        """Draws one, with the probability that the weighting gives it."""
        while True:
            path = self._proposed(generator)
            if self._fits(path):
                candidate = self._graph.candidate(path)
                return Genes(candidate.choices, candidate.resolution)

    def draw_distinct(self, num: int, generator: np.random.Generator) -> list[Genes]:
        """Draws `num` different ones, or all that there are; with equal weights, every set of
        `num` is equally likely."""
        found: dict[Genes, None] = {}
        for _ in range(_ATTEMPTS * min(num, math.ceil(self.num_archs))):
            found[self.draw(generator)] = None
            if len(found) == num:
                return [*found]
        every = self._listed(num)
        if len(every) < num:
            return every
        while len(found) < num:
            found[self.draw(generator)] = None
        return [*found]

    def _listed(self, most: int) -> list[Genes]:
        """Up to `most` different ones: all, if there are no more."""
        program, found = Program(self._graph, self._budget), list[Genes]()
        while len(found) < most and (solution := program.solve()) is not None:
            found.append(Genes(solution.candidate.choices, solution.candidate.resolution))
            program.exclude(solution.way)
        return found

    def __contains__(self, genes: Genes) -> bool:
        cost = self._tables.cost(genes.choices)
        return genes.resolution == self._budget.resolution and bool(self._budget.contains(cost))

    def cost(self, genes: Genes) -> tuple[int, ...]:
        """The costs of any architecture of the space, in the order of `bounded_axes`."""
        return tuple(self._tables.cost(genes.choices).tolist())

    def _has_any(self) -> bool:
        if self.num_archs == 0 or all(step.is_exact for step in self._steps):
            return self.num_archs > 0
        generator = numpy_generator(0, "whether a budget holds any")
        if any(self._fits(self._proposed(generator)) for _ in range(_ATTEMPTS)):
            return True
        return Program(self._graph, self._budget).solve() is not None

    def _fits(self, path: list[int]) -> bool:
        return bool(self._budget.contains(self._graph.edges.cost[path].sum(axis=0)))

    def _ends(self, counts: Floats) -> Floats:
        """Counts at the end of the graph; zero where no path can be within the budget."""
        ends: Floats = counts[-1].copy()
        for number, step in enumerate(self._steps):
            np.moveaxis(ends, number, 0)[: step.first] = 0
        return ends

    def _proposed(self, generator: np.random.Generator) -> list[int]:
        """A path that is within the budget by steps, drawn backwards from the end of the graph."""
        shape = self._counts.shape[1:]
        spent = np.array(np.unravel_index(_drawn(self._end_sums, generator), shape))
        path, node = list[int](), self._graph.end
        while node:
            edges = self._graph.incoming[node]
            before = spent - np.stack([step.of_edge[edges] for step in self._steps], axis=1)
            possible = np.flatnonzero((before >= 0).all(axis=1))
            edges, before = edges[possible], before[possible]
            counts = self._counts[self._graph.edges.tail[edges], *before.T]
            index = _drawn(np.cumsum(self._weights[edges] * counts), generator)
            spent, edge = before[index], int(edges[index])
            path.append(edge)
            node = int(self._graph.edges.tail[edge])
        return path[::-1]


class _Step(NamedTuple):
    """How one budgeted cost is counted: above the cheapest path, in steps rounded down."""

    of_edge: Integers
    """[edges] steps above the cheapest path to the head of the edge."""
    first: int
    """The smallest number of steps of a path within the budget."""
    number: int
    """How many numbers of steps are counted: from 0 to the largest within the budget."""
    is_exact: bool
    """Whether the costs above the cheapest are multiples of the step, so that none is rounded."""


def _steps(graph: Graph, budget: Budget) -> list[_Step]:
    edges, steps = graph.edges, []
    num = round(_NUM_STEPS ** (1 / len(budget.intervals)))
    length = _longest(graph)
    for name, (low, high) in budget.intervals.items():
        axis = bounded_names().index(name)
        cheapest = graph.cheapest(axis)
        least, most = int(cheapest[-1]), int(graph.cheapest(axis, most=True)[-1])
        beyond = edges.cost[:, axis] + cheapest[edges.tail] - cheapest[edges.head]
        unit = math.gcd(*beyond.tolist()) or 1
        span = max(min(high - 1, most) - least, -1)  # above the cheapest, in the budget
        size = -(-(span + 1) // (num * unit)) * unit or unit
        rounded = 0 if size == unit else length * (size - unit)
        first = max(-(-(low - least - rounded) // size), 0)
        steps.append(_Step(beyond // size, first, span // size + 1, size == unit))
    return steps


def _longest(graph: Graph) -> int:
    """Number of edges of the longest path."""
    lengths = np.zeros(graph.end + 1, dtype=np.int64)
    for node, edges in enumerate(graph.incoming[1:], start=1):
        lengths[node] = lengths[graph.edges.tail[edges]].max() + 1
    return int(lengths[-1])


def _counts(graph: Graph, steps: list[_Step], weights: Floats) -> Floats:
    """[nodes, *steps] sums of the weights of all paths to a node, by number of steps."""
    shape = tuple(step.number for step in steps)
    counts = np.zeros((graph.end + 1, *shape))
    if 0 in shape:
        return counts
    counts[(0,) * counts.ndim] = 1.0
    of_edges = np.stack([step.of_edge for step in steps], axis=1)
    for node, edges in enumerate(graph.incoming[1:], start=1):
        for edge in edges:
            taken = of_edges[edge]
            if (taken < shape).all():
                after = tuple(slice(int(one), None) for one in taken)
                before = tuple(
                    slice(0, size - int(one)) for one, size in zip(taken, shape, strict=True)
                )
                at_tail = counts[int(graph.edges.tail[edge])][before]
                counts[node][after] += weights[edge] * at_tail
    return counts


def _chances(graph: Graph) -> Floats:
    """[edges] the probability that `SearchSpace.sample` takes an edge.

    The probability of an architecture is their product: all widths and depths of a stage are
    equally likely, and so are all options of a layer.
    """
    chances = np.ones(len(graph.edges.part))
    for number, (table, parts) in enumerate(zip(graph.tables.stages, graph.parts, strict=True)):
        edges = slice(graph.starts[number], graph.starts[number + 1])
        has_layers = parts.depths[graph.edges.part[edges]] > 0
        of_options = np.where(has_layers, 1 / math.prod(table.num_options), 1.0)
        of_stage = 1 / (table.fixed_scores.shape[1] * len(table.depths))
        ends_stage = ~has_layers | table.is_whole
        chances[edges] = of_options * np.where(ends_stage, of_stage, 1.0)
    return chances


def _drawn(sums: Floats, generator: np.random.Generator) -> int:
    """Draws an index, with a probability in proportion to what it adds to the running sums."""
    return int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))
