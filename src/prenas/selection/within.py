"""The architectures within a budget: told by look-ups, drawn without a single miss.

A narrow budget at the end of a space holds less than one of a million architectures, so drawing
until one fits would not end. Isomers cost the same, so whether a class of them fits, and how likely
it is, is known for all classes at once: a draw takes a fitting class, then an order of its options.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from prenas.families.base import COST_AXES, SearchSpace, Skeleton
from prenas.proxy.scores import Floats
from prenas.proxy.tables import Integers, option_costs
from prenas.selection.budgets import Budget, format_amount
from prenas.selection.isomers import count_vectors


class Genes(NamedTuple):
    """What `SearchSpace.compose` makes an architecture of."""

    skeleton: Skeleton
    choices: tuple[tuple[int, ...], ...]
    """Option index per axis and layer."""


class _Block(NamedTuple):
    """The classes of one skeleton that fit: combinations of its axes' count vectors."""

    skeleton: Skeleton
    counts: tuple[Integers, ...]
    """Per axis [ways, options]."""
    fitting: Integers
    """[fitting classes] numbers of combinations."""


class Within:
    """The architectures of a space that fit a budget.

    Raises:
        ValueError: there is none; names the budget and what the space reaches.
    """

    def __init__(self, space: SearchSpace, budget: Budget) -> None:
        self._lower, self._upper = budget.bounds.T
        self._costs = {skeleton: option_costs(space, skeleton) for skeleton in space.skeletons}
        self._blocks: list[_Block] = []
        log_orders, log_chances, ends = [], [], []
        for skeleton, (base, axes) in self._costs.items():
            counts = tuple(count_vectors(skeleton.num_layers, len(axis), "all") for axis in axes)
            costs, orders = base[None, :], np.zeros(1)
            for axis, ways in zip(axes, counts, strict=True):
                costs = (costs[:, None] + ways @ axis).reshape(-1, len(base))
                orders = (orders[:, None] + _log_orders(ways)).reshape(-1)
            fitting = np.flatnonzero(self._fits(costs))
            self._blocks.append(_Block(skeleton, counts, fitting))
            log_orders.append(orders[fitting])
            # On one skeleton all are equally likely, on a deeper one each less so.
            log_num_of_skeleton = skeleton.num_layers * sum(np.log(len(axis)) for axis in axes)
            log_chances.append(log_orders[-1] - log_num_of_skeleton)
            ends.append((costs.min(axis=0), costs.max(axis=0)))
        every = np.concatenate(log_chances)
        if len(every) == 0:
            lowest, highest = np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))
            reachable = ", ".join(
                f"{axis} {format_amount(int(lo))} to {format_amount(int(hi))}"
                for axis, lo, hi in zip(COST_AXES, lowest, highest, strict=True)
            )
            raise ValueError(
                f"no architecture of space {space.name!r} fits the budget {budget}: choose another "
                f"(--budget), the space reaches {reachable}"
            )
        self.num_archs = float(np.exp(np.concatenate(log_orders)).sum())
        """How many they are, exact to rounding."""
        chances = np.cumsum(np.exp(every - every.max()))
        self._cumulative: Floats = chances / chances[-1]
        self._starts = np.cumsum([0, *(len(block.fitting) for block in self._blocks)])

    def draw(self, generator: np.random.Generator) -> Genes:
        """One of them, as likely as `SearchSpace.sample` would draw it among them."""
        number = int(np.searchsorted(self._cumulative, generator.random(), side="right"))
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        block = self._blocks[place]
        combination = block.fitting[number - self._starts[place]]
        ways = np.unravel_index(combination, [len(counts) for counts in block.counts])
        choices = (
            generator.permutation(np.repeat(np.arange(counts.shape[1]), counts[way]))
            for counts, way in zip(block.counts, ways, strict=True)
        )
        return Genes(block.skeleton, tuple(tuple(choice.tolist()) for choice in choices))

    def __contains__(self, genes: Genes) -> bool:
        return bool(self._fits(np.array(self.cost(genes))))

    def cost(self, genes: Genes) -> tuple[int, ...]:
        """What an architecture costs, within the budget or not, in the order of `COST_AXES`."""
        base, axes = self._costs[genes.skeleton]
        layers = [axis[list(c)].sum(axis=0) for axis, c in zip(axes, genes.choices, strict=True)]
        return tuple(np.sum([base, *layers], axis=0).tolist())

    def _fits(self, costs: Integers) -> npt.NDArray[np.bool_]:
        """[...] for costs [..., cost axes]."""
        fits: npt.NDArray[np.bool_] = ((costs >= self._lower) & (costs < self._upper)).all(axis=-1)
        return fits


def _log_orders(counts: Integers) -> Floats:
    """[ways] log of the number of architectures that have the same counts [ways, options]."""
    log_orders: Floats = gammaln(counts.sum(axis=1) + 1) - gammaln(counts + 1).sum(axis=1)
    return log_orders
