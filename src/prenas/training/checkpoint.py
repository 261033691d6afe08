"""Checkpoints: written whole or not at all, read without running code.

`checkpoints/step-NNNNNNNN/` holds the weights and their moving average as safetensors, and
`state.pt`, which `torch.load` reads with `weights_only=True`: optimiser, loss scaler, and the
position in the run. Every file has a digest, so that a damaged checkpoint is noticed and the one
before it is used. Every random draw is named by seed and position, the schedule is a function of
the step, so the position stands for all of them.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from prenas import artifacts

_logger = logging.getLogger(__name__)
_STATE = "state.pt"
_STATE_DIGEST = "state.sha256"
_UNREADABLE = (ValueError, KeyError, TypeError, OSError, RuntimeError, EOFError)


class Checkpoint(NamedTuple):
    """A finished checkpoint on disk."""

    step: int
    """Steps finished."""
    folder: Path


def save_checkpoint(
    folder: Path,
    step: int,
    networks: Mapping[str, nn.Module],
    state: Mapping[str, Any],
    *,
    num_kept: int,
) -> None:
    """Writes `step-NNNNNNNN/` under another name, renames it into place, drops all but the newest.

    Args:
        folder: the run's checkpoint folder.
        step: steps finished; checkpoints of later ones, which a resumed training could not read,
            are dropped too.
        networks: file name -> what is kept as safetensors.
        state: tensors and plain values.

    Raises:
        OSError: the disk is full or gone; names the last checkpoint, which stays.
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
        last = f"{found[0].folder} is the last one" if found else "there is none before"
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OSError(
            f"cannot write the checkpoint of step {step} to {folder} ({cause.strerror or cause}): "
            f"{last}. Free some space or mend the folder, then give the same command to continue"
        ) from error
    for later in checkpoints(folder):
        if later.step > step:
            _remove(later.folder)
    tidy(folder, step, num_kept=num_kept)


def tidy(folder: Path, step: int, *, num_kept: int) -> None:
    """Removes what a killed process left, and all but the newest checkpoints up to `step`."""
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for older in [one for one in checkpoints(folder) if one.step <= step][num_kept:]:
        _remove(older.folder)


def load_checkpoint(
    folder: Path,
    networks: Mapping[str, nn.Module],
    restore: Callable[[dict[str, Any]], None],
) -> Checkpoint | None:
    """Restores the newest readable checkpoint and says which; None if there is none.

    Args:
        networks: file name -> what is filled.
        restore: takes the state that was saved.

    Raises:
        ValueError: checkpoints exist, but none can be read.
    """
    found = checkpoints(folder)
    if not found and (older := sorted(folder.glob("epoch-*/"))):  # starting over would lose them
        raise ValueError(
            f"{older[-1]} was written by an earlier prenas, in a form that is no longer read: "
            "finish the training with that version, or move the folder away to train anew"
        )
    for number, checkpoint in enumerate(found):
        try:
            state = _read_state(checkpoint.folder)
            for name, network in networks.items():
                artifacts.load_weights(network, checkpoint.folder / name)
            restore(state)
        except (*_UNREADABLE, pickle.UnpicklingError) as error:
            before = found[number + 1 :]
            _logger.warning(
                "checkpoint %s is damaged (%s): %s",
                checkpoint.folder,
                error,
                f"going on from {before[0].folder.name}" if before else "there is none before",
            )
            continue
        return checkpoint
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} can be read (see the warnings): "
            "restore the folder from a copy, or move it away to train from the initial weights"
        )
    return None


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` kept; ValueError if it is not what was written."""
    path, digest = checkpoint / _STATE, checkpoint / _STATE_DIGEST
    # Checkpoints of 0.1.0 have no digest.
    if digest.exists() and digest.read_text(encoding="utf-8").strip() != artifacts.sha256(path):
        raise ValueError(f"{path} does not have the digest that it was written with")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All finished checkpoints, newest first."""
    return [Checkpoint(*found) for found in artifacts.find_checkpoints(folder)]


def _remove(checkpoint: Path) -> None:
    """Takes a checkpoint away: renamed first, so that no half of it is ever found."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
