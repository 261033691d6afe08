"""Weights of a MobileNet-like network for another image size or other classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prenas.families.mobilenet.arch import MobileNetSettings
from prenas.families.mobilenet.network import draw_uniform

_FREE = {"image_size", "num_classes"}
"""What may change; everything else decides shapes or what the weights mean."""


def adapt(
    tensors: Mapping[str, Tensor],
    old: MobileNetSettings,
    new: MobileNetSettings,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """The contract's `adapt`: convolutions suit any image size, so only the classifier changes."""
    _check(old, new, keeps_head=generator is None)
    adapted = dict(tensors)
    if generator is not None and tensors:
        weight = tensors["classifier.weight"]
        num_features = weight.shape[1]
        for name, shape in (("weight", (num_features,)), ("bias", ())):
            drawn = weight.new_empty(new.num_classes, *shape)
            draw_uniform(drawn, num_features, generator)
            adapted[f"classifier.{name}"] = drawn
    return adapted


def _check(old: MobileNetSettings, new: MobileNetSettings, *, keeps_head: bool) -> None:
    fields = (name for name in type(old).model_fields if name not in _FREE)
    problems = [
        f"{name} is {getattr(old, name)}, not {getattr(new, name)}"
        for name in fields
        if getattr(old, name) != getattr(new, name)
    ]
    if keeps_head and new.num_classes != old.num_classes:
        problems.append(
            f"its head has {old.num_classes} outputs, which cannot be kept for {new.num_classes} "
            "classes"
        )
    if problems:
        raise ValueError(
            f"these weights cannot be adapted: {'; '.join(problems)}. Image size and classes (with "
            "a fresh head) may change; else train from scratch"
        )
