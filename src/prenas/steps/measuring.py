"""What follows the training: evolution, calibration and evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from prenas import artifacts
from prenas.evaluation.accuracy import Evaluation, evaluate_archs
from prenas.evaluation.calibration import calibrate_on, calibration_size, first_new_epoch
from prenas.families.base import Arch
from prenas.models.choice import pick, unevaluated
from prenas.processes import join
from prenas.recipe import Recipe
from prenas.report import draw_accuracy, render, wilson_interval, write_csv
from prenas.rivals.one_shot import evolve_budgets
from prenas.runs.run import Run
from prenas.selection.evolved import Evolved
from prenas.steps.observer import SILENT, Observer, observed
from prenas.supernet import Statistics

_logger = logging.getLogger(__name__)


def evolve(run: Run, observer: Observer = SILENT) -> list[Evolved]:
    """One-shot NAS: searches the trained supernet by evolution for the best subnet of each budget.

    If there are several processes, the first one works alone.
    """
    processes = join()
    if run.preferred.recipe.evolution is None:
        raise ValueError(
            f"the recipe of {run.folder} has no evolution, because its subnets were chosen before "
            "training. For one-shot NAS, start another run with --set evolution={}"
        )
    if processes.is_main:
        if run.results.evolved_set is not None:
            observer.was_complete("evolve", run)
        else:
            with observed(observer, "evolve", run):
                supernet = run.supernet
                images = run.images.read_own(hold=("validation",))
                with run.locked():
                    evolve_budgets(run, supernet, images, observer.evolved_generation)
    processes.wait()
    return list(run.results.evolved)


def calibrate(run: Run, observer: Observer = SILENT) -> list[Statistics]:
    """Measures the BatchNorm statistics of every subnet that is handed over.

    Several processes share the subnets.

    Returns:
        One entry per subnet, in the order of the evaluation; empty for families without BatchNorm.
    """
    processes, archs = join(), run.subnets.archs
    if not run.supernet.has_statistics:
        return [{} for _ in archs]
    if processes.main_says(run.results.are_calibrated):
        observer.was_complete("calibrate", run)
        stored = run.results.statistics(archs)
        assert stored is not None, "the main process has just seen them"
        return stored
    made = [name for name in (artifacts.EVALUATION, artifacts.SUBNETS) if run.files.has(name)]
    if processes.main_says(bool(made)):
        raise ValueError(
            f"{run.folder} has {' and '.join(made)}, which were made with a calibration that is "
            "now missing: remove them to calibrate again"
        )
    with observed(observer, "calibrate", run), run.locked():
        found = _calibrated(run, archs, observer)
        if processes.is_main:
            images = run.images.read_own(hold=())
            size, number = calibration_size(images, run.recipe.calibration)
            run.results.record_statistics(archs, found, size * number, size)
        processes.wait()
    return found


def _calibrated(run: Run, archs: Sequence[Arch], observer: Observer = SILENT) -> list[Statistics]:
    """Statistics of subnets, from the run's training images; empty if the family needs none."""
    supernet, recipe, processes = run.supernet, run.recipe, join()
    if not supernet.has_statistics:
        return [{} for _ in archs]
    with processes.main_first():
        images = run.images.read_own(hold=())
    read, num_images = 0, math.prod(calibration_size(images, recipe.calibration))

    def watch(more: int) -> None:
        nonlocal read
        read += more
        observer.calibrated_images(read, num_images)

    return calibrate_on(
        supernet,
        archs,
        images,
        recipe.calibration,
        seed=recipe.seed,
        first_epoch=first_new_epoch(images, recipe.training),
        processes=processes,
        watch=watch,
    )


