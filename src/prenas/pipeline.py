"""The whole method on one page: search, train, evaluate, specialise, each from file to file.

One-shot NAS, where the recipe has evolution, evolves between training and evaluation.

Every step reads what the step before wrote in the run folder, and writes its own result last and
whole. A finished step is not redone, an unfinished one is continued, and a folder of another
recipe is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prenas import artifacts
from prenas.data import (
    ImageData,
    check_data_name,
    check_splits,
    evaluation_batches,
    load_data,
    open_data,
    undivided,
    with_data,
)
from prenas.data_recipe import OWN_DATA, DataRecipe
from prenas.devices import resolve_device
from prenas.evaluation import Evaluation, evaluate_archs
from prenas.evolution import Evolved
from prenas.evolution import Watcher as EvolutionWatcher
from prenas.export import load, write_model
from prenas.families.base import Arch
from prenas.one_shot import (
    comparison_images,
    evolve_budgets,
    evolved_subnets,
    finished_budgets,
    handed_over,
)
from prenas.processes import join
from prenas.proxy.importance import noise_images
from prenas.recipe import Recipe, TrainingRecipe, flat_fields, with_overrides
from prenas.released import class_names, imported_set, load_released_checkpoint
from prenas.report import draw_accuracy, render, write_csv, write_report
from prenas.run_folder import (
    is_the_runs,
    locked,
    may_be_the_runs,
    read_preferred,
    read_supernet,
    record_data,
    recorded_class_names,
    recorded_fingerprint,
    require_same_classes,
    require_same_data,
    stored_evaluations,
)
from prenas.runlog import Sink
from prenas.selection.budgets import parse_amount
from prenas.selection.preferred import PreferredSet
from prenas.specialization import pick, require_equal_logits, verified_cut
from prenas.supernet import Supernet
from prenas.training.estimate import Estimate, estimate_training
from prenas.training.loop import Watcher, train_supernet
from prenas.training.stopping import stop_requests
from prenas.training.teacher import Teacher, load_teacher
from prenas.training.tracking import check_trackers, open_trackers
from prenas.zero_cost_search import new_supernet, zero_cost_search

_logger = logging.getLogger(__name__)
_NUM_PROOF_IMAGES = 32


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
        if before is not None and before.imported:
            raise ValueError(f"{out} was imported, there is no search to do: choose another folder")
        if before is None or recipe.search.further_seeds > len(before.agreement):
            images = _data(recipe, data, out) if recipe.search.images == "data" else None
            found = zero_cost_search(recipe, images, where)
            artifacts.write_json(out / artifacts.RECIPE, {"recipe": recipe.model_dump(mode="json")})
            preferred = found.preferred
            if before is None:
                weights = found.supernet.network.state_dict()
                artifacts.write_tensors(out / artifacts.INITIAL, weights)
            else:  # more seeds were asked for: what was chosen stays
                news = {"recipe": recipe, "agreement": preferred.agreement}
                preferred = before.model_copy(update=news)
            artifacts.write_json(out / artifacts.PREFERRED, preferred.model_dump(mode="json"))
        else:  # what decides nothing may change while a run goes on
            changed = recipe.model_copy(update={"search": before.recipe.search})
            if changed != before.recipe:
                preferred = before.model_copy(update={"recipe": changed})
                artifacts.write_json(
                    out / artifacts.RECIPE, {"recipe": changed.model_dump(mode="json")}
                )
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
        sinks: called with every record of `metrics.jsonl`; see `prenas.runlog`.
        track: names of trackers that get its numbers: `tensorboard`, `wandb`, `mlflow`, ...

    Raises:
        ValueError: the search is not done, the recipe has no data or training, or they do not fit;
            a tracker is not installed or does not start.
    """
    out, where, processes = Path(out), resolve_device(device), join()
    check_trackers(track)
    preferred = read_preferred(out)
    recipe = preferred.recipe
    is_done = (out / artifacts.SUPERNET).exists()
    processes.wait()  # nobody looks for the file after another one wrote it
    if is_done:
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
        scored = new_supernet(recipe, recipe.seed)
        artifacts.load_weights(scored.network, out / artifacts.INITIAL)
        supernet = scored.trimmed(preferred.envelope, drop_path=training.drop_path)
        del scored
        train_supernet(
            supernet.to(where),
            preferred.archs,
            splits,
            training,
            seed=recipe.seed,
            space=recipe.space if recipe.evolution else None,
            teacher=teacher,
            folder=out,
            processes=processes,
            stop=stop,
            watch=watch,
            follow=follow,
        )
        if processes.is_main:
            artifacts.write_tensors(out / artifacts.SUPERNET, supernet.network.state_dict())
        processes.wait()
    return supernet


