"""Choosing a subnet: by its number, or the best one within limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prenas.cost import bounded_axis, shown_axes
from prenas.evaluation.accuracy import Evaluation
from prenas.recipe.budgets import Limits, parse_limits
from prenas.selection.preferred import PreferredSet


def ranked(evaluations: Sequence[Evaluation]) -> list[int]:
    """Numbers of the subnets, the best first; among equals, the first of them.

    The best has the highest validation top-1, then the smallest size; the test split is not used.
    Without an evaluation only the costs are known: the best then has the largest size, then the
    lowest other costs.
    """
    size, *others = (axis.name for axis in shown_axes(row.costs for row in evaluations))

    def merit(number: int) -> tuple[float, ...]:
        costs, splits = evaluations[number].costs, evaluations[number].splits
        if "validation" in splits:
            return splits["validation"].top1, -costs[size]
        return costs[size], *(-costs[name] for name in others)

    return sorted(range(len(evaluations)), key=merit, reverse=True)  # keeps the order of equals


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
    number = pick(evaluations, most) if index is None else index
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
