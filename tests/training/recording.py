"""A recorder without an accelerator: repeats the operators of a step as a CUDA graph does.

Like a graph, it runs the same operators on the same memory with the same numbers, whatever Python
would do by now, and it refuses to read a number from the device.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Call(NamedTuple):
    operator: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: Any


class _Listening(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        is_view = any(one.alias_info and not one.alias_info.is_write for one in returned)
        if not is_view:  # views look at memory that stays
            self.calls.append(_Call(func, args, kwargs or {}, result))
        return result


class Recorder:
    """As `prenas.training.graphs.Recorder`.

    Args:
        state: every tensor that work may change; recording puts their values back.
    """

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self._state = state
        self.num_recorded = 0
        self.num_replayed = 0

    def aside(self) -> AbstractContextManager[object]:
        return nullcontext()

    def __call__(self, work: Callable[[], None], *, is_first: bool) -> Callable[[], None]:
        tensors = self._state()
        before = [one.clone() for one in tensors]
        try:
            with _Listening() as listening:
                work()
        except RuntimeError:  # after which the recording cannot be ended either
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            with torch.no_grad():
                for one, value in zip(tensors, before, strict=True):
                    one.copy_(value)
        self.num_recorded += 1

        @torch.no_grad()
        def replay() -> None:
            self.num_replayed += 1
            for call in listening.calls:
                result = call.operator(*call.arguments, **call.options)
                if call.operator._schema.is_mutable:
                    continue
                for old, new in zip(tree_leaves(call.result), tree_leaves(result), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)

        return replay
