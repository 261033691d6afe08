"""Allocations: which of the interchangeable layers of a stage get which option of one axis.

Of the allocations with equal numbers of layers per option, one is kept. From the largest option
down, an option goes to free layers: to those that gain the most from it, or evenly spread over them
(method.md, section 3). So what an allocation costs and scores follows from what is left free by the
options before, and is added up without listing the layers of every allocation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.proxy.tables import StageTable
from prenas.recipe import Enumeration

_Flags = npt.NDArray[np.bool_]

Takes = Callable[[int], _Flags]
"""Number of free layers n -> [n + 1, n]: which of them, in the order of the rule, take an option
that 0, 1, ..., n of them take."""


def count_vectors(num_layers: int, num_options: int, enumeration: Enumeration) -> Integers:
    """All numbers of layers per option, as counts [ways, options] that sum to num_layers.

    They are ordered by the cut points `0 <= c1 <= c2 ... <= num_layers`: c1 layers get the largest
    option, c2 - c1 the next smaller one, and so on. The published enumeration has strictly rising
    cut points.
    """
    step = 1 if enumeration == "published" else 0
    cuts, last = np.zeros((1, 0), dtype=np.int64), np.array([-step])
    for _ in range(num_options - 1):
        first = last + step
        number = np.maximum(num_layers + 1 - first, 0)
        rows = np.repeat(np.arange(len(cuts)), number)
        last = first[rows] + np.arange(len(rows)) - np.repeat(np.cumsum(number) - number, number)
        cuts = np.column_stack([cuts[rows], last])
    edges = np.pad(cuts, [(0, 0), (1, 0)])
    edges = np.pad(edges, [(0, 0), (0, 1)], constant_values=num_layers)
    return np.diff(edges, axis=1)[:, ::-1]


def allocate(gains: Floats, counts: Integers) -> Integers:
    """The option of every layer [ways, layers] for counts [ways, options].

    From the largest option down, an option goes to the free layers with the highest gain; ties
    go to the earlier layer. `gains` has the shape [layers, options].
    """
    return _allocated(_by_gain(gains), _first, counts)


def allocate_evenly(num_layers: int, counts: Integers) -> Integers:
    """The option of every layer [ways, layers] for counts [ways, options], without gains.

    From the largest option down: of n free layers, the c that take an option are those in the
    middles of c equal parts, numbers floor((2 i + 1) n / (2 c)) for i = 0 .. c - 1, counted from 0.
    """
    return _allocated(_in_order(num_layers, counts.shape[1]), _spread, counts)


def _by_gain(gains: Floats) -> Integers:
    """[options, layers] the layers in the order in which they take an option."""
    order: Integers = np.argsort(-gains, axis=0, kind="stable").T
    return order


def _in_order(num_layers: int, num_options: int) -> Integers:
    return np.tile(np.arange(num_layers), (num_options, 1))


def _first(num_free: int) -> _Flags:
    return np.tri(num_free + 1, num_free, -1, dtype=bool)


def _spread(num_free: int) -> _Flags:
    takes = np.zeros((num_free + 1, num_free), dtype=bool)
    for number in range(1, num_free + 1):
        takes[number, (2 * np.arange(number) + 1) * num_free // (2 * number)] = True
    return takes


def _allocated(orders: Integers, takes: Takes, counts: Integers) -> Integers:
    num_options, num_layers = orders.shape
    choice = np.zeros((len(counts), num_layers), dtype=np.int64)
    is_free = np.ones(choice.shape, dtype=bool)
    for option in range(num_options - 1, 0, -1):
        taken = _taken(is_free, orders[option], takes, counts[:, option])
        choice[taken] = option
        is_free &= ~taken
    return choice


def _taken(is_free: _Flags, order: Integers, takes: Takes, numbers: Integers) -> _Flags:
    """[ways, layers] which free layers take an option that `numbers` [ways] of them take."""
    taken, num_free = np.zeros_like(is_free), np.count_nonzero(is_free, axis=1)
    for number in np.unique(num_free).tolist():
        ways = np.flatnonzero(num_free == number)
        free = _free_layers(is_free[ways], order, number)
        np.put_along_axis(found := taken[ways], free, takes(number)[numbers[ways]], axis=1)
        taken[ways] = found
    return taken


def _free_layers(is_free: _Flags, order: Integers, number: int) -> Integers:
    """[ways, number] the free layers of ways that all have this number of them, in an order."""
    free: Integers = order[np.nonzero(is_free[:, order])[1]]
    return free.reshape(len(is_free), number)


@dataclass(frozen=True)
class Allocations:
    """All allocations of the options of one axis to one class of a stage's layers."""

    table: StageTable
    layers: Sequence[int]
    """None, if the axis adds nothing."""
    axis: int
    counts: Integers
    """[ways, options]"""

    def __len__(self) -> int:
        return len(self.counts)

    def numbers(self, ways: slice | Integers = np.s_[:]) -> Integers:
        """[ways, layers of the class] what the axis adds to the numbers of the layers' options."""
        return _allocated(*self._rule, self.counts[ways]) * self._stride

    def sums(self, entries: Floats) -> Floats:
        """[ways, ...] what the ways add to the sum over layers of entries [layers, options, ...].

        This is in comparison with option 0 of all layers.

        Args:
            entries: of all layers of the stage and of all their options.
        """
        num_options, num_layers = self.counts.shape[1], len(self.layers)
        own = entries[list(self.layers)][:, self._stride * np.arange(num_options)]
        own = own - own[:, :1]
        orders, takes = self._rule
        # Ways that give the larger options to as many layers share a row of these.
        is_free, sums = np.ones((1, num_layers), dtype=bool), np.zeros((1, *own.shape[2:]))
        row = np.zeros(len(self), dtype=np.int64)
        for option in range(num_options - 1, 0, -1):
            first, next_row = _groups(self.counts[:, option:])
            before, numbers = row[first], self.counts[first, option]
            sums = (
                sums[before]
                + _gained(is_free, orders[option], takes, own[:, option])[before, numbers]
            )
            if option > 1:
                free = is_free[before]
                is_free = free & ~_taken(free, orders[option], takes, numbers)
            row = next_row
        return sums[row]

    @property
    def _stride(self) -> int:
        return math.prod(self.table.num_options[self.axis + 1 :])  # the last axis runs fastest

    @property
    def _rule(self) -> tuple[Integers, Takes]:
        if self.table.is_even:
            return _in_order(len(self.layers), self.counts.shape[1]), _spread
        return _by_gain(self.table.gains[self.axis][list(self.layers)]), _first


def _groups(rows: Integers) -> tuple[Integers, Integers]:
    """The first of all neighbouring rows that are equal, and [rows] the number of each's group."""
    is_other = np.any(rows[1:] != rows[:-1], axis=1)
    is_first = np.concatenate([np.ones(min(len(rows), 1), dtype=bool), is_other])
    return np.flatnonzero(is_first), np.cumsum(is_first) - 1


def _gained(is_free: _Flags, order: Integers, takes: Takes, values: Floats) -> Floats:
    """[ways, numbers, ...] the sum of values [layers, ...] over the layers that take an option, for
    every number of layers that may take it."""
    num_free = np.count_nonzero(is_free, axis=1)
    gained = np.zeros((len(is_free), len(order) + 1, *values.shape[1:]))
    for number in np.unique(num_free).tolist():
        ways = np.flatnonzero(num_free == number)
        each = values[_free_layers(is_free[ways], order, number)]
        sums = np.tensordot(takes(number).astype(np.float64), each, axes=(1, 1))
        gained[ways, : number + 1] = np.moveaxis(sums, 0, 1)
    return gained
