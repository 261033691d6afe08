"""MobileNet-like architectures and their settings: values, and which of them contain which."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from timm.layers import make_divisible

from prenas.families.base import Arch, Settings
from prenas.values import Value

Positive = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(ge=1)]


def rounded(width: float) -> int:
    """A hidden width: to the nearest multiple of 8, not below 0.9 of it."""
    return int(make_divisible(width))  # type: ignore[no-untyped-call]


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} has no middle: choose odd sizes, such as 3, 5, 7")
    return kernel


Kernel = Annotated[int, Field(ge=1), AfterValidator(_odd)]
Activation = Literal["relu", "hard_swish", "silu"]


class StageArch(Value):
    """One stage: blocks of one width, each with a kernel and an expansion ratio of its own.

    The first block takes the stride and leads from the width before to this one.
    """

    width: Positive
    kernel: tuple[Kernel, ...] = Field(min_length=1)
    expand: tuple[Ratio, ...] = Field(min_length=1)
    """Hidden width of a block over its input width, rounded to a multiple of 8."""
    stride: Literal[1, 2] = 1
    se: bool = False
    """Squeeze-and-excitation after the depthwise convolution."""
    act: Activation = "silu"
    expansion: bool = True
    """Whether blocks have a layer that widens; without it the ratio is 1 everywhere."""

    @model_validator(mode="after")
    def _one_entry_per_block(self) -> StageArch:
        if len(self.kernel) != len(self.expand):
            raise ValueError(
                f"kernel has {len(self.kernel)} entries and expand has {len(self.expand)}: both "
                "need one per block"
            )
        if not self.expansion and set(self.expand) != {1.0}:
            raise ValueError(
                f"expand is {max(self.expand):g} in a stage without expansion layers: write 1, or "
                "set expansion"
            )
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.kernel)

    def hidden(self, block: int, in_width: int) -> int:
        """Channels inside a block, of the width that comes into it."""
        if not self.expansion:
            return in_width
        return rounded(in_width * self.expand[block])

    @property
    def design(self) -> tuple[object, ...]:
        """What all subnets of a space have alike in this stage."""
        return self.stride, self.se, self.act, self.expansion


class MobileNetArch(Arch):
    """One network of inverted residual blocks: stem, stages, head.

    Example:
        MobileNetArch(stem=8, head=64, stages=(
            StageArch(width=8, kernel=(3,), expand=(1,), expansion=False),
            StageArch(width=16, kernel=(3, 5), expand=(4, 4), stride=2, se=True),
        ))
    """

    resolution: Positive | None = None
    """Side, in pixels, that images are resized to inside the network; None takes them as they
    come."""
    stem: Positive
    stages: tuple[StageArch, ...] = Field(min_length=1)
    head: Positive
    """Features before the classifier."""

    @property
    def widths(self) -> tuple[int, ...]:
        """From the stem to the last stage: stage i leads from widths[i] to widths[i + 1]."""
        return (self.stem, *(stage.width for stage in self.stages))

    @property
    def num_blocks(self) -> int:
        """In all stages."""
        return sum(stage.depth for stage in self.stages)

    @property
    def summary(self) -> str:
        parts = [] if self.resolution is None else [f"{self.resolution} px"]
        depths = "-".join(str(stage.depth) for stage in self.stages)
        parts.append(f"{'-'.join(map(str, (*self.widths, self.head)))} x {depths}")
        for word, found in self.layer_options.items():
            values = [option for stage in found for option in stage]
            low, high = min(values), max(values)
            parts.append(f"{word} {low:g}" if low == high else f"{word} {low:g}-{high:g}")
        return ", ".join(parts)

    @property
    def network_options(self) -> dict[str, float]:
        options: dict[str, float] = {}
        if self.resolution is not None:
            options["resolution"] = self.resolution
        options["stem"] = self.stem
        for number, stage in enumerate(self.stages, start=1):
            options[f"width_{number}"] = stage.width
            options[f"depth_{number}"] = stage.depth
        return {**options, "head": self.head}

    @property
    def layer_options(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        return {
            "kernel": tuple(stage.kernel for stage in self.stages),
            "expand": tuple(stage.expand for stage in self.stages),
        }


class MobileNetSettings(Settings):
    """What all networks of a space share besides the input."""

    stem_stride: Literal[1, 2] = 2
    stem_act: Activation = "silu"
    head_act: Activation = "silu"
    head_expand: Ratio = 6
    """Channels before pooling over the width of the last stage."""
    shortcut: Literal["projected", "identity"] = "projected"
    """`projected`: around every block, pooled and projected where its ends differ, as in the
    published space. `identity`: only where they do not, as in stock networks."""


def balancing_group(arch: MobileNetArch) -> tuple[int, ...]:
    """Subnets of equal resolution and number of blocks form one group of the balanced sampling."""
    return arch.resolution or 0, arch.num_blocks


def envelope(archs: Sequence[MobileNetArch]) -> MobileNetArch:
    """Largest resolution, widths and depths, and per block the largest kernel and ratio."""
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


def _largest(options: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Block by block, of as many blocks as any has."""
    return tuple(
        max(option for option in block if option is not None) for block in zip_longest(*options)
    )


def check_contains(largest: MobileNetArch, arch: MobileNetArch) -> None:
    """Raises ValueError unless every part of `arch` exists in `largest`."""
    if [stage.design for stage in arch.stages] != [stage.design for stage in largest.stages]:
        raise ValueError(
            "this architecture does not fit into the supernet: its stages are others (their "
            "number, stride, squeeze-and-excitation, activation or expansion). Take architectures "
            "of one space"
        )
    problems = []
    if arch.stem > largest.stem:
        problems.append(f"stem {arch.stem} > {largest.stem}")
    if arch.head > largest.head:
        problems.append(f"head {arch.head} > {largest.head}")
    for number, (ours, most) in enumerate(zip(arch.stages, largest.stages, strict=True)):
        where = f"in stage {number + 1}"
        if ours.width > most.width:
            problems.append(f"width {ours.width} > {most.width} {where}")
        if ours.depth > most.depth:
            problems.append(f"depth {ours.depth} > {most.depth} {where}")
        for block in range(min(ours.depth, most.depth)):
            if ours.kernel[block] > most.kernel[block]:
                sizes = f"{ours.kernel[block]} > {most.kernel[block]}"
                problems.append(f"kernel {sizes} in block {block} of stage {number + 1}")
            hidden, limit = (
                stage.hidden(block, stage.width if block else one.widths[number])
                for one, stage in ((arch, ours), (largest, most))
            )
            if hidden > limit:
                sizes = f"{hidden} > {limit}"
                problems.append(f"hidden width {sizes} in block {block} of stage {number + 1}")
    if problems:
        raise ValueError(
            f"this architecture does not fit into the supernet: {'; '.join(problems)}. "
            "Choose one inside the supernet, or train a larger supernet"
        )
