"""The report: one page of Markdown, with pictures, for a reader who never saw the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prenas import artifacts
from prenas.report.cells import architecture_panels, block_score_panels, draw_panels
from prenas.report.curves import draw_accuracy, draw_training
from prenas.report.figure import render
from prenas.report.sections import SECTIONS, RunSoFar
from prenas.runs.log import read_epochs, read_validations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prenas.evaluation.accuracy import Evaluation
    from prenas.selection.preferred import PreferredSet


def write_report(
    out: Path, preferred: PreferredSet, rows: Sequence[Evaluation], *, best: int | None
) -> Path:
    """Writes `report.md`, and `report/NAME.png` and `.svg` for everything there is to draw.

    Args:
        rows: the evaluation of every preferred subnet, in their order; empty before it.
        best: number of the best subnet by validation; None before the evaluation.

    Raises:
        ValueError: the evaluation is of other subnets, the log is damaged, or no right to write.
    """
    if rows and tuple(row.arch for row in rows) != preferred.archs:
        raise ValueError(
            f"{out / artifacts.EVALUATION} is of other subnets than {artifacts.PREFERRED} beside "
            "it: remove it to evaluate anew"
        )
    numbers = range(len(preferred.subnets))
    models = {number: f"{artifacts.SUBNETS}/{number:02d}" for number in numbers}
    images, calibration = out / artifacts.DATA, out / artifacts.CALIBRATION
    run = RunSoFar(
        folder=out.resolve().name,
        preferred=preferred,
        epochs=read_epochs(out / artifacts.METRICS),
        validations=read_validations(out / artifacts.METRICS),
        rows=rows,
        best=best,
        models={n: m for n, m in models.items() if (out / m / artifacts.MODEL_ARCH).exists()},
        images=artifacts.read_json(images) if images.exists() else None,
        calibration=artifacts.read_json(calibration) if calibration.exists() else None,
    )
    folder = out / artifacts.REPORT_PICTURES
    artifacts.require_writable(folder)
    for name, draw in _drawings(run).items():
        paths = [folder / f"{name}.png", folder / f"{name}.svg"]
        if draw is not None:
            render(draw, *paths)
        else:  # of an earlier call, from what the folder no longer holds
            for path in paths:
                path.unlink(missing_ok=True)
    text = "\n\n".join(part for section in SECTIONS for part in section(run))
    artifacts.write_bytes(out / artifacts.REPORT, (text + "\n").encode())
    return out / artifacts.REPORT


def _drawings(run: RunSoFar) -> dict[str, Callable[[Figure], None] | None]:
    """Every picture by name; None where there is nothing to draw."""
    recipe, axes = run.preferred.recipe, run.preferred.recipe.space.layer_axes
    gains = block_score_panels(run.preferred.block_scores, recipe.space.chain)
    num_planned = recipe.training.epochs if recipe.training else 0
    return {
        "accuracy": partial(draw_accuracy, rows=run.rows) if run.rows else None,
        "architectures": partial(
            draw_panels, panels=architecture_panels(run.preferred.archs, axes)
        ),
        "training": (
            partial(
                draw_training,
                epochs=run.epochs,
                num_planned=num_planned,
                validations=run.validations,
            )
            if run.epochs
            else None
        ),
        "block_scores": partial(draw_panels, panels=gains) if gains else None,
    }
