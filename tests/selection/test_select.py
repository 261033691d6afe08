"""The selector compared with brute force, on tables full of ties."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from prenas.families import get_space
from prenas.proxy.tables import SpaceTables, StageTable, cost_tables
from prenas.recipe import Enumeration
from prenas.recipe.budgets import Budget, parse_budgets
from prenas.selection import program
from prenas.selection.graph import item_graph
from prenas.selection.program import Program, Solution, best_by_program
from prenas.selection.ranking import Fronts
from prenas.selection.select import Candidates, Pick, reachable, select
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


class Chosen(NamedTuple):
    """The properties of a pick that do not depend on who wins a tie."""

    budget: int
    rank: int
    score: float
    margin: float | None


def chosen(pick: Pick) -> Chosen:
    return Chosen(pick.budget, pick.rank, pick.candidate.score, pick.margin)


@settings(max_examples=40)
@given(space=tables(), k=st.integers(1, 3), data=st.data())
def test_selection_equals_brute_force(space: SpaceTables, k: int, data: st.DataObject) -> None:
    """Score, then cost, then order; [lo, hi) on every axis; empty budgets give no pick.

    The program alone may give another of equal score.
    """
    everything = every_candidate(space)
    some = data.draw(st.lists(budgets(everything), min_size=1, max_size=3))
    candidates = {None: Candidates(space)}
    expected = []
    for number, budget in enumerate(some):
        ranked = ranking(everything, budget)
        for rank, one in enumerate(ranked[:k]):
            margin = None
            if len(ranked) > k:
                margin = (one.score - ranked[k].score) / abs(one.score or 1.0)
            expected.append(Pick(one, number, rank, margin))
    if not expected:
        with pytest.raises(ValueError, match="no subnet fits"):
            select(candidates, some, k)
        return
    found = select(candidates, some, k)
    assert list(map(chosen, found)) == list(map(chosen, expected))
    fronts = Fronts(item_graph(space), some, k + 1)
    for pick, ours in zip(found, expected, strict=True):
        if len(space.stages) == 1 or fronts.best(some[pick.budget]) is not None:
            assert pick == ours
        assert pick.candidate in everything
        assert inside(pick.candidate, some[pick.budget])
    assert len({(pick.budget, pick.candidate.choices) for pick in found}) == len(found)


@given(space=tables(most_stages=1), mode=st.sampled_from(["all", "published"]), k=st.just(4))
def test_one_stage_is_listed_whole(space: SpaceTables, mode: Enumeration, k: int) -> None:
    """All classes in order, also for the published enumeration, and the best of them."""
    expected = every_candidate(space, mode)
    if not expected:
        with pytest.raises(ValueError, match=r"'published' skips .* choose enumeration 'all'"):
            Candidates(space, mode)
        return
    candidates = Candidates(space, mode)
    assert candidates.scores is not None
    assert candidates.scores.tolist() == [one.score for one in expected]
    budget = Budget({"macs": (1, 10**9)})
    assert candidates.best([budget], k) == [ranking(expected, budget)[:k]]


@given(space=tables(), data=st.data())
def test_whether_a_budget_holds_any(space: SpaceTables, data: st.DataObject) -> None:
    """Exactly, for any bounded costs; also the text for the reachable range."""
    everything, candidates = every_candidate(space), Candidates(space)
    budget = data.draw(budgets(everything))
    assert candidates.holds_any(budget) == any(inside(one, budget) for one in everything)
    if len(space.stages) > 1:
        assert candidates.scores is None


@settings(max_examples=10)
@given(data=st.data())
def test_all_architectures_of_micro_are_candidates(data: st.DataObject) -> None:
    """Tied options have no isomers, so no subnet is lost."""
    everything = every_arch(MICRO)
    assert len(everything) == MICRO.num_archs == 5184
    budget = data.draw(budgets(everything))
    found = Candidates(tables_of(MICRO)).best([budget], 3)[0]
    expected = ranking(everything, budget)[:3]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected])


def test_untied_blocks_have_one_candidate_per_class() -> None:
    """The best of the classes may be less than the best of all, never more."""
    assert UNTIED.num_archs == len(every_arch(UNTIED))
    classes = every_candidate(tables_of(UNTIED))
    assert len(classes) < UNTIED.num_archs
    budget = Budget({"params": (0, 10**6)})
    (best,) = Candidates(tables_of(UNTIED)).best([budget], 1)[0]
    assert best.score == pytest.approx(max(one.score for one in classes))
    assert best.score <= max(one.score for one in every_arch(UNTIED)) * (1 + 1e-12)


# --- by hand -------------------------------------------------------------------------------------


def line(*entries: tuple[int, int, float], stages: int = 1) -> SpaceTables:
    """One layer with an option per (params, macs, score); of more stages the others add nothing."""
    costs = np.array([entry[:2] for entry in entries])[None, None, None]
    scores = np.array([entry[2] for entry in entries])[None, None, None]
    fixed, gains = np.zeros((1, 1, 2), dtype=np.int64), (np.zeros((1, len(entries))),)
    sizes = (len(entries),)
    table = StageTable(
        (1,), sizes, True, ((0,),), fixed, costs, np.zeros((1, 1)), scores, gains
    )  # fmt: skip
    empty = replace(
        table, depths=(0,), num_options=(), classes=(), gains=(),
        costs=np.zeros((1, 1, 0, 1, 2), dtype=np.int64), scores=np.zeros((1, 1, 0, 1)),
    )  # fmt: skip
    return SpaceTables((table, *[empty] * (stages - 1)))


def picked(space: SpaceTables, *texts: str, k: int = 1) -> list[list[int]]:
    """The numbers of the chosen entries of each budget."""
    some = parse_budgets(texts).kept
    numbers: list[list[int]] = [[] for _ in some]
    for pick in select({None: Candidates(space)}, some, k):
        numbers[pick.budget].append(pick.candidate.choices[0].options[0][0])
    return numbers


both_kinds = pytest.mark.parametrize("stages", [1, 2])
"""Once listed completely, once by fronts and programs."""


@both_kinds
def test_interval_edges(stages: int) -> None:
    """A cost of exactly lo is in, exactly hi is out, and belongs to the next interval."""
    space = line((4, 1, 9.0), (5, 1, 8.0), (6, 1, 7.0), (7, 1, 6.0), stages=stages)
    assert picked(space, "params=5:7", k=9) == [[1, 2]]
    assert picked(space, "params=4:8:2", k=9) == [[0, 1], [2, 3]]
    assert picked(space, "params=7:8", k=9) == [[3]]
    with pytest.raises(ValueError, match="no subnet fits"):
        picked(space, "params=8:9")


@both_kinds
def test_limit_includes_itself(stages: int) -> None:
    """`params=6M` is at most 6,000,000."""
    space = line((6_000_000, 1, 1.0), (6_000_001, 1, 2.0), stages=stages)
    assert picked(space, "params=6M", k=9) == [[0]]
    assert picked(space, "params=6000001", k=9) == [[1, 0]]
    with pytest.raises(ValueError, match="no subnet fits"):
        picked(space, "params=5999999")


@both_kinds
def test_two_axes_bound_together(stages: int) -> None:
    space = line((5, 10, 3.0), (5, 12, 4.0), (7, 10, 5.0), (7, 12, 6.0), stages=stages)
    texts = "params=6,macs=11", "params=6", "macs=11", "params=9,macs=99"
    assert picked(space, *texts) == [[0], [1], [2], [3]]


@both_kinds
def test_ties(stages: int) -> None:
    """Equal score: the cheaper on what the budget bounds, then on the other, then the first."""
    entries = (6, 2, 1.0), (5, 9, 1.0), (5, 8, 1.0), (5, 8, 1.0), (4, 1, 0.5)
    space = line(*entries, stages=stages)
    assert picked(space, "params=9", k=5) == [[2, 3, 1, 0, 4]]
    assert picked(space, "macs=9", k=5) == [[0, 2, 3, 1, 4]]


@both_kinds
def test_margins(stages: int) -> None:
    """Lead over the best one not chosen, relative to the own score; None without another."""
    entries = (1, 1, 8.0), (2, 1, 6.0), (3, 1, 3.0), (4, 1, -2.0), (5, 1, 0.0)
    candidates = {None: Candidates(line(*entries, stages=stages))}

    def margins(text: str, k: int) -> list[float | None]:
        return [pick.margin for pick in select(candidates, parse_budgets([text]).kept, k)]

    assert margins("params=9", 1) == [0.25]
    assert margins("params=9", 2) == [5 / 8, 3 / 6]
    assert margins("params=1", 1) == [None]
    assert margins("params=2", 2) == [None, None]
    assert margins("params=4:6", 1) == [2.0]  # own score 0: the difference itself
    assert margins("params=3:5", 1) == [5 / 3]


def test_equal_scores_of_either_sign_keep_their_order() -> None:
    """With a finish, a front of the largest and one of the smallest sums meet in one ranking."""
    entries = (1, 1, 0.0), (2, 1, 1.0), (2, 1, -2.0), (2, 1, 2.0), (2, 1, -2.0), (2, 1, 2.0)
    for stages in (1, 2):
        space = replace(line(*entries, stages=stages), finish=np.abs)
        assert picked(space, "params=9", k=3) == [[2, 3, 4]]


def test_empty_budgets_are_passed_over() -> None:
    """The budgets after an empty one keep their numbers."""
    some = parse_budgets(["params=2:3", "params=5:6"]).kept
    found = select({None: Candidates(line((5, 1, 1.0)))}, some)
    assert [(pick.budget, pick.rank) for pick in found] == [(1, 0)]


@both_kinds
def test_all_empty_names_the_budgets_and_the_range(stages: int) -> None:
    space = line((5, 70, 1.0), (9, 20, 1.0), stages=stages)
    some = parse_budgets(["params=2:3", "params=4,macs=10"]).kept
    with pytest.raises(ValueError, match="no subnet fits any of the 2 budgets") as caught:
        select({None: Candidates(space)}, some)
    for words in ("params in [2, 3)", "params <= 4, macs <= 10", "params 5 to 9, macs 20 to 70"):
        assert words in str(caught.value)


def test_what_is_reached_is_said_of_its_resolution() -> None:
    candidates = {192: Candidates(replace(line((5, 9, 1.0)), resolution=192))}
    assert reachable(candidates).startswith("at resolution 192 params ")


def test_a_solver_that_ran_out_of_time_is_not_believed_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not claim that nothing exists, nor that its answer is the best."""
    stopped = SimpleNamespace(status=1, x=None)
    monkeypatch.setattr(scipy.optimize, "milp", lambda *args, **options: stopped)
    (budget,) = parse_budgets(["params=5:10"]).kept
    assert best_by_program(item_graph(line((5, 9, 1.0))), budget, 1) == []
    assert "stopped after 60 s" in caplog.text
    assert "found no subnet, although one may exist" in caplog.text


