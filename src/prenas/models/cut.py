"""Cutting a subnet out of its supernet, and checking that it gives the same logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prenas.families.base import Arch
from prenas.supernet import Statistics, Supernet

_TOLERANCE = 1e-5  # of the largest logit: the two differ in the order of float32 sums at most


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
