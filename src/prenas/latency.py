"""Latency as a cost: a table of measured times, whose entries add up to the time of a network.

`prenas.devices.measuring` makes tables, for one space, engine and machine. Once a process uses a
table, `latency` is a cost axis like parameters and MACs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from prenas import artifacts
from prenas.cost import AXES, CostAxis, Part, parts_of, register, rounded_up
from prenas.families import shapes_by_role
from prenas.families.base import Arch, Settings
from prenas.values import Amount, Value

LATENCY = "latency"
"""Name of the cost axis."""
Precision = Literal["float32", "int8"]
UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}


class Machine(Value):
    """Where times were measured."""

    processor: str
    num_cores: int
    system: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.num_cores} cores, {self.system}"


class Conditions(Value):
    """How times were measured; two tables of equal conditions can be compared."""

    engine: str
    """`torch`, `onnxruntime` or `openvino`."""
    precision: Precision = "float32"
    """`int8`: weights and activations, as `prenas export --int8 static` writes them."""
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    """Images per call."""
    versions: dict[str, str]
    machine: Machine

    @property
    def engine_in_words(self) -> str:
        """For people, such as "onnxruntime" or "onnxruntime int8"."""
        return self.engine if self.precision == "float32" else f"{self.engine} {self.precision}"

    @property
    def summary(self) -> str:
        """For people, such as "onnxruntime int8, 1 thread, batches of 1"."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.engine_in_words}, {threads}, batches of {self.batch}"


class Fit(Value):
    """How well the table predicts whole networks that were measured, each left out of the fit."""

    num_networks: int
    median_error: float
    """Median of the absolute errors, relative to the measured time."""
    worst_error: float
    rank_correlation: float | None
    """Spearman's, between predicted and measured times."""
    noise_floor: float
    """Median difference between two measurements of the same network, relative to its time."""
    pace: float | None = None
    """How much the machine's own pace varied while networks were measured, which is taken out of
    their times; None in files of earlier versions."""


class Entry(Value):
    """What one kind of layer, or of a stage's other tensors, adds to the time of a call."""

    nanoseconds: Amount
    macs: Amount
    measured: bool
    """Whether it was measured; otherwise it lies between those that were."""


class LatencyTable(Value):
    """The times of all parts of the networks of a space, on one machine and engine."""

    conditions: Conditions
    space: str
    """Name of the space, for people: parts are found by what they compute."""
    fit: Fit
    seconds: float
    """How long the measurement took."""
    entries: dict[str, Entry]
    """Signature of a part -> its time."""

    def knows(self, part: Part) -> bool:
        """Whether a part was measured, in a network of any space, or is absent."""
        return part.is_absent or signature(part) in self.entries

    def of_part(self, part: Part) -> int:
        """Nanoseconds that a part adds to one call; 0 for a layer that is left out."""
        return 0 if part.is_absent else self.entries[signature(part)].nanoseconds

    def predict(self, arch: Arch, settings: Settings) -> int:
        """Nanoseconds of one call of a network.

        Raises:
            ValueError: the table does not know a part of it.
        """
        parts = list(parts_of(arch, settings, shapes_by_role(arch, settings)))
        if not all(map(self.knows, parts)):
            raise ValueError(
                f"the latency table of the space {self.space} does not know all layers of "
                f"{arch.summary} for images of {settings.image_size}: measure its space "
                "(prenas measure)"
            )
        return sum(map(self.of_part, parts))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the table."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def resizing_macs(arch: Arch, settings: Settings) -> int:
    """Multiply-accumulates of resizing an image by two matrix products; 0 if it stays as it is.

    They are not among those of the network. Other ways to resize take as long for every pixel, too.
    """
    side, (height, width) = arch.resized_to, settings.image_size
    if side is None or side == height == width:
        return 0
    return settings.in_chans * side * width * (height + side)


