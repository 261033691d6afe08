"""Every strategy of choice against brute force, on tables full of ties and on small spaces."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from families.drawing import TEST_SPACES
from prenas.cost import bounded_names, count
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.proxy.tables import SpaceTables, cost_tables
from prenas.recipe import Recipe, SearchRecipe, searching_recipe, with_overrides
from prenas.recipe.budgets import Budget
from prenas.recipe.catalogue import get_recipe
from prenas.selection import graph as graphs
from prenas.selection import shapes
from prenas.selection.graph import Candidate
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import PreferredSubnet
from prenas.selection.search import zero_cost_search
from prenas.selection.select import Candidates, select
from prenas.selection.shapes import shape_of
from prenas.selection.strategies import picks_of
from prenas.selection.within import Genes, Within
from selection.brute import budgets, every_candidate, inside, ranking, tables
from selection.test_within import fitting
from training.runs import MINI, mini_recipe

# --- skeletons -----------------------------------------------------------------------------------


def distance(space: SpaceTables, one: Candidate, other: Candidate) -> int:
    """Steps between two shapes in the lists of options, literally."""
    return sum(
        abs(left.width - right.width)
        + abs(table.depths.index(left.depth) - table.depths.index(right.depth))
        for table, left, right in zip(space.stages, one.choices, other.choices, strict=True)
    )


def check_greedy(
    space: SpaceTables,
    everything: Sequence[Candidate],
    budget: Budget,
    found: Sequence[Candidate],
    least: int,
    num: int,
    *,
    ties_in_order: bool,
) -> None:
    """Each is a best one of those that are far enough from all before it, and none is missing."""
    for rank in range(num):
        left = [
            one
            for one in ranking(everything, budget)
            if all(distance(space, one, other) >= least for other in found[:rank])
        ]
        if rank == len(found):
            assert not left
            return
        assert found[rank] in left
        assert found[rank].score == left[0].score
        if ties_in_order:
            assert found[rank] == left[0]


@settings(max_examples=60)
@given(space=tables(), least=st.integers(1, 4), num=st.integers(1, 5), data=st.data())
def test_skeletons_are_the_best_of_those_far_enough_from_all_before(
    space: SpaceTables, least: int, num: int, data: st.DataObject
) -> None:
    """In chains of one to three stages; scores may have a `finish`, and ties are everywhere."""
    everything = every_candidate(space)
    some = data.draw(st.lists(budgets(everything), min_size=1, max_size=2))
    answers = Candidates(space).apart(some, num, least)
    for budget, found in zip(some, answers, strict=True):
        check_greedy(space, everything, budget, found, least, num, ties_in_order=True)


@pytest.mark.parametrize("limit", ["edges", "items"])
@settings(max_examples=25)
@given(space=tables(), least=st.integers(1, 3), data=st.data())
def test_skeletons_by_other_means_are_as_good(
    limit: str, space: SpaceTables, least: int, data: st.DataObject
) -> None:
    """By the integer program, where graphs are too large; with an edge for every axis of a stage.

    The program alone may give another of equal score.
    """
    everything = every_candidate(space)
    budget = data.draw(budgets(everything))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            *{"edges": (shapes, "_MOST_EDGES", 0), "items": (graphs, "MOST_ITEMS", 0)}[limit]
        )
        (found,) = Candidates(space).apart([budget], 3, least)
    check_greedy(space, everything, budget, found, least, 3, ties_in_order=limit == "items")


@settings(max_examples=25)
@given(space=tables(), data=st.data())
def test_the_lead_of_skeletons_is_over_the_next_shape(
    space: SpaceTables, data: st.DataObject
) -> None:
    everything = every_candidate(space)
    budget = data.draw(budgets(everything))
    candidates = Candidates(space)
    (found,) = candidates.apart([budget], 3, 1)
    if not found:
        return
    picks = select({None: candidates}, [budget], 2, 1)
    assert [pick.candidate for pick in picks] == found[:2]
    for pick in picks:
        if len(found) == 3:
            lead = pick.candidate.score - found[2].score
            assert pick.margin == lead / abs(pick.candidate.score or 1.0)
        else:
            assert pick.margin is None


@pytest.mark.parametrize("least", [1, 2])
def test_skeletons_of_a_recipe_differ_in_shape(least: int) -> None:
    """By counting: the fullest of the best shape, of the next one, and so on."""
    words = ["strategy=skeletons", "k=3", "score=params", f"shape_distance={least}"]
    recipe = with_overrides(get_recipe("digits"), [f"search.{word}" for word in words])
    preferred, (stage,) = zero_cost_search(recipe).preferred, recipe.space.chain
    of_budgets: dict[int, list[PreferredSubnet]] = {}
    for choice in preferred.choices:
        of_budgets.setdefault(choice.budget, []).append(preferred.subnets[choice.subnet])
    assert max(map(len, of_budgets.values())) == 3
    for ranked in of_budgets.values():
        sizes = [subnet.costs["params"] for subnet in ranked]
        assert sizes == sorted(sizes, reverse=True) == [subnet.score for subnet in ranked]
        links = [subnet.arch.links[0] for subnet in ranked]
        for one, other in combinations(links, 2):
            widths = [stage.widths.index(link.width) for link in (one, other)]
            depths = [stage.depths.index(link.depth) for link in (one, other)]
            assert abs(widths[0] - widths[1]) + abs(depths[0] - depths[1]) >= least


# --- random --------------------------------------------------------------------------------------

SMALL = TEST_SPACES["mobilenet"][0]


@pytest.mark.parametrize(
    ("space", "text", "k"), [(MINI, "params=1200:1900", 2), (MINI, "params=3k", 1)]
)
def test_random_choices_are_uniform_over_sets(space: SearchSpace, text: str, k: int) -> None:
    """Every set of k architectures within the budget is equally likely: chi-square, 4,000 seeds."""
    (budget,) = placed_budgets(space, [text]).kept
    members = fitting(space, budget)
    sets = [frozenset(one) for one in combinations(members, k)]
    assert len(sets) > 5
    within = Within(space, budget, "archs")
    generator = np.random.default_rng(2)
    found = Counter(frozenset(within.draw_distinct(k, generator)) for _ in range(4000))
    assert found.keys() <= set(sets)
    assert chisquare([found[one] for one in sets]).pvalue > 1e-3


@pytest.mark.parametrize(("space", "text"), [(MINI, "params=1200:1500"), (SMALL, "macs=225k")])
def test_all_architectures_are_taken_where_there_are_too_few(space: SearchSpace, text: str) -> None:
    (budget,) = placed_budgets(space, [text]).kept
    members = fitting(space, budget)
    within = Within(space, budget, "archs")
    for num in (1, len(members) - 1, len(members), len(members) + 2):
        found = within.draw_distinct(num, np.random.default_rng(0))
        assert len(set(found)) == len(found) == min(num, len(members))
        assert set(found) <= set(members)


def test_a_draw_that_is_only_late_is_not_taken_for_a_small_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the first draws repeat each other, the program says that there are enough: go on."""
    (budget,) = placed_budgets(MINI, ["params=1200:1900"]).kept
    members = fitting(MINI, budget)
    within, draws = Within(MINI, budget, "archs"), []
    draw: Callable[[np.random.Generator], Genes] = within.draw

    def repeating(generator: np.random.Generator) -> Genes:
        draws.append(draw(generator))
        return draws[0] if len(draws) < 250 else draws[-1]

    monkeypatch.setattr(within, "draw", repeating)
    found = within.draw_distinct(2, np.random.default_rng(0))
    assert len(draws) >= 250
    assert len(set(found)) == 2
    assert set(found) <= set(members)


