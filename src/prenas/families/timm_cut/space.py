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
from prenas.families.units import NotNegative


class BlockOptions(BlockGroups):
    """A block with the numbers of units that it may keep of each group."""

    options: tuple[Annotated[tuple[NotNegative, ...], *OPTIONS], ...]
    """0 leaves out the residual branch of a group."""

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
            if not options[0] and not group.branch:
                raise ValueError(
                    f"block {self.name} cannot do without {group.axis}, because they are not those "
                    "of a residual branch: 0 is not an option"
                )
        return self

    def stage(self, *, absent_branches: bool) -> Stage:
        """The block as a stage of one layer.

        Args:
            absent_branches: whether 0 is an option of all groups with a branch.
        """
        offered = (
            (0, *options) if absent_branches and group.branch and options[0] else options
            for group, options in zip(self.groups, self.options, strict=True)
        )
        axes = tuple(map(LayerAxis, axis_names(self.groups), offered))
        return Stage((1,), (1,), axes, design=design(self.name, self.groups))


class TimmSpace(SearchSpace[TimmArch, TimmSettings]):
    """Options for every block of a timm model; the rest of the model is never cut."""

    family: Literal["timm"] = "timm"
    blocks: tuple[BlockOptions, ...] = Field(min_length=1)
    resolution: Annotated[tuple[Pixels, ...], *OPTIONAL] = ()
    """Sides in pixels to which networks resize their images; empty: they do not resize."""
    absent_branches: bool = False
    """Whether every residual branch that may be left out is left out in some networks, as if 0 were
    among the options of its units."""
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

    @model_validator(mode="after")
    def _has_branches(self) -> TimmSpace:
        groups = [group for block in self.blocks for group in block.groups]
        if self.absent_branches and not any(group.branch for group in groups):
            raise ValueError(
                f"absent_branches is true, but no residual branch of {self.settings.model} may be "
                "left out: set it to false"
            )
        return self

    @property
    def chain(self) -> Chain:
        """One stage per block, and a last one for all other tensors."""
        stages = (block.stage(absent_branches=self.absent_branches) for block in self.blocks)
        return (*stages, Stage((1,)))

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
"""Number of groups in a block -> the most options of each of its axes. For more groups, so few that
there are no more combinations than ..."""

_MOST_COMBINATIONS = 256
"""... these. A network is built for each, which takes a tenth of a second in a large model."""


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
                    _options(units, group.axis, _most_options(len(block.groups)))
                    for group, units in zip(block.groups, block.units, strict=True)
                ),
            )
            for block in arch.blocks
        ),
    )


def _most_options(num_groups: int) -> int:
    known = _MOST_OPTIONS.get(num_groups)
    return known or max(1, int(_MOST_COMBINATIONS ** (1 / num_groups) + 1e-9))


def _options(units: int, axis: str, most: int) -> tuple[int, ...]:
    """At most that many numbers of units, in steps of the same size up to the given number."""
    if not units:
        return (0,)  # a branch that was left out stays so
    multiple = 1 if axis == "heads" else min(_MULTIPLE, units)
    step = multiple * -(-units // (multiple * most))
    return tuple(range(units, 0, -step))[::-1]
