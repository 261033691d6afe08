"""Fine-tuning: trained weights, and the subnets that share them, made ready for another training.

A source is a trained run, a model that was handed over, or a released checkpoint. Its weights are
adapted once, all together: subnets are views, so each of them is adapted by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prenas import artifacts
from prenas.cost import count
from prenas.data import ImageData, with_data
from prenas.data.naming import default_class_names
from prenas.evaluation.accuracy import Evaluation
from prenas.families import build
from prenas.families.adaptation import adapt, extended
from prenas.families.base import Arch, SearchSpace, envelope
from prenas.models.choice import choose, unevaluated
from prenas.models.export import load_model_weights, read_description
from prenas.randomness import torch_generator
from prenas.recipe import (
    Recipe,
    SearchRecipe,
    TransferRecipe,
    recipe_from_dict,
    with_overrides,
)
from prenas.recipe.budgets import Limits
from prenas.recipe.catalogue import get_transfer_recipe
from prenas.recipe.data import OWN_DATA, Augmentation, DataRecipe, Preprocessing
from prenas.runs.run import Run
from prenas.selection.preferred import (
    Adapted,
    PreferredSet,
    exact_budgets,
    unscored_set,
)
from prenas.sources.released import imported_set, load_released_checkpoint
from prenas.supernet import Supernet
from prenas.values import unknown_name

HEADS = ("auto", "keep", "fresh")
"""What may be asked for the head; `auto` keeps it where the classes are the source's."""


@dataclass(frozen=True)
class Source:
    """Trained weights and the subnets that share them, on the CPU."""

    name: str
    """The folder or file, as it was given."""
    sha256: str
    """Digest of the file of its weights."""
    supernet: Supernet
    """No larger than its subnets need."""
    archs: tuple[Arch, ...]
    """From the cheapest on."""
    space: SearchSpace
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    """In the order of the logits; None where nobody knows them."""
    data: DataRecipe | None = None
    """The images that it was trained on, where they have a recipe."""
    subnets: Literal["all", "one"] = "all"
    """Whether these are all subnets that were found there."""


class Adaptation(NamedTuple):
    """A preferred set that was not searched, and the weights from which it trains."""

    preferred: PreferredSet
    supernet: Supernet


def read_source(
    path: str | Path,
    index: int | None = None,
    *,
    limits: Limits | None = None,
) -> Source:
    """Reads what is to be fine-tuned; with an index or limits, one of its subnets alone.

    Args:
        path: a trained or imported run (of one-shot NAS an evolved one), a folder that
            `specialize` wrote, or a checkpoint that the authors released (its published subnets,
            else its largest network).
        index: number of the subnet in the source's table; or
        limits: as `specialize` takes them.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is none of these, not trained yet, or has no such subnet.
    """
    path = Path(path)
    by_limits = limits is not None
    if (path / artifacts.MODEL_ARCH).is_file():
        source, rows = _of_model(path)
    elif (path / artifacts.PREFERRED).is_file():
        source, rows = _of_run(path, by_limits)
    elif path.is_file():
        source, rows = _of_checkpoint(path)
    else:
        what = "is no such folder" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"{path} {what}: give a trained run, a folder that `prenas specialize` wrote, or a "
            "released checkpoint"
        )
    if index is None and not by_limits:
        return source
    arch = rows[choose(rows, index, limits)].arch
    return replace(source, supernet=source.supernet.trimmed(arch), archs=(arch,), subnets="one")


def _of_run(path: Path, by_limits: bool) -> tuple[Source, list[Evaluation]]:
    run = Run(path, device="cpu")
    supernet, subnets, names = run.supernet, run.subnets, run.class_names
    if names is None and run.is_imported:
        names = _published_names(supernet)
    if by_limits and not run.is_evaluated and not run.is_imported:
        raise ValueError(
            f"{path} is not evaluated, so which subnet is best within a limit is not known: run "
            f"`prenas evaluate {path}` first, or name the subnet by its number"
        )
    assert run.supernet_sha256 is not None, "its weights were just read"
    source = Source(
        name=str(path),
        sha256=run.supernet_sha256,
        supernet=supernet.trimmed(envelope(subnets.archs)),  # one-shot NAS trains all
        archs=subnets.archs,
        space=run.recipe.space,
        preprocessing=run.recipe.preprocessing,
        class_names=names,
        data=run.recipe.data,
    )
    return source, run.evaluations if run.is_evaluated else unevaluated(subnets)


def _of_model(path: Path) -> tuple[Source, list[Evaluation]]:
    description = read_description(path)
    arch, settings = description.arch, description.settings
    network = build(arch, settings)
    load_model_weights(network, path, description)
    supernet = Supernet.around(network, arch, settings)
    source = Source(
        name=str(path),
        sha256=artifacts.sha256(path / artifacts.MODEL),
        supernet=supernet.eval(),
        archs=(arch,),
        space=supernet.family.space_type.spanning((arch,), name="handed-over", settings=settings),
        preprocessing=description.preprocessing,
        class_names=description.class_names,
        subnets="one",
    )
    return source, [Evaluation(arch=arch, costs=count(arch, settings), splits={})]


def _of_checkpoint(path: Path) -> tuple[Source, list[Evaluation]]:
    whole = load_released_checkpoint(path)
    preferred = imported_set(whole.arch, whole.settings, path)
    source = Source(
        name=str(path),
        sha256=artifacts.sha256(path),
        supernet=whole.trimmed(preferred.envelope),
        archs=preferred.archs,
        space=preferred.recipe.space,
        preprocessing=preferred.recipe.preprocessing,
        class_names=_published_names(whole),
    )
    return source, unevaluated(preferred)


