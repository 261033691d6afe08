"""The whole method on one page, and each of its steps alone, from run folder to run folder.

One-shot NAS, where the recipe has evolution, evolves after training. Families without BatchNorm
have nothing to calibrate.

Every step reads what the step before wrote in the run folder, and writes its own result last and
whole. A finished step is not redone, an unfinished one is continued, and a folder of another
recipe is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prenas.data import ImageData
from prenas.evaluation.accuracy import Evaluation
from prenas.families.base import Arch
from prenas.processes import join, resolve_device
from prenas.recipe import Recipe
from prenas.recipe.budgets import Limits
from prenas.runs.images import suited
from prenas.runs.run import Run, read_preferred, read_supernet
from prenas.selection.evolved import Evolved
from prenas.selection.preferred import PreferredSet
from prenas.selection.search import zero_cost_search
from prenas.sources.released import imported_set, load_released_checkpoint
from prenas.sources.transfer import Source, adapt_source
from prenas.steps import choosing, delivering, measuring, training
from prenas.steps.observer import SILENT, Observer, observed
from prenas.supernet import Statistics, Supernet
from prenas.training.estimate import Estimate, estimate_training
from prenas.training.tracking import check_trackers

__all__ = [
    "DryRun",
    "calibrate",
    "dry_run",
    "evaluate",
    "evolve",
    "finetune",
    "import_released",
    "read_preferred",
    "read_supernet",
    "report",
    "run",
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
    """Search, training, evolution where the recipe has it, evaluation, all subnets handed over.

    Of several processes the first one alone searches, evolves and hands over.

    Args:
        source: trained weights to fine-tune, in place of the search; see `finetune`.
        head: of a source, as `finetune` takes it.
        data: splits from Python, for a recipe whose data is None or named "own".
        observer: hears of every step; see `prenas.steps.observer.Observer`.
        track: names of trackers that get the training's numbers: `tensorboard`, `wandb`, ...

    Raises:
        ValueError: as each of the steps; what can be known before the search is checked before it.
    """
    check_trackers(track)
    this = Run(out, recipe, data=data, device=device)
    needs = training.prepare(this, observer)
    if source is None:
        choosing.search(this, observer)
    else:
        choosing.adapt(this, source, needs.images, head, observer)
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
        delivering.report(this)
    return rows


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
        ValueError: a folder of another recipe or with other files, no right to write, budgets that
            no subnet fits, data that do not suit the space.
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
    """Makes a run folder that trains the subnets of a source further, on other images.

    Writes `recipe.json`, `initial.safetensors`, `data.json` and, last, `preferred.json`; then
    `train` and all that follows are as ever.

    Args:
        source: what `prenas.read_source` reads.
        recipe: what `prenas.finetuning_recipe` makes for that source.
        head: `auto` keeps it where the classes are the source's; or `keep`, `fresh`.

    Raises:
        ValueError: a recipe that is not for this source, images or classes that do not suit it, or
            a folder of another run.
    """
    this = Run(out, recipe, data=data)
    images = training.prepare(this, observer).images
    return choosing.adapt(this, source, images, head, observer)


def import_released(
    file: str | Path,
    out: str | Path,
    archs: Arch | Sequence[Arch] = (),
    *,
    space: str | None = None,
) -> PreferredSet:
    """Makes a run folder of a checkpoint that the authors released, ready to evaluate and cut.

    Writes `recipe.json`, `preferred.json` and, last, `supernet.safetensors`: the weights of the
    smallest network that contains all preferred subnets.

    Args:
        archs: the preferred subnets; by default those published for the space, and where the sizes
            are of no published space, the largest network.
        space: name of that space; by default recognised by the sizes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no released checkpoint, a subnet does not fit into it, an unknown
            space, or a folder of another run.
    """
    supernet = load_released_checkpoint(file)
    archs = [archs] if isinstance(archs, Arch) else archs
    preferred = imported_set(supernet.arch, supernet.settings, Path(file), archs, space)
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
        observer: hears of every training step, and of every record of `metrics.jsonl`.
        track: names of trackers that get its numbers: `tensorboard`, `wandb`, `mlflow`, ...

    Raises:
        ValueError: the search is not done, the recipe has no data or training, or they do not fit;
            a tracker is not installed or does not start.
    """
    return training.train(Run(out, data=data, device=device), observer, track=track)


def evolve(
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
) -> list[Evolved]:
    """Searches the trained supernet by evolution: the best subnet of every budget, by validation.

    For one-shot NAS, which trains on the whole space. Writes `evolution.json`, whole after each
    budget; an interrupted search goes on with the next one. Of several processes the first one
    works alone.

    Args:
        observer: hears of every generation.

    Raises:
        ValueError: the recipe has no evolution, the training is not finished, or other images.
    """
    return measuring.evolve(Run(out, data=data, device=device), observer)


def calibrate(
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    observer: Observer = SILENT,
) -> list[Statistics]:
    """Gathers what BatchNorm must know of the images, for every subnet that is handed over.

    Writes `calibration.safetensors` and `calibration.json`, of families that need it. Evaluation
    does this first where it is missing. Several processes share the subnets.

    Returns:
        Per subnet, in the order of the evaluation; empty for families without BatchNorm.

    Raises:
        ValueError: the training, or the evolution, is not finished, other images than the run's, or
            results of a calibration that is no longer there.
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
    """Evaluates every preferred subnet, or the given architectures, on validation and test.

    Of one-shot NAS, every evolved subnet. Writes `evaluation.json`, `evaluation.csv` and
    `accuracy.png` for them. Results for given architectures, or on other data once that is done,
    are only returned.

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
    to: str | Path | None = None,
    data: ImageData | None = None,
    device: str = "auto",
) -> Path:
    """Hands over one preferred subnet, with its weights, as a folder that `prenas.load` reads.

    Cuts the plain network, checks that its logits equal the supernet's on validation images, and
    writes it to `OUT/subnets/NN`, or to the empty folder `to`. An imported run needs no data: what
    was not evaluated is checked on noise, and the best is the subnet with the most parameters.

    Args:
        index: number of the subnet in the evaluation; or
        limits: the best by validation top-1 that costs no more than this, by the names of the
            costs: "params=100k,macs=2M" or {"params": 100_000}.

    Raises:
        ValueError: no such subnet, none within the limits, or logits that differ.
    """
    this = Run(out, data=data, device=device)
    to = None if to is None else Path(to)
    return delivering.specialize(this, index, limits, to=to).folder


def report(out: str | Path) -> Path:
    """Writes `report.md` and its pictures, in `report/`, from what the run folder holds so far.

    At any stage from the search on, also while another process trains; each call writes anew.

    Raises:
        ValueError: the search is not done, or a file of the run is damaged or of other weights.
    """
    return delivering.report(Run(out))


class DryRun(NamedTuple):
    """What a run would choose and take; nothing of it was written."""

    preferred: PreferredSet
    estimate: Estimate
    images: ImageData


def dry_run(
    recipe: Recipe,
    *,
    source: Source | None = None,
    data: ImageData | None = None,
    device: str = "auto",
    head: str = "auto",
) -> DryRun:
    """Searches, or adapts a source, measures a few training steps, and writes nothing.

    Raises:
        ValueError: as `search`, or `finetune`, and `train`.
    """
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
    return DryRun(found.preferred, estimate, images)
