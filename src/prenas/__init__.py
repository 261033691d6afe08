"""PreNAS: preferred one-shot neural architecture search for given budgets.

Public names are imported on first use, so that `import prenas` and `prenas --help` stay fast.
Once timm is imported too, in either order, it knows the networks of this package.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from prenas.imports import import_after, import_within, late_compiler, without_collection

if TYPE_CHECKING:
    from prenas.cli.terminal import Terminal
    from prenas.cost import count
    from prenas.data.images import ImageData
    from prenas.data.naming import with_data
    from prenas.devices.exporting import Exported, export
    from prenas.devices.prediction import Prediction, predict
    from prenas.evaluation.accuracy import Evaluation, Metrics
    from prenas.families import get_space
    from prenas.families.base import Arch, SearchSpace
    from prenas.families.mobilenet.arch import MobileNetArch, MobileNetSettings, StageArch
    from prenas.families.mobilenet.space import MobileNetSpace, StageOptions
    from prenas.families.vit.space import VitArch, VitSettings, VitSpace
    from prenas.models.export import Model, load, load_timm
    from prenas.pipeline import (
        calibrate,
        evaluate,
        evolve,
        finetune,
        import_released,
        push,
        run,
        run_cuts,
        search,
        specialize,
        train,
    )
    from prenas.recipe import (
        CalibrationRecipe,
        CutRecipe,
        EvolutionRecipe,
        Recipe,
        SearchRecipe,
        TrainingRecipe,
        TransferRecipe,
        with_overrides,
    )
    from prenas.recipe.catalogue import get_recipe
    from prenas.recipe.data import Augmentation, DataRecipe, Preprocessing
    from prenas.recipe.space_file import read_space
    from prenas.runs.run import Run, read_preferred, read_supernet
    from prenas.selection.evolved import Evolved
    from prenas.selection.preferred import PreferredSet
    from prenas.sources.cutting import CutPlan, cut_plan
    from prenas.sources.released import load_released_checkpoint
    from prenas.sources.transfer import Source, finetuning_recipe, read_source
    from prenas.steps.observer import Observer
    from prenas.supernet import Supernet

__version__ = _version("prenas")

_HOMES = {
    "prenas.cli.terminal": ("Terminal",),
    "prenas.cost": ("count",),
    "prenas.data.images": ("ImageData",),
    "prenas.data.naming": ("with_data",),
    "prenas.recipe.data": ("Augmentation", "DataRecipe", "Preprocessing"),
    "prenas.evaluation.accuracy": ("Evaluation", "Metrics"),
    "prenas.models.export": ("Model", "load", "load_timm"),
    "prenas.families": ("get_space",),
    "prenas.families.base": ("Arch", "SearchSpace"),
    "prenas.families.mobilenet.arch": ("MobileNetArch", "MobileNetSettings", "StageArch"),
    "prenas.families.mobilenet.space": ("MobileNetSpace", "StageOptions"),
    "prenas.families.vit.space": ("VitArch", "VitSettings", "VitSpace"),
    "prenas.pipeline": (
        "calibrate",
        "evaluate",
        "evolve",
        "finetune",
        "import_released",
        "push",
        "run",
        "run_cuts",
        "search",
        "specialize",
        "train",
    ),
    "prenas.devices.exporting": ("Exported", "export"),
    "prenas.devices.prediction": ("Prediction", "predict"),
    "prenas.recipe": (
        "CalibrationRecipe",
        "CutRecipe",
        "EvolutionRecipe",
        "Recipe",
        "SearchRecipe",
        "TrainingRecipe",
        "TransferRecipe",
        "with_overrides",
    ),
    "prenas.recipe.catalogue": ("get_recipe",),
    "prenas.sources.released": ("load_released_checkpoint",),
    "prenas.runs.run": ("Run", "read_preferred", "read_supernet"),
    "prenas.selection.evolved": ("Evolved",),
    "prenas.selection.preferred": ("PreferredSet",),
    "prenas.steps.observer": ("Observer",),
    "prenas.recipe.space_file": ("read_space",),
    "prenas.supernet": ("Supernet",),
    "prenas.sources.cutting": ("CutPlan", "cut_plan"),
    "prenas.sources.transfer": ("Source", "finetuning_recipe", "read_source"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Arch",
    "Augmentation",
    "CalibrationRecipe",
    "CutPlan",
    "CutRecipe",
    "DataRecipe",
    "Evaluation",
    "EvolutionRecipe",
    "Evolved",
    "Exported",
    "ImageData",
    "Metrics",
    "MobileNetArch",
    "MobileNetSettings",
    "MobileNetSpace",
    "Model",
    "Observer",
    "Prediction",
    "PreferredSet",
    "Preprocessing",
    "Recipe",
    "Run",
    "SearchRecipe",
    "SearchSpace",
    "Source",
    "StageArch",
    "StageOptions",
    "Supernet",
    "Terminal",
    "TrainingRecipe",
    "TransferRecipe",
    "VitArch",
    "VitSettings",
    "VitSpace",
    "calibrate",
    "count",
    "cut_plan",
    "evaluate",
    "evolve",
    "export",
    "finetune",
    "finetuning_recipe",
    "get_recipe",
    "get_space",
    "import_released",
    "load",
    "load_released_checkpoint",
    "load_timm",
    "predict",
    "push",
    "read_preferred",
    "read_source",
    "read_space",
    "read_supernet",
    "run",
    "run_cuts",
    "search",
    "specialize",
    "train",
    "with_data",
    "with_overrides",
]


import_after("timm", "prenas.families")  # registers the networks
import_after("IPython", "prenas.notebook")  # runs show themselves in notebooks
import_within("timm", late_compiler)
for _heavy in ("torch", "timm"):
    import_within(_heavy, without_collection)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'prenas' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
