"""Stock models that cuts are compared with: fine-tuned on as many of the same images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from prenas import artifacts
from prenas.length import steps_to_read
from prenas.models.comparison import num_trained
from prenas.recipe import Recipe, SourceRecipe, TransferRecipe
from prenas.sources.pretrained import is_pretrained_name
from prenas.sources.transfer import Source, finetuning_recipe, read_source

_logger = logging.getLogger(__name__)


def read_rival(name: str) -> Source:
    """Reads a stock model by its name, such as `timm/resnet18`, or `timm/resnet18=FILE`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: this is not such a name, there is no such model, or its weights cannot be read.
    """
    if not is_pretrained_name(name):
        raise ValueError(
            f"{name} cannot be compared: --compare takes the name of a published model, such as "
            "timm/resnet18, or timm/resnet18=FILE for weights of your own"
        )
    try:
        return read_source(name)
    except ValueError as error:
        several = " Give --compare once for each model" if "," in name.partition("=")[0] else ""
        raise ValueError(f"--compare {error}{several}") from None


def require_distinct(names: Sequence[str]) -> None:
    """Raises ValueError if two stock models would be written into the same folder."""
    folders = [artifacts.rival_folder(name) for name in names]
    for number, folder in enumerate(folders):
        if (first := folders.index(folder)) < number:
            raise ValueError(
                f"--compare names {folder.partition('/')[2]} twice ({names[first]} and "
                f"{names[number]}): keep one of them"
            )


def rival_recipe(source: Source, adaptation: Recipe, cuts: Recipe, num_images: int) -> Recipe:
    """The recipe that fine-tunes a stock model as the whole network is adapted, but for longer.

    It reads as many images as the adaptation and the training of the cuts together (rounded up to
    a batch). They have the size that the cuts get, or the stock model's own if its weights suit no
    other.

    Args:
        num_images: how many training images there are.

    Raises:
        ValueError: the stock model does not suit the images.
    """
    assert adaptation.data is not None, "an adaptation has images"
    assert adaptation.training is not None, "an adaptation trains"
    ours, theirs = adaptation.space.settings, source.supernet.settings
    if ours.in_chans != theirs.in_chans:
        raise ValueError(
            f"{source.name} cannot be compared: it takes images of {theirs.in_chans} channels, but "
            f"these have {ours.in_chans}"
        )
    steps = steps_to_read(
        num_trained(adaptation, num_images) + num_trained(cuts, num_images),
        num_images,
        adaptation.training.batch_size,
    )
    transfer = TransferRecipe(
        name=f"{cuts.name}-rival",
        augmentation=adaptation.data.augmentation,
        training=adaptation.training.model_copy(
            update={"epochs": None, "min_steps": 0, "steps": steps}
        ),
    )
    images = adaptation.data.model_copy(update={"preprocessing": source.preprocessing})

    def of_size(size: tuple[int, int] | None) -> Recipe:
        return finetuning_recipe(
            replace(source, data=images),
            transfer,
            image_size=size,
            overrides=[f"space.settings.num_classes={ours.num_classes}"],
        )

    try:
        recipe = of_size(ours.image_size)
    except Exception as error:  # every network fails in its own way at a size that it cannot take
        _logger.info("%s keeps its own image size: %s", source.name, error)
        recipe = of_size(None)
    return recipe.model_copy(
        update={
            "seed": cuts.seed,
            "calibration": cuts.calibration,
            "source": SourceRecipe(**dict(source.origin_recipe)),
        }
    )
