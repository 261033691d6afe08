"""Labelled images: the splits of a data set, batches of them, and checks of their shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from prenas.data.names import Integers
from prenas.families.base import Settings

ImageSource = Dataset[Any] | DataLoader[Any]
"""A data set of (image [C, H, W], label) pairs, or a loader of batches of them."""

UNDIVIDED = "all"
"""What stands for the split of a set that has none."""
CENTRE_CROP = 4
"""Number of the centre among the crops of an image: torchvision cuts the corners first."""

Augment = Callable[[Tensor, Sequence[np.random.Generator]], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImageData:
    """The three splits of a data set. Validation is used for choices, test only for reports.

    Images must be normalised as the recipe's preprocessing says. A `Dataset` is shuffled here,
    reproducibly, and its transforms see global generators that are seeded per sample. A
    `DataLoader`, or an iterable data set, is iterated as it is, with global generators that are
    seeded per epoch and batch.
    """

    train: ImageSource
    validation: ImageSource
    test: ImageSource | None
    class_names: tuple[str, ...]
    unchanged: Dataset[Any] | None = None
    """The training images without augmentation, for a search on data; None: use `train`."""
    augmentation: Augment | None = None
    """(images [B, C, H, W], one generator per sample) -> changed images, possibly in place. Like
    `mixing`, it runs in the reading processes, which go on from epoch to epoch. So both must not
    keep state, must stay on the CPU, and must be picklable where processes are not forked."""
    mixing: Mix | None = None
    """(images, labels [B]) -> mixed images, possibly in place, and shares of the classes
    [B, num_classes]."""
    repeats: int = 1
    """Number of consecutive copies of each image, each augmented differently (data sets only)."""
    num_workers: int = 0
    """Processes that read training images, and evaluated ones which are not in memory. A
    `TensorDataset` needs none."""
    num_crops: int = 1
    """Crops per evaluated image; above 1, items of evaluated splits are [crops, C, H, W], of which
    number `CENTRE_CROP` is the only one of an image that is cropped once."""
    notes: tuple[str, ...] = ()
    """What users should know about the data, such as pictures that were skipped."""
    fingerprint: str | None = None
    """Equal for equal images, labels and splits; None if unknown."""
    is_undivided: bool = False
    """Whether `validation` is all images of a set without splits: they are evaluated as
    `UNDIVIDED`."""

    def __post_init__(self) -> None:
        if isinstance(self.class_names, str) or not all(
            isinstance(name, str) for name in self.class_names
        ):
            raise ValueError(
                f"class_names is {self.class_names!r}: pass a tuple with one name per class"
            )

    @property
    def splits(self) -> dict[str, ImageSource]:
        """The evaluated splits by name."""
        if self.is_undivided:
            return {UNDIVIDED: self.validation}
        return {
            name: split
            for name, split in (("validation", self.validation), ("test", self.test))
            if split is not None
        }


class Batch(NamedTuple):
    """Images [B, C, H, W], labels, and one generator per sample for all its randomness.

    Labels are class indices [B], or shares of the classes [B, num_classes] if images are mixed.
    """

    images: Tensor
    labels: Tensor
    generators: list[np.random.Generator]
    total: int
    """Images of the full batch over all processes; this process' share of it may be empty."""

    def parts(self, number: int) -> Iterator[Batch]:
        """At most `number` parts of nearly equal size, none of them empty."""
        for part in part_slices(len(self.labels), number):
            yield Batch(self.images[part], self.labels[part], self.generators[part], self.total)


def part_slices(length: int, number: int) -> list[slice]:
    """At most `number` slices of nearly equal size, none of them empty."""
    size = max(1, math.ceil(length / number))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def num_samples(source: ImageSource) -> int:
    """Number of samples of a data set, or of a loader's data set."""
    dataset = source.dataset if isinstance(source, DataLoader) else source
    if not isinstance(dataset, Sized):
        raise ValueError(f"{type(dataset).__name__} has no length: pass a data set with __len__")
    return len(dataset)


def label_counts(source: ImageSource) -> tuple[int, ...] | None:
    """Number of images of each label, from 0; None if all images would have to be read for it.

    Labels are known for images in folders, tars and named sets, for a `TensorDataset`, and for
    data sets with `targets`, as torchvision's have.
    """
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    if isinstance(dataset, TensorDataset):
        labels: Any = dataset.tensors[-1]
    else:
        labels = getattr(dataset, "labels", getattr(dataset, "targets", None))
    if labels is None:
        return None
    found = torch.as_tensor(np.asarray(labels) if isinstance(labels, Integers) else labels)
    if found.ndim != 1 or len(found) != len(dataset) or found.is_floating_point():
        return None
    return tuple(found.long().bincount().tolist()) if not (found < 0).any() else None


def num_batches(source: ImageSource, batch_size: int) -> int:
    """Number of batches in one epoch."""
    total = num_samples(source)
    return len(source) if isinstance(source, DataLoader) else math.ceil(total / batch_size)


def as_batch(
    batch: Any, settings: Settings, *, with_crops: bool = False, may_be_bytes: bool = False
) -> tuple[Tensor, Tensor]:
    """A pair (images, labels) as float32 [B, C, H, W] and int64 [B].

    Args:
        with_crops: whether an image may be several crops, [B, crops, C, H, W].
        may_be_bytes: whether images may be uint8, which stay as they are.

    Raises:
        ValueError: it is not such a pair, or does not suit a network with these settings.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            f"the data set yields {type(batch).__name__} items instead of pairs (image, label): "
            "wrap it so that it returns pairs"
        )
    try:
        images, labels = (torch.as_tensor(part) for part in batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the data set yields images or labels that are not numbers ({error}): return float "
            "images and the index of the class"
        ) from None
    expected = (settings.in_chans, *settings.image_size)
    has_dimensions = images.ndim == 4 or (with_crops and images.ndim == 5)
    has_shape = has_dimensions and tuple(images.shape[-3:]) == expected
    are_bytes = may_be_bytes and images.dtype == torch.uint8
    if not has_shape or not (images.is_floating_point() or are_bytes):
        raise ValueError(
            f"the data set yields images of shape {tuple(images.shape)} and type {images.dtype}, "
            f"but the space expects floats of shape (batch, {', '.join(map(str, expected))}): "
            "convert them, or change space.settings.image_size and in_chans"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"the data set yields labels of shape {tuple(labels.shape)} and type {labels.dtype}: "
            "return one integer per image"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < settings.num_classes:
        bad = int(labels.max() if labels.max() >= settings.num_classes else labels.min())
        raise ValueError(
            f"label {bad} is not among the classes 0 to {settings.num_classes - 1} of the "
            "classifier: raise space.settings.num_classes, or fix the labels"
        )
    return images if are_bytes else images.float(), labels.long()
