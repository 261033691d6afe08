"""Search in a trained network: which of its hidden units are worth keeping for each budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from prenas.cost import bounded_names, count
from prenas.data import ImageData, ImageSource, drawn_subset, evaluation_batches, num_samples
from prenas.families import family_of
from prenas.families.base import SearchSpace, Stage, StageChoice
from prenas.families.units import UnitGroup, reorder
from prenas.proxy.layout import num_options, options_of
from prenas.proxy.scores import UNIT_SCORES, Floats
from prenas.proxy.tables import SpaceTables, cost_tables
from prenas.proxy.unit_scores import unit_scores
from prenas.recipe import Recipe
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Candidate
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import HalvesAgreement, Trained
from prenas.selection.search import Scored, Search, check_any_fits, preferred_set
from prenas.selection.select import Candidates, Pick, select
from prenas.supernet import Supernet
from prenas.values import few_of


def scores_units(recipe: Recipe) -> bool:
    """Whether a recipe searches in a trained network, instead of at initialisation."""
    return recipe.search.score in UNIT_SCORES


def search_trained(
    recipe: Recipe,
    supernet: Supernet,
    data: ImageData,
    device: torch.device | str = "cpu",
    *,
    source: str,
    sha256: str,
) -> Search:
    """Scores the hidden units of a trained network and picks the best subnets per budget.

    The units of every layer are put into the order of their scores, so that a smaller subnet owns
    the most important ones. The score of a subnet is the sum over the units that it keeps, in % of
    the whole network's.

    Args:
        supernet: a trained network that contains the whole space, with the BatchNorm statistics of
            its largest subnet. It is changed.
        data: the scores are measured on its training images, without augmentation.
        source: name of the trained network.
        sha256: digest of its weights.

    Returns:
        The preferred set, and the supernet with its units in order: it is the one to train.

    Raises:
        ValueError: no subnet fits any budget, or the data do not suit the network.
    """
    search, space = recipe.search, recipe.space
    budgets = placed_budgets(
        space, search.budgets, keep_partial=search.keep_partial, enumeration=search.enumeration
    )
    check_any_fits(recipe, budgets.kept)
    network = supernet.to(device).network
    layers = _groups_of(space)
    groups = [group for layer in layers for group in layer]
    found = unit_scores(
        network,
        groups,
        scored_batches(recipe, data, device),
        score=search.score,  # type: ignore[arg-type]
        seed=recipe.seed,
    )
    choice = _choose(recipe, layers, found.scores, budgets.kept)
    for group, order in zip(groups, choice.orders, strict=True):
        reorder(network, group, order)
    preferred = preferred_set(recipe, budgets, choice.picks, choice.scored, (), device)
    agreement = None
    if found.halves is not None:
        agreement = _agreement(recipe, layers, found.halves, budgets.kept)
    trained = Trained(
        source=source,
        sha256=sha256,
        units={
            group.consumer: tuple(order.tolist())
            for group, order in zip(groups, choice.orders, strict=True)
        },
        halves=agreement,
    )
    whole = count(supernet.arch, space)
    named = tuple(budget.beside(whole) for budget in budgets.kept)
    found_set = preferred.model_copy(update={"trained": trained, "budgets": named})
    return Search(found_set, supernet.cpu())


class _Choice(NamedTuple):
    """What follows from the scores of all units."""

    orders: list[Tensor]
    """Per group, the numbers of its units, the most important first."""
    scored: Scored
    picks: list[Pick]

    def kept(self, budget: int, space: SearchSpace) -> list[set[int]]:
        """Per group, the units that the best subnet of a budget keeps; empty if there is none."""
        best = [one.candidate for one in self.picks if (one.budget, one.rank) == (budget, 0)]
        numbers = [
            int(axis.options[options[layer]])
            for candidate in best
            for stage, choice in zip(space.chain, candidate.choices, strict=True)
            for layer in range(choice.depth)
            for axis, options in zip(stage.axes, choice.options, strict=True)
        ]
        return [
            set(order[:number].tolist())
            for order, number in zip(self.orders, numbers, strict=bool(best))
        ]


def _choose(
    recipe: Recipe,
    layers: Sequence[Sequence[UnitGroup]],
    scores: Sequence[Tensor],
    budgets: Sequence[Budget],
) -> _Choice:
    """The best subnets of every budget; scores are in the order of the groups of all layers."""
    search, space = recipe.search, recipe.space
    orders = [torch.argsort(one, descending=True, stable=True) for one in scores]
    whole = sum(float(one.sum()) for one in scores) or 1.0
    shares = iter([100 * one[order] / whole for one, order in zip(scores, orders, strict=True)])
    in_order = [[next(shares) for _ in layer] for layer in layers]
    candidates = {}
    for side in dict.fromkeys(budget.resolution for budget in budgets):
        tables = unit_tables(space, in_order, resolution=side)
        candidates[side] = Candidates(tables, search.enumeration)
    scored = Scored((), candidates)
    if search.allocation == "best":
        return _Choice(orders, scored, select(candidates, budgets, search.k))
    picks = []
    for number, budget in enumerate(budgets):
        equal = equal_shares(space, scored.tables(budget.resolution), budget)
        if equal is not None:
            picks.append(Pick(equal, number, rank=0, margin=None))
    if not picks:
        raise ValueError(
            "no subnet that keeps the same share of every layer fits any of the budgets "
            f"{few_of([*map(str, budgets)])}: choose search.allocation=best, or other budgets"
        )
    return _Choice(orders, scored, picks)


_NUM_SHARES = 1000
"""In how many steps the share of every layer is lowered."""


def equal_shares(space: SearchSpace, tables: SpaceTables, budget: Budget) -> Candidate | None:
    """The largest subnet in a budget that keeps the same share of the units of every layer.

    Every layer takes the option that is nearest to the share. None if no share fits the budget.
    """
    tried = None
    for step in range(_NUM_SHARES, -1, -1):
        choices = tuple(_nearest(stage, step / _NUM_SHARES) for stage in space.chain)
        if choices == tried:
            continue
        tried, cost = choices, tables.cost(choices)
        if budget.contains(cost):
            costs = dict(zip(bounded_names(), map(int, cost), strict=True))
            return Candidate(choices, budget.resolution, costs, tables.score(choices))
    return None


def _nearest(stage: Stage, share: float) -> StageChoice:
    if not stage.axes:
        return StageChoice(0, 0)
    depth = stage.depths[-1]
    places = [
        min(range(len(axis.options)), key=lambda i: abs(axis.options[i] - wanted))
        for axis in stage.axes
        for wanted in [share * axis.options[-1]]
    ]
    return StageChoice(0, depth, tuple((place,) * depth for place in places))


def _agreement(
    recipe: Recipe,
    layers: Sequence[Sequence[UnitGroup]],
    halves: tuple[list[Tensor], list[Tensor]],
    budgets: Sequence[Budget],
) -> HalvesAgreement:
    """How much the choice depends on which images were scored."""
    ranks = [
        float(spearmanr(one, other).statistic)
        for one, other in zip(*halves, strict=True)
        if min(np.ptp(one.numpy()), np.ptp(other.numpy())) > 0
    ]
    choices = [_choose(recipe, layers, scores, budgets) for scores in halves]
    in_common = []
    for number in range(len(budgets)):
        one, other = (choice.kept(number, recipe.space) for choice in choices)
        either = sum(max(len(a), len(b)) for a, b in zip(one, other, strict=True))
        both = sum(len(a & b) for a, b in zip(one, other, strict=True))
        in_common.append(both / either if either else None)
    return HalvesAgreement(
        rank_correlation=fmean(ranks) if ranks else None, kept_in_common=tuple(in_common)
    )


def _groups_of(space: SearchSpace) -> Sequence[Sequence[UnitGroup]]:
    family = family_of(space)
    if family.unit_groups is None:
        raise ValueError(
            f"networks of the family {family.name} cannot be searched after training: choose a "
            "score for networks at initialisation, such as the default (search.score)"
        )
    return family.unit_groups(space.largest)


def scored_batches(
    recipe: Recipe, data: ImageData, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of the training split: at most `search.num_images`, drawn by the seed."""
    source: ImageSource = data.train if data.unchanged is None else data.unchanged
    settings, search = recipe.space.settings, recipe.search
    if num_samples(source) > search.num_images:
        source = drawn_subset(source, search.num_images, recipe.seed, "importance images")
    batches = evaluation_batches(source, settings, search.batch_size, data.num_workers)
    for images, labels in batches:
        yield images.to(device), labels.to(device)


