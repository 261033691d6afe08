"""Named scores of a subnet: sums over the weights that it owns (method.md, section 2).

S, the score that PreNAS ranks by, is `sum_abs_weight_times_gradient`. `params` counts weights. The
others are alternatives from the original code, named after their formulas. All are additive over
weights, so a few table look-ups give the score of any subnet (`prenas.proxy.tables`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prenas.families import get_family
from prenas.values import unknown_name

Floats = npt.NDArray[np.float64]

Scope = Literal["all", "blocks"]
"""Whether S sums over all scored tensors, or only over those that belong to a layer."""


@dataclass(frozen=True)
class WeightScore:
    """A score of the form `finish(sum over owned weights of element(w, g))`."""

    element: Callable[[Tensor, Tensor], Tensor]
    layer_choices_only: bool = False
    """Sum only over modules whose size a per-layer choice decides (ViT: qkv, proj, fc1, fc2)."""
    finish: Callable[[Floats], Floats] | None = None
    """A convex function of the sum, so its maximum lies at the largest or the smallest sum."""


PUBLISHED_SCORE = "sum_abs_weight_times_gradient"
"""S of the paper."""

WEIGHT_SCORES: dict[str, WeightScore] = {
    PUBLISHED_SCORE: WeightScore(lambda w, g: (w * g).abs_()),
    "abs_sum_weight_times_gradient": WeightScore(lambda w, g: w * g, finish=np.abs),
    "sum_abs_weight": WeightScore(lambda w, g: w.abs()),
    "sum_abs_weight_times_gradient_of_layer_choices": WeightScore(
        lambda w, g: (w * g).abs_(), layer_choices_only=True
    ),
}

COUNT_SCORE = "params"
"""Counting alone: what a layer scores are its parameters, whatever its weights are."""

UnitScoreName = Literal["gate", "gate_sum", "fisher", "weight_times_gradient", "weight", "random"]
"""Scores of single hidden units at trained weights; see `prenas.proxy.unit_scores`."""

TRIED_SCORES: dict[str, tuple[UnitScoreName, ...]] = {
    **{name: (name,) for name in get_args(UnitScoreName)},
    "gate_or_fisher": ("gate", "fisher"),
}
"""Value of `search.score` for a trained network -> the scores whose cuts are tried for every
budget. Of several, the one whose cut is more accurate before training chooses."""

UNIT_SCORES = tuple(TRIED_SCORES)


def is_sum_over_layers(name: str) -> bool:
    """Whether a score is a sum of one amount per layer that is never negative."""
    return name == COUNT_SCORE or (name in WEIGHT_SCORES and WEIGHT_SCORES[name].finish is None)


def has_scope(name: str) -> bool:
    """Whether a score can be told apart into layers and the tensors outside them."""
    return name == COUNT_SCORE or name in WEIGHT_SCORES


def check_score_name(name: str, family: str) -> None:
    """Raises ValueError, with the available names, unless the family has a score of this name."""
    chosen = get_family(family)
    units = UNIT_SCORES if chosen.unit_groups else ()
    choices = [*WEIGHT_SCORES, COUNT_SCORE, *chosen.arch_scores, *units]
    if name not in choices:
        raise unknown_name("score", name, choices)