# --- all of them ---------------------------------------------------------------------------------


def recipe_of(space: SearchSpace, texts: Sequence[str], **search: object) -> Recipe:
    words = [f"search.{name}={value}" for name, value in search.items()]
    return with_overrides(searching_recipe(space, texts), words)


@pytest.mark.parametrize("strategy", ["best", "skeletons", "random"])
@pytest.mark.parametrize("space", [MINI, SMALL], ids=lambda space: space.name)
@settings(max_examples=6, deadline=None)
@given(k=st.integers(1, 4), data=st.data())
def test_every_strategy_keeps_to_budgets_and_gives_k_different_subnets(
    strategy: str, space: SearchSpace, k: int, data: st.DataObject
) -> None:
    """k where so many exist, otherwise all; nothing for a budget that holds nothing."""
    everything = every_candidate(cost_tables(space), free=strategy == "random")
    some = data.draw(st.lists(budgets(everything), min_size=1, max_size=2))
    texts = [
        ",".join(f"{axis}={lo}:{hi}" for axis, (lo, hi) in one.intervals.items()) for one in some
    ]
    recipe = recipe_of(space, texts, strategy=strategy, k=k)
    candidates = {None: Candidates(cost_tables(space))}
    members = [[one for one in everything if inside(one, budget)] for budget in some]
    if not any(members):
        with pytest.raises(ValueError, match=r"no subnet fits (any of )?the"):
            picks_of(recipe, candidates, some)
        return
    picks = picks_of(recipe, candidates, some)
    assert picks == picks_of(recipe, candidates, some)
    for number, those in enumerate(members):
        own = [pick for pick in picks if pick.budget == number]
        kinds = {
            shape_of(candidates[None].tables, one.choices)
            if strategy == "skeletons"
            else one.choices
            for one in those
        }
        assert [pick.rank for pick in own] == [*range(min(k, len(kinds)))]
        assert all(inside(pick.candidate, some[number]) for pick in own)
        assert len({pick.candidate.choices for pick in own}) == len(own)


