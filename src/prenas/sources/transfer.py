"""Fine-tuning: adapts trained weights, and the subnets that share them, for another training.

A source is a trained run, a handed-over model, or a released checkpoint. Its weights are adapted
once: subnets are views of them, so this adapts every subnet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prenas import artifacts
from prenas.cost import count
from prenas.data import ImageData, with_data
from prenas.data.naming import default_class_names
from prenas.evaluation.accuracy import Evaluation
from prenas.families.adaptation import adapt, extended
from prenas.families.base import Arch, SearchSpace, envelope
from prenas.latency import counting_as
from prenas.models.choice import choose, unevaluated
from prenas.models.export import load_network, read_description
from prenas.randomness import torch_generator
from prenas.recipe import (
    OriginRecipe,
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
from prenas.sources.pretrained import is_pretrained_name, read_pretrained
from prenas.sources.released import imported_set, load_released_checkpoint
from prenas.supernet import Supernet
from prenas.values import unknown_name

HEADS = ("auto", "keep", "fresh")
"""Choices for the head (the classifier); `auto` keeps it if the classes are the source's."""


@dataclass(frozen=True)
class Source:
    """Trained weights and the subnets that share them, on the CPU."""

    name: str
    """The folder or file, as it was given."""
    sha256: str
    """Digest of the weights file."""
    supernet: Supernet
    """Trimmed to what its subnets need."""
    archs: tuple[Arch, ...]
    """The subnets, from the cheapest to the most expensive."""
    space: SearchSpace
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    """In the order of the logits; None if unknown."""
    data: DataRecipe | None = None
    """The images that it was trained on, if its recipe states them."""
    subnets: Literal["all", "one"] = "all"
    """Whether `archs` are all subnets of the source, or only one of them."""
    licence: str | None = None
    """The licence of the weights, if the source states it."""
    origin: str | None = None
    """Where a pretrained network was published."""

    @property
    def origin_recipe(self) -> OriginRecipe:
        """What a recipe records of it."""
        return OriginRecipe(
            name=self.name, sha256=self.sha256, licence=self.licence, origin=self.origin
        )


class Adaptation(NamedTuple):
    """A preferred set from a source instead of a search, and the weights to start training from."""

    preferred: PreferredSet
    supernet: Supernet


def read_source(
    path: str | Path,
    index: int | None = None,
    *,
    limits: Limits | None = None,
) -> Source:
    """Reads the source of a fine-tuning; with an index or limits, only one of its subnets.

    Args:
        path: the name of a pretrained network, whose only subnet is the whole network (`timm/NAME`,
            or `timm/NAME=FILE` for weights of your own), a trained or imported run (for one-shot
            NAS, one whose evolution is complete), the folder of a handed-over model, or a
            checkpoint that the authors released (its published subnets, or else its largest
            network).
        index: number of the subnet in the source's table.
        limits: alternatively, limits as for `specialize`; the best subnet within them is used.

    Raises:
        FileNotFoundError: the path does not exist, or is none of these.
        ValueError: the source is not trained yet, or has no such subnet.
    """
    by_limits = limits is not None
    if is_pretrained_name(str(path)):
        if index is not None or by_limits:
            raise ValueError(
                f"{path} is one network, of which no subnet can be chosen: leave it out"
            )
        return _of_name(str(path))
    path = Path(path)
    is_model = (path / artifacts.MODEL_ARCH).is_file()
    is_run = not is_model and (path / artifacts.PREFERRED).is_file()
    with counting_as(path) if is_run else nullcontext():
        if is_model:
            source, rows = _of_model(path)
        elif is_run:
            source, rows = _of_run(path, by_limits)
        elif path.is_file():
            source, rows = _of_checkpoint(path)
        else:
            what = "is not such a folder" if path.exists() else "does not exist"
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
            f"{path} has not been evaluated, so its best subnet within a limit is unknown: run "
            f"`prenas evaluate {path}` first, or give the subnet's number (--subnet)"
        )
    assert run.supernet_sha256 is not None, "its weights were just read"
    published = run.recipe.source or run.preferred.adapted
    source = Source(
        name=str(path),
        sha256=run.supernet_sha256,
        supernet=supernet.trimmed(envelope(subnets.archs)),  # one-shot NAS trains all
        archs=subnets.archs,
        space=run.recipe.space,
        preprocessing=run.recipe.preprocessing,
        class_names=names,
        data=run.recipe.data,
        licence=None if published is None else published.licence,
        origin=None if published is None else published.origin,
    )
    return source, run.evaluations if run.is_evaluated else unevaluated(subnets)


def _of_model(path: Path) -> tuple[Source, list[Evaluation]]:
    description = read_description(path)
    arch, settings = description.arch, description.settings
    network = load_network(path, description)
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
        licence=description.licence,
        origin=description.origin,
    )
    return source, [Evaluation(arch=arch, costs=count(arch, settings), splits={})]


