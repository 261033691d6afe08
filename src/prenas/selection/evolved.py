"""Evolved subnets: the best of each budget on validation images, in the form of a preferred set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import SerializeAsAny

from prenas.cost import Costs, count
from prenas.families.base import Arch
from prenas.recipe.budgets import parse_budgets
from prenas.selection.preferred import Choice, PreferredSet, PreferredSubnet
from prenas.values import Amount, Value


class Evolved(Value):
    """The best subnet that evolution found for one budget."""

    budget: str
    arch: SerializeAsAny[Arch]
    costs: Costs
    """Name of the cost axis (`prenas.cost`) -> amount."""
    accuracy: float
    """Top-1 accuracy on the validation images that candidates were compared on, 0 to 1."""
    history: tuple[float, ...]
    """The best accuracy so far, after each generation."""
    num_evaluated: Amount
    """Number of different candidates evaluated for this budget."""


class EvolvedSet(PreferredSet):
    """The evolved subnets of all budgets, in the form of a preferred set."""

    kind: ClassVar[str] = "evolved"
    evolved: tuple[Evolved, ...]


def evolved_set(preferred: PreferredSet, evolved: Sequence[Evolved]) -> EvolvedSet:
    """A set with the evolved subnets instead of the preferred ones, distinct and cheapest first.

    Args:
        evolved: one for each budget that any subnet fits.
    """
    settings = preferred.recipe.space.settings
    costs = {found.arch: count(found.arch, settings) for found in evolved}
    first = parse_budgets(preferred.recipe.search.budgets).kept[0]
    archs = sorted(costs, key=lambda arch: first.expense(costs[arch]))
    by_budget = {found.budget: found.arch for found in evolved}
    fields = {
        **dict(preferred),
        "subnets": tuple(
            PreferredSubnet(arch=arch, costs=costs[arch], score=None) for arch in archs
        ),
        "choices": tuple(
            Choice(budget=number, rank=0, subnet=archs.index(by_budget[budget]), margin=None)
            for number, budget in enumerate(preferred.budgets)
            if number not in preferred.empty_budgets
        ),
        # The scores at initialisation played no part in this choice.
        "block_scores": {},
        "agreement": (),
        "optima": (),
        "evolved": tuple(evolved),
    }
    return EvolvedSet(**fields)
