"""Fronts of best ways and the integer program give the same results as brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prenas.families.base import SearchSpace
from prenas.proxy.tables import SpaceTables
from prenas.recipe.budgets import Budget
from prenas.selection.front import every_way, spread_ways
from prenas.selection.graph import Candidate, free_graph, item_graph
from prenas.selection.program import best_by_program
from prenas.selection.ranking import Fronts
from selection.brute import (
    MICRO,
    UNTIED,
    budgets,
    every_arch,
    every_candidate,
    inside,
    ranking,
    tables,
    tables_of,
)


def assert_as_good(
    found: list[Candidate], expected: list[Candidate], among: list[Candidate]
) -> None:
    """Same number, all different, equally good; each exists and has these costs and this score."""
    assert [one.score for one in found] == pytest.approx([one.score for one in expected])
    known = {one.choices: one for one in among}
    for one in found:
        assert one.cost == known[one.choices].cost
        assert one.score == pytest.approx(known[one.choices].score)
    assert len({one.choices for one in found}) == len(found)


def check(
    space: SpaceTables, everything: list[Candidate], budget: Budget, k: int, *, exact: bool
) -> bool:
    """Front, program and brute force agree; whether the front answered."""
    graph = item_graph(space)
    expected = ranking(everything, budget)[:k]
    by_program = best_by_program(graph, budget, k)
    assert all(inside(one, budget) for one in by_program)
    assert_as_good(by_program, expected, everything)
    found = Fronts(graph, [budget], k).best(budget)
    below = budget._replace(intervals={axis: (0, hi) for axis, (_, hi) in budget.intervals.items()})
    is_single = len(budget.intervals) == 1
    answers = is_single and all(inside(one, budget) for one in ranking(everything, below)[:k])
    assert (found is not None) == answers
    if found is not None:
        if exact:
            assert found == expected
        assert_as_good(found, expected, everything)
    return answers


@settings(max_examples=60)
@given(space=tables(), k=st.integers(1, 3), data=st.data())
def test_front_program_and_brute_force_agree(
    space: SpaceTables, k: int, data: st.DataObject
) -> None:
    """The front agrees, even in the order of ties, if nothing better lies below the lower end."""
    everything = every_candidate(space)
    check(space, everything, data.draw(budgets(everything)), k, exact=True)


@given(space=tables(), data=st.data())
def test_a_front_of_many_budgets_answers_each(space: SpaceTables, data: st.DataObject) -> None:
    """Budgets do not affect each other, whichever costs they bound."""
    everything = every_candidate(space)
    some = data.draw(st.lists(budgets(everything, both=False), min_size=2, max_size=4))
    graph = item_graph(space)
    fronts = Fronts(graph, some, 2)
    for budget in some:
        assert fronts.best(budget) == Fronts(graph, [budget], 2).best(budget)


@pytest.mark.parametrize(("space", "k"), [(MICRO, 1), (MICRO, 3), (UNTIED, 3)])
def test_on_real_spaces(space: SearchSpace, k: int) -> None:
    """Every class of a small space: upper limits and intervals of either cost, and of both."""
    everything = every_candidate(tables_of(space))
    ends = {
        axis: [sorted(one.cost[axis] for one in everything)[place] for place in (9, 1000, 2500, -1)]
        for axis in ("params", "macs")
    }
    some = [
        Budget({axis: interval})
        for axis, (first, second, third, last) in ends.items()
        for interval in ((0, first), (0, last + 1), (second, third))
    ]
    answered = [check(tables_of(space), everything, budget, k, exact=False) for budget in some]
    assert all(answered)
    both = Budget({axis: (second, third) for axis, (_, second, third, _) in ends.items()})
    assert not check(tables_of(space), everything, both, k, exact=False)


def test_what_lies_below_the_lower_end_is_left_to_the_program() -> None:
    """If a cheaper subnet dominates an interval, the front gives no answer, not a worse one."""
    everything = every_arch(MICRO)
    dominated = []
    for one in sorted(everything, key=lambda one: one.cost["macs"]):
        if dominated and one.score < dominated[0].score:
            dominated.append(one)
            break
        dominated = [one]
    macs = dominated[-1].cost["macs"]
    budget = Budget({"macs": (macs, macs + 1)})
    assert not check(tables_of(MICRO), everything, budget, 1, exact=False)


@given(space=tables())
def test_ways_are_the_classes_and_all_subnets(space: SpaceTables) -> None:
    """In the order of enumeration, where edges are whole stages."""
    plain = SpaceTables(space.stages)
    for graph, free in ((item_graph(plain), False), (free_graph(plain), True)):
        ways, expected = every_way(graph), every_candidate(plain, free=free)
        order = sorted(range(len(ways.order)), key=lambda place: int(ways.order[place]))
        found = [graph.candidate(ways[place]) for place in order]
        if free:
            assert {one.choices for one in found} == {one.choices for one in expected}
            assert len(found) == len(expected)
        else:
            assert found == expected
        costs = [[one.cost["params"], one.cost["macs"]] for one in expected]
        assert sorted(ways.costs.tolist()) == sorted(costs)
        for axis in range(2):
            reached = [cost[axis] for cost in costs]
            assert graph.cheapest(axis)[-1] == graph.cheapest_rest(axis)[0] == min(reached)
            assert graph.cheapest(axis, most=True)[-1] == max(reached)
            assert set(spread_ways(graph, axis).costs[:, axis].tolist()) == set(reached)
