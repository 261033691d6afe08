"""What comes out of a run: its subnets as separate models, and the report."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prenas import artifacts
from prenas.evaluation.accuracy import Evaluation
from prenas.models.choice import best_of_budget, choose
from prenas.models.comparison import Comparison, compared
from prenas.models.export import load_network, read_description
from prenas.models.hand_over import hand_over
from prenas.processes import join
from prenas.recipe.budgets import Limits
from prenas.report import draw_accuracy, render, write_report
from prenas.report.html import write_page
from prenas.runs.run import Run
from prenas.steps.measuring import evaluated

_logger = logging.getLogger(__name__)


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
    of_budget: int | None = None,
    to: Path | None = None,
) -> HandedOver:
    """Hands over one subnet as a model folder: by its number, the best within limits, or the best
    of those that were chosen for a budget.

    Args:
        of_budget: number of the budget.
    """
    if of_budget is not None and (index is not None or limits):
        raise ValueError(
            f"budget {of_budget} already says which subnet: leave out its number and the limits"
        )
    rows = evaluated(run)
    if of_budget is None:
        number = choose(rows, index, limits)
    else:
        number = best_of_budget(run.subnets, rows, of_budget)
    return HandedOver(hand_over_subnet(run, number, rows[number], to), number, rows[number])


def hand_over_subnet(run: Run, number: int, row: Evaluation, to: Path | None = None) -> Path:
    """Hands over subnet `number`, unless that was done already; one process writes.

    Args:
        row: its evaluation.
        to: an empty folder; by default one inside the run.

    Raises:
        ValueError: `to` is not empty, or the folder has a model of other weights, or a damaged one.
    """
    processes = join()
    folder = to or run.folder / artifacts.SUBNETS / f"{number:02d}"
    if not processes.is_main:
        pass
    elif to is None and folder.is_symlink():
        artifacts.require_own_folder(folder)
    elif to is None and (folder / artifacts.MODEL_ARCH).exists():
        description = read_description(folder)
        run.results.require_current_model(folder, description.supernet_sha256)
        if description.arch != row.arch:
            raise ValueError(
                f"{folder} holds another subnet than number {number}: move it elsewhere, or choose "
                "another folder with --to. Nothing was written"
            )
        load_network(folder, description)  # it may have been damaged since
    elif to is not None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder. Nothing was written")
    else:
        hand_over(run, number, row, folder)
    processes.wait()
    return folder


def compare(run: Run) -> Comparison:
    """Writes `comparison.json`, and draws `accuracy.png` again, with the stock models."""
    processes, found = join(), compared(run)
    if processes.is_main:
        title = f"{run.recipe.name}: {run.subnets.kind} subnets"
        others = [(one.name, one.row) for one in found.networks if one.kind != "cut"]
        with run.locked():
            draw = partial(draw_accuracy, rows=run.evaluations, others=others, title=title)
            render(draw, run.folder / artifacts.PLOT)
            artifacts.write_json(run.folder / artifacts.COMPARISON, found.document)
    processes.wait()
    return found


def report(run: Run, *, with_page: bool = False) -> Path:
    """Writes `report.md` and its pictures from the run so far.

    Args:
        with_page: whether to write `report.html` as well. Whatever prevents only that is logged: a
            run that is done does not fail because of its page.
    """
    processes = join()
    if processes.is_main:
        write_report(run)
        if with_page:
            try:
                write_page([run], run.folder / artifacts.PAGE)
            except (ValueError, OSError) as error:
                _logger.warning("%s was not written: %s", artifacts.PAGE, error)
    processes.wait()
    return run.folder / artifacts.REPORT
