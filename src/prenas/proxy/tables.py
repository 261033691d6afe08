"""From importances to tables: what every option of every layer costs and scores.

The selector only sees these tables: numbers, not networks. For given widths at the ends of its
stage, a layer depends only on its own options. So a subnet's cost and score are sums of one entry
per stage, for the tensors outside layers, and one entry per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prenas.cost import bounded_axes, bounded_names, size_axis
from prenas.families import family_of
from prenas.families.base import (
    Arch,
    Choices,
    SearchSpace,
    Settings,
    Shape,
    Stage,
    StageChoice,
)
from prenas.proxy.boxes import BoxSums
from prenas.proxy.importance import Importance
from prenas.proxy.layout import (
    Integers,
    Layers,
    Shapes,
    StageLayout,
    costs_of,
    interchangeable,
    layout_of,
    num_options,
    options_of,
    widths_before,
)
from prenas.proxy.scores import COUNT_SCORE, WEIGHT_SCORES, Floats, Scope
from prenas.randomness import numpy_generator

_ROUNDING = 1e-6
"""Differences between sums of scores up to this, relative to the larger one, are rounding."""

_NUM_CHECKED = 8
"""Networks for which a score of the architecture is compared with its table."""


class StageScores(NamedTuple):
    """What one stage of a chain scores, indexed like its costs."""

    fixed: Floats
    """[width before, width] outside layers."""
    layers: Floats
    """[width before, width, layers, options] of each layer."""


@dataclass(frozen=True)
class StageTable:
    """Costs and scores of one stage, independently of all other stages."""

    depths: tuple[int, ...]
    num_options: tuple[int, ...]
    """Number of options of each axis. A layer's option is one of their combinations, numbered with
    the last axis running fastest."""
    tied: bool
    classes: tuple[Layers, ...]
    """Classes of interchangeable layers."""
    fixed_costs: Integers
    """[width before, width, cost axes] outside layers."""
    costs: Integers
    """[width before, width, layers, options, cost axes]"""
    fixed_scores: Floats
    """[width before, width]"""
    scores: Floats
    """[width before, width, layers, options]"""
    gains: tuple[Floats, ...] = ()
    """Per axis, gains [layers, options] by which the isomer rule ranks layers."""
    is_even: bool = False
    """Whether larger options are spread evenly over interchangeable layers, whatever the gains."""

    @property
    def is_whole(self) -> bool:
        """Whether no layer chooses freely: all take the same options, or there are no layers."""
        return self.tied or self.depths[-1] == 0

    def option(self, options: Sequence[int]) -> int:
        """The number of a layer's option, given the option of each axis."""
        return int(np.ravel_multi_index(tuple(options), self.num_options)) if options else 0


@dataclass(frozen=True)
class SpaceTables:
    """The contract between proxy and selector: everything that a choice depends on."""

    stages: tuple[StageTable, ...]
    resolution: int | None = None
    """The resolution that the costs are counted at."""
    finish: Callable[[Floats], Floats] | None = None
    """Turns a subnet's sum into its score; None: the sum is the score."""

    def cost(self, choices: Choices) -> Integers:
        """Costs [cost axes] of a subnet."""
        total, before = np.zeros(len(bounded_axes()), dtype=np.int64), 0
        for table, choice in zip(self.stages, choices, strict=True):
            total += table.fixed_costs[before, choice.width]
            for layer, options in enumerate(layer_options(choice)):
                total += table.costs[before, choice.width, layer, table.option(options)]
            before = choice.width
        return total

    def score(self, choices: Choices, scope: Scope = "all") -> float:
        """Score of a subnet; the scope `blocks` leaves out the tensors outside layers."""
        total, before = 0.0, 0
        for table, choice in zip(self.stages, choices, strict=True):
            if scope == "all":
                total += float(table.fixed_scores[before, choice.width])
            for layer, options in enumerate(layer_options(choice)):
                total += float(table.scores[before, choice.width, layer, table.option(options)])
            before = choice.width
        return float(self.finish(np.array(total))) if self.finish else total


def layer_options(choice: StageChoice) -> list[tuple[int, ...]]:
    """The options of each layer of a stage, one per axis."""
    if not choice.options:
        return [()] * choice.depth
    return list(zip(*choice.options, strict=True))


def cost_tables(space: SearchSpace, resolution: int | None = None) -> SpaceTables:
    """Tables of costs, with all scores zero: what is known before the backward pass."""
    stages = []
    for stage, costs, classes in zip(
        space.chain,
        costs_of(space, resolution),
        interchangeable(space, resolution),
        strict=True,
    ):
        sizes = tuple(len(axis.options) for axis in stage.axes)
        stages.append(
            StageTable(
                stage.depths,
                sizes,
                stage.tied,
                classes,
                costs.fixed,
                costs.layers,
                np.zeros(costs.fixed.shape[:-1]),
                np.zeros(costs.layers.shape[:-1]),
                tuple(np.zeros((stage.depths[-1], size)) for size in sizes),
            )
        )
    return SpaceTables(tuple(stages), resolution)


