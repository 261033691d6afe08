"""Reproducible batches.

Every random change to a sample is drawn from (seed, epoch, image, copy), so a batch does not
depend on the number of workers or processes, or on what ran before.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from prenas.data.ahead import sent, sent_ahead
from prenas.data.augmentation import BatchAugmentation
from prenas.data.images import Augment, Batch, ImageData, ImageSource, Mix, as_batch, num_samples
from prenas.data.pictures import Pictures
from prenas.data.reading import (
    READ_AHEAD,
    Chunk,
    Reader,
    Sample,
    as_loader,
    is_whole,
    isolated,
    read,
)
from prenas.families.base import Settings
from prenas.processes import ALONE, Processes
from prenas.randomness import isolated_global_state, numpy_generator, torch_generator

_Changed = tuple[Tensor, Tensor, list[np.random.Generator]]
"""Images, labels and generators: one process' part of a batch."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Changes:
    """What is done to batches after reading, in whichever process read them."""

    augmentation: Augment | None
    mixing: Mix | None
    settings: Settings
    seed: int
    rank: int
    on_bytes: bool
    """Whether pictures may still be uint8."""

    def __call__(self, chunk: Chunk, batch: Any) -> _Changed | ValueError:
        """Checks a batch, then changes it. An unsuitable batch returns its ValueError.

        If it were raised in a worker process, its message would arrive after a long traceback.
        """
        try:
            images, labels = as_batch(batch, self.settings, may_be_bytes=self.on_bytes)
            return self.changed(chunk, images, labels)
        except ValueError as error:
            return error

    def changed(self, chunk: Chunk, images: Tensor, labels: Tensor) -> _Changed:
        """Augments and mixes, possibly in place."""
        seed, epoch = self.seed, chunk.epoch
        generators = [numpy_generator(seed, "sample", epoch, *s.position) for s in chunk.samples]
        if self.augmentation is not None:
            images = self.augmentation(images, generators)
        if self.mixing is not None:  # pairs images of one process
            position = (epoch, chunk.number, self.rank) if self.rank else (epoch, chunk.number)
            with isolated_global_state(seed, "mixing", *position):
                images, labels = self.mixing(images, labels)
        return images, labels, generators


def training_batches(
    data: ImageData,
    settings: Settings,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    start: int = 0,
    processes: Processes = ALONE,
) -> Iterator[Batch]:
    """One epoch of augmented training batches, in an order drawn from (seed, epoch).

    Args:
        batch_size: images per batch, over all processes together.
        start: number of batches to skip at the beginning, when an epoch is resumed.
        processes: each process gets its share of every batch.

    Raises:
        ValueError: the images or labels of a batch do not suit the network.
    """
    epochs = training_epochs(
        data,
        settings,
        batch_size,
        seed,
        range(epoch, epoch + 1),
        start=start,
        processes=processes,
    )
    yield from next(epochs)


def training_epochs(
    data: ImageData,
    settings: Settings,
    batch_size: int,
    seed: int,
    epochs: range,
    *,
    start: int = 0,
    most: int | None = None,
    processes: Processes = ALONE,
    device: torch.device = _CPU,
) -> Iterator[Iterator[Batch]]:
    """The batches of `training_batches` for every epoch; use up each before asking for the next.

    The processes that read a data set go on from epoch to epoch: while the last batches of an epoch
    are used, and while its subnets are validated, they read the first ones of the next.

    Args:
        start: number of batches to skip at the beginning of the first epoch.
        most: number of batches of all epochs together, if fewer than all are needed.
        device: where images and labels are sent; CUDA copies a batch while it works on another.

    Raises:
        ValueError: the images or labels of a batch do not suit the network.
    """
    source = as_loader(data.train, batch_size, data.num_workers)
    on_bytes = _suits_bytes(source, data)
    changes = _Changes(data.augmentation, data.mixing, settings, seed, processes.rank, on_bytes)

    def send(batch: Batch) -> Batch:
        images = _arrived(batch.images, source, device)
        return batch._replace(images=images, labels=sent(batch.labels, device))

    if isinstance(source, DataLoader):
        for epoch in epochs:
            skipped = start if epoch == epochs.start else 0
            batches = _batches_of_loader(source, changes, epoch, skipped, processes)
            yield sent_ahead(batches, device, send)
        return
    order = _Order(num_samples(source), data.repeats, batch_size, seed, processes)
    places = _places(epochs, order.num_batches, start, most)
    chunks = (chunk for place in places for chunk in order.chunks(*place))
    reader = Reader(source, seed, changes, sends_bytes=on_bytes)
    read_ahead = read(
        reader,
        chunks,
        _num_readers(source, data.num_workers),
        first_epoch=epochs.start,
        pins=_may_pin(source, device),
    )
    for _, numbers in _places(epochs, order.num_batches, start, most):
        yield sent_ahead(_batches_of_dataset(read_ahead, order, numbers, changes), device, send)


