"""The selector's contract in literal form: small tables, and all of their subnets."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from math import prod

import numpy as np
import torch
from hypothesis import strategies as st

from prenas.cost import bounded_names
from prenas.families import get_space
from prenas.families.base import Choices, SearchSpace, StageChoice
from prenas.families.mobilenet.space import MobileNetSpace
from prenas.proxy.gains import block_scores
from prenas.proxy.importance import Importance
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.proxy.tables import SpaceTables, StageTable, cost_tables, space_tables, stage_scores
from prenas.recipe import Enumeration
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Candidate
from prenas.selection.isomers import isomer_gains
from prenas.supernet import Supernet
from reference import scores as literal

MICRO = get_space("mobilenet-micro")
"""Tied: its 5,184 architectures are its classes."""

assert isinstance(MICRO, MobileNetSpace)
_FIRST, _SECOND, _THIRD = MICRO.stages
UNTIED = MICRO.model_copy(
    update={
        "name": "untied",
        "tied": False,
        "stages": (
            _FIRST,
            _SECOND.model_copy(update={"depth": (1, 2), "expand": (2, 4)}),
            _THIRD.model_copy(update={"width": (24, 40), "depth": (1, 3), "expand": (3, 4)}),
        ),
        "head": (64,),
    }
)
"""5,440 architectures, blocks free, in 3,200 classes."""


# --- everything that tables hold -----------------------------------------------------------------


def stage_choices(
    table: StageTable, enumeration: Enumeration = "all", *, free: bool = False
) -> Iterator[StageChoice]:
    """Widths, then depths, then options: one per class of isomers, or all if `free`."""
    for width, depth in product(range(table.fixed_costs.shape[1]), table.depths):
        sizes = table.num_options
        ways: Iterator[tuple[tuple[int, ...], ...]]
        if table.tied:
            joint = product(*map(range, sizes)) if depth else [(0,) * len(sizes)]
            ways = (tuple((one,) * depth for one in options) for options in joint)
        elif free:
            ways = product(*(product(range(size), repeat=depth) for size in sizes))
        else:
            ways = _representatives(table, depth, enumeration)
        for options in ways:
            yield StageChoice(width, depth, options)


def _representatives(
    table: StageTable, depth: int, enumeration: Enumeration
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Per class of interchangeable layers and axis one allocation of every count vector."""
    classes = [[layer for layer in layers if layer < depth] for layers in table.classes]
    classes = [layers for layers in classes if layers]
    places = list(product(classes, range(len(table.num_options))))
    allocations = []
    for layers, axis in places:
        by_option = table.gains[axis][layers, 1:].T.tolist()
        vectors = literal.enumerate_counts(
            len(layers), table.num_options[axis], published=enumeration == "published"
        )
        # Production cuts from the largest option down, the reference from the smallest up.
        allocations.append([literal.allocate(by_option, vector[::-1]) for vector in vectors])
    for allocated in product(*allocations):
        options = [[0] * depth for _ in table.num_options]
        for (layers, axis), taken in zip(places, allocated, strict=True):
            for layer, option in zip(layers, taken, strict=True):
                options[axis][layer] = option
        yield tuple(map(tuple, options))


def every_candidate(
    tables: SpaceTables, enumeration: Enumeration = "all", *, free: bool = False
) -> list[Candidate]:
    """Of every combination of choices, in their order: cost and score, entry by entry."""
    ways: list[tuple[Choices, tuple[int, ...], float]] = [((), (0,) * len(bounded_names()), 0.0)]
    for table in tables.stages:
        choices = list(stage_choices(table, enumeration, free=free))
        adds = {}
        for before, choice in product(range(len(table.fixed_costs)), choices):
            cost = table.fixed_costs[before, choice.width].tolist()
            score = float(table.fixed_scores[before, choice.width])
            for layer in range(choice.depth):
                place = 0
                for options, size in zip(choice.options, table.num_options, strict=True):
                    place = place * size + options[layer]
                entry = table.costs[before, choice.width, layer, place].tolist()
                cost = [a + b for a, b in zip(cost, entry, strict=True)]
                score += float(table.scores[before, choice.width, layer, place])
            adds[before, choice] = cost, score
        longer = []
        for way, cost, score in ways:
            before = way[-1].width if way else 0
            for choice in choices:
                more, gain = adds[before, choice]
                total = tuple(a + b for a, b in zip(cost, more, strict=True))
                longer.append(((*way, choice), total, score + gain))
        ways = longer
    return [
        Candidate(
            way,
            tables.resolution,
            dict(zip(bounded_names(), cost, strict=True)),
            float(tables.finish(np.array(score))) if tables.finish else score,
        )
        for way, cost, score in ways
    ]


def inside(candidate: Candidate, budget: Budget) -> bool:
    return all(lo <= candidate.cost[axis] < hi for axis, (lo, hi) in budget.intervals.items())


