"""The first losses of the small recipes, kept in `tests/golden/losses`, one step per line."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from prenas.data import ImageData, load_data, with_data
from prenas.families.base import Settings
from prenas.processes import ALONE, Processes
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe
from prenas.selection.search import Search, zero_cost_search
from prenas.training.loop import Progress, train_supernet
from training.runs import StoppedError

FOLDER = Path(__file__).parents[1] / "golden" / "losses"
_NEVER = ["training.validate_epochs=0", "training.validate_all_epochs=0"]
_SANDWICH = ["training.sandwich=1", "training.inplace_distillation=true"]
_ON_DISK = ["data.memory_gib=0"]

CURVES: dict[str, tuple[str, list[str], int]] = {
    "digits": ("digits", [], 40),
    "digits-sandwich": ("digits", _SANDWICH, 40),
    "digits-masked": ("digits", ["training.optimizer=masked_adamw"], 40),
    "digits-bf16": ("digits", ["training.precision=bf16"], 40),
}
"""Name -> recipe, overrides, number of steps: data that every installation has."""

BIG_CURVES: dict[str, tuple[str, list[str], int]] = {
    "fashion-mnist": ("fashion-mnist", [], 20),
    "cifar10": ("cifar10", _ON_DISK, 20),
    "photos": ("photos", _ON_DISK, 20),
    "mobilenet-micro": ("mobilenet-micro", [], 20),
    "mobilenet-small-sandwich": ("mobilenet-small-sandwich", [], 5),
}
"""The same for data that the repository does not hold."""

TOLERANCES = {"digits-bf16": 1e-2, "photos": 1e-2}
"""Relative; of the others 1e-3. Half precision, and pictures that are decoded and resized, differ
a little between processors and versions of Pillow."""


def _places() -> dict[str, list[Path]]:
    """Recipe -> files whose pictures it trains on, where they are not found by name."""
    folder = Path(os.environ.get("PRENAS_DATA", ""))
    fashion_mnist = [Path("/usr/share/datasets/fashion-mnist")]
    cifar = [folder / "cifar10-train.tar", folder / "cifar10-test.tar"]
    return {
        "cifar10": cifar,
        "photos": cifar,  # enlarged; what counts here is timm's augmentation of pictures
        "fashion-mnist": fashion_mnist,
        "mobilenet-micro": fashion_mnist,
        "mobilenet-small-sandwich": fashion_mnist,
    }


def missing_data(name: str) -> str | None:
    """Why the data of a curve are not available; None if they are."""
    lacking = [str(path) for path in _places().get(name, []) if not path.exists()]
    if not lacking:
        return None
    return f"there is no {', '.join(lacking)}: set PRENAS_DATA to the folder of the tars"


def _recipe(name: str) -> Recipe:
    recipe_name, overrides, _ = {**CURVES, **BIG_CURVES}[name]
    recipe = get_recipe(recipe_name)
    if name in ("cifar10", "photos"):
        train, test = _places()[name]
        recipe = with_data(recipe, [f"train={train}", f"test={test}"])
    return with_overrides(recipe, [*overrides, *_NEVER])


@cache
def _searched(recipe: Recipe) -> Search:
    """Searched once for all curves that differ in their training alone; `trimmed` copies."""
    return zero_cost_search(recipe, None, torch.device("cpu"))


@cache
def _images(data: DataRecipe, settings: Settings) -> ImageData:
    """Read once for all curves that see the same images."""
    return load_data(data, settings)


def losses_of(name: str, processes: Processes = ALONE) -> list[float]:
    """The losses of the first steps."""
    recipe, num_steps = _recipe(name), {**CURVES, **BIG_CURVES}[name][2]
    assert recipe.data is not None
    assert recipe.training is not None
    found = _searched(recipe.model_copy(update={"training": None}))
    training = recipe.training
    shared = {name: getattr(recipe.space.settings, name) for name in Settings.model_fields}
    losses: list[float] = []

    def watch(progress: Progress) -> None:
        losses.append(progress.loss)
        if progress.step == num_steps:
            raise StoppedError

    options: dict[str, Any] = {"seed": recipe.seed, "processes": processes, "watch": watch}
    try:
        train_supernet(
            found.supernet.trimmed(
                found.preferred.envelope, drop_path=training.drop_path, dropout=training.dropout
            ),
            found.preferred.archs,
            _images(recipe.data, Settings.model_validate(shared)),
            training,
            **options,
        )
    except StoppedError:
        return losses
    raise AssertionError(f"the training ended before step {num_steps}")


def golden(name: str) -> list[float]:
    return [float(line) for line in (FOLDER / f"{name}.txt").read_text().splitlines()]


def write_golden(name: str) -> None:
    text = "".join(f"{loss:.6g}\n" for loss in losses_of(name))
    (FOLDER / f"{name}.txt").write_text(text)