def _num_readers(source: ImageSource, asked: int) -> int:
    """Processes for a training set. Tensors of a user may be on a device, where only one can go."""
    return 0 if isinstance(source, TensorDataset) else asked


def _may_pin(source: ImageSource, device: torch.device) -> bool:
    """Whether batches go through pinned memory. Tensors of a user may be on a device already."""
    return device.type == "cuda" and not isinstance(source, TensorDataset)


def _arrived(images: Tensor, source: ImageSource, device: torch.device) -> Tensor:
    """Images on the device, as normalised floats if they are pictures that travel as bytes."""
    images = sent(images, device)
    if images.dtype != torch.uint8:
        return images
    assert isinstance(source, Pictures), "only pictures travel as bytes"
    return source.as_floats(images)


def _suits_bytes(source: ImageSource, data: ImageData) -> bool:
    """Whether nothing happens to training images that needs them normalised.

    Erasing fills with normal numbers, mixing averages, and moved images are interpolated.
    """
    changes = data.augmentation
    only_mirrors = isinstance(changes, BatchAugmentation) and changes.only_mirrors
    return (
        isinstance(source, Pictures) and data.mixing is None and (changes is None or only_mirrors)
    )


def bytes_ahead(data: ImageData, settings: Settings, batch_size: int) -> int:
    """Shared memory for the training batches that the readers of one process prepare ahead.

    Args:
        batch_size: images of this process in a batch.
    """
    source = data.train
    if isinstance(source, (DataLoader, IterableDataset)):
        return 0
    bytes_per_value = 1 if _suits_bytes(source, data) else torch.float32.itemsize
    image = settings.in_chans * math.prod(settings.image_size) * bytes_per_value
    num_readers = _num_readers(source, data.num_workers)
    return num_readers * READ_AHEAD * min(batch_size, num_samples(source)) * image


def _places(
    epochs: range, num_batches: int, start: int, most: int | None
) -> Iterator[tuple[int, range]]:
    """Each epoch with the numbers of the batches that are needed of it."""
    left = num_batches * len(epochs) if most is None else most
    for epoch in epochs:
        numbers = range(start, num_batches)[:left]
        yield epoch, numbers
        start, left = 0, left - len(numbers)


