"""Data: built-in sets, own data sets, and batches whose randomness is named.

Every random change of a sample is drawn from (seed, epoch, index), so a batch does not depend on
how many workers or processes make it, or on what ran before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from prenas.families import unknown_name
from prenas.families.base import Settings
from prenas.randomness import isolated_global_state, numpy_generator, torch_generator
from prenas.recipe import AffineAugmentation, DataRecipe

OWN_DATA = "own"
"""The name of data that is passed from Python instead of loaded by name."""

ImageSource = Dataset[Any] | DataLoader[Any]
"""A data set of (image [C, H, W], label) pairs, or a loader of batches of them."""

BatchAugmentation = Callable[[Tensor, Sequence[np.random.Generator]], Tensor]
"""(images [B, C, H, W], one generator per sample) -> changed images."""


@dataclass(frozen=True)
class ImageData:
    """The three splits of a data set. Validation chooses, test is only reported.

    Images arrive normalised as the recipe's preprocessing says. A `Dataset` is shuffled here,
    reproducibly, and its own transforms see global generators seeded per sample; a `DataLoader` is
    iterated as it is, its global draws seeded per epoch and batch.
    """

    train: ImageSource
    validation: ImageSource
    test: ImageSource | None
    class_names: tuple[str, ...]
    augmentation: BatchAugmentation | None = None

    @property
    def splits(self) -> dict[str, ImageSource]:
        """The evaluated splits by name."""
        return {
            name: split
            for name, split in (("validation", self.validation), ("test", self.test))
            if split is not None
        }


class Batch(NamedTuple):
    """Images [B, C, H, W], labels [B], and one generator per sample for all its randomness."""

    images: Tensor
    labels: Tensor
    generators: list[np.random.Generator]


class _SeededDataset(Dataset[Any]):
    """A data set whose transforms draw from global generators, seeded per (epoch, index)."""

    def __init__(self, dataset: Dataset[Any], seed: int, epoch: int) -> None:
        self._dataset, self._seed, self._epoch = dataset, seed, epoch

    def __getitem__(self, index: int) -> Any:
        with isolated_global_state(self._seed, "transforms", self._epoch, index):
            return self._dataset[index]


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


def training_batches(
    data: ImageData, settings: Settings, batch_size: int, seed: int, epoch: int
) -> Iterator[Batch]:
    """One epoch of augmented training batches, in an order drawn from (seed, epoch).

    Raises:
        ValueError: a batch whose images or labels do not suit the network.
    """
    source = data.train
    chunks: Iterable[list[int] | None]
    batches: Iterable[Any]
    if isinstance(source, DataLoader):
        chunks = repeat(None)  # counted by position in the epoch
        batches = _isolated(source, seed, epoch)
    else:
        generator = torch_generator(seed, "shuffle", epoch)
        order = torch.randperm(num_samples(source), generator=generator).tolist()
        starts = range(0, len(order), batch_size)
        chunks = drawn = [order[start : start + batch_size] for start in starts]
        batches = _read(source, drawn, seed, epoch)
    num_seen = 0
    for chunk, batch in zip(chunks, batches, strict=False):
        images, labels = as_batch(batch, settings)
        indices = range(num_seen, num_seen + len(labels)) if chunk is None else chunk
        generators = [numpy_generator(seed, "sample", epoch, index) for index in indices]
        if data.augmentation is not None:
            images = data.augmentation(images, generators)
        num_seen += len(labels)
        yield Batch(images, labels, generators)


def _read(
    dataset: Dataset[Any], chunks: Sequence[list[int]], seed: int, epoch: int
) -> Iterable[Any]:
    """Batches (images, labels) of the given indices."""
    if isinstance(dataset, TensorDataset):  # no transforms: whole batches at once
        return (dataset[chunk] for chunk in chunks)
    loader: DataLoader[Any] = DataLoader(_SeededDataset(dataset, seed, epoch), batch_sampler=chunks)
    return _isolated(loader, seed, epoch)


def _isolated(loader: DataLoader[Any], seed: int, epoch: int) -> Iterator[Any]:
    """Iterates a loader while all its global draws (order, worker seeds) come from the seed."""
    with isolated_global_state(seed, "loader", epoch):
        iterator = iter(loader)
    for number in count():
        with isolated_global_state(seed, "loader", epoch, number):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def evaluation_batches(
    source: ImageSource, settings: Settings, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, labels) in the order of the source, without augmentation."""
    loader = (
        _isolated(source, seed=0, epoch=0)
        if isinstance(source, DataLoader)
        else _read(source, _in_order(source, batch_size), seed=0, epoch=0)
    )
    for batch in loader:
        yield as_batch(batch, settings)


