"""The whole method on one page, and each of its steps as a function on a run folder.

If the recipe has evolution (one-shot NAS), evolution follows the training. Only families with
BatchNorm have something to calibrate.

Every step reads the results of the steps before it from the run folder, and writes its own result
last and atomically. A finished step is not repeated, an interrupted one continues, and a folder of
another recipe is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prenas import artifacts
from prenas.data import ImageData, num_samples
from prenas.evaluation.accuracy import Evaluation
from prenas.families.base import Arch
from prenas.latency import counting_as
from prenas.models.comparison import Comparison, compared
from prenas.processes import join, resolve_device
from prenas.recipe import Recipe, with_overrides, with_places_of
from prenas.recipe.budgets import Limits
from prenas.report.html import write_page
from prenas.runs.images import suited
from prenas.runs.run import Run, read_preferred, read_supernet
from prenas.selection.evolved import Evolved
from prenas.selection.preferred import PreferredSet
from prenas.selection.search import require_memory, zero_cost_search
from prenas.selection.trained import num_judged, scores_units, search_trained
from prenas.sources.cutting import CutPlan, naming_adaptation, with_recorded_rivals
from prenas.sources.released import imported_set, read_released
from prenas.sources.rivals import read_rival, rival_recipe
from prenas.sources.transfer import Source, adapt_source
from prenas.steps import choosing, delivering, measuring, publishing, training
from prenas.steps.observer import SILENT, Observer, observed
from prenas.steps.publishing import Pushed
from prenas.supernet import Statistics, Supernet
from prenas.training.estimate import Estimate, Measured, estimate_training, within_time
from prenas.training.single_images import has_single_images, require_normalisable
from prenas.training.teacher import answering
from prenas.training.tracking import check_trackers

__all__ = [
    "CutDryRun",
    "DryRun",
    "calibrate",
    "compare",
    "dry_run",
    "dry_run_cuts",
    "evaluate",
    "evolve",
    "finetune",
    "import_released",
    "page",
    "push",
    "read_preferred",
    "read_supernet",
    "report",
    "run",
    "run_cuts",
    "search",
    "specialize",
    "train",
]


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    source: Source | None = None,
    head: str = "auto",
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
    track: Sequence[str] = (),
) -> list[Evaluation]:
    """Searches, trains, evolves if the recipe says so, evaluates, and hands over all subnets.

    If there are several processes, the first one searches, evolves and hands over alone.

    Args:
        source: trained weights to fine-tune instead of a search; see `finetune`.
        head: what to do with the classifier of the source; see `finetune`.
        data: splits from Python, for a recipe whose data is None or named "own".
        observer: is told about every step; see `prenas.steps.observer.Observer`.
        track: names of trackers that receive the numbers of the training: `tensorboard`, `wandb`,
            ...

    Raises:
        ValueError: as each of the steps raises it; whatever can be checked before the search is.
    """
    check_trackers(track)
    this = Run(out, recipe, data=data, device=device)
    this.files.require_run_folder()  # before images are read
    if source is None:
        require_memory(recipe)
    if scores_units(recipe):
        _finish_adaptation(this, data=data, device=device, observer=observer, track=track)
        choosing.adapted_source(this)
    needs = training.prepare(
        this, observer, is_pretrained=source is not None or recipe.source is not None
    )
    if source is not None:
        choosing.adapt(this, source, needs.images, head, observer)
    elif this.is_searched and this.preferred.adapted is not None:  # a fine-tuning that continues
        choosing.go_on(this, observer)
    else:
        choosing.search(this, observer)
    training.train(this, observer, needs=needs, track=track)
    if recipe.evolution is not None:
        measuring.evolve(this, observer)
    if this.needs_calibration:
        measuring.calibrate(this, observer)
    rows = measuring.evaluated(this, observer)
    with observed(observer, "hand over", this):
        for number, row in enumerate(rows):
            delivering.hand_over_subnet(this, number, row)
    with observed(observer, "report", this):
        delivering.report(this, with_page=True)
    return rows


def run_cuts(
    plan: CutPlan,
    out: str | Path,
    *,
    device: str = "auto",
    observer: Observer = SILENT,
    track: Sequence[str] = (),
) -> list[Evaluation]:
    """Cuts a family of models out of a trained network.

    Adapts the whole network to the images, as a run of its own in `OUT/source`; scores its hidden
    units; chooses the best subnets of every budget; trains them together with the adapted network
    as their teacher; evaluates them, and hands them over. Stock models to compare with are
    fine-tuned after that; see `compare`.

    Args:
        plan: the result of `prenas.cut_plan`.
        observer: is told about every step of both runs.
        track: as for `run`.

    Returns:
        The evaluations of the subnets; that of the whole network is in `OUT/source`.

    Raises:
        ValueError: as each of the steps raises it.
    """
    check_trackers(track)
    _require_normalisable(plan)
    recipe = with_recorded_rivals(plan.recipe, Run(out, plan.recipe, device="cpu"))
    this = Run(out, recipe, device=device)
    assert recipe.source is not None, "a plan has a source"
    inside = [artifacts.rival_folder(one.name) for one in recipe.source.rivals]
    for name in (artifacts.SOURCE, artifacts.RIVALS, *inside):
        artifacts.require_own_folder(this.folder / name)
    if join().is_main and not this.files.has(artifacts.RECIPE):
        this.record_recipe(recipe)
    join().wait()
    common: dict[str, Any] = {"device": device, "observer": observer, "track": track}
    with naming_adaptation():
        run(plan.adaptation, this.folder / artifacts.SOURCE, source=plan.source, **common)
    rows = run(recipe, this.folder, **common)
    compare(this.folder, sources={one.name: one for one in plan.rivals}, **common)
    return rows


def _finish_adaptation(this: Run, **common: Any) -> None:
    """Continues the adaptation inside a run, if it was interrupted after its source was read.

    If the images have moved, it is told where they are now.
    """
    folder = this.folder / artifacts.SOURCE
    if not (folder / artifacts.RECIPE).exists():
        return
    inside = Run(folder, device="cpu")
    recorded = inside.recipe
    recipe = with_places_of(recorded, this.recipe)
    if not (this.folder / artifacts.ADAPTED / artifacts.MODEL_ARCH).exists():
        if inside.is_searched:
            with naming_adaptation():
                run(recipe, folder, **common)
    elif recipe != recorded and join().is_main:
        Run(folder, recipe, device="cpu").record_recipe(recipe)


def _require_normalisable(plan: CutPlan) -> None:
    """Raises ValueError if a step of either training has a single image that BatchNorm refuses.

    Otherwise the first training could be spent before the second one fails.
    """
    for recipe in (plan.adaptation, plan.recipe):
        asked, space = training.training_of(recipe), recipe.space
        if not has_single_images(plan.num_listed, asked, join()):
            continue
        for side in space.resolutions:
            arch = space.compose(space.extreme(-1), side)
            supernet = Supernet(arch, space.settings)
            field = recipe.training_field
            require_normalisable(supernet, [arch], plan.num_listed, asked, join(), field=field)


def compare(
    out: str | Path,
    *,
    sources: Mapping[str, Source] | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
    track: Sequence[str] = (),
) -> Comparison:
    """Fine-tunes the stock models that the cuts of a run are to be compared with, and compares.

    Each is a run of its own in `OUT/rivals/NAME`, like the adaptation of the whole network, on as
    many images as the whole network and its cuts together. Writes `comparison.json`, and the report
    again. Without stock models, nothing is trained or written.

    Args:
        sources: stock models that are read already, by name.
        observer: is told about every step of every run.
        track: as for `run`.

    Raises:
        ValueError: a stock model cannot be read, or as `run` raises it.
    """
    this = Run(out, device=device)
    whole, origin = Run(this.folder / artifacts.SOURCE, device=device), this.recipe.source
    rivals = origin.rivals if origin is not None else ()
    common: dict[str, Any] = {"device": device, "observer": observer, "track": track}
    folders = {rival.name: this.folder / artifacts.rival_folder(rival.name) for rival in rivals}
    for folder in (this.folder / artifacts.RIVALS, *folders.values()):
        artifacts.require_own_folder(folder)
    for rival in rivals:
        theirs = Run(folders[rival.name], device=device)
        if join().main_says(theirs.is_searched):
            run(with_places_of(theirs.recipe, this.recipe), theirs.folder, **common)
            continue
        source = (sources or {}).get(rival.name) or read_rival(rival.name)
        images = whole.images.recorded
        assert images is not None, "the whole network was adapted to them"
        recipe = rival_recipe(source, whole.recipe, this.recipe, images.num_images["train"])
        run(recipe, theirs.folder, source=source, **common)
    if not rivals:
        return compared(this)
    found = delivering.compare(this)
    delivering.report(this, with_page=True)
    return found


def search(
    recipe: Recipe,
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
) -> PreferredSet:
    """Zero-cost search: chooses the preferred subnets and keeps the weights that were scored.

    Writes `recipe.json`, `initial.safetensors` and `preferred.json` into `out`.

    Args:
        data: splits from Python, for a recipe whose data is None or named "own".

    Raises:
        ValueError: the folder has another recipe or other files or is not writable, no subnet fits
            any budget, or the data do not fit the space.
    """
    return choosing.search(Run(out, recipe, data=data, device=device), observer)


def finetune(
    source: Source,
    recipe: Recipe,
    out: str | Path,
    *,
    data: ImageData | None = None,
    head: str = "auto",
    observer: Observer = SILENT,
) -> PreferredSet:
    """Creates a run folder in which the subnets of a source are trained further on other images.

    Writes `recipe.json`, `initial.safetensors`, `data.json` and, last, `preferred.json`. The
    training and the steps after it are the same as after a search.

    Args:
        source: the result of `prenas.read_source`.
        recipe: the result of `prenas.finetuning_recipe` for this source.
        head: `auto` keeps the classifier if the classes are those of the source; `keep` always
            does, `fresh` never does.

    Raises:
        ValueError: the recipe is not for this source, the images or classes do not fit it, or the
            folder contains another run.
    """
    this = Run(out, recipe, data=data)
    images = training.prepare(this, observer, is_pretrained=True).images
    return choosing.adapt(this, source, images, head, observer)


def import_released(
    file: str | Path,
    out: str | Path,
    archs: Arch | Sequence[Arch] = (),
    *,
    space: str | None = None,
    weights: str | None = None,
) -> PreferredSet:
    """Turns a checkpoint that the authors released into a run folder, ready to evaluate.

    Writes `recipe.json`, `preferred.json` and, last, `supernet.safetensors`: the weights of the
    smallest network that contains all preferred subnets.

    Args:
        archs: the preferred subnets; by default those published for the space, or the largest
            network if the sizes match no published space.
        space: name of that space; by default recognised from the sizes.
        weights: the key of the weights, such as `model_ema`, in a file that has several.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a released checkpoint, a subnet does not fit into it, the space
            is unknown, or the folder contains another run.
    """
    supernet, taken = read_released(file, weights)
    archs = [archs] if isinstance(archs, Arch) else archs
    arch, settings = supernet.arch, supernet.settings
    preferred = imported_set(arch, settings, Path(file), archs, space, taken)
    return choosing.adopt(Run(out, preferred.recipe, device="cpu"), preferred, supernet)


def train(
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
    track: Sequence[str] = (),
) -> Supernet:
    """Trains the envelope of the preferred set, from the weights that were scored.

    Writes `checkpoints/`, `metrics.jsonl` and, at the end, `supernet.safetensors`.

    Args:
        observer: is told about every training step and every record of `metrics.jsonl`.
        track: names of trackers that receive its numbers: `tensorboard`, `wandb`, `mlflow`, ...

    Raises:
        ValueError: the search is not finished, the recipe has no data or training, the data do not
            fit, or a tracker is not installed or does not start.
    """
    return training.train(Run(out, data=data, device=device), observer, track=track)


def evolve(
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
) -> list[Evolved]:
    """Searches the trained supernet by evolution for the best subnet of every budget.

    This is for one-shot NAS, which trains on the whole space; validation accuracy decides. Writes
    `evolution.json` after each budget; an interrupted search starts again with the unfinished
    budget. If there are several processes, the first one works alone.

    Args:
        observer: is told about every generation.

    Raises:
        ValueError: the recipe has no evolution, the training is not finished, or the images are not
            those of the run.
    """
    return measuring.evolve(Run(out, data=data, device=device), observer)


def calibrate(
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
) -> list[Statistics]:
    """Measures the BatchNorm statistics of every subnet that is handed over.

    Writes `calibration.safetensors` and `calibration.json`, for families with BatchNorm. The
    evaluation does this first if needed. Several processes share the subnets.

    Returns:
        One entry per subnet, in the order of the evaluation; empty for families without BatchNorm.

    Raises:
        ValueError: the training, or the evolution, is not finished, the images are not those of the
            run, or there are results of a calibration that is now missing.
    """
    return measuring.calibrate(Run(out, data=data, device=device), observer)


def evaluate(
    out: str | Path,
    archs: Arch | Sequence[Arch] | None = None,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
) -> list[Evaluation]:
    """Evaluates every subnet of the run, or the given architectures, on validation and test.

    The subnets of the run are the preferred ones, or the evolved ones in one-shot NAS. Their
    results are written to `evaluation.json`, `evaluation.csv` and `accuracy.png`. Results for given
    architectures, or on other data than the run's, are only returned.

    Raises:
        ValueError: the training, or the evolution, is not finished, or an architecture does not
            fit into the supernet.
    """
    return measuring.evaluate(Run(out, data=data, device=device), archs, observer)


def specialize(
    out: str | Path,
    index: int | None = None,
    *,
    limits: Limits | None = None,
    of_budget: int | None = None,
    to: str | Path | None = None,
    data: ImageData | None = None,
    device: str = "auto",
) -> Path:
    """Hands over one preferred subnet, with its weights, as a folder that `prenas.load` reads.

    Cuts the plain network out of the supernet, checks that their logits are equal on validation
    images, and writes it to `OUT/subnets/NN`, or to the empty folder `to`. An imported run needs no
    data: without an evaluation, the check uses noise, and the best subnet is the one with the most
    parameters.

    Args:
        index: number of the subnet in the evaluation; or
        limits: take the subnet with the best validation top-1 that costs no more than this, by
            the names of the costs: "params=100k,macs=2M" or {"params": 100_000}; or
        of_budget: take the best by validation of the subnets that were chosen for the budget of
            this number, counted from 0.

    Raises:
        ValueError: the subnet does not exist, none is within the limits or of the budget, or the
            logits differ.
    """
    this = Run(out, data=data, device=device)
    to = None if to is None else Path(to)
    return delivering.specialize(this, index, limits, of_budget=of_budget, to=to).folder


def push(
    target: str | Path,
    repo: str,
    *,
    index: int | None = None,
    limits: Limits | None = None,
    to: str | Path | None = None,
    replace: bool = False,
    private: bool = False,
) -> Pushed:
    """Publishes a model on the Hugging Face Hub, or writes the folder for it, with a model card.

    Args:
        target: the folder of a handed-over model, or of a run.
        repo: name on the Hub, `OWNER/NAME`.
        index: number of the subnet, if the target is a run; or
        limits: take the best within these limits, as in `specialize`. With neither, the best by
            validation.
        to: a new or empty folder to write instead of sending anything.
        replace: replace the files of an earlier push; others are never touched.
        private: whether a new repository is private.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the name is no name on the Hub, something is in the way, or the Hub cannot be
            reached.
    """
    folder = None if to is None else Path(to)
    return publishing.push(
        Path(target),
        repo,
        index=index,
        limits=limits,
        to=folder,
        replace=replace,
        private=private,
    )


def report(out: str | Path) -> Path:
    """Writes `report.md`, and its pictures in `report/`, from the run so far.

    Works at any stage after the search, also while another process trains. Each call replaces the
    previous report.

    Raises:
        ValueError: the search is not finished, or a file of the run is damaged or belongs to other
            weights.
    """
    return delivering.report(Run(out, device="cpu"))


def page(
    runs: str | Path | Sequence[str | Path],
    to: str | Path | None = None,
    *,
    with_pictures: bool = True,
) -> Path:
    """Writes one HTML file from which a reader chooses a subnet of one or several runs.

    Works at any stage after the search, also while another process trains.

    Args:
        to: the file; by default `report.html` in the folder of the only run.
        with_pictures: whether to show images that the subnets classify wrongly; that reads the
            images of each run.

    Raises:
        ValueError: the plotting library is not installed, several runs but no file are named, a
            search is not finished, a file of a run is damaged or belongs to other weights, or
            something else is in the way.
    """
    folders = [runs] if isinstance(runs, (str, Path)) else [*runs]
    if to is None and len(folders) != 1:
        raise ValueError(
            f"a page of {len(folders)} runs belongs to none of their folders: name its file (--to "
            "FILE)"
        )
    path = Path(folders[0]) / artifacts.PAGE if to is None else Path(to)
    opened = []
    for each in folders:
        with counting_as(Path(each)):
            opened.append(Run(each))
    return write_page(opened, path, with_pictures=with_pictures)


class DryRun(NamedTuple):
    """What a run would choose, and how much time and memory it would need."""

    recipe: Recipe
    """The recipe; if a time was given, with the number of steps that fit into it."""
    preferred: PreferredSet
    estimate: Estimate
    images: ImageData

    def lasting(self, estimate: Estimate) -> DryRun:
        """The same run with the number of steps of this estimate."""
        recipe = with_overrides(self.recipe, [f"training.steps={estimate.num_steps}"])
        return self._replace(recipe=recipe, estimate=estimate)


def dry_run(
    recipe: Recipe,
    *,
    source: Source | None = None,
    data: ImageData | None = None,
    device: str = "auto",
    head: str = "auto",
    seconds: float | None = None,
) -> DryRun:
    """Searches, or adapts a source, measures a few training steps, and writes nothing.

    Args:
        seconds: choose the length of the training so that it ends, with the calibration and the
            evaluation after it, within this time on this machine.

    Raises:
        ValueError: as `search` or `finetune`, and `train`, raise it; no training fits into the
            time; or a time is given to several processes, of which only one is measured.
    """
    _require_one_clock(seconds)
    found = _measured(recipe, source, data, device, head)
    if seconds is not None:
        (found,) = _within(seconds, found)
    training.warn_of_doubts(found.recipe, found.images, is_pretrained=source is not None)
    return found


def _require_one_clock(seconds: float | None) -> None:
    """Raises ValueError if a time is given to several processes."""
    if seconds is not None and join().world_size > 1:
        raise ValueError(
            "the steps that fit into a time are measured in one process, but there are "
            f"{join().world_size}: give their number instead (--set training.steps=...)"
        )


def _within(seconds: float, *runs: DryRun) -> list[DryRun]:
    """The runs with the numbers of steps with which all of them end within this time."""
    parts = (
        Measured(one.estimate, one.preferred.archs, training.training_of(one.recipe))
        for one in runs
    )
    found = within_time(seconds, *parts)
    return [one.lasting(estimate) for one, estimate in zip(runs, found, strict=True)]


def _measured(
    recipe: Recipe, source: Source | None, data: ImageData | None, device: str, head: str
) -> DryRun:
    where = resolve_device(device)
    training.training_of(recipe)
    with join().main_first():  # it may download them
        images = suited(recipe, data)
    needs = training.prepared(recipe, images, where)
    found = (
        zero_cost_search(recipe, images, where)
        if source is None
        else adapt_source(source, recipe, images.class_names, head)
    )
    drops = {"drop_path": needs.training.drop_path, "dropout": needs.training.dropout}
    estimate = estimate_training(
        found.supernet.trimmed(found.preferred.envelope, **drops).to(where),
        found.preferred.archs,
        images,
        needs.training,
        seed=recipe.seed,
        space=recipe.space if recipe.evolution else None,
        teacher=needs.teacher,
        calibration=recipe.calibration,
    )
    return DryRun(recipe, found.preferred, estimate, images)


class CutDryRun(NamedTuple):
    """What cutting a trained network would take."""

    adaptation: DryRun
    """For the whole network."""
    cuts: DryRun
    """For the chosen subnets; without the adaptation, other subnets may be chosen."""
    rivals: tuple[DryRun, ...]
    """For each stock model that they are compared with."""
    choice_seconds: float
    """Scoring the units, choosing, and judging the subnets of all budgets and image sizes before
    they are trained."""


def dry_run_cuts(plan: CutPlan, *, device: str = "auto", seconds: float | None = None) -> CutDryRun:
    """Measures a few steps of every training of `run_cuts`, and writes nothing.

    Args:
        seconds: choose the lengths of the adaptation and of the training of the subnets, in the
            proportion that they have, so that they end within this time, with all validation,
            calibration and evaluation. Stock models come on top.

    Raises:
        ValueError: as `run_cuts` raises it before it trains; or as `dry_run`, about the time.
    """
    _require_one_clock(seconds)
    _require_normalisable(plan)
    first = _measured(plan.adaptation, plan.source, None, device, "auto")
    second, choice_seconds = _measured_cuts(plan, first.images, resolve_device(device))
    if seconds is not None:
        first, second = _within(seconds, first, second)
    plan = plan._replace(adaptation=first.recipe, recipe=second.recipe)
    recipes = plan.rival_recipes(num_samples(first.images.train))
    rivals = tuple(
        _measured(recipe, rival, None, device, "auto")
        for recipe, rival in zip(recipes, plan.rivals, strict=True)
    )
    for one in (first, second, *rivals):
        training.warn_of_doubts(one.recipe, one.images, is_pretrained=True)
    return CutDryRun(first, second, rivals, choice_seconds)


def _measured_cuts(plan: CutPlan, images: ImageData, where: torch.device) -> tuple[DryRun, float]:
    """The training of the cuts, and the seconds in which they are chosen."""
    recipe = plan.recipe
    source = adapt_source(plan.source, plan.adaptation, images.class_names).supernet
    asked = training.training_of(recipe)
    teacher = None
    if asked.teacher is not None:
        network = deepcopy(source.network).to(where).eval().requires_grad_(False)
        teacher = torch.no_grad()(answering(network, asked.teacher))
    started = time.perf_counter()
    found = search_trained(
        recipe, source, images, where, source=plan.source.name, sha256=plan.source.sha256
    )
    seconds = time.perf_counter() - started
    estimate = estimate_training(
        found.supernet.trimmed(
            found.preferred.envelope, drop_path=asked.drop_path, dropout=asked.dropout
        ).to(where),
        found.preferred.archs,
        images,
        asked,
        seed=recipe.seed,
        teacher=teacher,
        calibration=recipe.calibration,
    )
    judging = estimate.between.of(num_judged(recipe))
    return DryRun(recipe, found.preferred, estimate, images), seconds + judging
