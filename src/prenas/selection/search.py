"""Zero-cost search: from a recipe to its preferred set and the weights that it was scored with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import count as count_up
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from prenas.cost import count, size_axis
from prenas.data import ImageData, labelled_sample
from prenas.families.base import Arch, Choices, SearchSpace
from prenas.proxy.gains import BlockScores, block_scores, check_unit_tensors
from prenas.proxy.importance import Importance, measure_importance, noise_images
from prenas.proxy.scores import UNIT_SCORES, WEIGHT_SCORES, Floats, has_scope
from prenas.proxy.tables import SpaceTables, cost_tables, space_tables, stage_scores
from prenas.randomness import numpy_generator, torch_generator
from prenas.recipe import Recipe
from prenas.recipe.budgets import Budget, Budgets
from prenas.selection.exact import optimum
from prenas.selection.graph import Candidate
from prenas.selection.isomers import (
    class_of,
    isomer_gains,
    num_isomer_classes,
    require_listable,
)
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import (
    Choice,
    ExactOptimum,
    PreferredSet,
    PreferredSubnet,
    SeedAgreement,
    versions_in_use,
)
from prenas.selection.select import Candidates, Pick, nothing_fits, reachable
from prenas.selection.strategies import picks_of
from prenas.supernet import Supernet


class Search(NamedTuple):
    """A preferred set, and the supernet with the weights that were scored."""

    preferred: PreferredSet
    supernet: Supernet


class Scored(NamedTuple):
    """Block scores and candidates of one initialisation."""

    block_scores: tuple[tuple[BlockScores, ...], ...]
    candidates: dict[int | None, Candidates]
    """Resolution -> candidates."""

    def tables(self, resolution: int | None) -> SpaceTables:
        """The tables at one of the resolutions."""
        return self.candidates[resolution].tables


_NUM_COMPARED = 2000
"""Number of subnets to compare two initialisations on, if a space has too many to list."""


def new_supernet(recipe: Recipe, seed: int) -> Supernet:
    """The supernet of the recipe's space, initialised with this seed."""
    supernet = Supernet(recipe.space.supernet, recipe.space.settings)
    return supernet.initialize(torch_generator(seed, "weights"))


def zero_cost_search(
    recipe: Recipe,
    data: ImageData | None = None,
    device: torch.device | str = "cpu",
    *,
    watch: Callable[[int, int], None] | None = None,
) -> Search:
    """Scores all subnets of the recipe's space at initialisation and picks the best per budget.

    The selection uses the recipe's seed; further seeds only show how well they agree. The returned
    supernet has the initial weights that were scored, and is the one to train.

    Args:
        data: needed if `search.images` is `data`; the images come from the training split.
        watch: called with how many budgets were chosen for so far, of how many; not where all
            subnets are listed, which takes no time.

    Raises:
        ValueError: no subnet fits any budget, the data do not suit the network, its weights and
            images cannot fit into the memory, the space has too many isomer classes, or the
            family's `unit_tensors` does not suit its networks.
    """
    if recipe.search.score in UNIT_SCORES:
        raise ValueError(
            f"search.score {recipe.search.score!r} scores the units of a trained network, not of "
            "one at initialisation: start from one (prenas run --from SOURCE; in Python "
            "prenas.run_cuts), or choose another score"
        )
    require_memory(recipe)
    search = recipe.search
    require_listable(recipe.space, search.enumeration, by_axis=search.power == 1)
    budgets = placed_budgets(
        recipe.space,
        search.budgets,
        keep_partial=search.keep_partial,
        enumeration=search.enumeration,
    )
    check_any_fits(recipe, budgets.kept)  # before reading images and computing gradients
    supernet = new_supernet(recipe, recipe.seed)
    check_unit_tensors(recipe.space, supernet.network)
    images, labels = _images(recipe, data)
    scored = _score(recipe, supernet, images, labels, device, recipe.seed, budgets.kept)
    numbers = count_up(1)

    def chosen() -> None:
        if watch is not None:
            watch(next(numbers), len(budgets.kept))

    picks = picks_of(recipe, scored.candidates, budgets.kept, chosen)
    sums_weights = search.score in WEIGHT_SCORES  # other scores may have 0 anywhere
    if sums_weights and search.strategy != "random" and not any(p.candidate.score for p in picks):
        raise ValueError(
            f"search.score={search.score} gives every subnet of the space {recipe.space.name!r} "
            "the score 0, so it chooses nothing: choose another score"
        )
    agreement = []
    for number in range(1, search.further_seeds + 1):
        seed = recipe.seed + number
        further = new_supernet(recipe, seed)
        other = _score(recipe, further, images, labels, device, seed, budgets.kept)
        agreement.append(_agreement(recipe, seed, scored, other, budgets.kept))
    preferred = preferred_set(recipe, budgets, picks, scored, agreement, device)
    return Search(preferred, supernet.cpu())


