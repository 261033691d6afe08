"""What comes out of a run: its subnets as separate models, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from prenas import artifacts
from prenas.evaluation.accuracy import Evaluation
from prenas.models.choice import choose
from prenas.models.hand_over import hand_over
from prenas.processes import join
from prenas.recipe.budgets import Limits
from prenas.report import write_report
from prenas.runs.run import Run
from prenas.steps.measuring import evaluated


class HandedOver(NamedTuple):
    """A subnet that was handed over."""

    folder: Path
    number: int
    row: Evaluation


def specialize(
    run: Run,
    index: int | None = None,
    limits: Limits | None = None,
    *,
    to: Path | None = None,
) -> HandedOver:
    """Hands over one subnet, by its number or the best within limits, as a model folder."""
    rows = evaluated(run)
    number = choose(rows, index, limits)
    return HandedOver(hand_over_subnet(run, number, rows[number], to), number, rows[number])


def hand_over_subnet(run: Run, number: int, row: Evaluation, to: Path | None = None) -> Path:
    """Hands over subnet `number`, unless that was done already; one process writes.

    Args:
        row: its evaluation.
        to: an empty folder; by default one inside the run.

    Raises:
        ValueError: `to` is not empty, or the folder has a model of other weights.
    """
    processes = join()
    folder = to or run.folder / artifacts.SUBNETS / f"{number:02d}"
    if not processes.is_main:
        pass
    elif to is None and folder.is_symlink():
        artifacts.require_own_folder(folder)
    elif to is None and (folder / artifacts.MODEL_ARCH).exists():
        run.results.require_current_model(folder)
    elif to is not None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder. Nothing was written")
    else:
        hand_over(run, number, row, folder)
    processes.wait()
    return folder


def report(run: Run) -> Path:
    """Writes `report.md` and its pictures from the run so far."""
    processes = join()
    if processes.is_main:
        write_report(run)
    processes.wait()
    return run.folder / artifacts.REPORT
