"""Search spaces of MobileNet-like networks: options for the stem, every stage and the head."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prenas.families.base import (
    NOT_TOO_DEEP,
    OPTIONAL,
    OPTIONS,
    Chain,
    LayerAxis,
    SearchSpace,
    Stage,
)
from prenas.families.limits import MOST_OPTIONS, STAGES, Depth, Pixels, Units
from prenas.families.mobilenet.arch import (
    Activation,
    Kernel,
    MobileNetArch,
    MobileNetSettings,
    Ratio,
    design,
)
from prenas.values import MOST_AMOUNT, Value

Options = Annotated[tuple[Units, ...], *OPTIONS]
Macs = Annotated[int, Field(ge=1, le=MOST_AMOUNT)]


class StageOptions(Value):
    """The options of one stage, from small to large, and its design, which is fixed."""

    width: Options
    depth: Annotated[tuple[Depth, ...], *OPTIONS, NOT_TOO_DEEP]
    kernel: Annotated[tuple[Kernel, ...], *OPTIONS] = (3,)
    expand: Annotated[tuple[Ratio, ...], *OPTIONS]
    stride: Literal[1, 2] = 1
    se: bool = False
    act: Activation = "silu"
    expansion: bool | None = None
    """Whether blocks have an expansion layer; None: only if the largest ratio is more than 1."""

    @model_validator(mode="after")
    def _expansion_suits(self) -> StageOptions:
        if self.expansion is False and self.expand != (1.0,):
            raise ValueError(
                f"expand is {list(self.expand)} in a stage without expansion layers: write 1, or "
                "leave out expansion"
            )
        return self

    @property
    def has_expansion(self) -> bool:
        """Whether blocks have an expansion layer."""
        return self.expand[-1] > 1 if self.expansion is None else self.expansion

    def stage(self, tied: bool) -> Stage:
        """The stage in terms of the family contract."""
        axes = LayerAxis("kernel", self.kernel), LayerAxis("expand", self.expand)
        fixed = design(self.stride, self.se, self.act, self.has_expansion)
        return Stage(self.width, self.depth, axes, tied, fixed)


class MobileNetSpace(SearchSpace[MobileNetArch, MobileNetSettings]):
    """Options for the stem, the stages and the head; each block has a kernel and a ratio."""

    family: Literal["mobilenet"] = "mobilenet"
    resolution: Annotated[tuple[Pixels, ...], *OPTIONAL] = ()
    """Sides in pixels to which networks resize their images; empty: they do not resize."""
    schedule: tuple[tuple[Macs, Pixels], ...] = Field((), max_length=MOST_OPTIONS)
    """(MACs, resolution) pairs: a budget below this many MACs gets this resolution, and a budget
    above all of them the largest; empty: all get the resolution nearest to the image size."""
    stem: Options
    stages: tuple[StageOptions, ...] = STAGES
    head: Options
    tied: bool = True
    """Whether all blocks of a stage take the same kernel and expansion ratio."""
    settings: MobileNetSettings = MobileNetSettings()

    @model_validator(mode="after")
    def _resolutions_suit(self) -> MobileNetSpace:
        height, width = self.settings.image_size
        if self.resolution and height != width:
            raise ValueError(
                f"image_size {self.settings.image_size} is not square, but the networks resize "
                f"images to squares of {', '.join(map(str, self.resolution))} pixels: choose a "
                "square image_size, or leave out resolution"
            )
        if list(self.schedule) != sorted(set(self.schedule)):
            raise ValueError(
                f"the schedule {list(self.schedule)} must be in rising order: write "
                f"{sorted(set(self.schedule))}"
            )
        unknown = [side for _, side in self.schedule if side not in self.resolution]
        if unknown:
            raise ValueError(
                f"the schedule uses resolution {unknown[0]}, which is not among "
                f"{list(self.resolution)}: add it there, or change the schedule"
            )
        return self

    @property
    def chain(self) -> Chain:
        """Stem, stages, head."""
        stages = (options.stage(self.tied) for options in self.stages)
        return (Stage(self.stem), *stages, Stage(self.head))

    @classmethod
    def from_chain(cls, chain: Chain, resolutions: tuple[int, ...], **fields: object) -> Self:
        stem, *stages, head = chain
        options = {
            "resolution": resolutions,
            "stem": stem.widths,
            "stages": tuple(stage.fields for stage in stages),
            "head": head.widths,
            "tied": all(stage.tied for stage in stages),
        }
        return cls.model_validate({**options, **fields})

    @property
    def resolutions(self) -> tuple[int | None, ...]:
        return self.resolution or (None,)

    def resolution_for(self, macs: int) -> int | None:
        if not self.schedule:
            return self.scored_resolution
        return next((side for limit, side in self.schedule if macs < limit), self.resolution[-1])