def ranking(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """The subnets inside a budget, sorted by score, bounded costs, other costs and order."""
    axes = sorted(bounded_names(), key=lambda axis: axis not in budget.intervals)
    return sorted(
        (one for one in candidates if inside(one, budget)),
        key=lambda one: (-one.score, *(one.cost[axis] for axis in axes)),
    )


# --- tables to try -------------------------------------------------------------------------------

_MOST_CHOICES = {1: 300, 2: 40, 3: 12}
"""Of a stage of a chain of so many, so that everything can be tried."""


@st.composite
def tables(draw: st.DrawFn, most_stages: int = 3) -> SpaceTables:
    """Integers from a small range, so that sums are exact and ties are frequent."""
    number = draw(st.integers(1, most_stages))
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    highest, largest = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    unit = draw(st.sampled_from([1, 1, 7, 82112]))
    stages, num_before = [], 1
    for _ in range(number):
        sizes = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
        depths = tuple(sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=3))))
        widths, tied = draw(st.integers(1, 3)), draw(st.booleans())
        starts = sorted(draw(st.sets(st.integers(1, 2))) | {0})  # of classes of layers
        while _num_choices(widths, depths, sizes, tied=tied) > _MOST_CHOICES[number]:
            if len(depths) > 1:
                depths = depths[:-1]
            elif sizes and depths[0]:
                sizes = sizes[1:]
            else:
                widths -= 1
        table = _table(generator, (num_before, widths), depths, sizes, starts, highest, largest)
        costs = {"fixed_costs": table.fixed_costs * unit, "costs": table.costs * unit}
        stages.append(replace(table, tied=tied, **costs))
        num_before = widths
    return SpaceTables(tuple(stages), finish=draw(st.sampled_from([None, np.abs])))


def _num_choices(widths: int, depths: Sequence[int], sizes: Sequence[int], *, tied: bool) -> int:
    per_layer = prod(sizes)
    return widths * sum(per_layer ** (min(depth, 1) if tied else depth) for depth in depths)


def _table(
    generator: np.random.Generator,
    ends: tuple[int, int],
    depths: tuple[int, ...],
    sizes: tuple[int, ...],
    starts: list[int],
    highest: int,
    largest: int,
) -> StageTable:
    """A stage whose classes of layers start at `starts`; layers of a class cost the same."""
    deepest, options = depths[-1], prod(sizes)
    edges = [*(start for start in starts if start < deepest), deepest]
    classes = tuple(tuple(range(start, end)) for start, end in pairwise(edges))
    of_class = generator.integers(0, largest + 1, size=(*ends, len(classes), options, 2))
    lengths = [len(layers) for layers in classes]
    return StageTable(
        depths,
        sizes,
        False,
        classes,
        generator.integers(0, largest + 1, size=(*ends, 2)),
        np.repeat(of_class, lengths, axis=2) if classes else of_class,
        generator.integers(-highest, highest + 1, size=ends).astype(np.float64),
        generator.integers(-highest, highest + 1, size=(*ends, deepest, options)).astype(float),
        tuple(generator.integers(0, 3, size=(deepest, size)).astype(float) for size in sizes),
    )


@st.composite
def budgets(draw: st.DrawFn, candidates: Sequence[Candidate], *, both: bool = True) -> Budget:
    """Ends at costs that there are, or just beyond: of one cost or of both, with a lower end or
    without."""
    names = [("params",), ("macs",), *([bounded_names()] if both else [])]
    intervals = {}
    for axis in draw(st.sampled_from(names)):
        ends = sorted({one.cost[axis] + more for one in candidates for more in (0, 1)} | {0})
        places = st.integers(0, len(ends) - 1)
        low, high = sorted(draw(st.tuples(places, places)))
        if draw(st.booleans()):
            low = 0
        intervals[axis] = (ends[low], max(ends[high], ends[low] + 1))
    return Budget(intervals)


# --- real spaces ---------------------------------------------------------------------------------


@functools.cache
def random_importance(space: SearchSpace, seed: int = 3) -> Importance:
    """Normal weights and gradients of a supernet's shapes."""
    generator = torch.Generator().manual_seed(seed)
    network = Supernet(space.supernet, space.settings).network
    weights, gradients = (
        {
            name: torch.randn(parameter.shape, generator=generator)
            for name, parameter in network.named_parameters()
        }
        for _ in range(2)
    )
    return Importance(weights, gradients)


@functools.cache
def tables_of(space: SearchSpace) -> SpaceTables:
    """Tables from random importances, at the first resolution."""
    importance = random_importance(space)
    gains = isomer_gains("published", block_scores(space, importance), 0)
    scores = stage_scores(space, importance, score=PUBLISHED_SCORE)
    side = space.resolutions[0]
    return space_tables(space, scores, gains, score=PUBLISHED_SCORE, resolution=side)


@functools.cache
def every_arch(space: SearchSpace) -> list[Candidate]:
    """All architectures of a small space at its first resolution, scored as in `tables_of`."""
    return every_candidate(tables_of(space), free=True)


@functools.cache
def every_cost(space: SearchSpace) -> list[Candidate]:
    """The same without scores."""
    return every_candidate(cost_tables(space, space.resolutions[0]), free=True)