def _teacher(recipe: Recipe, where: torch.device) -> Teacher | None:
    """The teacher that a recipe names, if any."""
    if recipe.training is None or recipe.training.teacher is None:
        return None
    settings = recipe.space.settings
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
        images = _data(recipe, data, out, hold=("validation",))
        _require_classes(out, preferred, images)
        with locked(out, recipe):
            evolve_budgets(out, preferred, supernet, images, watch)
    processes.wait()
    return list(finished_budgets(out, recipe))


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
    is_stored = archs is None and path.exists()
    if is_stored and (data is None or is_the_runs(out, preferred.recipe, data)):
        return stored_evaluations(out)
    supernet = read_supernet(out, device=device)
    subnets = preferred if archs else handed_over(out, preferred)
    images = _data(preferred.recipe, data, hold=("validation", "test"))
    _require_classes(out, preferred, images)
    if isinstance(archs, Arch):
        archs = [archs]
    rows = evaluate_archs(
        supernet,
        archs or subnets.archs,
        images.splits,
        num_workers=images.num_workers,
        num_crops=images.num_crops,
        processes=processes,
    )
    processes.wait()  # nobody looks for the file below after it was written
    is_first = archs is None and not path.exists() and processes.is_main
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
    out = Path(out)
    preferred = read_preferred(out)
    subnets = evolved_subnets(out, preferred) or preferred
    rows = stored_evaluations(out) if (out / artifacts.EVALUATION).exists() else []
    return write_report(out, subnets, rows, best=pick(rows, {}) if rows else None)


def specialize(
    out: str | Path,
    index: int | None = None,
    *,
    max_params: int | str | None = None,
    max_macs: int | str | None = None,
    to: str | Path | None = None,
    data: ImageData | None = None,
    device: str = "auto",
) -> Path:
    """Hands over one preferred subnet, with its weights, as a folder that `prenas.load` reads.

    Cuts the plain network, checks that its logits equal the supernet's on validation images, and
    writes it to `OUT/subnets/NN`, or to the empty folder `to`. An imported run needs no data: what
    was not evaluated is checked on noise, and the best is the subnet with the most parameters.

    Args:
        index: number of the subnet in the evaluation; or give limits:
        max_params: the best by validation top-1 with at most so many parameters ("100k", 100_000).
        max_macs: the same for multiply-accumulates.

    Raises:
        ValueError: no such subnet, none within the limits, or logits that differ.
    """
    out = Path(out)
    rows = _evaluations(out, data, device)
    limits = {
        axis: parse_amount(str(limit))
        for axis, limit in (("params", max_params), ("macs", max_macs))
        if limit is not None
    }
    if (index is None) == (not limits):
        raise ValueError(
            "say which subnet: either its index, or max_params and/or max_macs (--index, --max-...)"
        )
    number = pick(rows, limits) if index is None else index
    if not 0 <= number < len(rows):
        raise ValueError(f"there is no subnet {number}: this run has 0 to {len(rows) - 1}")
    folder = Path(to) if to is not None else out / artifacts.SUBNETS / f"{number:02d}"
    if to is None and (folder / artifacts.MODEL_ARCH).exists():
        _require_of_this_supernet(folder, out)
        return folder
    if to is not None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder, nothing was written")
    _hand_over(out, number, rows[number], folder, data, device)
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
    if not join().is_main:
        return rows
    for number in range(len(rows)):
        specialize(out, number, data=data, device=device)
    report(out)
    return rows


class DryRun(NamedTuple):
    """What a run would choose and take; nothing of it was written."""

    preferred: PreferredSet
    estimate: Estimate


def dry_run(recipe: Recipe, *, data: ImageData | None = None, device: str = "auto") -> DryRun:
    """Searches, measures a few training steps, and writes nothing.

    Raises:
        ValueError: as `search` and `train`.
    """
    training, splits = ready_to_train(recipe, data)
    where = resolve_device(device)
    found = zero_cost_search(recipe, splits, where)
    envelope = found.preferred.envelope
    supernet = found.supernet.trimmed(envelope, drop_path=training.drop_path).to(where)
    archs = found.preferred.archs
    estimate = estimate_training(
        supernet,
        archs,
        splits,
        training,
        seed=recipe.seed,
        space=recipe.space if recipe.evolution else None,
        teacher=_teacher(recipe, where),
    )
    return DryRun(found.preferred, estimate)


