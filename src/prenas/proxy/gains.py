"""Block scores: how much each layer gains from the units that a larger option adds.

They are only compared between interchangeable layers (method.md, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from math import prod
from typing import NamedTuple

import numpy as np
from torch import nn

from prenas.families import family_of
from prenas.families.base import SearchSpace, Stage
from prenas.proxy.boxes import BoxSums
from prenas.proxy.importance import Importance
from prenas.proxy.layout import Shapes, StageLayout, layout_of, widths_before
from prenas.proxy.scores import Floats


class BlockScores(NamedTuple):
    """Gain of each option of an axis over the next smaller one; the first column is zero."""

    normalised: Floats
    """[layers, options] sum over tensors T of n_T / mean n times the sum over the added part of
    |w*g| / (|w|_1 |g|_1), where n_T is the size of T and both norms run over T."""
    raw: Floats
    """[layers, options] sum of |w*g| over the added parts."""


def check_unit_tensors(space: SearchSpace, network: nn.Module) -> None:
    """Checks `Family.unit_tensors` against the network to be scored, before that takes time.

    Raises:
        ValueError: an axis with a choice is missing, or a layer lacks one of its tensors or
            dimensions; the message says what exists.
    """
    family = family_of(space)
    if family.unit_groups is not None:  # these name the tensors of every layer
        return
    layers = iter(family.layers(space.compose(space.extreme(-1))))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.named_parameters()}
    for stage in space.chain:
        prefixes = [next(layers) for _ in range(stage.depths[-1])]
        for axis in (axis for axis in stage.axes if len(axis.options) > 1):
            for prefix in prefixes:
                own = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
                _check_layer(family.name, family.unit_tensors, axis.name, prefix, own)


def _check_layer(
    family: str,
    unit_tensors: Mapping[str, tuple[tuple[str, int], ...]],
    axis: str,
    prefix: str,
    own: Mapping[str, tuple[int, ...]],
) -> None:
    there = ", ".join(f"{name} {list(shape)}" for name, shape in own.items()) or "none"
    if axis not in unit_tensors:
        raise ValueError(
            f"unit_tensors of the family {family} has no entry for the layer axis {axis!r}: name "
            f"the tensors that a larger option enlarges. Those of the layer {prefix!r} are {there}"
        )
    for name, dimension in unit_tensors[axis]:
        if name not in own:
            near = get_close_matches(name, own, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"unit_tensors of the family {family} names {name!r} for the axis {axis!r}, but "
                f"the layer {prefix!r} has no such parameter: {hint}its parameters are {there} "
                "(stage_names decides which tensors belong to a layer)"
            )
        if not 0 <= dimension < len(own[name]):
            raise ValueError(
                f"unit_tensors of the family {family} names dimension {dimension} of {name!r} for "
                f"the axis {axis!r}, but its shape is {list(own[name])}: give a dimension from 0 "
                f"to {len(own[name]) - 1}"
            )


def block_scores(space: SearchSpace, importance: Importance) -> tuple[tuple[BlockScores, ...], ...]:
    """Block scores of every stage and axis: the gain of each option over the next smaller one.

    Widths, and the options of all other axes, are at their largest. The sums run over the tensors
    whose units the axis adds. They are tensors of the scored supernet, cut to the largest width of
    the space but with all of their units. Each is weighted by its size, because a small tensor
    would otherwise have the same share with far fewer elements.
    """
    layers = iter(_unit_tensors(space, importance))
    return tuple(
        tuple(_stage_scores(space, importance, stage, layout, num_before, tensors))
        for num_before, stage, layout in zip(
            widths_before(space.chain), space.chain, layout_of(space), strict=True
        )
        for tensors in [[next(layers) for _ in range(stage.depths[-1])]]
    )


_Tensors = Sequence[tuple[str, int]]
"""(name, dimension) of the parameters that an axis enlarges in one layer."""


def _unit_tensors(space: SearchSpace, importance: Importance) -> Iterator[Mapping[str, _Tensors]]:
    """For each layer of the largest network: axis -> parameters."""
    family, arch = family_of(space), space.compose(space.extreme(-1))
    if family.unit_groups is None:
        for prefix in family.layers(arch):
            yield {
                axis: [(prefix + name, dim) for name, dim in tensors]
                for axis, tensors in family.unit_tensors.items()
            }
        return
    groups = iter(family.unit_groups(arch))
    for stage in space.chain:
        for _ in range(stage.depths[-1]):
            yield {
                axis.name: [(t.name, t.dim) for t in group.tensors if t.name in importance.weights]
                for axis, group in zip(stage.axes, next(groups), strict=True)
            }


def _stage_scores(
    space: SearchSpace,
    importance: Importance,
    stage: Stage,
    layout: StageLayout,
    num_before: int,
    layers: Sequence[Mapping[str, _Tensors]],
) -> Iterator[BlockScores]:
    sizes = [len(axis.options) for axis in stage.axes]
    for number, axis in enumerate(stage.axes):
        normalised, raw = (np.zeros((len(layers), len(axis.options))) for _ in range(2))
        if len(axis.options) > 1:
            largest = [size - 1 for size in sizes]
            ways = [
                [*largest[:number], one, *largest[number + 1 :]] for one in range(sizes[number])
            ]
            options = [int(np.ravel_multi_index(way, sizes)) for way in ways]
            for layer, tensors in enumerate(layers):
                ends = num_before - 1, len(stage.widths) - 1
                shapes = [layout.layer(layer, *ends, option) for option in options]
                normalised[layer, 1:], raw[layer, 1:] = _gains(
                    space, importance, tensors[axis.name], shapes
                )
        yield BlockScores(normalised, raw)


def _gains(
    space: SearchSpace, importance: Importance, tensors: _Tensors, shapes: list[Shapes]
) -> tuple[Floats, Floats]:
    """Normalised and raw gains [options - 1] of one layer; `shapes` has its tensors per option."""
    family = family_of(space)
    shares, gains, sizes = [], [], []
    for name, unit_dim in tensors:
        weight, gradient = importance.weights[name], importance.gradients[name]
        full = tuple(weight.shape)
        owned = [of_option[name] for of_option in shapes if name in of_option]
        boxes = [family.owned_box(name, shape, full) for shape in owned]
        sums = BoxSums((weight * gradient).abs_(), boxes)
        num_absent = len(shapes) - len(boxes)  # the smallest option may leave out the tensor
        gain = np.diff([0.0] * num_absent + [sums(box) for box in boxes])
        whole = list(boxes[-1])
        whole[unit_dim] = slice(0, full[unit_dim])
        norms = [float(tensor[tuple(whole)].abs().double().sum()) for tensor in (weight, gradient)]
        gains.append(gain)
        shares.append(gain / (norms[0] * norms[1]) if all(norms) else np.zeros_like(gain))
        sizes.append(prod(part.stop - part.start for part in whole))
    factors = np.array(sizes) / np.mean(sizes)
    return factors @ np.array(shares), np.sum(gains, axis=0)