def unit_tables(
    space: SearchSpace, in_order: Sequence[Sequence[Tensor]], *, resolution: int | None = None
) -> SpaceTables:
    """Tables whose scores are sums over the leading units of every layer.

    Args:
        in_order: for each layer and each of its axes, the scores [units] in falling order.
    """
    layers = iter(in_order)
    tables = cost_tables(space, resolution)
    stages = []
    for stage, table in zip(space.chain, tables.stages, strict=True):
        if not stage.axes:
            stages.append(table)
            continue
        kept = [
            [_sums(axis.options, scores) for axis, scores in zip(stage.axes, found, strict=True)]
            for found in (next(layers) for _ in range(stage.depths[-1]))
        ]
        scores = np.array([_per_option(stage, layer) for layer in kept])
        gains = tuple(
            np.stack([np.diff(layer[axis], prepend=0.0) for layer in kept])
            for axis in range(len(stage.axes))
        )
        stages.append(
            replace(table, scores=np.broadcast_to(scores, table.scores.shape), gains=gains)
        )
    return replace(tables, stages=tuple(stages))


def _sums(options: Sequence[float], scores: Tensor) -> Floats:
    """[options] the sum over the leading units that each option keeps."""
    sums = np.concatenate([[0.0], np.cumsum(scores.numpy())])
    return sums[np.array(options, dtype=np.int64)]


def _per_option(stage: Stage, kept: Sequence[Floats]) -> Floats:
    """[combinations of options] the sum over all axes."""
    every = [options_of(stage, number) for number in range(num_options(stage))]
    return np.array([sum(one[i] for one, i in zip(kept, each, strict=True)) for each in every])
