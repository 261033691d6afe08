"""The gain of torch.compile: training steps of a subnet, compiled or not, and when it pays off.

Measured on the digits and at 224 pixels; also compares compiled steps with and without relative
positions.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.networks import published, some_images, without_relative_positions
from benchmarks.paired import Options, Ratio, Section, ratio, take_turns
from prenas import get_recipe
from prenas.families.base import Arch, Settings
from prenas.randomness import torch_generator
from prenas.supernet import Supernet
from prenas.training.compiled import Compiled
from prenas.training.gradients import GradientBuffer
from prenas.training.subnets import BoundSubnets

_DIGITS_REPEATS = 10  # turns of digits per turn of the large network: their steps are short


def measure(options: Options) -> Section:
    with tempfile.TemporaryDirectory() as empty:  # so that the compiler starts without a cache
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        return _measure(options)


def _measure(options: Options) -> Section:
    ratios: list[Ratio] = []
    facts: dict[str, Any] = {}
    space = get_recipe("digits").space
    works = {
        "digits, largest subnet, batch 64, 1 thread": (space.largest, space.settings, 64, 1),
        "tiny, 6.0 M parameters, batch 32": (*published(0), 32, options.threads),
    }
    for name, (arch, settings, num_images, threads) in works.items():
        torch.set_num_threads(threads)
        steps = {
            "plain": _step(arch, settings, num_images, compiled=False),
            "compiled": _step(arch, settings, num_images, compiled=True),
        }
        if threads > 1:
            steps["none, compiled"] = _step_without_positions(num_images)
        started = time.perf_counter()
        steps["compiled"]()
        compile_seconds = time.perf_counter() - started
        rounds = options.rounds * (_DIGITS_REPEATS if threads == 1 else 1)
        seconds = take_turns(steps, rounds)
        ratios.append(
            ratio(
                f"forward and backward, compiled / not, {name}", *_of(seconds, "compiled", "plain")
            )
        )
        if threads > 1:
            ratios.append(
                ratio(
                    f"both compiled, fused / no relative positions, {name}",
                    *_of(seconds, "compiled", "none, compiled"),
                )
            )
        plain, compiled = (statistics.median(seconds[key]) for key in ("plain", "compiled"))
        facts[f"compiling one subnet, {name}, s"] = compile_seconds
        facts[f"forward and backward, {name}, s"] = plain
        saved = plain - compiled
        facts[f"steps of that subnet until it has paid, {name}"] = (
            math.ceil(compile_seconds / saved) if saved > 0 else "never: it is not faster"
        )
    torch.set_num_threads(options.threads)
    return Section("torch.compile", tuple(ratios), facts)


def _of(seconds: dict[str, list[float]], over: str, under: str) -> tuple[list[float], list[float]]:
    return seconds[over], seconds[under]


def _step(
    arch: Arch, settings: Settings, num_images: int, *, compiled: bool
) -> Callable[[], object]:
    supernet = Supernet(arch, settings, drop_path=0.1)
    supernet.initialize(torch_generator(0, "weights")).train()
    gradients = GradientBuffer(supernet.network.parameters())
    network = BoundSubnets(supernet, compiled_for=num_images if compiled else None)(arch)
    images, labels = some_images(num_images, settings)
    noise = torch.rand(num_images, supernet.family.num_branches(arch))

    def step() -> None:
        gradients.zero()
        cross_entropy(network(images, noise), labels).backward()

    return step


def _step_without_positions(num_images: int) -> Callable[[], object]:
    arch, settings = published(0)
    network = without_relative_positions(arch, settings).train()
    compiled = Compiled(network, num_images)
    images, labels = some_images(num_images, settings)
    noise = torch.rand(num_images, 2 * arch.depth)

    def step() -> None:
        network.zero_grad()
        cross_entropy(compiled(images, noise), labels).backward()

    return step
