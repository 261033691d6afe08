"""Measures the accuracy of a handed-over model on other images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prenas.cost import count
from prenas.data import ImageData, load_data, undivided
from prenas.data.naming import data_from
from prenas.evaluation.accuracy import Evaluation, evaluate_networks
from prenas.models.export import Description, load_described
from prenas.processes import resolve_device
from prenas.recipe.data import OWN_DATA, DataRecipe


def measure(
    model: str | Path,
    texts: Sequence[str],
    *,
    crops: int | None = None,
    image_size: int | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluates a handed-over model, prepared as it was trained, on the images that texts name.

    Args:
        texts: as `prenas.with_data` takes them. All images of a set without splits are evaluated,
            otherwise those of its validation and test split.
        crops: crops per image, 1, 5 or 10; None for one.
        image_size: as in `prenas.load`.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model is damaged or takes images of one size only, no images are given, or
            their classes are not those of the model.
    """
    (network, _), description = load_described(model, image_size=image_size)
    if not texts:
        raise ValueError(f"{model} is a model and names no images: give some with --data PATH")
    images = read_images(model, description, texts, crops)
    network.to(resolve_device(device))
    splits = {
        name: evaluate_networks(
            [network],
            split,
            description.settings,
            num_workers=images.num_workers,
            num_crops=images.num_crops,
        )[0]
        for name, split in images.splits.items()
    }
    costs = count(description.arch, description.settings)
    return Evaluation(arch=description.arch, costs=costs, splits=splits)


def read_images(
    model: str | Path, description: Description, texts: Sequence[str], crops: int | None = None
) -> ImageData:
    """The images that texts name, prepared as those of a model's training.

    All images of a set without splits, otherwise its validation and test split.

    Raises:
        ValueError: they are unreadable, or their classes are not those of the model.
    """
    fields = {"preprocessing": description.preprocessing, "crops": 1 if crops is None else crops}
    data = data_from(DataRecipe.model_validate({"name": OWN_DATA, **fields}), texts)
    whole = undivided(data, description.settings)
    if whole is None:
        return read_splits(model, description, data, hold=("validation", "test"))
    _require_classes(model, description, whole)
    return whole


def read_splits(
    model: str | Path, description: Description, data: DataRecipe, hold: Sequence[str] = ()
) -> ImageData:
    """The images of a recipe in its splits, in the size that a model takes.

    Args:
        hold: splits that may be held in memory.

    Raises:
        ValueError: as `read_images`.
    """
    images = load_data(data, description.settings, hold=hold)
    _require_classes(model, description, images)
    return images


def _require_classes(model: str | Path, description: Description, images: ImageData) -> None:
    if images.class_names != description.class_names:
        differing = sorted({*images.class_names} ^ {*description.class_names}) or ["their order"]
        raise ValueError(
            f"these images have other classes than {model} (differing: "
            f"{', '.join(differing[:10])}): give images of the same classes"
        )
