"""The whole method on one page: search, train, calibrate, evaluate, specialise, file to file.

One-shot NAS, where the recipe has evolution, evolves after training. Families without BatchNorm
have nothing to calibrate.

Every step reads what the step before wrote in the run folder, and writes its own result last and
whole. A finished step is not redone, an unfinished one is continued, and a folder of another
recipe is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from prenas import artifacts
from prenas.data import (
    ImageData,
    check_data_name,
    check_splits,
    num_batches,
)
from prenas.evaluation.accuracy import Evaluation, evaluate_archs
from prenas.evaluation.calibration import calibrate_on
from prenas.families import build_structure
from prenas.families.base import Arch
from prenas.models.hand_over import hand_over, require_of_this_supernet
from prenas.models.specialization import (
    choose,
    pick,
    unevaluated,
)
from prenas.processes import join, resolve_device
from prenas.recipe import Recipe, TrainingRecipe, flat_fields
from prenas.recipe.budgets import Limits
from prenas.report import draw_accuracy, render, write_csv, write_report
from prenas.rivals.evolution import Evolved
from prenas.rivals.evolution import Watcher as EvolutionWatcher
from prenas.rivals.one_shot import (
    comparison_images,
    evolve_budgets,
    evolved_subnets,
    finished_budgets,
    handed_over,
)
from prenas.runs.folder import (
    is_the_runs,
    locked,
    may_be_the_runs,
    read_preferred,
    read_supernet,
    record_data,
    stored_evaluations,
)
from prenas.runs.images import has_no_data, images_of, require_classes
from prenas.runs.log import Sink
from prenas.runs.statistics import stored_statistics, write_statistics
from prenas.selection.preferred import PreferredSet
from prenas.selection.search import zero_cost_search
from prenas.sources.released import imported_set, load_released_checkpoint
from prenas.sources.transfer import Source, adapt_source
from prenas.supernet import Statistics, Supernet, statistic_names
from prenas.training.estimate import Estimate, estimate_training
from prenas.training.loop import Watcher, train_supernet
from prenas.training.stopping import Stopped, stop_requests
from prenas.training.teacher import Teacher, load_teacher
from prenas.training.tracking import check_trackers, open_trackers

_logger = logging.getLogger(__name__)


def search(
    recipe: Recipe, out: str | Path, *, data: ImageData | None = None, device: str = "auto"
) -> PreferredSet:
    """Zero-cost search: chooses the preferred subnets and keeps the weights that were scored.

    Writes `recipe.json`, `initial.safetensors` and `preferred.json` into `out`.

    Args:
        data: splits from Python, for a recipe whose data is None or named "own".

    Raises:
        ValueError: a folder of another recipe or with other files, no right to write, budgets that
            no subnet fits, data that do not suit the space.
    """
    out, where, processes = Path(out), resolve_device(device), join()
    if recipe.data is not None:
        check_data_name(recipe.data)
    if processes.is_main:
        _search(recipe, out, data, where)
    processes.wait()
    return read_preferred(out)


def _search(recipe: Recipe, out: Path, data: ImageData | None, where: torch.device) -> None:
    with locked(out, recipe):
        before = read_preferred(out) if (out / artifacts.PREFERRED).exists() else None
        if before is not None and before.origin is not None:
            raise ValueError(
                f"{out} was {before.origin.summary}, there is no search to do: choose another "
                "folder"
            )
        if before is None or _asks_more(recipe, before):
            images = images_of(recipe, data, out) if recipe.search.images == "data" else None
            found = zero_cost_search(recipe, images, where)
            artifacts.write_json(out / artifacts.RECIPE, {"recipe": recipe.model_dump(mode="json")})
            preferred = found.preferred
            if before is None:
                weights = found.supernet.network.state_dict()
                artifacts.write_tensors(out / artifacts.INITIAL, weights)
            else:  # more was asked about it: what was chosen stays
                news = {
                    "recipe": recipe,
                    "agreement": preferred.agreement,
                    "optima": preferred.optima or before.optima,
                }
                preferred = before.model_copy(update=news)
            artifacts.write_json(out / artifacts.PREFERRED, preferred.model_dump(mode="json"))
        else:
            _note_changes(out, before, recipe)


def _asks_more(recipe: Recipe, before: PreferredSet) -> bool:
    """Whether a search is to report what it has not reported yet."""
    asked = recipe.search
    return asked.further_seeds > len(before.agreement) or asked.exact_optimum > bool(before.optima)


def _note_changes(out: Path, before: PreferredSet, recipe: Recipe) -> None:
    """Takes over what decides nothing, which alone may change while a run goes on."""
    changed = recipe.model_copy(update={"search": before.recipe.search})
    if changed != before.recipe:
        preferred = before.model_copy(update={"recipe": changed})
        artifacts.write_json(out / artifacts.RECIPE, {"recipe": changed.model_dump(mode="json")})
        artifacts.write_json(out / artifacts.PREFERRED, preferred.model_dump(mode="json"))


def train(
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    watch: Watcher | None = None,
    sinks: Sequence[Sink] = (),
    track: Sequence[str] = (),
) -> Supernet:
    """Trains the envelope of the preferred set, from the weights that were scored.

    Writes `checkpoints/`, `metrics.jsonl` and, at the end, `supernet.safetensors`.

    Args:
        watch: called after every training step.
        sinks: called with every record of `metrics.jsonl`; see `prenas.runs.log`.
        track: names of trackers that get its numbers: `tensorboard`, `wandb`, `mlflow`, ...

    Raises:
        ValueError: the search is not done, the recipe has no data or training, or they do not fit;
            a tracker is not installed or does not start.
    """
    out, where, processes = Path(out), resolve_device(device), join()
    check_trackers(track)
    preferred = read_preferred(out)
    recipe = preferred.recipe
    # One looks for all: on a shared disk others may see a file late, and all must go one way.
    if processes.any(processes.is_main and (out / artifacts.SUPERNET).exists()):
        return read_supernet(out, device=device)
    training, splits = ready_to_train(recipe, data, out)
    teacher = _teacher(recipe, where)
    with locked(out, recipe), stop_requests() as stop, ExitStack() as stack:

        def follow(first_step: int) -> list[Sink]:
            config, name = dict(flat_fields(recipe)), out.resolve().name
            trackers = open_trackers(track, out, name, config, first_step)
            return [*stack.enter_context(trackers), *sinks]

        if processes.is_main:
            record_data(out, splits)
        supernet = _initial_supernet(out, preferred, training)
        train_supernet(
            supernet.to(where),
            preferred.archs,
            splits,
            training,
            seed=recipe.seed,
            space=recipe.space if recipe.evolution else None,
            teacher=teacher,
            calibration=recipe.calibration,
            folder=out,
            processes=processes,
            stop=stop,
            watch=watch,
            follow=follow,
        )
        if processes.is_main:
            artifacts.write_tensors(out / artifacts.SUPERNET, supernet.network.state_dict())
        if processes.any(bool(stop)):  # asked while the last subnets were validated
            num_steps = training.epochs * num_batches(splits.train, training.batch_size)
            raise Stopped(num_steps, stop)
    return supernet


def _initial_supernet(out: Path, preferred: PreferredSet, training: TrainingRecipe) -> Supernet:
    """The envelope with the weights that were scored, or adapted, before the training."""
    space = preferred.recipe.space
    arch = space.supernet if preferred.adapted is None else preferred.envelope
    initial = Supernet(arch, space.settings)
    artifacts.load_weights(initial.network, out / artifacts.INITIAL)
    return initial.trimmed(
        preferred.envelope, drop_path=training.drop_path, dropout=training.dropout
    )


def _teacher(recipe: Recipe, where: torch.device) -> Teacher | None:
    """The teacher that a recipe names, if any."""
    if recipe.training is None or recipe.training.teacher is None:
        return None
    settings = recipe.space.settings
    with join().main_first():  # it may download it
        return load_teacher(recipe.training.teacher, settings, recipe.preprocessing, where)


def evolve(
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    watch: EvolutionWatcher | None = None,
) -> list[Evolved]:
    """Searches the trained supernet by evolution: the best subnet of every budget, by validation.

    For one-shot NAS, which trains on the whole space. Writes `evolution.json`, whole after each
    budget; an interrupted search goes on with the next one. Of several processes the first one
    works alone.

    Args:
        watch: called after every generation.

    Raises:
        ValueError: the recipe has no evolution, the training is not finished, or other images.
    """
    out, where, processes = Path(out), resolve_device(device), join()
    preferred = read_preferred(out)
    recipe = preferred.recipe
    if recipe.evolution is None:
        raise ValueError(
            f"the recipe of {out} has no evolution: its subnets were chosen before training. "
            "For one-shot NAS begin another run with --set evolution={}"
        )
    if processes.is_main and evolved_subnets(out, preferred) is None:
        supernet = read_supernet(out, device=str(where))
        images = images_of(recipe, data, out, hold=("validation",))
        require_classes(out, preferred, images)
        with locked(out, recipe):
            evolve_budgets(out, preferred, supernet, images, watch)
    processes.wait()
    return list(finished_budgets(out, recipe))


def needs_calibration(out: str | Path) -> bool:
    """Whether the networks of a run keep statistics of images, which training does not gather."""
    recipe = read_preferred(out).recipe
    structure = build_structure(recipe.space.smallest, recipe.space.settings)
    return bool(statistic_names(structure))


def calibrate(
    out: str | Path, *, data: ImageData | None = None, device: str = "auto"
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
    out, processes = Path(out), join()
    preferred = read_preferred(out)
    recipe = preferred.recipe
    archs = handed_over(out, preferred).archs
    supernet = read_supernet(out, device=device)
    if not supernet.has_statistics:
        return [{} for _ in archs]
    if processes.any(processes.is_main and (out / artifacts.CALIBRATION).exists()):
        stored = stored_statistics(out, archs)
        assert stored is not None, "the first process saw it"
        return stored
    made = [name for name in (artifacts.EVALUATION, artifacts.SUBNETS) if (out / name).exists()]
    if processes.any(processes.is_main and bool(made)):
        raise ValueError(
            f"{out} holds no calibration, but {' and '.join(made)}, which were made with one: "
            "remove them to calibrate anew"
        )
    found = _calibrated(out, preferred, supernet, archs, data)
    if processes.is_main:
        with locked(out, recipe):
            write_statistics(out, archs, found, recipe.calibration)
    processes.wait()
    return found


def _calibrated(
    out: Path,
    preferred: PreferredSet,
    supernet: Supernet,
    archs: Sequence[Arch],
    data: ImageData | None,
) -> list[Statistics]:
    """Statistics of subnets from the run's training images, or empty ones if none are needed."""
    if not supernet.has_statistics:
        return [{} for _ in archs]
    recipe, processes = preferred.recipe, join()
    with processes.main_first():
        images = images_of(recipe, data, out, hold=())
    require_classes(out, preferred, images)
    return calibrate_on(
        supernet,
        archs,
        images,
        recipe.calibration,
        seed=recipe.seed,
        first_epoch=recipe.training.epochs if recipe.training else 0,
        processes=processes,
    )


