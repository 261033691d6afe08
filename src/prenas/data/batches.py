"""Batches whose randomness is named.

Every random change of a sample is drawn from (seed, epoch, image, copy), so a batch does not
depend on how many workers or processes make it, or on what ran before.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from prenas.data.images import Batch, ImageData, ImageSource, as_batch, num_samples
from prenas.data.pictures import Pixels
from prenas.families.base import Settings
from prenas.processes import ALONE, Processes
from prenas.randomness import derive_seed, isolated_global_state, numpy_generator, torch_generator


class _Sample(NamedTuple):
    """Which image, and which of its repeated augmentations."""

    image: int
    copy: int = 0

    @property
    def position(self) -> tuple[int, ...]:
        """What its randomness is named by, besides seed and epoch."""
        return (self.image, self.copy) if self.copy else (self.image,)


class _SeededDataset(Dataset[Any]):
    """A data set whose transforms draw from global generators, seeded per (epoch, sample)."""

    def __init__(self, dataset: Dataset[Any], seed: int, epoch: int) -> None:
        self._dataset, self._seed, self._epoch = dataset, seed, epoch

    def __getitem__(self, sample: _Sample) -> Any:
        with isolated_global_state(self._seed, "transforms", self._epoch, *sample.position):
            return self._dataset[sample.image]


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
        batch_size: images of a batch in all processes together.
        start: batches to leave out at the beginning, as a resumed epoch does.
        processes: each gets its share of every batch.

    Raises:
        ValueError: a batch whose images or labels do not suit the network.
    """
    source = _as_loader(data.train, batch_size, data.num_workers)
    if isinstance(source, DataLoader):
        read = _shares_of_loader(source, settings, seed, epoch, start, processes)
    else:
        read = _shares_of_dataset(source, data, settings, batch_size, seed, epoch, start, processes)
    for number, (samples, images, labels, total) in enumerate(read, start=start):
        generators = [numpy_generator(seed, "sample", epoch, *s.position) for s in samples]
        if data.augmentation is not None and samples:
            images = data.augmentation(images, generators)
        if data.mixing is not None and samples:  # pairs images of one process
            place = (epoch, number, processes.rank) if processes.rank else (epoch, number)
            with isolated_global_state(seed, "mixing", *place):
                images, labels = data.mixing(images, labels)
        yield Batch(images, labels, generators, total)


_Share = tuple[Sequence[_Sample], Tensor, Tensor, int]
"""Samples of one process, their images and labels, and how many all processes have."""


def _shares_of_dataset(
    source: Dataset[Any],
    data: ImageData,
    settings: Settings,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int,
    processes: Processes,
) -> Iterator[_Share]:
    """Reads nothing but this process' own samples."""
    generator = torch_generator(seed, "shuffle", epoch)
    order = torch.randperm(num_samples(source), generator=generator).tolist()
    repeated = (_Sample(index, copy) for index in order for copy in range(data.repeats))
    samples = [sample for sample, _ in zip(repeated, order, strict=False)]
    chunks = _chunks(samples, batch_size)[start:]
    own = [list(processes.share(chunk)) for chunk in chunks]
    batches = iter(_read(source, [c for c in own if c], data.num_workers, seed, epoch))
    for chunk, samples in zip(chunks, own, strict=True):
        if samples:
            images, labels = as_batch(next(batches), settings)
        else:  # fewer images than processes, at the end of the epoch
            images = torch.empty(0, settings.in_chans, *settings.image_size)
            labels = torch.empty(0, dtype=torch.long)
        yield samples, images, labels, len(chunk)


def _shares_of_loader(
    source: DataLoader[Any],
    settings: Settings,
    seed: int,
    epoch: int,
    start: int,
    processes: Processes,
) -> Iterator[_Share]:
    """A loader divides its images itself: every process reads all, and keeps its share."""
    num_seen = 0
    for number, batch in enumerate(_isolated(source, seed, epoch)):
        images, labels = as_batch(batch, settings)
        samples = [_Sample(num_seen + place) for place in range(len(labels))]
        num_seen += len(labels)
        if number >= start:
            own = slice(processes.rank, None, processes.world_size)
            yield processes.share(samples), images[own], labels[own], len(labels)


