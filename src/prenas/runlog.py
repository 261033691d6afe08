"""The run's log of numbers: one JSON object per line in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from prenas import artifacts


class EpochRecord(NamedTuple):
    """What the log keeps of a finished epoch."""

    epoch: int
    """From 0."""
    loss: float
    """Mean over the epoch's steps."""
    lr: float
    """Learning rate of the last step."""
    images_per_second: float | None
    """None where it was not measured."""


def read_epochs(path: Path) -> list[EpochRecord]:
    """The finished epochs of a log, in their order; empty if there is no log yet.

    Records that hold no loss and learning rate are of another kind, and left out.

    Raises:
        ValueError: a line is damaged, or holds something else than numbers; names the file.
    """
    if not path.exists():
        return []
    records = []
    for line in _complete_lines(path):
        if not {"loss", "lr"} <= line.keys():
            continue
        numbers = [line["loss"], line["lr"], line.get("images_per_second", 0.0)]
        if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
            raise ValueError(
                f"the record of epoch {line['epoch']} in {path} holds {numbers}, not finite "
                "numbers: mend or remove the file"
            )
        speed = line.get("images_per_second")
        records.append(EpochRecord(int(line["epoch"]), line["loss"], line["lr"], speed))
    return records


class MetricsLog:
    """Appends one line per finished epoch; without a path it keeps nothing."""

    def __init__(self, path: Path | None, first_epoch: int) -> None:
        """Lines of `first_epoch` and later, left by a run that was cut off, are dropped."""
        self._path = path
        if path is not None and path.exists():
            kept = [line for line in _complete_lines(path) if line["epoch"] < first_epoch]
            artifacts.write_bytes(path, "".join(map(_as_line, kept)).encode())

    def append(self, **numbers: Any) -> None:
        """Writes one line."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_as_line(numbers))


def _as_line(numbers: dict[str, Any]) -> str:
    return json.dumps(numbers) + "\n"


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """All lines but a last one that was cut short; ValueError for a line of another kind."""
    text = path.read_text(encoding="utf-8", errors="replace")  # what is no text is no JSON below
    lines = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            lines.append(json.loads(line))
            int(lines[-1]["epoch"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise ValueError(
                f"line {number} of {path} is no record of an epoch: mend or remove the file"
            ) from None
    return lines
