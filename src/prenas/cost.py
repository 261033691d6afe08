"""What an architecture costs: the table of cost axes, and counting without weights.

Budgets, limits, tables, files and reports follow `AXES`: nothing else lists the costs. The amount
of a network is the sum over its parts, so tables per stage and layer describe all networks of a
space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from math import prod
from numbers import Integral
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from prenas.values import MOST_AMOUNT, Amount, UnknownNameError, unknown_name

if TYPE_CHECKING:  # importing the families imports torch, which `prenas status` avoids
    from prenas.families.base import Arch, SearchSpace, Settings, Shape, TensorRole, Work

BYTES_PER_PARAMETER = 4
"""In float32."""

_COUNT_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_LONGEST_AMOUNT = 100  # characters
_MOST_OF_A_PART = 10**15  # a thousand layers of this amount are MOST_AMOUNT
_NUMBER = r"(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"


class Part(NamedTuple):
    """One part of a network: a layer, or everything in a stage outside its layers."""

    arch: Arch
    settings: Settings
    shapes: Mapping[str, Shape]
    """Name -> shape of the parameters of this part."""
    work: Work
    """Its multiply-accumulates, its stage and its layer."""

    @property
    def is_absent(self) -> bool:
        """Whether it is a layer that a network leaves out: without parameters and without work."""
        amounts = (len(self.shapes), self.work.macs, self.work.extra_macs)
        return self.work.role.layer is not None and not any(amounts)


def knows_every_part(part: Part) -> bool:
    """For costs that follow from the shapes of a part."""
    return True


@dataclass(frozen=True, eq=False, kw_only=True)
class CostAxis:
    """One kind of cost: how it is counted, printed and read.

    Amounts are integers from 0 on. To avoid fractions, choose a smaller unit, e.g. microseconds.

    Raises:
        ValueError: the name cannot be used in budgets, or `units` lacks a unit of size 1 or
            `table_unit`.
    """

    name: str
    """Name in budgets, limits, files and columns, such as `params`."""
    of_part: Callable[[Part], int]
    """What one part adds to the network's amount. Within one space it may only depend on the part's
    stage and layer, its options, the widths that it leads from and to (both are the stage's own in
    every layer but the first), and the resolution."""
    label: str
    """Name in tables, such as "MACs"."""
    noun: str
    """What an amount counts, for sentences, such as "parameters"."""
    per: str = ""
    """What one amount refers to, if that is not the network, such as "per image"."""
    table_unit: str = ""
    """The unit of amounts in tables; one of `units`."""
    units: Mapping[str, int] = field(default_factory=lambda: _COUNT_UNITS)
    """Unit -> its size in base units. If several units have the same size, the first is written."""
    needs_unit: bool = False
    """Whether amounts without a unit are refused, because nobody means the unit of size 1."""
    is_bounded: bool = True
    """Whether budgets and limits may bound it, and tables show it."""
    knows: Callable[[Part], bool] = knows_every_part
    """Whether it can count a part, for costs that are measured. Networks with a part that it does
    not know have no such cost."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name == "resolution":
            raise ValueError(
                f"cost axis {self.name!r} needs another name: a lower-case letter, then lower-case "
                "letters, digits and underscores, but not 'resolution', which budgets use"
            )
        if 1 not in self.units.values() or self.table_unit not in self.units:
            raise ValueError(
                f"cost axis {self.name!r} has the units {dict(self.units)}: one of them must have "
                f"size 1, and table_unit {self.table_unit!r} must be among them"
            )

    @property
    def header(self) -> str:
        """Heading of its column in tables, such as "MACs, M"."""
        return f"{self.label}, {self.table_unit}" if self.table_unit else self.label

    def cell(self, amount: int, *, pads: bool = False) -> str:
        """An amount under `header`: exact in base units, otherwise with four significant digits.

        Args:
            pads: keeps trailing zeros, and all digits before the decimal point.
        """
        scale = self.units[self.table_unit]
        value = amount / scale
        if scale == 1:
            return f"{amount:,}"
        if not pads:
            return f"{value:.4g}"
        return f"{value:,.0f}" if value >= 999.95 else f"{value:#.4g}"

    def number(self, amount: int) -> str:
        """The exact amount beside its name, such as "1,828,768"."""
        return f"{amount:,}"

    def in_words(self, amount: int) -> str:
        """The exact amount for sentences, such as "1,828,768 MACs"."""
        return f"{self.number(amount)} {self.noun}"

    def about(self, amount: int) -> str:
        """The amount as rounded in tables, such as "1.829 M MACs"; exact if tables are exact."""
        if self.units[self.table_unit] == 1:
            return self.in_words(amount)
        return f"{self.cell(amount, pads=True)} {self.table_unit} {self.label}"

    def format(self, amount: int) -> str:
        """The shortest exact form with a unit, such as 300M or 1.25G; among equals no fraction."""
        forms = [
            f"{(Decimal(amount) / scale).normalize():f}{unit}"
            for scale, unit in sorted(self._written_units.items(), reverse=True)
        ]
        return min(forms, key=lambda form: (len(form), form.startswith("0.")))

    def limit(self, amount: int) -> str:
        """A limit that the amount just keeps, as people write it."""
        return self.format(amount)

    def tick(self, amount: float) -> str:
        """A label along the axis of a plot, with the largest unit below the amount, as in 3.75k."""
        fitting = [(s, unit) for s, unit in self._written_units.items() if s <= max(abs(amount), 1)]
        scale, unit = fitting[-1]
        return f"{amount / scale:g}{unit}"

    def parse(self, text: str) -> int:
        """Reads an amount from text such as 6M, 1.4G, 250k, 6000000 or 6e6.

        Raises:
            ValueError: the text is not a positive amount in the units of this axis, or too large,
                or lacks the unit that this axis needs.
        """
        if len(text) > _LONGEST_AMOUNT:
            raise ValueError(
                f"an amount of {len(text):,} characters is too long: write it with a unit"
            )
        if text.strip().endswith("%"):
            raise ValueError(
                f"the amount {text!r} is a share: only `prenas run --from SOURCE` takes budgets in "
                f"shares, of its source. Write an amount of {self.noun} here"
            )
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
        if self.needs_unit and not match[2]:
            *others, last = self._written_units.values()
            raise ValueError(
                f"the amount {text!r} has no unit: {self.name} needs one of {', '.join(others)} "
                f"or {last}, such as 5{self.table_unit}"
            )
        value = Decimal(match[1]) * scale
        if value != int(value) or value <= 0:
            raise ValueError(f"the amount {text!r} is not a positive integer")
        if value > MOST_AMOUNT:
            raise ValueError(
                f"the amount {text!r} is too large: at most {self.format(MOST_AMOUNT)} is allowed"
            )
        return int(value)

    @property
    def base_unit(self) -> str:
        """The unit of size 1, in which amounts are counted; "" if that is a plain number."""
        return self._written_units[1]

    @property
    def _written_units(self) -> dict[int, str]:
        """Size -> the unit to write, from small to large."""
        sizes = {size: unit for unit, size in reversed([*self.units.items()])}
        return dict(sorted(sizes.items()))

    def _scale(self, unit: str) -> int | None:
        """The size of a unit, ignoring case if that is unambiguous; None for an unknown unit."""
        if not unit or unit in self.units:
            return self.units.get(unit, 1)
        sizes = {size for name, size in self.units.items() if name.lower() == unit.lower()}
        return sizes.pop() if len(sizes) == 1 else None


