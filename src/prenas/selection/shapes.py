"""Subnets of different shapes: graphs whose ways keep away from shapes that are taken.

The shape of a subnet is the width and the depth of every stage. Two shapes are as far apart as the
sum of the steps between their widths and depths, counted in the lists of options (method.md,
section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from prenas.families.base import Choices
from prenas.proxy.layout import Integers
from prenas.proxy.tables import SpaceTables
from prenas.selection.front import TooManyWaysError
from prenas.selection.graph import Graph

SubnetShape = tuple[tuple[int, int], ...]
"""Per stage, the indices of the width and of the depth in the lists of options."""

_MOST_EDGES = 2**22
"""Of a graph that counts distances; as many take 300 MB."""


def shape_of(tables: SpaceTables, choices: Choices) -> SubnetShape:
    """The shape of a subnet."""
    return tuple(
        (choice.width, table.depths.index(choice.depth))
        for table, choice in zip(tables.stages, choices, strict=True)
    )


def steps_from(graph: Graph, shape: SubnetShape) -> Integers:
    """[edges] steps from a shape: the sum over the edges of a way is its distance."""
    edges, steps = graph.edges, np.zeros(len(graph.edges.part), dtype=np.int64)
    entries: Integers = np.zeros(1, dtype=np.int64)  # the nodes at which a stage begins
    for number, (table, parts) in enumerate(zip(graph.tables.stages, graph.parts, strict=True)):
        own = slice(graph.starts[number], graph.starts[number + 1])
        tail, head = edges.tail[own], edges.head[own]
        depths = parts.depths[edges.part[own]]
        width, depth = shape[number]
        apart = np.abs(edges.width[own] - width)
        apart += np.abs(np.searchsorted(table.depths, depths) - depth)
        # All edges of a way through a stage know its width and depth: the first one counts.
        steps[own] = np.where(np.isin(tail, entries), apart, 0)
        entries = np.setdiff1d(head, tail)
    return steps


def graph_apart(graph: Graph, steps: Sequence[Integers], least: int) -> Graph | None:
    """A graph whose ways are those of another one that are far enough from all given shapes.

    A node of it is a node of the other graph together with the distances so far, as far as they
    matter. Edges are in the same order. None if there is no such way.

    Args:
        steps: `steps_from` each of the shapes.
        least: the least distance from each of them.

    Raises:
        TooManyWaysError: the graph would have more than four million edges.
    """
    of_edges = np.stack(steps, axis=1)
    states = [np.zeros((1, len(steps)), dtype=np.int64)]  # per node: [states, shapes] distances
    first = [0]  # per node, the number of its first state among all states of all nodes
    olds, tails, heads = (list[Integers]() for _ in range(3))
    for node, edges in enumerate(graph.incoming[1:], start=1):
        first.append(first[-1] + len(states[-1]))
        along = np.repeat(edges, [len(states[tail]) for tail in graph.edges.tail[edges]])
        if sum(map(len, olds)) + len(along) > _MOST_EDGES:
            raise TooManyWaysError
        sizes = np.array([len(found) for found in states])[graph.edges.tail[edges]]
        place = np.arange(len(along)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        tail = np.array(first)[graph.edges.tail[along]] + place
        reached = np.minimum(np.concatenate(states)[tail] + of_edges[along], least)
        if node == graph.end:
            is_far = (reached == least).all(axis=1)
            along, tail, reached = along[is_far], tail[is_far], reached[is_far]
        found, state = np.unique(reached, axis=0, return_inverse=True)
        states.append(found)
        olds.append(along)
        tails.append(tail)
        heads.append(first[-1] + state.reshape(-1))
    if len(states[-1]) == 0:
        return None
    old, tail, head = (np.concatenate(columns) for columns in (olds, tails, heads))
    return _copied(graph, old, tail, head, num_nodes=first[-1] + 1)


def _copied(graph: Graph, old: Integers, tail: Integers, head: Integers, num_nodes: int) -> Graph:
    """The graph of copies of edges between new nodes, without nodes that lead nowhere."""
    leads = _lead_to_end(tail, head, num_nodes)
    kept = np.flatnonzero(leads[head])
    kept = kept[np.lexsort((tail[kept], old[kept]))]
    number = np.cumsum(leads) - 1
    edges = graph.edges
    copies = edges._replace(
        tail=number[tail[kept]],
        head=number[head[kept]],
        **{name: getattr(edges, name)[old[kept]] for name in ("width", "cost", "score", "part")},
    )
    starts = tuple(np.searchsorted(old[kept], graph.starts).tolist())
    return replace(graph, edges=copies, starts=starts, end=int(number[-1]))


def _lead_to_end(tail: Integers, head: Integers, num_nodes: int) -> npt.NDArray[np.bool_]:
    """[nodes] whether any way from each node reaches the last one."""
    leads = np.zeros(num_nodes, dtype=bool)
    leads[-1] = True
    order = np.argsort(head)
    ends = np.searchsorted(head[order], np.arange(num_nodes + 1))
    for node in range(num_nodes - 1, 0, -1):
        if leads[node]:
            leads[tail[order[ends[node] : ends[node + 1]]]] = True
    return leads
