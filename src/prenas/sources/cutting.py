"""Cutting a trained network: the two recipes with which a family of models is made from one.

First the whole network is adapted to the images (a fine-tuning of its only subnet). Then its hidden
units are scored, the best subnets of every budget are chosen, and they are trained together, with
the adapted network as their teacher.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
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
    TrainingRecipe,
    TransferRecipe,
    with_overrides,
)
from prenas.recipe.budgets import check_counted, not_counted, parse_budgets
from prenas.recipe.catalogue import get_cut_recipe
from prenas.runs.run import Run
from prenas.selection.trained import check_search
from prenas.sources.rivals import read_rival, require_distinct, rival_recipe
from prenas.sources.transfer import Source, finetuning_recipe, read_source

_ADAPTATION = "adaptation."
"""What overrides of the adaptation begin with."""

_DATA = "data."
"""What overrides begin with that hold for the images of all trainings."""

_TRAINING = "training."

_logger = logging.getLogger(__name__)


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
        number = self.num_listed if num_images is None else num_images
        return [rival_recipe(one, self.adaptation, self.recipe, number) for one in self.rivals]

    def _num_steps(self, recipe: Recipe) -> int:
        assert recipe.training is not None, "both recipes train"
        steps_per_epoch = -(-self.num_listed // recipe.training.batch_size)
        return length_of(recipe.training, steps_per_epoch).num_steps

    @property
    def num_listed(self) -> int:
        """Number of training images by their names, without reading any."""
        assert self.adaptation.data is not None, "both recipes name images"
        return len(open_data(self.adaptation.data).train.names)


def cut_plan(
    source: Source | str | Path,
    data: Sequence[str] | str,
    budgets: Sequence[str] | str = (),
    *,
    recipe: CutRecipe | str = "pretrained",
    image_size: int | tuple[int, int] | None = None,
    overrides: Sequence[str] | str = (),
    compare: Sequence[str] | str = (),
) -> CutPlan:
    """The recipes that cut a family of models out of a trained network.

    A single text may be given without a list.

    Args:
        source: has one subnet, the whole network; or what `prenas.read_source` reads.
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
    source = source if isinstance(source, Source) else read_source(source)
    budgets, overrides, compare = (
        [one] if isinstance(one, str) else list(one) for one in (budgets, overrides, compare)
    )
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
    _require_not_smaller(source, arch, image_size)
    first = [text for text in overrides if text.startswith(_ADAPTATION)]
    transfer = TransferRecipe(
        name=f"{plan.name}-adaptation", augmentation=plan.augmentation, training=plan.adaptation
    )
    common = [text for text in overrides if text.startswith(_DATA)]
    own = [f"{_TRAINING}{text.removeprefix(_ADAPTATION)}" for text in first]
    given = (text.removeprefix(_ADAPTATION).partition("=")[0].strip() for text in first)
    with naming_adaptation(given):
        adaptation = finetuning_recipe(
            source, transfer, data, image_size=image_size, overrides=[*own, *common]
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
    _require_settable(found, settings)
    if not budgets and found.search.budgets == asked:
        found = _without_unreachable(found, plan.budgets, arch, settings)
    check_counted(parse_budgets(found.search.budgets, keep_partial=True).kept, found.space)
    _require_within(found, arch, settings)
    check_search(found)
    shared = {"seed": found.seed, "calibration": found.calibration, "source": started_from}
    made = CutPlan(source, adaptation.model_copy(update=shared), found)
    return with_rivals(made, [read_rival(name) for name in compare])


@contextmanager
def naming_adaptation(given: Iterable[str] = ()) -> Iterator[None]:
    """Errors of a training say `adaptation.epochs` for `training.epochs`, as the user sets it.

    Args:
        given: fields that were set, which need not exist.
    """
    fields = "|".join(map(re.escape, [*given, *TrainingRecipe.model_fields]))
    try:
        yield
    except ValueError as error:
        message = re.sub(rf"\b{re.escape(_TRAINING)}(?=(?:{fields})\b)", _ADAPTATION, str(error))
        error.args = (message,)
        raise


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
        ValueError: a share is no number, not between 0 and 100 %, or of a cost that is not known.
    """
    costs = count(arch, settings)

    def limit(text: str) -> str:
        name, _, amounts = text.partition("=")
        if "%" not in amounts:
            return text
        axis = "params" if name.strip() == FILE_SIZE.name else name.strip()
        if axis not in bounded_names():
            raise unknown_axis("budget axis", axis, bounded_names())
        return f"{axis}={':'.join(amount(axis, one.strip()) for one in amounts.split(':'))}"

    def amount(axis: str, text: str) -> str:
        if not text.endswith("%"):
            return text
        try:
            share = Fraction(text.removesuffix("%"))
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share <= 100:
            raise ValueError(
                f"the budget {axis}={text} is not a share of the source: write more than 0 % and "
                f"at most 100 %, such as {axis}=50%"
            )
        if axis not in costs:
            raise not_counted(f"{axis}={text}", axis, "the whole network")
        limit = int(costs[axis] * share / 100)
        if limit < 1:
            raise ValueError(f"the budget {axis}={text} is less than 1: write a larger share")
        return bounded_axis(axis).format(limit)

    return tuple(",".join(map(limit, text.split(","))) for text in texts)


def _require_not_smaller(
    source: Source, arch: Arch, image_size: int | tuple[int, int] | None
) -> None:
    """Raises ValueError if images are smaller than a source that resizes them makes them."""
    side = arch.resized_to
    sides = (image_size,) if isinstance(image_size, int) else image_size or ()
    if side is not None and any(one < side for one in sides):
        raise ValueError(
            f"{source.name} resizes its images to {side} pixels itself, and --image-size asks for "
            f"smaller ones: give {side} or more, or start from the network that it was cut out of"
        )


def _require_settable(recipe: Recipe, settings: Settings) -> None:
    """Raises ValueError for a field that follows from the source or from the images."""
    teacher = recipe.training.teacher if recipe.training is not None else None
    if recipe.space.settings != settings:
        what = "space.settings: the cuts take the images and classes of the whole network; "
        instead = "give --image-size for another size"
    elif recipe.search.images != "data":
        what = f"search.images={recipe.search.images}: units are scored on your pictures; "
        instead = "choose how many with search.num_images"
    elif teacher is not None and teacher.name != artifacts.ADAPTED:
        what = f"training.teacher.name={teacher.name}: the whole network is the teacher; "
        instead = "change its loss, share or temperature"
    else:
        return
    raise ValueError(f"a run that cuts a trained network cannot have {what}{instead}")


def _without_unreachable(
    recipe: Recipe, texts: Sequence[str], arch: Arch, settings: Settings
) -> Recipe:
    """The recipe without those of its budgets that no cut meets, if others are met; says so.

    Args:
        texts: the budgets as shares of the network.
    """
    smallest = count(recipe.space.smallest, settings)
    kept, left_out = [], []
    for text, amounts in zip(texts, recipe.search.budgets, strict=True):
        (budget,) = parse_budgets([amounts]).kept
        is_met = all(high > smallest[axis] for axis, (_, high) in budget.intervals.items())
        kept.append(amounts) if is_met else left_out.append(text)
    if not kept or not left_out:
        return recipe
    _logger.warning(
        "no cut is small enough for %s: the smallest has %.0f %% of the MACs of the whole network. "
        "The other budgets are kept; --budget chooses others",
        ", ".join(left_out),
        100 * smallest["macs"] / count(arch, settings)["macs"],
    )
    return with_overrides(recipe, [f"search.budgets={json.dumps(kept)}"])


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
                    f"range from {axis.about(smallest[name])} "
                    f"({100 * smallest[name] / largest[name]:.0f} % of the whole network) to "
                    f"{axis.about(largest[name])}"
                )
