"""Cuts of a timm model as values: how many hidden units each block keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Literal, Self

import timm
from pydantic import Field, field_validator, model_validator

from prenas.families.base import Arch, Link, Links, Settings
from prenas.families.limits import Pixels
from prenas.families.units import NotNegative, UnitGroup
from prenas.values import Value


class TimmSettings(Settings):
    """The timm model that is cut, its input and its classes."""

    model: str
    """A name of timm, such as `tf_efficientnet_lite0`."""

    @field_validator("model")
    @classmethod
    def _exists(cls, model: str) -> str:
        if not timm.is_model(model):
            near = get_close_matches(model, timm.list_models(), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
            raise ValueError(f"timm has no model {model!r}: {hint}")
        return model


class BlockGroups(Value):
    """A block and its unit groups, which are the same in every cut."""

    name: str
    """The prefix of its tensor names, such as `blocks.1.0`."""
    groups: tuple[UnitGroup, ...] = Field(min_length=1)


class CutBlock(BlockGroups):
    """A block with the number of units that it keeps of each group."""

    units: tuple[NotNegative, ...]
    """0 leaves out the residual branch of a group."""

    @model_validator(mode="after")
    def _keeps_units_of_every_group(self) -> CutBlock:
        if len(self.units) != len(self.groups):
            raise ValueError(
                f"block {self.name} has {len(self.groups)} groups of units, but units is "
                f"{list(self.units)}: give one number per group"
            )
        for group, units in zip(self.groups, self.units, strict=True):
            if units > group.num_units:
                raise ValueError(
                    f"block {self.name} has {group.num_units} {group.axis}, so it cannot keep "
                    f"{units}"
                )
            if not units and not group.branch:
                raise ValueError(
                    f"block {self.name} cannot do without {group.axis}, because they are not those "
                    "of a residual branch: keep at least 1"
                )
        return self


class TimmArch(Arch):
    """A cut: its blocks in the order of the network. Everything else is as in timm's model."""

    family: Literal["timm"] = "timm"
    blocks: tuple[CutBlock, ...] = Field(min_length=1)
    resolution: Pixels | None = None
    """Side in pixels to which the network resizes its images; None: it does not."""

    @property
    def resized_to(self) -> int | None:
        return self.resolution

    @property
    def links(self) -> Links:
        """One stage of one layer per block, and a last one for all other tensors."""
        blocks = (
            Link(1, 1, _per_axis(block, block.units), design(block.name, block.groups))
            for block in self.blocks
        )
        return (*blocks, Link())

    @classmethod
    def from_links(cls, links: Links, resolution: int | None = None) -> Self:
        blocks = []
        for link in links[:-1]:
            units = [int(options[0]) for options in link.options.values()]
            blocks.append({"units": units, **dict(link.design)})
        return cls.model_validate({"blocks": blocks, "resolution": resolution})

    def kept(self) -> Iterator[tuple[UnitGroup, int]]:
        """Every unit group of the network, with the number of units that are kept."""
        for block in self.blocks:
            yield from zip(block.groups, block.units, strict=True)

    @property
    def network_options(self) -> Mapping[str, float]:
        """The resolution, if there is one: nothing else is chosen once per network."""
        return {} if self.resolution is None else {"resolution": self.resolution}

    @property
    def summary(self) -> str:
        """Per kind of unit, the share that is kept, and its range over the blocks."""
        shares: dict[str, list[tuple[int, int]]] = {}
        for group, units in self.kept():
            shares.setdefault(group.axis, []).append((units, group.num_units))
        parts = []
        for axis, pairs in shares.items():
            whole = sum(units for units, _ in pairs) / sum(total for _, total in pairs)
            each = [units / total for units, total in pairs]
            parts.append(f"{axis} {whole:.0%} ({min(each):.0%}-{max(each):.0%})")
        if self.resolution is not None:
            parts.insert(0, f"{self.resolution} pixels")
        if num_absent := sum(not units for _, units in self.kept()):
            parts.append(f"{num_absent} branch{'' if num_absent == 1 else 'es'} left out")
        return ", ".join(parts)


def whole(groups: Iterable[BlockGroups]) -> TimmArch:
    """The network that keeps all units."""
    return TimmArch(
        blocks=tuple(
            CutBlock(
                name=block.name,
                groups=block.groups,
                units=tuple(group.num_units for group in block.groups),
            )
            for block in groups
        )
    )


def design(name: str, groups: tuple[UnitGroup, ...]) -> tuple[tuple[str, object], ...]:
    """What all cuts have in common in one block."""
    return (("name", name), ("groups", groups))


def _per_axis(block: BlockGroups, numbers: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    """Axis -> number; a second group of the same kind in a block gets a number, as `channels_2`."""
    return {axis: (one,) for axis, one in zip(axis_names(block.groups), numbers, strict=True)}


def axis_names(groups: tuple[UnitGroup, ...]) -> list[str]:
    """A name for each group of a block: its kind, with a number from the second of a kind on."""
    names: list[str] = []
    for number, group in enumerate(groups):
        before = sum(other.axis == group.axis for other in groups[:number])
        names.append(f"{group.axis}_{before + 1}" if before else group.axis)
    return names
