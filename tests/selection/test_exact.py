"""The exact optimum compared with brute force on small tables, and with the selector."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families.drawing import ALL_SPACES, choices
from prenas.cost import bounded_names
from prenas.families.base import SearchSpace, check_contains
from prenas.proxy.gains import block_scores
from prenas.proxy.importance import Importance
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.proxy.tables import SpaceTables, StageTable, space_tables, stage_scores
from prenas.recipe.budgets import Budget
from prenas.selection.exact import optimum
from prenas.selection.isomers import isomer_gains
from prenas.selection.select import Candidates
from prenas.supernet import Supernet
from selection.chains import best_of, candidate_of, candidates_of, every_choice, tables

COST_AXES = bounded_names()


@settings(max_examples=60)
@given(st.data())
def test_equals_trying_every_subnet(data: st.DataObject) -> None:
    """With one interval or two, with ends included and excluded, in exact integers."""
    unit = data.draw(st.sampled_from([1, 7, 82112]))
    space = data.draw(tables(most_stages=2, unit=unit))
    every = candidates_of(space, every_choice(space))
    intervals = {}
    for axis in COST_AXES:
        ends = sorted({one.cost[axis] + off for one in every for off in (0, 1)} | {0})
        pair = st.lists(st.sampled_from(ends), min_size=2, max_size=2, unique=True).map(sorted)
        if axis == "params" or data.draw(st.booleans()):
            low, high = data.draw(pair)
            intervals[axis] = (low, high)
    budget = Budget(intervals)
    expected = best_of(every, budget, 1)
    found = optimum(space, budget)
    if not expected:
        assert found is None
        return
    assert found is not None
    best = found.candidate
    assert best.score == pytest.approx(expected[0].score, rel=1e-9, abs=1e-7)
    assert found.proven == pytest.approx(best.score, rel=1e-8, abs=1e-7)
    assert best == candidate_of(space, best.choices)
    assert budget.holds(best.cost)
    assert optimum(space, budget) == found


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
    gains = isomer_gains("published", block_scores(space, importance), 0)
    scores = stage_scores(space, importance, score=PUBLISHED_SCORE)
    return space_tables(
        space, scores, gains, score=PUBLISHED_SCORE, resolution=space.resolutions[-1]
    )


@pytest.mark.parametrize("space", ALL_SPACES)
@settings(max_examples=8)
@given(data=st.data())
def test_never_below_the_selector(space: SearchSpace, data: st.DataObject) -> None:
    """On tables of real spaces: at least the score of the selector, and a subnet of the space."""
    found_tables = tables_of(space)
    ends = [found_tables.cost(data.draw(choices(space))) for _ in range(2)]
    axes = data.draw(st.sampled_from([COST_AXES, *((axis,) for axis in COST_AXES)]))
    intervals = {}
    for place, axis in enumerate(COST_AXES):
        if axis in axes:
            low, high = sorted(int(end[place]) for end in ends)
            intervals[axis] = (low, high + 1)
    budget = Budget(intervals)
    (chosen,) = Candidates(found_tables).best([budget], 1)
    found = optimum(found_tables, budget)
    if chosen:
        assert found is not None
        assert found.candidate.score >= chosen[0].score - 1e-9 * abs(chosen[0].score)
    if found is not None:
        arch = space.compose(found.candidate.choices, found.candidate.resolution)
        check_contains(space.supernet, arch)


def test_without_isomers_to_choose_from_both_agree() -> None:
    """Allocations of the same counts to equal layers score the same: the rule loses nothing."""
    costs = np.array([[0, 0], [5, 2], [9, 7]], dtype=np.int64)
    table = StageTable(
        depths=(4,),
        num_options=(3,),
        tied=False,
        classes=((0, 1, 2, 3),),
        fixed_costs=np.full((1, 1, 2), 10),
        costs=np.tile(costs, (1, 1, 4, 1, 1)),
        fixed_scores=np.ones((1, 1)),
        scores=np.tile(np.array([0.0, 3.0, 4.0]), (1, 1, 4, 1)),
        gains=(np.zeros((4, 3)),),
    )
    found_tables = SpaceTables((table,))
    budget = Budget({"params": (0, 40), "macs": (0, 30)})
    found = optimum(found_tables, budget)
    assert found is not None
    ((best,),) = Candidates(found_tables).best([budget], 1)
    assert found.candidate.score == best.score
