"""Narrow budgets and rich spaces: bounds and graphs of axes give what listing gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prenas.families import get_space
from prenas.families.vit.space import VitSpace
from prenas.proxy.tables import SpaceTables, StageTable, cost_tables
from prenas.recipe import Enumeration
from prenas.recipe.budgets import Budget, parse_budgets
from prenas.selection import graph, select, window
from prenas.selection.front import every_way
from prenas.selection.graph import Graph, item_graph
from prenas.selection.isomers import num_isomer_classes, require_listable
from prenas.selection.program import best_by_program
from prenas.selection.select import Candidates
from prenas.selection.window import Windows
from selection.brute import (
    MICRO,
    UNTIED,
    budgets,
    every_candidate,
    ranking,
    tables,
    tables_of,
)


@settings(max_examples=60)
@given(space=tables(), k=st.integers(1, 4), data=st.data())
def test_bounds_answer_every_budget_exactly(
    space: SpaceTables, k: int, data: st.DataObject
) -> None:
    """One cost or both, with a lower end or without, scores of either sign: ties included.

    Budgets that follow each other start with the threshold of the one before.
    """
    everything = every_candidate(space)
    windows = Windows(item_graph(space), k)
    for budget in data.draw(st.lists(budgets(everything), min_size=1, max_size=4)):
        assert windows.best(budget) == ranking(everything, budget)[:k], budget


@pytest.mark.parametrize("space", [MICRO, UNTIED], ids=lambda space: str(space.name))
def test_narrow_budgets_of_real_spaces(space: VitSpace) -> None:
    """Every budget of a ladder from the cheapest to the dearest, and of both costs."""
    everything = every_candidate(tables_of(space))
    windows = Windows(item_graph(tables_of(space)), 2)
    for axis in ("params", "macs"):
        costs = sorted(one.cost[axis] for one in everything)
        step = (costs[-1] - costs[0]) // 40
        for low in range(costs[0], costs[-1], step):
            for intervals in (
                {axis: (low, low + step // 9)},
                {"params": (0, 10**6), axis: (low, low + step)},
            ):
                found = windows.best(budget := Budget(intervals))
                expected = ranking(everything, budget)[:2]
                assert found is not None
                assert [one.choices for one in found] == [one.choices for one in expected]


def test_too_many_ways_are_left_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = parse_budgets(["params=30k:40k,macs=500k:600k"]).kept[0]
    space = tables_of(MICRO)
    expected = Candidates(space).best([budget], 2)
    monkeypatch.setattr(window, "_MOST_WAYS", 1)
    assert Windows(item_graph(space), 2).best(budget) is None
    asked = []

    def program(graph: Graph, budget: Budget, num: int) -> object:
        asked.append(budget)
        return best_by_program(graph, budget, num)

    monkeypatch.setattr(select, "best_by_program", program)
    found = Candidates(space).best([budget], 2)
    assert asked == [budget]
    assert [one.choices for one in found[0]] == [one.choices for one in expected[0]]


# --- rich spaces ---------------------------------------------------------------------------------


@contextmanager
def nothing_listed() -> Iterator[None]:
    """Wherever axes add up, stages are drawn by axis, however few classes they have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "MOST_ITEMS", 0)
        yield


def added_up(table: StageTable) -> StageTable:
    """The table of a stage whose layers cost and score the sum over their axes."""

    def of(entries: np.ndarray) -> np.ndarray:
        ways = entries.reshape(*entries.shape[:3], *table.num_options, *entries.shape[4:])
        axes = range(3, 3 + len(table.num_options))
        alone = [
            ways.take([0], axis=next(one for one in axes if one != own))
            if len(table.num_options) == 2
            else ways
            for own in axes
        ]
        return np.broadcast_to(sum(alone), ways.shape).reshape(entries.shape)

    return replace(table, costs=of(table.costs), scores=of(table.scores))


@st.composite
def additive(draw: st.DrawFn) -> SpaceTables:
    space = draw(tables())
    assume(any(len(stage.num_options) == 2 and not stage.is_whole for stage in space.stages))
    stages = (added_up(one) if len(one.num_options) == 2 else one for one in space.stages)
    return replace(space, stages=tuple(stages))


@settings(max_examples=40)
@given(space=additive(), mode=st.sampled_from(["all", "published"]), data=st.data())
def test_axes_one_after_another_give_the_same_classes(
    space: SpaceTables, mode: Enumeration, data: st.DataObject
) -> None:
    """The same subnets in the same order, with the same costs, scores and choices."""
    expected = every_candidate(space, mode)
    assume(expected)
    with nothing_listed():
        drawn = item_graph(space, mode)
        candidates = Candidates(space, mode)
    assert any(drawn.by_axis)
    ways = every_way(drawn)
    in_order = np.argsort(ways.order)
    assert [drawn.candidate(ways[place]).choices for place in in_order] == [
        one.choices for one in expected
    ]
    assert ways.costs[in_order].tolist() == [list(one.cost.values()) for one in expected]
    for budget in data.draw(st.lists(budgets(expected), min_size=1, max_size=3)):
        assert candidates.best([budget], 3) == [ranking(expected, budget)[:3]]
        assert candidates.holds_any(budget) == bool(ranking(expected, budget))


def test_axes_that_depend_on_each_other_are_listed() -> None:
    """One entry that is not the sum of what its axes add, in costs or in scores."""
    whole = cost_tables(get_space("digits"))
    (table,) = whole.stages
    costs, scores = table.costs.copy(), table.scores.copy()
    costs[-1, -1, -1, -1] += 1
    scores[-1, -1, -1, -1] += 1e-3
    with nothing_listed():
        assert item_graph(whole).by_axis == (True,)
        for changed in (replace(table, costs=costs), replace(table, scores=scores)):
            assert item_graph(replace(whole, stages=(changed,))).by_axis == (False,)


def test_a_space_of_millions_of_classes_is_not_listed() -> None:
    """Where 420 million classes would be listed, there are some hundred thousand edges."""
    space = VitSpace(
        name="rich",
        embed_dim=(192, 216, 240),
        depth=(22, 23, 24),
        num_heads=(3, 4, 5, 6),
        mlp_ratio=(3.0, 3.5, 4.0, 4.5, 5.0),
    )
    require_listable(space, "all")
    assert num_isomer_classes(space) > 400_000_000
    candidates = Candidates(cost_tables(space))
    assert candidates.scores is None
    budget = parse_budgets(["params=12M:12.01M"]).kept[0]
    assert candidates.holds_any(budget)
    for one in candidates.best([budget], 2)[0]:
        assert 12_000_000 <= one.cost["params"] < 12_010_000
