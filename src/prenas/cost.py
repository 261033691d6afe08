"""What an architecture costs, counted on the plain network without weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any

from prenas.families import family_of, parameter_shapes
from prenas.families.base import Arch, Cost, Settings, Shape


def count(arch: Arch, settings: Settings | None = None, **changes: Any) -> Cost:
    """Parameters and multiply-accumulates of one image through `arch`.

    Without settings the family's defaults hold (ViT: 224 px, patch 16, 3 channels, 1,000 classes,
    head_dim 64); keywords change single fields, e.g. `count(arch, num_classes=10)`.

    Raises:
        ValueError: a keyword that the family's settings do not have, or a value they refuse.
    """
    base = settings or family_of(arch).settings_type()
    return _count(arch, base.changed(**changes))


@lru_cache(maxsize=4096)
def _count(arch: Arch, settings: Settings) -> Cost:
    return count_shapes(arch, settings, parameter_shapes(arch, settings).values())


def count_shapes(arch: Arch, settings: Settings, shapes: Iterable[Shape]) -> Cost:
    """The same for who knows already what shapes the parameters of `arch` have."""
    parts = family_of(arch).work(arch, settings)
    return Cost(
        params=sum(map(prod, shapes)),
        macs=sum(part.macs for part in parts),
        relative_macs=sum(part.relative_macs for part in parts),
    )
