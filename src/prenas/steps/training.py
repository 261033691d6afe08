"""The training of a run, and the checks before it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from prenas.data import ImageData, check_splits, num_batches
from prenas.length import length_of
from prenas.processes import join
from prenas.recipe import Recipe, TrainingRecipe, flat_fields
from prenas.rivals.one_shot import comparison_images
from prenas.runs.log import Sink
from prenas.runs.run import Run
from prenas.steps.observer import SILENT, Observer, observed
from prenas.supernet import Supernet
from prenas.training.features import feature_widths
from prenas.training.graphs import require_graphs
from prenas.training.loop import train_supernet
from prenas.training.outlook import doubts
from prenas.training.stopping import Stopped, stop_requests
from prenas.training.teacher import LoadedTeacher, load_teacher
from prenas.training.tracking import check_trackers, open_trackers

_logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What a training needs in addition to its subnets."""

    training: TrainingRecipe
    images: ImageData
    teacher: LoadedTeacher | None


def training_of(recipe: Recipe) -> TrainingRecipe:
    """The training part of a recipe; ValueError if it only searches."""
    if recipe.training is None:
        raise ValueError(
            f"recipe {recipe.name!r} only searches and has no training: choose one that trains "
            "(`prenas info` lists them), or set training=TrainingRecipe(...) in Python"
        )
    return recipe.training


def prepared(
    recipe: Recipe, images: ImageData, device: torch.device, folder: Path = Path()
) -> Prepared:
    """Checks what a training needs, before time is spent on it, and loads the teacher.

    Args:
        folder: where a teacher that is a relative path may also be.

    Raises:
        ValueError: the images do not fit the space, or the teacher does not fit the images.
    """
    training = training_of(recipe)
    check_splits(images, recipe.space.settings)
    if training.cuda_graphs:
        require_graphs(device, join().world_size)
    if recipe.evolution is not None:
        comparison_images(recipe, images)
    teacher = None
    if training.teacher is not None:
        with join().main_first():  # it may download it
            settings, ours = recipe.space.settings, recipe.preprocessing
            taught = training.teacher
            if (folder / taught.name).is_dir():
                taught = taught.model_copy(update={"name": str(folder / taught.name)})
            widths = feature_widths(recipe.space) if taught.feature_weight else ()
            teacher = load_teacher(
                taught,
                settings,
                ours,
                device,
                feature_widths=widths,
                class_names=images.class_names,
            )
    return Prepared(training, images, teacher)


def warn_of_doubts(recipe: Recipe, images: ImageData, *, is_pretrained: bool) -> None:
    """Warns, in the main process, if a training can hardly learn.

    Args:
        is_pretrained: whether it starts from trained weights.
    """
    if join().is_main:
        for doubt in doubts(recipe, training_of(recipe), images, is_pretrained=is_pretrained):
            _logger.warning("%s", doubt)


def prepare(run: Run, observer: Observer = SILENT, *, is_pretrained: bool = False) -> Prepared:
    """Reads the images of a run, does what `prepared` does, and warns if it can hardly learn.

    Args:
        is_pretrained: whether the run starts from trained weights.

    Raises:
        ValueError: the recipe has no training or no data, the images do not fit its space or are
            not those that the run was started with, or the teacher does not fit them.
    """
    training_of(run.recipe)
    with observed(observer, "read images", run), join().main_first():  # it may download them
        images = run.images.read_own()
    found = prepared(run.recipe, images, run.device, run.folder)
    if not join().main_says(run.is_trained):
        run.images.require_as_many(images)
        if found.teacher is not None:
            run.images.require_same_teacher(found.teacher.sha256)
        warn_of_doubts(run.recipe, images, is_pretrained=is_pretrained)
    return found


def train(
    run: Run,
    observer: Observer = SILENT,
    *,
    needs: Prepared | None = None,
    track: Sequence[str] = (),
) -> Supernet:
    """Trains the envelope of the preferred set, from the weights that were scored.

    Args:
        needs: the result of `prepare`, if that was called before.
        track: names of trackers that receive the numbers of the training.
    """
    check_trackers(track)
    processes, preferred = join(), run.preferred
    if processes.main_says(run.is_trained):
        observer.was_complete("train", run)
        return run.supernet
    with observed(observer, "train", run), ExitStack() as stack:
        training, images, teacher = needs or prepare(
            run, is_pretrained=preferred.origin is not None
        )
        stack.enter_context(run.locked())
        stop = stack.enter_context(stop_requests())

        steps_per_epoch = num_batches(images.train, training.batch_size)
        num_steps = length_of(training, steps_per_epoch).num_steps

        def follow(first_step: int) -> list[Sink]:
            if first_step:
                observer.resumed_training(first_step, num_steps)
            config, name = dict(flat_fields(run.recipe)), run.folder.resolve().name
            trackers = open_trackers(track, run.folder, name, config, first_step)
            return [*stack.enter_context(trackers), observer.logged]

        if processes.is_main:
            run.images.record(images, None if teacher is None else teacher.sha256)
        supernet = run.initial_supernet(drop_path=training.drop_path, dropout=training.dropout)
        train_supernet(
            supernet.to(run.device),
            preferred.archs,
            images,
            training,
            seed=run.recipe.seed,
            space=run.recipe.space if run.recipe.evolution else None,
            teacher=teacher,
            calibration=run.recipe.calibration,
            folder=run.folder,
            processes=processes,
            stop=stop,
            watch=observer.trained_step,
            follow=follow,
        )
        if processes.is_main:
            run.record_supernet(supernet)
        if processes.any(bool(stop)):  # requested during the last validation
            raise Stopped(num_steps, stop)
    return run.supernet
