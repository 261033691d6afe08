"""Architectures within a budget against brute force: which, what they cost, how likely each is."""

from collections import Counter
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from families.drawing import ALL_SPACES, TEST_SPACES, choices
from prenas.cost import bounded_names, count
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.proxy.tables import cost_tables
from prenas.recipe.budgets import Budget
from prenas.selection import within as module
from prenas.selection.placing import placed_budgets
from prenas.selection.within import Genes, Weighting, Within
from selection.chains import every_choice
from selection.test_micro import SPACES
from training.runs import MINI

COST_AXES = bounded_names()

MICRO = TEST_SPACES["mobilenet"][0]
each_weighting = pytest.mark.parametrize("weighting", ["archs", "genes"])


def every_genes(space: SearchSpace, resolution: int | None = None) -> list[Genes]:
    """All of a small space, literally."""
    return [Genes(found, resolution) for found in every_choice(cost_tables(space, resolution))]


def cost_of(space: SearchSpace, genes: Genes) -> tuple[int, ...]:
    """By the plain network."""
    cost = count(space.compose(*genes), space.settings)
    return tuple(cost[axis] for axis in COST_AXES)


def budget_of(space: SearchSpace, text: str) -> Budget:
    (budget,) = placed_budgets(space, [text]).kept
    return budget


def chance_of(space: SearchSpace, genes: Genes) -> float:
    """That `SearchSpace.sample` draws these choices."""
    total = 1.0
    for stage, choice in zip(space.chain, genes.choices, strict=True):
        free = min(choice.depth, 1) if stage.tied else choice.depth
        ways = prod(len(axis.options) for axis in stage.axes) ** free
        total /= len(stage.widths) * len(stage.depths) * ways
    return total


