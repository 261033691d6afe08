"""From importances to tables: what every option of every layer costs, scores and gains.

A table is all that the selector sees: numbers, no networks. Layers of one skeleton (the choices
made once per network) are independent: a subnet's cost and its score are a base plus one entry
per layer and axis. The family's layers are interchangeable, so an option costs the same in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prenas.cost import count_shapes
from prenas.families import family_of
from prenas.families.base import (
    COST_AXES,
    Arch,
    Box,
    Family,
    SearchSpace,
    Settings,
    Skeleton,
    leading_boxes,
)
from prenas.proxy.boxes import BoxSums
from prenas.proxy.importance import Importance
from prenas.proxy.layout import layout_of
from prenas.proxy.scores import WEIGHT_SCORES, Floats

Integers = npt.NDArray[np.int64]


class BlockScores(NamedTuple):
    """Gain of every option of an axis over the one below it; the first column is zero."""

    normalised: Floats
    """[layers, options] sum over the added units of |w*g| / (|w|_1 |g|_1), per matrix."""
    raw: Floats
    """[layers, options] sum over the added units of |w*g|."""


@dataclass(frozen=True)
class AxisTable:
    """One per-layer axis on one skeleton; options in rising order."""

    costs: Integers
    """[options, cost axes] cost of the option in one layer, beyond the smallest option."""
    scores: Floats
    """[layers, options] what the option adds to the score."""


@dataclass(frozen=True)
class SkeletonTable:
    """Costs and scores of all subnets on one skeleton."""

    num_layers: int
    base_cost: Integers
    """[cost axes] cost with the smallest option everywhere."""
    base_score: float
    axes: tuple[AxisTable, ...]


@dataclass(frozen=True)
class SpaceTables:
    """The contract between proxy and selector: everything a choice depends on."""

    skeletons: tuple[SkeletonTable, ...]
    gains: tuple[Floats, ...]
    """Per axis, [layers of the deepest skeleton, options]: where a larger option goes first."""
    finish: Callable[[Floats], Floats] | None = None
    """Applied to a subnet's sum to give its score; None leaves the sum."""


class _Boxes(NamedTuple):
    """What the subnets on one skeleton own of the supernet; see `Layout`."""

    fixed: dict[str, Box]
    chosen: list[list[dict[str, Box]]]


def _probes(space: SearchSpace, skeleton: Skeleton) -> Iterator[tuple[int | None, int, Arch]]:
    """(axis, option, architecture with that option in all layers and the smallest elsewhere)."""
    smallest = [[0] * skeleton.num_layers for _ in space.layer_axes]
    yield None, 0, space.compose(skeleton, smallest)
    for number, axis in enumerate(space.layer_axes):
        for option in range(1, len(axis.options)):
            choices = [*smallest[:number], [option] * skeleton.num_layers, *smallest[number + 1 :]]
            yield number, option, space.compose(skeleton, choices)


def _boxes(space: SearchSpace, importance: Importance, skeleton: Skeleton) -> _Boxes:
    layout = layout_of(space, skeleton)
    full = {name: tuple(weight.shape) for name, weight in importance.weights.items()}
    return _Boxes(
        leading_boxes(layout.fixed, full),
        [[leading_boxes(shapes, full) for shapes in options] for options in layout.chosen],
    )


def _tensor_sums(
    space: SearchSpace, importance: Importance, score: str, boxes: Iterable[_Boxes]
) -> Iterator[tuple[str, BoxSums]]:
    """Sums of the score's elements, tensor by tensor, over the boxes of all skeletons."""
    family, entry = family_of(space), WEIGHT_SCORES[score]
    boxes_of: dict[str, list[Box]] = {}
    for fixed, chosen in boxes:
        for parts in (fixed, *chain.from_iterable(chosen)):
            for name, box in parts.items():
                boxes_of.setdefault(name, []).append(box)
    for name, weight in importance.weights.items():
        is_summed = family.is_scored(name) and (
            not entry.layer_choices_only or family.role(name).axis is not None
        )
        if is_summed:
            elements = entry.element(weight, importance.gradients[name])
            yield name, BoxSums(elements, boxes_of[name])


def space_tables(
    space: SearchSpace,
    importance: Importance,
    gains: tuple[Floats, ...],
    *,
    score: str,
) -> SpaceTables:
    """Tables of a space from importances measured on its supernet.

    Args:
        gains: per axis, where a larger option goes first (`prenas.selection.isomers`).
        score: a name from `WEIGHT_SCORES` or from the family's scores of architectures.
    """
    function = family_of(space).arch_scores.get(score)
    if function:
        scored = [_arch_scores(space, skeleton, function) for skeleton in space.skeletons]
    else:
        boxes = [_boxes(space, importance, skeleton) for skeleton in space.skeletons]
        sums = dict(_tensor_sums(space, importance, score, boxes))
        family = family_of(space)
        scored = [
            _weight_scores(family, skeleton, parts, sums)
            for skeleton, parts in zip(space.skeletons, boxes, strict=True)
        ]
    skeletons = []
    for skeleton, (base_score, scores) in zip(space.skeletons, scored, strict=True):
        base_cost, costs = option_costs(space, skeleton)
        axes = tuple(AxisTable(*pair) for pair in zip(costs, scores, strict=True))
        skeletons.append(SkeletonTable(skeleton.num_layers, base_cost, base_score, axes))
    finish = None if function else WEIGHT_SCORES[score].finish
    return SpaceTables(tuple(skeletons), gains, finish)