def space_tables(
    space: SearchSpace,
    scores: Sequence[StageScores],
    gains: Sequence[tuple[Floats, ...]],
    *,
    score: str,
    resolution: int | None = None,
    is_even: bool = False,
) -> SpaceTables:
    """Tables of a space at one of its resolutions.

    Args:
        scores: result of `stage_scores`, the same at every resolution.
        gains: per stage and axis, the gains that rank layers (`prenas.selection.isomers`).
        score: name of the score.
        is_even: whether larger options are spread evenly instead of by gains.
    """
    tables = cost_tables(space, resolution)
    stages = tuple(
        replace(
            table,
            fixed_scores=found.fixed,
            scores=found.layers,
            gains=ranks,
            is_even=is_even,
        )
        for table, found, ranks in zip(tables.stages, scores, gains, strict=True)
    )
    entry = WEIGHT_SCORES.get(score)
    return replace(tables, stages=stages, finish=entry.finish if entry else None)


def stage_scores(
    space: SearchSpace,
    importance: Importance,
    *,
    score: str,
    scope: Scope = "all",
    power: float = 1.0,
) -> tuple[StageScores, ...]:
    """The scores of every stage, from importances measured on the space's supernet.

    Args:
        score: `COUNT_SCORE`, or a name from `WEIGHT_SCORES` or the family's `arch_scores`.
        power: a subnet scores the sum over its layers of what each scores, to this power. The
            tensors of a stage outside its layers count as one more layer. Other than 1 only for
            scores that `is_sum_over_layers` (`prenas.recipe.SearchRecipe` refuses the others).

    Raises:
        ValueError: a score is not finite, is no tensor like the weight, is negative where a power
            is asked for, or is a function of the architecture that is not additive.
    """
    function = family_of(space).arch_scores.get(score)
    if function:
        scores = tuple(_arch_scores(space, function))
        _require_additive(space, function, scores, score)
    elif score == COUNT_SCORE:
        scores = tuple(_counts(space))
    else:
        scores = tuple(_weight_scores(space, importance, score))
    if scope == "blocks":
        scores = tuple(found._replace(fixed=np.zeros_like(found.fixed)) for found in scores)
    if power != 1:
        scores = tuple(_to_the_power(found, power, score) for found in scores)
    return scores


def _to_the_power(scores: StageScores, power: float, score: str) -> StageScores:
    lowest = min(found.min(initial=0) for found in scores)
    if lowest < -_ROUNDING * max(found.max(initial=0) for found in scores):
        raise ValueError(
            f"the score {score} is negative for some layer ({lowest:g}), so it has no power: leave "
            "search.power at 1, or take absolute values"
        )
    return StageScores(*(np.maximum(found, 0) ** power for found in scores))


def _counts(space: SearchSpace) -> Iterator[StageScores]:
    """The parameters of every layer, and of what lies outside layers."""
    axis = bounded_names().index(size_axis().name)
    for costs in costs_of(space, space.scored_resolution):
        yield StageScores(*(found[..., axis].astype(np.float64) for found in costs))


def _empty_scores(num_before: int, stage: Stage) -> StageScores:
    shape = (num_before, len(stage.widths))
    return StageScores(np.zeros(shape), np.zeros((*shape, stage.depths[-1], num_options(stage))))


def _weight_scores(space: SearchSpace, importance: Importance, score: str) -> Iterator[StageScores]:
    """Scores that sum the score's elements over the boxes that each layer owns."""
    entry = WEIGHT_SCORES[score]
    for num_before, stage, layout in zip(
        widths_before(space.chain), space.chain, layout_of(space), strict=True
    ):
        only = _modules_sized_by_options(layout) if entry.layer_choices_only else None
        sums = _StageSums(space, importance, score, layout, only)
        scores = _empty_scores(num_before, stage)
        for (before, width), shapes in layout.fixed.items():
            scores.fixed[before, width] = sums(shapes)
        for (before, width, option), shapes in layout.first.items():
            scores.layers[before, width, 0, option] = sums(shapes)
        for (layer, width, option), shapes in layout.others.items():
            scores.layers[:, width, layer, option] = sums(shapes)
        yield scores


def _elements(importance: Importance, name: str, score: str) -> Tensor:
    """The score's elements of one tensor; ValueError if they are no finite tensor of its shape."""
    weight = importance.weights[name]
    elements = WEIGHT_SCORES[score].element(weight, importance.gradients[name])
    if not isinstance(elements, Tensor) or elements.shape != weight.shape:
        raise ValueError(
            f"the score {score} must give a tensor with one element per weight, "
            f"{tuple(weight.shape)} for {name}, but gives {_in_words(elements)}"
        )
    if not torch.isfinite(elements).all():
        raise ValueError(
            f"the score {score} is not finite for some elements of {name}. Weights and gradients "
            "may be 0 at initialisation: do not divide by them or take their logarithm"
        )
    return elements