@dataclass(frozen=True)
class _Order:
    """Which samples the batches hold. Of an epoch, only the order of its images is ever listed."""

    num_images: int
    repeats: int
    batch_size: int
    seed: int
    processes: Processes

    @property
    def num_batches(self) -> int:
        """Of an epoch."""
        return -(-self.num_images // self.batch_size)

    def total(self, number: int) -> int:
        """Number of samples of a batch in all processes."""
        return len(self._places(number))

    def share(self, number: int) -> Sequence[int]:
        """The places of this process' samples of a batch in the epoch."""
        return self.processes.share(self._places(number))

    def chunks(self, epoch: int, numbers: range) -> Iterator[Chunk]:
        """This process' part of these batches; of some it has none, at the end of an epoch."""
        generator = torch_generator(self.seed, "shuffle", epoch)
        order = torch.randperm(self.num_images, generator=generator).numpy()
        for number in numbers:
            if places := self.share(number):
                copies = (divmod(place, self.repeats) for place in places)
                samples = [Sample(int(order[which]), copy) for which, copy in copies]
                yield Chunk(epoch, number, samples)

    def _places(self, number: int) -> range:
        return range(self.num_images)[number * self.batch_size :][: self.batch_size]


def _batches_of_dataset(
    read_ahead: Generator[Any, None, None], order: _Order, numbers: range, changes: _Changes
) -> Iterator[Batch]:
    """The next of the batches that are read; without images where this process has none."""
    settings = changes.settings
    for number in numbers:
        if order.share(number):
            batch = next(read_ahead)
            if isinstance(batch, ValueError):
                read_ahead.close()
                raise batch
        else:  # fewer images than processes, at the end of the epoch
            images = torch.empty(0, settings.in_chans, *settings.image_size)
            batch = images, torch.empty(0, dtype=torch.long), []
        images, labels, generators = batch
        yield Batch(images, labels, generators, order.total(number))


def _batches_of_loader(
    source: DataLoader[Any], changes: _Changes, epoch: int, start: int, processes: Processes
) -> Iterator[Batch]:
    """A loader makes its own batches, so every process reads them all and keeps its share."""
    num_seen = 0
    for number, batch in enumerate(isolated(source, changes.seed, epoch)):
        images, labels = as_batch(batch, changes.settings)
        samples = [Sample(num_seen + offset) for offset in range(len(labels))]
        num_seen += len(labels)
        if number < start:
            continue
        part = Chunk(epoch, number, list(processes.share(samples)))
        own = slice(processes.rank, None, processes.world_size)
        images, labels = images[own].clone(), labels[own]  # the loader may still use its tensors
        if part.samples:
            yield Batch(*changes.changed(part, images, labels), len(samples))
        else:
            yield Batch(images, labels, [], len(samples))


def evaluation_batches(
    source: ImageSource,
    settings: Settings,
    batch_size: int,
    num_workers: int = 0,
    *,
    processes: Processes = ALONE,
    device: torch.device = _CPU,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, labels) in the order of the source, without augmentation.

    Images are [B, C, H, W], or [B, crops, C, H, W] if several crops per image are evaluated.

    Args:
        processes: each process gets its share of the images; with a loader, of the batches.
        device: where images and labels are sent, as for a training.
    """

    def send(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = pair
        return _arrived(images, source, device), sent(labels, device)

    source = as_loader(source, batch_size, num_workers)
    part = slice(None)
    if isinstance(source, DataLoader):
        part = slice(processes.rank, None, processes.world_size)
        loader = isolated(source, seed=0, epoch=0)
    else:
        own = processes.share(range(num_samples(source)))
        chunks = _chunks(own, batch_size)
        reader = Reader(source, seed=0, sends_bytes=True)
        readers = 0 if is_whole(source) else num_workers
        loader = read(reader, chunks, readers, pins=_may_pin(source, device))
    are_bytes = isinstance(source, Pictures)
    own_batches = islice(loader, part.start, part.stop, part.step)
    pairs = (
        as_batch(batch, settings, with_crops=True, may_be_bytes=are_bytes) for batch in own_batches
    )
    with closing(loader):
        yield from sent_ahead(pairs, device, send)


def _chunks(images: Sequence[int], size: int) -> Iterator[Chunk]:
    for number, start in enumerate(range(0, len(images), size)):
        yield Chunk(0, number, [Sample(image) for image in images[start : start + size]])


def labelled_sample(
    source: ImageSource, settings: Settings, num_images: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Images and labels for a search on data: drawn from a data set, or the first of a loader.

    Raises:
        ValueError: there are fewer images than requested.
    """
    if num_samples(source) < num_images:
        raise ValueError(
            f"search.num_images is {num_images}, but the training split has only "
            f"{num_samples(source)} images: use {num_samples(source)} or fewer"
        )
    if isinstance(source, (DataLoader, IterableDataset)):
        batches = []
        for batch in evaluation_batches(source, settings, num_images):
            batches.append(batch)
            if sum(len(labels) for _, labels in batches) >= num_images:
                break
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if len(labels) < num_images:
            raise ValueError(
                f"search.num_images is {num_images}, but the training loader yields only "
                f"{len(labels)} images: use {len(labels)} or fewer"
            )
        return images[:num_images], labels[:num_images]
    subset = drawn_subset(source, num_images, seed, "importance images")
    return next(evaluation_batches(subset, settings, num_images))


def drawn_subset(source: ImageSource, num_images: int, seed: int, purpose: str) -> Dataset[Any]:
    """`num_images` images of a data set, drawn without replacement from (seed, purpose).

    Raises:
        ValueError: the source is a loader, or has fewer images. The message lacks its subject, the
            name of the source, which the caller adds.
    """
    if isinstance(source, (DataLoader, IterableDataset)):
        raise ValueError("is a DataLoader, from which images cannot be drawn at random")
    if num_samples(source) < num_images:
        raise ValueError(f"has only {num_samples(source)} images")
    generator = torch_generator(seed, purpose)
    chosen = torch.randperm(num_samples(source), generator=generator)[:num_images].tolist()
    return Subset(source, chosen)


def check_splits(data: ImageData, settings: Settings) -> None:
    """Checks the first batch of every evaluated split before any expensive work starts.

    Raises:
        ValueError: a split is empty or does not suit a network with these settings.
    """
    for name, source in data.splits.items():
        if not isinstance(source, DataLoader) and num_samples(source) == 0:
            raise ValueError(f"the {name} split is empty: it needs at least one image")
        if next(evaluation_batches(source, settings, 1), None) is None:
            raise ValueError(f"the {name} loader is empty: check drop_last and its sampler")
