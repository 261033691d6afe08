"""The results as a table with one row per subnet, for spreadsheets and programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prenas import artifacts
from prenas.cost import shown_axes

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Evaluation, Metrics


def flat_rows(rows: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """One flat dictionary per subnet: costs, results per split, then the architecture.

    Options of layers are tuples; with several stages, a tuple of one tuple per stage.
    """
    axes = shown_axes(row.costs for row in rows)
    return [
        {
            "subnet": number,
            **{axis.name: row.costs[axis.name] for axis in axes},
            **{
                f"{split}_{name}": value
                for split, metrics in row.splits.items()
                for name, value in _results(metrics).items()
            },
            **row.arch.network_options,
            **{
                axis: stages[0] if len(stages) == 1 else stages
                for axis, stages in row.arch.layer_options.items()
            },
        }
        for number, row in enumerate(rows)
    ]


def _results(metrics: Metrics) -> dict[str, Any]:
    return {**metrics.summary, "balanced_accuracy": metrics.balanced_accuracy}


def write_csv(rows: Sequence[Evaluation], path: Path) -> None:
    """Writes `flat_rows` as CSV, with options separated by spaces and stages by vertical bars."""
    flat = flat_rows(rows)
    buffer = StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    artifacts.write_bytes(path, buffer.getvalue().encode())


def _cell(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    if isinstance(value[0], tuple):
        return " | ".join(map(_cell, value))  # spreadsheets would turn "3/4" into a date
    return " ".join(f"{option:g}" for option in value)
