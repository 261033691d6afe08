"""Choosing a subnet: by its number, the best one within limits, or the best one of a budget."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence

from prenas.cost import bounded_axis
from prenas.evaluation.accuracy import Evaluation
from prenas.recipe.budgets import Limits, parse_limits
from prenas.runs.contests import Contest, Result, best_first, contests
from prenas.selection.preferred import PreferredSet
from prenas.values import few_of


def ranked(evaluations: Sequence[Evaluation]) -> list[int]:
    """Numbers of the subnets, the best first: see `prenas.runs.contests.best_first`."""
    return best_first(_results(evaluations))


def _results(evaluations: Iterable[Evaluation]) -> list[Result]:
    return [
        Result(row.costs, {split: metrics.top1 for split, metrics in row.splits.items()})
        for row in evaluations
    ]


def contests_of(preferred: PreferredSet, evaluations: Sequence[Evaluation]) -> tuple[Contest, ...]:
    """The subnets of every budget, compared on validation; none without an evaluation."""
    choices = ((choice.budget, choice.subnet) for choice in preferred.choices)
    return contests(preferred.budgets, choices, _results(evaluations))


def best_of_budget(preferred: PreferredSet, evaluations: Sequence[Evaluation], budget: int) -> int:
    """Number of the best subnet that was chosen for a budget: the first of `ranked`.

    Args:
        budget: its number, from 0.

    Raises:
        ValueError: there is no such budget, or no subnet fits it.
    """
    budgets = preferred.budgets
    if not 0 <= budget < len(budgets):
        named = few_of([f"{number}: {text}" for number, text in enumerate(budgets)])
        raise ValueError(f"budget {budget} does not exist: this run has {named}")
    chosen = {choice.subnet for choice in preferred.choices if choice.budget == budget}
    if not chosen:
        raise ValueError(
            f"no subnet fits budget {budget} ({budgets[budget]}): choose a budget that has one"
        )
    return next(number for number in ranked(evaluations) if number in chosen)


def pick(evaluations: Sequence[Evaluation], limits: Mapping[str, int]) -> int:
    """Number of the best subnet within the limits: the first of `ranked` that satisfies them.

    Args:
        limits: name of a cost -> its largest allowed value, inclusive.

    Raises:
        ValueError: no subnet is within the limits, or the evaluation lacks one of the costs.
    """
    for name in limits:
        if not all(name in row.costs for row in evaluations):
            raise ValueError(
                f"this run was evaluated without the cost {name!r}: limit one of "
                f"{', '.join(evaluations[0].costs)}, or start a new run"
            )
    fitting = [
        number
        for number in ranked(evaluations)
        if all(evaluations[number].costs[name] <= limit for name, limit in limits.items())
    ]
    if not fitting:
        wanted = " and ".join(
            f"{name} <= {bounded_axis(name).format(limit)}" for name, limit in limits.items()
        )
        axes = [bounded_axis(name) for name in limits]
        there = "; ".join(
            f"{number}: " + ", ".join(f"{a.name} {a.number(row.costs[a.name])}" for a in axes)
            for number, row in enumerate(evaluations)
        )
        raise ValueError(
            f"no subnet of this run satisfies {wanted}. The subnets are {there}. "
            "Raise the limit, or search with a smaller budget"
        )
    return fitting[0]


def choose(
    evaluations: Sequence[Evaluation], index: int | None, limits: Limits | None = None
) -> int:
    """Number of the requested subnet: given by its index, or chosen by `pick` within limits.

    Raises:
        ValueError: both or neither are given, or there is no such subnet.
    """
    most = parse_limits(limits)
    if (index is None) == (not most):
        raise ValueError(
            "say which subnet: give either its number or limits such as params=6M "
            "(--max params=6M,macs=1.4G or --max-params 6M)"
        )
    number = pick(evaluations, most) if index is None else operator.index(index)
    if not 0 <= number < len(evaluations):
        raise ValueError(
            f"subnet {number} does not exist: this run has subnets 0 to {len(evaluations) - 1}"
        )
    return number


def unevaluated(preferred: PreferredSet) -> list[Evaluation]:
    """Costs of the preferred subnets, without results on any split."""
    return [
        Evaluation(arch=subnet.arch, costs=subnet.costs, splits={}) for subnet in preferred.subnets
    ]