def require_memory(recipe: Recipe) -> None:
    """Raises ValueError if the weights, gradients and images of a search exceed the memory."""
    space, num_images = recipe.space, recipe.search.num_images
    num_params = count(space.supernet, space.settings)[size_axis().name]
    height, width = space.settings.image_size
    weights = 2 * 4 * num_params / 2**30
    images = 4 * num_images * space.settings.in_chans * height * width / 2**30
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if weights + images > memory:
        raise ValueError(
            f"this search does not fit into the memory of {memory:,.0f} GiB: the largest network "
            f"has {num_params:,} parameters ({weights:,.1f} GiB with their gradients), and "
            f"search.num_images={num_images:,} images of {height} x {width} pixels take "
            f"{images:,.1f} GiB. Use smaller options or fewer images"
        )


def check_any_fits(
    recipe: Recipe, budgets: Sequence[Budget], asked: Sequence[Budget] | None = None
) -> None:
    """Raises ValueError if no subnet fits any budget; needs only costs, no scores.

    Args:
        asked: what the error names, if budgets were made of others.
    """
    candidates: dict[int | None, Candidates] = {}
    for budget in budgets:
        side = budget.resolution
        if side not in candidates:
            tables = cost_tables(recipe.space, side)
            candidates[side] = Candidates(tables, recipe.search.enumeration)
        if candidates[side].holds_any(budget):
            return
    raise nothing_fits(candidates, asked or budgets)


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
    assert data is not None, "this recipe searches with data, but no data were given"
    source = data.train if data.unchanged is None else data.unchanged
    return labelled_sample(source, space, search.num_images, recipe.seed)


def _score(
    recipe: Recipe,
    supernet: Supernet,
    images: Tensor,
    labels: Tensor | None,
    device: torch.device | str,
    seed: int,
    budgets: Sequence[Budget],
) -> Scored:
    space, search = recipe.space, recipe.search
    importance: Importance = measure_importance(
        supernet.to(device),
        space.scored,
        images.to(device),
        None if labels is None else labels.to(device),
        batch_size=search.batch_size,
    )
    blocks = block_scores(space, importance)
    gains = isomer_gains(search.isomers, blocks, seed)
    scores = stage_scores(
        space, importance, score=search.score, scope=search.scope, power=search.power
    )
    candidates = {}
    for side in dict.fromkeys(budget.resolution for budget in budgets):
        tables = space_tables(
            space,
            scores,
            gains,
            score=search.score,
            resolution=side,
            is_even=search.isomers == "even",
        )
        candidates[side] = Candidates(tables, search.enumeration)
    return Scored(blocks, candidates)


def _arch(space: SearchSpace, candidate: Candidate) -> Arch:
    return space.compose(candidate.choices, candidate.resolution)


