"""A single image and BatchNorm: found before a training, not at the end of its first epoch."""

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
    recipe: TrainingRecipe,
    processes: Processes,
) -> None:
    """Refuses steps in which an image would be normalised alone, over maps of a single pixel.

    Args:
        num_images: of an epoch.

    Raises:
        ValueError: there are such steps; the message says what to change.
    """
    if not supernet.has_statistics:
        return
    rest = num_images % recipe.batch_size
    steps = {min(num_images, recipe.batch_size), rest} - {0}
    if not any(_has_single(step, recipe, processes.world_size) for step in steps):
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
            f"{num_images:,} images in batches of {recipe.batch_size} leave a step with a part of "
            "one image, and of one pixel there is nothing for BatchNorm to normalise: choose "
            "another training.batch_size, fewer parts (training.grad_accum_steps) or processes"
        ) from error
    finally:
        supernet.train(is_training)


def _has_single(step: int, recipe: TrainingRecipe, world_size: int) -> bool:
    """Whether a process has a part of one image in a step of so many."""
    shares = {len(range(rank, step, world_size)) for rank in range(world_size)}
    return any(
        part.stop - part.start == 1
        for share in shares
        for part in part_slices(share, recipe.grad_accum_steps)
    )
