"""The highest score that any subnet within a budget has, isomer rule or not.

The selector looks at one representative of each isomer class (method.md, section 3). Here layers
that are not tied choose freely.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from prenas.proxy.tables import SpaceTables
from prenas.selection.budgets import Budget
from prenas.selection.graph import Candidate, free_graph
from prenas.selection.program import Program

_TOLERANCE = 1e-9
"""Relative difference of scores that the solver cannot tell."""


class Optimum(NamedTuple):
    """The best subnet of a budget over the whole space."""

    candidate: Candidate
    proven: float
    """No subnet of the budget scores more (relative to 1e-9); its score if nothing is left open."""


def optimum(tables: SpaceTables, budget: Budget) -> Optimum | None:
    """The subnet with the highest score within the budget; None if none is found.

    A score with a `finish` has its highest value at the largest or the smallest sum, so both are
    looked for. Between equal scores any may be given, the same in every call.
    """

    def finished(total: float) -> float:
        return float(tables.finish(np.array(total))) if tables.finish else total

    graph = free_graph(tables)
    best: Candidate | None = None
    proven = -math.inf
    for sign in (1, -1) if tables.finish else (1,):
        solution = Program(graph, budget, sign).solve()
        if solution is None:
            continue
        found = replace(solution.candidate, score=finished(solution.candidate.score))
        proven = max(proven, finished(solution.bound))
        if best is None or found.score > best.score:
            best = found
    if best is None:
        return None
    is_proven = proven - best.score <= _TOLERANCE * abs(best.score)
    return Optimum(best, best.score if is_proven else proven)
