"""One training step: forward and backward passes of subnets, one reduction, one update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from prenas.data import Batch, part_slices, sent
from prenas.families.base import Arch, Box
from prenas.precision import autocast, float32_products
from prenas.processes import ALONE, Processes
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.distillation import inplace_distillation_loss
from prenas.training.features import Answer, answer_of, feature_loss
from prenas.training.gradients import GradientBuffer
from prenas.training.graphs import StepGraphs, recorder_for
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


class Outcome(NamedTuple):
    """The result of a step, the same in every process."""

    archs: tuple[Arch, ...]
    loss: float
    """Mean over the images of all processes, and mean or sum over the subnets of the step.

    For a subnet that learns by an alpha-divergence this is the divergence itself, although its
    gradient is that of a surrogate.
    """
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    lr: float
    is_skipped: bool
    """Whether the loss or the gradient was not finite, so that the weights did not change."""
    must_stop: bool
    """Whether any process asked to stop after this step."""


class Begun(NamedTuple):
    """A step whose numbers may still be on their way."""

    archs: tuple[Arch, ...]
    lr: float
    numbers: Tensor
    """[3] loss, votes to stop, L2 norm of the gradient."""


def read(steps: Sequence[Begun]) -> list[Outcome]:
    """The results of steps, read from the device at once."""
    rows = torch.stack([step.numbers for step in steps]).tolist() if steps else []
    return [
        Outcome(
            archs=step.archs,
            loss=row[0],
            grad_norm=row[2],
            lr=step.lr,
            is_skipped=not _is_finite(row),
            must_stop=row[1] > 0,
        )
        for step, row in zip(steps, rows, strict=True)
    ]


def _is_finite(numbers: Sequence[float]) -> bool:
    loss, _, norm = numbers
    return math.isfinite(loss) and math.isfinite(norm)


class TrainingStep:
    """Trains the subnets that a sampler chooses; owns optimiser, schedule and moving average."""

    def __init__(
        self,
        supernet: Supernet,
        sampler: Sampler,
        training: TrainingRecipe,
        steps_per_epoch: int,
        *,
        teacher: Teacher | None = None,
        class_weights: Tensor | None = None,
        processes: Processes = ALONE,
        most_kept: int = MOST_KEPT,
    ) -> None:
        """`most_kept`: number of subnets whose networks are kept from step to step."""
        self.supernet = supernet
        parameters = trained_parameters(supernet.network, training)
        self.optimizer = make_optimizer(supernet.network, training)
        if isinstance(self.optimizer, MaskedAdamW):
            self.optimizer.most_kept = most_kept
        self.device = next(supernet.parameters()).device
        self._sampler, self._training, self._teacher = sampler, training, teacher
        self._processes = processes
        self._class_weights = None if class_weights is None else class_weights.to(self.device)
        self._schedule = make_schedule(self.optimizer, training, steps_per_epoch)
        self._gradients = GradientBuffer(parameters, num_extras=2)
        share = len(processes.share(range(training.batch_size)))
        part = math.ceil(share / training.grad_accum_steps) if training.compile else None
        self._subnets = BoundSubnets(
            supernet,
            compiled_for=part,
            most_kept=most_kept,
            features=training.teacher is not None and training.teacher.feature_weight > 0,
        )
        self._owned = lru_cache(maxsize=most_kept)(partial(_boxes_by_parameter, supernet))
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=training.precision == "fp16")
        # The scaler creates its state on first use. Do it here: a share may have no images.
        self._scaler.scale(torch.zeros((), device=self.device))
        self.ema: ModelEmaV3 | None = None
        if training.ema_decay is not None:
            self.ema = ModelEmaV3(supernet.network, decay=training.ema_decay)
        recorder = recorder_for(self.device) if training.cuda_graphs else None
        self._graphs: StepGraphs | None = None
        if recorder is not None:
            self._graphs = StepGraphs(
                self._subnets.addresses, self.optimizer, recorder, self.device
            )

    @property
    def num_replayed(self) -> int:
        """Steps so far that were graphs."""
        return 0 if self._graphs is None else self._graphs.num_replayed

    @property
    def may_be_late(self) -> bool:
        """Whether steps are worth reading later, on a device that works on while nobody waits for
        it, and can be: the optimiser must leave the weights alone where the device finds that the
        gradient is not finite."""
        can_be_left_out = isinstance(self.optimizer, torch.optim.AdamW) and self.ema is None
        return self.device.type == "cuda" and can_be_left_out and not self._scaler.is_enabled()

    def __call__(self, step: int, batch: Batch, *, stop: bool = False) -> Outcome:
        """Trains the subnets of a step on this process's share of a batch.

        Whether loss and gradient are finite is checked after they are added up over all processes,
        so all processes take the same decision and their loss scalers stay the same.

        Args:
            step: index of the step, from 0.
            stop: ask all processes to stop after this step.
        """
        (outcome,) = read([self.begin(step, batch, stop=stop, late=False)])
        return outcome

    def begin(self, step: int, batch: Batch, *, stop: bool, late: bool) -> Begun:
        """As a call, for `read` to look at.

        Args:
            late: only if `may_be_late`: nothing waits for the device.
        """
        with float32_products(self._training.precision, self.device):
            return self._begun(step, batch, stop=stop, late=late)

    def _begun(self, step: int, batch: Batch, *, stop: bool, late: bool) -> Begun:
        self._schedule.step_update(step)
        archs = self._sampler(step)
        noise = self._noise(batch.generators, len(archs))
        if self._graphs is None or not late:
            numbers = self._computed(archs, batch, noise, float(stop), late=late)
        else:
            numbers = self._graphs(
                partial(self._computed, late=True),
                partial(self._networks, archs),
                tuple(archs),
                batch,
                noise,
                stop=stop,
            )
        return Begun(archs, learning_rate(self.optimizer), numbers)

    def _networks(self, archs: Sequence[Arch]) -> tuple[object, ...]:
        num_dropping = len(archs) if self._training.drops_in == "all" else 1
        return tuple(
            self._subnets(arch, drops=number < num_dropping) for number, arch in enumerate(archs)
        )

    def _computed(
        self,
        archs: Sequence[Arch],
        batch: Batch,
        noise: Tensor,
        stop: Tensor | float,
        *,
        late: bool,
    ) -> Tensor:
        """Passes, reduction and update; returns the numbers of the step [3].

        Args:
            stop: 1 to ask all processes to stop.
            late: nothing is read from the device, so that all of it can be recorded as a graph.
        """
        self._gradients.zero()
        loss = torch.zeros((), device=self.device)
        num_parts = self._training.grad_accum_steps
        slices = part_slices(len(batch.labels), num_parts)
        for where, part in zip(slices, batch.parts(num_parts), strict=True):
            loss += self._backward(part, archs, noise[:, where])
        self._gradients.extras[0].copy_(loss)
        self._gradients.extras[1].fill_(stop)  # assigned, a number would travel from the host
        self._processes.add_up(self._gradients.message)  # the one reduction of a step

        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
        norm = self._gradients.norm()
        # One read for all: on an accelerator, each read waits for all queued work.
        numbers = torch.stack([*self._gradients.extras, norm])
        if late:
            is_finite = numbers[::2].isfinite().all()  # a list of indices would come from the host
            self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            self._move(archs, norm)
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
        else:
            numbers = numbers.cpu()
            if _is_finite(numbers.tolist()):
                self._move(archs, norm)
        self._scaler.update()
        return numbers

    def _backward(self, part: Batch, archs: Sequence[Arch], noise: Tensor) -> Tensor:
        """Adds the gradients of a part of the batch; returns its share of the loss.

        `noise`: [subnets that drop something, B, draws].
        """
        training, total, largest = self._training, torch.zeros((), device=self.device), None
        images, labels = part.images.to(self.device), part.labels.to(self.device)
        told = None if self._teacher is None else self._run(self._teacher, images)
        weight = len(part.labels) / part.total
        if training.sandwich_loss == "mean":
            weight /= len(archs)
        for number, arch in enumerate(archs):  # the largest is the first
            drops = number < len(noise)
            own = noise[number] if drops else None
            answer = self._run(self._subnets(arch, drops=drops), images, own)
            if largest is not None:
                assert training.inplace_distillation is not None, (
                    "without distillation there is no largest"
                )
                loss = inplace_distillation_loss(
                    answer.logits, largest, training.inplace_distillation
                )
            else:
                loss = self._loss(answer, labels, told)
            if training.inplace_distillation and largest is None:
                largest = answer.logits.detach()
            loss = loss * weight
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss(self, ours: Answer, labels: Tensor, theirs: Answer | None) -> Tensor:
        """The loss against the labels, and against the teacher if there is one."""
        loss = label_loss(ours.logits, labels, self._training, self._class_weights)
        if theirs is None:
            return loss
        teacher = self._training.teacher
        assert teacher is not None, "a teacher comes from the recipe"
        loss = taught_loss(loss, ours.logits, theirs.logits, teacher)
        if ours.features is not None and theirs.features is not None:
            loss = loss + teacher.feature_weight * feature_loss(ours.features, theirs.features)
        return loss

    def _run(self, network: Any, *inputs: Any) -> Answer:
        """The answer in float32, computed at the precision of the recipe."""
        with autocast(self._training.precision, self.device):
            logits, features = answer_of(network(*inputs))
        return Answer(logits.float(), None if features is None else features.float())

    def _noise(self, generators: Sequence[np.random.Generator], num_archs: int) -> Tensor:
        """Noise for stochastic depth and dropout [subnets that drop something, B, draws].

        One generator per image gives that of all subnets, one after the other. It goes to the
        device in one copy, for which an accelerator does not wait.
        """
        shape = (num_archs if self._training.drops_in == "all" else 1, self.supernet.num_draws)
        draws = np.empty((shape[0], len(generators), shape[1]), np.float32)
        for image, generator in enumerate(generators):
            draws[:, image] = generator.random(shape)
        return sent(torch.from_numpy(draws), self.device)

    def _move(self, archs: Sequence[Arch], norm: Tensor) -> None:
        """Clips the gradient, whose L2 norm is `norm`; updates the weights and their average."""
        if self._training.clip_grad_norm is not None:
            self._gradients.clip(norm, self._training.clip_grad_norm)
        if self._training.clip_grad_value is not None:
            self._gradients.clip_values(self._training.clip_grad_value)
        if isinstance(self.optimizer, MaskedAdamW):
            self._scaler.step(self.optimizer, owned=self._owned(tuple(archs)))
        else:
            self._scaler.step(self.optimizer)
        if self.ema is not None:
            self.ema.update(self.supernet.network)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs in addition to weights and moving averages."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: the state belongs to another network or optimiser.
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
