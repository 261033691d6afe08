"""Checkpoints of other programs: tensors by name, read without running any code in them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prenas import artifacts
from prenas.files import exists, open_file
from prenas.values import unknown_name

_logger = logging.getLogger(__name__)

_STATES = ("model", "state_dict", "model_ema", "state_dict_ema")
"""Keys under which a checkpoint keeps its tensors; the first one in it is taken."""
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module"))
"""Parts that data-parallel wrappers and torch.compile add to names, in any order."""


class _Ignored:
    """Stands for a value of NumPy or a path in a checkpoint: a best accuracy, a folder."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_HARMLESS = [
    argparse.Namespace,
    *(
        (_Ignored, name)
        for name in (
            *("numpy.dtype", "numpy.ndarray"),
            *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
            *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
            *("pathlib.PosixPath", "pathlib.WindowsPath"),
            *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
        )
    ),
]
"""What a checkpoint may contain in addition to tensors and plain values; none of it is executed."""


class Checkpoint(NamedTuple):
    """The content of a checkpoint."""

    tensors: dict[str, Tensor]
    """Without the prefixes of wrappers; floats as float32."""
    options: dict[str, Any]
    """The training options that were saved with them, if any."""
    weights: str | None
    """The key of the tensors, if the file has several."""


def read_checkpoint(path: str | Path, weights: str | None = None) -> Checkpoint:
    """Reads a torch.save file or a .safetensors file.

    The tensors are under `model`, `state_dict`, `model_ema` or `state_dict_ema`, or the file is a
    bare state dict.

    Args:
        weights: the key of the weights, such as `model_ema`, in a file that has several.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, contains code, is not a state dict, or has no such weights.
    """
    path = Path(path)
    if not path.is_file():
        what = "is not a file" if exists(path) else "does not exist"
        raise FileNotFoundError(f"{path} {what}: give a checkpoint (.pth or .safetensors)")
    content = _content_of(path)
    try:
        key, state = _state_of(content, weights)
        tensors = _tensors_of(state, key, path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    options = content.get("args") if key else None
    others = [
        other
        for other in _STATES
        if key and other != key and isinstance(content.get(other), Mapping)
    ]
    if others and weights is None:
        _logger.warning(
            "%s contains several weights: %s were taken, %s not (--weights, or the argument "
            "weights, chooses)",
            path,
            key,
            " and ".join(others),
        )
    return Checkpoint(
        tensors,
        vars(options) if isinstance(options, argparse.Namespace) else {},
        key if others else None,
    )


def _content_of(path: Path) -> Any:
    """The content of a .safetensors or a torch.save file, whatever the file is called."""
    with open_file(path) as file:
        start = file.read(10)
    is_safetensors = path.suffix.lower() == ".safetensors" or start[8:] == b'{"'
    if is_safetensors:
        return artifacts.read_tensors(path)
    return artifacts.read_pickle(path, safe=_HARMLESS)


def _state_of(content: Any, weights: str | None) -> tuple[str | None, Any]:
    """(the key under which the tensors are, None for the top level; the tensors)."""
    if not isinstance(content, Mapping):
        raise ValueError(f"it contains a {type(content).__name__} instead of a dict of tensors")
    there = [key for key in _STATES if key in content]
    if weights is not None:
        if weights not in there:
            raise unknown_name("weights", weights, there or ["no choice in this file"])
        return weights, content[weights]
    return (there[0], content[there[0]]) if there else (None, content)


def _tensors_of(state: Any, key: str | None, file_size: int) -> dict[str, Tensor]:
    """Name, without the prefixes of wrappers -> tensor; floats as float32."""
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        where = f"its {key!r}" if key else "it"
        keys = list(map(str, state))[:5] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{where} is not a dict of tensors (found: {keys}): a state dict is needed, on its "
            f"own or under {' or '.join(map(repr, _STATES))}"
        )
    _check_plain(state, file_size)
    tensors: dict[str, Tensor] = {}
    for wrapped, tensor in state.items():
        name = ".".join(part for part in str(wrapped).split(".") if part not in _WRAPPERS)
        if name in tensors:
            raise ValueError(f"it contains {name} twice, with and without a wrapper's prefix")
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def _check_plain(tensors: Mapping[Any, Tensor], file_size: int) -> None:
    """Raises ValueError for tensors that are not plain numbers, or larger than their file.

    A file of some hundred bytes can describe a tensor of terabytes, which repeats one number.
    """
    sizes: dict[object, int] = {}
    for name, tensor in tensors.items():
        if kind := next((kind for kind, has in _SPECIAL.items() if has(tensor)), None):
            raise ValueError(f"{name} is {kind}: tensors must be dense and hold real numbers")
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        sizes[place, tensor.shape, tensor.stride()] = tensor.numel() * tensor.element_size()
    if (total := sum(sizes.values())) > file_size:
        raise ValueError(
            f"its tensors take {total:,} bytes, more than the {file_size:,} of the file: they "
            "repeat numbers instead of storing them"
        )


_SPECIAL: Mapping[str, Callable[[Tensor], bool]] = {
    "a nested tensor": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout != torch.strided,
    "without values (on the device `meta`)": lambda tensor: tensor.is_meta,
    "quantised": lambda tensor: tensor.is_quantized,
    "complex": lambda tensor: tensor.is_complex(),
}
"""Kinds of tensors that no released checkpoint has -> how to recognise them."""
