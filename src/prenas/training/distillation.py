"""In-place distillation: the smaller subnets of a step learn from its largest, and see no labels.

Yu and Huang, ICCV 2019, arXiv 1903.05134, section 4.2; BigNAS, ECCV 2020; with alpha-divergences
AlphaNet (ICML 2021, arXiv 2102.07954), whose u, rho, D and L keep their letters here.
"""

from __future__ import annotations

import math
from typing import NamedTuple, assert_never

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from prenas.recipe import Distillation

_LOG_CLIP = math.log(5.0)  # of the ratio of probabilities to the power alpha, AlphaNet's beta


class Divergence(NamedTuple):
    """Of each image; a student is judged by the one and follows the gradient of the other."""

    value: Tensor
    """D [B], without gradient."""
    surrogate: Tensor
    """L [B], whose gradient is that of D where nothing is clipped; its value means nothing."""


def inplace_distillation_loss(logits: Tensor, largest: Tensor, kind: Distillation) -> Tensor:
    """How far a subnet is from the largest one, through which nothing flows back: mean over images.

    Args:
        logits: [B, num_classes].
        largest: those of the largest subnet.
        kind: cross-entropy with its probabilities p; the Kullback-Leibler divergence, which has the
            same gradient; or the adaptive alpha-divergence, with the gradient of its surrogate.
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
    """For each image the larger of D_-1 and D_1.

    The first weighs what the student expects and the teacher does not, the second what it misses.
    """
    over, under = (alpha_divergence(logits, teacher, alpha) for alpha in (-1.0, 1.0))
    is_over = over.value > under.value
    value, surrogate = (torch.where(is_over, *pair) for pair in zip(over, under, strict=True))
    return Divergence(value, surrogate)


def alpha_divergence(logits: Tensor, teacher: Tensor, alpha: float) -> Divergence:
    """D_alpha(p || q) of a student q from its teacher p, both given by logits [B, num_classes].

    With r = p / q and u = min(r ** alpha, 5): D = sum q (u - 1) / (alpha (alpha - 1)), and L =
    -sum q rho log q with q rho held, rho = u / alpha + 1 / (alpha (alpha - 1)). The limits are
    sum p log r (alpha = 1, rho = r, never clipped) and -sum q log min(r, 5) (alpha = 0).
    """
    log_q, log_p = logits.log_softmax(dim=1), teacher.detach().log_softmax(dim=1)
    q, p = log_q.detach().exp(), log_p.exp()
    log_r = log_p - log_q.detach()  # ratios themselves may overflow
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
