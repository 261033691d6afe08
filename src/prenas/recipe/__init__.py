"""Recipes: everything that decides a run, as one frozen, checked value."""

from prenas.recipe.changes import (
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
    "differences",
    "flat_fields",
    "recipe_from_dict",
    "searching_recipe",
    "with_overrides",
    "with_space",
]
