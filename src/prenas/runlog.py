"""The run's log of numbers: one JSON object per line in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
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
        if line.get("event") != "epoch":
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


Sink = Callable[[Mapping[str, Any]], None]


class MetricsLog:
    def __init__(self, path: Path | None, *, step: int, sinks: Sequence[Sink] = ()) -> None:
        self._path, self._sinks = path, sinks
        if path is not None and path.exists():
            kept = [
                line
                for line in _complete_lines(path)
                if line["step"] < step or (line["step"] == step and line["event"] != "validation")
            ]
            artifacts.write_bytes(path, "".join(map(_as_line, kept)).encode())

    def append(self, event: str, *, epoch: int, step: int, **numbers: Any) -> None:
        record = {"event": event, "epoch": epoch, "step": step, **numbers}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_as_line(record))
        for sink in self._sinks:
            sink(record)

    def sync(self) -> None:
        pass


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