def _of_name(name: str) -> Source:
    found, network = read_pretrained(name)
    arch, settings = found.arch, found.settings
    supernet = Supernet.around(network, arch, settings).eval()
    return Source(
        name=name,
        sha256=artifacts.digest_of(network.state_dict()),
        supernet=supernet,
        archs=(arch,),
        space=supernet.family.space_type.spanning((arch,), name=name, settings=settings),
        preprocessing=Preprocessing(
            mean=found.mean,
            std=found.std,
            crop_pct=found.crop_pct,
            interpolation=found.interpolation,
        ),
        class_names=_published_names(supernet),
        subnets="one",
        licence=found.licence,
        origin=found.origin,
    )


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
    """ImageNet's names if the number of classes is ImageNet's, else None."""
    names = default_class_names(supernet.settings.num_classes)
    return None if names == tuple(map(str, range(len(names)))) else names


def finetuning_recipe(
    source: Source,
    transfer: TransferRecipe | str = "transfer",
    data: ImageData | Sequence[str] | str = (),
    *,
    image_size: int | tuple[int, int] | None = None,
    extend_distances: bool = False,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of a run that fine-tunes the source.

    Args:
        transfer: one of `prenas.recipe.catalogue.TRANSFER_RECIPES`, by name or as a value.
        data: images instead of those of the fine-tuning recipe: texts as for `prenas.with_data`, or
            splits from Python. Empty: the recipe's images, or the source's if it names none.
        image_size: in pixels, one number or (height, width); None keeps the source's.
        extend_distances: whether distances that occur only in a larger image get weights of their
            own for relative positions; otherwise such distances are clipped.
        overrides: `field=value` texts, as for `prenas.with_overrides`.

    Raises:
        ValueError: no images are given, or the recipe does not suit the source's weights.
    """
    if isinstance(transfer, str):
        transfer = get_transfer_recipe(transfer)
    old = source.supernet.settings
    fields: dict[str, Any] = {}
    if isinstance(data, ImageData):
        fields["num_classes"] = len(data.class_names)
    if image_size is not None:
        fields["image_size"] = image_size
    changed = Recipe(
        name=transfer.name,
        space=source.space.with_settings(**fields),
        search=SearchRecipe(budgets=exact_budgets(source.archs, old)),
        data=DataRecipe(name=OWN_DATA, preprocessing=source.preprocessing),
        training=transfer.training,
    )
    if not isinstance(data, ImageData):
        changed = _with_images(changed, source, data or transfer.images, transfer.augmentation)
    changed = with_overrides(changed, overrides)
    _require_the_sources(source, changed)
    settings = changed.space.settings
    if extend_distances:
        settings = extended(source.supernet.family, settings)
    # Without tensors, this only checks that the weights can be adapted. A fresh head always can be.
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
    """The recipe with the images of `texts`, or with the source's if `texts` is None."""
    data = source.data if texts is None else None
    if texts:
        recipe = with_data(recipe, texts)
        data = recipe.data
    if data is None or data.name == OWN_DATA:
        raise ValueError(f"no images given for fine-tuning {source.name}: add --data PATH")
    if augmentation is None:
        augmentation = source.data.augmentation if source.data else Augmentation()
    fields = {**data.model_dump(mode="json"), "augmentation": augmentation}
    return recipe_from_dict({**recipe.model_dump(mode="json"), "data": fields})


def _require_the_sources(source: Source, recipe: Recipe) -> None:
    """Raises ValueError if overrides change what the source determines."""
    space = recipe.space.model_copy(update={"settings": source.space.settings})
    budgets = exact_budgets(source.archs, source.supernet.settings)
    is_other = space != source.space or recipe.search != SearchRecipe(budgets=budgets)
    if is_other or recipe.evolution is not None:
        raise ValueError(
            f"the subnets of a fine-tuning are those of its source, {source.name}: only "
            "space.settings, data, training and seed may be changed"
        )
    asked, theirs = recipe.preprocessing, source.preprocessing
    if (asked.mean, asked.std) != (theirs.mean, theirs.std):
        raise ValueError(
            f"images must be normalised as for {source.name}, whose weights depend on it: leave "
            "out data.preprocessing.mean and std"
        )


def adapt_source(
    source: Source, recipe: Recipe, class_names: Sequence[str], head: str = "auto"
) -> Adaptation:
    """Adapts the source's weights and subnets to a recipe that was made for the source.

    Args:
        class_names: those of the images; if they are the source's, in the same order, `auto` keeps
            the head.
        head: one of `HEADS`. A fresh head is drawn from the recipe's seed.

    Raises:
        ValueError: the recipe was made for another source, or does not suit its weights.
    """
    if head not in HEADS:
        raise unknown_name("choice for --head", head, HEADS)
    supernet, settings = source.supernet, recipe.space.settings
    if recipe.search.budgets != exact_budgets(source.archs, settings):
        raise ValueError(
            f"recipe {recipe.name!r} was not made for the subnets of {source.name}: build it with "
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
        licence=source.licence,
        origin=source.origin,
    )
    return Adaptation(unscored_set(recipe, source.archs, adapted=origin), adapted.eval())
