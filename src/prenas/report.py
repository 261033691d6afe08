"""Tables and pictures of results."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prenas import artifacts

if TYPE_CHECKING:
    from prenas.evaluation import Evaluation


def flat_rows(rows: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """One flat dictionary per subnet: costs, results per split, then the architecture."""
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
            **row.arch.model_dump(),
        }
        for number, row in enumerate(rows)
    ]


def write_csv(rows: Sequence[Evaluation], path: Path) -> None:
    """Writes `flat_rows` as CSV; per-layer options are joined by spaces."""
    flat = flat_rows(rows)
    buffer = StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow(
            {key: " ".join(map(str, v)) if isinstance(v, tuple) else v for key, v in row.items()}
        )
    artifacts.write_bytes(path, buffer.getvalue().encode())


def draw(rows: Sequence[Evaluation], path: Path, *, title: str) -> None:
    """Draws accuracy against parameters and against multiply-accumulates, per split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cost, label in ((left, "params", "parameters"), (right, "macs", "MACs per image")):
        for split, marker, line in (("test", "o", "-"), ("validation", "s", ":")):
            points = [
                (getattr(row, cost), 100 * row.splits[split].top1, number)
                for number, row in enumerate(rows)
                if split in row.splits
            ]
            if not points:
                continue
            xs, ys, numbers = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, marker=marker, linestyle=line, label=split, markersize=5)
            if split == "test":
                for x, y, number in zip(xs, ys, numbers, strict=True):
                    axes.annotate(
                        str(number), (x, y), textcoords="offset points", xytext=(0, 7), ha="center"
                    )
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.margins(y=0.15)
    left.set_ylabel("top-1 accuracy, %")
    right.legend(loc="lower right")
    figure.suptitle(title)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    artifacts.write_bytes(path, buffer.getvalue())
