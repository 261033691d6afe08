"""Reads data sets in full batches, in this process or in worker processes.

A worker does everything to a batch, from reading files to the last random change, in shared memory,
so that the training process only receives it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, groupby
from multiprocessing import get_context
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
from prenas.memory import give_back_freed_memory
from prenas.randomness import derive_seed, isolated_global_state, reseed_global_state

READ_AHEAD = 2
"""Batches that each reader prepares before they are needed."""


class Sample(NamedTuple):
    """Which image, and which of its repeated augmentations."""

    image: int
    copy: int = 0

    @property
    def position(self) -> tuple[int, ...]:
        """What its random numbers depend on, in addition to seed and epoch."""
        return (self.image, self.copy) if self.copy else (self.image,)


class Chunk(NamedTuple):
    """What one process reads at once: one or more samples of a batch of an epoch."""

    epoch: int
    number: int
    """Of the batch in its epoch."""
    samples: list[Sample]


class Reader(Dataset[Any]):
    """Reads a chunk of a data set as one batch (images, labels), possibly changed.

    Transforms that draw from global generators see them seeded per (epoch, sample).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        seed: int,
        change: Callable[[Chunk, Any], Any] | None = None,
        *,
        sends_bytes: bool = False,
    ) -> None:
        """Reads without changes, or with them.

        Args:
            change: (chunk, batch) -> what is returned instead of the batch.
            sends_bytes: a reader process returns pictures as uint8, which are a quarter of the
                floats, and leaves it to the receiver to normalise them.
        """
        self.seed = seed
        self._dataset, self._change = dataset, change
        self._sends_bytes = sends_bytes

    def __getitem__(self, chunk: Chunk) -> Any:
        batch = self._read(chunk)
        return batch if self._change is None else self._change(chunk, batch)

    def _read(self, chunk: Chunk) -> Any:
        if is_whole(self._dataset):
            return self._dataset[[sample.image for sample in chunk.samples]]
        with isolated_global_state(self.seed, "transforms", chunk.epoch):
            if isinstance(self._dataset, Pictures):
                return self._read_pictures(self._dataset, chunk)
            return default_collate([self._seeded(chunk, s)[s.image] for s in chunk.samples])

    def _read_pictures(self, pictures: Pictures, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Decodes a picture once for all its consecutive copies."""
        pixels, labels = [], []
        for index, copies in groupby(chunk.samples, key=lambda sample: sample.image):
            picture, label = pictures.read(index)
            for sample in copies:
                pixels.append(self._seeded(chunk, sample).transform(picture))
                labels.append(label)
        is_sent = get_worker_info() is not None
        dtype = torch.uint8 if is_sent and self._sends_bytes else torch.float32
        images = torch.empty(len(pixels), *pixels[0].shape, dtype=dtype)
        if is_sent:  # shared before it is filled, which saves a copy
            images.share_memory_()  # type: ignore[no-untyped-call]
        if dtype == torch.uint8:
            torch.stack(pixels, out=images)
        else:
            pictures.normalized(pixels, out=images)
        return images, torch.tensor(labels)

    def _seeded(self, chunk: Chunk, sample: Sample) -> Any:
        """The data set, with the global generators seeded for a sample."""
        reseed_global_state(self.seed, "transforms", chunk.epoch, *sample.position)
        return self._dataset


def is_whole(dataset: Dataset[Any]) -> bool:
    """Whether batches are slices of tensors in memory, which need no worker processes."""
    return isinstance(dataset, (TensorDataset, Pixels))


def read(
    reader: Reader,
    chunks: Iterable[Chunk],
    num_workers: int,
    *,
    first_epoch: int = 0,
    pins: bool = False,
) -> Generator[Any, None, None]:
    """Batches of the given chunks, in their order.

    The chunks are asked for a few batches ahead of the reading.

    Args:
        pins: put the batches into pinned memory, from which an accelerator copies.
    """
    if num_workers:
        _require_shared_memory(num_workers)
    loader: DataLoader[Any] = DataLoader(
        reader,
        sampler=chunks,
        batch_size=None,
        prefetch_factor=READ_AHEAD if num_workers else None,
        pin_memory=pins,
        collate_fn=_unchanged,
        num_workers=num_workers,
        multiprocessing_context=_start_method(num_workers),
        worker_init_fn=_outlive_requests,
    )
    return isolated(loader, reader.seed, first_epoch)


def _unchanged(batch: Any) -> Any:
    return batch


def as_loader(source: ImageSource, batch_size: int, num_workers: int) -> ImageSource:
    """Wraps an iterable data set in a loader; returns any other source as it is."""
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
    """Forked processes share the data in memory; others would each be sent a copy."""
    return "fork" if num_workers and sys.platform == "linux" else None


def isolated(loader: DataLoader[Any], seed: int, epoch: int) -> Generator[Any, None, None]:
    """Iterates a loader so that all its global draws (order, worker seeds) depend on the seed."""
    for part in (loader.dataset, loader.sampler):  # reshuffles streams and samplers
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    for own in (loader, loader.sampler):  # else a continued run would repeat the first order
        if isinstance(generator := getattr(own, "generator", None), torch.Generator):
            generator.manual_seed(derive_seed(seed, "loader's own", epoch))
    if loader.num_workers:
        give_back_freed_memory()
    with isolated_global_state(seed, "loader", epoch), _requests_held(loader):
        iterator = iter(loader)
    try:
        for number in count():
            with isolated_global_state(seed, "loader", epoch, number), readers_watched():
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except (OSError, EOFError) as error:
                    # A reader finished this batch, but crashed before it could pass on the memory.
                    if _has_lost_a_reader(iterator):
                        raise _loss(error) from error
                    raise
            yield batch
    finally:
        if not loader.persistent_workers:
            _end_readers(iterator)


def _end_readers(iterator: Iterator[Any]) -> None:
    """Ends the processes of a reading, also of one that failed or was given up.

    An error refers to the iterator, and so leaves it to the garbage collection, which would wait
    five seconds for each of them.
    """
    if (end := getattr(iterator, "_shutdown_workers", None)) is not None:
        end()


def _has_lost_a_reader(iterator: Iterator[Any]) -> bool:
    workers = getattr(iterator, "_workers", ())
    ended = wait([worker.sentinel for worker in workers], timeout=1.0)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()  # else PyTorch's handler of SIGCHLD would raise once more, anywhere
    return bool(ended)


def _require_shared_memory(num_workers: int) -> None:
    """Raises ChildProcessError if processes cannot share anything on this machine.

    PyTorch would notice it half-way through starting them.
    """
    try:
        get_context(_start_method(num_workers)).Lock()
    except OSError as error:
        raise _no_shared_memory(error.strerror or str(error)) from error


def _no_shared_memory(reason: str) -> ChildProcessError:
    return ChildProcessError(
        f"the processes that read images cannot share memory ({reason}): /dev/shm is too small or "
        "not writable. Enlarge it (docker run --shm-size=8g), or read images in the main process "
        "(--set data.num_workers=0), and give the command again"
    )


def _loss(error: Exception) -> ChildProcessError:
    return ChildProcessError(
        f"a process that reads images crashed ({error}), probably because memory or /dev/shm is "
        "full: lower data.num_workers (0 reads in the main process) and give the command again"
    )


@contextmanager
def readers_watched() -> Iterator[None]:
    """Wraps all code that uses batches: PyTorch may notice a crashed reader anywhere in it.

    Raises:
        ChildProcessError: a process that reads images crashed, or cannot share memory with this
            one.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip()
        if "DataLoader worker" not in text:
            raise
        last = text.rpartition("\n")[2]  # an error in a worker comes with its traceback
        if "/torch_" in last or "shared memory" in last:
            raise _no_shared_memory(last.rpartition(": ")[2]) from error
        if text.startswith("Caught "):
            raise
        raise _loss(error) from error


@contextmanager
def _requests_held(loader: DataLoader[Any]) -> Iterator[None]:
    """Starts readers with requests to stop blocked: else one could die before it blocks them."""
    starts_ours = getattr(loader, "worker_init_fn", None) is _outlive_requests
    if not starts_ours or not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_requests(number: int) -> None:
    """Makes a reader stop only when its own training process asks for it.

    Stopping a job often signals all its processes, but the training still has to finish its step.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_parents_signal, daemon=True).start()


def _await_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
