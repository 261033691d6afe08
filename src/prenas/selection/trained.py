"""Search in a trained network: which of its hidden units are worth keeping for each budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from prenas.cost import count
from prenas.data import ImageData, ImageSource, drawn_subset, evaluation_batches, num_samples
from prenas.families import family_of
from prenas.families.base import Arch, SearchSpace, Stage
from prenas.families.units import UnitGroup, reorder
from prenas.proxy.layout import num_options, options_of
from prenas.proxy.scores import TRIED_SCORES, UNIT_SCORES, Floats
from prenas.proxy.tables import SpaceTables, cost_tables
from prenas.proxy.unit_scores import UnitScores, unit_scores
from prenas.recipe import Recipe, SearchRecipe
from prenas.recipe.budgets import Budget, Budgets, check_counted, check_resolutions, parse_budgets
from prenas.selection.preferred import HalvesAgreement, Trained, Tried
from prenas.selection.rules import RULES
from prenas.selection.search import Scored, Search, check_any_fits, preferred_set
from prenas.selection.select import Candidates, Pick, select
from prenas.supernet import Supernet
from prenas.values import few_of

Judge = Callable[[Supernet, Sequence[Arch]], Sequence[float]]
"""(supernet, subnets) -> the accuracy (0 to 1) of each before it is trained."""


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
    judge: Judge | None = None,
) -> Search:
    """Scores the hidden units of a trained network and picks the best subnets per budget.

    The units of every layer are put into the order of their scores, so that a smaller subnet owns
    the most important ones. The score of a subnet is the sum over the units that it keeps, in % of
    the whole network's. Scores say nothing about smaller images. So where a space has several
    resolutions, and a budget names none, the best subnet at each of them is judged as it is cut.
    Taken is the largest resolution that is within a standard error of the most accurate one: fewer
    units come back with training, pixels do not. If several scores are tried, the subnets of each
    are judged, and the one whose best is more accurate counts at its resolution. The scores that
    are recorded are then those by the first of them, and there are no leads.

    Args:
        supernet: a trained network that contains the whole space, with the BatchNorm statistics of
            its largest subnet. It is changed.
        data: the scores are measured on its training images, without augmentation.
        source: name of the trained network.
        sha256: digest of its weights.
        judge: measures the accuracy of subnets before they are trained. None: it is not measured,
            and budgets get the largest resolution at which anything fits, by the first score.

    Returns:
        The preferred set, and the supernet with its units in order: it is the one to train.

    Raises:
        ValueError: no subnet fits any budget, or the data do not suit the network.
    """
    check_search(recipe)
    search, space = recipe.search, recipe.space
    asked = parse_budgets(search.budgets, keep_partial=search.keep_partial)
    places = _Places(space, asked.kept)
    network = supernet.to(device).network
    layers = _groups_of(space)
    groups = [group for layer in layers for group in layer]
    found = _scores(recipe, network, groups, scored_batches(recipe, data, device))
    choices = _choices(
        recipe, layers, {name: one.scores for name, one in found.items()}, places.budgets
    )
    first = next(iter(choices.values()))
    for group, order in zip(groups, first.orders, strict=True):
        reorder(network, group, order)
    judged: dict[Arch, float] = {}
    if judge is not None:
        archs = {_arch(space, pick): None for one in choices.values() for pick in one.picks}
        judged = dict(zip(archs, judge(supernet, [*archs]), strict=True))
    placed = places.chosen(choices, judged, num_samples(data.validation))
    budgets = Budgets(placed.budgets, asked.partial)
    picks = placed.picks
    if len(choices) > 1:  # scores of two kinds could not be compared
        picks = [first.scored_alike(pick) for pick in picks]
    preferred = preferred_set(recipe, budgets, picks, first.scored, (), device)
    trained = Trained(
        source=source,
        sha256=sha256,
        units={
            group.consumer: tuple(order.tolist())
            for group, order in zip(groups, first.orders, strict=True)
        },
        halves=_agreement(recipe, layers, found, budgets.kept, placed.chosen_by),
        top1_untrained=tuple(judged[arch] for arch in preferred.archs) if judged else None,
        tried=placed.tried,
        chosen_by=placed.chosen_by if len(choices) > 1 else (),
    )
    whole = count(supernet.arch, space)
    named = tuple(budget.beside(whole) for budget in budgets.kept)
    found_set = preferred.model_copy(update={"trained": trained, "budgets": named})
    return Search(found_set, supernet.cpu())


def check_search(recipe: Recipe) -> None:
    """Raises ValueError if no subnet fits any budget, also by its rule, or if fields say nothing.

    It needs costs only. So a trained network need not be there yet, and nothing is spent on budgets
    that none can meet.
    """
    search, space = recipe.search, recipe.space
    _check_fields(search)
    asked = parse_budgets(search.budgets, keep_partial=search.keep_partial).kept
    check_counted(asked, space)
    check_resolutions(asked, space)
    budgets = _Places(space, asked).budgets
    check_any_fits(recipe, budgets, asked)
    if search.allocation != "best":
        layers = _groups_of(space)
        alike = [torch.zeros(group.num_units) for layer in layers for group in layer]
        _choices(recipe, layers, {search.score: alike}, budgets)


def _check_fields(search: SearchRecipe) -> None:
    """Not a rule of the recipe itself: earlier versions ignored these fields, and recorded them."""
    for name, is_set in (
        ("further_seeds", search.further_seeds > 0),
        ("exact_optimum", search.exact_optimum),
        ("scope", search.scope != "all"),
        ("isomers", search.isomers != "published"),
    ):
        if is_set:
            raise ValueError(
                f"search.{name} is only for networks with random weights, but search.score "
                f"{search.score!r} scores the units of a trained one: leave out {name}"
            )


def num_judged(recipe: Recipe) -> int:
    """How many subnets are judged before they are trained, at most: at every resolution that may
    be chosen for a budget, by every score."""
    search = recipe.search
    asked = parse_budgets(search.budgets, keep_partial=search.keep_partial)
    num_scores = len(TRIED_SCORES[search.score])
    return search.k * num_scores * len(_Places(recipe.space, asked.kept).budgets)


def _scores(
    recipe: Recipe,
    network: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, UnitScores]:
    """The units by every score that is tried, from one pass over the images."""
    names = TRIED_SCORES[recipe.search.score]
    measured = names[-1]  # squares first: equal roots may be of different squares
    found = unit_scores(network, groups, batches, score=measured, seed=recipe.seed)
    return {name: found if name == measured else found.roots for name in names}


def _arch(space: SearchSpace, pick: Pick) -> Arch:
    return space.compose(pick.candidate.choices, pick.candidate.resolution)


class _Placed(NamedTuple):
    """Budgets with a resolution each, and what was picked for them."""

    budgets: tuple[Budget, ...]
    picks: list[Pick]
    tried: tuple[Tried, ...]
    chosen_by: tuple[str | None, ...]


class _Places:
    """Every budget at every resolution that may be chosen for it."""

    def __init__(self, space: SearchSpace, asked: Sequence[Budget]) -> None:
        self._space, self._asked = space, asked
        self._options = [
            [budget._replace(resolution=side) for side in self._sides(budget)] for budget in asked
        ]

    def _sides(self, budget: Budget) -> list[int | None]:
        """Resolutions from large to small: none below one at which the whole network fits."""
        sides = [side for side in self._space.resolutions if side is not None]
        if len(sides) < 2:
            return [None]
        if budget.resolution is not None:
            return [budget.resolution]
        found: list[int | None] = []
        for side in reversed(sides):
            found.append(side)
            whole = self._space.compose(self._space.extreme(-1), side)
            if budget.holds(count(whole, self._space.settings)):
                break
        return found

    @property
    def budgets(self) -> list[Budget]:
        """All of them, budget after budget."""
        return [one for options in self._options for one in options]

    def chosen(
        self, choices: Mapping[str, _Choice], top1: Mapping[Arch, float], num_images: int
    ) -> _Placed:
        """The largest resolution of every budget that is within a standard error of the best.

        There, the more accurate one of the subnets that the scores chose; the first of equals.
        Subnets that were not judged are taken at the largest resolution, by the first score.

        Args:
            choices: by every score that is tried.
            num_images: on which accuracies were measured.
        """
        of_place: dict[int, dict[str, list[Pick]]] = {}
        for name, choice in choices.items():
            for pick in choice.picks:
                of_place.setdefault(pick.budget, {}).setdefault(name, []).append(pick)
        budgets, kept, tried, first = [], [], [], 0
        chosen_by: list[str | None] = []
        for number, options in enumerate(self._options):
            places = [place for place in range(first, first + len(options)) if place in of_place]
            first += len(options)
            results = {
                (place, name): top1.get(_arch(self._space, picks[0]), 0.0)
                for place in places
                for name, picks in of_place[place].items()
            }
            if not places:
                budgets.append(options[0])
                chosen_by.append(None)
                continue
            best = max(results.values())
            least = best - standard_error(best, num_images)
            within = [place for (place, _), result in results.items() if result >= least]
            taken, name = max(
                (key for key in results if key[0] == within[0]), key=lambda key: results[key]
            )
            budgets.append(self.budgets[taken])
            chosen_by.append(name)
            kept += [replace(pick, budget=number) for pick in of_place[taken][name]]
            if max(len(options), len(results)) > 1 and top1:
                scores_of: dict[tuple[int, Arch], list[str]] = {}
                for place, score in results:
                    arch = _arch(self._space, of_place[place][score][0])
                    scores_of.setdefault((place, arch), []).append(score)
                tried += [
                    Tried(
                        budget=number,
                        resolution=self.budgets[place].resolution or 0,
                        score=" and ".join(names) if len(choices) > 1 else None,
                        top1=top1[arch],
                    )
                    for (place, arch), names in scores_of.items()
                ]
        return _Placed(tuple(budgets), kept, tuple(tried), tuple(chosen_by))


def standard_error(top1: float, num_images: int) -> float:
    """Standard error of an accuracy from 0 to 1 that was measured on so many images.

    As if two more images were right and two more wrong (Agresti and Coull, 1998): 100 % on a few
    images are not certain, and one image less is no difference.
    """
    number = num_images + 4
    share = (top1 * num_images + 2) / number
    return math.sqrt(share * (1 - share) / number)


class _Choice(NamedTuple):
    """What follows from the scores of all units."""

    orders: list[Tensor]
    """Per group, the numbers of its units, the most important first."""
    scored: Scored
    picks: list[Pick]

    def scored_alike(self, pick: Pick) -> Pick:
        """What another score picked, with its score by this one."""
        found = pick.candidate
        score = self.scored.tables(found.resolution).score(found.choices)
        return replace(pick, candidate=replace(found, score=score), margin=None)

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


def _choices(
    recipe: Recipe,
    layers: Sequence[Sequence[UnitGroup]],
    scores: Mapping[str, Sequence[Tensor]],
    budgets: Sequence[Budget],
) -> dict[str, _Choice]:
    """The best subnets of every budget by every score.

    Args:
        scores: name -> scores in the order of the groups of all layers. All put the units of a
            layer into the same order, which is that of the last.
    """
    last = [*scores.values()][-1]
    orders = [torch.argsort(one, descending=True, stable=True) for one in last]
    return {name: _choose(recipe, layers, own, budgets, orders) for name, own in scores.items()}


def _choose(
    recipe: Recipe,
    layers: Sequence[Sequence[UnitGroup]],
    scores: Sequence[Tensor],
    budgets: Sequence[Budget],
    orders: list[Tensor],
) -> _Choice:
    """The best subnets of every budget by one score."""
    search, space = recipe.search, recipe.space
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
    rule = RULES[search.allocation]
    picks = []
    for number, budget in enumerate(budgets):
        found = rule.find(space, scored.tables(budget.resolution), budget)
        if found is not None:
            picks.append(Pick(found, number, rank=0, margin=None))
    if not picks:
        raise ValueError(
            f"no subnet that keeps {rule.kept} fits any of the budgets "
            f"{few_of([*map(str, budgets)])}: choose search.allocation=best, or other budgets"
        )
    return _Choice(orders, scored, picks)


def _agreement(
    recipe: Recipe,
    layers: Sequence[Sequence[UnitGroup]],
    found: Mapping[str, UnitScores],
    budgets: Sequence[Budget],
    chosen_by: Sequence[str | None],
) -> HalvesAgreement | None:
    """How much the choice depends on which images were scored; None if it needs none.

    Args:
        chosen_by: per budget, the score that chose; None if it is empty.
    """
    needed = {*chosen_by}
    halves = {
        name: one.halves for name, one in found.items() if one.halves is not None and name in needed
    }
    if not halves:
        return None
    ranks = [
        float(scipy.stats.spearmanr(one, other).statistic)
        for one, other in zip(*next(iter(halves.values())), strict=True)
        if len(one) and min(np.ptp(one.numpy()), np.ptp(other.numpy())) > 0
    ]
    choices = [
        _choices(recipe, layers, {name: both[half] for name, both in halves.items()}, budgets)
        for half in (0, 1)
    ]
    in_common: list[float | None] = []
    for number, name in enumerate(chosen_by):
        if name is None:
            in_common.append(None)
            continue
        one, other = (choice[name].kept(number, recipe.space) for choice in choices)
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
