"""Recipes: everything that determines a run, as one frozen and validated value."""

from prenas.recipe.changes import (
    deciding_differences,
    differences,
    flat_fields,
    recipe_from_dict,
    searching_recipe,
    with_overrides,
    with_space,
)
from prenas.recipe.fields import (
    CalibrationRecipe,
    Distillation,
    Enumeration,
    EvolutionRecipe,
    IsomerRule,
    Recipe,
    SearchRecipe,
    TeacherRecipe,
    TrainingRecipe,
    TransferRecipe,
)

__all__ = [
    "CalibrationRecipe",
    "Distillation",
    "Enumeration",
    "EvolutionRecipe",
    "IsomerRule",
    "Recipe",
    "SearchRecipe",
    "TeacherRecipe",
    "TrainingRecipe",
    "TransferRecipe",
    "deciding_differences",
    "differences",
    "flat_fields",
    "recipe_from_dict",
    "searching_recipe",
    "with_overrides",
    "with_space",
]
