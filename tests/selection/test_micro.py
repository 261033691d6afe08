"""Front, integer program and brute force agree on a real chain."""

import functools
from collections.abc import Sequence

import pytest
import torch

from families.drawing import TEST_SPACES
from prenas.cost import count
from prenas.families.base import SearchSpace
from prenas.proxy.gains import block_scores
from prenas.proxy.importance import Importance
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.proxy.tables import SpaceTables, space_tables, stage_scores
from prenas.recipe.budgets import Budget
from prenas.selection.exact import optimum
from prenas.selection.graph import Candidate
from prenas.selection.isomers import isomer_gains, num_isomer_classes
from prenas.selection.placing import placed_budgets
from prenas.selection.program import best_by_program
from prenas.selection.select import Candidates
from prenas.supernet import Supernet
from selection.chains import best_of, candidates_of, every_choice, every_class

MICRO = TEST_SPACES["mobilenet"][0]


def untied() -> SearchSpace:
    """The same space with free blocks, but so few that every subnet can be tried."""
    stages = list(MICRO.stages)  # type: ignore[attr-defined]
    stages[1] = stages[1].model_copy(update={"depth": (1, 3), "expand": (2.0, 4.0)})
    stages[2] = stages[2].model_copy(
        update={"width": (24, 32), "depth": (2,), "kernel": (3,), "expand": (2.0, 3.0, 4.0)}
    )
    return MICRO.model_copy(update={"tied": False, "name": "untied", "stages": tuple(stages)})


SPACES = {"tied": MICRO, "untied": untied()}


@functools.cache
def tables_of(name: str) -> SpaceTables:
    space = SPACES[name]
    generator = torch.Generator().manual_seed(5)
    network = Supernet(space.supernet, space.settings).network
    importance = Importance(
        *(
            {n: torch.randn(p.shape, generator=generator) for n, p in network.named_parameters()}
            for _ in range(2)
        )
    )
    gains = isomer_gains("published", block_scores(space, importance), 0)
    scores = stage_scores(space, importance, score=PUBLISHED_SCORE)
    return space_tables(space, scores, gains, score=PUBLISHED_SCORE)


@functools.cache
def every_candidate(name: str) -> list[Candidate]:
    return candidates_of(tables_of(name), every_class(tables_of(name), "all"))


BUDGETS = [
    "macs=600k",
    "params=40k",
    "macs=300k:1600k:200k",
    "macs=700k:702k",
    "params=50k:52k",
    "macs=900k,params=60k",
    "macs=500k:800k,params=30k:40k",
]


def same(found: Sequence[Candidate], expected: Sequence[Candidate]) -> bool:
    """The same subnets; the order of summation may change the last bits of equal numbers."""
    return [(one.choices, one.cost) for one in found] == [
        (one.choices, one.cost) for one in expected
    ] and [one.score for one in found] == pytest.approx([one.score for one in expected], rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("text", BUDGETS)
@pytest.mark.parametrize("name", SPACES)
def test_three_ways_to_choose_agree(name: str, text: str, k: int) -> None:
    every, tables = every_candidate(name), tables_of(name)
    candidates = Candidates(tables)
    assert len(every) == num_isomer_classes(SPACES[name])
    budgets = placed_budgets(SPACES[name], [text]).kept
    for budget, found in zip(budgets, candidates.best(budgets, k), strict=True):
        expected = best_of(every, budget, k)
        assert len(expected) > 0
        assert same(found, expected)
        assert same(best_by_program(candidates._graph, budget, k), expected)


@pytest.mark.parametrize("text", BUDGETS)
def test_the_exact_optimum_is_that_of_trying_every_subnet(text: str) -> None:
    """Tied, the selector finds it; free, no isomer beats it."""
    tables = tables_of("untied")
    every = candidates_of(tables, every_choice(tables))
    assert len(every) == SPACES["untied"].num_archs
    for budget in placed_budgets(SPACES["untied"], [text]).kept:
        found = optimum(tables, budget)
        assert found is not None
        (best,) = best_of(every, budget, 1)
        assert found.candidate.score == pytest.approx(best.score, rel=1e-9)
        assert found.proven == pytest.approx(best.score, rel=1e-8)
        assert budget.holds(found.candidate.cost)
    for budget in placed_budgets(MICRO, [text]).kept:
        found = optimum(tables_of("tied"), budget)
        assert found is not None
        (best,) = best_of(every_candidate("tied"), budget, 1)
        assert found.candidate.choices == best.choices


@pytest.mark.parametrize("name", SPACES)
def test_costs_are_those_of_the_plain_network(name: str) -> None:
    space = SPACES[name]
    for one in every_candidate(name)[::401]:
        cost = count(space.compose(one.choices), space.settings)
        assert one.cost == {"params": cost["params"], "macs": cost["macs"]}


def test_a_narrow_interval_of_nothing_but_worse_subnets() -> None:
    """Cheaper subnets score higher, so no front answers, and the program does."""
    every, tables = every_candidate("tied"), tables_of("tied")
    by_cost = sorted(every, key=lambda one: one.cost["macs"])
    best, worst = 0.0, by_cost[0]
    for one in by_cost:
        best = max(best, one.score)
        if one.score < 0.8 * best:
            worst = one
    budget = Budget({"macs": (worst.cost["macs"], worst.cost["macs"] + 1)})
    (found,) = Candidates(tables).best([budget], 2)
    assert same(found, best_of(every, budget, 2))
    assert found[0].score < 0.9 * best
