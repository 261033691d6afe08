"""A teacher: a trained network in evaluation mode, from timm or handed over by prenas."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_checkpoint
from torch import Tensor, nn

from prenas import artifacts
from prenas.families.base import Settings
from prenas.models.export import load_described
from prenas.recipe import TeacherRecipe
from prenas.recipe.data import Preprocessing

_UNREADABLE = (
    RuntimeError, OSError, ValueError, TypeError, KeyError, AttributeError, EOFError,
    pickle.UnpicklingError, SafetensorError,
)  # fmt: skip

Teacher = Callable[[Tensor], Tensor]
"""Images [B, C, H, W], normalised as the data are -> logits [B, num_classes]."""


def load_teacher(
    recipe: TeacherRecipe, settings: Settings, ours: Preprocessing, device: torch.device
) -> Teacher:
    """Makes the teacher of a recipe ready, and tries it on one image.

    Its images are the students', normalised anew with the mean and deviation it was trained with.

    Args:
        settings: image size and classes of the students.
        ours: mean and deviation of the images it will be given.

    Raises:
        ValueError: no such model, weights that do not fit, other classes, channels or image size.
    """
    network, mean, std = _network(recipe, settings)
    network = network.to(device).eval().requires_grad_(False)
    mean, std = recipe.mean or mean, recipe.std or std
    if not len(mean) == len(std) == settings.in_chans:
        raise ValueError(
            f"the teacher {recipe.name!r} has the mean {mean} and the deviation {std}, where "
            f"images have {settings.in_chans} channels: choose another, or give those of its "
            "training as training.teacher.mean and training.teacher.std"
        )
    theirs, own = (
        (torch.tensor(m), torch.tensor(s)) for m, s in ((mean, std), (ours.mean, ours.std))
    )
    # (x * own_std + own_mean - mean) / std
    scale = (own[1] / theirs[1])[:, None, None].to(device)
    shift = ((own[0] - theirs[0]) / theirs[1])[:, None, None].to(device)

    @torch.no_grad()
    def teach(images: Tensor) -> Tensor:
        return network(images * scale + shift)  # type: ignore[no-any-return]

    blank = torch.zeros(1, settings.in_chans, *settings.image_size, device=device)
    try:
        logits = teach(blank)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"the teacher {recipe.name!r} does not take images of shape {tuple(blank.shape[1:])} "
            f"({error}): choose a teacher for this image size"
        ) from None
    if logits.shape != (1, settings.num_classes):
        raise ValueError(
            f"the teacher {recipe.name!r} gives outputs of shape {tuple(logits.shape)}, where "
            f"{settings.num_classes} classes are trained: choose a teacher of the same classes"
        )
    return teach


def _network(
    recipe: TeacherRecipe, settings: Settings
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """The network, and the mean and deviation per channel of its images."""
    if (Path(recipe.name) / artifacts.MODEL_ARCH).exists():
        model, description = load_described(recipe.name)
        preprocessing = description.preprocessing
        return model.network, preprocessing.mean, preprocessing.std
    if not timm.is_model(recipe.name):
        near = timm.list_models(f"*{recipe.name.split('.')[0][:12]}*")[:5]
        raise ValueError(
            f"there is no teacher {recipe.name!r}: give a model of timm "
            f"({', '.join(near) or 'timm.list_models() names them'}) or the folder of a model "
            "that `prenas specialize` handed over"
        )
    if recipe.weights is not None and not Path(recipe.weights).is_file():
        raise ValueError(
            f"there is no file {recipe.weights}: give the weights of the teacher {recipe.name!r} "
            "as training.teacher.weights"
        )
    try:
        if recipe.weights is None:
            network = timm.create_model(recipe.name, pretrained=True)
        else:
            sizes: dict[str, Any] = {
                "num_classes": settings.num_classes,
                "in_chans": settings.in_chans,
            }
            known: Any = timm.get_pretrained_cfg(recipe.name)
            if known.fixed_input_size and known.input_size[1:] != settings.image_size:
                sizes["img_size"] = settings.image_size
            network = timm.create_model(recipe.name, **sizes)
            # Never timm's default, which runs code in pickles.
            load_checkpoint(network, recipe.weights, weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"the weights of the teacher {recipe.name!r} cannot be had ({error}): give a file of "
            "them for this model and these classes as training.teacher.weights"
        ) from None
    described: Any = network.pretrained_cfg
    return network, tuple(described["mean"]), tuple(described["std"])
