"""Named scores of a subnet: sums over the weights that it owns (method.md, section 2).

S, the score that PreNAS ranks by, is `sum_abs_weight_times_gradient`. The others are the
original code's alternatives, under names that say their formula. All are additive over weights,
so a few table look-ups give the score of any subnet (`prenas.proxy.tables`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prenas.families import get_family
from prenas.values import unknown_name

Floats = npt.NDArray[np.float64]

Scope = Literal["all", "blocks"]
"""Whether S sums over everything that is scored, or only over tensors that belong to a layer."""


@dataclass(frozen=True)
class WeightScore:
    """`finish(sum over owned weights of element(w, g))`, over all scored tensors or fewer."""

    element: Callable[[Tensor, Tensor], Tensor]
    layer_choices_only: bool = False
    """Sum only over modules of layers that a per-layer choice sizes (ViT: qkv, proj, fc1, fc2)."""
    finish: Callable[[Floats], Floats] | None = None
    """Convex, so that its largest value stands at the largest or the smallest sum."""


DEFAULT_SCORE = "sum_abs_weight_times_gradient"

WEIGHT_SCORES: dict[str, WeightScore] = {
    DEFAULT_SCORE: WeightScore(lambda w, g: (w * g).abs_()),
    "abs_sum_weight_times_gradient": WeightScore(lambda w, g: w * g, finish=np.abs),
    "sum_abs_weight": WeightScore(lambda w, g: w.abs()),
    "sum_abs_weight_times_gradient_of_layer_choices": WeightScore(
        lambda w, g: (w * g).abs_(), layer_choices_only=True
    ),
}


def check_score_name(name: str, family: str) -> None:
    """ValueError, with the choices, unless the family can be scored by this name."""
    choices = [*WEIGHT_SCORES, *get_family(family).arch_scores]
    if name not in choices:
        raise unknown_name("score", name, choices)