def evaluate(
    out: str | Path,
    archs: Arch | Sequence[Arch] | None = None,
    *,
    data: ImageData | None = None,
    device: str = "auto",
) -> list[Evaluation]:
    """Evaluates every preferred subnet, or the given architectures, on validation and test.

    Of one-shot NAS, every evolved subnet. Writes `evaluation.json`, `evaluation.csv` and
    `accuracy.png` for them. Results for given architectures, or on other data once that is done,
    are only returned.

    Raises:
        ValueError: the training, or the evolution, is not finished, or an architecture does not
            fit into the supernet.
    """
    out, path, processes = Path(out), Path(out) / artifacts.EVALUATION, join()
    preferred = read_preferred(out)
    is_stored = processes.any(processes.is_main and archs is None and path.exists())
    if is_stored and (data is None or is_the_runs(out, preferred.recipe, data)):
        return stored_evaluations(out)
    supernet = read_supernet(out, device=device)
    subnets = preferred if archs else handed_over(out, preferred)
    with processes.main_first():
        images = images_of(preferred.recipe, data, hold=("validation", "test"))
    require_classes(out, preferred, images)
    if isinstance(archs, Arch):
        archs = [archs]
    own = data if data is not None and may_be_the_runs(out, preferred.recipe, data) else None
    rows = evaluate_archs(
        supernet,
        archs or subnets.archs,
        images.splits,
        _calibrated(out, preferred, supernet, archs, own)
        if archs
        else calibrate(out, data=own, device=device),
        num_workers=images.num_workers,
        num_crops=images.num_crops,
        processes=processes,
    )
    is_first = processes.is_main and archs is None and not path.exists()
    if is_first and not may_be_the_runs(out, preferred.recipe, images):
        _logger.warning("these images are not those that %s was trained on: not recorded", out)
    elif is_first:
        with locked(out, preferred.recipe):
            if not (out / artifacts.DATA).exists():
                record_data(out, images)
            title = f"{preferred.recipe.name}: {subnets.kind} subnets"
            write_csv(rows, out / artifacts.EVALUATION_CSV)
            render(partial(draw_accuracy, rows=rows, title=title), out / artifacts.PLOT)
            document = {
                "family": preferred.recipe.space.family,
                "supernet_sha256": artifacts.sha256(out / artifacts.SUPERNET),
                "subnets": [row.model_dump(mode="json") for row in rows],
            }
            artifacts.write_json(path, document)
    processes.wait()
    return rows