def signature(part: Part) -> str:
    """Sixteen hexadecimal digits for all parts that compute the same on tensors of equal shapes."""
    number, layer = part.work.role
    what = [
        number if layer is None else None,
        sorted(part.shapes.values()),
        part.work.macs,
        part.work.extra_macs,
        [[name, str(value)] for name, value in part.arch.links[number].design],
    ]
    is_last = layer is None and number == len(part.arch.links) - 1
    if is_last and (resizing := resizing_macs(part.arch, part.settings)):  # is counted there
        what.append(resizing)
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


# --- files ---------------------------------------------------------------------------------------


def write_table(path: Path, table: LatencyTable) -> None:
    """Writes a table as JSON, under any name."""
    artifacts.write_json(path, table.model_dump(mode="json"), kind=artifacts.LATENCY)


def read_table(path: Path) -> LatencyTable:
    """Reads a table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a table.
    """
    return artifacts.parse_json(path, LatencyTable.model_validate, kind=artifacts.LATENCY)


# --- the axis ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class LatencyAxis(CostAxis):
    """The cost axis of one table."""

    table: LatencyTable

    def number(self, amount: int) -> str:
        """The amount as rounded in tables: nobody means single nanoseconds."""
        return f"{self.cell(amount)} {self.table_unit}"

    def limit(self, amount: int) -> str:
        """A limit that the amount keeps, such as 1.997ms: up to a microsecond above it."""
        return rounded_up(amount, self.table_unit, self.units[self.table_unit])

    def in_words(self, amount: int) -> str:
        """The same for sentences, such as "10.12 ms latency"."""
        return f"{self.number(amount)} {self.label}"


def use_table(table: LatencyTable | None) -> None:
    """Makes `latency` a cost axis of this process, counted with this table.

    Networks that the table does not know have no latency; everything else works for them as before.
    A table that was used before is replaced; None only takes it away.
    """
    AXES.pop(LATENCY, None)
    if table is None:
        return
    axis = LatencyAxis(
        name=LATENCY,
        of_part=table.of_part,
        knows=table.knows,
        label="latency",
        noun="nanoseconds",
        per="per call",
        table_unit="ms",
        units=UNITS,
        needs_unit=True,
        table=table,
    )
    register(axis)


def table_in_use() -> LatencyTable | None:
    """The table that this process counts latencies with; None without one."""
    axis = AXES.get(LATENCY)
    return axis.table if isinstance(axis, LatencyAxis) else None


def use_table_of(folder: Path) -> None:
    """Uses the table that a run keeps in its folder, if there is one.

    Raises:
        ValueError: the table is damaged, or this process uses another one.
    """
    path = folder / artifacts.LATENCY
    if not path.is_file():
        return
    table, used = read_table(path), table_in_use()
    if used is None:
        use_table(table)
    elif used.digest != table.digest:
        own, other = _told_apart(table, used)
        raise ValueError(
            f"{folder} counts latencies with its own table ({own}), but this process uses another "
            f"one ({other}): leave out --latency, or work on this run in a process of its own"
        )


@contextmanager
def counting_as(folder: Path) -> Iterator[None]:
    """Counts latencies with the table of a run alone, or not at all; afterwards as before.

    For reading a run in a process that works on others.
    """
    before = table_in_use()
    use_table(None)
    try:
        use_table_of(folder)
        yield
    finally:
        use_table(before)


def _told_apart(one: LatencyTable, other: LatencyTable) -> tuple[str, str]:
    """Two different tables in words that differ."""

    def in_words(table: LatencyTable) -> Iterator[str]:
        conditions = table.conditions
        yield conditions.summary
        yield f"{conditions.summary}; {conditions.machine}"
        versions = ", ".join(f"{name} {number}" for name, number in conditions.versions.items())
        yield f"{conditions.summary}; {versions}"
        yield f"{conditions.summary}; {table.space}, {table.digest}"

    return next(
        pair for pair in zip(in_words(one), in_words(other), strict=True) if len({*pair}) > 1
    )
