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
    CutRecipe,
    Distillation,
    Enumeration,
    EvolutionRecipe,
    IsomerRule,
    OriginRecipe,
    Recipe,
    SearchRecipe,
    SourceRecipe,
    TeacherRecipe,
    TrainingRecipe,
    TransferRecipe,
)

__all__ = [
    "CalibrationRecipe",
    "CutRecipe",
    "Distillation",
    "Enumeration",
    "EvolutionRecipe",
    "IsomerRule",
    "OriginRecipe",
    "Recipe",
    "SearchRecipe",
    "SourceRecipe",
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
