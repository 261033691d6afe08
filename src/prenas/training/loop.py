"""The training loop: one preferred subnet per step (method.md, section 4)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prenas import artifacts
from prenas.data import Batch, ImageData, num_batches, training_batches
from prenas.families.base import Arch
from prenas.recipe import TrainingRecipe
from prenas.runlog import MetricsLog
from prenas.supernet import Supernet
from prenas.training.checkpoint import load_checkpoint, save_checkpoint
from prenas.training.gradients import GradientBuffer
from prenas.training.optim import (
    learning_rate,
    make_optimizer,
    make_schedule,
    trained_parameters,
)
from prenas.training.sampler import BalancedSampler


class Progress(NamedTuple):
    """What a step reports to whoever watches."""

    step: int
    """Steps finished, of `num_steps`."""
    num_steps: int
    epoch: int
    """The running epoch, from 0."""
    loss: float
    lr: float
    num_images: int
    """Images of this step."""


Watcher = Callable[[Progress], None]


def train_supernet(
    supernet: Supernet,
    archs: Sequence[Arch],
    data: ImageData,
    recipe: TrainingRecipe,
    *,
    seed: int = 0,
    folder: Path | None = None,
    watch: Watcher | None = None,
) -> None:
    """Trains the supernet on the given subnets, in place.

    Args:
        supernet: on the device to train on; its largest network contains all `archs`.
        folder: where checkpoints and metrics go; an unfinished training there is continued, and
            ends with the same weights as one that was never interrupted.
        watch: called after every step.

    Raises:
        ValueError: data that do not suit the network, or a loss that is not finite.
    """
    network, device = supernet.network, next(supernet.parameters()).device
    steps_per_epoch = num_batches(data.train, recipe.batch_size)
    if steps_per_epoch == 0:
        raise ValueError("the training split is empty: give at least one image")
    parameters = trained_parameters(network, recipe)
    optimizer = make_optimizer(network, recipe)
    first_epoch = 0
    if folder is not None:
        first_epoch = load_checkpoint(folder / artifacts.CHECKPOINTS, network, optimizer)
    metrics = MetricsLog(folder and folder / artifacts.METRICS, first_epoch)
    schedule = make_schedule(optimizer, recipe, steps_per_epoch)
    sampler = BalancedSampler(archs, seed)
    gradients = GradientBuffer(parameters)

    supernet.train()
    for epoch in range(first_epoch, recipe.epochs):
        started, losses, num_images = time.perf_counter(), [], 0
        batches = training_batches(data, supernet.settings, recipe.batch_size, seed, epoch)
        for step, batch in enumerate(batches, start=epoch * steps_per_epoch):
            schedule.step_update(step)
            arch = sampler(step)
            gradients.zero()
            loss = batch_loss(supernet, arch, batch, recipe, device)
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.clip_grad_norm is not None:
                gradients.clip(recipe.clip_grad_norm)
            losses.append(_finite(loss, step, arch))
            optimizer.step()
            num_images += len(batch.labels)
            if watch is not None:
                lr = learning_rate(optimizer)
                num_steps = recipe.epochs * steps_per_epoch
                watch(Progress(step + 1, num_steps, epoch, losses[-1], lr, len(batch.labels)))
        metrics.append(
            epoch=epoch,
            loss=float(np.mean(losses)),
            lr=learning_rate(optimizer),
            images_per_second=num_images / (time.perf_counter() - started),
        )
        if folder is not None:
            save_checkpoint(folder / artifacts.CHECKPOINTS, epoch + 1, network, optimizer)
    supernet.eval()


def batch_loss(
    supernet: Supernet, arch: Arch, batch: Batch, recipe: TrainingRecipe, device: torch.device
) -> Tensor:
    """Cross-entropy with label smoothing of one subnet on one batch, mean over its images."""
    num_branches = supernet.family.num_branches(supernet.arch)
    draws = np.stack([generator.random(num_branches) for generator in batch.generators])
    noise = torch.from_numpy(draws).to(device, torch.float32)
    logits = supernet(batch.images.to(device), arch, noise)
    return cross_entropy(logits, batch.labels.to(device), label_smoothing=recipe.label_smoothing)


def _finite(loss: Tensor, step: int, arch: Arch) -> float:
    value = float(loss.detach())
    if not np.isfinite(value):
        raise ValueError(
            f"the loss is {value} at step {step} (subnet {arch.id}: {arch}): the "
            "last checkpoint is kept. Start a run in a new folder with a lower "
            "training.lr_per_512_images, or with training.clip_grad_norm set"
        )
    return value
