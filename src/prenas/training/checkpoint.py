"""Checkpoints at the end of epochs: written whole, read without running code."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from prenas import artifacts

_logger = logging.getLogger(__name__)
_NUM_KEPT = 2
_OPTIMIZER = "optimizer.pt"


def save_checkpoint(
    folder: Path, epoch: int, network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes `epoch-NNNNN/` beside the last one, renames it into place, drops older ones.

    Args:
        folder: the run's checkpoint folder.
        epoch: epochs finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".epoch-*.tmp"):  # of a process that was killed while writing
        shutil.rmtree(leftover)
    temporary = folder / f".epoch-{epoch:05d}.tmp"
    temporary.mkdir()
    artifacts.write_tensors(temporary / artifacts.SUPERNET, network.state_dict())
    content = BytesIO()
    torch.save(optimizer.state_dict(), content)
    artifacts.write_bytes(temporary / _OPTIMIZER, content.getvalue())
    final = folder / f"epoch-{epoch:05d}"
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync_folder(folder)
    for _, older in _checkpoints(folder)[_NUM_KEPT:]:
        shutil.rmtree(older)


def load_checkpoint(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restores the newest readable checkpoint; returns its finished epochs, 0 if there is none.

    Raises:
        ValueError: checkpoints exist, but none can be read.
    """
    found = _checkpoints(folder)
    for epoch, checkpoint in found:
        try:
            state = torch.load(checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True)
            optimizer.load_state_dict(state)
            artifacts.load_weights(network, checkpoint / artifacts.SUPERNET)
        except (
            ValueError,
            KeyError,
            OSError,
            RuntimeError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            _logger.warning(
                "checkpoint %s is damaged (%s): trying the one before", checkpoint, error
            )
            continue
        return epoch
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} can be read (see the warnings): "
            "restore the folder from a copy, or move it away to train from the initial weights"
        )
    return 0


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(epoch, folder) of all finished checkpoints, newest first."""
    matches = ((re.fullmatch(r"epoch-(\d+)", path.name), path) for path in folder.glob("epoch-*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
