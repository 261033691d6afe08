"""MobileNet-like architectures, their settings and search spaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from timm.layers import make_divisible

from prenas.families.base import (
    Arch,
    Choices,
    LayerAxis,
    SearchSpace,
    Settings,
    Stage,
)
from prenas.values import Value

Positive = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(ge=1)]


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
        return int(make_divisible(in_width * self.expand[block]))

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


Options = Annotated[tuple[Positive, ...], Field(min_length=1)]


def _rising(options: tuple[float, ...]) -> tuple[float, ...]:
    if list(options) != sorted(set(options)):
        raise ValueError(
            f"the options {list(options)} must rise, each once: write {sorted(set(options))}"
        )
    return options


Rising = AfterValidator(_rising)


class StageOptions(Value):
    """The options of one stage, from small to large, and its fixed design."""

    width: Annotated[Options, Rising]
    depth: Annotated[Options, Rising]
    kernel: Annotated[tuple[Kernel, ...], Field(min_length=1), Rising] = (3,)
    expand: Annotated[tuple[Ratio, ...], Field(min_length=1), Rising]
    stride: Literal[1, 2] = 1
    se: bool = False
    act: Activation = "silu"
    expansion: bool | None = None
    """Whether blocks have a layer that widens; None: if the largest ratio is more than 1."""

    @property
    def has_expansion(self) -> bool:
        """Whether blocks have a layer that widens."""
        return self.expand[-1] > 1 if self.expansion is None else self.expansion

    @property
    def axes(self) -> tuple[LayerAxis, ...]:
        """Chosen per block."""
        return LayerAxis("kernel", self.kernel), LayerAxis("expand", self.expand)


class MobileNetSpace(SearchSpace):
    """Options for the stem, every stage and the head; per block, kernel and expansion ratio."""

    family: Literal["mobilenet"] = "mobilenet"
    resolution: Annotated[tuple[Positive, ...], Rising] = ()
    """Sides that networks resize their images to; empty: images are taken as they come."""
    schedule: tuple[tuple[Positive, Positive], ...] = ()
    """(MACs, resolution): networks of fewer MACs than that have this resolution, those of more
    than all the largest; empty: the resolution nearest to the image size."""
    stem: Annotated[Options, Rising]
    stages: tuple[StageOptions, ...] = Field(min_length=1)
    head: Annotated[Options, Rising]
    tied: bool = True
    """Whether all blocks of a stage take the same kernel and expansion ratio."""
    settings: MobileNetSettings = MobileNetSettings()

    @model_validator(mode="after")
    def _resolutions_suit(self) -> MobileNetSpace:
        height, width = self.settings.image_size
        if self.resolution and height != width:
            raise ValueError(
                f"image_size {self.settings.image_size} is not square, but networks resize to "
                f"squares of {', '.join(map(str, self.resolution))} pixels: choose a square, or "
                "leave resolution out"
            )
        unknown = [side for _, side in self.schedule if side not in self.resolution]
        if unknown:
            raise ValueError(
                f"the schedule names resolution {unknown[0]}, which is none of "
                f"{list(self.resolution)}: add it, or change the schedule"
            )
        return self

    @property
    def chain(self) -> tuple[Stage, ...]:
        """Stem, stages, head."""
        stages = (Stage(o.width, o.depth, o.axes, self.tied) for o in self.stages)
        return (Stage(self.stem), *stages, Stage(self.head))

    @property
    def resolutions(self) -> tuple[int | None, ...]:
        return self.resolution or (None,)

    def resolution_for(self, macs: int) -> int | None:
        if not self.resolution:
            return None
        if not self.schedule:
            return self._scored_resolution
        return next((side for limit, side in self.schedule if macs < limit), self.resolution[-1])

    @property
    def _scored_resolution(self) -> int | None:
        """That of the images, or the nearest to it."""
        side = self.settings.image_size[0]
        return min(self.resolution, key=lambda one: (abs(one - side), one), default=None)

    def compose(self, choices: Choices, resolution: int | None = None) -> MobileNetArch:
        stem, *stages, head = choices
        return MobileNetArch(
            resolution=resolution or self._scored_resolution,
            stem=self.stem[stem.width],
            stages=tuple(
                StageArch(
                    width=options.width[choice.width],
                    kernel=tuple(options.kernel[one] for one in choice.options[0]),
                    expand=tuple(options.expand[one] for one in choice.options[1]),
                    stride=options.stride,
                    se=options.se,
                    act=options.act,
                    expansion=options.has_expansion,
                )
                for options, choice in zip(self.stages, stages, strict=True)
            ),
            head=self.head[head.width],
        )

    @property
    def supernet(self) -> MobileNetArch:
        return self.compose(self.extreme(-1), self.resolutions[-1])


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


def space_of(
    name: str, archs: Sequence[MobileNetArch], settings: MobileNetSettings
) -> MobileNetSpace:
    """The space of all options that occur in the given architectures."""
    return MobileNetSpace(
        name=name,
        resolution=_options([arch.resolution] for arch in archs if arch.resolution),
        stem=_options([arch.stem] for arch in archs),
        stages=tuple(
            StageOptions(
                width=_options([stage.width] for stage in stages),
                depth=_options([stage.depth] for stage in stages),
                kernel=_options(stage.kernel for stage in stages),
                expand=_options(stage.expand for stage in stages),
                stride=stages[0].stride,
                se=stages[0].se,
                act=stages[0].act,
                expansion=stages[0].expansion,
            )
            for stages in zip(*(arch.stages for arch in archs), strict=True)
        ),
        head=_options([arch.head] for arch in archs),
        tied=all(
            len(set(options)) == 1
            for arch in archs
            for stages in arch.layer_options.values()
            for options in stages
        ),
        settings=settings,
    )


def _options(groups: Iterable[Iterable[float]]) -> tuple[Any, ...]:
    """Every value once, in rising order."""
    return tuple(sorted({value for group in groups for value in group}))