def test_a_random_search_records_costs_and_scores_and_follows_its_seed() -> None:
    """Budgets without a subnet are named; scores are those of the architectures; no leads."""
    found = [
        zero_cost_search(mini_recipe(seed=seed, search={"strategy": "random", "k": 3})).preferred
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert found[0].archs != found[2].archs
    assert found[0].empty_budgets == (3,)
    for subnet in found[0].subnets:
        assert subnet.costs == count(subnet.arch, MINI.settings)
        assert subnet.score is not None
        assert subnet.score > 0
    assert all(choice.margin is None for choice in found[0].choices)
    every = zero_cost_search(mini_recipe(search={"k": 9})).preferred
    scores = {subnet.arch: subnet.score for subnet in every.subnets}
    both = [subnet for subnet in found[0].subnets if subnet.arch in scores]
    assert both
    for subnet in both:
        assert subnet.score == pytest.approx(scores[subnet.arch], rel=1e-12)


def test_budgets_at_several_resolutions_have_their_own_choices() -> None:
    """In `mobilenet`, each at its resolution, and different shapes in each."""
    space = get_space("mobilenet")
    texts = ["macs=200M:300M,resolution=192/224"]
    some = placed_budgets(space, texts).kept
    candidates = {side: Candidates(cost_tables(space, side)) for side in (192, 224)}
    for strategy in ("skeletons", "random"):
        picks = picks_of(recipe_of(space, texts, strategy=strategy, k=2), candidates, some)
        assert [(pick.budget, pick.candidate.resolution) for pick in picks] == [
            (0, 192), (0, 192), (1, 224), (1, 224)
        ]  # fmt: skip
        for pick in picks:
            arch = space.compose(pick.candidate.choices, pick.candidate.resolution)
            costs = count(arch, space.settings)
            assert {name: costs[name] for name in bounded_names()} == pick.candidate.cost
            assert some[pick.budget].holds(costs)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.strategy=fancy"], "fancy"),
        (
            ["search.shape_distance=2"],
            "is how far skeletons are apart, but search.strategy is 'best'",
        ),
        (["search.strategy=random", "search.further_seeds=2"], "search.further_seeds 2 is about"),
        (["search.strategy=random", "search.exact_optimum=true"], "leave out exact_optimum"),
        (["search.strategy=random", "search.enumeration=published"], "search.enumeration publ"),
        (
            ["search.strategy=skeletons", "search.k=2", "search.shape_distance=9"],
            "at most 4 steps apart: set search.shape_distance to at most 4",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_overrides(get_recipe("digits"), words)


def test_cuts_of_trained_networks_have_one_strategy() -> None:
    with pytest.raises(
        ValueError, match=r"chooses among untrained networks, but search\.score 'gate'"
    ):
        SearchRecipe(budgets=("macs=1M",), score="gate", strategy="skeletons")


def test_a_space_of_one_shape_has_no_skeletons() -> None:
    space = MINI.model_copy(update={"embed_dim": (8,), "depth": (2,)})
    with pytest.raises(ValueError, match=r"at most 0 steps apart: set search\.k=1"):
        recipe_of(space, ["params=9k"], strategy="skeletons", k=2)
    assert recipe_of(space, ["params=9k"], strategy="skeletons", k=1).search.k == 1
