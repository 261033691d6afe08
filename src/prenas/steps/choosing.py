"""How a run starts: with a search, with a source to fine-tune, or with released weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prenas import artifacts
from prenas.data import ImageData, check_data_name
from prenas.devices.measuring import engine_of
from prenas.devices.whole import measure_run, recorded_times
from prenas.evaluation.accuracy import top1_of_archs
from prenas.evaluation.calibration import calibrate_on, first_new_epoch
from prenas.families.base import Arch
from prenas.latency import LATENCY, table_in_use
from prenas.processes import Processes, join
from prenas.recipe import Recipe
from prenas.runs.run import Run
from prenas.selection.preferred import PreferredSet
from prenas.selection.search import Search, zero_cost_search
from prenas.selection.trained import scores_units, search_trained
from prenas.sources.transfer import Source, adapt_source, read_source
from prenas.steps.observer import SILENT, Observer, observed
from prenas.supernet import Supernet

_log = logging.getLogger(__name__)
_DELAY_OF_DISKS = 60.0  # seconds until all machines see a new file; NFS keeps what it knew


def search(run: Run, observer: Observer = SILENT) -> PreferredSet:
    """Chooses the preferred subnets, and keeps the weights that were scored.

    A recipe that scores hidden units searches in the adapted source, which lies inside the run. If
    there are several processes, the first one works alone.

    Raises:
        ValueError: nothing fits the budgets, or the source is missing or not yet adapted.
    """
    processes = join()
    if run.recipe.data is not None:
        check_data_name(run.recipe.data)
    if processes.is_main:
        with run.locked():
            _search(run, observer)
            _measure(run, observer)
    return _seen_by_all(run, processes)


def _seen_by_all(run: Run, processes: Processes) -> PreferredSet:
    """The subnets that the first process has recorded, once every process sees them.

    Raises:
        ValueError: some process does not see them, even after a minute. All processes get it.
    """
    if processes.world_size == 1:
        return run.preferred
    recorded = processes.gathered(_state_of(run))[0]
    deadline = time.monotonic() + _DELAY_OF_DISKS
    while _state_of(run) != recorded and time.monotonic() < deadline:
        time.sleep(0.1)
    seen = processes.gathered(_state_of(run))
    if blind := [rank for rank, state in enumerate(seen) if state != recorded]:
        raise ValueError(
            f"of the processes of this run, {', '.join(map(str, blind))} do not see what process 0 "
            f"wrote into {run.folder}: put the run folder on a disk that all machines share, and "
            "give the same path on each"
        )
    return run.preferred


def _state_of(run: Run) -> int:
    """Changes with the recorded subnets; -1 without any."""
    digest = run.files.sha256(artifacts.PREFERRED)
    return -1 if digest is None else int(digest[:12], 16)  # a whole number in float64


def _search(run: Run, observer: Observer) -> None:
    recipe, before = run.recipe, run.preferred if run.is_searched else None
    if before is not None and before.origin is not None:
        raise ValueError(
            f"{run.folder} was {before.origin.summary}, so there is nothing to search: choose "
            "another folder"
        )
    if before is not None and not _asks_more(recipe, before):
        _take_over(run, recipe, before)
        observer.was_complete("search", run)
        return
    if before is None and (source := run.fine_tunes) is not None:
        raise ValueError(
            f"{run.folder} was started to fine-tune {source}, and does not have its weights yet: "
            "give the command again that it was started with (prenas finetune SOURCE ..., or "
            "prenas run --from SOURCE ...)"
        )
    with observed(observer, "search", run):
        images = run.images.read_own() if recipe.search.images == "data" else None
        if scores_units(recipe):
            found = _searched_in_source(run, images)
        else:
            found = zero_cost_search(recipe, images, run.device, watch=observer.chose_for_budgets)
        preferred = found.preferred
        if before is None:
            run.record_recipe(recipe)
            run.record_initial(found.supernet)
        else:  # further reports were requested: the choice stays, and those made before
            recipe = _with_reports_of(recipe, before.recipe)
            run.record_recipe(recipe)
            added = {
                "recipe": recipe,
                "agreement": max(preferred.agreement, before.agreement, key=len),
                "optima": preferred.optima or before.optima,
            }
            preferred = before.model_copy(update=added)
        run.record_preferred(preferred)


def _measure(run: Run, observer: Observer) -> None:
    """Times the subnets as wholes, if budgets limit their latency on this very machine."""
    table = table_in_use()
    if table is None or not run.recipe.search.limits(LATENCY):
        return
    theirs = table.conditions
    if any(one.conditions == theirs for one in recorded_times(run)):
        observer.was_complete("measure", run)
        return
    try:
        engine = engine_of(theirs)
        if engine.conditions != theirs:
            raise ValueError(
                f"{theirs.machine} is another machine, or has other versions, than this"
            )
        with observed(observer, "measure", run):
            measure_run(run, engine)
    except ValueError as error:
        _log.warning("The subnets are not timed: %s", error)


def _searched_in_source(run: Run, images: ImageData | None) -> Search:
    """Searches in the network that was adapted inside the run."""
    recipe, source = run.recipe, read_source(adapted_source(run))
    if images is None or source.supernet.settings != recipe.space.settings:
        raise ValueError(
            f"recipe {recipe.name!r} was not made for {source.name}: build it with "
            "prenas.cut_plan(source, ...)"
        )
    run.images.record(images)
    return search_trained(
        recipe,
        source.supernet,
        images,
        run.device,
        source=source.name,
        sha256=source.sha256,
        judge=partial(_top1_untrained, run, images),
    )


def _top1_untrained(
    run: Run, images: ImageData, supernet: Supernet, archs: Sequence[Arch]
) -> list[float]:
    """Validation accuracy of every subnet as it is cut, with its BatchNorm calibrated."""
    recipe = run.recipe
    supernet.eval()
    statistics = calibrate_on(
        supernet,
        archs,
        images,
        recipe.calibration,
        recipe.calibration.while_training,
        seed=recipe.seed,
        first_epoch=first_new_epoch(images, recipe.training),
    )
    return top1_of_archs(
        supernet,
        archs,
        images.validation,
        statistics,
        num_workers=images.num_workers,
        num_crops=images.num_crops,
    )


def adapted_source(run: Run) -> Path:
    """The model folder of the network that was adapted inside the run.

    Raises:
        ValueError: it is not adapted yet.
    """
    folder = run.folder / artifacts.ADAPTED
    if not (folder / artifacts.MODEL_ARCH).exists():
        raise ValueError(
            f"{run.folder} scores the units of a trained network, which is not adapted yet "
            f"({folder} is missing): give the command that the run was started with "
            "(prenas run --from SOURCE ...; in Python prenas.run_cuts)"
        )
    return folder


def _asks_more(recipe: Recipe, before: PreferredSet) -> bool:
    """Whether the recipe asks for a report that the search has not made yet."""
    if scores_units(recipe):  # has no further reports, whatever an earlier version recorded
        return False
    asked = recipe.search
    return asked.further_seeds > len(before.agreement) or asked.exact_optimum > bool(before.optima)


def _with_reports_of(recipe: Recipe, before: Recipe) -> Recipe:
    """The recipe, asking for the reports of another one, too."""
    search, other = recipe.search, before.search
    both = {
        "further_seeds": max(search.further_seeds, other.further_seeds),
        "exact_optimum": search.exact_optimum or other.exact_optimum,
    }
    return recipe.model_copy(update={"search": search.model_copy(update=both)})


def _take_over(run: Run, recipe: Recipe, before: PreferredSet) -> None:
    """Records fields that decide nothing; only those may change during a run."""
    changed = recipe.model_copy(update={"search": before.recipe.search})
    if changed != before.recipe:
        run.record_recipe(changed)


def adapt(
    run: Run, source: Source, images: ImageData, head: str = "auto", observer: Observer = SILENT
) -> PreferredSet:
    """Starts from the subnets and weights of a source, to train them further on other images.

    If there are several processes, the first one works alone.
    """
    processes = join()
    if processes.is_main:
        with observed(observer, "adapt", run):
            _adapt(run, source, images, head)
    return _seen_by_all(run, processes)


def go_on(run: Run, observer: Observer = SILENT) -> None:
    """Continues with the subnets and weights of a source that the run was started with."""
    if join().is_main:
        with run.locked():
            _take_over(run, run.recipe, run.preferred)
        observer.was_complete("adapt", run)


def _adapt(run: Run, source: Source, images: ImageData, head: str) -> None:
    preferred, supernet = adapt_source(source, run.recipe, images.class_names, head)
    with run.locked():
        if run.is_searched:
            before = run.preferred
            theirs, ours = (_decisive(one) for one in (before, preferred))
            if theirs != ours:
                raise ValueError(
                    f"{run.folder} already contains another run: choose another folder"
                    + (f" (it was {before.adapted.summary})" if before.adapted else "")
                )
            _take_over(run, run.recipe, before)
        else:
            run.record_recipe(run.recipe, fine_tunes=source.name)
            run.record_initial(supernet)
            run.images.record(images)
            run.record_preferred(preferred)


def _decisive(preferred: PreferredSet) -> tuple[object, ...]:
    """What of a fine-tuning's start decides its result: not the path of its source."""
    adapted = preferred.adapted
    told = {"source": "", "licence": None, "origin": None}
    return (None if adapted is None else adapted.model_copy(update=told), preferred.archs)


def adopt(run: Run, preferred: PreferredSet, supernet: Supernet) -> PreferredSet:
    """Starts from a released supernet, which needs no training.

    Args:
        preferred: its subnets.
        supernet: contains all of them; only what they need is kept.
    """
    with run.locked():
        if run.is_searched:
            before = run.preferred
            if (before.imported, before.archs) != (preferred.imported, preferred.archs):
                raise ValueError(
                    f"{run.folder} already contains another run: choose another folder"
                )
        else:
            run.record_recipe(preferred.recipe)
            run.record_preferred(preferred)
        if not run.is_trained:
            run.record_supernet(supernet.trimmed(preferred.envelope))
    return run.preferred
