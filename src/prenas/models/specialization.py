"""Specialisation: pick a preferred subnet by budget, cut it, prove it, write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prenas.evaluation.accuracy import Evaluation
from prenas.families.base import Arch
from prenas.recipe.budgets import format_amount, parse_amount
from prenas.selection.preferred import PreferredSet
from prenas.supernet import Statistics, Supernet

_TOLERANCE = 1e-5  # of the largest logit: the two differ in the order of float32 sums at most


def pick(evaluations: Sequence[Evaluation], limits: Mapping[str, int]) -> int:
    """Number of the best subnet whose costs stay within the limits.

    Best by validation top-1, then by fewer parameters. The test split plays no part. Without an
    evaluation the size is all that is known: the most parameters, then fewer MACs.

    Args:
        limits: "params" or "macs" -> the most it may cost, inclusive.

    Raises:
        ValueError: no subnet is within the limits; names the costs of all.
    """
    fitting = [
        number
        for number, row in enumerate(evaluations)
        if all(getattr(row, axis) <= limit for axis, limit in limits.items())
    ]
    if not fitting:
        wanted = " and ".join(f"{axis} <= {format_amount(n)}" for axis, n in limits.items())
        there = "; ".join(
            f"{number}: " + ", ".join(f"{axis} {getattr(row, axis):,}" for axis in limits)
            for number, row in enumerate(evaluations)
        )
        raise ValueError(
            f"no subnet of this run has {wanted}. There are subnets {there}. "
            "Raise the limit, or search with a smaller budget"
        )

    def merit(number: int) -> tuple[float, int]:
        row = evaluations[number]
        validation = row.splits.get("validation")
        return (validation.top1, -row.params) if validation else (row.params, -row.macs)

    return max(fitting, key=merit)


def choose(
    evaluations: Sequence[Evaluation],
    index: int | None,
    *,
    max_params: int | str | None = None,
    max_macs: int | str | None = None,
) -> int:
    """Number of the subnet that is asked for: by its index, or as `pick` does, by limits.

    Raises:
        ValueError: both or neither are given, no such subnet, or none within the limits.
    """
    limits = {
        axis: parse_amount(str(limit))
        for axis, limit in (("params", max_params), ("macs", max_macs))
        if limit is not None
    }
    if (index is None) == (not limits):
        raise ValueError(
            "say which subnet: either its index, or max_params and/or max_macs (--max-params, "
            "--max-macs)"
        )
    number = pick(evaluations, limits) if index is None else index
    if not 0 <= number < len(evaluations):
        raise ValueError(f"there is no subnet {number}: this run has 0 to {len(evaluations) - 1}")
    return number


def unevaluated(preferred: PreferredSet) -> list[Evaluation]:
    """Costs of the preferred subnets, without results on any split."""
    return [
        Evaluation(arch=subnet.arch, params=subnet.params, macs=subnet.macs, splits={})
        for subnet in preferred.subnets
    ]


@torch.no_grad()
def verified_cut(
    supernet: Supernet, arch: Arch, images: Tensor, statistics: Statistics | None = None
) -> nn.Module:
    """The plain network of `arch`, after checking on real images that it equals the supernet.

    Raises:
        ValueError: their logits differ by more than 1e-5 of the largest.
    """
    supernet.eval()
    network = supernet.cut(arch, statistics)
    expected = supernet(images, arch, statistics=statistics)
    require_equal_logits(network(images), expected, "the cut network")
    return network


def require_equal_logits(found: Tensor, expected: Tensor, what: str) -> None:
    """Raises ValueError if logits differ by more than 1e-5 of the largest, or are not finite."""
    difference = float((found - expected).abs().max())
    scale = float(expected.abs().max())
    if not difference <= _TOLERANCE * scale:
        raise ValueError(
            f"{what} does not give the supernet's logits (difference {difference:.3g}, largest "
            f"logit {scale:.3g}): nothing was written. This is a fault of prenas or of the "
            "weights (not finite?); please report it with the run folder"
        )
