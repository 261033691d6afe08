"""Search spaces of cuts: how many units each block of a timm model may keep."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prenas.families.base import OPTIONAL, OPTIONS, Chain, LayerAxis, SearchSpace, Stage
from prenas.families.limits import Pixels
from prenas.families.timm_cut.arch import (
    BlockGroups,
    TimmArch,
    TimmSettings,
    axis_names,
    design,
)
from prenas.families.timm_cut.resolutions import resolutions
from prenas.families.units import Positive


class BlockOptions(BlockGroups):
    """A block with the numbers of units that it may keep of each group."""

    options: tuple[Annotated[tuple[Positive, ...], *OPTIONS], ...]

    @model_validator(mode="after")
    def _options_exist(self) -> BlockOptions:
        if len(self.options) != len(self.groups):
            raise ValueError(
                f"block {self.name} has {len(self.groups)} groups of units, but options for "
                f"{len(self.options)}: give one list per group"
            )
        for group, options in zip(self.groups, self.options, strict=True):
            if options[-1] > group.num_units:
                raise ValueError(
                    f"block {self.name} has {group.num_units} {group.axis}, so {options[-1]} is "
                    "not an option"
                )
        return self

    @property
    def stage(self) -> Stage:
        """The block as a stage of one layer."""
        axes = tuple(map(LayerAxis, axis_names(self.groups), self.options))
        return Stage((1,), (1,), axes, design=design(self.name, self.groups))


class TimmSpace(SearchSpace[TimmArch, TimmSettings]):
    """Options for every block of a timm model; the rest of the model is never cut."""

    family: Literal["timm"] = "timm"
    blocks: tuple[BlockOptions, ...] = Field(min_length=1)
    resolution: Annotated[tuple[Pixels, ...], *OPTIONAL] = ()
    """Sides in pixels to which networks resize their images; empty: they do not resize."""
    settings: TimmSettings

    @model_validator(mode="after")
    def _resolutions_suit(self) -> TimmSpace:
        height, width = self.settings.image_size
        if self.resolution and (height != width or self.resolution[-1] > height):
            raise ValueError(
                f"networks resize images to squares of {', '.join(map(str, self.resolution))} "
                f"pixels, but image_size is {self.settings.image_size}: choose a square one that "
                "is at least as large, or leave out resolution"
            )
        return self

    @property
    def chain(self) -> Chain:
        """One stage per block, and a last one for all other tensors."""
        return (*(block.stage for block in self.blocks), Stage((1,)))

    @classmethod
    def from_chain(cls, chain: Chain, resolutions: tuple[int, ...], **fields: object) -> Self:
        blocks = [
            {"options": [axis.options for axis in stage.axes], **dict(stage.design)}
            for stage in chain[:-1]
        ]
        return cls.model_validate({"blocks": blocks, "resolution": resolutions, **fields})

    @property
    def resolutions(self) -> tuple[int | None, ...]:
        return self.resolution or (None,)


_MULTIPLE = 8
"""Numbers of channels and MLP units are multiples of this, which processors like."""

_MOST_OPTIONS = {1: 32, 2: 12}
"""Number of groups in a block -> the most options of each of its axes."""


def cuts(arch: TimmArch, settings: TimmSettings, name: str) -> TimmSpace:
    """The space of all cuts of a network: every block keeps any share of its units, in steps.

    If the network takes smaller images, cuts may also resize them.
    """
    sides = resolutions(settings)
    return TimmSpace(
        name=name,
        settings=settings,
        resolution=[side for side in sides if side <= (arch.resolution or sides[-1])],
        blocks=tuple(
            BlockOptions(
                name=block.name,
                groups=block.groups,
                options=tuple(
                    _options(units, group.axis, _MOST_OPTIONS.get(len(block.groups), 6))
                    for group, units in zip(block.groups, block.units, strict=True)
                ),
            )
            for block in arch.blocks
        ),
    )


def _options(units: int, axis: str, most: int) -> tuple[int, ...]:
    """At most that many numbers of units, in steps of the same size up to the given number."""
    multiple = 1 if axis == "heads" else min(_MULTIPLE, units)
    step = multiple * -(-units // (multiple * most))
    return tuple(range(units, 0, -step))[::-1]