@pytest.mark.parametrize("space", ALL_SPACES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_every_draw_fits_and_costs_what_its_network_does(
    space: SearchSpace, data: st.DataObject
) -> None:
    """In any budget that a random architecture fits, however narrow, of one cost or of both."""
    resolution = data.draw(st.sampled_from(space.resolutions))
    member = Genes(data.draw(choices(space)), resolution)
    below, above = data.draw(st.tuples(st.integers(0, 5000), st.integers(1, 5000)))
    axes = data.draw(st.sampled_from([COST_AXES, *((axis,) for axis in COST_AXES)]))
    cost = dict(zip(COST_AXES, cost_of(space, member), strict=True))
    intervals = {axis: (max(cost[axis] - below, 0), cost[axis] + above) for axis in axes}
    within = Within(space, Budget(intervals, resolution))
    assert within.cost(member) == tuple(cost.values())
    assert member in within
    generator = np.random.default_rng(0)
    for _ in range(3):
        genes = within.draw(generator)
        assert within.cost(genes) == cost_of(space, genes)
        drawn = dict(zip(COST_AXES, cost_of(space, genes), strict=True))
        assert all(lo <= drawn[axis] < hi for axis, (lo, hi) in intervals.items())


def fitting(space: SearchSpace, budget: Budget) -> list[Genes]:
    tables = cost_tables(space, budget.resolution)
    return [
        genes
        for genes in every_genes(space, budget.resolution)
        if budget.contains(tables.cost(genes.choices))
    ]


CASES = [
    *((MINI, text) for text in ("params=1200:1900", "params=2k:3400", "params=9k", "params=3k")),
    (MICRO, "macs=225k"),  # the cheap end
    (MICRO, "macs=600k:604k"),
    (MICRO, "macs=600k:640k,params=25k:45k"),
    (SPACES["untied"], "macs=300k"),
    (SPACES["untied"], "params=50k:51k"),
]


@each_weighting
@pytest.mark.parametrize("num_steps", [2**14, 400])
@pytest.mark.parametrize(("space", "text"), CASES, ids=[f"{s.name}, {text}" for s, text in CASES])
def test_draws_are_as_likely_as_said(
    space: SearchSpace,
    text: str,
    num_steps: int,
    weighting: Weighting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them and no others; by a chi-square over 2,000 draws, however coarse the steps."""
    monkeypatch.setattr(module, "_NUM_STEPS", num_steps)
    budget = budget_of(space, text)
    members = fitting(space, budget)
    within = Within(space, budget, weighting)
    assert within.num_archs >= len(members) * (1 - 1e-9)
    if all(step.is_exact for step in within._steps):
        assert within.num_archs == pytest.approx(len(members))
    chances = np.array([chance_of(space, one) if weighting == "genes" else 1.0 for one in members])
    generator = np.random.default_rng(1)
    number = 2000
    found = Counter(within.draw(generator) for _ in range(number))
    assert found.keys() <= set(members)
    expected = number * chances / chances.sum()
    order = np.argsort(expected)
    # A chi-square needs a few expected in every cell: the rarest are counted together.
    cells = np.minimum((np.cumsum(expected[order]) // 8).astype(int), len(members) - 1)
    observed = np.array([found[members[place]] for place in order])
    sums = [np.bincount(cells, weights=values) for values in (observed, expected[order])]
    kept = sums[1] > 0
    if kept.sum() > 1:
        assert chisquare(sums[0][kept], sums[1][kept]).pvalue > 1e-3
    if len(members) < number / 15 and weighting == "archs":
        assert found.keys() == set(members)


def test_one_of_a_thousand_million_is_drawn_at_once() -> None:
    """The smallest of a space alone, and the published budgets that samples never hit."""
    for name in ("tiny", "mobilenet"):
        space = get_space(name)
        smallest = count(space.smallest, space.settings)
        text = f"macs={smallest['macs']}"
        genes = Within(space, budget_of(space, text)).draw(np.random.default_rng(0))
        assert space.compose(*genes) == space.smallest
    base = get_space("base")
    within = Within(base, budget_of(base, "params=30M:42M"))
    assert within.draw(np.random.default_rng(0)) in within


@pytest.mark.parametrize("space", [*ALL_SPACES, get_space("small")])
def test_a_budget_of_all_holds_as_many_as_the_space(space: SearchSpace) -> None:
    """At each of its resolutions."""
    for resolution in space.resolutions:
        within = Within(space, Budget({"params": (0, 10**10)}, resolution))
        assert within.num_archs == pytest.approx(space.num_archs / len(space.resolutions))
        assert within.draw(np.random.default_rng(0)).resolution == resolution


def test_another_resolution_is_outside() -> None:
    odd = TEST_SPACES["mobilenet"][1]
    within = Within(odd, Budget({"params": (0, 10**9)}, odd.resolutions[0]))
    genes = within.draw(np.random.default_rng(0))
    assert genes in within
    assert genes._replace(resolution=odd.resolutions[1]) not in within


def test_more_than_there_are_is_not_drawn_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = Within(MINI, budget_of(MINI, "params=700:1000"))
    drawn: list[Genes] = []
    draw = Within.draw

    def counted(self: Within, generator: np.random.Generator) -> Genes:
        drawn.append(draw(self, generator))
        return drawn[-1]

    monkeypatch.setattr(Within, "draw", counted)
    found = few.draw_distinct(1000, np.random.default_rng(0))
    expected = {genes for genes in every_genes(MINI) if genes in few}
    assert {*found} == expected
    assert len(found) == len(expected) > 0
    assert len(drawn) <= module._ATTEMPTS * len(expected)


def test_an_empty_budget_is_named_with_what_there_is() -> None:
    low, high = (count(arch, MINI.settings)["params"] for arch in (MINI.smallest, MINI.largest))
    with pytest.raises(
        ValueError, match=r"space 'mini' fits the budget params in \[10k, 11k\)"
    ) as e:
        Within(MINI, budget_of(MINI, "params=10k:11k"))
    assert f"params {low} to {high}" in str(e.value)


def test_a_gap_between_costs_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are too coarse to tell are settled before anything is drawn for ever."""
    monkeypatch.setattr(module, "_NUM_STEPS", 8)
    costs = sorted({cost_of(MINI, genes)[0] for genes in every_genes(MINI)})
    below, above = max(pairwise(costs), key=lambda pair: pair[1] - pair[0])
    with pytest.raises(ValueError, match="no architecture of space 'mini' fits"):
        Within(MINI, Budget({"params": (below + 1, above)}))


def test_every_sample_of_the_space_is_a_genes() -> None:
    """What is drawn without a budget is what is drawn in one that holds all."""
    generator = np.random.default_rng(0)
    within = Within(MICRO, Budget({"params": (0, 10**9)}))
    assert all(Genes(*MICRO.sample_choices(generator)) in within for _ in range(50))
    assert len(set(every_genes(MICRO))) == MICRO.num_archs == 5184
