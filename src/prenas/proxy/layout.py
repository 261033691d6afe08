"""What every option of every layer owns and costs, read from as few plain networks as possible.

In a chain of stages (part of a family's contract), a layer's tensors and work follow from the two
widths at its ends and its own options. So a few networks that together show every stage between all
pairs of widths, with all options, are enough to describe every architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prenas.cost import CostAxis, Part, amounts, bounded_axes, knows_every_part, parts_of
from prenas.families import family_of, shapes_by_role
from prenas.families.base import Choices, SearchSpace, Shape, Stage, StageChoice, TensorRole

Integers = npt.NDArray[np.int64]
Shapes = dict[str, Shape]
Layers = tuple[int, ...]


class StageLayout(NamedTuple):
    """The tensor shapes that one stage of a chain owns, independently of all other stages."""

    fixed: dict[tuple[int, int], Shapes]
    """(width before, width) -> shapes of the tensors that belong to no layer."""
    first: dict[tuple[int, int, int], Shapes]
    """(width before, width, option) -> shapes in the first layer."""
    others: dict[tuple[int, int, int], Shapes]
    """(layer, width, option) -> shapes in a later layer, which keeps the stage's width."""

    def layer(self, layer: int, before: int, width: int, option: int) -> Shapes:
        """Shapes in a layer, by the indices of the widths and the number of its option."""
        if layer == 0:
            return self.first[before, width, option]
        return self.others[layer, width, option]


class StageCosts(NamedTuple):
    """What one stage of a chain costs."""

    fixed: Integers
    """[width before, width, cost axes] outside layers."""
    layers: Integers
    """[width before, width, layers, options, cost axes] of each layer."""


def num_options(stage: Stage) -> int:
    """Number of options of a layer: all combinations of one option per axis."""
    return prod(len(axis.options) for axis in stage.axes)


def widths_before(stages: Sequence[Stage]) -> list[int]:
    """Per stage, the number of possible input widths; the first stage has one."""
    return [1, *(len(stage.widths) for stage in stages[:-1])]


class Probe(NamedTuple):
    """One network to read shapes and costs from."""

    widths: tuple[int, ...]
    """Index of each stage's width, after a leading 0 for the input."""
    options: tuple[int, ...]
    """Number of the option in all layers of each stage."""


def _probes(stages: Sequence[Stage]) -> Iterator[Probe]:
    """Networks that together show every stage between all pairs of widths, with all options.

    Each takes the widths along which the most options are still missing.
    """
    left = [
        {
            pair: list(range(num_options(stage)))
            for pair in product(range(n), range(len(stage.widths)))
        }
        for n, stage in zip(widths_before(stages), stages, strict=True)
    ]
    while any(options for stage in left for options in stage.values()):
        best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}  # last width -> new, way
        for stage in left:
            longer: dict[int, tuple[int, tuple[int, ...]]] = {}
            for (before, width), options in stage.items():
                seen, way = best[before]
                longer[width] = max(
                    longer.get(width, (-1, ())), (seen + len(options), (*way, width))
                )
            best = longer
        _, way = max(best.values())
        found = (stage[pair] for stage, pair in zip(left, pairwise(way), strict=True))
        yield Probe(way, tuple(options.pop() if options else 0 for options in found))


@lru_cache(maxsize=32)
def _walks(stages: tuple[Stage, ...]) -> tuple[tuple[Probe, Choices], ...]:
    return tuple((probe, _choices(stages, probe)) for probe in _probes(stages))


def _choices(stages: Sequence[Stage], probe: Probe) -> Choices:
    """Choices with every stage at its deepest and the same options in all of its layers."""
    return tuple(
        StageChoice(
            width,
            stage.depths[-1],
            tuple((one,) * stage.depths[-1] for one in options_of(stage, option)),
        )
        for stage, width, option in zip(stages, probe.widths[1:], probe.options, strict=True)
    )


def options_of(stage: Stage, option: int) -> tuple[int, ...]:
    """The option of each axis that the number of a layer's option stands for."""
    sizes = [len(axis.options) for axis in stage.axes]
    return tuple(int(one) for one in np.unravel_index(option, sizes)) if sizes else ()


@lru_cache(maxsize=32)
def layout_of(space: SearchSpace) -> tuple[StageLayout, ...]:
    """The layout of every stage of a space. Do not modify it: it is cached.

    Layers after the first differ only in their options, so networks with two layers per stage are
    enough, or with as many as the space asks for. They are quick to build.
    """
    walks = _walks(space.chain)
    layouts = tuple(StageLayout({}, {}, {}) for _ in space.chain)
    for probe, choices in walks:
        arch = space.compose(
            tuple(
                _at_most(max(2, stage.depths[0]), choice)
                for stage, choice in zip(space.chain, choices, strict=True)
            )
        )
        found = shapes_by_role(arch, space.settings)
        for number, layout in enumerate(layouts):
            before, width = probe.widths[number : number + 2]
            option, depth = probe.options[number], choices[number].depth
            _note(layout.fixed, (before, width), found.get(TensorRole(number, None), {}))
            if depth:
                _note(layout.first, (before, width, option), found.get(TensorRole(number, 0), {}))
            if depth > 1:
                _note(layout.others, (1, width, option), found.get(TensorRole(number, 1), {}))
    _repeat_second_layers(space, layouts)
    for probe, choices in {walks[0], walks[-1]}:
        built = shapes_by_role(space.compose(choices), space.settings)
        expected = _shapes_of(layouts, probe, choices)
        if built != {role: shapes for role, shapes in expected.items() if shapes}:
            raise ValueError(
                f"the tensors of a layer of {space.name} do not follow from the two widths at its "
                f"ends and its own options: {built}, not {expected}. Correct the network of the "
                "family (docs/extending.md)"
            )
    return layouts


