"""In-place distillation: the smaller subnets of a step learn from its largest, without labels.

Yu and Huang, ICCV 2019, arXiv 1903.05134, section 4.2; BigNAS, ECCV 2020; with alpha-divergences
AlphaNet (ICML 2021, arXiv 2102.07954), whose symbols u, rho, D and L are used here.
"""

from __future__ import annotations

import math
from typing import NamedTuple, assert_never

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from prenas.recipe import Distillation

_LOG_CLIP = math.log(5.0)  # AlphaNet's beta: the limit of (p / q) ** alpha


class Divergence(NamedTuple):
    """A divergence per image, and a surrogate whose gradient the student follows."""

    value: Tensor
    """D [B], without a gradient."""
    surrogate: Tensor
    """L [B]. Its gradient is that of D wherever nothing is clipped; its value has no meaning."""


def inplace_distillation_loss(logits: Tensor, largest: Tensor, kind: Distillation) -> Tensor:
    """Mean distance of a subnet from the largest one, which receives no gradient.

    Args:
        logits: [B, num_classes].
        largest: logits of the largest subnet, [B, num_classes].
        kind: cross-entropy with the largest subnet's probabilities; the Kullback-Leibler
            divergence, which has the same gradient; or the adaptive alpha-divergence, with the
            gradient of its surrogate.
    """
    teacher = largest.detach()
    match kind:
        case "cross_entropy":
            return cross_entropy(logits, teacher.softmax(dim=1))
        case "kl":
            ours, theirs = logits.log_softmax(dim=1), teacher.log_softmax(dim=1)
            return kl_div(ours, theirs, reduction="batchmean", log_target=True)
        case "alpha":
            value, surrogate = (each.mean() for each in adaptive_divergence(logits, teacher))
            return value + (surrogate - surrogate.detach())
        case _:
            assert_never(kind)


def adaptive_divergence(logits: Tensor, teacher: Tensor) -> Divergence:
    """The larger of D_-1 and D_1 for each image.

    D_-1 penalises what the student predicts and the teacher does not, D_1 what the student misses.
    """
    over, under = (alpha_divergence(logits, teacher, alpha) for alpha in (-1.0, 1.0))
    is_over = over.value > under.value
    value, surrogate = (torch.where(is_over, *pair) for pair in zip(over, under, strict=True))
    return Divergence(value, surrogate)


def alpha_divergence(logits: Tensor, teacher: Tensor, alpha: float) -> Divergence:
    """D_alpha(p || q) between a teacher p and a student q, both given by logits [B, num_classes].

    With r = p / q and u = min(r ** alpha, 5): D = sum q (u - 1) / (alpha (alpha - 1)), and L =
    -sum q rho log q with q rho constant, rho = u / alpha + 1 / (alpha (alpha - 1)). The limits are
    sum p log r (alpha = 1, rho = r, never clipped) and -sum q log min(r, 5) (alpha = 0).
    """
    log_q, log_p = logits.log_softmax(dim=1), teacher.detach().log_softmax(dim=1)
    q, p = log_q.detach().exp(), log_p.exp()
    log_r = log_p - log_q.detach()  # the ratios themselves may overflow
    if alpha == 1:
        values, held = p * log_r, p
    elif alpha == 0:
        log_u = log_r.clamp(max=_LOG_CLIP)
        values, held = -q * log_u, q * (log_u - 1)
    else:
        u = (alpha * log_r).clamp(max=_LOG_CLIP).exp()
        scale = 1 / (alpha * (alpha - 1))
        values, held = q * (u - 1) * scale, q * (u / alpha + scale)
    return Divergence(values.sum(dim=1), -(held * log_q).sum(dim=1))
