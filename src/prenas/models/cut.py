"""Cutting a subnet out of its supernet, and checking that its logits are the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prenas.families.base import Arch
from prenas.precision import computing
from prenas.supernet import Statistics, Supernet

_TOLERANCE = 1e-5  # relative to the largest logit: only the order of float32 sums may differ


@torch.no_grad()
def verified_cut(
    supernet: Supernet, arch: Arch, images: Tensor, statistics: Statistics | None = None
) -> nn.Module:
    """The plain network of `arch`, after checking on images that it equals the supernet.

    Raises:
        ValueError: their logits differ by more than 1e-5 of the largest logit.
    """
    supernet.eval()
    network = supernet.cut(arch, statistics)
    with computing("fp32", images.device):  # rounded factors would differ with the kernels
        expected = supernet(images, arch, statistics=statistics)
        found = network(images)
    require_equal_logits(found, expected, "the cut network")
    return network


def require_equal_logits(found: Tensor, expected: Tensor, what: str) -> None:
    """Raises ValueError if logits differ by over 1e-5 of the largest, or are not finite."""
    difference = float((found - expected).abs().max())
    scale = float(expected.abs().max())
    if not difference <= _TOLERANCE * scale:
        raise ValueError(
            f"the logits of {what} differ from the supernet's by {difference:.3g} (largest logit "
            f"{scale:.3g}); nothing was written. Either the weights are not finite or this is a "
            "bug in prenas: please report it and keep the run folder"
        )
