"""What every option of every layer owns, read off as few plain networks as there can be.

An option resizes only the tensors of its own layer and axis, and layers are interchangeable
(both are part of a family's contract). So one network whose layers take turns at the options shows
the shapes of them all, and the shapes of any architecture on its skeleton are put together from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from prenas.families import family_of, parameter_shapes
from prenas.families.base import SearchSpace, Shape, Skeleton

Shapes = dict[str, Shape]


class Layout(NamedTuple):
    """Shapes of the parameters of all subnets on one skeleton."""

    fixed: Shapes
    """Of the tensors that no per-layer choice sizes."""
    chosen: tuple[tuple[Shapes, ...], ...]
    """Per axis and option: of the tensors that the axis sizes, in all layers."""

    def shapes(self, options: Sequence[int]) -> Iterator[Shape]:
        """Of the subnet with one option per axis, the same in all layers."""
        yield from self.fixed.values()
        for axis, option in zip(self.chosen, options, strict=True):
            yield from axis[option].values()


@lru_cache(maxsize=256)
def layout_of(space: SearchSpace, skeleton: Skeleton) -> Layout:
    """The layout of a skeleton; do not change what it holds."""
    family, num_layers = family_of(space), skeleton.num_layers
    layers, axes = range(num_layers), space.layer_axes
    number_of = {axis.name: number for number, axis in enumerate(axes)}
    fixed: Shapes = {}
    # Axis, option -> shapes under their names inside a layer.
    found: list[list[Shapes]] = [[{} for _ in axis.options] for axis in axes]
    for first in range(0, max(len(axis.options) for axis in axes), num_layers):
        turns = [[(first + layer) % len(axis.options) for layer in layers] for axis in axes]
        arch = space.compose(skeleton, turns)
        for name, shape in parameter_shapes(arch, space.settings).items():
            layer, axis = family.role(name)
            if axis is None:
                fixed[name] = shape
                continue
            assert layer is not None, f"{name} has an axis but no layer"
            number = number_of[axis]
            inner = name.removeprefix(family.layer_prefix(layer))
            known = found[number][turns[number][layer]].setdefault(inner, shape)
            assert known == shape, f"layers of {skeleton} are not interchangeable: {name} {shape}"
    chosen = tuple(
        tuple(
            {
                family.layer_prefix(layer) + inner: shape
                for layer in layers
                for inner, shape in shapes.items()
            }
            for shapes in options
        )
        for options in found
    )
    return Layout(fixed, chosen)
