"""Batches on their way to the device: pinned memory, and copies that run beside the last step.

On a processor nothing is copied, and no batch is asked for before its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")
B = TypeVar("B", bound=tuple[Any, ...])


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. CUDA copies it when its queue gets there, and nobody waits for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def one_ahead(items: Iterable[S], send: Callable[[S], T]) -> Iterator[T]:
    """What `send` returns for every item, each begun before the one before it is used."""
    begun = deque[T]()
    for item in items:
        begun.append(send(item))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun


class _Copied(NamedTuple, Generic[T]):
    """A batch whose tensors a side stream fills, and when it will have done so."""

    batch: T
    is_done: torch.cuda.Event


def sent_ahead(batches: Iterable[B], device: torch.device, send: Callable[[B], B]) -> Iterator[B]:
    """What `send` makes of each batch, a tuple whose first two members are images and labels.

    CUDA copies a batch on a stream of its own, beside the step on the batch before.
    """
    if device.type != "cuda":
        return map(send, batches)
    # Of another priority than streams that compute: PyTorch hands out the same 32 in turn.
    side = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def begin(batch: B) -> _Copied[B]:
        with torch.cuda.stream(side):
            return _Copied(send(batch), side.record_event())

    return map(_received, one_ahead(batches, begin))


def _received(copied: _Copied[B]) -> B:
    """The batch, for use on the current stream, which waits for its copy."""
    for tensor in copied.batch[:2]:
        current = torch.cuda.current_stream(tensor.device)
        current.wait_event(copied.is_done)
        tensor.record_stream(current)  # its memory is free only after the step
    return copied.batch
