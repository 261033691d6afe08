"""The trained parameters, and the optimiser and learning-rate schedule (timm's) of a recipe."""

from __future__ import annotations

from typing import Any, Final

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from prenas.length import length_of
from prenas.recipe import TrainingRecipe
from prenas.training.masked_adamw import MaskedAdamW


def trained_parameters(network: nn.Module, training: TrainingRecipe) -> list[nn.Parameter]:
    """Returns the parameters that the recipe trains, and freezes all others.

    Call this before `make_optimizer`, which skips frozen parameters.
    """
    is_whole = training.freeze == "none"
    network.requires_grad_(is_whole)
    trained: Any = network if is_whole else network.get_classifier()  # type: ignore[operator]
    return list(trained.requires_grad_(True).parameters())


_TIMM_NAMES: Final = {"adamw": "adamw", "masked_adamw": "adamw", "sgd": "sgd"}


def make_optimizer(network: nn.Module, training: TrainingRecipe) -> torch.optim.Optimizer:
    """AdamW, masked AdamW, or SGD with Nesterov momentum 0.9.

    Weight decay skips biases, norms, and the parameters that the network lists in
    `no_weight_decay()`.

    Plain AdamW, as published, also moves weights that a step did not sample, because momentum and
    decay act despite their zero gradients; masked AdamW does not. With `layer_decay`, the learning
    rate of the layer `n` steps below the classifier is multiplied by `layer_decay ** n` at every
    step (timm's layers: stem, blocks, head).
    """
    from timm.optim import create_optimizer_v2

    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        network,
        opt=_TIMM_NAMES[training.optimizer],
        lr=training.peak_lr,
        weight_decay=training.weight_decay,
        layer_decay=training.layer_decay,
        fused=True,
    )
    masked = training.optimizer == "masked_adamw"
    return MaskedAdamW(optimizer.param_groups) if masked else optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a saved `state_dict`; PyTorch itself compares neither shapes nor kinds of optimiser.

    Rates and decays are not loaded: they follow from the recipe and the step.

    Raises:
        ValueError: the state belongs to another network or another kind of optimiser, lacks a
            moment, or contains one that is not finite.
    """
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("the state of the optimiser belongs to another network")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = set(range(len(parameters)))
    found = set(state["state"])
    is_partly_there = found and not isinstance(optimizer, MaskedAdamW)
    if not found <= known or (is_partly_there and found != known):
        raise ValueError("the state of the optimiser belongs to another network")
    for number, moments in state["state"].items():
        _check_moments(optimizer, parameters[number], moments)
        # Of its own memory: in a file, elements may share theirs, and a step writes to each.
        state["state"][number] = {name: moment.clone() for name, moment in moments.items()}
    optimizer.load_state_dict({"state": state["state"], "param_groups": own})


def _check_moments(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, moments: dict[str, Any]
) -> None:
    names = {"exp_avg", "exp_avg_sq", "step"}
    if isinstance(optimizer, MaskedAdamW):
        names = {"exp_avg", "exp_avg_sq", "steps"}
    elif isinstance(optimizer, torch.optim.SGD):
        names = {"momentum_buffer"}
    if set(moments) != names:
        raise ValueError(
            f"the state has the moments {', '.join(map(str, moments))} instead of "
            f"{', '.join(sorted(names))}: it belongs to another optimiser"
        )
    for name, moment in moments.items():
        shape = torch.Size() if name == "step" else parameter.shape
        if not isinstance(moment, torch.Tensor) or moment.shape != shape:
            raise ValueError(f"the moment {name} belongs to another network")
        if not moment.is_floating_point() or not moment.isfinite().all():
            raise ValueError(f"the moment {name} has values that are not finite numbers")


def make_schedule(
    optimizer: torch.optim.Optimizer, training: TrainingRecipe, steps_per_epoch: int
) -> CosineLRScheduler:
    """Linear warm-up, then cosine decay to `min_lr`; a function of the step alone."""
    num_steps = length_of(training, steps_per_epoch).num_steps
    warmup_steps = round(training.warmup_epochs * steps_per_epoch)
    if training.warmup_share < 1:
        warmup_steps = min(warmup_steps, round(training.warmup_share * num_steps))
    return CosineLRScheduler(
        optimizer,
        t_initial=num_steps,
        lr_min=min(training.min_lr, training.peak_lr),
        warmup_t=warmup_steps,
        warmup_lr_init=training.warmup_lr,
        t_in_epochs=False,
    )


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The current learning rate; that of the classifier if layers have different rates."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
