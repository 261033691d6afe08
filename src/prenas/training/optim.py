"""What trains, and how: parameters, optimiser and learning-rate schedule of a recipe (timm's)."""

from __future__ import annotations

from typing import Any, Final

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from prenas.recipe import TrainingRecipe
from prenas.training.masked_adamw import MaskedAdamW


def trained_parameters(network: nn.Module, recipe: TrainingRecipe) -> list[nn.Parameter]:
    """The parameters that the recipe trains; all others stop asking for gradients.

    To be called before the optimiser is made, which passes over those.
    """
    is_whole = recipe.freeze == "none"
    network.requires_grad_(is_whole)
    trained: Any = network if is_whole else network.get_classifier()  # type: ignore[operator]
    return list(trained.requires_grad_(True).parameters())


_TIMM_NAMES: Final = {"adamw": "adamw", "masked_adamw": "adamw", "sgd": "sgd"}


def make_optimizer(network: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9.

    Biases, norms and what the network names in `no_weight_decay()` do not decay.

    Plain AdamW, as published, also moves weights that a step did not sample, because momentum and
    decay act on their zero gradients; the masked one does not. With `layer_decay` the layer `n`
    steps below the head has the rate `layer_decay ** n` (timm's layers: stem, blocks, head), at
    every step.
    """
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        network,
        opt=_TIMM_NAMES[recipe.optimizer],
        lr=recipe.peak_lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        fused=True,
    )
    masked = recipe.optimizer == "masked_adamw"
    return MaskedAdamW(optimizer.param_groups) if masked else optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what its `state_dict` gave; PyTorch would compare neither shapes nor kinds.

    Raises:
        ValueError: it is of another network, or of another kind of optimiser.
    """
    moment = "momentum_buffer" if isinstance(optimizer, torch.optim.SGD) else "exp_avg"
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    shapes = {number: parameter.shape for number, parameter in enumerate(parameters)}
    for number, saved in state["state"].items():
        if moment not in saved:
            raise ValueError(f"the state has no {moment}: it belongs to another optimiser")
        if saved[moment].shape != shapes.get(number):
            raise ValueError("the state of the optimiser belongs to another network")
    optimizer.load_state_dict(state)


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


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The present rate, that of the head where layers have their own."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
