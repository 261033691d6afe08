"""Which preferred subnet a step trains, from the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence

from prenas.families import family_of
from prenas.families.base import Arch
from prenas.randomness import numpy_generator


class BalancedSampler:
    """Performance balancing (method.md, section 4): draw a group uniformly, then a member.

    The family names the group of a subnet (ViT: width and depth), so that a width or depth with
    many preferred subnets does not take most of the steps. Every process that asks for the same
    step gets the same subnet.
    """

    def __init__(self, archs: Sequence[Arch], seed: int) -> None:
        groups: dict[tuple[int, ...], list[Arch]] = {}
        for arch in archs:
            groups.setdefault(family_of(arch).balancing_group(arch), []).append(arch)
        self._groups = [groups[key] for key in sorted(groups)]
        self._seed = seed

    def __call__(self, step: int) -> Arch:
        """The subnet of a step."""
        generator = numpy_generator(self._seed, "preferred subnet", step)
        group = self._groups[generator.integers(len(self._groups))]
        return group[generator.integers(len(group))]
