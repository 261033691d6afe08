"""Vision Transformer architectures, their settings and search spaces (method.md, section 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from prenas.families.base import (
    NOT_TOO_DEEP,
    OPTIONS,
    Arch,
    Choices,
    LayerAxis,
    SearchSpace,
    Settings,
    Stage,
)

Positive = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0)]


class VitArch(Arch):
    """One Vision Transformer: its width, and per layer the heads and the MLP ratio.

    The depth is the length of the two tuples. Example:
        VitArch(embed_dim=192, num_heads=(3, 4, 3), mlp_ratio=(4.0, 3.5, 4.0))
    """

    embed_dim: Positive
    num_heads: tuple[Positive, ...]
    mlp_ratio: tuple[Ratio, ...]

    @model_validator(mode="after")
    def _one_entry_per_layer(self) -> VitArch:
        heads, ratios = len(self.num_heads), len(self.mlp_ratio)
        if heads != ratios or heads == 0:
            raise ValueError(
                f"num_heads has {heads} entries and mlp_ratio has {ratios}: "
                "both need one per layer, and at least one layer"
            )
        if min(self.hidden_dims) == 0:
            raise ValueError(
                f"mlp_ratio {min(self.mlp_ratio):g} of embed_dim {self.embed_dim} leaves an MLP "
                "without hidden units: raise one of them"
            )
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.num_heads)

    @property
    def summary(self) -> str:
        parts = [f"{self.embed_dim} x {self.depth}"]
        for word, options in (("heads", self.num_heads), ("ratio", self.mlp_ratio)):
            lo, hi = min(options), max(options)
            parts.append(f"{word} {lo:g}" if lo == hi else f"{word} {lo:g}-{hi:g}")
        return ", ".join(parts)

    @property
    def network_options(self) -> dict[str, float]:
        return {"embed_dim": self.embed_dim, "depth": self.depth}

    @property
    def layer_options(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        return {"num_heads": (self.num_heads,), "mlp_ratio": (self.mlp_ratio,)}

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden units of each block's MLP: `int(embed_dim * mlp_ratio)`."""
        return tuple(int(self.embed_dim * ratio) for ratio in self.mlp_ratio)


class VitSettings(Settings):
    """What all Vision Transformers of a space share besides the input."""

    patch_size: Positive = 16
    head_dim: Positive = 64
    max_distance: Positive = 14
    """Relative positions are clipped to this many rows and columns."""

    @model_validator(mode="after")
    def _whole_patches(self) -> VitSettings:
        if any(side % self.patch_size for side in self.image_size):
            common = math.gcd(*self.image_size)
            fitting = [size for size in range(1, common + 1) if common % size == 0]
            nearest = sorted(fitting, key=lambda size: abs(size - self.patch_size))[:3]
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}: "
                f"change image_size, or choose patch_size from {', '.join(map(str, nearest))}"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row of the image: (rows, columns)."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size


class VitSpace(SearchSpace):
    """A space of Vision Transformers: the options of each axis, in rising order."""

    family: Literal["vit"] = "vit"
    name: str
    embed_dim: Annotated[tuple[Positive, ...], *OPTIONS]
    depth: Annotated[tuple[Positive, ...], *OPTIONS, NOT_TOO_DEEP]
    num_heads: Annotated[tuple[Positive, ...], *OPTIONS]
    mlp_ratio: Annotated[tuple[Ratio, ...], *OPTIONS]
    supernet_embed_dim: Positive | None = None
    """Width of the network that is initialised and scored; None means the widest option."""
    settings: VitSettings = VitSettings()

    @model_validator(mode="after")
    def _supernet_contains_all(self) -> VitSpace:
        if self.supernet_embed_dim is not None and self.supernet_embed_dim < self.embed_dim[-1]:
            raise ValueError(
                f"supernet_embed_dim {self.supernet_embed_dim} is below the widest option "
                f"{self.embed_dim[-1]} of embed_dim: raise it to that, or leave it out"
            )
        if int(self.embed_dim[0] * self.mlp_ratio[0]) == 0:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio[0]:g} of embed_dim {self.embed_dim[0]} leaves an MLP "
                "without hidden units: raise one of them"
            )
        return self

    @property
    def chain(self) -> tuple[Stage, ...]:
        """One stage: the width is that of the whole network."""
        axes = LayerAxis("num_heads", self.num_heads), LayerAxis("mlp_ratio", self.mlp_ratio)
        return (Stage(self.embed_dim, self.depth, axes),)

    def resolution_for(self, macs: int) -> None:
        return None

    def compose(self, choices: Choices, resolution: int | None = None) -> VitArch:
        (choice,) = choices
        heads, ratios = choice.options
        return VitArch(
            embed_dim=self.embed_dim[choice.width],
            num_heads=tuple(self.num_heads[option] for option in heads),
            mlp_ratio=tuple(self.mlp_ratio[option] for option in ratios),
        )

    @property
    def supernet(self) -> VitArch:
        depth = self.depth[-1]
        return VitArch(
            embed_dim=self.supernet_embed_dim or self.embed_dim[-1],
            num_heads=(self.num_heads[-1],) * depth,
            mlp_ratio=(self.mlp_ratio[-1],) * depth,
        )


