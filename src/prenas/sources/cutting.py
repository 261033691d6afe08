"""Cutting a trained network: the two recipes with which a family of models is made from one.

First the whole network is adapted to the images (a fine-tuning of its only subnet). Then its hidden
units are scored, the best subnets of every budget are chosen, and they are trained together, with
the adapted network as their teacher.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from prenas import artifacts
from prenas.cost import FILE_SIZE, bounded_axis, bounded_names, count, unknown_axis
from prenas.data import open_data
from prenas.families.base import Arch, Settings
from prenas.length import length_of, proportional_steps
from prenas.recipe import (
    CutRecipe,
    Recipe,
    SourceRecipe,
    TeacherRecipe,
    TransferRecipe,
    with_overrides,
)
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.catalogue import get_cut_recipe
from prenas.runs.run import Run
from prenas.sources.rivals import read_rival, require_distinct, rival_recipe
from prenas.sources.transfer import Source, finetuning_recipe

_ADAPTATION = "adaptation."
"""What overrides of the adaptation begin with."""

_DATA = "data."
"""What overrides begin with that hold for the images of all trainings."""


class CutPlan(NamedTuple):
    """How a family of models is cut out of a source."""

    source: Source
    adaptation: Recipe
    """Fine-tunes the whole source on the images."""
    recipe: Recipe
    """Scores the units of the adapted network, and trains the chosen subnets."""
    rivals: tuple[Source, ...] = ()
    """Stock models that are fine-tuned on as many images, to be compared with the subnets."""

    def lasting(self, steps: int, *, adaptation: int | None = None) -> CutPlan:
        """The plan with these numbers of steps.

        Args:
            steps: for the subnets.
            adaptation: for the whole network; None: in the proportion that both have now.
        """
        if adaptation is None:
            adaptation = proportional_steps(
                steps, *map(self._num_steps, (self.adaptation, self.recipe))
            )
        ours, theirs = (
            with_overrides(recipe, [f"training.steps={number}"])
            for recipe, number in ((self.adaptation, adaptation), (self.recipe, steps))
        )
        return self._replace(adaptation=ours, recipe=theirs)

    def rival_recipes(self, num_images: int | None = None) -> list[Recipe]:
        """How every stock model is fine-tuned.

        Args:
            num_images: how many training images there are; None: as many as are listed.

        Raises:
            ValueError: a stock model does not suit the images.
        """
        number = self._num_listed if num_images is None else num_images
        return [rival_recipe(one, self.adaptation, self.recipe, number) for one in self.rivals]

    def _num_steps(self, recipe: Recipe) -> int:
        assert recipe.training is not None, "both recipes train"
        steps_per_epoch = -(-self._num_listed // recipe.training.batch_size)
        return length_of(recipe.training, steps_per_epoch).num_steps

    @property
    def _num_listed(self) -> int:
        """Number of training images by their names, without reading any."""
        assert self.adaptation.data is not None, "both recipes name images"
        return len(open_data(self.adaptation.data).train.names)


def cut_plan(
    source: Source,
    data: Sequence[str] | str,
    budgets: Sequence[str] = (),
    *,
    recipe: CutRecipe | str = "pretrained",
    image_size: int | tuple[int, int] | None = None,
    overrides: Sequence[str] = (),
    compare: Sequence[str] = (),
) -> CutPlan:
    """The recipes that cut a family of models out of a trained network.

    Args:
        source: has one subnet, the whole network.
        data: images, as texts for `prenas.with_data`.
        budgets: what the models may cost, also as shares of the source: `macs=50%`. Empty: those of
            the recipe.
        image_size: in pixels, one number or (height, width); None keeps the source's.
        overrides: `field=value` texts, as for `prenas.with_overrides`; `adaptation.epochs=5`
            changes the training of the whole network, and `data.unreadable=skip` the images of all
            trainings.
        compare: names of stock models, such as `timm/resnet18`, or `timm/resnet18=FILE` for
            weights of your own.

    Raises:
        ValueError: the source has several subnets or cannot be cut, a stock model cannot be read or
            does not suit the images, or a text is wrong.
    """
    plan = get_cut_recipe(recipe) if isinstance(recipe, str) else recipe
    family, arch = source.supernet.family, source.supernet.arch
    if family.cuts is None or len(source.archs) != 1:
        what = (
            f"networks of the family {family.name} cannot be cut"
            if family.cuts is None
            else f"it contains {len(source.archs)} subnets: choose one of them"
        )
        raise ValueError(
            f"{source.name} cannot be the start of a family of models: {what}. Start from a "
            "pretrained network, such as timm/tf_efficientnet_lite0"
        )
    first = [text for text in overrides if text.startswith(_ADAPTATION)]
    adaptation = finetuning_recipe(
        source,
        TransferRecipe(
            name=f"{plan.name}-adaptation",
            augmentation=plan.augmentation,
            training=plan.adaptation,
        ),
        data,
        image_size=image_size,
        overrides=[
            *(f"training.{text.removeprefix(_ADAPTATION)}" for text in first),
            *(text for text in overrides if text.startswith(_DATA)),
        ],
    )
    settings = adaptation.space.settings
    started_from = SourceRecipe(**dict(source.origin_recipe))
    space = family.cuts(arch, settings, source.name)
    found = Recipe(
        name=plan.name,
        space=space,
        search=plan.search,
        data=adaptation.data,
        training=plan.training.model_copy(update={"teacher": _teacher(plan)}),
        calibration=plan.calibration,
        source=started_from,
    )
    asked = absolute_budgets(budgets or plan.budgets, arch, settings)
    found = with_overrides(  # all at once: a budget may name a resolution that an override adds
        found,
        [
            f"search.budgets={json.dumps(asked)}",
            *(text for text in overrides if text not in first),
        ],
    )
    _require_within(found, arch, settings)
    common = {"seed": found.seed, "calibration": found.calibration, "source": started_from}
    made = CutPlan(source, adaptation.model_copy(update=common), found)
    return with_rivals(made, [read_rival(name) for name in compare])


def with_rivals(plan: CutPlan, rivals: Sequence[Source]) -> CutPlan:
    """The plan with stock models to compare with.

    Raises:
        ValueError: two have the same name, or one does not suit the images.
    """
    require_distinct([rival.name for rival in rivals])
    origin = plan.recipe.source
    assert origin is not None, "a plan has a source"
    named = tuple(rival.origin_recipe for rival in rivals)
    recorded = origin.model_copy(update={"rivals": named})
    recipe = plan.recipe.model_copy(update={"source": recorded})
    changed = plan._replace(recipe=recipe, rivals=tuple(rivals))
    changed.rival_recipes()
    return changed


def with_recorded_rivals(recipe: Recipe, run: Run) -> Recipe:
    """The recipe of a plan, with the stock models that the run was compared with before.

    Raises:
        ValueError: one has the name of another in the plan, but other weights.
    """
    if not run.files.has(artifacts.RECIPE):
        return recipe
    recorded, asked = Run(run.folder, device="cpu").recipe.source, recipe.source
    assert recorded is not None, "the run has this recipe"
    assert asked is not None, "a plan has a source"
    before = {artifacts.rival_folder(one.name): one for one in recorded.rivals}
    for one in asked.rivals:
        folder = artifacts.rival_folder(one.name)
        if folder in before and before[folder].sha256 != one.sha256:
            raise ValueError(
                f"{run.folder / folder} belongs to {before[folder].name}, which has other weights "
                f"than {one.name}: give that one, or start a run in another folder"
            )
        before[folder] = one
    source = asked.model_copy(update={"rivals": tuple(before.values())})
    return recipe.model_copy(update={"source": source})


def _teacher(plan: CutRecipe) -> TeacherRecipe:
    """The adapted network, which lies inside the run."""
    return plan.teacher.model_copy(update={"name": artifacts.ADAPTED})


def absolute_budgets(texts: Sequence[str], arch: Arch, settings: Settings) -> tuple[str, ...]:
    """Budgets with shares of a network, such as `macs=50%`, replaced by amounts.

    Raises:
        ValueError: a share is not between 0 and 100 %.
    """
    costs = count(arch, settings)

    def amount(match: re.Match[str]) -> str:
        axis, share = "params" if match[1] == FILE_SIZE.name else match[1], float(match[2])
        if axis not in bounded_names():
            raise unknown_axis("budget axis", axis, bounded_names())
        if not 0 < share <= 100:
            raise ValueError(
                f"the budget {match[0]} is not a share of the source: write more than 0 % and at "
                "most 100 %"
            )
        return f"{axis}={bounded_axis(axis).format(int(costs[axis] * share / 100))}"

    return tuple(re.sub(r"(\w+)\s*=\s*([0-9.]+)\s*%", amount, text) for text in texts)


def _require_within(recipe: Recipe, arch: Arch, settings: Settings) -> None:
    """Raises ValueError for a budget that is larger than the source, or smaller than any cut."""
    largest = count(arch, settings)
    smallest = count(recipe.space.smallest, settings)
    for budget in parse_budgets(recipe.search.budgets, keep_partial=True).kept:
        for name, (_, high) in budget.intervals.items():
            axis = bounded_axis(name)
            if high - 1 > largest[name] or high - 1 < smallest[name]:
                raise ValueError(
                    f"the budget {budget} cannot be met by cutting {recipe.space.name}: its cuts "
                    f"range from {axis.about(smallest[name])} to {axis.about(largest[name])}"
                )
