"""Vision Transformer architectures, their settings and search spaces (method.md, section 1)."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import model_validator

from prenas.families.base import (
    NOT_TOO_DEEP,
    OPTIONS,
    Arch,
    Chain,
    LayerAxis,
    Link,
    Links,
    SearchSpace,
    Settings,
    Stage,
    span,
)
from prenas.families.limits import (
    MOST_PATCHES,
    PER_LAYER,
    Depth,
    Pixels,
    Ratio,
    Units,
)


class VitArch(Arch):
    """One Vision Transformer: its width, and the heads and the MLP ratio of each layer.

    The depth is the length of the two tuples. Example:
        VitArch(embed_dim=192, num_heads=(3, 4, 3), mlp_ratio=(4.0, 3.5, 4.0))
    """

    embed_dim: Units
    num_heads: tuple[Units, ...] = PER_LAYER
    mlp_ratio: tuple[Ratio, ...] = PER_LAYER

    @model_validator(mode="after")
    def _one_entry_per_layer(self) -> VitArch:
        heads, ratios = len(self.num_heads), len(self.mlp_ratio)
        if heads != ratios or heads == 0:
            raise ValueError(
                f"num_heads has {heads} entries and mlp_ratio has {ratios}: each needs one entry "
                "per layer, and there must be at least one layer"
            )
        if min(self.hidden_dims) == 0:
            raise ValueError(
                f"mlp_ratio {min(self.mlp_ratio):g} at embed_dim {self.embed_dim} leaves the MLP "
                "without hidden units: raise one of them"
            )
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.num_heads)

    @property
    def links(self) -> Links:
        options = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio}
        return (Link(self.embed_dim, self.depth, options, sizes={"mlp_ratio": self.hidden_dims}),)

    @classmethod
    def from_links(cls, links: Links, resolution: int | None = None) -> Self:
        (link,) = links
        return cls.model_validate({"embed_dim": link.width, **link.options})

    @property
    def network_options(self) -> dict[str, float]:
        return {"embed_dim": self.embed_dim, "depth": self.depth}

    @property
    def summary(self) -> str:
        options = f"heads {span(self.num_heads)}, ratio {span(self.mlp_ratio)}"
        return f"{self.embed_dim} x {self.depth}, {options}"

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden units of each block's MLP: `int(embed_dim * mlp_ratio)`."""
        return tuple(int(self.embed_dim * ratio) for ratio in self.mlp_ratio)


class VitSettings(Settings):
    """What all Vision Transformers of a space share in addition to the input and the classes."""

    patch_size: Pixels = 16
    head_dim: Units = 64
    max_distance: Pixels = 14
    """The largest relative position, in patches; longer distances are clipped to it."""

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
        rows, columns = self.grid
        if rows * columns > MOST_PATCHES:
            raise ValueError(
                f"image_size {self.image_size} has {rows} x {columns} patches of patch_size "
                f"{self.patch_size}: at most {MOST_PATCHES:,} are allowed, so raise patch_size"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row of the image: (rows, columns)."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size


class VitSpace(SearchSpace[VitArch, VitSettings]):
    """A space of Vision Transformers: the options of each axis, in rising order."""

    family: Literal["vit"] = "vit"
    name: str
    embed_dim: Annotated[tuple[Units, ...], *OPTIONS]
    depth: Annotated[tuple[Depth, ...], *OPTIONS, NOT_TOO_DEEP]
    num_heads: Annotated[tuple[Units, ...], *OPTIONS]
    mlp_ratio: Annotated[tuple[Ratio, ...], *OPTIONS]
    supernet_embed_dim: Units | None = None
    """Width of the network that is initialised and scored; None: the widest option."""
    settings: VitSettings = VitSettings()

    @model_validator(mode="after")
    def _supernet_contains_all(self) -> VitSpace:
        if self.supernet_embed_dim is not None and self.supernet_embed_dim < self.embed_dim[-1]:
            raise ValueError(
                f"supernet_embed_dim {self.supernet_embed_dim} is smaller than the widest option "
                f"{self.embed_dim[-1]} of embed_dim: raise it to {self.embed_dim[-1]} or leave it "
                "out"
            )
        if int(self.embed_dim[0] * self.mlp_ratio[0]) == 0:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio[0]:g} at embed_dim {self.embed_dim[0]} leaves the MLP "
                "without hidden units: raise one of them"
            )
        return self

    @property
    def chain(self) -> Chain:
        """One stage: the width is that of the whole network."""
        axes = LayerAxis("num_heads", self.num_heads), LayerAxis("mlp_ratio", self.mlp_ratio)
        return (Stage(self.embed_dim, self.depth, axes),)

    @classmethod
    def from_chain(cls, chain: Chain, resolutions: tuple[int, ...], **fields: object) -> Self:
        (stage,) = chain
        options = {"embed_dim": stage.widths, "depth": stage.depths, **dict(stage.axes)}
        return cls.model_validate({**options, **fields})

    @property
    def supernet(self) -> VitArch:
        depth = self.depth[-1]
        return VitArch(
            embed_dim=self.supernet_embed_dim or self.embed_dim[-1],
            num_heads=(self.num_heads[-1],) * depth,
            mlp_ratio=(self.mlp_ratio[-1],) * depth,
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
