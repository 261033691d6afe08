"""One training step: some subnets, forward and backward, one sum over processes, one update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from prenas.data import Batch
from prenas.families.base import Arch, Box
from prenas.processes import ALONE, Processes
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.distillation import inplace_distillation_loss
from prenas.training.gradients import GradientBuffer
from prenas.training.masked_adamw import MaskedAdamW
from prenas.training.objective import label_loss, taught_loss
from prenas.training.optim import (
    learning_rate,
    make_optimizer,
    make_schedule,
    restore_optimizer,
    trained_parameters,
)
from prenas.training.sampler import Sampler
from prenas.training.subnets import MOST_KEPT, BoundSubnets
from prenas.training.teacher import Teacher

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Outcome(NamedTuple):
    """What a step did, the same in every process."""

    archs: tuple[Arch, ...]
    loss: float
    """Mean over the images of all processes and over, or the sum of, the subnets of the step.

    Of a subnet that learns by an alpha-divergence, that divergence; it moves by a surrogate.
    """
    grad_norm: float
    """L2 norm of the gradient, before clipping."""
    lr: float
    is_skipped: bool
    """Whether loss or gradient were not finite: the weights are then as before."""
    must_stop: bool
    """Whether any process asked to stop after this step."""


class TrainingStep:
    """Trains the subnets that a sampler names on batches, with everything that lasts over steps."""

    def __init__(
        self,
        supernet: Supernet,
        sampler: Sampler,
        recipe: TrainingRecipe,
        steps_per_epoch: int,
        *,
        teacher: Teacher | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.supernet = supernet
        parameters = trained_parameters(supernet.network, recipe)
        self.optimizer = make_optimizer(supernet.network, recipe)
        self._device = next(supernet.parameters()).device
        self._sampler, self._recipe, self._teacher = sampler, recipe, teacher
        self._processes = processes
        self._schedule = make_schedule(self.optimizer, recipe, steps_per_epoch)
        self._gradients = GradientBuffer(parameters, num_extras=2)
        share = len(processes.share(range(recipe.batch_size)))
        part = math.ceil(share / recipe.grad_accum_steps) if recipe.compile else None
        self._subnets = BoundSubnets(supernet, compiled_for=part)
        self._owned = lru_cache(maxsize=MOST_KEPT)(partial(_boxes_by_parameter, supernet))
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=recipe.precision == "fp16")
        # The scaler makes its state when it first scales: here, as a share may hold no images.
        self._scaler.scale(torch.zeros((), device=self._device))
        self.ema: ModelEmaV3 | None = None
        if recipe.ema_decay is not None:
            self.ema = ModelEmaV3(supernet.network, decay=recipe.ema_decay)

    def __call__(self, step: int, batch: Batch, *, stop: bool = False) -> Outcome:
        """Trains the subnets of that step on this process' share of a batch.

        Loss and gradient are judged after they were added up over all processes, so all of them
        decide alike whether the weights move, and the loss scaler stays the same in all.

        Args:
            step: number of the step, from 0.
            stop: asks all processes to stop after this step.
        """
        self._schedule.step_update(step)
        archs = self._sampler(step)
        self._gradients.zero()
        loss = torch.zeros((), device=self._device)
        for part in batch.parts(self._recipe.grad_accum_steps):
            loss += self._backward(part, archs)
        self._gradients.extras[0], self._gradients.extras[1] = loss, float(stop)
        self._processes.add_up(self._gradients.message)  # the one reduction of a step

        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
        norm = self._gradients.norm()
        # Read together: on an accelerator each reading waits for all that was asked before.
        total, votes, grad_norm = torch.stack([*self._gradients.extras, norm]).tolist()
        is_finite = math.isfinite(total + grad_norm)
        if is_finite:
            self._move(archs, norm)
        self._scaler.update()
        return Outcome(
            archs=archs,
            loss=total,
            grad_norm=grad_norm,
            lr=learning_rate(self.optimizer),
            is_skipped=not is_finite,
            must_stop=votes > 0,
        )

    def _backward(self, part: Batch, archs: Sequence[Arch]) -> Tensor:
        """Adds the gradients of some images; returns their part of the loss."""
        recipe, total, largest = self._recipe, torch.zeros((), device=self._device), None
        images, labels = part.images.to(self._device), part.labels.to(self._device)
        told = None if self._teacher is None else self._run(self._teacher, images)
        weight = len(part.labels) / part.total
        if recipe.sandwich_loss == "mean":
            weight /= len(archs)
        for number, arch in enumerate(archs):  # the largest is the first
            drops = recipe.drops_in == "all" or number == 0
            noise = self._noise(part) if drops else None
            logits = self._run(self._subnets(arch, drops=drops), images, noise)
            if largest is not None:
                assert recipe.inplace_distillation is not None, "else there is no largest"
                loss = inplace_distillation_loss(logits, largest, recipe.inplace_distillation)
            else:
                loss = label_loss(logits, labels, recipe)
                if told is not None:
                    assert recipe.teacher is not None, "a teacher comes from the recipe"
                    loss = taught_loss(loss, logits, told, recipe.teacher)
            if recipe.inplace_distillation and largest is None:
                largest = logits.detach()
            loss = loss * weight
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _run(self, network: Any, *inputs: Any) -> Tensor:
        """Logits in float32, computed in the recipe's precision."""
        dtype = _TYPES[self._recipe.precision]
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = network(*inputs)
        return logits.float()

    def _noise(self, part: Batch) -> Tensor:
        """For stochastic depth and dropout [B, draws], each row from its sample's generator."""
        num_draws = self.supernet.num_draws
        draws = np.stack([generator.random(num_draws) for generator in part.generators])
        return torch.from_numpy(draws).to(self._device, torch.float32)

    def _move(self, archs: Sequence[Arch], norm: Tensor) -> None:
        """Moves the weights along the gradient, of that L2 norm, and their average after them."""
        if self._recipe.clip_grad_norm is not None:
            self._gradients.clip(norm, self._recipe.clip_grad_norm)
        if self._recipe.clip_grad_value is not None:
            self._gradients.clip_values(self._recipe.clip_grad_value)
        if isinstance(self.optimizer, MaskedAdamW):
            self._scaler.step(self.optimizer, owned=self._owned(tuple(archs)))
        else:
            self._scaler.step(self.optimizer)
        if self.ema is not None:
            self.ema.update(self.supernet.network)

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs beside weights and moving averages."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: it belongs to another network or optimiser.
        """
        restore_optimizer(self.optimizer, state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def _boxes_by_parameter(supernet: Supernet, archs: tuple[Arch, ...]) -> dict[Tensor, list[Box]]:
    """Parameter -> the boxes of it that the subnets own."""
    boxes = [supernet.owned_boxes(arch) for arch in archs]
    return {
        parameter: [each[name] for each in boxes if name in each]
        for name, parameter in supernet.network.named_parameters()
    }
