"""The selector against a brute-force reading of its contract, on chains full of ties."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prenas.proxy.tables import SpaceTables
from prenas.selection import select as selecting
from prenas.selection.budgets import Budget, parse_budgets
from prenas.selection.isomers import Enumeration, class_of, num_classes
from prenas.selection.program import best_by_program
from prenas.selection.ranking import Fronts
from prenas.selection.select import Candidates, nothing_fits, select
from selection.chains import (
    best_of,
    budgets,
    candidates_of,
    chain_of,
    every_choice,
    every_class,
    tables,
)


@settings(max_examples=150)
@given(tables(), st.lists(budgets, min_size=1, max_size=3), st.integers(1, 3))
def test_selection_equals_brute_force(space: SpaceTables, asked: list[Budget], k: int) -> None:
    """[lo, hi) on every axis; of what a front answers also every tie, else the very scores."""
    every = candidates_of(space, every_class(space, "all"))
    candidates = Candidates(space)
    for budget, found in zip(asked, candidates.best(asked, k), strict=True):
        expected = best_of(every, budget, k)
        assert [one.score for one in found] == [one.score for one in expected]
        assert all(one in every for one in found)
        assert len({one.choices for one in found}) == len(found)
        assert all(budget.holds(one.cost) for one in found)
        if is_answered_by_a_front(candidates, budget, k):
            assert found == expected


def is_answered_by_a_front(candidates: Candidates, budget: Budget, k: int) -> bool:
    if candidates.scores is not None:
        return True
    return Fronts(candidates._graph, [budget], k).best(budget) is not None


@settings(max_examples=60)
@given(tables(), budgets, st.integers(1, 3))
def test_the_integer_program_finds_the_same(space: SpaceTables, budget: Budget, k: int) -> None:
    """Whatever a front or a list would have answered."""
    every = candidates_of(space, every_class(space, "all"))
    found = best_by_program(Candidates(space)._graph, budget, k)
    assert [one.score for one in found] == [one.score for one in best_of(every, budget, k)]
    assert all(one in every for one in found)


@settings(max_examples=60)
@given(tables(), st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 3))
def test_a_front_answers_every_upper_end(space: SpaceTables, ends: list[int], k: int) -> None:
    """One walk for all of them, and no program."""
    every = candidates_of(space, every_class(space, "all"))
    asked = [Budget({axis: (0, end)}) for end in ends for axis in ("params", "macs")]
    with patch.object(selecting, "best_by_program", side_effect=AssertionError):
        answers = Candidates(space).best(asked, k)
    for budget, found in zip(asked, answers, strict=True):
        assert found == best_of(every, budget, k)


@given(tables(most_stages=1, tied=False), st.sampled_from(["all", "published"]))
def test_a_chain_of_one_stage_is_listed(space: SpaceTables, enumeration: Enumeration) -> None:
    """Every class in order; of the published enumeration, those that it keeps."""
    every = candidates_of(space, every_class(space, enumeration))
    if not every:
        with pytest.raises(ValueError, match="choose enumeration 'all'"):
            Candidates(space, enumeration)
        return
    candidates = Candidates(space, enumeration)
    assert candidates.scores is not None
    assert candidates.scores.tolist() == [one.score for one in every]
    assert len(every) == num_classes(space.stages, enumeration)
    whole = Budget({"params": (0, 10**6), "macs": (0, 10**6)})
    (found,) = candidates.best([whole], 5)
    assert found == best_of(every, whole, 5)


@settings(max_examples=50)
@given(tables())
def test_classes_are_counted_as_they_are_listed(space: SpaceTables) -> None:
    """One representative each; all subnets of its class have its counts, and no others do."""
    every = list(every_class(space, "all"))
    assert len(every) == num_classes(space.stages)
    classes = {class_of(space, choices) for choices in every}
    assert len(classes) == len(every)
    assert {class_of(space, choices) for choices in every_choice(space)} == classes


@settings(max_examples=80)
@given(tables(), st.lists(budgets, min_size=1, max_size=3))
def test_what_holds_nothing_is_known(space: SpaceTables, asked: list[Budget]) -> None:
    every = candidates_of(space, every_class(space, "all"))
    candidates = Candidates(space)
    for budget in asked:
        assert candidates.holds_any(budget) is bool(best_of(every, budget, 1))
    reached = [
        f"{axis} {min(one.cost[axis] for one in every)} to {max(one.cost[axis] for one in every)}"
        for axis in ("params", "macs")
    ]
    assert candidates.reachable() == ", ".join(reached)


def test_several_resolutions_have_their_candidates() -> None:
    """Costs differ, and each budget is answered at its own."""
    cheap, dear = chain_of([(1, 10, 1.0), (2, 20, 2.0)]), chain_of([(1, 30, 1.0), (2, 60, 2.0)])
    candidates = {96: Candidates(cheap), 128: Candidates(dear)}
    asked = [Budget({"macs": (0, 31)}, side) for side in (128, 96, 128)]
    picks = select(candidates, asked)
    assert [(pick.budget, pick.candidate.cost["macs"]) for pick in picks] == [
        (0, 30),
        (1, 20),
        (2, 30),
    ]
    words = str(nothing_fits(candidates, [Budget({"macs": (0, 5)}, 96)]))
    assert "macs <= 4, resolution 96" in words
    assert "at resolution 96 params 1 to 2, macs 10 to 20; at resolution 128 params" in words


# --- by hand -------------------------------------------------------------------------------------


def line(*entries: tuple[int, int, float]) -> SpaceTables:
    """One stage without layers, of one width per (params, macs, score)."""
    return chain_of(entries)


def picked(space: SpaceTables, *texts: str, k: int = 1) -> list[list[int]]:
    """Per budget the numbers of the chosen entries."""
    asked = parse_budgets(texts).kept
    chosen: list[list[int]] = [[] for _ in asked]
    for pick in select({None: Candidates(space)}, asked, k):
        chosen[pick.budget].append(pick.candidate.choices[0].width)
    return chosen


def test_interval_edges() -> None:
    """A cost of exactly lo is in, exactly hi is out, and belongs to the next interval."""
    space = line((4, 1, 9.0), (5, 1, 8.0), (6, 1, 7.0), (7, 1, 6.0))
    assert picked(space, "params=5:7", k=9) == [[1, 2]]
    assert picked(space, "params=4:8:2", k=9) == [[0, 1], [2, 3]]
    assert picked(space, "params=7:8", k=9) == [[3]]
    with pytest.raises(ValueError, match="no subnet fits"):
        picked(space, "params=8:9")


def test_limit_includes_itself() -> None:
    """`params=6M` is at most 6,000,000."""
    space = line((6_000_000, 1, 1.0), (6_000_001, 1, 2.0))
    assert picked(space, "params=6M", k=9) == [[0]]
    assert picked(space, "params=6000001", k=9) == [[1, 0]]
    with pytest.raises(ValueError, match="no subnet fits"):
        picked(space, "params=5999999")


def test_two_axes_bound_together() -> None:
    space = line((5, 10, 3.0), (5, 12, 4.0), (7, 10, 5.0), (7, 12, 6.0))
    assert picked(space, "params=6,macs=11", "params=6", "macs=11", "params=9,macs=99") == [
        [0],
        [1],
        [2],
        [3],
    ]


@pytest.mark.parametrize("stages", [1, 2])
def test_ties(stages: int) -> None:
    """Equal score: the cheaper on what is bounded, then on the other cost, then the first."""
    entries = ((6, 2, 1.0), (5, 9, 1.0), (5, 8, 1.0), (5, 8, 1.0), (4, 1, 0.5))
    space = chain_of(*[entries, [(0, 0, 0.0)]][:stages])
    assert picked(space, "params=9", k=5) == [[2, 3, 1, 0, 4]]
    assert picked(space, "macs=9", k=5) == [[0, 2, 3, 1, 4]]


def test_ties_between_ways_through_a_chain() -> None:
    """Two ways to the same cost and score: the one whose first stage comes first."""
    space = chain_of([(1, 0, 1.0), (2, 0, 2.0)], [(2, 0, 2.0), (1, 0, 1.0)])
    (found,) = Candidates(space).best([Budget({"params": (0, 4)})], 3)
    assert [tuple(choice.width for choice in one.choices) for one in found] == [
        (0, 0),
        (1, 1),
        (0, 1),
    ]


def test_better_subnets_below_the_lower_end_do_not_hide_those_inside() -> None:
    """The front drops what costs more and scores less; an interval may hold nothing else."""
    space = chain_of([(1, 0, 9.0), (5, 0, 1.0), (6, 0, 3.0)], [(1, 0, 1.0), (3, 0, 0.5)])
    assert picked(space, "params=6:8", k=2) == [[2, 1]]
    assert picked(space, "params=8", k=2) == [[0, 0]]


def test_margins() -> None:
    """Lead over the best that was not chosen, relative to the own score; None without one."""
    candidates = {
        None: Candidates(line((1, 1, 8.0), (2, 1, 6.0), (3, 1, 3.0), (4, 1, -2.0), (5, 1, 0.0)))
    }

    def margins(text: str, k: int) -> list[float | None]:
        return [pick.margin for pick in select(candidates, parse_budgets([text]).kept, k)]

    assert margins("params=9", 1) == [0.25]
    assert margins("params=9", 2) == [5 / 8, 3 / 6]
    assert margins("params=1", 1) == [None]
    assert margins("params=2", 2) == [None, None]
    assert margins("params=4:6", 1) == [2.0]  # own score 0: the difference itself
    assert margins("params=3:5", 1) == [5 / 3]


def test_empty_budgets_are_passed_over() -> None:
    """Those after them keep their number."""
    candidates = {None: Candidates(line((5, 1, 1.0)))}
    found = select(candidates, parse_budgets(["params=2:3", "params=5:6"]).kept)
    assert [(pick.budget, pick.rank) for pick in found] == [(1, 0)]


def test_all_empty_names_the_budgets_and_the_range() -> None:
    candidates = {None: Candidates(line((5, 70, 1.0), (9, 20, 1.0)))}
    with pytest.raises(ValueError, match="no subnet fits any of the 2 budgets") as caught:
        select(candidates, parse_budgets(["params=2:3", "params=4,macs=10"]).kept)
    for words in ("params in [2, 3)", "params <= 4, macs <= 10", "params 5 to 9, macs 20 to 70"):
        assert words in str(caught.value)


def test_best_is_a_ranking() -> None:
    """Asking for fewer gives the first of them; asking for too many gives all."""
    candidates = Candidates(line((1, 1, 2.0), (2, 1, 4.0), (3, 1, 3.0)))
    budget = parse_budgets(["params=9"]).kept[0]

    def widths(num: int, asked: Budget = budget) -> list[int]:
        return [one.choices[0].width for one in candidates.best([asked], num)[0]]

    assert widths(9) == [1, 2, 0]
    assert widths(2) == [1, 2]
    assert widths(2, parse_budgets(["params=1"]).kept[0]) == [0]


def test_a_score_with_a_finish_is_best_at_either_end() -> None:
    space = chain_of([(1, 0, -4.0), (1, 0, 3.0)], [(1, 0, -5.0), (1, 0, 5.0)])
    space = SpaceTables(space.stages, None, np.abs)
    (found,) = Candidates(space).best([Budget({"params": (0, 9)})], 4)
    assert [one.score for one in found] == [9, 8, 2, 1]
