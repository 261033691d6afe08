"""Building networks without memory for their weights."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLING = frozenset(
    {
        *(nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.trunc_normal_),
        *(nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_uniform_),
        *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_),
        *(Tensor.zero_, Tensor.fill_, Tensor.mul_, Tensor.add_),
    }
)
"""What constructors call to give a tensor its values, in place."""


class _WithoutValues(TorchFunctionMode):
    """Tensors are not given any values."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def structure_only() -> Iterator[None]:
    """Constructors make tensors on the `meta` device, which have shapes but no values.

    PyTorch would draw initial values for them all the same, in a third of the time.
    """
    with torch.device("meta"), _WithoutValues():
        yield


def pickled(structure: nn.Module) -> bytes | None:
    """The network as bytes, from which copies are made many times faster than by building it.

    None if it contains what cannot be pickled. The bytes are never stored.
    """
    try:
        return pickle.dumps(structure)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
