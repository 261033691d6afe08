"""Choosing a subnet: by its number, or the best one within limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prenas.cost import bounded_axis, shown_axes
from prenas.evaluation.accuracy import Evaluation
from prenas.recipe.budgets import Limits, parse_limits
from prenas.selection.preferred import PreferredSet


def pick(evaluations: Sequence[Evaluation], limits: Mapping[str, int]) -> int:
    """Number of the best subnet whose costs stay within the limits.

    Best by validation top-1, then by the smaller size. The test split plays no part. Without an
    evaluation the costs are all that is known: the largest size, then the least of the others.

    Args:
        limits: name of a cost -> the most it may be, inclusive.

    Raises:
        ValueError: no subnet is within the limits, or a cost that the evaluation does not have;
            names the costs of all.
    """
    for name in limits:
        if not all(name in row.costs for row in evaluations):
            raise ValueError(
                f"this run was evaluated without the cost {name!r}: choose by one of "
                f"{', '.join(evaluations[0].costs)}, or begin a new run"
            )
    fitting = [
        number
        for number, row in enumerate(evaluations)
        if all(row.costs[name] <= limit for name, limit in limits.items())
    ]
    if not fitting:
        wanted = " and ".join(
            f"{name} <= {bounded_axis(name).format(limit)}" for name, limit in limits.items()
        )
        there = "; ".join(
            f"{number}: " + ", ".join(f"{name} {row.costs[name]:,}" for name in limits)
            for number, row in enumerate(evaluations)
        )
        raise ValueError(
            f"no subnet of this run has {wanted}. There are subnets {there}. "
            "Raise the limit, or search with a smaller budget"
        )
    size, *others = (axis.name for axis in shown_axes(row.costs for row in evaluations))

    def merit(number: int) -> tuple[float, ...]:
        costs, splits = evaluations[number].costs, evaluations[number].splits
        if "validation" in splits:
            return splits["validation"].top1, -costs[size]
        return costs[size], *(-costs[name] for name in others)

    return max(fitting, key=merit)


def choose(
    evaluations: Sequence[Evaluation], index: int | None, limits: Limits | None = None
) -> int:
    """Number of the subnet that is asked for: by its index, or as `pick` does, by limits.

    Raises:
        ValueError: both or neither are given, no such subnet, or none within the limits.
    """
    most = parse_limits(limits)
    if (index is None) == (not most):
        raise ValueError(
            "say which subnet: either its index, or limits such as params=6M "
            "(--max params=6M,macs=1.4G or --max-params 6M)"
        )
    number = pick(evaluations, most) if index is None else index
    if not 0 <= number < len(evaluations):
        raise ValueError(f"there is no subnet {number}: this run has 0 to {len(evaluations) - 1}")
    return number


def unevaluated(preferred: PreferredSet) -> list[Evaluation]:
    """Costs of the preferred subnets, without results on any split."""
    return [
        Evaluation(arch=subnet.arch, costs=subnet.costs, splits={}) for subnet in preferred.subnets
    ]