def ready_to_train(
    recipe: Recipe, data: ImageData | None = None, out: str | Path | None = None
) -> tuple[TrainingRecipe, ImageData]:
    """The training part and the data of a recipe, checked before anything is spent.

    Args:
        out: a run folder, perhaps not there yet; the images must be those it was begun with.

    Raises:
        ValueError: the recipe has no training or no data, or the data do not suit its space or
            the run.
    """
    if recipe.training is None:
        raise ValueError(
            f"recipe {recipe.name!r} only searches: it has no training. Choose a recipe that "
            "trains (prenas info lists them), or make one in Python with training=TrainingRecipe"
        )
    splits = _data(recipe, data, out)
    check_splits(splits, recipe.space.settings)
    if recipe.evolution is not None:
        comparison_images(recipe, splits)
    return recipe.training, splits


def other_data(
    out: str | Path, texts: Sequence[str] = (), *, crops: int | None = None
) -> ImageData:
    """Images for a run from another place than its recipe says: moved files, or another test set.

    Args:
        texts: as `prenas.with_data` takes them; none for the recipe's own images.
        crops: crops per evaluated image, 1, 5 or 10; None for the recipe's.

    Raises:
        ValueError: other classes than the run's, or images that are not there or not readable.
    """
    out = Path(out)
    preferred = read_preferred(out)
    recipe = preferred.recipe
    moved = with_data(recipe, texts) if texts else recipe
    if crops is not None:
        moved = with_overrides(moved, [f"data.crops={crops}"])
    if moved.data is None:
        raise ValueError(f"{out} has no images of its own: say where they are (--data)")
    whole = None
    if texts and not _may_be_moved(out, preferred, moved.data):
        whole = undivided(moved.data, recipe.space.settings)
    images = whole or load_data(moved.data, recipe.space.settings)
    _require_classes(out, preferred, images)
    return images


def _may_be_moved(out: Path, preferred: PreferredSet, data: DataRecipe) -> bool:
    """Whether images in another place may be those of a run, divided as it divides them."""
    if recorded_class_names(out) is None:
        return preferred.imported is None
    try:
        return open_data(data).fingerprint == recorded_fingerprint(out)
    except ValueError:  # too few to divide, or of other classes
        return False


def _require_classes(out: Path, preferred: PreferredSet, data: ImageData) -> None:
    """Raises ValueError unless the labels of images mean what the outputs of a run mean."""
    require_same_classes(out, data)
    num_outputs = preferred.recipe.space.settings.num_classes
    is_unknown = preferred.imported is not None and recorded_class_names(out) is None
    if is_unknown and len(data.class_names) != num_outputs:
        raise ValueError(
            f"these images have {len(data.class_names)} classes, {out} has {num_outputs} outputs: "
            "give images of the classes that the released weights were trained on"
        )


def _evaluations(out: Path, data: ImageData | None, device: str) -> list[Evaluation]:
    """The stored evaluation of the preferred subnets, made first if it is missing.

    An imported run without data has no results, only costs.
    """
    if (out / artifacts.EVALUATION).exists():
        return stored_evaluations(out)
    preferred = read_preferred(out)
    if _has_no_data(preferred, data):
        return [
            Evaluation(arch=subnet.arch, params=subnet.params, macs=subnet.macs, splits={})
            for subnet in preferred.subnets
        ]
    if data is not None and not may_be_the_runs(out, preferred.recipe, data):
        raise ValueError(
            f"{out} is not evaluated yet, and these are not its images: give "
            f"`prenas evaluate {out}` first"
        )
    return evaluate(out, data=data, device=device)


def _require_of_this_supernet(folder: Path, out: Path) -> None:
    """Raises ValueError unless a handed-over model is whole and of the supernet that is there."""
    path = folder / artifacts.MODEL_ARCH
    digest = artifacts.parse_json(path, lambda found: found["provenance"]["supernet_sha256"])
    supernet = out / artifacts.SUPERNET
    is_old = supernet.exists() and artifacts.sha256(supernet) != digest
    if is_old or not (folder / artifacts.MODEL).exists():
        raise ValueError(
            f"{folder} is not whole, or was cut from other weights than {supernet}: "
            "remove it to cut anew"
        )


