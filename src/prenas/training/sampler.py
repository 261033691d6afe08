"""Chooses the subnets of a step from the seed and the step alone, alike in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prenas.families import family_of
from prenas.families.base import Arch, SearchSpace
from prenas.randomness import numpy_generator
from prenas.recipe import TrainingRecipe

Draw = Callable[[int, int], Arch]
"""(step, index of the draw within the step) -> a subnet."""

Sampler = Callable[[int], tuple[Arch, ...]]
"""Step -> the subnets that it trains; in a sandwich, the largest comes first."""


class BalancedSampler:
    """Performance balancing (method.md, section 4): draws a group uniformly, then a member of it.

    The family defines the group of a subnet (ViT: width and depth). Balancing keeps a width or
    depth with many preferred subnets from taking most of the steps.
    """

    def __init__(self, archs: Sequence[Arch], seed: int) -> None:
        groups: dict[tuple[int, ...], list[Arch]] = {}
        for arch in archs:
            groups.setdefault(family_of(arch).balancing_group(arch), []).append(arch)
        self._groups = [groups[key] for key in sorted(groups)]
        self._seed = seed

    def __call__(self, step: int, number: int = 0) -> Arch:
        """The subnet of a step, or of another draw in the same step."""
        position = (step, number) if number else (step,)
        generator = numpy_generator(self._seed, "preferred subnet", *position)
        group = self._groups[generator.integers(len(self._groups))]
        return group[generator.integers(len(group))]


class UniformSampler:
    """One-shot NAS: draws every choice of the whole space uniformly (SPOS, AutoFormer)."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed = space, seed

    def __call__(self, step: int, number: int = 0) -> Arch:
        """The subnet of a step, or of another draw in the same step."""
        return self._space.sample(numpy_generator(self._seed, "any subnet", step, number))


class SingleSampler:
    """One subnet per step, as PreNAS and AutoFormer train."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """The subnets that a step trains."""
        return (self._draw(step, 0),)


class SandwichSampler:
    """The largest subnet, some random ones and the smallest (Yu and Huang, arXiv 1903.05134)."""

    def __init__(self, draw: Draw, smallest: Arch, largest: Arch, num_random: int) -> None:
        self._draw, self._ends, self._num_random = draw, (largest, smallest), num_random

    def __call__(self, step: int) -> tuple[Arch, ...]:
        """The subnets that a step trains."""
        largest, smallest = self._ends
        return (largest, *(self._draw(step, n) for n in range(self._num_random)), smallest)


def make_sampler(
    archs: Sequence[Arch], training: TrainingRecipe, seed: int, space: SearchSpace | None = None
) -> Sampler:
    """The sampler that a training recipe asks for.

    Args:
        archs: the preferred subnets, the cheapest first.
        space: sample from this whole space instead.
    """
    draw: Draw = BalancedSampler(archs, seed) if space is None else UniformSampler(space, seed)
    if training.sandwich is None:
        return SingleSampler(draw)
    smallest, largest = (archs[0], archs[-1]) if space is None else (space.smallest, space.largest)
    return SandwichSampler(draw, smallest, largest, training.sandwich)