def subnets_of(out: str | Path) -> PreferredSet:
    """The subnets that a run evaluates and hands over: preferred, or of one-shot NAS evolved.

    Raises:
        ValueError: the search, or the evolution, is not finished.
    """
    return handed_over(Path(out), read_preferred(out))


def report(out: str | Path) -> Path:
    """Writes `report.md` and its pictures, in `report/`, from what the run folder holds so far.

    At any stage from the search on, also while another process trains; each call writes anew.

    Raises:
        ValueError: the search is not done, or a file of the run is damaged or of other weights.
    """
    out, processes = Path(out), join()
    if processes.is_main:
        preferred = read_preferred(out)
        subnets = evolved_subnets(out, preferred) or preferred
        rows = stored_evaluations(out) if (out / artifacts.EVALUATION).exists() else []
        write_report(out, subnets, rows, best=pick(rows, {}) if rows else None)
    processes.wait()
    return out / artifacts.REPORT


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
    out, processes = Path(out), join()
    rows = _evaluations(out, data, device)
    number = choose(rows, index, limits)
    folder = Path(to) if to is not None else out / artifacts.SUBNETS / f"{number:02d}"
    if not processes.is_main:
        pass
    elif to is None and (folder / artifacts.MODEL_ARCH).exists():
        require_of_this_supernet(folder, out)
    elif to is not None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder, nothing was written")
    else:
        hand_over(out, number, rows[number], folder, data, device)
    processes.wait()
    return folder


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
    file, out = Path(file), Path(out)
    supernet = load_released_checkpoint(file)
    archs = [archs] if isinstance(archs, Arch) else archs
    preferred = imported_set(supernet.arch, supernet.settings, file, archs, space)
    with locked(out, preferred.recipe):
        if (out / artifacts.PREFERRED).exists():
            before = read_preferred(out)
            if (before.imported, before.archs) != (preferred.imported, preferred.archs):
                raise ValueError(f"{out} holds another run: choose another folder")
        else:
            recipe = preferred.recipe.model_dump(mode="json")
            artifacts.write_json(out / artifacts.RECIPE, {"recipe": recipe})
            artifacts.write_json(out / artifacts.PREFERRED, preferred.model_dump(mode="json"))
        if not (out / artifacts.SUPERNET).exists():
            weights = supernet.trimmed(preferred.envelope).network.state_dict()
            artifacts.write_tensors(out / artifacts.SUPERNET, weights)
    return read_preferred(out)


