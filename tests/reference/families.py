"""What follows from an architecture, written out by hand for each family; never optimised.

The package derives all of it from `Arch.links` and the family's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from prenas.families.base import Settings
from prenas.families.mobilenet.arch import MobileNetArch, StageArch
from prenas.families.mobilenet.space import MobileNetSpace, StageOptions
from prenas.families.vit.space import VitArch, VitSpace

Role = tuple[int, int | None]


def _once(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


def _largest(options: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(max(one for one in layer if one is not None) for layer in zip_longest(*options))


def _no_larger(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return len(ours) <= len(theirs) and all(a <= b for a, b in zip(ours, theirs, strict=False))


# --- Vision Transformers -------------------------------------------------------------------------


def vit_envelope(archs: Sequence[VitArch]) -> VitArch:
    return VitArch(
        embed_dim=max(arch.embed_dim for arch in archs),
        num_heads=_largest([arch.num_heads for arch in archs]),
        mlp_ratio=_largest([arch.mlp_ratio for arch in archs]),
    )


def vit_contains(largest: VitArch, arch: VitArch) -> bool:
    return (
        arch.embed_dim <= largest.embed_dim
        and _no_larger(arch.num_heads, largest.num_heads)
        and _no_larger(arch.hidden_dims, largest.hidden_dims)
    )


def vit_space_of(name: str, archs: Sequence[VitArch], settings: Settings) -> VitSpace:
    return VitSpace(
        name=name,
        embed_dim=_once(arch.embed_dim for arch in archs),
        depth=_once(arch.depth for arch in archs),
        num_heads=_once(heads for arch in archs for heads in arch.num_heads),
        mlp_ratio=_once(ratio for arch in archs for ratio in arch.mlp_ratio),
        settings=settings,
    )


def vit_role(arch: VitArch, name: str) -> Role:
    match = re.match(r"blocks\.(\d+)\.", name)
    return 0, int(match[1]) if match else None


def vit_layers(arch: VitArch) -> tuple[str, ...]:
    return tuple(f"blocks.{layer}." for layer in range(arch.depth))


def vit_summary(arch: VitArch) -> str:
    parts = [f"{arch.embed_dim} x {arch.depth}"]
    for word, options in (("heads", arch.num_heads), ("ratio", arch.mlp_ratio)):
        low, high = min(options), max(options)
        parts.append(f"{word} {low:g}" if low == high else f"{word} {low:g}-{high:g}")
    return ", ".join(parts)


VIT = SimpleNamespace(
    envelope=vit_envelope,
    contains=vit_contains,
    space_of=vit_space_of,
    role=vit_role,
    layers=vit_layers,
    summary=vit_summary,
    num_branches=lambda arch: 2 * arch.depth,
    balancing_group=lambda arch: (arch.embed_dim, arch.depth),
    network_options=lambda arch: {"embed_dim": arch.embed_dim, "depth": arch.depth},
    layer_options=lambda arch: {"num_heads": (arch.num_heads,), "mlp_ratio": (arch.mlp_ratio,)},
)

# --- networks of inverted residual blocks --------------------------------------------------------


def mobilenet_envelope(archs: Sequence[MobileNetArch]) -> MobileNetArch:
    return MobileNetArch(
        resolution=max(arch.resolution or 0 for arch in archs) or None,
        stem=max(arch.stem for arch in archs),
        stages=tuple(
            StageArch(
                width=max(stage.width for stage in stages),
                kernel=_largest([stage.kernel for stage in stages]),
                expand=_largest([stage.expand for stage in stages]),
                stride=stages[0].stride,
                se=stages[0].se,
                act=stages[0].act,
                expansion=stages[0].expansion,
            )
            for stages in zip(*(arch.stages for arch in archs), strict=True)
        ),
        head=max(arch.head for arch in archs),
    )


def mobilenet_contains(largest: MobileNetArch, arch: MobileNetArch) -> bool:
    if [stage.design for stage in arch.stages] != [stage.design for stage in largest.stages]:
        return False
    return (
        arch.stem <= largest.stem
        and arch.head <= largest.head
        and all(
            ours.width <= most.width
            and _no_larger(ours.kernel, most.kernel)
            and _no_larger(_hidden(arch, number), _hidden(largest, number))
            for number, (ours, most) in enumerate(zip(arch.stages, largest.stages, strict=True))
        )
    )


def _hidden(arch: MobileNetArch, number: int) -> list[int]:
    stage = arch.stages[number]
    before = arch.stages[number - 1].width if number else arch.stem
    return [stage.hidden(block, stage.width if block else before) for block in range(stage.depth)]


def mobilenet_space_of(
    name: str, archs: Sequence[MobileNetArch], settings: Settings
) -> MobileNetSpace:
    return MobileNetSpace(
        name=name,
        resolution=_once(arch.resolution for arch in archs if arch.resolution),
        stem=_once(arch.stem for arch in archs),
        stages=tuple(
            StageOptions(
                width=_once(stage.width for stage in stages),
                depth=_once(stage.depth for stage in stages),
                kernel=_once(kernel for stage in stages for kernel in stage.kernel),
                expand=_once(ratio for stage in stages for ratio in stage.expand),
                stride=stages[0].stride,
                se=stages[0].se,
                act=stages[0].act,
                expansion=stages[0].expansion,
            )
            for stages in zip(*(arch.stages for arch in archs), strict=True)
        ),
        head=_once(arch.head for arch in archs),
        tied=all(
            len(set(options)) == 1
            for arch in archs
            for stage in arch.stages
            for options in (stage.kernel, stage.expand)
        ),
        settings=settings,
    )


def mobilenet_role(arch: MobileNetArch, name: str) -> Role:
    head = len(arch.stages) + 1
    if match := re.match(r"blocks\.(\d+)\.(\d+)\.", name):
        stage, block = int(match[1]) + 1, int(match[2])
        return stage, None if stage == head else block
    return 0 if name.startswith(("conv_stem.", "bn1.")) else head, None


def mobilenet_layers(arch: MobileNetArch) -> tuple[str, ...]:
    return tuple(
        f"blocks.{number}.{block}."
        for number, stage in enumerate(arch.stages)
        for block in range(stage.depth)
    )


def mobilenet_network_options(arch: MobileNetArch) -> dict[str, float]:
    options: dict[str, float] = {} if arch.resolution is None else {"resolution": arch.resolution}
    options["stem"] = arch.stem
    for number, stage in enumerate(arch.stages, start=1):
        options |= {f"width_{number}": stage.width, f"depth_{number}": stage.depth}
    return {**options, "head": arch.head}


def mobilenet_summary(arch: MobileNetArch) -> str:
    parts = [] if arch.resolution is None else [f"{arch.resolution} px"]
    depths = "-".join(str(stage.depth) for stage in arch.stages)
    parts.append(f"{'-'.join(map(str, (*arch.widths, arch.head)))} x {depths}")
    for word in ("kernel", "expand"):
        values = [option for stage in arch.stages for option in getattr(stage, word)]
        low, high = min(values), max(values)
        parts.append(f"{word} {low:g}" if low == high else f"{word} {low:g}-{high:g}")
    return ", ".join(parts)


MOBILENET = SimpleNamespace(
    envelope=mobilenet_envelope,
    contains=mobilenet_contains,
    space_of=mobilenet_space_of,
    role=mobilenet_role,
    layers=mobilenet_layers,
    summary=mobilenet_summary,
    num_branches=lambda arch: sum(stage.depth for stage in arch.stages),
    balancing_group=lambda arch: (
        arch.resolution or 0,
        sum(stage.depth for stage in arch.stages),
    ),
    network_options=mobilenet_network_options,
    layer_options=lambda arch: {
        "kernel": tuple(stage.kernel for stage in arch.stages),
        "expand": tuple(stage.expand for stage in arch.stages),
    },
)
