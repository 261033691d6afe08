"""Labelled images: the splits of a data set, batches of them, and what they must look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prenas.families.base import Settings

ImageSource = Dataset[Any] | DataLoader[Any]
"""A data set of (image [C, H, W], label) pairs, or a loader of batches of them."""

Augment = Callable[[Tensor, Sequence[np.random.Generator]], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImageData:
    """The three splits of a data set. Validation chooses, test is only reported.

    Images arrive normalised as the recipe's preprocessing says. A `Dataset` is shuffled here,
    reproducibly, and its own transforms see global generators seeded per sample; a `DataLoader`,
    or a data set that only iterates, is iterated as it is, its global draws seeded per epoch and
    batch.
    """

    train: ImageSource
    validation: ImageSource
    test: ImageSource | None
    class_names: tuple[str, ...]
    unchanged: Dataset[Any] | None = None
    """The training images without augmentation, for a search on data; None where `train` is so."""
    augmentation: Augment | None = None
    """(images [B, C, H, W], one generator per sample) -> changed images, perhaps in place. It runs
    in the process that reads, like `mixing`, made anew every epoch: so both keep no state and stay
    on the processor; where processes are not forked, both are pickled."""
    mixing: Mix | None = None
    """(images, labels [B]) -> mixed images, perhaps in place, and shares of the classes
    [B, num_classes]."""
    repeats: int = 1
    """Copies of each image that follow each other, each augmented anew (data sets only)."""
    num_workers: int = 0
    """Processes that read data sets which are not tensors in memory."""
    num_crops: int = 1
    """Crops per evaluated image; above 1, evaluated splits give [crops, C, H, W]."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the data, such as pictures that were left out."""
    fingerprint: str | None = None
    """Equal for equal images, labels and splits; None where it is unknown."""

    def __post_init__(self) -> None:
        if isinstance(self.class_names, str) or not all(
            isinstance(name, str) for name in self.class_names
        ):
            raise ValueError(
                f"class_names is {self.class_names!r}: give a tuple of names, one per class"
            )

    @property
    def splits(self) -> dict[str, ImageSource]:
        """The evaluated splits by name."""
        return {
            name: split
            for name, split in (("validation", self.validation), ("test", self.test))
            if split is not None
        }


class Batch(NamedTuple):
    """Images [B, C, H, W], labels, and one generator per sample for all its randomness.

    Labels are class numbers [B], or shares of the classes [B, num_classes] where images are mixed.
    """

    images: Tensor
    labels: Tensor
    generators: list[np.random.Generator]
    total: int
    """Images of the whole batch, of which several processes each have a share, even none."""

    def parts(self, number: int) -> Iterator[Batch]:
        """So many parts of nearly equal size, without empty ones."""
        for part in part_slices(len(self.labels), number):
            yield Batch(self.images[part], self.labels[part], self.generators[part], self.total)


def part_slices(length: int, number: int) -> list[slice]:
    """So many parts of nearly equal size, without empty ones."""
    size = max(1, math.ceil(length / number))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def num_samples(source: ImageSource) -> int:
    """Samples of a data set; of a loader, those of its data set."""
    dataset = source.dataset if isinstance(source, DataLoader) else source
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"{type(dataset).__name__} has no length: give a data set that knows its length"
        )
    return len(dataset)


def num_batches(source: ImageSource, batch_size: int) -> int:
    """Batches of one epoch."""
    total = num_samples(source)
    return len(source) if isinstance(source, DataLoader) else math.ceil(total / batch_size)


def as_batch(batch: Any, settings: Settings, *, with_crops: bool = False) -> tuple[Tensor, Tensor]:
    """A pair (images, labels) as float32 [B, C, H, W] and int64 [B].

    Args:
        with_crops: whether images may be of several crops each, [B, crops, C, H, W].

    Raises:
        ValueError: it is no such pair, or does not suit a network of these settings.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            f"the data gives {type(batch).__name__} items, where pairs (image, label) are needed: "
            "wrap the data set so that it returns pairs"
        )
    try:
        images, labels = (torch.as_tensor(part) for part in batch)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the data gives images or labels that are no numbers ({error}): give float images "
            "and the number of the class"
        ) from None
    expected = (settings.in_chans, *settings.image_size)
    has_dimensions = images.ndim == 4 or (with_crops and images.ndim == 5)
    has_shape = has_dimensions and tuple(images.shape[-3:]) == expected
    if not has_shape or not images.is_floating_point():
        raise ValueError(
            f"the data gives images of shape {tuple(images.shape)} and type {images.dtype}, but "
            f"the space takes floats of shape (batch, {', '.join(map(str, expected))}): convert "
            "them, or change space.settings.image_size and in_chans"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"the data gives labels of shape {tuple(labels.shape)} and type {labels.dtype}: "
            "one whole number per image is needed"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < settings.num_classes:
        bad = int(labels.max() if labels.max() >= settings.num_classes else labels.min())
        raise ValueError(
            f"label {bad} is outside the head's {settings.num_classes} classes "
            f"(0 to {settings.num_classes - 1}): raise space.settings.num_classes, "
            "or mend the labels"
        )
    return images.float(), labels.long()
