"""Checkpoints: written completely or not at all, and read without running code.

`checkpoints/step-NNNNNNNN/` contains the weights and their moving average as safetensors, and
`state.pt` with the optimiser, the loss scaler and the position in the run, which `torch.load` reads
with `weights_only=True`. Every file has a digest, so a damaged checkpoint is detected and the
previous one is used. All random draws follow from the seed and the position, and the schedule is a
function of the step, so nothing else needs to be saved.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from prenas import artifacts
from prenas.files import read_bytes

_logger = logging.getLogger(__name__)
_STATE = "state.pt"
_STATE_DIGEST = "state.sha256"
# What a file of another content can raise while it is read.
_UNREADABLE = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, RuntimeError,
)  # fmt: skip


class Checkpoint(NamedTuple):
    """A complete checkpoint on disk."""

    step: int
    """Number of finished steps."""
    folder: Path


def save_checkpoint(
    folder: Path,
    step: int,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    *,
    num_kept: int,
) -> None:
    """Writes `step-NNNNNNNN/` under a temporary name, renames it, and removes old checkpoints.

    Args:
        folder: the run's checkpoint folder.
        step: number of finished steps; checkpoints of later steps, which a resumed training could
            not read, are removed too.
        networks: file name -> network to save as safetensors.
        state: tensors and plain values.
        num_kept: how many of the newest checkpoints to keep.

    Raises:
        OSError: the disk is full or missing; the message names the last checkpoint, which is kept.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder, step, num_kept=num_kept)
        temporary.mkdir()
        for name, network in networks.items():
            artifacts.write_tensors(temporary / name, network.state_dict())
        content = BytesIO()
        torch.save(dict(state), content)
        artifacts.write_bytes(temporary / _STATE, content.getvalue())
        digest = artifacts.sha256(temporary / _STATE)
        artifacts.write_bytes(temporary / _STATE_DIGEST, f"{digest}\n".encode())
        _sync_folder(temporary)
        _remove(final)
        temporary.rename(final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        found = checkpoints(folder)
        last = f"{found[0].folder} is the last one" if found else "there is no earlier one"
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(
            f"cannot write the checkpoint of step {step} to {folder} ({cause.strerror or cause}); "
            f"{last}. Free some disk space or fix the permissions of the folder, then give the "
            "same command to continue"
        ) from error
    for later in checkpoints(folder):
        if later.step > step:
            _remove(later.folder)
    tidy(folder, step, num_kept=num_kept)


def tidy(folder: Path, step: int, *, num_kept: int) -> None:
    """Removes leftovers of a killed process, and all but the newest checkpoints up to `step`."""
    artifacts.remove_leftovers(folder)
    for leftover in folder.glob(".step-*.tmp"):
        if re.fullmatch(r"\.step-\d{8}(\.old)?\.tmp", leftover.name) and not leftover.is_symlink():
            shutil.rmtree(leftover)
    for older in [one for one in checkpoints(folder) if one.step <= step][num_kept:]:
        _remove(older.folder)


def load_checkpoint(
    folder: Path,
    networks: Mapping[str, nn.Module],
    restore: Callable[[dict[str, Any]], int],
) -> Checkpoint | None:
    """Restores the newest readable checkpoint and returns it; None if there are none.

    Args:
        networks: file name -> network to load the weights into.
        restore: called with the saved state; returns its number of finished steps.

    Raises:
        ValueError: checkpoints exist, but none can be read.
    """
    found = checkpoints(folder)
    if not found and (older := sorted(folder.glob("epoch-*/"))):  # starting over would lose them
        raise ValueError(
            f"{older[-1]} was written by an earlier version of prenas in a format that is no "
            "longer supported: finish the training with that version, or move the folder away to "
            "train again"
        )
    for number, checkpoint in enumerate(found):
        try:
            state = _read_state(checkpoint.folder)
            for name, network in networks.items():
                artifacts.load_weights(network, checkpoint.folder / name)
            if (step := restore(state)) != checkpoint.step:
                raise ValueError(f"{_STATE} is the state after {step} steps")
        except _UNREADABLE as error:
            before = found[number + 1 :]
            _logger.warning(
                "checkpoint %s is damaged (%s): %s",
                checkpoint.folder,
                error,
                f"continuing from {before[0].folder.name}" if before else "there is no earlier one",
            )
            continue
        return checkpoint
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} can be read (see the warnings "
            "above): restore the folder from a copy, or move it away to train from the start"
        )
    return None


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote; ValueError if the file has changed since."""
    path, digest = checkpoint / _STATE, checkpoint / _STATE_DIGEST
    # Checkpoints written by 0.1.0 have no digest.
    is_known = (
        not digest.exists() or read_bytes(digest, 1000).strip() == artifacts.sha256(path).encode()
    )
    if not is_known:
        raise ValueError(f"the content of {path} does not match its digest")
    state: dict[str, Any] = artifacts.read_pickle(path)
    return state


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints, newest first."""
    return [Checkpoint(*found) for found in artifacts.find_checkpoints(folder)]


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint; it is renamed first, so that a half-removed one is never read."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)


def _sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk, so that they survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
