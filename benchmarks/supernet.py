"""The cost of weight sharing: training steps of subnets in the supernet, and of each one alone.

In the supernet: the complete step of prenas on a supernet trimmed to the envelope of its subnets,
as in a run. Alone: a copy of the same subnet in a plain PyTorch loop, with the recipe's optimiser
and clipping, and a constant learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from benchmarks.paired import Options, Ratio, Section, medians, ratio, take_turns
from prenas.data import Batch
from prenas.families.base import Arch, Box, envelope
from prenas.families.vit.published import PUBLISHED
from prenas.recipe import TrainingRecipe
from prenas.recipe.catalogue import get_recipe
from prenas.selection.search import zero_cost_search
from prenas.supernet import Supernet
from prenas.training.optim import make_optimizer
from prenas.training.step import TrainingStep
from prenas.training.subnets import BoundSubnets

_NUM_TINY_IMAGES = 32
_DIGITS_THREADS = (1, 2)
_NUM_SHARES = 8
_DIGITS_REPEATS = 5  # turns of digits per turn of the large network: their steps are short


def measure(options: Options) -> Section:
    """Steps, passes and optimisers: on the digits, with convolutions, and at 224 pixels."""
    ratios: list[Ratio] = []
    facts: dict[str, Any] = {}
    for threads in _DIGITS_THREADS:
        torch.set_num_threads(threads)
        _preferred("digits", f"digits, {threads} threads").measure(
            _DIGITS_REPEATS * options.rounds, 1.25, ratios, facts
        )
    torch.set_num_threads(1)
    _preferred("mobilenet-micro", "mobilenet-micro, 1 threads").measure(
        options.rounds, 1.25, ratios, facts
    )
    torch.set_num_threads(options.threads)
    _tiny(f"tiny, {options.threads} threads").measure(options.rounds, 1.05, ratios, facts)
    return Section("Supernet step over the step of the subnet cut out", tuple(ratios), facts)


class _Work:
    """Subnets of a supernet, each of which takes one step per turn, and the same subnets alone."""

    def __init__(
        self,
        name: str,
        supernet: Supernet,
        archs: Sequence[Arch],
        training: TrainingRecipe,
        num_images: int,
    ) -> None:
        self._name = name
        self._archs, self._training = archs, training
        settings = supernet.settings
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(
            num_images, settings.in_chans, *settings.image_size, generator=generator
        )
        self._labels = torch.arange(num_images) % settings.num_classes
        self._batch = Batch(
            self._images,
            self._labels,
            [np.random.default_rng(number) for number in range(num_images)],
            num_images,
        )
        masked = training.model_copy(update={"optimizer": "masked_adamw"})

        def new_step(one: TrainingRecipe) -> TrainingStep:
            trained = supernet.trimmed(supernet.arch, drop_path=one.drop_path).train()
            return TrainingStep(trained, lambda step: (archs[step],), one, steps_per_epoch=20)

        self._plain_step, self._masked_step = new_step(training), new_step(masked)
        self._subnets = BoundSubnets(self._plain_step.supernet)
        self._owned = [_owned(self._masked_step.supernet, arch) for arch in archs]
        self._noise = torch.rand(num_images, supernet.num_draws, generator=generator)
        self._cut = [_Cut(self._plain_step.supernet, arch, training) for arch in archs]

    def _variants(self) -> dict[str, Callable[[], object]]:
        """Name -> one turn: a step of every subnet."""

        def step_of(step: TrainingStep) -> None:
            for number in range(len(self._archs)):
                step(number, self._batch)

        def passes() -> None:
            for arch in self._archs:
                self._plain_step.supernet.zero_grad(set_to_none=False)
                logits = self._subnets(arch)(self._images, self._noise)
                self._loss(logits).backward()  # type: ignore[no-untyped-call]

        def cut_passes() -> None:
            for cut in self._cut:
                cut.optimizer.zero_grad()
                self._loss(cut.network(self._images)).backward()  # type: ignore[no-untyped-call]

        def cut_steps() -> None:
            for cut in self._cut:
                cut.optimizer.zero_grad()
                self._loss(cut.network(self._images)).backward()  # type: ignore[no-untyped-call]
                if self._training.clip_grad_norm is not None:
                    clip_grad_norm_(cut.network.parameters(), self._training.clip_grad_norm)
                cut.optimizer.step()

        return {
            "step": lambda: step_of(self._plain_step),
            "masked step": lambda: step_of(self._masked_step),
            "step, cut": cut_steps,
            "passes": passes,
            "passes, cut": cut_passes,
            "optimiser": lambda: [self._plain_step.optimizer.step() for _ in self._archs],
            "masked optimiser": lambda: [self._masked_step.optimizer.step(o) for o in self._owned],
            "optimiser, cut": lambda: [cut.optimizer.step() for cut in self._cut],
        }

    def _loss(self, logits: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, self._labels, label_smoothing=self._training.label_smoothing)

    def measure(
        self, rounds: int, target: float, ratios: list[Ratio], facts: dict[str, Any]
    ) -> None:
        """Measures, and adds the results to `ratios` and `facts`."""
        variants = self._variants()
        seconds = take_turns(variants, rounds)
        plain = {"adamw": "AdamW", "sgd": "SGD"}[self._training.optimizer]
        for what, left, right in (
            ("training step, supernet / cut", "step", "step, cut"),
            ("forward and backward, supernet / cut", "passes", "passes, cut"),
            ("optimiser, all of the supernet / cut", "optimiser", "optimiser, cut"),
            (f"training step, masked AdamW / {plain}", "masked step", "step"),
            (f"optimiser, masked AdamW / {plain}", "masked optimiser", "optimiser"),
        ):
            ratios.append(
                ratio(
                    f"{self._name}: {what}",
                    seconds[left],
                    seconds[right],
                    target=target if left == "step" else None,
                )
            )
        found = {
            "parameters of the supernet": _num_params(self._plain_step.supernet),
            "parameters of the subnets": [_num_params(cut.network) for cut in self._cut],
            **medians(seconds),
            "where the time of a step goes": _shares(variants["step"]),
            "where the time of a cut step goes": _shares(variants["step, cut"]),
        }
        facts |= {f"{self._name}: {what}": value for what, value in found.items()}


def _num_params(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _owned(supernet: Supernet, arch: Arch) -> dict[torch.Tensor, list[Box]]:
    boxes = supernet.owned_boxes(arch)
    parameters = supernet.network.named_parameters()
    return {parameter: [boxes[name]] for name, parameter in parameters if name in boxes}


def _shares(work: Callable[[], object]) -> dict[str, float]:
    """Operation -> its share of the time, for the most expensive operations."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    total = sum(times.values())
    first = sorted(times, key=lambda key: -times[key])[:_NUM_SHARES]
    return {key: round(times[key] / total, 3) for key in first}


class _Cut:
    """A subnet alone, with its optimiser."""

    def __init__(self, supernet: Supernet, arch: Arch, training: TrainingRecipe) -> None:
        self.network = supernet.cut(arch)
        self.optimizer = make_optimizer(self.network, training)


def _preferred(recipe_name: str, name: str) -> _Work:
    """The preferred subnets of a recipe in their envelope."""
    recipe = get_recipe(recipe_name)
    preferred, supernet = zero_cost_search(recipe, None, torch.device("cpu"))
    training = recipe.training
    assert training is not None, "the recipe trains"
    trimmed = supernet.trimmed(preferred.envelope)
    return _Work(name, trimmed, preferred.archs, training, training.batch_size)


def _tiny(name: str) -> _Work:
    """The cheapest published subnet in the envelope of all published ones."""
    recipe, published = get_recipe("imagenet-tiny"), PUBLISHED["tiny"]
    assert recipe.training is not None, "ImageNet is trained on"
    training = recipe.training.model_copy(update={"precision": "fp32"})
    supernet = Supernet(envelope(published), recipe.space.settings)
    supernet.initialize(torch.Generator().manual_seed(0))
    return _Work(name, supernet, published[:1], training, _NUM_TINY_IMAGES)
