"""The device's part of a training step as CUDA graphs, one for every set of subnets.

In an eager step, Python launches thousands of small kernels, and a fast device waits for it. A
graph launches all kernels of a step at once (PyTorch's `torch.cuda.CUDAGraph`). It repeats them
with the arguments that they were recorded with: whatever differs from step to step (images, labels,
noise, learning rates, a vote to stop) has to lie in tensors that stay where they are.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prenas.data import Batch
from prenas.families.base import Arch
from prenas.imports import without_collection

STEPS_BEFORE = 3
"""Eager steps of the same subnets before they are recorded: they choose kernels, and make the state
of the optimiser, which must lie outside of the memory of the graph."""

MOST_GRAPHS = 64
"""Sets of subnets that are recorded; each graph holds some megabytes of the device. Further sets
stay eager, because none is given up for another: with a graph, PyTorch frees memory that others
share with it (pytorch#193402)."""

_MOST_COUNTED = 4096
"""Sets of subnets whose eager steps are counted, the last ones: random sets seldom return."""

_FIRST_VERSION = "2.14"
"""Of PyTorch. Earlier ones keep memory for good if a recording fails."""

_logger = logging.getLogger(__name__)

Compute = Callable[[Sequence[Arch], Batch, Tensor, Tensor], Tensor]
"""(subnets, batch, noise, vote to stop) -> the numbers of a step, without reading the device."""


class Recorder(Protocol):
    """Records work on a device, so that it can be repeated."""

    def aside(self) -> AbstractContextManager[object]:
        """Where work must run before it is recorded."""

    def __call__(self, work: Callable[[], None], *, is_first: bool) -> Callable[[], None]:
        """Records work, which changes nothing yet; returns what repeats it.

        Args:
            is_first: whether nothing that was recorded before is still kept.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA graphs. They share their memory: of several, only one runs at a time, and none
    needs anything that another has left there."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a stream of its own, after all work so far; what follows waits for it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def __call__(self, work: Callable[[], None], *, is_first: bool) -> Callable[[], None]:
        """As `Recorder`."""
        if is_first:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads pin the memory of batches meanwhile, which a graph does not mind.
        mode = "thread_local"
        gc.collect()  # now and not within: to free a graph would spoil one that is recorded
        with (
            without_collection(),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode),
        ):
            work()
        return graph.replay


def require_graphs(device: torch.device, num_processes: int) -> None:
    """Raises ValueError if steps on this device are to be recorded, but cannot be."""
    if device.type != "cuda":
        return
    if num_processes > 1:
        raise ValueError(
            f"training.cuda_graphs is for one process, but there are {num_processes}, which "
            "reduce their gradients between the kernels of a step: set training.cuda_graphs=false"
        )
    if torch.__version__ < _FIRST_VERSION:
        raise ValueError(
            f"training.cuda_graphs needs PyTorch {_FIRST_VERSION} or newer, and this is "
            f"{torch.__version__}: install a newer one, or set training.cuda_graphs=false"
        )


def recorder_for(device: torch.device) -> Recorder | None:
    """What records steps on a device; None if it launches them without delay anyway."""
    return CudaRecorder(device) if device.type == "cuda" else None


class _Fixed(NamedTuple):
    """Tensors that graphs read, in memory that stays."""

    batch: Batch
    noise: Tensor


class _Graph(NamedTuple):
    """A recorded step."""

    replay: Callable[[], None]
    networks: object
    """Those of its subnets: they own buffers that the graph reads."""


class StepGraphs:
    """Computes steps: each set of subnets eagerly at first, then by its graph.

    Batches that are smaller than others, such as the last of an epoch, are always eager, and so is
    everything once a recording has failed.

    Args:
        addresses: where the tensors lie that all subnets share; graphs end if they move.
        optimizer: gets its learning rates as tensors while a step is computed.
    """

    def __init__(
        self,
        addresses: Callable[[], object],
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self._find_addresses, self._optimizer, self._record = addresses, optimizer, recorder
        self._addresses: object = None
        self._kept: dict[tuple[Arch, ...], _Graph] = {}
        self._num_eager: OrderedDict[tuple[Arch, ...], int] = OrderedDict()
        self._fixed: _Fixed | None = None
        self._size = 0
        self._works = True
        self._vote = torch.zeros((), device=device)
        self._numbers = torch.zeros(3, device=device)
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["capturable"] = device.type == "cuda"
        self.num_replayed = 0

    def __call__(
        self,
        compute: Compute,
        networks: Callable[[], object],
        archs: tuple[Arch, ...],
        batch: Batch,
        noise: Tensor,
        *,
        stop: bool,
    ) -> Tensor:
        """The numbers of a step [3], on the device.

        Args:
            compute: the device's part of a step. It is not kept: what owns graphs should be freed
                with its last reference, and not by a collection of garbage, at any time.
            networks: returns those of the subnets.
        """
        with self._record.aside(), self._rates_as_tensors():
            self._vote.fill_(float(stop))
            if len(batch.labels) < self._size or not self._works:
                return compute(archs, batch, noise, self._vote)
            fixed = self._copied(batch, noise)
            self._forget_if_moved()
            graph = self._kept.get(archs)
            if graph is None and self._is_due(archs):
                graph = self._recorded(compute, networks, archs, fixed)
            if graph is None:
                return compute(archs, *fixed, self._vote)
            graph.replay()
            self.num_replayed += 1
            return self._numbers.clone()

    def _is_due(self, archs: tuple[Arch, ...]) -> bool:
        """Whether to record subnets now; otherwise counts an eager step of theirs."""
        number = self._num_eager.pop(archs, 0)
        if number >= STEPS_BEFORE and len(self._kept) < MOST_GRAPHS:
            return True
        self._num_eager[archs] = number + 1
        if len(self._num_eager) > _MOST_COUNTED:
            self._num_eager.popitem(last=False)
        return False

    def _recorded(
        self,
        compute: Compute,
        networks: Callable[[], object],
        archs: tuple[Arch, ...],
        fixed: _Fixed,
    ) -> _Graph | None:
        def work() -> None:
            self._numbers.copy_(compute(archs, *fixed, self._vote))

        try:
            replay = self._record(work, is_first=not self._kept)
        except RuntimeError as error:
            self._works = False
            self._forget()
            reason = str(error.__context__ or error)  # the end of a recording fails after its cause
            _logger.warning(
                "a step cannot be recorded as a CUDA graph (%s): the training goes on without "
                "graphs, with the same result",
                reason.strip().partition("\n")[0],
            )
            return None
        self._kept[archs] = found = _Graph(replay, networks())
        return found

    def _copied(self, batch: Batch, noise: Tensor) -> _Fixed:
        """The batch and its noise, in the memory that graphs read."""
        fixed, given = self._fixed, (batch.images, batch.labels, noise)
        if fixed is None or _layouts(given) != _layouts(_tensors(fixed)):
            images, labels, own = (torch.empty_like(one) for one in given)
            fixed = _Fixed(batch._replace(images=images, labels=labels), own)
            self._fixed, self._size = fixed, len(labels)
            self._forget()
        for ours, theirs in zip(_tensors(fixed), given, strict=True):
            ours.copy_(theirs)
        return fixed

    def _forget_if_moved(self) -> None:
        addresses = self._find_addresses()
        if addresses != self._addresses:
            self._addresses = addresses
            self._forget()

    def _forget(self) -> None:
        """Gives up all graphs at once: see `MOST_GRAPHS`."""
        self._kept.clear()
        self._num_eager.clear()

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
