"""Isomers: subnets that differ only in which of a stage's interchangeable layers has which option.

With one axis of choices per layer, isomers cost the same. With several axes their costs can differ
by how the options of a layer combine. One isomer of each class is kept: from the largest option
down, an option goes to the free layers that gain the most from it, or it is spread evenly over the
free layers (method.md, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np

from prenas.families.base import Choices, SearchSpace
from prenas.proxy.gains import BlockScores
from prenas.proxy.layout import Integers
from prenas.proxy.scores import Floats
from prenas.proxy.tables import SpaceTables, StageTable, cost_tables
from prenas.randomness import numpy_generator
from prenas.recipe import Enumeration, IsomerRule
from prenas.selection.allocations import Allocations, count_vectors
from prenas.values import unknown_name

_MOST_LISTED = 50_000_000  # options of layers; as many numbers take 400 MB


def isomer_gains(
    rule: IsomerRule, block_scores: Sequence[Sequence[BlockScores]], seed: int
) -> tuple[tuple[Floats, ...], ...]:
    """Gains [layers, options] by which the rule ranks layers, per stage and axis.

    They are zero for `even`, which ranks nothing.

    Raises:
        ValueError: the rule is unknown.
    """

    def of(scores: BlockScores, *place: int) -> Floats:
        if rule == "published":
            return scores.normalised
        if rule == "worst":
            return -scores.normalised
        if rule == "even":
            return np.zeros_like(scores.raw)
        if rule == "raw":
            return scores.raw
        if rule in ("front", "nested"):
            layers = np.arange(len(scores.raw))
            first = layers if rule == "front" else _bits_reversed(layers)
            return np.repeat(-first[:, None].astype(np.float64), scores.raw.shape[1], axis=1)
        if rule == "random":
            return numpy_generator(seed, "isomers", *place).random(scores.raw.shape)
        raise unknown_name("isomer rule", rule, get_args(IsomerRule))

    return tuple(
        tuple(of(scores, stage, axis) for axis, scores in enumerate(stage_scores))
        for stage, stage_scores in enumerate(block_scores)
    )


def _bits_reversed(numbers: Integers) -> Integers:
    """The numbers with the order of their bits reversed, in as many bits as the largest needs.

    Sorted by it, 0 to 7 are 0, 4, 2, 6, 1, 5, 3, 7: any number of the first ones are far apart (van
    der Corput, 1935).
    """
    num_bits = int(numbers.max(initial=0)).bit_length()
    bits = numbers[:, None] >> np.arange(num_bits) & 1
    reversed_numbers: Integers = bits @ (1 << np.arange(num_bits)[::-1])
    return reversed_numbers


def num_isomer_classes(space: SearchSpace, enumeration: Enumeration = "all") -> int:
    """Number of isomer classes in a space, counted without listing them, over all resolutions.

    L interchangeable layers and an axis of n options give C(L + n - 1, n - 1) count vectors, of
    which the published enumeration keeps C(L + 1, n - 1).
    """
    return sum(
        num_classes(cost_tables(space, resolution).stages, enumeration)
        for resolution in space.resolutions
    )


def num_classes(stages: Sequence[StageTable], enumeration: Enumeration = "all") -> int:
    """Number of isomer classes of these stages, at one resolution."""
    return math.prod(table.fixed_costs.shape[1] * num_items(table, enumeration) for table in stages)


def num_items(table: StageTable, enumeration: Enumeration) -> int:
    """Number of variants of a stage apart from its width, the length of `stage_items`."""
    return sum(_num_items(table, depth, enumeration) for depth in table.depths)


def _num_items(table: StageTable, depth: int, enumeration: Enumeration) -> int:
    if table.tied:
        return math.prod(table.num_options) if depth else 1
    return math.prod(
        _num_allocations(len(layers), size, enumeration)
        for layers in _classes(table, depth)
        for size in table.num_options
    )


def _num_allocations(num_layers: int, num_options: int, enumeration: Enumeration) -> int:
    """Number of ways to say how many of the layers have each option."""
    free = 1 if enumeration == "published" else num_options - 1
    return math.comb(num_layers + free, num_options - 1)


def _classes(table: StageTable, depth: int) -> list[list[int]]:
    """The classes of interchangeable layers in a stage of this depth."""
    classes = ([layer for layer in layers if layer < depth] for layers in table.classes)
    return [layers for layers in classes if layers]


def require_listable(space: SearchSpace, enumeration: Enumeration, *, by_axis: bool = True) -> None:
    """Raises ValueError for a space in which one axis alone has too many classes to list.

    It needs no tables. It takes all layers of a stage for interchangeable, so `stage_items` may
    still find too many classes.

    Args:
        by_axis: takes all axes for independent of each other, so that each is listed alone. False:
            scores do not add up over axes, so all combinations must be listed.
    """
    joined = sum if by_axis else math.prod
    for stage in space.chain:
        sizes = [len(axis.options) for axis in stage.axes]
        allocations = [
            [_num_allocations(depth, size, enumeration) for size in sizes] for depth in stage.depths
        ]
        if not stage.tied and not _are_few(sum(map(joined, allocations)), stage.depths[-1]):
            raise _too_many(sum(map(math.prod, allocations)), stage.depths[-1], sizes)


def _are_few(number: int, num_layers: int) -> bool:
    return number * num_layers <= _MOST_LISTED


def _too_many(number: int, deepest: int, sizes: Sequence[int]) -> ValueError:
    return ValueError(
        f"a stage of up to {deepest} layers with {' x '.join(map(str, sizes))} options has "
        f"{_rounded(number)} isomer classes, too many to list: use fewer options or layers"
    )


def _rounded(number: int) -> str:
    """A number of any size: exact if it is short."""
    return f"{number:,}" if number < 10**12 else f"about 10^{int(math.log10(number))}"


def stage_items(table: StageTable, enumeration: Enumeration) -> Integers:
    """All variants of a stage apart from its width: [items, layers of the deepest].

    An item has the number of each layer's option, and -1 where there is no layer. Items are ordered
    by depth. Tied layers all take the same option; other layers take the options of the
    representative of each isomer class.

    Raises:
        ValueError: the published enumeration leaves no item, or there are too many to list.
    """
    deepest = table.depths[-1]
    if not _are_few(number := num_items(table, enumeration), deepest):
        raise _too_many(number, deepest, table.num_options)
    found = []
    for depth in table.depths:
        chosen = _tied(table, depth) if table.tied else _representatives(table, depth, enumeration)
        missing = np.full((len(chosen), deepest - depth), -1)
        found.append(np.concatenate([chosen, missing], axis=1))
    items: Integers = np.concatenate(found)
    if len(items) == 0:
        raise ValueError(
            "enumeration 'published' skips allocations that give no layer to a middle option, but "
            "in a stage with fewer layers than middle options that is all of them: choose "
            "enumeration 'all'"
        )
    return items


def _tied(table: StageTable, depth: int) -> Integers:
    every = np.arange(math.prod(table.num_options) if depth else 1)
    return np.repeat(every[:, None], depth, axis=1)


def _representatives(table: StageTable, depth: int, enumeration: Enumeration) -> Integers:
    """[classes, depth] representatives of layers that choose freely: the product over all axes."""
    numbers = np.zeros((1, depth), dtype=np.int64)
    for found in _allocations(table, depth, enumeration):
        ways = np.zeros((len(found), depth), dtype=np.int64)
        ways[:, found.layers] = found.numbers()
        numbers = (numbers[:, None] + ways).reshape(-1, depth)
    return numbers


def axis_items(table: StageTable, depth: int, enumeration: Enumeration) -> list[Allocations]:
    """What every class of layers and axis adds to the numbers of the options.

    One way of each, added up, is a variant of the stage with this depth. The list has the same
    length for every depth; its last entry adds nothing.

    Raises:
        ValueError: the ways of a single axis are too many to list.
    """
    for size in table.num_options:
        if not _are_few(number := _num_allocations(depth, size, enumeration), depth):
            raise _too_many(number, depth, [size])
    found = [*_allocations(table, depth, enumeration)]
    nothing = Allocations(table, (), 0, np.zeros((1, table.num_options[0]), dtype=np.int64))
    longest = len(table.classes) * len(table.num_options) + 1
    return found + [nothing] * (longest - len(found))


def _allocations(table: StageTable, depth: int, enumeration: Enumeration) -> Iterator[Allocations]:
    for layers in _classes(table, depth):
        for axis, size in enumerate(table.num_options):
            counts = count_vectors(len(layers), size, enumeration)
            yield Allocations(table, layers, axis, counts)


def class_of(tables: SpaceTables, choices: Choices) -> tuple[object, ...]:
    """A value that is equal for subnets of one isomer class only."""
    return tuple(
        (
            choice.width,
            choice.depth,
            choice.options
            if table.tied
            else tuple(
                tuple(sorted(options[layer] for layer in layers))
                for layers in _classes(table, choice.depth)
                for options in choice.options
            ),
        )
        for table, choice in zip(tables.stages, choices, strict=True)
    )
