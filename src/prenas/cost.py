"""What an architecture costs: the table of cost axes, and counting without weights.

Budgets, limits, tables, files and reports follow `AXES`: nothing else lists the costs. The amount
of a network is the sum over its parts, so that tables per stage and layer can stand for all
networks of a space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from math import prod
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from prenas.values import unknown_name

if TYPE_CHECKING:  # the families bring torch, which `prenas status` does without
    from prenas.families.base import Arch, SearchSpace, Settings, Shape, TensorRole, Work

_COUNT_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_NUMBER = r"[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+"


class Part(NamedTuple):
    """One part of a network: a layer, or everything that a stage has outside its layers."""

    arch: Arch
    settings: Settings
    shapes: Mapping[str, Shape]
    """Name -> shape of the parameters of this part."""
    work: Work
    """Its multiply-accumulates, and the stage and layer that it is."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CostAxis:
    """One kind of cost: how it is counted, printed and read.

    Amounts are whole numbers from 0 on. What has fractions takes a smaller unit, e.g. microseconds.

    Raises:
        ValueError: a name that budgets cannot hold, or units without the base unit or `table_unit`.
    """

    name: str
    """In budgets, limits, files and columns: `params`."""
    of_part: Callable[[Part], int]
    """What one part adds to the network's amount. Within one space it may depend on the part's
    stage and layer, its options, the widths at the ends of its stage and the resolution only."""
    label: str
    """In tables: "MACs"."""
    noun: str
    """What an amount counts, in words: "parameters"."""
    per: str = ""
    """What one amount is for, where that is not the network: "per image"."""
    table_unit: str = ""
    """One of `units`, in which tables give amounts."""
    units: Mapping[str, int] = field(default_factory=lambda: _COUNT_UNITS)
    """Unit -> its size in base units; of several names of one size the first is written."""
    is_bounded: bool = True
    """Whether budgets and limits may bound it, and tables show it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name == "resolution":
            raise ValueError(
                f"cost axis {self.name!r} needs another name: lower-case letters, digits and "
                "underscores, and not 'resolution', which budgets use"
            )
        if 1 not in self.units.values() or self.table_unit not in self.units:
            raise ValueError(
                f"cost axis {self.name!r} has the units {dict(self.units)}: one must be of size 1, "
                f"and table_unit {self.table_unit!r} must be among them"
            )

    @property
    def header(self) -> str:
        """Of a table's column: "MACs, M"."""
        return f"{self.label}, {self.table_unit}" if self.table_unit else self.label

    def cell(self, amount: int, *, pads: bool = False) -> str:
        """An amount under `header`: every digit in base units, else four significant ones.

        Args:
            pads: keep trailing zeros, and all digits before the point.
        """
        scale = self.units[self.table_unit]
        value = amount / scale
        if scale == 1:
            return f"{amount:,}"
        if not pads:
            return f"{value:.4g}"
        return f"{value:,.0f}" if value >= 999.95 else f"{value:#.4g}"

    def in_words(self, amount: int) -> str:
        """Exactly: "1,828,768 MACs"."""
        return f"{amount:,} {self.noun}"

    def about(self, amount: int) -> str:
        """As tables give it: "1.829 M MACs"; exactly where they do."""
        if self.units[self.table_unit] == 1:
            return self.in_words(amount)
        return f"{self.cell(amount, pads=True)} {self.table_unit} {self.label}"

    def format(self, amount: int) -> str:
        """The shortest exact form with a unit, of two as short not the fraction: 300M, 1.25G."""
        forms = [
            f"{(Decimal(amount) / scale).normalize():f}{unit}"
            for scale, unit in sorted(self._written_units.items(), reverse=True)
        ]
        return min(forms, key=lambda form: (len(form), form.startswith("0.")))

    def tick(self, amount: float) -> str:
        """Along an axis of a plot, with the largest unit that fits into the amount: 3.75k."""
        fitting = [(s, unit) for s, unit in self._written_units.items() if s <= max(abs(amount), 1)]
        scale, unit = fitting[-1]
        return f"{amount / scale:g}{unit}"

    def parse(self, text: str) -> int:
        """An amount from text such as 6M, 1.4G, 250k or 6000000.

        Raises:
            ValueError: not a positive amount in the units of this axis.
        """
        match = re.fullmatch(rf"\s*({_NUMBER})\s*(\S*)\s*", text)
        scale = self._scale(match[2]) if match else None
        if match is None or scale is None:
            larger = [unit for size, unit in self._written_units.items() if size > 1]
            examples = [f"{n}{unit}" for n, unit in zip((250, 6), larger, strict=False)] or ["250"]
            units = " or ".join(filter(None, [", ".join(larger[:-1]), *larger[-1:]]))
            raise ValueError(
                f"cannot read the amount {text!r}: write a number"
                + (f" with {units}" if units else "")
                + f", such as {' or '.join(examples)}"
            )
        value = Decimal(match[1]) * scale
        if value != int(value) or value <= 0:
            raise ValueError(f"the amount {text!r} is not a whole positive number")
        return int(value)

    @property
    def _written_units(self) -> dict[int, str]:
        """Size -> unit, from small to large."""
        sizes = {size: unit for unit, size in reversed([*self.units.items()])}
        return dict(sorted(sizes.items()))

    def _scale(self, unit: str) -> int | None:
        """The size of a unit, in whatever case where that leaves one; None if there is none."""
        if not unit or unit in self.units:
            return self.units.get(unit, 1)
        sizes = {size for name, size in self.units.items() if name.lower() == unit.lower()}
        return sizes.pop() if len(sizes) == 1 else None


