"""Optimiser and learning-rate schedule of a recipe: timm's."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from prenas.recipe import TrainingRecipe
from prenas.training.masked_adamw import MaskedAdamW


def make_optimizer(network: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """AdamW; biases, norms and what the network names in `no_weight_decay()` do not decay.

    Plain AdamW, as published, also moves weights that a step did not sample, because momentum and
    decay act on their zero gradients; the masked one does not.
    """
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        network, opt="adamw", lr=recipe.peak_lr, weight_decay=recipe.weight_decay, fused=True
    )
    masked = recipe.optimizer == "masked_adamw"
    return MaskedAdamW(optimizer.param_groups) if masked else optimizer


def make_schedule(
    optimizer: torch.optim.Optimizer, recipe: TrainingRecipe, steps_per_epoch: int
) -> CosineLRScheduler:
    """Linear warm-up, then a cosine to `min_lr`; a function of the step, without memory."""
    return CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * steps_per_epoch,
        lr_min=min(recipe.min_lr, recipe.peak_lr),
        warmup_t=round(recipe.warmup_epochs * steps_per_epoch),
        warmup_lr_init=recipe.warmup_lr,
        t_in_epochs=False,
    )