def labelled_sample(
    source: ImageSource, settings: Settings, num_images: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Images and labels for a data-driven search: drawn from a data set, the first of a loader.

    Raises:
        ValueError: fewer images than asked for.
    """
    if num_samples(source) < num_images:
        raise ValueError(
            f"search.num_images is {num_images}, but the training split has "
            f"{num_samples(source)} images: lower it"
        )
    if isinstance(source, DataLoader):
        batches = []
        for batch in evaluation_batches(source, settings, num_images):
            batches.append(batch)
            if sum(len(labels) for _, labels in batches) >= num_images:
                break
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if len(labels) < num_images:
            raise ValueError(
                f"search.num_images is {num_images}, but the training loader gives "
                f"{len(labels)} images: lower it"
            )
        return images[:num_images], labels[:num_images]
    generator = torch_generator(seed, "importance images")
    chosen = torch.randperm(num_samples(source), generator=generator)[:num_images].tolist()
    subset = Subset(source, chosen)
    return next(evaluation_batches(subset, settings, num_images))


def _in_order(source: Dataset[Any], batch_size: int) -> list[list[int]]:
    total = num_samples(source)
    return [
        list(range(start, min(start + batch_size, total))) for start in range(0, total, batch_size)
    ]


def as_batch(batch: Any, settings: Settings) -> tuple[Tensor, Tensor]:
    """A pair (images, labels) as float32 [B, C, H, W] and int64 [B].

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
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or not images.is_floating_point():
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


def check_splits(data: ImageData, settings: Settings) -> None:
    """Looks at the first batch of every evaluated split, before anything is spent.

    Raises:
        ValueError: a split is empty or does not suit a network of these settings.
    """
    for name, source in data.splits.items():
        if not isinstance(source, DataLoader) and num_samples(source) == 0:
            raise ValueError(f"the {name} split is empty: give at least one image")
        if next(evaluation_batches(source, settings, 1), None) is None:
            raise ValueError(f"the {name} loader is empty: check drop_last and its sampler")


class BatchAffine:
    """Random shifts, rotations and scales of a batch, one draw per sample."""

    def __init__(self, recipe: AffineAugmentation, fill: Sequence[float]) -> None:
        """`fill`: the value of a normalised black pixel, per channel."""
        self._recipe = recipe
        self._fill = torch.tensor(fill).view(1, -1, 1, 1)

    def __call__(self, images: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        """Images [B, C, H, W] moved about their centre; what enters from outside is black."""
        recipe = self._recipe
        draws = np.stack([generator.uniform(-1.0, 1.0, 4) for generator in generators])
        angle = np.deg2rad(recipe.rotation_degrees) * draws[:, 0]
        scale = 1.0 + recipe.scale * draws[:, 1]
        height, width = images.shape[2:]
        shift_x = 2.0 * recipe.shift_pixels / width * draws[:, 2]
        shift_y = 2.0 * recipe.shift_pixels / height * draws[:, 3]
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        aspect = height / width  # normalised coordinates stretch with the sides
        matrix = np.stack(
            [
                np.stack([cos, -sin * aspect, shift_x], axis=1),
                np.stack([sin / aspect, cos, shift_y], axis=1),
            ],
            axis=1,
        )
        theta = torch.from_numpy(matrix).to(images.dtype)
        grid = affine_grid(theta, list(images.shape), align_corners=False)
        moved = grid_sample(images - self._fill, grid, padding_mode="zeros", align_corners=False)
        return moved + self._fill


def load_data(recipe: DataRecipe) -> ImageData:
    """The named built-in data set; ValueError lists the choices."""
    if recipe.name == OWN_DATA:
        raise ValueError(
            "this run's data came from Python: pass data=prenas.ImageData(...) to the same call "
            "there (prenas.train, prenas.evaluate, prenas.specialize)"
        )
    check_data_name(recipe)
    return DATASETS[recipe.name](recipe)


def check_data_name(recipe: DataRecipe) -> None:
    """Raises ValueError, with the choices, for data that exist neither by name nor as own data."""
    if recipe.name not in DATASETS and recipe.name != OWN_DATA:
        raise unknown_name("data set", recipe.name, [*DATASETS, OWN_DATA])


def _digits(recipe: DataRecipe) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey: 60 % train, 20 % validation, 20 % test.

    The split is stratified and fixed, whatever the seed of a run. Pixels 0..16 become 8-bit grey
    first, so that a digit saved as a picture and loaded again gives the same input.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    everything = np.arange(len(labels))
    rest, test = train_test_split(everything, test_size=0.2, stratify=labels, random_state=0)
    train, validation = train_test_split(
        rest, test_size=0.25, stratify=labels[rest], random_state=0
    )
    mean, std = recipe.preprocessing.mean, recipe.preprocessing.std
    images = torch.from_numpy(pixels)[:, None].float().div(255)
    images = (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    def split(chosen: np.ndarray[Any, Any]) -> Dataset[Any]:
        return cast(Dataset[Any], TensorDataset(images[chosen], torch.from_numpy(labels[chosen])))

    return ImageData(
        train=split(train),
        validation=split(validation),
        test=split(test),
        class_names=tuple(map(str, digits.target_names)),
        augmentation=BatchAffine(
            recipe.augmentation, [-m / s for m, s in zip(mean, std, strict=True)]
        ),
    )


DATASETS: dict[str, Callable[[DataRecipe], ImageData]] = {"digits": _digits}
