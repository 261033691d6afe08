"""The table of recipes: one function per run, looked up by name."""

from __future__ import annotations

from collections.abc import Callable

from prenas.families import unknown_name
from prenas.recipe import Recipe
from prenas.recipes import small, vit

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": small.digits,
    "digits-one-shot": small.digits_one_shot,
    "fashion-mnist": small.fashion_mnist,
    "cifar10": small.cifar10,
    "photos": small.photos,
    "tiny": vit.tiny,
    "small": vit.small,
    "base": vit.base,
    "imagenet-tiny": vit.imagenet_tiny,
    "imagenet-small": vit.imagenet_small,
    "imagenet-base": vit.imagenet_base,
}


def get_recipe(name: str) -> Recipe:
    """The named recipe; ValueError lists the choices."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