def evaluate(
    run: Run, archs: Arch | Sequence[Arch] | None = None, observer: Observer = SILENT
) -> list[Evaluation]:
    """Evaluates every subnet that is handed over, or given architectures, on validation and test.

    Results of the run's own subnets on its own images are recorded, and not measured twice.
    """
    archs = [archs] if isinstance(archs, Arch) else archs
    if not archs and join().main_says(run.is_evaluated) and run.images.are_its_own:
        observer.was_complete("evaluate", run)
        return run.evaluations
    with observed(observer, "evaluate", run):
        return _evaluate(run, archs)


def _evaluate(
    run: Run, archs: Sequence[Arch] | None, *, only_own: bool = False
) -> list[Evaluation]:
    """Evaluates, and records results of the run's own subnets on its own images.

    Args:
        only_own: refuses images that are known to be others.
    """
    processes, supernet = join(), run.supernet
    subnets = run.preferred if archs else run.subnets
    with processes.main_first():
        read = run.images.read_own if only_own else run.images.read
        images = read(hold=("validation", "test"))
    # Statistics always come from the run's own images, also in an evaluation on others.
    own = run if run.images.may_be_own(images) else run.on(None)
    is_recorded = not archs and not run.is_evaluated and run.images.may_be_own(images)
    with run.locked() if is_recorded else nullcontext():  # before time is spent on results
        rows = evaluate_archs(
            supernet,
            archs or subnets.archs,
            images.splits,
            _calibrated(own, archs) if archs else calibrate(own),
            num_workers=images.num_workers,
            num_crops=images.num_crops,
            processes=processes,
        )
    if processes.is_main and not archs and not run.is_evaluated:
        if run.images.may_be_own(images):
            _record(run, rows)
            _warn_of_guessing(rows, run.recipe)
        elif not run.images.are_own_with_other_crops(images):
            _logger.warning(
                "these images are not the ones that %s was trained on, so the results were not "
                "saved",
                run.folder,
            )
    processes.wait()
    return rows


def _warn_of_guessing(rows: Sequence[Evaluation], recipe: Recipe) -> None:
    """Warns if the best subnet may be no better than always naming the largest class."""
    best = rows[pick(rows, {})].splits["validation"]
    if best.per_class is None:
        return
    guessing = max(number for _, number in best.per_class) / best.num_images
    low, high = wilson_interval(best)
    if low <= guessing:
        _logger.warning(
            "the best subnet is right on %.1f %% of the %s validation images (95 %% interval: %.1f "
            "to %.1f %%), which cannot be told from the %.1f %% of always naming the largest "
            "class: train for longer (%s.steps, --time)%s or add images",
            100 * best.top1,
            f"{best.num_images:,}",
            100 * low,
            100 * high,
            100 * guessing,
            recipe.training_field,
            "" if recipe.source else ", fine-tune trained weights (prenas finetune)",
        )


def _record(run: Run, rows: Sequence[Evaluation]) -> None:
    """Writes the table and the picture, and last the file that marks the evaluation as done."""
    title = f"{run.recipe.name}: {run.subnets.kind} subnets"
    with run.locked():
        if run.images.recorded is None:
            run.images.record(run.images.read(hold=("validation", "test")))
        write_csv(rows, run.folder / artifacts.EVALUATION_CSV)
        picture = run.folder / artifacts.PLOT
        render(partial(draw_accuracy, rows=rows, title=title), picture)
        run.results.record_evaluations(rows)


def evaluated(run: Run, observer: Observer = SILENT) -> list[Evaluation]:
    """The evaluation of the run's subnets; evaluates them first if needed.

    An imported run without images has costs only.
    """
    if join().main_says(run.is_evaluated):
        observer.was_complete("evaluate", run)
        return run.evaluations
    if run.images.are_missing:
        return unevaluated(run.preferred)
    if run.images.are_others:
        raise ValueError(
            f"{run.folder} has not been evaluated yet, and these are not its images: run "
            f"`prenas evaluate {run.folder}` first"
        )
    with observed(observer, "evaluate", run):
        return _evaluate(run, None, only_own=True)  # a model that is handed over tells the results
