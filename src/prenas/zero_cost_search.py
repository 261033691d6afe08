"""Zero-cost search: from a recipe to its preferred set and the weights that were scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from prenas.cost import count
from prenas.data import ImageData, labelled_sample
from prenas.families.base import Arch, SearchSpace
from prenas.proxy.importance import Importance, measure_importance, noise_images
from prenas.proxy.scores import Floats
from prenas.proxy.tables import (
    BlockScores,
    SpaceTables,
    block_scores,
    cost_tables,
    space_tables,
)
from prenas.randomness import torch_generator
from prenas.recipe import Recipe
from prenas.selection.budgets import Budget, Budgets, parse_budgets
from prenas.selection.exact import optimum
from prenas.selection.isomers import isomer_gains
from prenas.selection.preferred import (
    Choice,
    ExactOptimum,
    PreferredSet,
    PreferredSubnet,
    SeedAgreement,
    versions_in_use,
)
from prenas.selection.select import Candidate, Candidates, Pick, select
from prenas.supernet import Supernet


class Search(NamedTuple):
    """A preferred set, and the supernet with the very weights that were scored."""

    preferred: PreferredSet
    supernet: Supernet


class _Scored(NamedTuple):
    """What one initialisation says."""

    block_scores: tuple[BlockScores, ...]
    tables: SpaceTables
    candidates: Candidates


def new_supernet(recipe: Recipe, seed: int) -> Supernet:
    """The supernet of the recipe's space, initialised from a seed."""
    supernet = Supernet(recipe.space.supernet, recipe.space.settings)
    return supernet.initialize(torch_generator(seed, "weights"))


def zero_cost_search(
    recipe: Recipe, data: ImageData | None = None, device: torch.device | str = "cpu"
) -> Search:
    """Scores all subnets of the recipe's space at initialisation and picks the best per budget.

    The recipe's seed selects; further seeds only report how far they agree. The returned supernet
    holds the initial weights that were scored, and is the one to train.

    Args:
        data: needed where `search.images` is `data`; the training split gives the images.

    Raises:
        ValueError: no budget holds any subnet, or the data do not suit the network.
    """
    settings = recipe.search
    budgets = parse_budgets(settings.budgets, keep_partial=settings.keep_partial)
    # Budgets that hold nothing are told before images are read and gradients taken.
    select(Candidates(cost_tables(recipe.space), settings.enumeration), budgets.kept)
    images, labels = _images(recipe, data)
    supernet = new_supernet(recipe, recipe.seed)
    scored = _score(recipe, supernet, images, labels, device, recipe.seed)
    picks = select(scored.candidates, budgets.kept, settings.k)
    agreement = []
    for number in range(1, settings.further_seeds + 1):
        seed = recipe.seed + number
        other = _score(recipe, new_supernet(recipe, seed), images, labels, device, seed)
        agreement.append(_agreement(recipe.space, seed, scored, other, budgets.kept))
    preferred = _preferred_set(recipe, budgets, picks, scored, agreement, device)
    return Search(preferred, supernet.cpu())


def _images(recipe: Recipe, data: ImageData | None) -> tuple[Tensor, Tensor | None]:
    space, search, preprocessing = recipe.space.settings, recipe.search, recipe.preprocessing
    if search.images == "noise":
        images = noise_images(
            search.num_images,
            space.in_chans,
            space.image_size,
            preprocessing.mean,
            preprocessing.std,
            recipe.seed,
        )
        return images, None
    assert data is not None, "a recipe that searches with data was given none"
    source = data.train if data.unchanged is None else data.unchanged
    return labelled_sample(source, space, search.num_images, recipe.seed)


def _score(
    recipe: Recipe,
    supernet: Supernet,
    images: Tensor,
    labels: Tensor | None,
    device: torch.device | str,
    seed: int,
) -> _Scored:
    space, search = recipe.space, recipe.search
    importance: Importance = measure_importance(
        supernet.to(device),
        space.largest,
        images.to(device),
        None if labels is None else labels.to(device),
        batch_size=search.batch_size,
    )
    blocks = block_scores(space, importance)
    gains = isomer_gains(search.isomers, blocks, seed)
    tables = space_tables(space, importance, gains, score=search.score)
    return _Scored(blocks, tables, Candidates(tables, search.enumeration))


def _arch(space: SearchSpace, candidate: Candidate) -> Arch:
    return space.compose(space.skeletons[candidate.skeleton], candidate.choices)


