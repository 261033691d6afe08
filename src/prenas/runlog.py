"""The run's log of numbers: one JSON object per line in `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prenas import artifacts


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
    """All lines but a last one that was cut short."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
