"""The exact optimum against trying every subnet of small tables, and against the selector."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families.drawing import ALL_SPACES
from prenas.families import family_of
from prenas.families.base import SearchSpace
from prenas.proxy.importance import Importance
from prenas.proxy.scores import DEFAULT_SCORE
from prenas.proxy.tables import AxisTable, SkeletonTable, SpaceTables, block_scores, space_tables
from prenas.selection.budgets import Budget
from prenas.selection.exact import optimum
from prenas.selection.select import Candidates
from prenas.supernet import Supernet
from proxy.reading import cost_from_tables, sum_from_tables


def every_subnet(tables: SpaceTables) -> Iterator[tuple[list[int], float]]:
    """(cost per axis, score) of every choice of every layer."""
    for number, table in enumerate(tables.skeletons):
        ways = [
            itertools.product(range(len(axis.costs)), repeat=table.num_layers)
            for axis in table.axes
        ]
        for choices in itertools.product(*ways):
            total = np.array(sum_from_tables(tables, number, choices))
            score = float(tables.finish(total) if tables.finish else total)
            yield cost_from_tables(tables, number, choices), score


def inside(cost: list[int], budget: Budget) -> bool:
    low, high = budget.bounds.T
    return bool((np.array(cost) >= low).all() and (np.array(cost) < high).all())


@st.composite
def random_tables(draw: st.DrawFn, layers: int = 3) -> SpaceTables:
    """Scores of both signs and full of ties, two or three options, one to three skeletons."""
    num_options = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    unit = draw(st.sampled_from([1, 7, 82112]))
    score = st.one_of(st.integers(-5, 5).map(float), st.floats(-9, 9, allow_subnormal=False))

    def skeleton() -> SkeletonTable:
        num_layers = draw(st.integers(1, layers))
        axes = []
        for options in num_options:
            steps = draw(
                st.lists(
                    st.lists(st.integers(0, 9), min_size=2, max_size=2),
                    min_size=options - 1,
                    max_size=options - 1,
                )
            )
            costs = unit * np.cumsum(np.array([[0, 0], *steps], dtype=np.int64), axis=0)
            cells = st.lists(score, min_size=options, max_size=options)
            rows = draw(st.lists(cells, min_size=num_layers, max_size=num_layers))
            axes.append(AxisTable(costs, np.array(rows)))
        base = np.array(draw(st.lists(st.integers(0, 99), min_size=2, max_size=2)), dtype=np.int64)
        return SkeletonTable(num_layers, base, draw(score), tuple(axes))

    skeletons = tuple(skeleton() for _ in range(draw(st.integers(1, 3))))
    deepest = max(table.num_layers for table in skeletons)
    gains = tuple(np.zeros((deepest, options)) for options in num_options)
    return SpaceTables(skeletons, gains, draw(st.sampled_from([None, np.abs])))


@settings(max_examples=60)
@given(tables=random_tables(), data=st.data())
def test_equals_trying_every_subnet(tables: SpaceTables, data: st.DataObject) -> None:
    """Under one interval or two, ends included and excluded; in whole numbers, to the unit."""
    subnets = list(every_subnet(tables))
    intervals = {}
    for place, axis in enumerate(("params", "macs")):
        ends = sorted({cost[place] + off for cost, _ in subnets for off in (0, 1)} | {0})
        pair = st.lists(st.sampled_from(ends), min_size=2, max_size=2, unique=True).map(sorted)
        if axis == "params" or data.draw(st.booleans()):
            low, high = data.draw(pair)
            intervals[axis] = (low, high)
    budget = Budget(intervals)
    fitting = [score for cost, score in subnets if inside(cost, budget)]
    found = optimum(tables, budget)
    if not fitting:
        assert found is None
        return
    assert found is not None
    best = found.candidate
    assert best.score == pytest.approx(max(fitting), rel=1e-9, abs=1e-7)
    assert found.proven == pytest.approx(best.score, rel=1e-8, abs=1e-7)
    assert list(best.cost.values()) == cost_from_tables(tables, best.skeleton, best.choices)
    assert inside(list(best.cost.values()), budget)
    assert optimum(tables, budget) == found


@functools.cache
def tables_of(space: SearchSpace) -> SpaceTables:
    generator = torch.Generator().manual_seed(3)
    network = Supernet(space.supernet, space.settings).network
    weights, gradients = (
        {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for name, p in network.named_parameters()
        }
        for _ in range(2)
    )
    importance = Importance(weights, gradients)
    gains = tuple(scores.normalised for scores in block_scores(space, importance))
    return space_tables(space, importance, gains, score=DEFAULT_SCORE)


@pytest.mark.parametrize("space", ALL_SPACES)
@settings(max_examples=10)
@given(data=st.data())
def test_never_below_the_selector(space: SearchSpace, data: st.DataObject) -> None:
    """On tables of real spaces: what fits for one fits for the other, and isomers are subnets."""
    tables = tables_of(space)
    candidates = Candidates(tables)
    ends = st.lists(st.integers(0, len(candidates) - 1), min_size=2, max_size=2)
    intervals = {}
    for place, axis in enumerate(("params", "macs")):
        low, high = sorted(int(candidates.costs[i, place]) for i in data.draw(ends))
        intervals[axis] = (low, high + 1)
    budget = Budget(intervals)
    chosen, found = candidates.best(budget, 1), optimum(tables, budget)
    assert (found is None) == (len(chosen) == 0)
    if found is not None:
        score = float(candidates.scores[chosen[0]])
        assert found.candidate.score >= score - 1e-9 * abs(score)
        arch = space.compose(space.skeletons[found.candidate.skeleton], found.candidate.choices)
        family_of(space).check_contains(space.supernet, arch)


def test_without_isomers_to_choose_from_both_agree() -> None:
    """Equal layers: every allocation of the same counts scores the same, so the rule costs none."""
    costs = np.array([[0, 0], [5, 2], [9, 7]], dtype=np.int64)
    scores = np.repeat(np.array([[0.0, 3.0, 4.0]]), 4, axis=0)
    table = SkeletonTable(4, np.array([10, 10]), 1.0, (AxisTable(costs, scores),))
    tables = SpaceTables((table,), (np.zeros((4, 3)),))
    budget = Budget({"params": (0, 40), "macs": (0, 30)})
    candidates = Candidates(tables)
    found = optimum(tables, budget)
    assert found is not None
    assert found.candidate.score == candidates.scores[candidates.best(budget, 1)[0]]