def rounded_up(amount: int, unit: str, scale: int) -> str:
    """An amount with a unit and three decimals, such as 1.997ms, never below what it is.

    Args:
        scale: the size of the unit.
    """
    thousandths = -(-1000 * amount // scale)
    return f"{Decimal(thousandths) / 1000:.3f}{unit}"


AXES: dict[str, CostAxis] = {
    axis.name: axis
    for axis in (
        CostAxis(
            name="params",
            of_part=lambda part: sum(map(prod, part.shapes.values())),
            label="params",
            noun="parameters",
        ),
        # Matrix products, including attention, patch convolution and head, but without relative
        # positions, as other counters do.
        CostAxis(
            name="macs",
            of_part=lambda part: part.work.macs,
            label="MACs",
            noun="MACs",
            per="per image",
            table_unit="M",
        ),
        # What relative positions add, in the form in which they are computed here.
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
"""Name -> axis. Their order is the order of columns, and breaks ties between equal scores."""


FILE_SIZE = CostAxis(
    name="size",
    of_part=lambda part: BYTES_PER_PARAMETER * AXES["params"].of_part(part),
    label="file size",
    noun="bytes",
    table_unit="MB",
    units={"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9},
    needs_unit=True,
)
"""The weights of a file in float32. Budgets and limits may name it, but it is no axis of its own:
they are read as budgets and limits of parameters."""


def register(axis: CostAxis) -> None:
    """Adds an axis to the end of the table.

    Raises:
        ValueError: another axis already has its name.
    """
    if axis.name in AXES:
        raise ValueError(f"a cost axis {axis.name!r} already exists: choose another name")
    AXES[axis.name] = axis


def bounded_axes() -> tuple[CostAxis, ...]:
    """The axes that budgets may bound, in the order of the table."""
    return tuple(axis for axis in AXES.values() if axis.is_bounded)


def bounded_names() -> tuple[str, ...]:
    """Names of the axes that budgets may bound."""
    return tuple(axis.name for axis in bounded_axes())


def size_axis() -> CostAxis:
    """The axis for the size of a network as one number: the first of the table."""
    return bounded_axes()[0]


def _with_a_size(costs: dict[str, int]) -> dict[str, int]:
    if (size := size_axis().name) not in costs:
        raise ValueError(f"the cost {size} is missing")
    return costs


Costs = Annotated[dict[str, Amount], AfterValidator(_with_a_size)]
"""Name of a cost axis -> amount, in values that are read from files; older ones may lack an axis,
but not the size."""


def shown_axes(costs: Iterable[Mapping[str, int]]) -> list[CostAxis]:
    """The bounded axes that all of these costs have; older results may lack a newer axis."""
    rows = list(costs)
    return [axis for axis in bounded_axes() if all(axis.name in row for row in rows)]


def bounded_axis(name: str, kind: str = "cost") -> CostAxis:
    """The axis of this name; ValueError, with the available names, if budgets cannot bound it."""
    names = bounded_names()
    if name not in names:
        raise unknown_axis(kind, name, names)
    return AXES[name]


def unknown_axis(kind: str, name: str, names: Iterable[str]) -> ValueError:
    """An error that lists the available axes, or says how the named one becomes available."""
    if name == "latency":
        return UnknownNameError(
            f"{kind} {name!r} needs a table of times measured on your machine: make one with "
            "`prenas measure`, and give it to `prenas search` or `prenas run` with --latency FILE"
        )
    return unknown_name(kind, name, names)


# --- counting ------------------------------------------------------------------------------------


def count(
    arch: Arch, settings: Settings | SearchSpace | None = None, **changes: Any
) -> dict[str, int]:
    """Counts what `arch` costs on every axis: parameters, multiply-accumulates per image.

    Args:
        settings: the input and the classes, or a search space, whose settings are used. Always
            needed, because costs do not follow from the architecture alone.
        changes: other values for single settings, e.g. `count(arch, space, num_classes=10)`.

    Returns:
        Name of the axis -> amount.

    Raises:
        TypeError: the settings are missing or belong to another family.
        ValueError: the family's settings lack one of the changed fields, or refuse its value.
    """
    from prenas.families import family_of
    from prenas.families.base import SearchSpace

    if isinstance(settings, SearchSpace):
        settings = settings.settings
    family = family_of(arch)
    if not isinstance(settings, family.settings_type):
        raise TypeError(
            f"costs depend on the image size and the number of classes, so count needs the "
            f"settings of the family {family.name} (got {settings!r}): write count(arch, space) "
            f"or count(arch, {family.settings_type.__name__}(image_size=..., num_classes=...))"
        )
    return dict(_count(arch, settings.changed(**changes), tuple(AXES.values())))


@lru_cache(maxsize=4096)
def _count(arch: Arch, settings: Settings, axes: tuple[CostAxis, ...]) -> Mapping[str, int]:
    from prenas.families import shapes_by_role

    parts = [*parts_of(arch, settings, shapes_by_role(arch, settings))]
    axes = tuple(axis for axis in axes if all(map(axis.knows, parts)))
    found = [amounts(part, axes) for part in parts]
    return dict(zip((axis.name for axis in axes), map(sum, zip(*found, strict=True)), strict=True))


def parts_of(
    arch: Arch, settings: Settings, shapes: Mapping[TensorRole, Mapping[str, Shape]]
) -> Iterator[Part]:
    """All parts of a network.

    Args:
        shapes: stage and layer -> name -> shape of the parameters.
    """
    from prenas.families import family_of
    from prenas.families.base import Work

    works = {part.role: part for part in family_of(arch).work(arch, settings)}
    for role in dict.fromkeys([*shapes, *works]):
        yield Part(arch, settings, shapes.get(role, {}), works.get(role, Work(role, 0)))


def _amount(axis: CostAxis, part: Part) -> int:
    try:
        return axis.of_part(part)
    except Exception as error:  # whatever an axis of a user's own does with parts of other families
        raise ValueError(
            f"cost axis {axis.name!r} fails on {part.work.role} of a network "
            f"({type(part.arch).__name__}) with {type(error).__name__}: {error}. Say with `knows` "
            "which parts it can count, such as knows=lambda part: isinstance(part.arch, MyArch)"
        ) from error


def amounts(part: Part, axes: Iterable[CostAxis]) -> tuple[int, ...]:
    """What a part adds on each axis; 0 on an axis that does not know it.

    Raises:
        TypeError: an amount is not an integer from 0 on.
        ValueError: an axis fails, or an amount is so large that sums of them would not fit into 64
            bits.
    """
    found: list[int] = []
    for axis in axes:
        amount = _amount(axis, part) if axis.knows(part) else 0
        if not isinstance(amount, Integral) or amount < 0:
            raise TypeError(
                f"cost axis {axis.name!r} gives {amount!r} for {part.work.role}: of_part must "
                "return an integer from 0 on; use a smaller unit for fractions"
            )
        if amount > _MOST_OF_A_PART:
            raise ValueError(
                f"stage {part.work.role.stage} has a layer of {int(amount):,} {axis.noun}, more "
                f"than {_MOST_OF_A_PART:,}: use smaller widths, options or images"
            )
        found.append(int(amount))
    return tuple(found)
