"""The highest score of any subnet within a budget, without the isomer rule.

The selector looks at one representative of each isomer class (method.md, section 3). Here, layers
that are not tied choose freely. Their combinations are never listed, not even in a chain of one
stage.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from prenas.proxy.tables import SpaceTables
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Candidate, free_graph
from prenas.selection.program import Program
from prenas.selection.ranking import Fronts, finished, signs

_TOLERANCE = 1e-9
"""Relative difference below which the solver cannot tell scores apart."""


class Optimum(NamedTuple):
    """The best subnet of a budget over the whole space."""

    candidate: Candidate
    proven: float
    """Upper bound on the score of any subnet in the budget. It equals the candidate's score if the
    candidate is proven to be the best, up to a relative difference of 1e-9."""


def optimum(tables: SpaceTables, budget: Budget) -> Optimum | None:
    """The subnet with the highest score within the budget; None if none was found.

    A score with a `finish` is highest at the largest or the smallest sum, so both are searched.
    Among equal scores the choice is arbitrary, but the same in every call.
    """

    graph = free_graph(tables)
    if (answer := Fronts(graph, [budget], 1).best(budget)) is not None:
        return Optimum(answer[0], answer[0].score) if answer else None
    best: Candidate | None = None
    proven = -math.inf
    for sign in signs(graph):
        solution = Program(graph, budget, sign).solve()
        if solution is None:
            continue
        score, bound = finished(graph, np.array([solution.candidate.score, solution.bound]))
        found = replace(solution.candidate, score=float(score))
        proven = max(proven, float(bound))
        if best is None or found.score > best.score:
            best = found
    if best is None:
        return None
    is_proven = proven - best.score <= _TOLERANCE * abs(best.score)
    return Optimum(best, best.score if is_proven else proven)
