"""Architectures within a budget against brute force: which, what they cost, how likely each is."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from families.drawing import ALL_SPACES, choices
from prenas.cost import count
from prenas.families import get_space
from prenas.families.base import COST_AXES, SearchSpace
from prenas.selection.budgets import Budget, parse_budgets
from prenas.selection.within import Genes, Within
from training.runs import MINI


def every_genes(space: SearchSpace) -> list[Genes]:
    """All of a small space, literally."""
    return [
        Genes(skeleton, combination)
        for skeleton in space.skeletons
        for combination in product(
            *(
                list(product(range(len(axis.options)), repeat=skeleton.num_layers))
                for axis in space.layer_axes
            )
        )
    ]


def cost_of(space: SearchSpace, genes: Genes) -> tuple[int, ...]:
    """By the plain network."""
    cost = count(space.compose(*genes), space.settings)
    return tuple(getattr(cost, axis) for axis in COST_AXES)


def budget_of(text: str) -> Budget:
    (budget,) = parse_budgets([text]).kept
    return budget


@pytest.mark.parametrize("space", ALL_SPACES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_draw_fits_and_costs_what_its_network_does(
    space: SearchSpace, data: st.DataObject
) -> None:
    """In any budget that a random architecture fits, however narrow, of one cost or of both."""
    skeleton = data.draw(st.sampled_from(space.skeletons))
    member = Genes(skeleton, tuple(map(tuple, data.draw(choices(space, skeleton)))))
    below, above = data.draw(st.tuples(st.integers(0, 5000), st.integers(1, 5000)))
    axes = data.draw(st.sampled_from([COST_AXES, *((axis,) for axis in COST_AXES)]))
    cost = dict(zip(COST_AXES, cost_of(space, member), strict=True))
    budget = Budget({axis: (max(cost[axis] - below, 0), cost[axis] + above) for axis in axes})
    within = Within(space, budget)
    assert within.cost(member) == tuple(cost.values())
    assert member in within
    generator = np.random.default_rng(0)
    for _ in range(5):
        genes = within.draw(generator)
        assert within.cost(genes) == cost_of(space, genes)
        drawn = dict(zip(COST_AXES, cost_of(space, genes), strict=True))
        assert all(lo <= drawn[axis] < hi for axis, (lo, hi) in budget.intervals.items())


@pytest.mark.parametrize("text", ["params=1200:1900", "params=2k:3400", "params=9k", "params=3k"])
def test_draws_are_those_samples_of_the_space_that_fit(text: str) -> None:
    """All of them and no others, each as likely as among the samples that fit."""
    within = Within(MINI, budget_of(text))
    (lo, hi), *_ = budget_of(text).intervals.values()
    fitting = {g for g in every_genes(MINI) if lo <= cost_of(MINI, g)[0] < hi}
    assert {g for g in every_genes(MINI) if g in within} == fitting
    assert within.num_archs == pytest.approx(len(fitting))
    weight = {g: 1 / 4**g.skeleton.num_layers for g in fitting}  # two axes of two options
    generator = np.random.default_rng(1)
    found = Counter(within.draw(generator) for _ in range(4000))
    assert found.keys() == fitting
    for genes, number in found.items():
        expected = 4000 * weight[genes] / sum(weight.values())
        assert abs(number - expected) < 5 * expected**0.5


def test_one_of_a_thousand_million_is_drawn_at_once() -> None:
    """The smallest of `tiny` alone, and the published budgets that samples never hit."""
    tiny = get_space("tiny")
    smallest = count(tiny.smallest, tiny.settings).params
    genes = Within(tiny, budget_of(f"params={smallest}")).draw(np.random.default_rng(0))
    assert tiny.compose(*genes) == tiny.smallest
    base = get_space("base")
    within = Within(base, budget_of("params=30M:42M"))
    assert within.draw(np.random.default_rng(0)) in within


@pytest.mark.parametrize("space", [*ALL_SPACES, get_space("small")])
def test_a_budget_of_all_holds_as_many_as_the_space(space: SearchSpace) -> None:
    assert Within(space, budget_of("params=10G")).num_archs == pytest.approx(space.num_archs)


def test_an_empty_budget_is_named_with_what_there_is() -> None:
    low, high = (count(arch, MINI.settings).params for arch in (MINI.smallest, MINI.largest))
    with pytest.raises(
        ValueError, match=r"space 'mini' fits the budget params in \[10k, 11k\)"
    ) as e:
        Within(MINI, budget_of("params=10k:11k"))
    assert f"params {low} to {high}" in str(e.value)
