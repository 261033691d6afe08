"""Recipes for other data: reads `--data` and fits the number of classes to the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prenas import artifacts
from prenas.data.folders import list_pictures, unwrapped_splits
from prenas.data.named import NAMED
from prenas.data.opening import PICTURE_ENDINGS
from prenas.data.shards import is_pattern, shards_at
from prenas.data.sources import NO_SPLIT, open_class_names
from prenas.data.timm_sets import is_timm_name
from prenas.files import exists
from prenas.recipe import Recipe, recipe_from_dict
from prenas.recipe.data import FOLDER, OWN_DATA, DataRecipe
from prenas.values import explained

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_MOST_LOOKED_AT = 1_000  # entries of a folder that has the name of a data set
_SHAPE = (
    "give a folder, a tar, a pattern of WebDataset's shards or the name of a data set, with its "
    "folder after a colon if needed (photos/, photos.tar, 'train-{000..099}.tar', cifar10, "
    "cifar10:/data, hfds/...), or SPLIT=PATH for train, validation or test, e.g. train=a.tar, "
    "validation=0.1, test=none"
)


def with_data(recipe: Recipe, texts: Sequence[str] | str) -> Recipe:
    """The recipe with other images, prepared and augmented as before.

    The network gets one output per class of the data.

    Args:
        texts: a source (`photos/`, `photos.tar`, `cifar10`, `hfds/uoft-cs/cifar10`), splits
            (`train=a.tar`, `test=photos/test`, `validation=0.1`, `test=none`), or both.

    Raises:
        ValueError: a text cannot be read, or the data do not exist; see `open_data`.
    """
    data = recipe.data or DataRecipe(name=OWN_DATA)
    fields = {**data.model_dump(mode="json"), **_fields(data, _listed(texts))}
    changed = recipe_from_dict({**recipe.model_dump(mode="json"), "data": fields})
    assert changed.data is not None, "just given"
    if changed.data.name == OWN_DATA:
        raise ValueError(f"--data gives no images: {_SHAPE}")
    num_classes = len(open_class_names(changed.data))
    return changed.model_copy(
        update={"space": changed.space.with_settings(num_classes=num_classes)}
    )


def data_from(data: DataRecipe, texts: Sequence[str] | str) -> DataRecipe:
    """The data part of a recipe with other images, prepared as before; see `with_data`."""
    try:
        changed = DataRecipe.model_validate(
            {**data.model_dump(mode="json"), **_fields(data, _listed(texts))}
        )
    except ValidationError as error:
        raise explained(error) from None
    if changed.name == OWN_DATA:
        raise ValueError(f"--data gives no images: {_SHAPE}")
    return changed


def _listed(texts: Sequence[str] | str) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _fields(data: DataRecipe, texts: Sequence[str]) -> dict[str, str | float | None]:
    """The fields of a data recipe that the texts change."""
    fields: dict[str, str | float | None] = {}
    splits: dict[str, str] = {}
    for text in texts:
        split, separator, path = (part.strip() for part in text.partition("="))
        if separator and split in _SPLITS:
            name = _SPLITS[split]
            if name in splits:
                raise ValueError(f"--data {text!r}: {name} is given twice, keep one of them")
            if not path:
                raise ValueError(f"--data {text!r} gives no path: {_SHAPE}")
            splits[name] = path
        elif "name" in fields:
            there = fields["root"] or fields["name"]
            raise ValueError(f"--data {text!r}: images were already given ({there})")
        else:
            fields |= _source(text)
    others: dict[str, str | float | None] = {"train": None, "validation": None, "test": None}
    if "name" in fields:  # other images: of the old splits, only test=none is kept
        if data.test == NO_SPLIT:
            others["test"] = NO_SPLIT
        fields = {**others, **fields}
    elif "train" in splits:
        fields = {**others, "name": FOLDER, "root": None}
    source = {"name": data.name, "root": data.root, **fields}
    return fields | {split: _split(text, source) for split, text in splits.items()}


def _source(text: str) -> dict[str, str | None]:
    name, colon, root = text.partition(":")
    if name in NAMED or is_timm_name(name):
        if not colon:
            _require_one_meaning(name)
        return {"name": name, "root": str(Path(root).expanduser().resolve()) if root else None}
    path = Path(text).expanduser()
    if not text.strip() or not (exists(path) or is_pattern(str(path))):
        names = [near.name for near in Path().iterdir()] if text.strip() else []
        near = get_close_matches(text.strip("/"), [*names, *NAMED], n=2, cutoff=0.6)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"--data {text!r} is neither an existing folder or tar nor the name of a data set "
            f"({', '.join(NAMED)}){hint}: {_SHAPE}"
        )
    return {"name": FOLDER, "root": str(path.resolve())}


def _require_one_meaning(name: str) -> None:
    """Raises ValueError if the name of a data set is also that of a folder with pictures."""
    folder = Path(name)
    if (folder / artifacts.RECIPE).exists():  # a run has pictures of its own
        return
    entries = islice(folder.glob("**/*"), _MOST_LOOKED_AT)
    if any(entry.suffix.lower() in PICTURE_ENDINGS for entry in entries):
        raise ValueError(
            f"--data {name!r} is the name of a data set and of a folder with pictures: write "
            f"./{name} for the folder, or {name}: for the data set"
        )


def _split(text: str, source: Mapping[str, Any]) -> str | float:
    """A split: a fraction, `none`, a name inside the source, or a path (made absolute)."""
    if text == NO_SPLIT:
        return NO_SPLIT
    try:
        return float(text)
    except ValueError:
        pass
    path, name, root = Path(text).expanduser(), source["name"], source["root"]
    if name in NAMED or is_timm_name(name):
        return text
    if is_pattern(str(path)):
        return str(path.resolve())
    if not exists(path):
        return text
    if root and not shards_at(root) and text in unwrapped_splits(list_pictures(Path(root))).folders:
        return text
    return str(path.resolve())


def default_class_names(num_classes: int) -> tuple[str, ...]:
    """ImageNet's names if there are 1000 classes, as in the authors' files; else their indices."""
    from timm.data import ImageNetInfo

    names = tuple(ImageNetInfo().label_descriptions())
    return names if num_classes == len(names) else tuple(map(str, range(num_classes)))
