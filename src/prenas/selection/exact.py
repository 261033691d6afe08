"""The highest score that any subnet within a budget has, isomer rule or not.

The selector looks at one representative of each isomer class (method.md, section 2). Here every
layer chooses freely: per skeleton an integer program, one binary per axis, layer and option, the
costs within the budget's intervals, solved by HiGHS. What it finds is counted again in whole
numbers and scored again from the tables.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array

from prenas.families.base import COST_AXES
from prenas.proxy.scores import Floats
from prenas.proxy.tables import Integers, SkeletonTable, SpaceTables
from prenas.selection.budgets import Budget
from prenas.selection.select import Candidate

_INFEASIBLE = 2
"""What `milp` answers where nothing fits."""

_SCORE_SCALE = 1e3
"""Sum of scores that the solver sees; it stops within 1e-6 of the best of them."""

_TOLERANCE = 1e-9
"""Relative difference of scores that the solver cannot tell."""

_SECONDS = 60.0
"""Of one program, after which the best so far is taken and `proven` says what is left open."""


class Optimum(NamedTuple):
    """The best subnet of a budget over the whole space."""

    candidate: Candidate
    proven: float
    """No subnet of the budget scores more (relative to 1e-9); its score if nothing is left open."""


class _Program(NamedTuple):
    """One skeleton within a budget: the largest `sign * scores @ x` over binaries x."""

    skeleton: int
    table: SkeletonTable
    sign: int
    scores: Floats
    constraints: tuple[LinearConstraint, ...]

    def solve(self, *, relaxed: bool) -> tuple[Floats | None, float]:
        """(x if any is found, what the sum over layers is at most or, of sign -1, at least)."""
        scale = _SCORE_SCALE / (np.abs(self.scores).sum() or 1.0)
        found = milp(
            -self.sign * self.scores * scale,
            integrality=np.full(len(self.scores), 0 if relaxed else 1),
            bounds=Bounds(0, 1),
            constraints=self.constraints,
            options={"mip_rel_gap": 0.0, "time_limit": _SECONDS},
        )
        if found.status == _INFEASIBLE:
            return None, -self.sign * math.inf
        bound = found.fun if relaxed else found.mip_dual_bound
        if bound is None:
            raise RuntimeError(f"HiGHS gave up on skeleton {self.skeleton}: {found.message}")
        return found.x, -self.sign * float(bound) / scale

    def candidate(self, x: Floats) -> Candidate:
        """The subnet that x means, its cost in whole numbers, its score before `finish`."""
        choices, cost, score, start = [], self.table.base_cost, self.table.base_score, 0
        layers = np.arange(self.table.num_layers)
        for axis in self.table.axes:
            chosen = x[start : start + axis.scores.size].reshape(axis.scores.shape).argmax(axis=1)
            start += axis.scores.size
            choices.append(tuple(chosen.tolist()))
            cost = cost + axis.costs[chosen].sum(axis=0)
            score += float(axis.scores[layers, chosen].sum())
        costs = dict(zip(COST_AXES, cost.tolist(), strict=True))
        return Candidate(self.skeleton, tuple(choices), costs, score)


def _program(number: int, table: SkeletonTable, sign: int, budget: Budget) -> _Program:
    scores = np.concatenate([axis.scores.ravel() for axis in table.axes])
    one_option = block_diag(
        [np.kron(np.eye(table.num_layers), np.ones(axis.scores.shape[1])) for axis in table.axes],
        format="csr",
    )
    constraints = [LinearConstraint(one_option, 1, 1)]
    for place, name in enumerate(COST_AXES):
        if name in budget.intervals:
            costs: Integers = np.concatenate(
                [np.tile(axis.costs[:, place], table.num_layers) for axis in table.axes]
            )
            # In units of what options have in common: small whole numbers, ends rounded inwards.
            unit = math.gcd(*costs.tolist()) or 1
            low, high = (end - int(table.base_cost[place]) for end in budget.intervals[name])
            ends = -(-low // unit), (high - 1) // unit
            constraints.append(LinearConstraint(csr_array([costs // unit]), *ends))
    return _Program(number, table, sign, scores, tuple(constraints))


def optimum(tables: SpaceTables, budget: Budget) -> Optimum | None:
    """The subnet with the highest score within the budget; None if none is found.

    A score with a `finish` has its highest value at the largest or the smallest sum, so both are
    looked for. Between equal scores any may be given, the same in every call.
    """

    def finished(total: float) -> float:
        return float(tables.finish(np.array(total))) if tables.finish else total

    programs = []
    for number, table in enumerate(tables.skeletons):
        for sign in (1, -1) if tables.finish else (1,):
            program = _program(number, table, sign, budget)
            x, most = program.solve(relaxed=True)
            if x is not None:
                programs.append((finished(table.base_score + most), program))
    best: Candidate | None = None
    proven = -math.inf
    for bound, program in sorted(programs, key=lambda pair: -pair[0]):
        if best is not None and bound <= best.score:
            break  # those that follow promise no more
        x, most = program.solve(relaxed=False)
        if math.isfinite(most):
            proven = max(proven, finished(program.table.base_score + most))
        if x is None:
            continue
        found = program.candidate(x)
        if not _fits(found, budget):
            raise RuntimeError(f"HiGHS left the budget {budget} by its tolerance: {found.cost}")
        found = replace(found, score=finished(found.score))
        if best is None or found.score > best.score:
            best = found
    if best is None:
        return None
    is_proven = proven - best.score <= _TOLERANCE * abs(best.score)
    return Optimum(best, best.score if is_proven else proven)


def _fits(candidate: Candidate, budget: Budget) -> bool:
    return all(low <= candidate.cost[axis] < high for axis, (low, high) in budget.intervals.items())
