"""The file of a bench: its values, so that it can be continued, and what they say."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from prenas import artifacts
from prenas.bench.agreement import Column
from prenas.bench.scoring import Conditions
from prenas.values import Value


class Record(Value):
    """Everything that a bench computed."""

    conditions: Conditions
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the software that wrote the file, by name; empty in files of earlier versions."""
    space: str
    rows: tuple[str, ...]
    """Every architecture in short, in the order of the values."""
    window: float
    values: dict[str, tuple[tuple[float | None, ...], ...]]
    """Score -> seed -> row; None where it is not computed yet."""
    columns: tuple[Column, ...]
    """Empty until all values are computed."""


def write_record(path: Path, record: Record) -> None:
    """Writes a record as JSON, atomically and under any name."""
    artifacts.write_json(path, record.model_dump(mode="json"), kind=artifacts.PROXIES)


def read_record(path: Path) -> Record:
    """Reads a record.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a record.
    """
    return artifacts.parse_json(path, Record.model_validate, kind=artifacts.PROXIES)
