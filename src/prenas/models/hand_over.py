"""Handing a subnet over: cut, proved equal to the supernet, written, read back and proved again."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prenas import artifacts
from prenas.data import ImageData, evaluation_batches
from prenas.data.naming import default_class_names
from prenas.evaluation.accuracy import Evaluation
from prenas.models.export import load, write_model
from prenas.models.specialization import require_equal_logits, verified_cut
from prenas.proxy.importance import noise_images
from prenas.recipe import Recipe
from prenas.runs.folder import (
    locked,
    read_preferred,
    read_supernet,
    recorded_class_names,
    require_same_classes,
)
from prenas.runs.images import has_no_data, images_of
from prenas.runs.statistics import stored_statistics
from prenas.selection.preferred import PreferredSet

_NUM_PROOF_IMAGES = 32


def hand_over(
    out: Path,
    number: int,
    row: Evaluation,
    folder: Path,
    data: ImageData | None,
    device: str,
) -> None:
    """Writes subnet `number` of a run as a model folder.

    Raises:
        ValueError: its logits differ from the supernet's, before or after writing.
    """
    supernet, preferred = read_supernet(out, device=device), read_preferred(out)
    recipe = preferred.recipe
    images, names = _proof_images_and_class_names(out, preferred, data)
    where = next(supernet.parameters()).device
    stored = stored_statistics(out, [row.arch])
    network = verified_cut(supernet, row.arch, images.to(where), stored[0] if stored else None)
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


def require_of_this_supernet(folder: Path, out: Path) -> None:
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


def _proof_images_and_class_names(
    out: Path, preferred: PreferredSet, data: ImageData | None
) -> tuple[Tensor, tuple[str, ...]]:
    """From the validation data; for an imported run without data, noise and what is known."""
    recipe, settings = preferred.recipe, preferred.recipe.space.settings
    if has_no_data(preferred, data):
        mean, std = recipe.preprocessing.mean, recipe.preprocessing.std
        shape = (_NUM_PROOF_IMAGES, settings.in_chans, settings.image_size)
        return noise_images(*shape, mean, std, recipe.seed), default_class_names(
            settings.num_classes
        )
    if data is None and recipe.data is not None:  # a few are looked at: hold none in memory
        lazily = recipe.data.model_copy(update={"memory_gib": 0.0, "crops": 1})
        recipe = recipe.model_copy(update={"data": lazily})
    splits = images_of(recipe, data)
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
        "costs": row.costs,
        "evaluation": {name: split.model_dump() for name, split in row.splits.items()},
        "supernet_sha256": artifacts.sha256(out / artifacts.SUPERNET),
        "versions": {name: version(name) for name in ("prenas", "torch", "timm")},
    }
