"""Adapts the weights of a supernet or a subnet to another image size or to other classes."""

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
    """Returns the tensors for the new settings; without tensors it only checks the settings.

    Args:
        tensors: parameters and buffers of a supernet or a plain network, by name.
        old: the settings that the tensors were made for.
        generator: draws a fresh classifier; None keeps the classifier.

    Raises:
        ValueError: the weights cannot be adapted; the message gives every reason.
    """
    _check(family, old, new, keeps_head=generator is None)
    resizing = family.resizing
    adapted = resizing.resize(tensors, old, new) if resizing else dict(tensors)
    if generator is not None and tensors:
        adapted |= _fresh_head(family, tensors, new, generator)
    return adapted


def extended(family: Family[A, S], settings: S) -> S:
    """The same settings, extended to what a larger image can use, e.g. longer distances."""
    return family.resizing.extended(settings) if family.resizing else settings


def _fresh_head(
    family: Family[A, S],
    tensors: Mapping[str, Tensor],
    settings: S,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The classifier's tensors, filled by the family's own initialisation."""
    name = family.classifier_of(settings)
    like = tensors[f"{name}.weight"]
    head = nn.Module()
    *path, last = name.split(".")
    inner = head
    for part in path:
        inner.add_module(part, nn.Module())
        inner = inner.get_submodule(part)
    with torch.device("meta"):  # constructors draw from the global generator
        inner.add_module(last, nn.Linear(like.shape[1], settings.num_classes))
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
        f"{name} {getattr(new, name)} would discard what was trained up to {getattr(old, name)}"
        for name in growing
        if getattr(new, name) < getattr(old, name)
    ]
    if keeps_head and new.num_classes != old.num_classes:
        problems.append(
            f"the classifier has {old.num_classes} outputs and cannot be kept for "
            f"{new.num_classes} classes"
        )
    if problems:
        allowed = ", ".join(["the image size", *(f"a larger {name}" for name in growing)])
        raise ValueError(
            f"cannot adapt these weights: {'; '.join(problems)}. Only {allowed} and, with a fresh "
            "classifier, the classes may change; otherwise train from scratch"
        )
