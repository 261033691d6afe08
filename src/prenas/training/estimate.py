"""What a training will take, from a few measured steps: time and memory, before it is begun."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from prenas.data import Batch, ImageData, num_batches, num_samples, training_batches
from prenas.families.base import Arch
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.gradients import GradientBuffer
from prenas.training.loop import batch_loss
from prenas.training.optim import make_optimizer, trained_parameters
from prenas.training.sampler import BalancedSampler

_MOST_IMAGES = 32  # per measured step; time and activations grow with the images of a step
_NUM_TIMED = 2  # steps per subnet, after one to warm up
_MOST_SUBNETS = 8
_NUM_DRAWS = 2000  # steps that stand for all when the share of each subnet is counted
_BYTES = 4  # float32
_COPIES = 4  # weights, gradients, and the optimiser's two moments
_FORWARD_SHARE = 1 / 3  # of a training step's work


class SubnetCost(NamedTuple):
    """A measured training step of one subnet, per image."""

    arch: Arch
    seconds: float
    activation_bytes: int
    """What the forward pass keeps for the backward pass."""


class Estimate(NamedTuple):
    """What a training will take on this machine, if nothing else runs on it."""

    costs: tuple[SubnetCost, ...]
    """Of the measured subnets: all of them, or some from the smallest to the largest."""
    images_per_step: int
    """Of the measured steps; the training's own steps may have more."""
    steps_per_epoch: int
    num_steps: int
    loading_seconds: float
    """Per image, reading and augmenting in one process; several share it and work beside."""
    training_seconds: float
    evaluation_seconds: float
    """Of all preferred subnets on every split, at the end."""
    state_bytes: int
    """Weights, gradients and moments of the supernet."""
    activation_bytes: int
    """Of a full step of the costliest subnet."""
    machine_bytes: int
    """Memory of the device, all of it."""


def estimate_training(
    supernet: Supernet,
    archs: Sequence[Arch],
    data: ImageData,
    recipe: TrainingRecipe,
    *,
    seed: int = 0,
) -> Estimate:
    """Measures a few steps on real batches and works out the whole; changes the supernet's weights.

    Raises:
        ValueError: an empty training split, or data that do not suit the network.
    """
    images_per_step = min(recipe.batch_size, _MOST_IMAGES, num_samples(data.train))
    steps_per_epoch = num_batches(data.train, recipe.batch_size)
    if images_per_step == 0:
        raise ValueError("the training split is empty: give at least one image")
    alone = replace(data, num_workers=0)  # processes would have read ahead before the clock starts
    batches = training_batches(alone, supernet.settings, images_per_step, seed, epoch=0)
    first = next(iter(batches))
    started = time.perf_counter()
    others = list(islice(batches, _NUM_TIMED))
    num_loaded = sum(len(batch.labels) for batch in others)
    loading = (time.perf_counter() - started) / num_loaded if num_loaded else 0.0

    measure = _Measure(supernet.train(), recipe)
    stride = max(1, -(-len(archs) // _MOST_SUBNETS))
    chosen = [*archs[::-1][::stride][::-1]]  # the largest is always among them
    costs = tuple(measure(arch, first) for arch in chosen)
    per_image = _mean_seconds(costs, archs, seed)
    num_trained = recipe.epochs * num_samples(data.train)
    workers = data.num_workers
    per_image_loaded = max(per_image, loading / workers) if workers else per_image + loading
    num_evaluated = sum(num_samples(split) for split in data.splits.values())
    mean_forward = sum(cost.seconds for cost in costs) / len(costs) * _FORWARD_SHARE
    num_params = sum(parameter.numel() for parameter in supernet.parameters())
    return Estimate(
        costs=costs,
        images_per_step=images_per_step,
        steps_per_epoch=steps_per_epoch,
        num_steps=recipe.epochs * steps_per_epoch,
        loading_seconds=loading,
        training_seconds=num_trained * per_image_loaded,
        evaluation_seconds=num_evaluated * len(archs) * data.num_crops * mean_forward,
        state_bytes=_COPIES * _BYTES * num_params,
        activation_bytes=recipe.batch_size * max(cost.activation_bytes for cost in costs),
        machine_bytes=_machine_bytes(next(supernet.parameters()).device),
    )


def _machine_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _mean_seconds(costs: Sequence[SubnetCost], archs: Sequence[Arch], seed: int) -> float:
    """Per image, each subnet as often as it will be drawn; unmeasured ones as the next larger."""
    sampler = BalancedSampler(archs, seed)
    drawn = Counter(sampler(step) for step in range(_NUM_DRAWS))
    place = {cost.arch: number for number, cost in enumerate(costs)}
    total, current = 0.0, 0
    for arch in archs:  # from the cheapest on, as the measured ones
        total += drawn[arch] * costs[current].seconds
        if arch in place:
            total += drawn[arch] * (costs[place[arch]].seconds - costs[current].seconds)
            current = min(place[arch] + 1, len(costs) - 1)
    return total / _NUM_DRAWS


class _Measure:
    """Times training steps, and counts what they keep for the backward pass."""

    def __init__(self, supernet: Supernet, recipe: TrainingRecipe) -> None:
        self._supernet, self._recipe = supernet, recipe
        self._device = next(supernet.parameters()).device
        parameters = trained_parameters(supernet.network, recipe)
        self._optimizer = make_optimizer(supernet.network, recipe)
        self._gradients = GradientBuffer(parameters)

    def __call__(self, arch: Arch, batch: Batch) -> SubnetCost:
        kept = _KeptBytes(self._supernet)
        with kept.counting():
            loss = batch_loss(self._supernet, arch, batch, self._recipe, self._device)
        loss.backward()  # type: ignore[no-untyped-call]
        seconds = min(self._timed(arch, batch) for _ in range(_NUM_TIMED))
        return SubnetCost(arch, seconds / len(batch.labels), kept.total // len(batch.labels))

    def _timed(self, arch: Arch, batch: Batch) -> float:
        self._wait()
        started = time.perf_counter()
        self._gradients.zero()
        loss = batch_loss(self._supernet, arch, batch, self._recipe, self._device)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        """Devices work on after a call returns."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


class _KeptBytes:
    """Adds up the memory that a forward pass keeps for the backward pass, weights apart."""

    def __init__(self, supernet: Supernet) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in supernet.parameters()}
        self.total = 0

    def counting(self) -> AbstractContextManager[None]:
        """Counts what is kept while the block runs."""
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
