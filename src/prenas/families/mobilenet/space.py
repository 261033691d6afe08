"""Search spaces of MobileNet-like networks: options for the stem, every stage and the head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prenas.families.base import (
    NOT_TOO_DEEP,
    OPTIONAL,
    OPTIONS,
    Choices,
    LayerAxis,
    SearchSpace,
    Stage,
)
from prenas.families.mobilenet.arch import (
    Activation,
    Kernel,
    MobileNetArch,
    MobileNetSettings,
    Positive,
    Ratio,
    StageArch,
)
from prenas.values import Value

Options = Annotated[tuple[Positive, ...], *OPTIONS]


class StageOptions(Value):
    """The options of one stage, from small to large, and its fixed design."""

    width: Options
    depth: Annotated[tuple[Positive, ...], *OPTIONS, NOT_TOO_DEEP]
    kernel: Annotated[tuple[Kernel, ...], *OPTIONS] = (3,)
    expand: Annotated[tuple[Ratio, ...], *OPTIONS]
    stride: Literal[1, 2] = 1
    se: bool = False
    act: Activation = "silu"
    expansion: bool | None = None
    """Whether blocks have a layer that widens; None: if the largest ratio is more than 1."""

    @model_validator(mode="after")
    def _expansion_suits(self) -> StageOptions:
        if self.expansion is False and self.expand != (1.0,):
            raise ValueError(
                f"expand is {list(self.expand)} in a stage without expansion layers: write 1, or "
                "leave expansion out"
            )
        return self

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
    resolution: Annotated[tuple[Positive, ...], *OPTIONAL] = ()
    """Sides that networks resize their images to; empty: images are taken as they come."""
    schedule: tuple[tuple[Positive, Positive], ...] = ()
    """(MACs, resolution): networks of fewer MACs than that have this resolution, those of more
    than all the largest; empty: the resolution nearest to the image size."""
    stem: Options
    stages: tuple[StageOptions, ...] = Field(min_length=1)
    head: Options
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
        if list(self.schedule) != sorted(set(self.schedule)):
            raise ValueError(
                f"the schedule {list(self.schedule)} must rise: write {sorted(set(self.schedule))}"
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
