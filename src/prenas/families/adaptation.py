"""Weights of a supernet or a subnet for other settings: another image size, other classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prenas.families.base import A, Family, S


def adapt(
    family: Family[A, S],
    tensors: Mapping[str, Tensor],
    old: S,
    new: S,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """These tensors for the new settings; without tensors it only checks the settings.

    Args:
        tensors: of a supernet or a plain network, by name.
        old: their settings.
        generator: the classifier is drawn anew from it; None keeps the classifier.

    Raises:
        ValueError: weights for the old settings cannot serve the new ones; it names every reason.
    """
    _check(family, old, new, keeps_head=generator is None)
    resizing = family.resizing
    adapted = resizing.resize(tensors, old, new) if resizing else dict(tensors)
    if generator is not None and tensors:
        adapted |= _fresh_head(family, tensors, new.num_classes, generator)
    return adapted


def extended(family: Family[A, S], settings: S) -> S:
    """The same settings with room for all that a larger image brings, e.g. longer distances."""
    return family.resizing.extended(settings) if family.resizing else settings


def _fresh_head(
    family: Family[A, S],
    tensors: Mapping[str, Tensor],
    num_classes: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The classifier's tensors, filled by the family's own initialisation."""
    like = tensors[f"{family.classifier}.weight"]
    with torch.device("meta"):  # constructors draw from the global generator
        head = nn.ModuleDict({family.classifier: nn.Linear(like.shape[1], num_classes)})
    head.to(like.dtype).to_empty(device=like.device)
    with torch.no_grad():
        family.initialize(head, generator)
    return dict(head.state_dict())


def _check(family: Family[A, S], old: S, new: S, *, keeps_head: bool) -> None:
    growing = sorted(family.resizing.growing) if family.resizing else []
    free = {"image_size", "num_classes", *growing}
    problems = [
        f"{name} is {getattr(old, name)}, not {getattr(new, name)}"
        for name in type(old).model_fields
        if name not in free and getattr(old, name) != getattr(new, name)
    ]
    problems += [
        f"{name} {getattr(new, name)} would drop what was learnt up to {getattr(old, name)}"
        for name in growing
        if getattr(new, name) < getattr(old, name)
    ]
    if keeps_head and new.num_classes != old.num_classes:
        problems.append(
            f"its head has {old.num_classes} outputs, which cannot be kept for {new.num_classes} "
            "classes"
        )
    if problems:
        larger = [f"a larger {name}" for name in growing]
        *most, last = ["Image size", "classes (with a fresh head)", *larger]
        raise ValueError(
            f"these weights cannot be adapted: {'; '.join(problems)}. {', '.join(most)} and {last} "
            "may change; otherwise train from scratch"
        )