def _published_names(supernet: Supernet) -> tuple[str, ...] | None:
    """ImageNet's names for its number of classes; the numbers that stand for others are no names"""
    names = default_class_names(supernet.settings.num_classes)
    return None if names == tuple(map(str, range(len(names)))) else names


def finetuning_recipe(
    source: Source,
    recipe: TransferRecipe | str = "transfer",
    data: ImageData | Sequence[str] | str = (),
    *,
    image_size: int | tuple[int, int] | None = None,
    extend_distances: bool = False,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a run that fine-tunes the source.

    Args:
        recipe: one of `prenas.recipe.catalogue.TRANSFER_RECIPES`, by name or as a value.
        data: images, in place of the recipe's: texts as `prenas.with_data` takes them, or splits
            from Python; nothing for the recipe's, or where it leaves them to the source, those.
        image_size: in pixels, one number or (height, width); None keeps the source's.
        extend_distances: whether relative positions get weights of their own for distances that a
            larger image brings; else they keep being clipped.
        overrides: `field=value` texts, as `prenas.with_overrides` takes them.

    Raises:
        ValueError: no images are named, or something is asked for that these weights cannot serve.
    """
    if isinstance(recipe, str):
        recipe = get_transfer_recipe(recipe)
    old = source.supernet.settings
    fields: dict[str, Any] = {}
    if isinstance(data, ImageData):
        fields["num_classes"] = len(data.class_names)
    if image_size is not None:
        fields["image_size"] = image_size
    changed = Recipe(
        name=recipe.name,
        space=source.space.with_settings(**fields),
        search=SearchRecipe(budgets=exact_budgets(source.archs, old)),
        data=DataRecipe(name=OWN_DATA, preprocessing=source.preprocessing),
        training=recipe.training,
    )
    if not isinstance(data, ImageData):
        changed = _with_images(changed, source, data or recipe.images, recipe.augmentation)
    changed = with_overrides(changed, overrides)
    _require_the_sources(source, changed)
    settings = changed.space.settings
    if extend_distances:
        settings = extended(source.supernet.family, settings)
    # No tensors: only whether it can be done. A fresh head is never what stands in the way.
    adapt(source.supernet.family, {}, old, settings, torch_generator(0, "nothing"))
    budgets = exact_budgets(source.archs, settings)
    return changed.model_copy(
        update={
            "space": changed.space.model_copy(update={"settings": settings}),
            "search": SearchRecipe(budgets=budgets),
        }
    )


def _with_images(
    recipe: Recipe,
    source: Source,
    texts: Sequence[str] | str | None,
    augmentation: Augmentation | None,
) -> Recipe:
    """The recipe with the named images, or with those of the source where None are wanted."""
    data = source.data if texts is None else None
    if texts:
        recipe = with_data(recipe, texts)
        data = recipe.data
    if data is None or data.name == OWN_DATA:
        raise ValueError(f"no images are named to fine-tune {source.name} on: give --data PLACE")
    if augmentation is None:
        augmentation = source.data.augmentation if source.data else Augmentation()
    fields = {**data.model_dump(mode="json"), "augmentation": augmentation}
    return recipe_from_dict({**recipe.model_dump(mode="json"), "data": fields})


def _require_the_sources(source: Source, recipe: Recipe) -> None:
    """Raises ValueError if overrides touch what only the source decides."""
    space = recipe.space.model_copy(update={"settings": source.space.settings})
    budgets = exact_budgets(source.archs, source.supernet.settings)
    is_other = space != source.space or recipe.search != SearchRecipe(budgets=budgets)
    if is_other or recipe.evolution is not None:
        raise ValueError(
            f"the subnets of a fine-tuning are those of its source, {source.name}: only "
            "space.settings, data, training and seed may be set"
        )
    asked, theirs = recipe.preprocessing, source.preprocessing
    if (asked.mean, asked.std) != (theirs.mean, theirs.std):
        raise ValueError(
            f"mean and deviation of the images are those of {source.name}, whose weights are made "
            "for them: leave data.preprocessing.mean and std out"
        )


def adapt_source(
    source: Source, recipe: Recipe, class_names: Sequence[str], head: str = "auto"
) -> Adaptation:
    """The source's weights and subnets for the settings of a recipe that was made for it.

    Args:
        class_names: those of the images; where they are the source's, in the same order, `auto`
            keeps the head.
        head: one of `HEADS`. A fresh one is drawn from the recipe's seed.

    Raises:
        ValueError: the recipe is for another source, or these weights cannot serve it.
    """
    if head not in HEADS:
        raise unknown_name("choice for the head", head, HEADS)
    supernet, settings = source.supernet, recipe.space.settings
    if recipe.search.budgets != exact_budgets(source.archs, settings):
        raise ValueError(
            f"recipe {recipe.name!r} is not for the subnets of {source.name}: make it with "
            "prenas.finetuning_recipe(source, ...)"
        )
    is_same = (
        tuple(class_names) == source.class_names
        and supernet.settings.num_classes == settings.num_classes
    )
    keeps_head = is_same if head == "auto" else head == "keep"
    generator = None if keeps_head else torch_generator(recipe.seed, "fresh head")
    adapted = Supernet(supernet.arch, settings)
    tensors = supernet.network.state_dict()
    adapted.network.load_state_dict(
        adapt(supernet.family, tensors, supernet.settings, settings, generator)
    )
    origin = Adapted(
        source=source.name,
        sha256=source.sha256,
        subnets=source.subnets,
        image_size=supernet.settings.image_size,
        head="kept" if keeps_head else "fresh",
    )
    return Adaptation(unscored_set(recipe, source.archs, adapted=origin), adapted.eval())
