"""The selector: best subnets of every budget, from tables alone (method.md, section 2).

It knows numbers only: skeletons, layers, options, costs, scores, gains. Over all skeletons and
all count vectors of options (isomer classes), it scores every class's representative as one array
operation, and keeps the k best by score with cost in [lo, hi). Ties: the cheaper, then the first
in enumeration order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prenas.families.base import COST_AXES
from prenas.proxy.scores import Floats
from prenas.proxy.tables import Integers, SkeletonTable, SpaceTables
from prenas.selection.budgets import Budget, format_amount
from prenas.selection.isomers import Enumeration, allocate, count_vectors


@dataclass(frozen=True)
class Candidate:
    """One representative: the choices, and what they cost and score."""

    skeleton: int
    choices: tuple[tuple[int, ...], ...]
    """Option index per axis and layer."""
    cost: dict[str, int]
    score: float


@dataclass(frozen=True)
class Pick:
    """A chosen candidate of one budget."""

    candidate: Candidate
    budget: int
    rank: int
    """0 for the best of its budget."""
    margin: float | None
    """Lead over the best of the budget that was not chosen, relative; None if there is none."""


@dataclass(frozen=True)
class _Block:
    """The classes of one skeleton: every combination of the axes' count vectors."""

    choices: tuple[Integers, ...]
    """Per axis [ways, layers]."""
    costs: Integers
    """[classes, cost axes]"""
    scores: Floats
    """[classes]"""


def _block(table: SkeletonTable, gains: Sequence[Floats], enumeration: Enumeration) -> _Block:
    choices = []
    costs = table.base_cost[None, :]
    scores = np.array([table.base_score])
    layers = np.arange(table.num_layers)
    for axis, axis_gains in zip(table.axes, gains, strict=True):
        counts = count_vectors(table.num_layers, len(axis.costs), enumeration)
        choice = allocate(axis_gains[: table.num_layers], counts)
        axis_scores = axis.scores[layers, choice].sum(axis=1)
        costs = (costs[:, None] + counts @ axis.costs).reshape(-1, costs.shape[1])
        scores = (scores[:, None] + axis_scores).reshape(-1)
        choices.append(choice)
    return _Block(tuple(choices), costs, scores)


class Candidates:
    """All isomer representatives of a space, in enumeration order."""

    def __init__(self, tables: SpaceTables, enumeration: Enumeration = "all") -> None:
        self._blocks = [_block(table, tables.gains, enumeration) for table in tables.skeletons]
        self._starts = np.cumsum([0, *(len(block.scores) for block in self._blocks)])
        self.costs: Integers = np.concatenate([block.costs for block in self._blocks])
        scores = np.concatenate([block.scores for block in self._blocks])
        self.scores: Floats = tables.finish(scores) if tables.finish else scores

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int) -> Candidate:
        skeleton = int(np.searchsorted(self._starts, index, side="right")) - 1
        block = self._blocks[skeleton]
        ways = [len(choice) for choice in block.choices]
        position = np.unravel_index(index - self._starts[skeleton], ways)
        return Candidate(
            skeleton=skeleton,
            choices=tuple(
                tuple(choice[int(way)].tolist())
                for choice, way in zip(block.choices, position, strict=True)
            ),
            cost=dict(zip(COST_AXES, self.costs[index].tolist(), strict=True)),
            score=float(self.scores[index]),
        )

    def best(self, budget: Budget, num: int) -> Integers:
        """Indices of the `num` best candidates inside the budget, best first.

        By score, then lower costs, then enumeration order.
        """
        lower, upper = budget.bounds.T
        inside = np.flatnonzero(((self.costs >= lower) & (self.costs < upper)).all(axis=1))
        if len(inside) > num:  # only those that can be among the best need an order
            scores = self.scores[inside]
            inside = inside[scores >= np.partition(scores, -num)[-num]]
        keys = [self.costs[inside, axis] for axis in reversed(range(self.costs.shape[1]))]
        # The sort is stable, so enumeration order breaks what is left.
        best: Integers = inside[np.lexsort((*keys, -self.scores[inside]))][:num]
        return best

    def reachable(self) -> str:
        """The range of each cost, in words."""
        ends = zip(COST_AXES, self.costs.min(axis=0), self.costs.max(axis=0), strict=True)
        return ", ".join(
            f"{axis} {format_amount(int(lo))} to {format_amount(int(hi))}" for axis, lo, hi in ends
        )


def select(candidates: Candidates, budgets: Sequence[Budget], k: int = 1) -> list[Pick]:
    """The k best candidates of every budget, in the order of the budgets.

    Raises:
        ValueError: no budget holds any candidate; the message names the reachable range.
    """
    picks = []
    for number, budget in enumerate(budgets):
        best = candidates.best(budget, k + 1)
        runner_up = candidates.scores[best[k]] if len(best) > k else None
        for rank, index in enumerate(best[:k]):
            score = candidates.scores[index]
            margin = None if runner_up is None else float((score - runner_up) / abs(score or 1.0))
            picks.append(Pick(candidates[int(index)], number, rank, margin))
    if not picks:
        raise ValueError(
            f"no subnet fits any of the {len(budgets)} budgets "
            f"({'; '.join(map(str, budgets))}): this space reaches {candidates.reachable()}"
        )
    return picks
