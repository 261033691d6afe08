"""The results as rows: one per subnet, for spreadsheets and programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prenas import artifacts

if TYPE_CHECKING:
    from prenas.evaluation import Evaluation


def flat_rows(rows: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """One flat dictionary per subnet: costs, results per split, then the architecture.

    Options of layers are tuples per stage of tuples per layer.
    """
    return [
        {
            "subnet": number,
            "params": row.params,
            "macs": row.macs,
            **{
                f"{split}_{name}": value
                for split, metrics in row.splits.items()
                for name, value in metrics.model_dump().items()
            },
            **row.arch.network_options,
            **row.arch.layer_options,
        }
        for number, row in enumerate(rows)
    ]


def write_csv(rows: Sequence[Evaluation], path: Path) -> None:
    """Writes `flat_rows` as CSV: options of layers as `5 5 | 3`, two stages of two and one."""
    flat = flat_rows(rows)
    buffer = StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({key: _joined(v) if isinstance(v, tuple) else v for key, v in row.items()})
    artifacts.write_bytes(path, buffer.getvalue().encode())


def _joined(stages: Sequence[Sequence[float]]) -> str:
    return " | ".join(" ".join(f"{option:g}" for option in stage) for stage in stages)
