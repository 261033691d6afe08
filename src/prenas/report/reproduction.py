"""The command that reproduces a run."""

from __future__ import annotations

import json
import shlex

from prenas.recipe import Recipe, flat_fields, with_overrides
from prenas.recipe.catalogue import RECIPES, get_recipe


def command_of(recipe: Recipe, folder: str) -> str | None:
    """`prenas run` or `prenas search` with every changed field; None for a recipe from Python."""
    if recipe.name not in RECIPES:
        return None
    published = get_recipe(recipe.name)
    fields, ours = dict(flat_fields(published)), dict(flat_fields(recipe))
    changes = [
        f"{name}={json.dumps(value)}"
        for name, value in ours.items()
        if name not in fields or fields[name] != value
    ]
    try:
        if with_overrides(published, changes) != recipe:
            return None
    except ValueError:  # parts that the published recipe lacks, such as data
        return None
    parts = ["prenas", "run" if recipe.training else "search", recipe.name, "--out", folder]
    for change in changes:
        parts += ["--set", change]
    return shlex.join(parts)