def balancing_group(arch: VitArch) -> tuple[int, ...]:
    """Subnets of equal width and depth form one group of the balanced sampling."""
    return arch.embed_dim, arch.depth


def envelope(archs: Sequence[VitArch]) -> VitArch:
    """Largest width and depth, and per layer the most heads and the largest ratio."""
    depth = max(arch.depth for arch in archs)
    layers = [[arch for arch in archs if arch.depth > layer] for layer in range(depth)]
    return VitArch(
        embed_dim=max(arch.embed_dim for arch in archs),
        num_heads=tuple(max(a.num_heads[i] for a in layer) for i, layer in enumerate(layers)),
        mlp_ratio=tuple(max(a.mlp_ratio[i] for a in layer) for i, layer in enumerate(layers)),
    )


def check_contains(largest: VitArch, arch: VitArch) -> None:
    """Raises ValueError unless every part of `arch` exists in `largest`."""
    problems = []
    if arch.embed_dim > largest.embed_dim:
        problems.append(f"embed_dim {arch.embed_dim} > {largest.embed_dim}")
    if arch.depth > largest.depth:
        problems.append(f"depth {arch.depth} > {largest.depth}")
    per_layer = zip(arch.num_heads, largest.num_heads, strict=False)
    for layer, (heads, most) in enumerate(per_layer):
        if heads > most:
            problems.append(f"num_heads {heads} > {most} in layer {layer}")
    for layer, (hidden, most) in enumerate(
        zip(arch.hidden_dims, largest.hidden_dims, strict=False)
    ):
        if hidden > most:
            problems.append(f"{hidden} hidden units > {most} in layer {layer}")
    if problems:
        raise ValueError(
            f"this architecture does not fit into the supernet: {'; '.join(problems)}. "
            "Choose one inside the supernet, or train a larger supernet"
        )


def space_of(name: str, archs: Sequence[VitArch], settings: VitSettings) -> VitSpace:
    """The space of all options that occur in the given architectures."""

    def options(*values: float) -> tuple[float, ...]:
        return tuple(sorted(set(values)))

    return VitSpace.model_validate(
        {
            "name": name,
            "embed_dim": options(*(arch.embed_dim for arch in archs)),
            "depth": options(*(arch.depth for arch in archs)),
            "num_heads": options(*(heads for arch in archs for heads in arch.num_heads)),
            "mlp_ratio": options(*(ratio for arch in archs for ratio in arch.mlp_ratio)),
            "settings": settings,
        }
    )


_PUBLISHED = {
    "tiny": VitSpace(
        name="tiny",
        embed_dim=(192, 216, 240),
        num_heads=(3, 4),
        depth=(12, 13, 14),
        mlp_ratio=(3.5, 4.0),
        supernet_embed_dim=256,
    ),
    "small": VitSpace(
        name="small",
        embed_dim=(320, 384, 448),
        num_heads=(5, 6, 7),
        depth=(13, 14),
        mlp_ratio=(3.0, 3.5, 4.0),
        supernet_embed_dim=448,
    ),
    "base": VitSpace(
        name="base",
        embed_dim=(528, 576, 624),
        num_heads=(9, 10),
        depth=(14, 15, 16),
        mlp_ratio=(3.0, 3.5, 4.0),
        supernet_embed_dim=640,
    ),
}

_DIGITS = VitSpace(
    name="digits",
    embed_dim=(32, 48, 64),
    num_heads=(2, 3, 4),
    depth=(3, 4, 5),
    mlp_ratio=(2.0, 3.0, 4.0),
    settings=VitSettings(
        image_size=(8, 8), in_chans=1, num_classes=10, patch_size=2, head_dim=16, max_distance=3
    ),
)

_FASHION = VitSpace(
    name="fashion-mnist",
    embed_dim=(48, 64, 80),
    num_heads=(2, 3, 4),
    depth=(3, 4, 5),
    mlp_ratio=(2.0, 3.0),
    settings=VitSettings(
        image_size=(28, 28), in_chans=1, num_classes=10, patch_size=4, head_dim=16, max_distance=6
    ),
)

_CIFAR = VitSpace(
    name="cifar",
    embed_dim=(64, 96, 128),
    num_heads=(2, 3, 4),
    depth=(4, 5, 6),
    mlp_ratio=(2.0, 3.0),
    settings=VitSettings(
        image_size=(32, 32), num_classes=10, patch_size=4, head_dim=32, max_distance=7
    ),
)

_PHOTOS = VitSpace(
    name="photos",
    embed_dim=(64, 96, 128),
    num_heads=(2, 3, 4),
    depth=(4, 5, 6),
    mlp_ratio=(2.0, 3.0),
    settings=VitSettings(
        image_size=(96, 96), num_classes=10, patch_size=12, head_dim=32, max_distance=7
    ),
)

SPACES: dict[str, VitSpace] = {
    **_PUBLISHED,
    **{space.name: space for space in (_DIGITS, _FASHION, _CIFAR, _PHOTOS)},
}
