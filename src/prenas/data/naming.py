"""A recipe for other data: `--data` texts, and a head that fits the classes found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prenas.data.folders import list_pictures, unwrapped_splits
from prenas.data.named import NAMED
from prenas.data.sources import NO_SPLIT, open_class_names
from prenas.data.timm_sets import is_timm_name
from prenas.recipe import Recipe, recipe_from_dict
from prenas.recipe.data import FOLDER, OWN_DATA, DataRecipe

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_SHAPE = (
    "write a folder, a tar or the name of a set, with its folder after a colon if it has one "
    "(photos/, photos.tar, cifar10, cifar10:/data, hfds/...), or "
    "SPLIT=PLACE for one of train, validation, test, e.g. train=a.tar, validation=0.1, test=none"
)


def with_data(recipe: Recipe, texts: Sequence[str] | str) -> Recipe:
    """The recipe with other images: how they are prepared and augmented stays.

    The head gets one output per class of the data.

    Args:
        texts: one source (`photos/`, `photos.tar`, `cifar10`, `hfds/uoft-cs/cifar10`), and places
            of splits (`train=a.tar`, `test=photos/test`, `validation=0.1`, `test=none`).

    Raises:
        ValueError: a text that cannot be read, or data that are not there; see `open_data`.
    """
    data = recipe.data or DataRecipe(name=OWN_DATA)
    fields = {**data.model_dump(mode="json"), **_fields(data, _listed(texts))}
    changed = recipe_from_dict({**recipe.model_dump(mode="json"), "data": fields})
    assert changed.data is not None, "just given"
    if changed.data.name == OWN_DATA:
        raise ValueError(f"--data names no images: {_SHAPE}")
    num_classes = len(open_class_names(changed.data))
    return changed.model_copy(
        update={"space": changed.space.with_settings(num_classes=num_classes)}
    )


def _listed(texts: Sequence[str] | str) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _fields(data: DataRecipe, texts: Sequence[str]) -> dict[str, str | float | None]:
    """The fields of a data recipe that the texts change."""
    fields: dict[str, str | float | None] = {}
    places: dict[str, str] = {}
    for text in texts:
        split, separator, place = (part.strip() for part in text.partition("="))
        if separator and split in _SPLITS:
            name = _SPLITS[split]
            if name in places:
                raise ValueError(f"--data {text!r}: {name} is given twice")
            if not place:
                raise ValueError(f"--data {text!r} names no place: {_SHAPE}")
            places[name] = place
        elif "name" in fields:
            there = fields["root"] or fields["name"]
            raise ValueError(f"--data {text!r}: {there} is given already")
        else:
            fields |= _source(text)
    others: dict[str, str | float | None] = {"train": None, "validation": None, "test": None}
    if (
        "name" in fields
    ):  # other images: nothing of the old splits holds, but that one is not wanted
        if data.test == NO_SPLIT:
            others["test"] = NO_SPLIT
        fields = {**others, **fields}
    elif "train" in places:
        fields = {**others, "name": FOLDER, "root": None}
    source = {"name": data.name, "root": data.root, **fields}
    return fields | {split: _place(place, source) for split, place in places.items()}


def _source(text: str) -> dict[str, str | None]:
    name, _, root = text.partition(":")
    if name in NAMED or is_timm_name(name):
        return {"name": name, "root": str(Path(root).expanduser().resolve()) if root else None}
    path = Path(text).expanduser()
    if not text.strip() or not path.exists():
        names = [near.name for near in Path().iterdir()] if text.strip() else []
        near = get_close_matches(text.strip("/"), [*names, *NAMED], n=2, cutoff=0.6)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"--data {text!r} is neither a folder or tar that exists nor the name of a set "
            f"({', '.join(NAMED)}){hint}: {_SHAPE}"
        )
    return {"name": FOLDER, "root": str(path.resolve())}


def _place(place: str, source: Mapping[str, Any]) -> str | float:
    """A split: a share, `none`, a name inside the source, or a place on disk (made absolute)."""
    if place == NO_SPLIT:
        return NO_SPLIT
    try:
        return float(place)
    except ValueError:
        pass
    path, name, root = Path(place).expanduser(), source["name"], source["root"]
    if name in NAMED or is_timm_name(name) or not path.exists():
        return place
    if root and place in unwrapped_splits(list_pictures(Path(root))).folders:
        return place
    return str(path.resolve())


def default_class_names(num_classes: int) -> tuple[str, ...]:
    """ImageNet's names for its 1000 classes, as in the authors' files; else their numbers."""
    from timm.data import ImageNetInfo

    names = tuple(ImageNetInfo().label_descriptions())
    return names if num_classes == len(names) else tuple(map(str, range(num_classes)))
