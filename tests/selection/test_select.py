"""The selector against a brute-force reading of its contract, on tables full of ties."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prenas.families.base import COST_AXES
from prenas.proxy.tables import AxisTable, SkeletonTable, SpaceTables
from prenas.selection.budgets import Budget, parse_budgets
from prenas.selection.isomers import Enumeration
from prenas.selection.select import Candidate, Candidates, select
from reference import scores as literal

Interval = tuple[int, int]


class Pick(NamedTuple):
    """What the oracle says about one pick."""

    budget: int
    rank: int
    candidate: Candidate
    margin: float | None


def every_candidate(tables: SpaceTables, enumeration: Enumeration) -> Iterator[Candidate]:
    """Skeletons, then the count vectors of the first axis, of the second, and so on."""
    for number, table in enumerate(tables.skeletons):
        ways = []
        for axis, gains in zip(table.axes, tables.gains, strict=True):
            by_option = gains[: table.num_layers, 1:].T.tolist()
            vectors = literal.enumerate_counts(
                table.num_layers, len(axis.costs), published=enumeration == "published"
            )
            # Production cuts from the largest option down, the reference from the smallest up.
            ways.append([literal.allocate(by_option, vector[::-1]) for vector in vectors])
        for choices in itertools.product(*ways):
            score = table.base_score
            cost = table.base_cost.tolist()
            for axis, options in zip(table.axes, choices, strict=True):
                for layer, option in enumerate(options):
                    score += float(axis.scores[layer, option])
                    cost = [c + int(a) for c, a in zip(cost, axis.costs[option], strict=True)]
            if tables.finish:
                score = float(tables.finish(np.array(score)))
            yield Candidate(
                skeleton=number,
                choices=tuple(map(tuple, choices)),
                cost=dict(zip(COST_AXES, cost, strict=True)),
                score=score,
            )


def oracle(
    tables: SpaceTables, enumeration: Enumeration, budgets: list[dict[str, Interval]], k: int
) -> list[Pick]:
    picks = []
    for number, budget in enumerate(budgets):
        inside = [
            candidate
            for candidate in every_candidate(tables, enumeration)
            if all(lo <= candidate.cost[axis] < hi for axis, (lo, hi) in budget.items())
        ]
        # Stable: what is equal in score and costs stays in enumeration order.
        ranked = sorted(inside, key=lambda c: (-c.score, c.cost["params"], c.cost["macs"]))
        for rank, candidate in enumerate(ranked[:k]):
            margin = None
            if len(ranked) > k:
                margin = (candidate.score - ranked[k].score) / abs(candidate.score or 1.0)
            picks.append(Pick(number, rank, candidate, margin))
    return picks


def integers(draw: st.DrawFn, low: int, high: int, *shape: int) -> np.ndarray:
    values = st.lists(
        st.integers(low, high), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))
    )
    return np.array(draw(values)).reshape(shape)


@st.composite
def tables(draw: st.DrawFn) -> SpaceTables:
    """Whole numbers from a small range, so that sums are exact and ties abound."""
    num_options = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    depths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    skeletons = []
    for depth in depths:
        axes = []
        for num in num_options:
            steps = integers(draw, 0, 2, num, len(COST_AXES))
            steps[0] = 0
            scores = integers(draw, -2, 2, depth, num).astype(np.float64)
            axes.append(AxisTable(np.cumsum(steps, axis=0), scores))
        base = integers(draw, 1, 6, len(COST_AXES))
        skeletons.append(SkeletonTable(depth, base, float(draw(st.integers(-3, 6))), tuple(axes)))
    gains = tuple(integers(draw, 0, 2, max(depths), num).astype(float) for num in num_options)
    return SpaceTables(tuple(skeletons), gains, draw(st.sampled_from([None, np.abs])))


interval = st.tuples(st.integers(1, 20), st.integers(1, 12)).map(lambda t: (t[0], t[0] + t[1]))
budget_lists = st.lists(
    st.one_of(
        st.fixed_dictionaries({"params": interval}),
        st.fixed_dictionaries({"macs": interval}),
        st.fixed_dictionaries({"params": interval, "macs": interval}),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150)
@given(
    tables(),
    st.sampled_from(["all", "published"]),
    budget_lists,
    st.integers(1, 3),
)
def test_selection_equals_brute_force(
    space: SpaceTables, enumeration: Enumeration, budgets: list[dict[str, Interval]], k: int
) -> None:
    """Score, then cost, then order; [lo, hi) on every axis; empty budgets give no pick."""
    candidates = Candidates(space, enumeration)
    expected = oracle(space, enumeration, budgets, k)
    if not expected:
        with pytest.raises(ValueError, match="no subnet fits"):
            select(candidates, [Budget(b) for b in budgets], k)
        return
    found = select(candidates, [Budget(b) for b in budgets], k)
    assert [Pick(p.budget, p.rank, p.candidate, p.margin) for p in found] == expected


@given(tables(), st.sampled_from(["all", "published"]))
def test_candidates_are_every_class_in_order(space: SpaceTables, enumeration: Enumeration) -> None:
    candidates = Candidates(space, enumeration)
    expected = list(every_candidate(space, enumeration))
    assert [candidates[index] for index in range(len(candidates))] == expected
    assert candidates.costs.tolist() == [list(c.cost.values()) for c in expected]
    assert candidates.scores.tolist() == [c.score for c in expected]


def line(*entries: tuple[int, int, float]) -> SpaceTables:
    """One skeleton of one layer without choice per (params, macs, score)."""
    single = AxisTable(np.zeros((1, 2), dtype=np.int64), np.zeros((1, 1)))
    return SpaceTables(
        tuple(
            SkeletonTable(1, np.array([params, macs]), score, (single,))
            for params, macs, score in entries
        ),
        (np.zeros((1, 1)),),
    )


def picked(space: SpaceTables, *texts: str, k: int = 1) -> list[list[int]]:
    """Per budget the numbers of the chosen entries."""
    budgets = parse_budgets(texts).kept
    chosen: list[list[int]] = [[] for _ in budgets]
    for pick in select(Candidates(space), budgets, k):
        chosen[pick.budget].append(pick.candidate.skeleton)
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


def test_ties() -> None:
    """Equal score: fewer parameters, then fewer MACs, then the first."""
    space = line((6, 2, 1.0), (5, 9, 1.0), (5, 8, 1.0), (5, 8, 1.0), (4, 1, 0.5))
    assert picked(space, "params=9", k=5) == [[2, 3, 1, 0, 4]]


def test_margins() -> None:
    """Lead over the best that was not chosen, relative to the own score; None without one."""
    space = line((1, 1, 8.0), (2, 1, 6.0), (3, 1, 3.0), (4, 1, -2.0), (5, 1, 0.0))
    candidates = Candidates(space)

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
    space = line((5, 1, 1.0))
    found = select(Candidates(space), parse_budgets(["params=2:3", "params=5:6"]).kept)
    assert [(pick.budget, pick.rank) for pick in found] == [(1, 0)]


def test_all_empty_names_the_budgets_and_the_range() -> None:
    space = line((5, 70, 1.0), (9, 20, 1.0))
    with pytest.raises(ValueError, match="no subnet fits any of the 2 budgets") as caught:
        select(Candidates(space), parse_budgets(["params=2:3", "params=4,macs=10"]).kept)
    for words in ("params in [2, 3)", "params <= 4, macs <= 10", "params 5 to 9, macs 20 to 70"):
        assert words in str(caught.value)


def test_best_is_a_ranking() -> None:
    """Asking for fewer gives the first of them; asking for too many gives all."""
    space = line((1, 1, 2.0), (2, 1, 4.0), (3, 1, 3.0))
    candidates, budget = Candidates(space), parse_budgets(["params=9"]).kept[0]
    assert candidates.best(budget, 9).tolist() == [1, 2, 0]
    assert candidates.best(budget, 2).tolist() == [1, 2]
    assert candidates.best(parse_budgets(["params=1"]).kept[0], 2).tolist() == [0]


def test_whole_space_is_one_array_operation() -> None:
    """76,275 classes of `small`'s shape are there, each with the sum of its entries."""
    generator = np.random.Generator(np.random.Philox(key=2))
    skeletons = []
    for depth in (13, 14) * 3:
        axes = tuple(
            AxisTable(
                np.cumsum(np.vstack([np.zeros((1, 2)), np.ones((2, 2))]), axis=0).astype(np.int64),
                generator.random((depth, 3)),
            )
            for _ in range(2)
        )
        skeletons.append(SkeletonTable(depth, np.array([10, 20]), 1.0, axes))
    gains = tuple(generator.random((14, 3)) for _ in range(2))
    candidates = Candidates(SpaceTables(tuple(skeletons), gains))
    assert len(candidates) == 76275
    for index in range(0, 76275, 7919):
        candidate = candidates[index]
        table = skeletons[candidate.skeleton]
        score = 1.0 + sum(
            axis.scores[layer, option]
            for axis, options in zip(table.axes, candidate.choices, strict=True)
            for layer, option in enumerate(options)
        )
        assert candidate.score == pytest.approx(score, rel=1e-12)
        assert candidate.cost["params"] == 10 + sum(map(sum, candidate.choices))