def _at_most(depth: int, choice: StageChoice) -> StageChoice:
    """The same choice, cut to this many layers."""
    options = tuple(one[:depth] for one in choice.options)
    return StageChoice(choice.width, min(choice.depth, depth), options)


def _repeat_second_layers(space: SearchSpace, layouts: Sequence[StageLayout]) -> None:
    """Adds all layers after the second of each stage: the same shapes under other names."""
    stages = family_of(space).stage_names(space.compose(space.extreme(-1)))
    for layout, (prefixes, _) in zip(layouts, stages, strict=True):
        for (_, width, option), shapes in list(layout.others.items()):
            for layer, prefix in enumerate(prefixes[2:], start=2):
                layout.others[layer, width, option] = {
                    prefix + name.removeprefix(prefixes[1]): shape for name, shape in shapes.items()
                }


def _note(known: dict[Any, Shapes], key: tuple[int, ...], shapes: Shapes) -> None:
    before = known.setdefault(key, shapes)
    if before != shapes:
        raise ValueError(
            f"a stage's tensors depend on more than its widths and options: {before}, {shapes}. "
            "Correct the network of the family (docs/extending.md)"
        )


def costs_of(space: SearchSpace, resolution: int | None) -> tuple[StageCosts, ...]:
    """The costs of every stage of a space at one resolution; do not modify them (cached)."""
    return _costs_of(space, resolution, bounded_axes())


@lru_cache(maxsize=64)
def _costs_of(
    space: SearchSpace, resolution: int | None, axes: tuple[CostAxis, ...]
) -> tuple[StageCosts, ...]:
    stages, costs = space.chain, []
    for num_before, stage in zip(widths_before(stages), stages, strict=True):
        shape, inner = (num_before, len(stage.widths)), (stage.depths[-1], num_options(stage))
        fixed = np.zeros((*shape, len(axes)), dtype=np.int64)
        costs.append(StageCosts(fixed, np.zeros((*shape, *inner, len(axes)), dtype=np.int64)))
    for probe, part in probed_parts(space, resolution):
        number, layer = part.work.role
        before, width = probe.widths[number : number + 2]
        if layer is None:
            costs[number].fixed[before, width] = amounts(part, axes)
        else:
            came = before if layer == 0 else slice(None)
            option = probe.options[number]
            costs[number].layers[came, width, layer, option] = amounts(part, axes)
    return tuple(costs)


def probed_parts(space: SearchSpace, resolution: int | None) -> Iterator[tuple[Probe, Part]]:
    """All kinds of parts that networks of a space have at one resolution, each at least once."""
    layouts = layout_of(space)
    for probe, choices in _walks(space.chain):
        arch = space.compose(choices, resolution)
        for part in parts_of(arch, space.settings, _shapes_of(layouts, probe, choices)):
            yield probe, part


@lru_cache(maxsize=64)
def counts_all(space: SearchSpace, axis: CostAxis) -> bool:
    """Whether an axis knows every part that a network of the space may have."""
    if axis.knows is knows_every_part:  # large spaces have many parts
        return True
    return all(
        axis.knows(part)
        for resolution in space.resolutions
        for _, part in probed_parts(space, resolution)
    )


def _shapes_of(
    layouts: Sequence[StageLayout], probe: Probe, choices: Choices
) -> dict[TensorRole, Shapes]:
    """The shapes in every stage and layer of a probe's network."""
    shapes: dict[TensorRole, Shapes] = {}
    for number, (layout, choice) in enumerate(zip(layouts, choices, strict=True)):
        before, width = probe.widths[number : number + 2]
        shapes[TensorRole(number, None)] = layout.fixed[before, width]
        for layer in range(choice.depth):
            shapes[TensorRole(number, layer)] = layout.layer(
                layer, before, width, probe.options[number]
            )
    return shapes


def interchangeable(space: SearchSpace, resolution: int | None) -> tuple[tuple[Layers, ...], ...]:
    """Classes of interchangeable layers in each stage.

    Two layers are interchangeable if every option has equal tensors and costs in both, for all
    widths at the ends of the stage.
    """
    return _interchangeable(space, resolution, bounded_axes())


@lru_cache(maxsize=64)
def _interchangeable(
    space: SearchSpace, resolution: int | None, axes: tuple[CostAxis, ...]
) -> tuple[tuple[Layers, ...], ...]:
    family, stages = family_of(space), space.chain
    names = iter(family.layers(space.compose(space.extreme(-1))))
    classes = []
    for stage, layout, costs in zip(
        stages, layout_of(space), _costs_of(space, resolution, axes), strict=True
    ):
        found: dict[object, list[int]] = {}
        for layer in range(stage.depths[-1]):
            prefix = next(names)
            ends = product(*(range(size) for size in costs.layers[:, :, 0, :, 0].shape))
            tensors = tuple(
                frozenset(
                    (name.removeprefix(prefix), shape)
                    for name, shape in layout.layer(layer, *end).items()
                )
                for end in ends
            )
            key = tensors, costs.layers[:, :, layer].tobytes()
            found.setdefault(key, []).append(layer)
        classes.append(tuple(map(tuple, found.values())))
    return tuple(classes)
