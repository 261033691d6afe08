"""Reads data sets in whole batches, here or in processes of their own.

A batch is made where it is read, from the file to the last change, so that the process that trains
only receives it: the memory that it is made in is shared.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, groupby
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from prenas.data.images import ImageSource, num_samples
from prenas.data.pictures import Pictures, Pixels
from prenas.randomness import derive_seed, isolated_global_state, reseed_global_state


class Sample(NamedTuple):
    """Which image, and which of its repeated augmentations."""

    image: int
    copy: int = 0

    @property
    def position(self) -> tuple[int, ...]:
        """What its randomness is named by, besides seed and epoch."""
        return (self.image, self.copy) if self.copy else (self.image,)


class Chunk(NamedTuple):
    """What one process reads at once: the number of a batch, and samples of it, at least one."""

    number: int
    samples: list[Sample]


class Reader(Dataset[Any]):
    """Whole batches (images, labels) of a data set, perhaps changed, by their chunks.

    Transforms that draw from global generators see them seeded per (epoch, sample).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        seed: int,
        epoch: int,
        change: Callable[[Chunk, Any], Any] | None = None,
    ) -> None:
        """`change`: (chunk, batch) -> what is given in place of the batch."""
        self.seed, self.epoch = seed, epoch
        self._dataset, self._change = dataset, change

    def __getitem__(self, chunk: Chunk) -> Any:
        batch = self._read(chunk.samples)
        return batch if self._change is None else self._change(chunk, batch)

    @property
    def is_whole(self) -> bool:
        """Whether batches are parts of tensors in memory, which take no processes to read."""
        return isinstance(self._dataset, (TensorDataset, Pixels))

    def _read(self, samples: Sequence[Sample]) -> Any:
        if self.is_whole:
            return self._dataset[[sample.image for sample in samples]]
        with isolated_global_state(self.seed, "transforms", self.epoch):
            if isinstance(self._dataset, Pictures):
                return self._read_pictures(self._dataset, samples)
            return default_collate([self._seeded(s)[s.image] for s in samples])

    def _read_pictures(
        self, pictures: Pictures, samples: Sequence[Sample]
    ) -> tuple[Tensor, Tensor]:
        """A picture is decoded once for all its copies that follow each other."""
        pixels, labels = [], []
        for index, copies in groupby(samples, key=lambda sample: sample.image):
            picture, label = pictures.read(index)
            for sample in copies:
                pixels.append(self._seeded(sample).transform(picture))
                labels.append(label)
        images = torch.empty(len(pixels), *pixels[0].shape)
        if get_worker_info() is not None:  # before it is filled: else it would be copied to be sent
            images.share_memory_()  # type: ignore[no-untyped-call]
        return pictures.normalized(pixels, out=images), torch.tensor(labels)

    def _seeded(self, sample: Sample) -> Any:
        """The data set, ready to draw what belongs to a sample."""
        reseed_global_state(self.seed, "transforms", self.epoch, *sample.position)
        return self._dataset


def read(reader: Reader, chunks: Sequence[Chunk], num_workers: int) -> Iterator[Any]:
    """Batches of the given chunks, in their order."""
    if reader.is_whole:
        return map(reader.__getitem__, chunks)
    loader: DataLoader[Any] = DataLoader(
        reader,
        sampler=chunks,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        multiprocessing_context=_start_method(num_workers),
        worker_init_fn=_outlive_requests,
    )
    return isolated(loader, reader.seed, reader.epoch)


def _unchanged(batch: Any) -> Any:
    return batch


def as_loader(source: ImageSource, batch_size: int, num_workers: int) -> ImageSource:
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


def isolated(loader: DataLoader[Any], seed: int, epoch: int) -> Iterator[Any]:
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
            except (OSError, EOFError) as error:
                # A finished batch of a reader that died before it could hand over the memory.
                if _has_lost_a_reader(iterator):
                    raise _loss(error) from error
                raise
        yield batch


def _has_lost_a_reader(iterator: Iterator[Any]) -> bool:
    workers = getattr(iterator, "_workers", ())
    return bool(wait([worker.sentinel for worker in workers], timeout=1.0))


def _loss(error: Exception) -> ChildProcessError:
    return ChildProcessError(
        f"a process that reads images has died ({error}), as happens when memory or /dev/shm "
        "is full: set data.num_workers lower, or 0, and give the command again"
    )


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
        raise _loss(error) from error


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
