"""Isomers: subnets that differ only in which layer has which option (method.md, section 3).

They cost the same. Of every class one is kept: from the largest option down, an option goes to
the layers that gain most from it among those still free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal, get_args

import numpy as np

from prenas.families import unknown_name
from prenas.families.base import SearchSpace
from prenas.proxy.scores import Floats
from prenas.proxy.tables import BlockScores, Integers
from prenas.randomness import numpy_generator

IsomerRule = Literal["normalised", "raw", "front", "random"]
"""How layers are ranked for the larger options: `normalised` (the method) and `raw` block scores,
`front` (the first layers), `random` (the control that any claim must beat)."""

Enumeration = Literal["all", "published"]
"""`all` allocations, or the original code's, which skips those that give a middle option no
layer (it keeps 105 of 120 for 14 layers and 3 options)."""


def isomer_gains(
    rule: IsomerRule, block_scores: Sequence[BlockScores], seed: int
) -> tuple[Floats, ...]:
    """Per axis the gains [layers, options] by which the rule ranks layers.

    Raises:
        ValueError: an unknown rule.
    """
    if rule == "normalised":
        return tuple(scores.normalised for scores in block_scores)
    if rule == "raw":
        return tuple(scores.raw for scores in block_scores)
    if rule == "front":
        return tuple(
            np.repeat(
                -np.arange(len(scores.raw), dtype=np.float64)[:, None], scores.raw.shape[1], 1
            )
            for scores in block_scores
        )
    if rule == "random":
        return tuple(
            numpy_generator(seed, "isomers", axis).random(scores.raw.shape)
            for axis, scores in enumerate(block_scores)
        )
    raise unknown_name("isomer rule", rule, get_args(IsomerRule))


def num_isomer_classes(space: SearchSpace, enumeration: Enumeration = "all") -> int:
    """How many classes of isomers a space holds, without listing them.

    Per skeleton of L layers and axis of n options: C(L + n - 1, n - 1) count vectors, of which
    the published enumeration keeps C(L + 1, n - 1).
    """
    return sum(
        math.prod(
            math.comb(
                skeleton.num_layers + (1 if enumeration == "published" else num_options - 1),
                num_options - 1,
            )
            for num_options in (len(axis.options) for axis in space.layer_axes)
        )
        for skeleton in space.skeletons
    )


def count_vectors(num_layers: int, num_options: int, enumeration: Enumeration) -> Integers:
    """All ways to give every layer an option, as counts [ways, options] that sum to num_layers.

    In the order of the cut points `0 <= c1 <= c2 ... <= num_layers`: c1 layers get the largest
    option, c2 - c1 the next one down, and so on.
    """
    cuts: Iterable[tuple[int, ...]]
    if enumeration == "published":
        cuts = combinations(range(num_layers + 1), num_options - 1)
    else:  # combinations with repetition, in the same order
        cuts = (
            tuple(cut - i for i, cut in enumerate(strict))
            for strict in combinations(range(num_layers + num_options - 1), num_options - 1)
        )
    edges = np.array([(0, *cut, num_layers) for cut in cuts], dtype=np.int64)
    return np.diff(edges.reshape(-1, num_options + 1), axis=1)[:, ::-1]


def allocate(gains: Floats, counts: Integers) -> Integers:
    """Option of every layer [ways, layers] for counts [ways, options].

    From the largest option down, an option goes to the free layers with the highest gain; ties
    go to the earlier layer. `gains` [layers, options].
    """
    num_ways, num_options = counts.shape
    num_layers = len(gains)
    choice = np.zeros((num_ways, num_layers), dtype=np.int64)
    is_free = np.ones((num_ways, num_layers), dtype=bool)
    for option in range(num_options - 1, 0, -1):
        order = np.argsort(-gains[:, option], kind="stable")
        free_in_order = is_free[:, order]
        takes = free_in_order & (np.cumsum(free_in_order, axis=1) <= counts[:, [option]])
        taken = np.zeros_like(is_free)
        taken[:, order] = takes
        choice[taken] = option
        is_free &= ~taken
    return choice
