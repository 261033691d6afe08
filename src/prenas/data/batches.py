"""Reproducible batches.

Every random change to a sample is drawn from (seed, epoch, image, copy), so a batch does not
depend on the number of workers or processes, or on what ran before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from prenas.data.images import Augment, Batch, ImageData, ImageSource, Mix, as_batch, num_samples
from prenas.data.reading import Chunk, Reader, Sample, as_loader, isolated, read
from prenas.families.base import Settings
from prenas.processes import ALONE, Processes
from prenas.randomness import isolated_global_state, numpy_generator, torch_generator

_Changed = tuple[Tensor, Tensor, list[np.random.Generator]]
"""Images, labels and generators: one process' part of a batch."""


@dataclass(frozen=True)
class _Changes:
    """What is done to the batches of one epoch after reading, in whichever process read them."""

    augmentation: Augment | None
    mixing: Mix | None
    settings: Settings
    seed: int
    epoch: int
    rank: int

    def __call__(self, chunk: Chunk, batch: Any) -> _Changed | ValueError:
        """Checks a batch, then changes it. An unsuitable batch returns its ValueError.

        If it were raised in a worker process, its message would arrive after a long traceback.
        """
        try:
            return self.changed(chunk, *as_batch(batch, self.settings))
        except ValueError as error:
            return error

    def changed(self, chunk: Chunk, images: Tensor, labels: Tensor) -> _Changed:
        """Augments and mixes, possibly in place."""
        seed, epoch = self.seed, self.epoch
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
    source = as_loader(data.train, batch_size, data.num_workers)
    changes = _Changes(data.augmentation, data.mixing, settings, seed, epoch, processes.rank)
    if isinstance(source, DataLoader):
        yield from _batches_of_loader(source, changes, start, processes)
    else:
        yield from _batches_of_dataset(source, data, changes, batch_size, start, processes)


def _batches_of_dataset(
    source: Dataset[Any],
    data: ImageData,
    changes: _Changes,
    batch_size: int,
    start: int,
    processes: Processes,
) -> Iterator[Batch]:
    """Reads only this process' samples."""
    settings, seed, epoch = changes.settings, changes.seed, changes.epoch
    generator = torch_generator(seed, "shuffle", epoch)
    order = torch.randperm(num_samples(source), generator=generator).tolist()
    repeated = (Sample(index, copy) for index in order for copy in range(data.repeats))
    samples = [sample for sample, _ in zip(repeated, order, strict=False)]
    whole = _chunks(samples, batch_size)[start:]
    own = [chunk._replace(samples=list(processes.share(chunk.samples))) for chunk in whole]
    reader = Reader(source, seed, epoch, changes)
    batches = read(reader, [chunk for chunk in own if chunk.samples], data.num_workers)
    for chunk, part in zip(whole, own, strict=True):
        if part.samples:
            batch = next(batches)
            if isinstance(batch, ValueError):
                raise batch
        else:  # fewer images than processes, at the end of the epoch
            images = torch.empty(0, settings.in_chans, *settings.image_size)
            batch = images, torch.empty(0, dtype=torch.long), []
        images, labels, generators = batch
        yield Batch(images, labels, generators, len(chunk.samples))


def _batches_of_loader(
    source: DataLoader[Any], changes: _Changes, start: int, processes: Processes
) -> Iterator[Batch]:
    """A loader makes its own batches, so every process reads them all and keeps its share."""
    num_seen = 0
    for number, batch in enumerate(isolated(source, changes.seed, changes.epoch)):
        images, labels = as_batch(batch, changes.settings)
        samples = [Sample(num_seen + offset) for offset in range(len(labels))]
        num_seen += len(labels)
        if number < start:
            continue
        part = Chunk(number, list(processes.share(samples)))
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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, labels) in the order of the source, without augmentation.

    Images are [B, C, H, W], or [B, crops, C, H, W] if several crops per image are evaluated.

    Args:
        processes: each process gets its share of the images; with a loader, of the batches.
    """
    source = as_loader(source, batch_size, num_workers)
    loader: Iterable[Any]
    if isinstance(source, DataLoader):
        rank, world_size = processes
        loader = islice(isolated(source, seed=0, epoch=0), rank, None, world_size)
    else:
        indices = processes.share(range(num_samples(source)))
        samples = [Sample(index) for index in indices]
        reader = Reader(source, seed=0, epoch=0)
        loader = read(reader, _chunks(samples, batch_size), num_workers)
    for batch in loader:
        yield as_batch(batch, settings, with_crops=True)


def _chunks(samples: list[Sample], size: int) -> list[Chunk]:
    starts = range(0, len(samples), size)
    return [Chunk(number, samples[i : i + size]) for number, i in enumerate(starts)]


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
