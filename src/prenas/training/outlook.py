"""What to expect of a training: says, before anything is spent, that it is too short or too small.

The limits are rules of thumb: below them, nothing that was measured here learned well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prenas.data import ImageData, label_counts, num_batches, num_samples, open_data
from prenas.data.named import NAMED
from prenas.length import length_of
from prenas.recipe import Recipe, TrainingRecipe
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.catalogue import RECIPES, get_recipe, recipe_for_pictures
from prenas.recipe.data import FOLDER, DataRecipe
from prenas.values import plural

_STEPS_PER_SUBNET = 100
_IMAGES_PER_CLASS = 50
_LARGEST_RATIO = 5
_MOST_ENLARGED = 2
"""Pictures that are enlarged by more than this are small for a network."""
_OF_PRETRAINED = 0.2
"""The share of both that trained weights need."""
_MOST_OF_THE_START = 0.01
"""The share of a moving average that the weights before the training may have at its end."""


def doubts(
    recipe: Recipe, training: TrainingRecipe, images: ImageData, *, is_pretrained: bool = False
) -> list[str]:
    """Why a training can hardly learn: what was seen, what it would take, and what to give.

    Args:
        is_pretrained: whether trained weights are fine-tuned, which takes fewer steps and images.
    """
    share = _OF_PRETRAINED if is_pretrained else 1.0
    # The last classes have no count if they have no images.
    pairs = zip(images.class_names, label_counts(images.train) or (), strict=False)
    classes = tuple((name, number) for name, number in pairs if number)
    found = (
        _made_for_another_set(recipe),
        _too_small_pictures(recipe) if is_pretrained else None,
        _too_few_steps(recipe, training, images, share),
        _too_few_images(images, len(classes), share, is_pretrained),
        _too_uneven(training, classes, recipe.training_field),
        _too_slow_average(training, images, recipe.training_field),
    )
    return [text for text in found if text is not None]


def _made_for_another_set(recipe: Recipe) -> str | None:
    """Own pictures with a recipe for a named set, whose size or statistics are hardly theirs.

    Pictures that already have the network's size may be that set as files.
    """
    if recipe.name not in RECIPES or recipe.data is None or recipe.data.name != FOLDER:
        return None
    made = get_recipe(recipe.name)
    if made.data is None or made.data.name not in NAMED:
        return None
    ours, theirs = recipe.preprocessing, made.preprocessing
    height, width = recipe.space.settings.image_size
    is_changed = (height, width) != made.space.settings.image_size
    if is_changed and (ours.mean, ours.std) != (theirs.mean, theirs.std):
        return None
    size = _size_of_a_picture(recipe.data)
    if size is None or size == (width, height):
        return None
    mean, std = (" ".join(f"{n:g}" for n in numbers) for numbers in (ours.mean, ours.std))
    own = recipe_for_pictures(recipe.space.family)
    return (
        f"the recipe {recipe.name} is made for {made.data.name}: your pictures (the first has "
        f"{size[0]} x {size[1]} pixels) become {width} x {height} pixels, with mean {mean} and "
        f"deviation {std}" + (f". For your own pictures, use the recipe {own}" if own else "")
    )


def _too_small_pictures(recipe: Recipe) -> str | None:
    """Own pictures that a network, whose image size comes from its source, gets much enlarged."""
    if recipe.data is None or recipe.data.name != FOLDER:
        return None
    (height, width), size = recipe.space.settings.image_size, _size_of_a_picture(recipe.data)
    if size is None or min(height, width) <= _MOST_ENLARGED * min(size):
        return None
    return (
        f"these pictures are small: the first has {size[0]} x {size[1]} pixels, and the network "
        f"gets {width} x {height}. Enlarged pictures take time and show no more: give --image-size "
        "with about their own size, if the network takes it, or larger pictures"
    )


def _size_of_a_picture(data: DataRecipe) -> tuple[int, int] | None:
    """Width and height of the first training picture; None if it cannot be opened."""
    try:
        pictures = open_data(data).train
        return pictures.open(pictures.names[0]).size
    except Exception:  # decoders fail in many ways; reading the images names it
        return None


def _too_few_steps(
    recipe: Recipe, training: TrainingRecipe, images: ImageData, share: float
) -> str | None:
    search = recipe.search
    budgets = parse_budgets(search.budgets, keep_partial=search.keep_partial).kept
    # One-shot NAS trains the whole space, and any number of its subnets is too many to count.
    num_subnets = 1 if recipe.evolution is not None else search.k * len(budgets)
    per_step = 1 if training.sandwich is None else min(training.sandwich + 2, num_subnets)
    steps = length_of(training, num_batches(images.train, training.batch_size)).num_steps
    needed = -(-round(share * _STEPS_PER_SUBNET) * num_subnets // per_step)
    if steps >= needed:
        return None
    each, least = steps * per_step // num_subnets, round(share * _STEPS_PER_SUBNET)
    has_several = num_subnets > 1
    return (
        f"this training is short: {plural(steps, 'step')} for {plural(num_subnets, 'subnet')}"
        + (f", about {each:,} for each" if has_several else "")
        + f". Less than about {least} for each seldom learns much: give "
        f"{recipe.training_field}.steps={needed} or more (--set), "
        + (
            "more time (--time), or fewer budgets (--budget)"
            if has_several
            else "or more time (--time)"
        )
    )


def _too_few_images(
    images: ImageData, num_classes: int, share: float, is_pretrained: bool
) -> str | None:
    total, num_classes = num_samples(images.train), num_classes or len(images.class_names) or 1
    needed = round(share * _IMAGES_PER_CLASS) * num_classes
    if total >= needed:
        return None
    instead = "" if is_pretrained else ", or fine-tune trained weights (prenas finetune)"
    return (
        f"these are few images: {total:,} to train {num_classes} classes, about "
        f"{total // num_classes:,} for each. With less than about {needed // num_classes} for each "
        f"results are poor and accuracies uncertain: add images ({needed:,} or more){instead}"
    )


def _too_uneven(
    training: TrainingRecipe, classes: Sequence[tuple[str, int]], field: str
) -> str | None:
    if not classes or training.class_weights != "none":
        return None
    largest, smallest = (choose(classes, key=lambda c: c[1]) for choose in (max, min))
    if largest[1] < _LARGEST_RATIO * smallest[1]:
        return None
    return (
        f"the classes are uneven: {largest[1]:,} training images of {largest[0]}, but "
        f"{smallest[1]:,} of {smallest[0]}. The accuracy is mostly that of the large classes: look "
        f"at the balanced accuracy, and consider --set {field}.class_weights=balanced"
    )


def _too_slow_average(training: TrainingRecipe, images: ImageData, field: str) -> str | None:
    """A moving average that is handed over and hardly moves in so few steps."""
    decay = training.ema_decay
    if decay is None or training.handed_over_weights != "ema":
        return None
    steps = length_of(training, num_batches(images.train, training.batch_size)).num_steps
    if (share := decay**steps) <= _MOST_OF_THE_START:
        return None
    fast = math.floor(1000 * _MOST_OF_THE_START ** (1 / steps)) / 1000
    return (
        f"the moving average is slow: after {plural(steps, 'step')}, {100 * share:.0f} % of it "
        f"are the weights before the training. Give {field}.ema_decay={fast:g} or less (--set), "
        f"or more steps, or hand over the trained weights ({field}.final_weights=last)"
    )
