"""Data sets read by timm's dataset factory: Hugging Face, WebDataset, TensorFlow, torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL.Image import Image
from torch.utils.data import IterableDataset

from prenas.data.named import NamedSet
from prenas.data.names import Integers, Names
from prenas.data.opening import open_picture
from prenas.data.pictures import ArrayPictures, PictureSet

TIMM_PREFIXES = ("hfds/", "hfids/", "wds/", "tfds/", "torch/")


def is_timm_name(name: str) -> bool:
    """Whether the name is one for timm's dataset factory."""
    return name.startswith(TIMM_PREFIXES)


def open_timm(name: str, root: str | None, splits: list[str], memory_bytes: float) -> NamedSet:
    """Opens the named splits of a data set.

    Data sets that can only be read sequentially (`wds`, `hfids`, `tfds`) are read into memory.

    Raises:
        ValueError: a library is missing, timm cannot open the data set or split, or a sequential
            data set needs more than `memory_bytes`.
    """
    from timm.data import create_dataset

    pools: dict[str, PictureSet] = {}
    names: tuple[str, ...] = ()
    for split in splits:
        try:
            dataset = create_dataset(name, root=root, split=split)
        except (Exception, SystemExit) as error:  # each kind of data set fails differently
            raise ValueError(
                f"timm cannot open split {split!r} of {name} (root {root}): "
                f"{type(error).__name__}: {error}"
            ) from None
        found = _class_names(dataset)
        if names and found != names:
            raise ValueError(
                f"split {split!r} of {name} has classes {_some(found)}, but {splits[0]!r} has "
                f"{_some(names)}: check that the split exists"
            )
        names = found
        is_stream = isinstance(dataset, IterableDataset)
        pools[split] = _streamed(dataset, name, memory_bytes) if is_stream else _indexed(dataset)
    num_classes = 1 + max(max(pool.labels, default=-1) for pool in pools.values())
    return NamedSet(names or tuple(map(str, range(num_classes))), pools)


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Names in the order of their indices, if the data set has names."""
    if hasattr(dataset, "classes"):
        return tuple(map(str, dataset.classes))
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return tuple(map(str, sorted(numbers, key=numbers.__getitem__)))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) or "without names"


def _indexed(dataset: Any) -> PictureSet:
    if hasattr(getattr(dataset, "reader", None), "iter_targets"):
        labels = Integers.of(map(int, dataset.reader.iter_targets()))
    elif hasattr(dataset, "targets"):
        labels = Integers.of(map(int, dataset.targets))
    else:
        labels = Integers.of(int(dataset[index][1]) for index in range(len(dataset)))
    numbers = Names.of(map(str, range(len(labels))))
    return PictureSet(numbers, labels, _ByIndex(dataset))


class _ByIndex:
    """Opens the pictures of a data set of (picture, label) pairs."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, name: str) -> Image:
        reader = getattr(self._dataset, "reader", None)
        # timm's own data set would silently replace an unreadable picture by the next one.
        if reader is not None:
            return open_picture(reader[int(name)][0].read())
        picture: Image = self._dataset[int(name)][0]
        return picture


def _instead(name: str) -> str:
    """What reads the same pictures from disk."""
    if name.startswith("wds/"):
        return "give the shards themselves (--data 'FOLDER/train-{000..099}.tar')"
    if name.startswith("hfids/"):
        return "give hfds/ instead of hfids/, which keeps the set on disk"
    return "unpack the data set into image folders"


def _streamed(dataset: Any, name: str, memory_bytes: float) -> PictureSet:
    arrays, labels, total = [], [], 0
    for picture, label in dataset:
        arrays.append(np.asarray(picture))
        labels.append(int(label))
        total += arrays[-1].nbytes
        if total > memory_bytes:
            raise ValueError(
                f"{name} can only be read sequentially and does not fit into data.memory_gib "
                f"({memory_bytes / 2**30:g}): raise that, {_instead(name)}, or pass a DataLoader "
                "from Python"
            )
    if len(dataset) not in (0, len(labels)):  # 0: unknown. timm skips what it cannot read
        raise ValueError(
            f"{name} claims {len(dataset)} pictures, but {len(labels)} can be read: repair its "
            "files or the numbers in its description"
        )
    numbers = Names.of(map(str, range(len(labels))))
    return PictureSet(numbers, labels, ArrayPictures(arrays))