def cost_tables(space: SearchSpace) -> SpaceTables:
    """Tables of costs alone, every score zero: all that is known before the backward pass."""
    skeletons = []
    for skeleton in space.skeletons:
        base, costs = option_costs(space, skeleton)
        axes = tuple(AxisTable(c, np.zeros((skeleton.num_layers, len(c)))) for c in costs)
        skeletons.append(SkeletonTable(skeleton.num_layers, base, 0.0, axes))
    deepest = max(table.num_layers for table in skeletons)
    gains = tuple(np.zeros((deepest, len(axis.options))) for axis in space.layer_axes)
    return SpaceTables(tuple(skeletons), gains)


def option_costs(space: SearchSpace, skeleton: Skeleton) -> tuple[Integers, list[Integers]]:
    """Base cost [cost axes], and per axis what an option adds in one layer [options, cost axes]."""
    base = np.zeros(len(COST_AXES), dtype=np.int64)
    added = [np.zeros((len(axis.options), len(COST_AXES)), np.int64) for axis in space.layer_axes]
    layout = layout_of(space, skeleton)
    for axis, option, arch in _probes(space, skeleton):
        options = [option if number == axis else 0 for number in range(len(added))]
        cost = count_shapes(arch, space.settings, layout.shapes(options))
        total = np.array([getattr(cost, name) for name in COST_AXES], dtype=np.int64)
        if axis is None:
            base = total
            continue
        added[axis][option], rest = np.divmod(total - base, skeleton.num_layers)
        assert not rest.any(), f"the layers of {skeleton} are not interchangeable: {total - base}"
    return base, added


def _weight_scores(
    family: Family, skeleton: Skeleton, boxes: _Boxes, sums: Mapping[str, BoxSums]
) -> tuple[float, list[Floats]]:
    """Base score, and per axis the score [layers, options] of the tensors that the axis sizes."""
    base = sum((sums[name](box) for name, box in boxes.fixed.items() if name in sums), 0.0)
    scores = [np.zeros((skeleton.num_layers, len(options))) for options in boxes.chosen]
    for axis_scores, options in zip(scores, boxes.chosen, strict=True):
        for option, parts in enumerate(options):
            for name, box in parts.items():
                if name in sums:
                    axis_scores[family.role(name).layer, option] += sums[name](box)
    return base, scores


def _arch_scores(
    space: SearchSpace, skeleton: Skeleton, function: Callable[[Arch, Settings], float]
) -> tuple[float, list[Floats]]:
    """The same for a score that is a function of the architecture, additive over its layers."""
    base = 0.0
    scores = [np.zeros((skeleton.num_layers, len(axis.options))) for axis in space.layer_axes]
    for probed, option, arch in _probes(space, skeleton):
        value = function(arch, space.settings)
        if probed is None:
            base = value
        else:
            scores[probed][:, option] = (value - base) / skeleton.num_layers
    return base, scores


def block_scores(space: SearchSpace, importance: Importance) -> tuple[BlockScores, ...]:
    """Per axis, the gain of every option over the one below, in every layer (method.md, section 2).

    Taken at the largest skeleton. The matrices are those whose units the axis adds; both norms
    run over the matrix of the scored supernet, cut to the largest width of the space but with all
    of its units.
    """
    family = family_of(space)
    skeleton = space.skeletons[-1]
    chosen = _boxes(space, importance, skeleton).chosen
    result = []
    for number, axis in enumerate(space.layer_axes):
        shape = (skeleton.num_layers, len(axis.options))
        normalised, raw = np.zeros(shape), np.zeros(shape)
        for layer in range(skeleton.num_layers):
            for inner_name, unit_dim in family.unit_tensors[axis.name]:
                name = family.layer_prefix(layer) + inner_name
                weight, gradient = importance.weights[name], importance.gradients[name]
                boxes = [parts[name] for parts in chosen[number]]
                sums = BoxSums((weight * gradient).abs_(), boxes)
                gain = np.diff([sums(box) for box in boxes])
                matrix = list(boxes[-1])
                matrix[unit_dim] = slice(0, weight.shape[unit_dim])
                norms = [
                    float(tensor[tuple(matrix)].abs().double().sum())
                    for tensor in (weight, gradient)
                ]
                raw[layer, 1:] += gain
                normalised[layer, 1:] += gain / (norms[0] * norms[1])
        result.append(BlockScores(normalised, raw))
    return tuple(result)