AXES: dict[str, CostAxis] = {
    axis.name: axis
    for axis in (
        CostAxis(
            name="params",
            of_part=lambda part: sum(map(prod, part.shapes.values())),
            label="params",
            noun="parameters",
        ),
        # Matrix products (attention, patch convolution and head included) without relative
        # positions, as comparable counters do.
        CostAxis(
            name="macs",
            of_part=lambda part: part.work.macs,
            label="MACs",
            noun="MACs",
            per="per image",
            table_unit="M",
        ),
        # What relative positions add to them in the form that is run.
        CostAxis(
            name="relative_macs",
            of_part=lambda part: part.work.extra_macs,
            label="relative MACs",
            noun="MACs of relative positions",
            per="per image",
            table_unit="M",
            is_bounded=False,
        ),
    )
}
"""Name -> axis. Their order is that of columns, and of what breaks ties between equal scores."""


def register(axis: CostAxis) -> None:
    """Adds an axis to the table, after all others.

    Raises:
        ValueError: its name is taken.
    """
    if axis.name in AXES:
        raise ValueError(f"there is a cost axis {axis.name!r} already: choose another name")
    AXES[axis.name] = axis


def bounded_axes() -> tuple[CostAxis, ...]:
    """The axes that budgets may bound, in their order."""
    return tuple(axis for axis in AXES.values() if axis.is_bounded)


def bounded_names() -> tuple[str, ...]:
    """Their names."""
    return tuple(axis.name for axis in bounded_axes())


def size_axis() -> CostAxis:
    """The axis that gives the size of a network where one number must do: the first."""
    return bounded_axes()[0]


def shown_axes(costs: Iterable[Mapping[str, int]]) -> list[CostAxis]:
    """The bounded axes that all of these costs have: earlier results may lack a newer one."""
    rows = list(costs)
    return [axis for axis in bounded_axes() if all(axis.name in row for row in rows)]


def bounded_axis(name: str, kind: str = "cost") -> CostAxis:
    """The axis of that name; ValueError with the choices if budgets cannot bound it."""
    names = bounded_names()
    if name not in names:
        raise unknown_name(kind, name, names)
    return AXES[name]


# --- counting ------------------------------------------------------------------------------------


def count(
    arch: Arch, settings: Settings | SearchSpace | None = None, **changes: Any
) -> dict[str, int]:
    """What `arch` costs, by the name of every axis: parameters, multiply-accumulates of one image.

    Args:
        settings: the input and the classes, or a search space, whose settings are taken. Always
            needed: an architecture alone does not decide what it costs.
        changes: other values of single settings, e.g. `count(arch, space, num_classes=10)`.

    Raises:
        TypeError: no settings, or those of another family.
        ValueError: a keyword that the family's settings do not have, or a value they refuse.
    """
    from prenas.families import family_of
    from prenas.families.base import SearchSpace

    if isinstance(settings, SearchSpace):
        settings = settings.settings
    family = family_of(arch)
    if not isinstance(settings, family.settings_type):
        raise TypeError(
            f"costs depend on the image size and the number of classes, so count needs the "
            f"settings of the family {family.name} (given: {settings!r}): write count(arch, space) "
            f"or count(arch, {family.settings_type.__name__}(image_size=..., num_classes=...))"
        )
    return dict(_count(arch, settings.changed(**changes), tuple(AXES.values())))


@lru_cache(maxsize=4096)
def _count(arch: Arch, settings: Settings, axes: tuple[CostAxis, ...]) -> Mapping[str, int]:
    from prenas.families import shapes_by_role

    shapes = shapes_by_role(arch, settings)
    parts = [amounts(part, axes) for part in parts_of(arch, settings, shapes)]
    return dict(zip((axis.name for axis in axes), map(sum, zip(*parts, strict=True)), strict=True))


def parts_of(
    arch: Arch, settings: Settings, shapes: Mapping[TensorRole, Mapping[str, Shape]]
) -> Iterator[Part]:
    """All parts of a network.

    Args:
        shapes: stage and layer -> the parameters there, by name.
    """
    from prenas.families import family_of
    from prenas.families.base import Work

    works = {part.role: part for part in family_of(arch).work(arch, settings)}
    for role in dict.fromkeys([*shapes, *works]):
        yield Part(arch, settings, shapes.get(role, {}), works.get(role, Work(role, 0)))


def amounts(part: Part, axes: Iterable[CostAxis]) -> tuple[int, ...]:
    """What a part adds on each axis; TypeError for amounts that are not whole numbers from 0 on."""
    found: list[int] = []
    for axis in axes:
        amount = axis.of_part(part)
        if not isinstance(amount, Integral) or amount < 0:
            raise TypeError(
                f"cost axis {axis.name!r} gives {amount!r} for {part.work.role}: of_part must "
                "return a whole number from 0 on; take a smaller unit for fractions"
            )
        found.append(int(amount))
    return tuple(found)
