"""Estimates the time and memory of a training from a few measured steps, before it starts."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from prenas.cost import count
from prenas.data import Batch, ImageData, bytes_ahead, num_batches, num_samples, training_batches
from prenas.data.cores import usable_cores
from prenas.evaluation.calibration import num_calibrated
from prenas.families.base import Arch, SearchSpace, Settings
from prenas.length import Length, length_of, proportional_steps
from prenas.processes import local_world_size
from prenas.recipe import CalibrationRecipe, TrainingRecipe
from prenas.recipe.fields import LARGEST_NUMBER
from prenas.supernet import Supernet
from prenas.training.graphs import STEPS_BEFORE
from prenas.training.sampler import Sampler, make_sampler
from prenas.training.step import TrainingStep
from prenas.training.teacher import Teacher
from prenas.training.validation import validations_due

_MOST_IMAGES = 32  # per measured step on a processor; time is proportional to it
_NUM_TIMED = 2  # timed steps per subnet, after one to warm up
_MOST_SUBNETS = 8
_NUM_DRAWS = 500  # steps from which the share of each subnet is estimated
_BYTES = 4  # float32
_COPIES = {"sgd": 3, "adamw": 4, "masked_adamw": 5}  # weights, gradients, moments, step counts
_FORWARD_SHARE = 1 / 3  # of the time of a training step


class SubnetCost(NamedTuple):
    """Cost of a training step of one subnet, measured per image."""

    arch: Arch
    seconds: float
    activation_bytes: int
    """Memory that the forward pass keeps for the backward pass."""


class _Between(NamedTuple):
    """The time of a validation during the training."""

    seconds: float
    """For the images of its calibration."""
    seconds_per_subnet: float

    def of(self, num_subnets: int) -> float:
        """The time of one validation of so many subnets."""
        return self.seconds + num_subnets * self.seconds_per_subnet

    def total(self, archs: Sequence[Arch], training: TrainingRecipe, length: Length) -> float:
        """The time of all validations of a training."""
        weights = 1 if training.ema_decay is None else 2
        due = validations_due(archs, training, length)
        return weights * sum(self.of(len(archs)) for archs in due)


class Estimate(NamedTuple):
    """Time and memory of a training on this machine, if nothing else runs on it."""

    costs: tuple[SubnetCost, ...]
    """Costs of the measured subnets: all of them, or a sample from the smallest to the largest."""
    images_per_step: int
    """Images in a measured step; the steps of the training may have more."""
    steps_per_epoch: int
    num_steps: int
    loading_seconds: float
    """Reading and augmenting one image in one process; workers share this and run in parallel."""
    training_seconds: float
    """The training steps alone."""
    validation_seconds: float
    """Validations during the training, and the calibrations before them."""
    calibration_seconds: float
    """Calibration of all preferred subnets at the end; 0 if there is nothing to calibrate."""
    evaluation_seconds: float
    """Evaluation of all preferred subnets on every split at the end."""
    state_bytes: int
    """Weights, gradients, moments, step counts and moving average of the supernet."""
    activation_bytes: int
    """Activations in a full step of the most expensive subnet."""
    machine_bytes: int
    """Total memory of the device."""
    num_readers: int
    """Processes that read images."""
    reading_bytes: int
    """Shared memory for the batches that they prepare ahead."""
    between: _Between
    """What one validation during the training takes."""

    def with_steps(self, steps: int, archs: Sequence[Arch], training: TrainingRecipe) -> Estimate:
        """The same measurements for a training of so many steps."""
        length = Length(self.steps_per_epoch, steps, is_in_steps=True)
        return self._replace(
            num_steps=steps,
            training_seconds=self.training_seconds / self.num_steps * steps,
            validation_seconds=self.between.total(archs, training, length),
        )

    @property
    def total_seconds(self) -> float:
        """Training, validations, calibration and evaluation together."""
        training = self.training_seconds + self.validation_seconds
        return training + self.calibration_seconds + self.evaluation_seconds


def estimate_training(
    supernet: Supernet,
    archs: Sequence[Arch],
    data: ImageData,
    training: TrainingRecipe,
    *,
    seed: int = 0,
    space: SearchSpace | None = None,
    teacher: Teacher | None = None,
    calibration: CalibrationRecipe | None = None,
) -> Estimate:
    """Measures a few steps on real batches and extrapolates; changes the supernet's weights.

    Args:
        space: the space that `train_supernet` trains on instead of `archs`.
        calibration: how subnets with BatchNorm are calibrated after the training; None: the
            default.

    Raises:
        ValueError: the training split is empty, or the data do not fit the network.
    """
    device = next(supernet.parameters()).device
    images_per_step = min(_measured_at_once(training, device), num_samples(data.train))
    steps_per_epoch = num_batches(data.train, training.batch_size)
    if images_per_step == 0:
        raise ValueError("the training split is empty: give at least one image")
    alone = replace(data, num_workers=0)  # workers would read ahead before the clock starts
    batches = chain.from_iterable(  # a small set has only one batch per epoch
        training_batches(alone, supernet.settings, images_per_step, seed, epoch)
        for epoch in range(1 + _NUM_TIMED)
    )
    first = next(batches)
    started = time.perf_counter()
    others = list(islice(batches, _NUM_TIMED))
    num_loaded = sum(len(batch.labels) for batch in others)
    loading = (time.perf_counter() - started) / num_loaded

    measure = _Measure(supernet.train(), training)
    stride = max(1, -(-len(archs) // _MOST_SUBNETS))
    chosen = [*archs[::-1][::stride][::-1]]  # always includes the largest
    costs = tuple(measure(arch, first) for arch in chosen)
    per_image = _mean_seconds(costs, make_sampler(archs, training, seed, space), supernet.settings)
    if teacher is not None:  # it runs once per step, however many subnets learn from it
        per_image += measure.seconds_of(teacher, first)
    length = length_of(training, steps_per_epoch)
    # The last step of an epoch may have fewer images than the others.
    num_trained = length.num_steps * num_samples(data.train) / steps_per_epoch
    workers = data.num_workers
    per_image_loaded = _with_reading(per_image, loading, workers, device)
    num_evaluated = sum(num_samples(split) for split in data.splits.values())
    mean_forward = sum(cost.seconds for cost in costs) / len(costs) * _FORWARD_SHARE
    calibrates = calibration or CalibrationRecipe()
    asked = (calibrates.num_images, calibrates.while_training)
    num_final, num_between = (
        num_calibrated(data, calibrates, number) * supernet.has_statistics for number in asked
    )
    num_validated = num_samples(data.validation) * data.num_crops
    between = _Between(
        seconds=num_between * loading,
        seconds_per_subnet=(num_between + num_validated) * mean_forward,
    )
    num_params = sum(parameter.numel() for parameter in supernet.parameters())
    return Estimate(
        costs=costs,
        images_per_step=images_per_step,
        steps_per_epoch=steps_per_epoch,
        num_steps=length.num_steps,
        loading_seconds=loading,
        training_seconds=num_trained * per_image_loaded,
        validation_seconds=between.total(archs, training, length),
        between=between,
        calibration_seconds=num_final * (loading + len(archs) * mean_forward),
        evaluation_seconds=num_evaluated * len(archs) * data.num_crops * mean_forward,
        state_bytes=_num_copies(training) * _BYTES * num_params,
        activation_bytes=-(-training.batch_size // training.grad_accum_steps)
        * max(cost.activation_bytes for cost in costs),
        machine_bytes=_machine_bytes(device),
        num_readers=workers,
        reading_bytes=bytes_ahead(data, supernet.settings, training.batch_size),
    )


def _measured_at_once(training: TrainingRecipe, device: torch.device) -> int:
    """Images of a measured step.

    On a processor few suffice. An accelerator takes nearly as long for few as for a whole part of a
    batch, because it waits for each kernel to be launched.
    """
    if device.type == "cpu":
        return min(training.batch_size, _MOST_IMAGES)
    return -(-training.batch_size // training.grad_accum_steps)


class Measured(NamedTuple):
    """A training that was measured, and what its time depends on."""

    estimate: Estimate
    archs: Sequence[Arch]
    training: TrainingRecipe

    def lasting(self, steps: int) -> Estimate:
        """The estimate for this number of steps."""
        return self.estimate.with_steps(steps, self.archs, self.training)


def within_time(seconds: float, *parts: Measured) -> tuple[Estimate, ...]:
    """The estimates of trainings that end one after the other, with all that follows, in this time.

    Their numbers of steps stay in the proportion that they have now.

    Raises:
        ValueError: not even a single step of the last one fits, or more steps than a training may
            have.
    """
    *_, last = (part.estimate for part in parts)

    def lasting(steps: int) -> tuple[Estimate, ...]:
        return tuple(
            part.lasting(proportional_steps(steps, part.estimate.num_steps, last.num_steps))
            for part in parts
        )

    def needed(found: Sequence[Estimate]) -> float:
        return sum(one.total_seconds for one in found)

    steps, most = 1, int(seconds * last.num_steps / last.training_seconds)
    for power in range(most.bit_length(), -1, -1):
        more = steps + 2**power
        if needed(lasting(more)) <= seconds:
            steps = more
    found = lasting(steps)
    if needed(found) > seconds:
        raise ValueError(
            f"no training fits into {seconds:.0f} s: on this machine, a single step with the "
            f"validation, calibration and evaluation after it takes {needed(found):.0f} s. "
            "Give more time, fewer budgets or a smaller data.test"
        )
    if (longest := max(one.num_steps for one in found)) > LARGEST_NUMBER:
        raise ValueError(
            f"{longest:,} training steps fit into {seconds:.0f} s on this machine, and at most "
            f"{LARGEST_NUMBER:,} are allowed: give less time"
        )
    return found


def _with_reading(training: float, reading: float, workers: int, device: torch.device) -> float:
    """Seconds per image, of which the training alone takes some, and one process for reading."""
    if not workers:
        return training + reading
    slower = max(training, reading / workers)
    if device.type != "cpu":
        return slower
    cores = max(1, usable_cores() // local_world_size())
    computing = min(torch.get_num_threads(), cores)
    return max(slower, (computing * training + reading) / cores)  # readers take cores from it


def _num_copies(training: TrainingRecipe) -> int:
    return _COPIES[training.optimizer] + (training.ema_decay is not None)


def _machine_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _mean_seconds(costs: Sequence[SubnetCost], sampler: Sampler, settings: Settings) -> float:
    """Mean seconds per image, weighted by how often each subnet is drawn.

    The time of subnets that were not measured is interpolated by their MACs.
    """
    drawn = Counter(arch for step in range(_NUM_DRAWS) for arch in sampler(step))
    measured = sorted((count(cost.arch, settings)["macs"], cost.seconds) for cost in costs)
    macs, seconds = zip(*measured, strict=True)
    each = {cost.arch: cost.seconds for cost in costs}
    for arch in drawn:
        if arch not in each:
            each[arch] = float(np.interp(count(arch, settings)["macs"], macs, seconds))
    return sum(number * each[arch] for arch, number in drawn.items()) / _NUM_DRAWS


class _Measure:
    """Times training steps, and counts the memory that they keep for the backward pass."""

    def __init__(self, supernet: Supernet, training: TrainingRecipe) -> None:
        self._supernet = supernet
        self._device = next(supernet.parameters()).device
        drawn = self._drawn = list[Arch]()  # not self: a cycle would keep gradients and moments
        # One subnet per step and full batches, to measure subnets and not strategies.
        alone = training.model_copy(
            update={
                "sandwich": None,
                "inplace_distillation": None,
                "drops_in": "all",
                "grad_accum_steps": 1,
            }
        )
        self._step = TrainingStep(supernet, lambda step: tuple(drawn), alone, steps_per_epoch=1)
        self._num_warm = STEPS_BEFORE + 1 if training.cuda_graphs else 0

    def __call__(self, arch: Arch, batch: Batch) -> SubnetCost:
        self._drawn[:] = [arch]
        kept = _KeptBytes(self._supernet)
        with kept.counting():
            self._step(0, batch)
        for _ in range(self._num_warm):
            self._take(batch)
        seconds = min(self._timed(lambda: self._take(batch)) for _ in range(_NUM_TIMED))
        return SubnetCost(arch, seconds / len(batch.labels), kept.total // len(batch.labels))

    def _take(self, batch: Batch) -> None:
        """A step, as a training takes it."""
        if self._step.may_be_late:
            self._step.begin(0, batch, stop=False, late=True)
        else:
            self._step(0, batch)

    def seconds_of(self, teacher: Teacher, batch: Batch) -> float:
        """Seconds that a teacher takes per image, in float32."""
        images = batch.images.to(self._device)
        teacher(images)
        return min(self._timed(lambda: teacher(images)) for _ in range(_NUM_TIMED)) / len(images)

    def _timed(self, action: Callable[[], object]) -> float:
        self._wait()
        started = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        """Waits for the device, which may still be working after a call returns."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


class _KeptBytes:
    """Adds up the memory that a forward pass keeps for the backward pass, without the weights."""

    def __init__(self, supernet: Supernet) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in supernet.parameters()}
        self.total = 0

    def counting(self) -> AbstractContextManager[None]:
        """Counts the memory that is kept while the block runs."""
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
