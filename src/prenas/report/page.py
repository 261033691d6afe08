"""Writes the report: one Markdown page with pictures, for a reader who never saw the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prenas import artifacts
from prenas.length import length_of
from prenas.models.choice import pick
from prenas.models.comparison import compared
from prenas.report.cells import architecture_panels, block_score_panels, draw_panels
from prenas.report.classes import draw_confusion, shown_split
from prenas.report.curves import draw_accuracy, draw_training
from prenas.report.figure import drawn, render
from prenas.report.sections import SECTIONS, RunSoFar
from prenas.runs.log import LogSoFar, read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prenas.evaluation.accuracy import Evaluation
    from prenas.runs.run import Run


def read_so_far(run: Run) -> RunSoFar:
    """Everything that a report shows of a run.

    Raises:
        ValueError: the search is not finished, the evaluation belongs to other subnets or weights,
            or the log is damaged.
    """
    out, subnets = run.folder, run.results.evolved_set or run.preferred
    rows = run.evaluations if run.is_evaluated else []
    models = {number: f"{artifacts.SUBNETS}/{number:02d}" for number in range(len(subnets.subnets))}
    log, source = read_log(out / artifacts.METRICS), run.recipe.source
    return RunSoFar(
        folder=out.resolve().name,
        preferred=subnets,
        epochs=log.epochs,
        num_epochs=_num_epochs(run, log),
        validations=log.validations,
        rows=rows,
        best=pick(rows, {}) if rows else None,
        models={n: m for n, m in models.items() if (out / m / artifacts.MODEL_ARCH).exists()},
        images=run.images.recorded,
        calibration=run.results.calibration,
        comparison=compared(run) if rows and source is not None and source.rivals else None,
    )


def write_report(run: Run) -> Path:
    """Writes `report.md`, and its pictures as `report/NAME.png` and `report/NAME.svg`.

    Raises:
        ValueError: the search is not finished, the evaluation belongs to other subnets or weights,
            the log is damaged, or the folder is not writable.
    """
    so_far, out = read_so_far(run), run.folder
    folder = out / artifacts.REPORT_PICTURES
    artifacts.require_own_folder(folder)
    artifacts.require_writable(folder)
    artifacts.remove_leftovers(folder, keeps_running=True)  # a report takes no lock
    for name, draw in _drawings(so_far).items():
        paths = [folder / f"{name}.png", folder / f"{name}.svg"]
        if draw is not None:
            render(draw, *paths)
        else:  # an earlier call may have drawn it from files that are gone
            for path in paths:
                path.unlink(missing_ok=True)
    text = "\n\n".join(part for section in SECTIONS for part in section(so_far))
    artifacts.write_bytes(out / artifacts.REPORT, (text + "\n").encode())
    return out / artifacts.REPORT


def accuracy_picture(run: RunSoFar) -> bytes:
    """The accuracy of every subnet over its costs, as a PNG; the run must be evaluated."""
    draw = _drawings(run)["accuracy"]
    assert draw is not None, "a run without an evaluation has no accuracies"
    (picture,) = drawn(draw, "png")
    return picture


def _confusion(run: RunSoFar) -> Callable[[Figure], None] | None:
    if run.best is None or not run.rows[run.best].splits:
        return None
    best = run.rows[run.best]
    metrics = best.splits[shown_split(best)]
    if metrics.confusion is None:
        return None
    names = None if run.images is None else run.images.class_names
    return partial(draw_confusion, metrics=metrics, names=names)


def _num_epochs(run: Run, log: LogSoFar) -> int | None:
    """Number of epochs of the whole training; None if it is not known yet."""
    training, images = run.preferred.recipe.training, run.images.recorded
    if training is None:
        return 0
    steps_per_epoch = log.position.steps_per_epoch if log.position else None
    if steps_per_epoch is None and images is not None:
        steps_per_epoch = -(-images.num_images["train"] // training.batch_size)
    return length_of(training, steps_per_epoch).num_epochs if steps_per_epoch else training.epochs


def _others(run: RunSoFar) -> list[tuple[str, Evaluation]]:
    """The networks that the subnets are compared with, if stock models are among them."""
    if run.comparison is None or not run.comparison.of_kind("stock"):
        return []
    return [(one.name, one.row) for one in run.comparison.networks if one.kind != "cut"]


def _drawings(run: RunSoFar) -> dict[str, Callable[[Figure], None] | None]:
    """Every picture by name; None if there is nothing to draw."""
    recipe, axes = run.preferred.recipe, run.preferred.recipe.space.layer_axes
    gains = block_score_panels(run.preferred.block_scores, recipe.space.chain)
    return {
        "accuracy": (
            partial(draw_accuracy, rows=run.rows, others=_others(run)) if run.rows else None
        ),
        "architectures": partial(
            draw_panels, panels=architecture_panels(run.preferred.archs, axes)
        ),
        "training": (
            partial(
                draw_training,
                epochs=run.epochs,
                num_planned=run.num_epochs or 0,
                validations=run.validations,
            )
            if run.epochs
            else None
        ),
        "confusion": _confusion(run),
        "block_scores": partial(draw_panels, panels=gains) if gains else None,
    }
