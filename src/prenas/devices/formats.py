"""The formats of exported files, and the engines that run them.

A format is one module of this package with a `FORMAT`. It imports what it needs only when it is
used, because every format has an extra of its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prenas.values import unknown_name

Pixels = npt.NDArray[np.float32]
"""[B, in_chans, height, width], as the network takes them."""
Runner = Callable[[Pixels], Pixels]
"""Images [B, in_chans, height, width] -> logits [B, num_classes]."""

INPUT, OUTPUT = "images", "logits"
"""Names of the input and the output in every format that has names."""


class Plan(NamedTuple):
    """How a file is written."""

    batch: int | None
    """Images per call; None for any number."""
    opset: int | None
    """Version of ONNX's operators; None for that of the installed exporter."""


class Written(NamedTuple):
    """A float32 file, and what it was written from."""

    path: Path
    network: nn.Module
    images: Tensor
    """Examples [B, in_chans, height, width]."""
    is_layer: bool = False
    """Whether it is a layer alone, whose first operation is not the first of a network."""


Quantizer = Callable[[Written, Path, Callable[[], Iterable[Pixels]]], None]
"""Writes an int8 file: (float32 file, path, calibration batches)."""


class Format(NamedTuple):
    """One format of exported files."""

    name: str
    """As in `--format`."""
    file: str
    """The file that an engine is given; there may be others beside it."""
    engine: str
    """What runs it."""
    extra: str
    """What to install: `prenas[EXTRA]`. Empty if nothing is missing."""
    modules: tuple[str, ...]
    """What must be installed to write it and to run it."""
    write: Callable[[nn.Module, Tensor, Path, Plan], None]
    """Writes the file: (network in evaluation mode, images [B, ...], path, plan)."""
    open: Callable[[Path, int], Runner]
    """Loads a file into its engine: (path, threads) -> a function."""
    quantizers: Mapping[str, Quantizer]
    """Name of an int8 form -> writes it."""
    write_layers: (
        Callable[[Sequence[tuple[nn.Module, Tensor]], Sequence[Path], Plan], None] | None
    ) = None
    """Writes layers alone, for engines in which `prenas measure` times them: ((layer in evaluation
    mode, example of the only tensor that it takes) each, paths, plan)."""
    takes_any_number: bool = True
    """Whether one file takes any number of images; otherwise it takes one, or as many as asked."""
    takes_opset: bool = False
    """Whether it is written with ONNX's operators, of which versions can be chosen."""

    def plan(self, batch: int | None, opset: int | None = None) -> Plan:
        """How a file for so many images is written; None for any number, or one.

        Raises:
            ValueError: a version of ONNX's operators is given for a format without them.
        """
        if opset is not None and not self.takes_opset:
            raise ValueError(
                f"opset {opset} is a version of ONNX's operators, which the format {self.name} "
                "does not have: leave out --opset, or choose --format onnx or openvino"
            )
        return Plan(batch if batch is not None or self.takes_any_number else 1, opset)


_MODULES = {
    "onnx": "onnx_format",
    "torch": "torch_format",
    "openvino": "openvino_format",
    "executorch": "executorch_format",
}

FORMATS = tuple(_MODULES)


def get_format(name: str) -> Format:
    """A format by its name.

    Raises:
        ValueError: there is none of this name, or something that it needs is not installed; the
            message says how to install it.
    """
    if name not in _MODULES:
        raise unknown_name("format", name, FORMATS)
    found: Format = import_module(f"prenas.devices.{_MODULES[name]}").FORMAT
    require_installed(found.modules, found.extra, f"the format {name}")
    return found


def logits_of(run: Runner, images: Tensor, batch: int | None) -> Tensor:
    """Runs a file on any number of images: [B, in_chans, height, width] -> [B, num_classes].

    Args:
        batch: images per call of the file; None for any number. A file for a fixed number gets the
            images in parts, and the last part is filled up with copies of its last image.

    Raises:
        ValueError: the file returned another number of logits.
    """
    found = []
    for start in range(0, len(images), batch or len(images)):
        part = images[start : start + (batch or len(images))]
        missing = 0 if batch is None else batch - len(part)
        given = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
        logits = torch.from_numpy(run(given.contiguous().numpy())).float()
        if len(logits) != len(given):
            raise ValueError(
                f"the file returned {len(logits)} rows of logits for {len(given)} images"
            )
        found.append(logits[: len(part)])
    return torch.cat(found)


def require_installed(modules: Iterable[str], extra: str, what: str) -> None:
    """Raises ValueError, with the line that installs them, if one of the modules is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ValueError(
            f"{what} needs {', '.join(missing)}, which is not installed here: run "
            f"pip install 'prenas[{extra}]'"
        )


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keeps what exporters say about themselves away from the user: warnings, and these loggers."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