def _in_words(found: object) -> str:
    return str(tuple(found.shape)) if isinstance(found, Tensor) else f"a {type(found).__name__}"


class _StageSums:
    """Sums of a score's elements over the tensor parts of one stage."""

    def __init__(
        self,
        space: SearchSpace,
        importance: Importance,
        score: str,
        layout: StageLayout,
        only: set[str] | None,
    ) -> None:
        family = family_of(space)
        shapes_of: dict[str, set[Shape]] = {}
        for parts in (layout.fixed, layout.first, layout.others):
            for name, shape in chain.from_iterable(part.items() for part in parts.values()):
                shapes_of.setdefault(name, set()).add(shape)
        self._sums: dict[tuple[str, Shape], float] = {}
        for name, found in shapes_of.items():
            if family.is_scored(name) and (only is None or _module(name) in only):
                weight = importance.weights[name]
                full = tuple(weight.shape)
                boxes = {shape: family.owned_box(name, shape, full) for shape in found}
                sums = BoxSums(_elements(importance, name, score), boxes.values())
                self._sums |= {(name, shape): sums(box) for shape, box in boxes.items()}

    def __call__(self, shapes: Shapes) -> float:
        """The sum over all scored tensors among these shapes."""
        return sum((self._sums.get(part, 0.0) for part in shapes.items()), 0.0)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _modules_sized_by_options(layout: StageLayout) -> set[str]:
    """The modules in layers with tensors whose shape or presence depends on the options."""
    sized = set()
    for parts in (layout.first, layout.others):
        per_option: dict[tuple[int, ...], list[Shapes]] = {}
        for (*ends, _), shapes in parts.items():
            per_option.setdefault(tuple(ends), []).append(shapes)
        for found in per_option.values():
            names = dict.fromkeys(chain.from_iterable(found))
            sized |= {_module(name) for name in names if len({one.get(name) for one in found}) > 1}
    return sized


def _require_additive(
    space: SearchSpace,
    function: Callable[[Arch, Settings], float],
    scores: Sequence[StageScores],
    name: str,
) -> None:
    """Raises ValueError unless the entries add up to the function for some random networks."""
    generator = numpy_generator(0, "is the score additive")
    tables = space_tables(space, scores, [()] * len(scores), score=name)
    for _ in range(_NUM_CHECKED):
        choices, _ = space.sample_choices(generator)
        arch = space.compose(choices)
        actual, expected = tables.score(choices), function(arch, space.settings)
        if not abs(actual - expected) <= _ROUNDING * max(abs(actual), abs(expected)):
            raise ValueError(
                f"the score {name} of {arch.summary} is {expected:g}, but what its layers add "
                f"makes {actual:g}: it must be finite, and a sum over stages and layers, in which "
                "each depends on its own options and the widths at its ends alone"
            )


def _arch_scores(
    space: SearchSpace, function: Callable[[Arch, Settings], float]
) -> Iterator[StageScores]:
    """Scores from a function of the architecture that is additive over stages and layers.

    Every entry is a difference from a reference: the smallest option of a layer, the first width
    of a stage. Only the sums over stages are meaningful.
    """
    reference = space.extreme(0)

    def value(number: int, before: int, width: int, options: Sequence[tuple[int, ...]]) -> float:
        chosen = list(reference)
        if number:
            chosen[number - 1] = chosen[number - 1]._replace(width=before)
        per_axis = tuple(zip(*options, strict=True)) or ((),) * len(stages[number].axes)
        chosen[number] = StageChoice(width, len(options), per_axis)
        return function(space.compose(tuple(chosen)), space.settings)

    stages = space.chain
    for number, (num_before, stage) in enumerate(zip(widths_before(stages), stages, strict=True)):
        scores = _empty_scores(num_before, stage)
        zero = (0,) * len(stage.axes)
        for before, width in np.ndindex(scores.fixed.shape):
            shallowest = value(number, before, width, [zero] * stage.depths[0])
            start = value(number, before, 0, [zero] * stage.depths[0]) if number else 0.0
            scores.fixed[before, width] = shallowest - start
            for depth in stage.depths:
                same = [zero] * depth
                total = value(number, before, width, same)
                known = float(scores.layers[before, width, :depth, 0].sum())
                if depth:  # the last layer gets what a deeper stage adds
                    scores.layers[before, width, depth - 1] += total - shallowest - known
            deepest = stage.depths[-1]
            for layer, option in np.ndindex(deepest, num_options(stage)):
                options = [zero] * deepest
                options[layer] = options_of(stage, option)
                scores.layers[before, width, layer, option] += (
                    value(number, before, width, options) - total if option else 0.0
                )
        yield scores