def preferred_set(
    recipe: Recipe,
    budgets: Budgets,
    picks: Sequence[Pick],
    scored: Scored,
    agreement: Sequence[SeedAgreement],
    device: torch.device | str,
) -> PreferredSet:
    """The record of a search: what was picked for which budget, and how it was scored."""
    space = recipe.space
    candidates = {_arch(space, pick.candidate): pick.candidate for pick in picks}
    ordered = sorted(candidates.items(), key=lambda item: budgets.kept[0].expense(item[1].cost))
    number_of = {arch: number for number, (arch, _) in enumerate(ordered)}
    has_blocks = has_scope(recipe.search.score)
    subnets = tuple(
        PreferredSubnet(
            arch=arch,
            costs=_checked(count(arch, space.settings), candidate, arch),
            score=candidate.score,
            score_of_blocks=scored.tables(candidate.resolution).score(candidate.choices, "blocks")
            if has_blocks
            else None,
        )
        for arch, candidate in ordered
    )
    choices = tuple(
        Choice(
            budget=pick.budget,
            rank=pick.rank,
            subnet=number_of[_arch(space, pick.candidate)],
            margin=pick.margin,
            proven=pick.candidate.is_proven,
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
        reachable=reachable(scored.candidates),
        num_archs=space.num_archs,
        num_classes_of_isomers=num_isomer_classes(space, recipe.search.enumeration),
        block_scores=_gains(space, next(iter(scored.candidates.values())).tables),
        agreement=tuple(agreement),
        optima=_optima(space, budgets.kept, picks, scored) if recipe.search.exact_optimum else (),
        device=str(device),
        num_threads=torch.get_num_threads(),
        versions=versions_in_use(),
    )


def _checked(costs: dict[str, int], candidate: Candidate, arch: Arch) -> dict[str, int]:
    """The costs of a chosen network; ValueError if they are not those by which it was chosen."""
    for name, amount in costs.items():
        known = candidate.cost.get(name, amount)
        if known != amount:
            raise ValueError(
                f"{arch.summary} was chosen as one of {known:,} {name}, but has {amount:,}: some "
                f"part of the network adds {name} that do not follow from its own options and the "
                "widths at its ends alone. Correct `work` of the family, or `of_part` of the cost "
                "axis (docs/extending.md)"
            )
    return costs


def _gains(
    space: SearchSpace, tables: SpaceTables
) -> dict[str, tuple[tuple[tuple[float, ...], ...], ...]]:
    """The gains that ranked layers, per axis, stage and layer; empty if layers are tied."""
    gains: dict[str, list[tuple[tuple[float, ...], ...]]] = {}
    for axis in space.layer_axes:
        for stage, table in zip(space.chain, tables.stages, strict=True):
            names = [one.name for one in stage.axes]
            decides = axis.name in names and not stage.tied
            found = table.gains[names.index(axis.name)].tolist() if decides else ()
            gains.setdefault(axis.name, []).append(tuple(map(tuple, found)))
    return {name: tuple(stages) for name, stages in gains.items()}


def _optima(
    space: SearchSpace, budgets: Sequence[Budget], picks: Sequence[Pick], scored: Scored
) -> tuple[ExactOptimum, ...]:
    best = {pick.budget: pick.candidate for pick in picks if pick.rank == 0}
    optima = []
    for number, budget in enumerate(budgets):
        if (found := optimum(scored.tables(budget.resolution), budget)) is None:
            continue
        ours, chosen = found.candidate, best.get(number)
        unit, gap = abs(ours.score or 1.0), None
        if chosen is not None:  # scores of the same subnet may differ in the last bits
            is_same = ours.choices == chosen.choices
            gap = 0.0 if is_same else max(0.0, (ours.score - chosen.score) / unit)
        optima.append(
            ExactOptimum(
                budget=number,
                arch=_arch(space, ours),
                costs=count(_arch(space, ours), space.settings),
                score=ours.score,
                gap=gap,
                unproven=(found.proven - ours.score) / unit,
            )
        )
    return tuple(optima)


def _agreement(
    recipe: Recipe, seed: int, ours: Scored, theirs: Scored, budgets: Sequence[Budget]
) -> SeedAgreement:
    same_class: list[bool | None] = []
    changed: list[int | None] = []
    scores: list[float | None] = []
    for budget in budgets:
        side = budget.resolution
        left, right = (one.candidates[side].best([budget], 1)[0] for one in (ours, theirs))
        if not left or not right:
            for results in (same_class, changed, scores):
                results.append(None)
            continue
        choices = left[0].choices, right[0].choices
        classes = [class_of(ours.tables(side), one) for one in choices]
        same_class.append(classes[0] == classes[1])
        changed.append(_num_changed(*choices))
        scores.append(right[0].score)
    return SeedAgreement(
        seed=seed,
        score_tau=_score_tau(recipe, ours, theirs),
        block_score_tau=_block_score_taus(recipe.space, ours, theirs),
        same_class=tuple(same_class),
        changed_options=tuple(changed),
        scores=tuple(scores),
    )


def _num_changed(ours: Choices, theirs: Choices) -> int | None:
    """How many per-layer options differ; None if widths or depths differ."""
    num_changed = 0
    for left, right in zip(ours, theirs, strict=True):
        if (left.width, left.depth) != (right.width, right.depth):
            return None
        num_changed += int(np.sum(np.array(left.options) != np.array(right.options)))
    return num_changed


def _score_tau(recipe: Recipe, ours: Scored, theirs: Scored) -> float:
    (left, right) = (next(iter(one.candidates.values())) for one in (ours, theirs))
    if left.scores is not None and right.scores is not None:
        return _tau(left.scores, right.scores)
    generator = numpy_generator(recipe.seed, "subnets of an agreement")
    drawn = [recipe.space.sample_choices(generator)[0] for _ in range(_NUM_COMPARED)]
    found = (np.array([one.tables.score(choices) for choices in drawn]) for one in (left, right))
    return _tau(*found)


def _block_score_taus(space: SearchSpace, ours: Scored, theirs: Scored) -> dict[str, float]:
    """Per axis, the mean over all classes of two or more interchangeable, untied layers."""
    taus: dict[str, list[float]] = {}
    tables = next(iter(ours.candidates.values())).tables
    for number, (stage, table) in enumerate(zip(space.chain, tables.stages, strict=True)):
        if stage.tied:
            continue
        for place, axis in enumerate(stage.axes):
            left, right = (one.block_scores[number][place].normalised for one in (ours, theirs))
            taus.setdefault(axis.name, []).extend(
                _tau(left[list(layers), 1:], right[list(layers), 1:])
                for layers in table.classes
                if len(layers) > 1
            )
    return {name: float(np.mean(found)) if found else 0.0 for name, found in taus.items()}


def _tau(left: Floats, right: Floats) -> float:
    """Kendall's tau; 0 if one side is constant."""
    tau = float(scipy.stats.kendalltau(left.ravel(), right.ravel()).statistic)
    return 0.0 if np.isnan(tau) else tau
