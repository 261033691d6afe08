"""Checks before a training that BatchNorm never has to normalise a single value.

Without the check, such a batch would be noticed only at the end of the first epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prenas.data import part_slices
from prenas.families.base import Arch
from prenas.processes import Processes
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet


def require_normalisable(
    supernet: Supernet,
    archs: Sequence[Arch],
    num_images: int,
    training: TrainingRecipe,
    processes: Processes,
    *,
    field: str = "training",
) -> None:
    """Checks that no step makes BatchNorm normalise a single image with feature maps of one pixel.

    Args:
        num_images: number of images in an epoch.
        field: what `--set` calls this training.

    Raises:
        ValueError: there is a step of this kind; the message says what to change.
    """
    if not supernet.has_statistics:
        return
    if not has_single_images(num_images, training, processes):
        return
    settings, device = supernet.settings, next(supernet.parameters()).device
    image = torch.zeros(1, settings.in_chans, *settings.image_size, device=device)
    noise = torch.zeros(1, supernet.num_draws, device=device)
    is_training = supernet.training
    try:
        with torch.no_grad():
            for arch in archs:
                supernet.train()(image, arch, noise)
    except ValueError as error:
        raise ValueError(
            f"{num_images:,} images in batches of {training.batch_size} leave one process a single "
            f"image in some step, and BatchNorm cannot normalise a single value: change {field}."
            f"batch_size, {field}.grad_accum_steps or the number of processes"
        ) from error
    finally:
        supernet.train(is_training)


def has_single_images(num_images: int, training: TrainingRecipe, processes: Processes) -> bool:
    """Whether a process gets a single image in some step of an epoch with this many images."""
    rest = num_images % training.batch_size
    steps = {min(num_images, training.batch_size), rest} - {0}
    return any(_has_single(step, training, processes.world_size) for step in steps)


def _has_single(step: int, training: TrainingRecipe, world_size: int) -> bool:
    """Whether any process gets a part of one image in a step with this many images."""
    shares = {len(range(rank, step, world_size)) for rank in range(world_size)}
    return any(
        part.stop - part.start == 1
        for share in shares
        for part in part_slices(share, training.grad_accum_steps)
    )
