"""Search in a trained network: which of its hidden units are worth keeping for each budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from prenas.data import ImageData, ImageSource, drawn_subset, evaluation_batches, num_samples
from prenas.families import family_of
from prenas.families.base import SearchSpace, Stage
from prenas.families.units import UnitGroup, reorder
from prenas.proxy.layout import num_options, options_of
from prenas.proxy.scores import UNIT_SCORES, Floats
from prenas.proxy.tables import SpaceTables, cost_tables
from prenas.proxy.unit_scores import unit_scores
from prenas.recipe import Recipe
from prenas.recipe.budgets import Budget
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import Trained
from prenas.selection.search import Scored, Search, check_any_fits, preferred_set
from prenas.selection.select import Candidates, select
from prenas.supernet import Supernet


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
    groups = _groups_of(space)
    found = iter(
        unit_scores(
            network,
            [group for layer in groups for group in layer],
            scored_batches(recipe, data, device),
            score=search.score,  # type: ignore[arg-type]
            seed=recipe.seed,
        )
    )
    in_order: list[list[Tensor]] = []
    units: dict[str, tuple[int, ...]] = {}
    for layer in groups:
        in_order.append([])
        for group in layer:
            scores = next(found)
            order = torch.argsort(scores, descending=True, stable=True)
            reorder(network, group, order)
            in_order[-1].append(scores[order])
            units[group.consumer] = tuple(order.tolist())
    whole = sum(float(scores.sum()) for layer in in_order for scores in layer)
    shares = [[100 * scores / (whole or 1.0) for scores in layer] for layer in in_order]
    scored = _scored(recipe, shares, budgets.kept)
    picks = select(scored.candidates, budgets.kept, search.k)
    preferred = preferred_set(recipe, budgets, picks, scored, (), device)
    trained = Trained(source=source, sha256=sha256, units=units)
    return Search(preferred.model_copy(update={"trained": trained}), supernet.cpu())


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


def _scored(
    recipe: Recipe, in_order: Sequence[Sequence[Tensor]], budgets: Sequence[Budget]
) -> Scored:
    candidates = {}
    for side in dict.fromkeys(budget.resolution for budget in budgets):
        tables = unit_tables(recipe.space, in_order, resolution=side)
        candidates[side] = Candidates(tables, recipe.search.enumeration)
    return Scored((), candidates)


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
