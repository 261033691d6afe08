"""The tables of named recipes: one function per recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from prenas.recipe import CutRecipe, Recipe, TransferRecipe
from prenas.recipe.catalogue import mobilenet, pretrained, small, transfer, vit
from prenas.values import unknown_name

R = TypeVar("R")

PICTURES = "photos"
"""The folder in which the recipes for own pictures look, if none is named."""

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": small.digits,
    "digits-one-shot": small.digits_one_shot,
    "fashion-mnist": small.fashion_mnist,
    "cifar10": small.cifar10,
    "photos": small.photos,
    "photos-mobilenet": mobilenet.photos,
    "tiny": vit.tiny,
    "small": vit.small,
    "base": vit.base,
    "imagenet-tiny": vit.imagenet_tiny,
    "imagenet-small": vit.imagenet_small,
    "imagenet-base": vit.imagenet_base,
    "mobilenet-micro": mobilenet.micro,
    "mobilenet-small": mobilenet.small,
    "mobilenet-small-sandwich": mobilenet.small_sandwich,
    "mobilenet": mobilenet.mobilenet,
    "imagenet-mobilenet": mobilenet.imagenet_mobilenet,
}


TRANSFER_RECIPES: dict[str, Callable[[], TransferRecipe]] = {
    "transfer": transfer.transfer,
    "transfer-photos": transfer.photos,
    "transfer-cifar10": transfer.cifar10,
    "transfer-cifar100": transfer.cifar100,
    "transfer-flowers": transfer.flowers,
    "transfer-cars": transfer.cars,
    "transfer-pets": transfer.pets,
    "transfer-inat2018": transfer.inat2018,
    "transfer-inat2019": transfer.inat2019,
}
"""Fine-tuning recipes, by name. They take the search space and the subnets from their source."""


def get_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    return _made("recipe", name, RECIPES)


def recipe_for_pictures(family: str) -> str | None:
    """The name of the recipe that trains a family on the user's own pictures; None without one."""
    made = ((name, get_recipe(name)) for name in RECIPES)
    return next(
        (
            name
            for name, recipe in made
            if recipe.space.family == family and recipe.data and recipe.data.root == PICTURES
        ),
        None,
    )


def get_transfer_recipe(name: str) -> TransferRecipe:
    """The fine-tuning recipe of this name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    return _made("fine-tuning recipe", name, TRANSFER_RECIPES)


CUT_RECIPES: dict[str, Callable[[], CutRecipe]] = {"pretrained": pretrained.pretrained}
"""Recipes for `prenas run --from`, by name. They take the network from their source."""


def get_cut_recipe(name: str) -> CutRecipe:
    """The recipe of this name for a pretrained network.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    return _made("recipe for a pretrained network", name, CUT_RECIPES)


def _made(kind: str, name: str, recipes: Mapping[str, Callable[[], R]]) -> R:
    if name not in recipes:
        raise unknown_name(kind, name, recipes)
    return recipes[name]()