def finetune(
    source: Source,
    recipe: Recipe,
    out: str | Path,
    *,
    data: ImageData | None = None,
    head: str = "auto",
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
    out, processes = Path(out), join()
    _, images = ready_to_train(recipe, data, out)
    if processes.is_main:
        _finetune(source, recipe, out, images, head)
    processes.wait()
    return read_preferred(out)


def _finetune(source: Source, recipe: Recipe, out: Path, images: ImageData, head: str) -> None:
    preferred, supernet = adapt_source(source, recipe, images.class_names, head)
    with locked(out, recipe):
        if (out / artifacts.PREFERRED).exists():
            before = read_preferred(out)
            if (before.adapted, before.archs) != (preferred.adapted, preferred.archs):
                raise ValueError(f"{out} holds another run: choose another folder")
            _note_changes(out, before, recipe)
        else:
            artifacts.write_json(out / artifacts.RECIPE, {"recipe": recipe.model_dump(mode="json")})
            artifacts.write_tensors(out / artifacts.INITIAL, supernet.network.state_dict())
            record_data(out, images)
            artifacts.write_json(out / artifacts.PREFERRED, preferred.model_dump(mode="json"))


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    data: ImageData | None = None,
    device: str = "auto",
    watch: Watcher | None = None,
    sinks: Sequence[Sink] = (),
    track: Sequence[str] = (),
    watch_evolution: EvolutionWatcher | None = None,
) -> list[Evaluation]:
    """Search, training, evolution where the recipe has it, evaluation, all subnets handed over.

    Of several processes the first one alone searches, evolves and hands over.
    """
    check_trackers(track)
    _, data = ready_to_train(recipe, data, out)
    search(recipe, out, data=data, device=device)
    train(out, data=data, device=device, watch=watch, sinks=sinks, track=track)
    if recipe.evolution is not None:
        evolve(out, data=data, device=device, watch=watch_evolution)
    rows = _evaluations(Path(out), data, device)
    for number in range(len(rows)):
        specialize(out, number, data=data, device=device)
    report(out)
    return rows


