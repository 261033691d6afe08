"""Small chains of integers, and a literal form of what the selector should answer."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from prenas.cost import bounded_names
from prenas.families.base import Choices, StageChoice
from prenas.proxy.tables import SpaceTables, StageTable
from prenas.recipe import Enumeration
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Candidate
from proxy.reading import cost_from_tables, sum_from_tables
from reference import scores as literal

COST_AXES = bounded_names()

Interval = tuple[int, int]

CLASSES = {
    0: ((),),
    1: (((0,),),),
    2: (((0, 1),), ((0,), (1,))),
    3: (((0, 1, 2),), ((0,), (1, 2)), ((0, 2), (1,))),
}
"""Number of layers -> how they may be interchangeable."""


def integers(draw: st.DrawFn, low: int, high: int, *shape: int) -> np.ndarray:
    size = int(np.prod(shape))
    values = st.lists(st.integers(low, high), min_size=size, max_size=size)
    return np.array(draw(values), dtype=np.int64).reshape(shape)


@st.composite
def stage_tables(
    draw: st.DrawFn, num_before: int, unit: int = 1, tied: bool | None = None
) -> StageTable:
    """Costs that may fall with width, scores of both signs, and ties everywhere."""
    num_widths = draw(st.integers(1, 2))
    depths = tuple(sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=2))))
    sizes = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    number, deepest = int(np.prod(sizes)), depths[-1]
    classes = draw(st.sampled_from(CLASSES[deepest]))
    ends = (num_before, num_widths)
    costs = np.zeros((*ends, deepest, number, len(COST_AXES)), dtype=np.int64)
    for layers in classes:
        found = integers(draw, 0, 5, *ends, 1, number, len(COST_AXES))
        costs[:, :, list(layers)] = unit * found
    return StageTable(
        depths=depths,
        num_options=sizes,
        tied=draw(st.booleans()) if tied is None else tied,
        classes=classes,
        fixed_costs=unit * integers(draw, 0, 5, *ends, len(COST_AXES)),
        costs=costs,
        fixed_scores=integers(draw, -3, 5, *ends).astype(np.float64),
        scores=integers(draw, -2, 5, *ends, deepest, number).astype(np.float64),
        gains=tuple(integers(draw, 0, 2, deepest, size).astype(np.float64) for size in sizes),
    )


@st.composite
def tables(
    draw: st.DrawFn, most_stages: int = 3, unit: int = 1, tied: bool | None = None
) -> SpaceTables:
    """A chain of up to this many stages."""
    stages: list[StageTable] = []
    num_before = 1
    for _ in range(draw(st.integers(1, most_stages))):
        stages.append(draw(stage_tables(num_before, unit, tied)))
        num_before = stages[-1].fixed_scores.shape[1]
    return SpaceTables(tuple(stages), None, draw(st.sampled_from([None, np.abs])))


def chain_of(*stages: Sequence[tuple[int, int, float]]) -> SpaceTables:
    """Stages without layers; each width costs so many (params, macs) and scores so much."""
    found, num_before = [], 1
    for entries in stages:
        costs = np.array([entry[:2] for entry in entries], dtype=np.int64)
        scores = np.array([entry[2] for entry in entries], dtype=np.float64)
        shape = (num_before, len(entries))
        found.append(
            StageTable(
                depths=(0,),
                num_options=(),
                tied=False,
                classes=(),
                fixed_costs=np.broadcast_to(costs, (*shape, 2)).copy(),
                costs=np.zeros((*shape, 0, 1, 2), dtype=np.int64),
                fixed_scores=np.broadcast_to(scores, shape).copy(),
                scores=np.zeros((*shape, 0, 1)),
            )
        )
        num_before = len(entries)
    return SpaceTables(tuple(found))


# --- literally -----------------------------------------------------------------------------------


def every_choice(found: SpaceTables) -> Iterator[Choices]:
    """All subnets, including isomers."""
    yield from itertools.product(*(_free(table) for table in found.stages))


def _free(table: StageTable) -> list[StageChoice]:
    chosen = []
    for width, depth in itertools.product(range(table.fixed_scores.shape[1]), table.depths):
        num_layers = min(depth, 1) if table.tied else depth
        for options in itertools.product(
            *(itertools.product(range(size), repeat=num_layers) for size in table.num_options)
        ):
            repeated = tuple(o * depth if table.tied else o for o in options)
            chosen.append(StageChoice(width, depth, repeated))
    return chosen


def every_class(found: SpaceTables, enumeration: Enumeration) -> Iterator[Choices]:
    """One subnet of every class of isomers: width by width, depth by depth, class by class of
    layers, axis by axis, count vector by count vector."""
    yield from itertools.product(*(representatives(t, enumeration) for t in found.stages))


def representatives(table: StageTable, enumeration: Enumeration) -> list[StageChoice]:
    if table.tied:
        return _free(table)
    chosen = []
    for width, depth in itertools.product(range(table.fixed_scores.shape[1]), table.depths):
        classes = [[layer for layer in layers if layer < depth] for layers in table.classes]
        places, ways = [], []
        for layers in filter(None, classes):
            for axis, size in enumerate(table.num_options):
                by_option = table.gains[axis][layers, 1:].T.tolist()
                vectors = literal.enumerate_counts(
                    len(layers), size, published=enumeration == "published"
                )
                places.append((layers, axis))
                # Production cuts from the largest option down, the reference from the smallest up.
                ways.append([literal.allocate(by_option, vector[::-1]) for vector in vectors])
        for way in itertools.product(*ways):
            options = [[0] * depth for _ in table.num_options]
            for (layers, axis), of_layers in zip(places, way, strict=True):
                for layer, option in zip(layers, of_layers, strict=True):
                    options[axis][layer] = option
            chosen.append(StageChoice(width, depth, tuple(map(tuple, options))))
    return chosen


def candidates_of(found: SpaceTables, every: Iterator[Choices]) -> list[Candidate]:
    """With their costs and scores, entry by entry."""
    return [candidate_of(found, choices) for choices in every]


def candidate_of(found: SpaceTables, choices: Choices) -> Candidate:
    total = sum_from_tables(found, choices)
    if found.finish:
        total = float(found.finish(np.array(total)))
    cost = dict(zip(COST_AXES, cost_from_tables(found, choices), strict=True))
    return Candidate(choices, found.resolution, cost, total)


def best_of(every: Sequence[Candidate], budget: Budget, num: int) -> list[Candidate]:
    """Sorted by score, then bounded costs, then other costs, then the order of `every`."""

    def fits(candidate: Candidate) -> bool:
        return all(lo <= candidate.cost[a] < hi for a, (lo, hi) in budget.intervals.items())

    def rank(candidate: Candidate) -> tuple[float, ...]:
        bounded = [candidate.cost[axis] for axis in COST_AXES if axis in budget.intervals]
        others = [candidate.cost[axis] for axis in COST_AXES if axis not in budget.intervals]
        return (-candidate.score, *bounded, *others)

    return sorted(filter(fits, every), key=rank)[:num]


interval = st.tuples(st.integers(0, 30), st.integers(1, 20)).map(lambda t: (t[0], t[0] + t[1]))
upper = st.integers(1, 50).map(lambda end: (0, end))
budgets = st.one_of(
    *(st.fixed_dictionaries({axis: ends}) for axis in COST_AXES for ends in (interval, upper)),
    st.fixed_dictionaries({axis: st.one_of(interval, upper) for axis in COST_AXES}),
).map(Budget)
