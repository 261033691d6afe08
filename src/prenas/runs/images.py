"""The images of a run: those its recipe names, or others that suit it, checked before use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prenas.data import ImageData, load_data, open_data, undivided, with_data
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.data import OWN_DATA, DataRecipe
from prenas.runs.folder import (
    read_preferred,
    recorded_class_names,
    recorded_fingerprint,
    require_same_classes,
    require_same_data,
)
from prenas.selection.preferred import PreferredSet


def images_of(
    recipe: Recipe,
    data: ImageData | None,
    out: str | Path | None = None,
    *,
    hold: Sequence[str] = ("train", "validation", "test"),
) -> ImageData:
    """The recipe's data, or those passed from Python; ValueError if they do not fit together.

    Args:
        hold: splits that may be held in memory.
        out: a run folder that must have been begun with the same images, if it has begun.
    """
    if data is None:
        if recipe.data is None:
            raise ValueError(
                f"recipe {recipe.name!r} names no data: say where images are (--data PLACE), "
                "choose a recipe that names them, or pass data=prenas.ImageData(...) from Python"
            )
        data = load_data(recipe.data, recipe.space.settings, hold=hold)
    elif recipe.data is not None and recipe.data.name != OWN_DATA and data.fingerprint is None:
        raise ValueError(
            f"recipe {recipe.name!r} loads {recipe.data.name!r} by itself, yet data were passed: "
            f"set its data to None or to DataRecipe(name={OWN_DATA!r}), or pass none"
        )
    num_classes = recipe.space.settings.num_classes
    if len(data.class_names) > num_classes:
        raise ValueError(
            f"the data have {len(data.class_names)} classes, the head only {num_classes}: "
            f"set space.settings.num_classes={len(data.class_names)}"
        )
    if out is not None:
        require_same_data(Path(out), data)
        require_same_classes(Path(out), data)
    return data


def other_data(
    out: str | Path, texts: Sequence[str] = (), *, crops: int | None = None
) -> ImageData:
    """Images for a run from another place than its recipe says: moved files, or another test set.

    Args:
        texts: as `prenas.with_data` takes them; none for the recipe's own images.
        crops: crops per evaluated image, 1, 5 or 10; None for the recipe's.

    Raises:
        ValueError: other classes than the run's, or images that are not there or not readable.
    """
    out = Path(out)
    preferred = read_preferred(out)
    recipe = preferred.recipe
    moved = with_data(recipe, texts) if texts else recipe
    if crops is not None:
        moved = with_overrides(moved, [f"data.crops={crops}"])
    if moved.data is None:
        raise ValueError(f"{out} has no images of its own: say where they are (--data)")
    whole = None
    if texts and not _may_be_moved(out, preferred, moved.data):
        whole = undivided(moved.data, recipe.space.settings)
    images = whole or load_data(moved.data, recipe.space.settings)
    require_classes(out, preferred, images)
    return images


def _may_be_moved(out: Path, preferred: PreferredSet, data: DataRecipe) -> bool:
    """Whether images in another place may be those of a run, divided as it divides them."""
    if recorded_class_names(out) is None:
        return preferred.imported is None
    try:
        return open_data(data).fingerprint == recorded_fingerprint(out)
    except ValueError:  # too few to divide, or of other classes
        return False


def require_classes(out: Path, preferred: PreferredSet, data: ImageData) -> None:
    """Raises ValueError unless the labels of images mean what the outputs of a run mean."""
    require_same_classes(out, data)
    num_outputs = preferred.recipe.space.settings.num_classes
    is_unknown = preferred.imported is not None and recorded_class_names(out) is None
    if is_unknown and len(data.class_names) != num_outputs:
        raise ValueError(
            f"these images have {len(data.class_names)} classes, {out} has {num_outputs} outputs: "
            "give images of the classes that the released weights were trained on"
        )


def has_no_data(preferred: PreferredSet, data: ImageData | None) -> bool:
    """Whether an imported run, which may do without, is used without data."""
    return preferred.imported is not None and preferred.recipe.data is None and data is None