class DryRun(NamedTuple):
    """What a run would choose and take; nothing of it was written."""

    preferred: PreferredSet
    estimate: Estimate


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
    training, splits = ready_to_train(recipe, data)
    where = resolve_device(device)
    found = (
        zero_cost_search(recipe, splits, where)
        if source is None
        else adapt_source(source, recipe, splits.class_names, head)
    )
    supernet = found.supernet.trimmed(
        found.preferred.envelope, drop_path=training.drop_path, dropout=training.dropout
    ).to(where)
    archs = found.preferred.archs
    estimate = estimate_training(
        supernet,
        archs,
        splits,
        training,
        seed=recipe.seed,
        space=recipe.space if recipe.evolution else None,
        teacher=_teacher(recipe, where),
        calibration=recipe.calibration,
    )
    return DryRun(found.preferred, estimate)


def _evaluations(out: Path, data: ImageData | None, device: str) -> list[Evaluation]:
    """The stored evaluation of the preferred subnets, made first if it is missing.

    An imported run without data has no results, only costs.
    """
    processes = join()
    if processes.any(processes.is_main and (out / artifacts.EVALUATION).exists()):
        return stored_evaluations(out)
    preferred = read_preferred(out)
    if has_no_data(preferred, data):
        return unevaluated(preferred)
    if data is not None and not may_be_the_runs(out, preferred.recipe, data):
        raise ValueError(
            f"{out} is not evaluated yet, and these are not its images: give "
            f"`prenas evaluate {out}` first"
        )
    return evaluate(out, data=data, device=device)


def ready_to_train(
    recipe: Recipe, data: ImageData | None = None, out: str | Path | None = None
) -> tuple[TrainingRecipe, ImageData]:
    """The training part and the data of a recipe, checked before anything is spent.

    Args:
        out: a run folder, perhaps not there yet; the images must be those it was begun with.

    Raises:
        ValueError: the recipe has no training or no data, or the data do not suit its space or
            the run, or the teacher does not suit them.
    """
    if recipe.training is None:
        raise ValueError(
            f"recipe {recipe.name!r} only searches: it has no training. Choose a recipe that "
            "trains (prenas info lists them), or make one in Python with training=TrainingRecipe"
        )
    with join().main_first():  # it may download them
        splits = images_of(recipe, data, out)
    check_splits(splits, recipe.space.settings)
    if recipe.evolution is not None:
        comparison_images(recipe, splits)
    if recipe.training.teacher is not None:  # made again where the training is
        settings, teacher = recipe.space.settings, recipe.training.teacher
        load_teacher(teacher, settings, recipe.preprocessing, torch.device("cpu"))
    return recipe.training, splits
