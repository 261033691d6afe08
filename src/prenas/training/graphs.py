"""The device's part of a training step as CUDA graphs, one for every set of subnets.

In an eager step, Python launches thousands of small kernels, and a fast device waits for it. A
graph launches all kernels of a step at once (PyTorch's `torch.cuda.CUDAGraph`). It repeats them
with the arguments that they were recorded with: whatever differs from step to step (images, labels,
noise, learning rates, a vote to stop) has to lie in tensors that stay where they are.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prenas.data import Batch
from prenas.families.base import Arch

STEPS_BEFORE = 3
"""Eager steps of the same subnets before they are recorded: they choose kernels, and make the state
of the optimiser, which must lie outside of the memory of the graph."""

_logger = logging.getLogger(__name__)

Compute = Callable[[Sequence[Arch], Batch, Tensor, Tensor], Tensor]
"""(subnets, batch, noise, vote to stop) -> the numbers of a step, without reading the device."""


class Recorder(Protocol):
    """Records work on a device, so that it can be repeated."""

    def aside(self) -> AbstractContextManager[object]:
        """Where work must run before it is recorded."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records work, which changes nothing yet; returns what repeats it.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA graphs. They share their memory: of several, only one runs at a time, and none
    needs anything that another has left there."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a stream of its own, after all work so far; what follows waits for it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """As `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads pin the memory of batches meanwhile, which a graph does not mind.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            work()
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """What records steps on a device; None if it launches them without delay anyway."""
    return CudaRecorder(device) if device.type == "cuda" else None


class _Fixed(NamedTuple):
    """Tensors that graphs read, in memory that stays."""

    batch: Batch
    noise: Tensor


class _Graph:
    """What is kept for a set of subnets."""

    def __init__(self, networks: tuple[object, ...]) -> None:
        self.networks = networks
        """They own buffers that the graph reads."""
        self.num_steps = 0
        self.replay: Callable[[], None] | None = None


class StepGraphs:
    """Computes steps: each set of subnets eagerly at first, then by its graph.

    Batches of another size than the first, such as the last of an epoch, are always eager, and so
    is everything once a recording has failed.

    Args:
        compute: the device's part of a step.
        networks: the networks of subnets. If they change, their graph is recorded anew.
        optimizer: gets its learning rates as tensors while a step is computed.
        size: images of a full batch.
        most_kept: graphs to keep, those used last.
    """

    def __init__(
        self,
        compute: Compute,
        networks: Callable[[Sequence[Arch]], tuple[object, ...]],
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        device: torch.device,
        *,
        size: int,
        most_kept: int,
    ) -> None:
        self._compute, self._networks, self._optimizer = compute, networks, optimizer
        self._record, self._size, self._most_kept = recorder, size, most_kept
        self._kept: OrderedDict[tuple[Arch, ...], _Graph] = OrderedDict()
        self._fixed: _Fixed | None = None
        self._works = True
        self._vote = torch.zeros((), device=device)
        self._numbers = torch.zeros(3, device=device)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["capturable"] = device.type == "cuda"

    def __call__(self, archs: Sequence[Arch], batch: Batch, noise: Tensor, *, stop: bool) -> Tensor:
        """The numbers of a step [3], on the device."""
        with self._record.aside(), self._rates_as_tensors():
            self._vote.fill_(float(stop))
            if len(batch.labels) != self._size or not self._works:
                return self._compute(archs, batch, noise, self._vote)
            return self._of_full_batch(tuple(archs), self._copied(batch, noise))

    def _of_full_batch(self, archs: tuple[Arch, ...], fixed: _Fixed) -> Tensor:
        graph = self._graph_of(archs)
        if graph.replay is None and graph.num_steps > STEPS_BEFORE:
            graph.replay = self._recorded(archs, fixed)
        if graph.replay is None:
            return self._compute(archs, *fixed, self._vote)
        graph.replay()
        return self._numbers.clone()

    def _graph_of(self, archs: tuple[Arch, ...]) -> _Graph:
        networks, graph = self._networks(archs), self._kept.get(archs)
        if graph is None or any(a is not b for a, b in zip(networks, graph.networks, strict=True)):
            graph = self._kept[archs] = _Graph(networks)
        self._kept.move_to_end(archs)
        if len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)
        graph.num_steps += 1
        return graph

    def _recorded(self, archs: tuple[Arch, ...], fixed: _Fixed) -> Callable[[], None] | None:
        def work() -> None:
            self._numbers.copy_(self._compute(archs, *fixed, self._vote))

        try:
            return self._record(work)
        except RuntimeError as error:
            self._works = False
            self._kept.clear()
            _logger.warning(
                "a step cannot be recorded as a CUDA graph (%s): the training goes on without "
                "graphs, with the same result",
                str(error).strip().partition("\n")[0],
            )
            return None

    def _copied(self, batch: Batch, noise: Tensor) -> _Fixed:
        """The batch and its noise, in the memory that graphs read."""
        fixed, given = self._fixed, (batch.images, batch.labels, noise)
        if fixed is None or _layouts(given) != _layouts(_tensors(fixed)):
            images, labels, own = (torch.empty_like(one) for one in given)
            fixed = _Fixed(batch._replace(images=images, labels=labels), own)
            self._fixed = fixed
            self._kept.clear()
        for ours, theirs in zip(_tensors(fixed), given, strict=True):
            ours.copy_(theirs)
        return fixed

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate, tensor in zip(groups, rates, self._rates, strict=True):
            group["lr"] = tensor.fill_(rate)
        try:
            yield
        finally:  # the schedule and checkpoints have numbers
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate


def _tensors(fixed: _Fixed) -> tuple[Tensor, Tensor, Tensor]:
    return fixed.batch.images, fixed.batch.labels, fixed.noise


def _layouts(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    return [(one.shape, one.stride(), one.dtype) for one in tensors]
