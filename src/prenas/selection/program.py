"""The best ways through a graph by an integer program, for budgets that bound any costs.

Each edge has a binary variable, flow is conserved at every node, and the costs lie within the
budget's intervals. HiGHS solves it. The costs of a solution are then counted again in integers, and
its score is computed again from the tables.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy

from prenas.cost import bounded_names
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Candidate, Graph
from prenas.selection.ranking import finished, signs

_logger = logging.getLogger(__name__)

_STOPPED, _INFEASIBLE = 1, 2
"""Status of `milp` if it ran out of time, and if no way fits."""

_SCORE_SCALE = 1e3
"""What the largest sum of a way becomes for the solver, which stops within 1e-6 of the best."""

SECONDS = 60.0
"""Time limit for one solution; then the best one so far is used, with a warning."""


class Solution(NamedTuple):
    """A way, and a bound on how good any way can be."""

    way: list[int]
    candidate: Candidate
    """Its score is the sum before `finish`."""
    bound: float
    """No remaining way has a larger sum (with sign -1: a smaller one)."""


class Program:
    """The ways of a graph within a budget, best first.

    Args:
        sign: 1 searches for the largest sum of scores, -1 for the smallest.
    """

    was_stopped: bool
    """Whether the last call of `solve` ran out of time: a better way than it found may exist."""

    def __init__(self, graph: Graph, budget: Budget, sign: int = 1) -> None:
        self._graph, self._budget, self.was_stopped = graph, budget, False
        edges = graph.edges
        self._scale = _SCORE_SCALE / (graph.most(np.abs(edges.score)) or 1.0)
        self._objective: Floats = -sign * edges.score * self._scale
        self._sign = sign
        columns = np.arange(len(edges.part))
        flow = scipy.sparse.coo_array(
            (
                np.repeat([1.0, -1.0], len(columns)),
                (np.concatenate([edges.tail, edges.head]), np.tile(columns, 2)),
            ),
            shape=(graph.end + 1, len(columns)),
        )
        balance = np.zeros(graph.end + 1)
        balance[0], balance[-1] = 1, -1
        rows, low, high = [flow.tocsr()], [balance], [balance]
        for place, name in enumerate(bounded_names()):
            if name in budget.intervals:
                costs = edges.cost[:, place]
                # Divided by the common divisor of all edges: small integers, ends rounded inwards.
                unit = math.gcd(*costs.tolist()) or 1
                lo, hi = budget.intervals[name]
                rows.append(scipy.sparse.csr_array((costs // unit)[None].astype(np.float64)))
                low.append(np.array([-(-lo // unit)]))
                high.append(np.array([(hi - 1) // unit]))
        self._rows, self._low, self._high = rows, low, high

    def solve(self) -> Solution | None:
        """The best way that is not excluded; None if there is none or none was found in time."""
        while True:
            found = scipy.optimize.milp(
                self._objective,
                integrality=np.ones(len(self._objective), dtype=np.int64),
                bounds=scipy.optimize.Bounds(0, 1),
                constraints=scipy.optimize.LinearConstraint(
                    scipy.sparse.vstack(self._rows, format="csr"),
                    np.concatenate(self._low),
                    np.concatenate(self._high),
                ),
                options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
            )
            self.was_stopped = found.status == _STOPPED
            if self.was_stopped:
                _logger.warning(
                    "%s: the integer program was stopped after %g s; %s",
                    self._budget,
                    SECONDS,
                    "it found no subnet, although one may exist"
                    if found.x is None
                    else "a better subnet than the one it found may exist",
                )
            if found.status == _INFEASIBLE or found.x is None:
                return None
            bound = -self._sign * float(found.mip_dual_bound) / self._scale
            way = np.flatnonzero(found.x > 0.5).tolist()
            candidate = self._graph.candidate(way)
            if self._budget.holds(candidate.cost):
                return Solution(way, candidate, bound)
            self.exclude(way)  # just outside the budget, within the solver's tolerance

    def exclude(self, way: list[int]) -> None:
        """Excludes a way, so that the next call of `solve` returns the next best."""
        row = np.zeros(len(self._objective))
        row[way] = 1
        self._require(row, -np.inf, len(way) - 1)

    def require(self, amounts: Integers, least: int) -> None:
        """Excludes all ways whose sum of amounts [edges] is less than `least`."""
        self._require(amounts.astype(np.float64), least, np.inf)

    def _require(self, row: Floats, low: float, high: float) -> None:
        self._rows.append(scipy.sparse.csr_array(row[None]))
        self._low.append(np.array([low]))
        self._high.append(np.array([high]))


def best_by_program(
    graph: Graph, budget: Budget, num: int, required: Sequence[tuple[Integers, int]] = ()
) -> list[Candidate]:
    """The `num` best ways within a budget, best first; `finish` is applied to their scores.

    Among scores that differ by less than 1e-9 the order is arbitrary, but the same in every call.

    Args:
        required: arguments for `Program.require`.
    """
    found: dict[tuple[int, ...], Candidate] = {}
    num_proven = num  # the best n overall are among the best n of every sign
    for sign in signs(graph):
        program = Program(graph, budget, sign)
        for amounts, least in required:
            program.require(amounts, least)
        for rank in range(num):
            solution = program.solve()
            if program.was_stopped:
                num_proven = min(num_proven, rank)
            if solution is None:
                break
            (score,) = finished(graph, np.array([solution.candidate.score]))
            found[tuple(solution.way)] = replace(solution.candidate, score=float(score))
            program.exclude(solution.way)
    best = sorted(found.values(), key=lambda one: budget.preference(one.score, one.cost))[:num]
    return [replace(one, is_proven=rank < num_proven) for rank, one in enumerate(best)]
