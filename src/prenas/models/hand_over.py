"""Handing a subnet over: cut it, check it, write it, then read it back and check it again."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prenas import artifacts
from prenas.data import CENTRE_CROP, evaluation_batches
from prenas.data.naming import default_class_names
from prenas.evaluation.accuracy import Evaluation
from prenas.models.choice import contests_of
from prenas.models.cut import require_equal_logits, verified_cut
from prenas.models.export import load, write_model
from prenas.models.origin import commit
from prenas.precision import computing
from prenas.proxy.importance import noise_images
from prenas.runs.run import Run

_NUM_PROOF_IMAGES = 32


def hand_over(run: Run, number: int, row: Evaluation, folder: Path) -> None:
    """Writes subnet `number` of a run as a model folder.

    Raises:
        ValueError: the run's calibration is missing; or the logits of the model differ from the
            supernet's, before or after writing.
    """
    supernet, recipe = run.supernet, run.preferred.recipe
    images, names = _proof_images_and_class_names(run)
    images = images.to(run.device)
    stored = run.results.statistics([row.arch])
    if stored is None and supernet.has_statistics:
        raise ValueError(
            f"{run.folder / artifacts.CALIBRATION} is missing, and the results were made "
            f"with it: remove {artifacts.EVALUATION} and {artifacts.SUBNETS}/ there, then "
            f"calibrate, evaluate and hand over again (`prenas run --out {run.folder}`)"
        )
    network = verified_cut(supernet, row.arch, images, stored[0] if stored else None)
    with run.locked():
        write_model(
            folder,
            network,
            row.arch,
            recipe.space.settings,
            family=recipe.space.family,
            class_names=names,
            preprocessing=recipe.preprocessing,
            provenance=_provenance(run, number, row),
        )
    _prove_written(folder, network, images)


def _proof_images_and_class_names(run: Run) -> tuple[Tensor, tuple[str, ...]]:
    """From the validation data; for an imported run without data, noise and the default names."""
    recipe, settings = run.recipe, run.recipe.space.settings
    if run.images.are_missing:
        mean, std = recipe.preprocessing.mean, recipe.preprocessing.std
        shape = (_NUM_PROOF_IMAGES, settings.in_chans, settings.image_size)
        return noise_images(*shape, mean, std, recipe.seed), default_class_names(
            settings.num_classes
        )
    splits = run.images.read_few()
    images, _ = next(evaluation_batches(splits.validation, settings, _NUM_PROOF_IMAGES))
    if images.ndim == 5:  # several crops per image
        images = images[:, CENTRE_CROP]
    return images, run.class_names or splits.class_names


def _prove_written(folder: Path, network: torch.nn.Module, images: Tensor) -> None:
    """Reads the folder back, and removes the model if its logits are not the same."""
    try:
        with torch.inference_mode(), computing("fp32", images.device):
            logits = load(folder).network.to(images.device)(images)
            require_equal_logits(logits, network(images), "the written model")
    except ValueError:
        for name in (artifacts.MODEL_ARCH, artifacts.MODEL_CONFIG, artifacts.MODEL):
            (folder / name).unlink()
        raise


def _provenance(run: Run, number: int, row: Evaluation) -> dict[str, Any]:
    """Where a handed-over model comes from, its costs and its measured accuracy."""
    source = _source(run)
    decided = contests_of(run.subnets, run.evaluations) if run.is_evaluated else ()
    won = [one.named for one in decided if one.winner == number and len(one.subnets) > 1]
    return {
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "subnet": number,
        "costs": row.costs,
        "evaluation": {name: split.summary for name, split in row.splits.items()},
        **({"best_by_validation_of": won} if won else {}),
        "supernet_sha256": run.supernet_sha256,
        **({"source": source} if source else {}),
        "commit": commit(),
        "versions": {name: version(name) for name in ("prenas", "torch", "timm")},
    }


def _source(run: Run) -> dict[str, Any] | None:
    """The weights that the run started from, if they were published or have a licence."""
    if run.recipe.source is not None:
        return run.recipe.source.model_dump(exclude={"rivals"})
    adapted = run.preferred.adapted
    if adapted is None or (adapted.licence is None and adapted.origin is None):
        return None
    facts = adapted.model_dump(include={"sha256", "licence", "origin"})
    return {"name": adapted.source, **facts}