def _hand_over(
    out: Path,
    number: int,
    row: Evaluation,
    folder: Path,
    data: ImageData | None,
    device: str,
) -> None:
    supernet, preferred = read_supernet(out, device=device), read_preferred(out)
    recipe = preferred.recipe
    images, names = _proof_images_and_class_names(out, preferred, data)
    where = next(supernet.parameters()).device
    network = verified_cut(supernet, row.arch, images.to(where))
    with locked(out, recipe):
        write_model(
            folder,
            network,
            row.arch,
            recipe.space.settings,
            family=recipe.space.family,
            class_names=names,
            preprocessing=recipe.preprocessing,
            provenance=_provenance(out, number, row, recipe),
        )
    _prove_written(folder, network, images, where)


def _proof_images_and_class_names(
    out: Path, preferred: PreferredSet, data: ImageData | None
) -> tuple[Tensor, tuple[str, ...]]:
    """From the validation data; for an imported run without data, noise and what is known."""
    recipe, settings = preferred.recipe, preferred.recipe.space.settings
    if _has_no_data(preferred, data):
        mean, std = recipe.preprocessing.mean, recipe.preprocessing.std
        shape = (_NUM_PROOF_IMAGES, settings.in_chans, settings.image_size)
        return noise_images(*shape, mean, std, recipe.seed), class_names(settings.num_classes)
    if data is None and recipe.data is not None:  # a few are looked at: hold none in memory
        lazily = recipe.data.model_copy(update={"memory_gib": 0.0, "crops": 1})
        recipe = recipe.model_copy(update={"data": lazily})
    splits = _data(recipe, data)
    require_same_classes(out, splits)
    images, _ = next(evaluation_batches(splits.validation, settings, _NUM_PROOF_IMAGES))
    if images.ndim == 5:  # several crops of each
        images = images[:, 0]
    return images, recorded_class_names(out) or splits.class_names


def _prove_written(
    folder: Path, network: torch.nn.Module, images: Tensor, where: torch.device
) -> None:
    """Reads the folder back; a model that does not give the same logits is taken away again."""
    try:
        with torch.inference_mode():
            logits = load(folder).network.to(where)(images.to(where))
            require_equal_logits(logits, network(images.to(where)), "the written model")
    except ValueError:
        (folder / artifacts.MODEL_ARCH).unlink()
        (folder / artifacts.MODEL).unlink()
        raise


def _provenance(out: Path, number: int, row: Evaluation, recipe: Recipe) -> dict[str, Any]:
    """Where a handed-over model comes from, and what it was measured to cost and achieve."""
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "subnet": number,
        "params": row.params,
        "macs": row.macs,
        "evaluation": {name: split.model_dump() for name, split in row.splits.items()},
        "supernet_sha256": artifacts.sha256(out / artifacts.SUPERNET),
        "versions": {name: version(name) for name in ("prenas", "torch", "timm")},
    }


def _data(
    recipe: Recipe,
    data: ImageData | None,
    out: str | Path | None = None,
    *,
    hold: Sequence[str] = ("train", "validation", "test"),
) -> ImageData:
    """The recipe's data, or those passed from Python; ValueError if they do not fit together.

    Args:
        hold: splits that may be held in memory.
        out: a run folder that must have been begun with the same images, if it has begun.
    """
    if data is None:
        if recipe.data is None:
            raise ValueError(
                f"recipe {recipe.name!r} names no data: say where images are (--data PLACE), "
                "choose a recipe that names them, or pass data=prenas.ImageData(...) from Python"
            )
        data = load_data(recipe.data, recipe.space.settings, hold=hold)
    elif recipe.data is not None and recipe.data.name != OWN_DATA and data.fingerprint is None:
        raise ValueError(
            f"recipe {recipe.name!r} loads {recipe.data.name!r} by itself, yet data were passed: "
            f"set its data to None or to DataRecipe(name={OWN_DATA!r}), or pass none"
        )
    num_classes = recipe.space.settings.num_classes
    if len(data.class_names) > num_classes:
        raise ValueError(
            f"the data have {len(data.class_names)} classes, the head only {num_classes}: "
            f"set space.settings.num_classes={len(data.class_names)}"
        )
    if out is not None:
        require_same_data(Path(out), data)
    return data


def _has_no_data(preferred: PreferredSet, data: ImageData | None) -> bool:
    """Whether an imported run, which may do without, is used without data."""
    return preferred.imported is not None and preferred.recipe.data is None and data is None