@pytest.mark.parametrize(
    ("stopped", "proven"),
    [((), (True, True)), ((0,), (False, False)), ((1,), (True, False))],
)
@pytest.mark.parametrize("where", [1, -1])
def test_ranks_up_to_where_a_solver_was_stopped_are_proven(
    where: int, stopped: tuple[int, ...], proven: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If scores are no sums, the best of either sign may win: both have to be proven."""
    solve, num_solved = Program.solve, Counter[int]()

    def watched(self: Program) -> Solution | None:
        found = solve(self)
        self.was_stopped = self._sign == where and num_solved[where] in stopped
        num_solved[self._sign] += 1
        return None if self.was_stopped else found  # it had found none

    monkeypatch.setattr(program, "signs", lambda graph: (1, -1))
    monkeypatch.setattr(Program, "solve", watched)
    (budget,) = parse_budgets(["params=1:100"]).kept
    graph = item_graph(line((5, 9, 1.0), (6, 10, 2.0), (7, 11, 3.0), (8, 12, 4.0)))
    assert tuple(one.is_proven for one in best_by_program(graph, budget, 2)) == proven


def test_every_budget_is_answered_at_its_resolution() -> None:
    """Picks follow the order of the budgets; the range is given for each resolution."""
    small, large = ((1, 10, 1.0), (2, 20, 2.0)), ((1, 40, 1.0), (2, 80, 2.0))
    candidates: dict[int | None, Candidates] = {
        side: Candidates(replace(line(*entries), resolution=side))
        for side, entries in ((192, small), (224, large))
    }
    texts = ["macs=50,resolution=224/192", "macs=30,resolution=192", "macs=30,resolution=224"]
    found = select(candidates, parse_budgets(texts).kept)
    assert [(pick.budget, pick.candidate.resolution) for pick in found] == [
        (0, 224), (1, 192), (2, 192),
    ]  # fmt: skip
    assert [pick.candidate.cost["macs"] for pick in found] == [40, 20, 20]
    assert reachable(candidates) == (
        "at resolution 192 params 1 to 2, macs 10 to 20; "
        "at resolution 224 params 1 to 2, macs 40 to 80"
    )


def test_a_space_of_a_thousand_million_is_selected_from_its_costs() -> None:
    """Too many to list: the reachable range is that of the smallest and the largest networks."""
    space = get_space("mobilenet")
    candidates = Candidates(cost_tables(space, 192))
    assert candidates.scores is None
    assert candidates.holds_any(Budget({"macs": (203_389_568, 203_389_569)}))
    assert not candidates.holds_any(Budget({"macs": (0, 203_389_568)}))
    assert candidates.reachable() == (
        "params 8,954,184 to 23,404,080, macs 203,389,568 to 870,251,008"
    )


def test_a_program_of_many_edges_still_finds_the_best() -> None:
    """The solver stops within a fixed distance, so scores must not shrink with their number."""
    number = 3000
    scores = 1 + 1e-7 * np.random.default_rng(0).permutation(number)
    graph = item_graph(line(*((1, 1, float(score)) for score in scores)))
    (budget,) = parse_budgets(["params=0:5"]).kept
    found = [one.score for one in best_by_program(graph, budget, 3)]
    assert found == sorted(scores, reverse=True)[:3]
