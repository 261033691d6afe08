"""MobileNet-like architectures and their settings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from timm.layers import make_divisible

from prenas.families.base import Arch, Design, Link, Links, Settings
from prenas.families.limits import MOST_LAYERS, MOST_RATIO, STAGES, Pixels, Units
from prenas.values import Value

Ratio = Annotated[float, Field(ge=1, le=MOST_RATIO)]


def rounded(width: float) -> int:
    """Rounds a hidden width to the nearest multiple of 8, but not below 90% of the width."""
    return int(make_divisible(width))  # type: ignore[no-untyped-call]


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} is even: choose odd sizes such as 3, 5, 7")
    return kernel


Kernel = Annotated[Pixels, AfterValidator(_odd)]
Activation = Literal["relu", "hard_swish", "silu"]


def design(stride: int, se: bool, act: Activation, expansion: bool) -> Design:
    """The fixed design of a stage, under the names of its fields."""
    return ("stride", stride), ("se", se), ("act", act), ("expansion", expansion)


class StageArch(Value):
    """One stage: blocks of one width, each with its own kernel and expansion ratio.

    The first block has the stride, and leads from the previous stage's width to this one.
    """

    width: Units
    kernel: tuple[Kernel, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    expand: tuple[Ratio, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    """Ratio of a block's hidden width to its input width; widths round to a multiple of 8."""
    stride: Literal[1, 2] = 1
    se: bool = False
    """Squeeze-and-excitation after the depthwise convolution."""
    act: Activation = "silu"
    expansion: bool = True
    """Whether blocks have an expansion layer; without it every ratio is 1."""

    @model_validator(mode="after")
    def _one_entry_per_block(self) -> StageArch:
        if len(self.kernel) != len(self.expand):
            raise ValueError(
                f"kernel has {len(self.kernel)} entries and expand has {len(self.expand)}: each "
                "needs one entry per block"
            )
        if not self.expansion and set(self.expand) != {1.0}:
            raise ValueError(
                f"expand is {max(self.expand):g} in a stage without expansion layers: set expand "
                "to 1, or expansion to true"
            )
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.kernel)

    def hidden(self, block: int, in_width: int) -> int:
        """Channels inside a block, given its input width."""
        if not self.expansion:
            return in_width
        return rounded(in_width * self.expand[block])

    def hidden_widths(self, in_width: int) -> tuple[int, ...]:
        """Channels inside each block, given the input width of the stage."""
        return tuple(
            self.hidden(block, self.width if block else in_width) for block in range(self.depth)
        )

    @property
    def design(self) -> Design:
        """What all subnets of a space share in this stage."""
        return design(self.stride, self.se, self.act, self.expansion)


class MobileNetArch(Arch):
    """One network of inverted residual blocks: stem, stages, head.

    Example:
        MobileNetArch(stem=8, head=64, stages=(
            StageArch(width=8, kernel=(3,), expand=(1,), expansion=False),
            StageArch(width=16, kernel=(3, 5), expand=(4, 4), stride=2, se=True),
        ))
    """

    resolution: Pixels | None = None
    """Side in pixels to which the network resizes its images; None if it does not resize."""
    stem: Units
    stages: tuple[StageArch, ...] = STAGES
    head: Units
    """Features before the classifier."""

    @property
    def widths(self) -> tuple[int, ...]:
        """From the stem to the last stage: stage i leads from widths[i] to widths[i + 1]."""
        return (self.stem, *(stage.width for stage in self.stages))

    @property
    def links(self) -> Links:
        stages = tuple(
            Link(
                stage.width,
                stage.depth,
                {"kernel": stage.kernel, "expand": stage.expand},
                stage.design,
                sizes={"expand": stage.hidden_widths(before)},
            )
            for before, stage in zip(self.widths, self.stages, strict=False)
        )
        return (Link(self.stem, name="stem"), *stages, Link(self.head, name="head"))

    @classmethod
    def from_links(cls, links: Links, resolution: int | None = None) -> Self:
        stem, *stages, head = links
        options = {
            "resolution": resolution,
            "stem": stem.width,
            "stages": tuple(link.fields for link in stages),
            "head": head.width,
        }
        return cls.model_validate(options)

    @property
    def resized_to(self) -> int | None:
        return self.resolution


class MobileNetSettings(Settings):
    """What all networks of a space share in addition to the input and the number of classes."""

    stem_stride: Literal[1, 2] = 2
    stem_act: Activation = "silu"
    head_act: Activation = "silu"
    head_expand: Ratio = 6
    """Ratio of the channels before pooling to the width of the last stage."""
    shortcut: Literal["projected", "identity"] = "projected"
    """`projected`: every block has a shortcut, which pools and projects if the block's input and
    output differ, as in the published space. `identity`: only blocks whose input and output agree
    have one, as in stock networks."""