def _as_loader(source: ImageSource, batch_size: int, num_workers: int) -> ImageSource:
    """A data set that only iterates becomes a loader; others stay what they are."""
    if not isinstance(source, IterableDataset):
        return source
    num_samples(source)  # refuses one without a length
    return DataLoader(
        source,
        batch_size=batch_size,
        num_workers=num_workers,
        multiprocessing_context=_start_method(num_workers),
        worker_init_fn=_outlive_requests,
    )


def _start_method(num_workers: int) -> str | None:
    """Forked processes share what is held in memory; others would be sent a copy each."""
    return "fork" if num_workers and sys.platform == "linux" else None


def _read(
    dataset: Dataset[Any],
    chunks: Sequence[list[_Sample]],
    num_workers: int,
    seed: int,
    epoch: int,
) -> Iterable[Any]:
    """Batches (images, labels) of the given samples."""
    if isinstance(dataset, (TensorDataset, Pixels)):  # no transforms: whole batches at once
        return (dataset[[sample.image for sample in chunk]] for chunk in chunks)
    loader: DataLoader[Any] = DataLoader(
        _SeededDataset(dataset, seed, epoch),
        batch_sampler=chunks,
        num_workers=num_workers,
        multiprocessing_context=_start_method(num_workers),
        worker_init_fn=_outlive_requests,
    )
    return _isolated(loader, seed, epoch)


def _isolated(loader: DataLoader[Any], seed: int, epoch: int) -> Iterator[Any]:
    """Iterates a loader while all its global draws (order, worker seeds) come from the seed."""
    for part in (loader.dataset, loader.sampler):  # how streams and samplers are shuffled anew
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    for own in (loader, loader.sampler):  # else a continued training would meet its first order
        if isinstance(generator := getattr(own, "generator", None), torch.Generator):
            generator.manual_seed(derive_seed(seed, "loader's own", epoch))
    with isolated_global_state(seed, "loader", epoch):
        iterator = iter(loader)
    for number in count():
        with isolated_global_state(seed, "loader", epoch, number), readers_watched():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


@contextmanager
def readers_watched() -> Iterator[None]:
    """Around all that uses batches: PyTorch raises wherever it notices that a reader has died.

    Raises:
        ChildProcessError: a process that reads images has died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that reads images has died ({error}), as happens when memory or /dev/shm "
            "is full: set data.num_workers lower, or 0, and give the command again"
        ) from error


def _outlive_requests(number: int) -> None:
    """Makes a reader end when its own training says so, not when all processes are asked to stop.

    Who stops a job often signals all its processes; the training then finishes its step.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_parents_signal, daemon=True).start()


def _await_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def evaluation_batches(
    source: ImageSource,
    settings: Settings,
    batch_size: int,
    num_workers: int = 0,
    *,
    processes: Processes = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (images, labels) in the order of the source, without augmentation.

    Images are [B, C, H, W], or [B, crops, C, H, W] where several crops of each are evaluated.

    Args:
        processes: each gets its share of the images; of a loader, its share of the batches.
    """
    source = _as_loader(source, batch_size, num_workers)
    loader: Iterable[Any]
    if isinstance(source, DataLoader):
        rank, world_size = processes
        loader = islice(_isolated(source, seed=0, epoch=0), rank, None, world_size)
    else:
        indices = processes.share(range(num_samples(source)))
        samples = [_Sample(index) for index in indices]
        loader = _read(source, _chunks(samples, batch_size), num_workers, seed=0, epoch=0)
    for batch in loader:
        yield as_batch(batch, settings, with_crops=True)


def _chunks(samples: list[_Sample], size: int) -> list[list[_Sample]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


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
    if isinstance(source, (DataLoader, IterableDataset)):
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
    subset = drawn_subset(source, num_images, seed, "importance images")
    return next(evaluation_batches(subset, settings, num_images))


def drawn_subset(source: ImageSource, num_images: int, seed: int, purpose: str) -> Dataset[Any]:
    """So many images of a data set, drawn without repetition from (seed, purpose).

    Raises:
        ValueError: a loader, or fewer images; says so of the source, to be continued by the caller.
    """
    if isinstance(source, (DataLoader, IterableDataset)):
        raise ValueError("is a loader, from which no images can be drawn")
    if num_samples(source) < num_images:
        raise ValueError(f"has {num_samples(source)} images")
    generator = torch_generator(seed, purpose)
    chosen = torch.randperm(num_samples(source), generator=generator)[:num_images].tolist()
    return Subset(source, chosen)


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