def _preferred_set(
    recipe: Recipe,
    budgets: Budgets,
    picks: Sequence[Pick],
    scored: _Scored,
    agreement: Sequence[SeedAgreement],
    device: torch.device | str,
) -> PreferredSet:
    space = recipe.space
    candidates = {_arch(space, pick.candidate): pick.candidate for pick in picks}
    ordered = sorted(candidates.items(), key=lambda item: tuple(item[1].cost.values()))
    number_of = {arch: number for number, (arch, _) in enumerate(ordered)}
    subnets = tuple(
        PreferredSubnet(arch=arch, score=candidate.score, **count(arch, space.settings)._asdict())
        for arch, candidate in ordered
    )
    choices = tuple(
        Choice(
            budget=pick.budget,
            rank=pick.rank,
            subnet=number_of[_arch(space, pick.candidate)],
            margin=pick.margin,
        )
        for pick in picks
    )
    chosen = {pick.budget for pick in picks}
    return PreferredSet(
        recipe=recipe,
        subnets=subnets,
        choices=choices,
        budgets=tuple(map(str, budgets.kept)),
        empty_budgets=tuple(i for i in range(len(budgets.kept)) if i not in chosen),
        partial_budgets=tuple(map(str, budgets.partial)),
        reachable=scored.candidates.reachable(),
        num_archs=space.num_archs,
        num_classes_of_isomers=len(scored.candidates),
        block_scores={
            axis.name: tuple(map(tuple, gains.tolist()))
            for axis, gains in zip(space.layer_axes, scored.tables.gains, strict=True)
        },
        agreement=tuple(agreement),
        optima=_optima(space, budgets.kept, picks, scored) if recipe.search.exact_optimum else (),
        device=str(device),
        num_threads=torch.get_num_threads(),
        versions=versions_in_use(),
    )


def _optima(
    space: SearchSpace, budgets: Sequence[Budget], picks: Sequence[Pick], scored: _Scored
) -> tuple[ExactOptimum, ...]:
    best = {pick.budget: pick.candidate for pick in picks if pick.rank == 0}
    optima = []
    for number, budget in enumerate(budgets):
        if (found := optimum(scored.tables, budget)) is None:
            continue
        ours, chosen = found.candidate, best.get(number)
        unit, gap = abs(ours.score or 1.0), None
        if chosen is not None:  # of one subnet the last bits may differ, by the order of the sum
            is_same = (ours.skeleton, ours.choices) == (chosen.skeleton, chosen.choices)
            gap = 0.0 if is_same else max(0.0, (ours.score - chosen.score) / unit)
        optima.append(
            ExactOptimum(
                budget=number,
                arch=_arch(space, ours),
                **ours.cost,
                score=ours.score,
                gap=gap,
                unproven=(found.proven - ours.score) / unit,
            )
        )
    return tuple(optima)


def _agreement(
    space: SearchSpace,
    seed: int,
    ours: _Scored,
    theirs: _Scored,
    budgets: Sequence[Budget],
) -> SeedAgreement:
    same_class: list[bool | None] = []
    changed: list[int | None] = []
    scores: list[float | None] = []
    for budget in budgets:
        firsts = [scored.candidates.best(budget, 1) for scored in (ours, theirs)]
        if not all(len(first) for first in firsts):
            for results in (same_class, changed, scores):
                results.append(None)
            continue
        # Classes stand at the same index under every seed; only their representatives differ.
        left, right = ours.candidates[int(firsts[0][0])], theirs.candidates[int(firsts[1][0])]
        same_class.append(bool(firsts[0][0] == firsts[1][0]))
        scores.append(right.score)
        changed.append(
            int((np.array(left.choices) != np.array(right.choices)).sum())
            if left.skeleton == right.skeleton
            else None
        )
    taus = {
        axis.name: _tau(left.normalised[:, 1:], right.normalised[:, 1:])
        for axis, left, right in zip(
            space.layer_axes, ours.block_scores, theirs.block_scores, strict=True
        )
    }
    return SeedAgreement(
        seed=seed,
        score_tau=_tau(ours.candidates.scores, theirs.candidates.scores),
        block_score_tau=taus,
        same_class=tuple(same_class),
        changed_options=tuple(changed),
        scores=tuple(scores),
    )


def _tau(left: Floats, right: Floats) -> float:
    """Kendall's tau; 0 where one side does not vary at all."""
    tau = float(kendalltau(left.ravel(), right.ravel()).statistic)
    return 0.0 if np.isnan(tau) else tau
