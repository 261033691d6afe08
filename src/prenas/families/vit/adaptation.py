"""Weights of a Vision Transformer for another image size, other classes or a longer reach.

Works on the tensors alone, by name, so that a supernet and a plain subnet are adapted alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from prenas.families.vit.space import VitSettings

_FIXED = ("in_chans", "patch_size", "head_dim")
"""What the weights themselves are made for."""
_TABLES = ("vertical", "horizontal")  # how the names of the relative tables end


def adapt(
    tensors: Mapping[str, Tensor],
    old: VitSettings,
    new: VitSettings,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """The contract's `adapt`: positions resampled as timm does, tables extended, head as asked.

    The class token's position is kept. A relative table gets its outermost rows repeated: before,
    distances beyond the table were clipped to them, so the network computes the same at first.
    """
    _check(old, new, keeps_head=generator is None)
    adapted = {}
    for name, tensor in tensors.items():
        if name == "pos_embed":
            tensor = resample_abs_pos_embed(tensor, list(new.grid), list(old.grid))
        elif name.endswith(_TABLES):
            tensor = _extended(tensor, new.max_distance)
        elif name == "head.weight" and generator is not None:
            tensor = tensor.new_empty(new.num_classes, tensor.shape[1])
            nn.init.trunc_normal_(tensor, std=0.02, generator=generator)
        elif name == "head.bias" and generator is not None:
            tensor = tensor.new_zeros(new.num_classes)
        adapted[name] = tensor
    return adapted


def with_full_reach(settings: VitSettings) -> VitSettings:
    """The contract's `with_full_reach`: tables for every distance of the patch grid."""
    return settings.changed(
        max_distance=max(settings.max_distance, *(n - 1 for n in settings.grid))
    )


def _extended(table: Tensor, max_distance: int) -> Tensor:
    """[2 * old + 2, d] -> [2 * max_distance + 2, d]: class row, then from most negative on."""
    reach = len(table) // 2 - 1
    distance = torch.arange(-max_distance, max_distance + 1).clamp(-reach, reach)
    return table[torch.cat([torch.zeros(1, dtype=torch.long), distance + reach + 1])]


def _check(old: VitSettings, new: VitSettings, *, keeps_head: bool) -> None:
    problems = [
        f"{name} is {getattr(old, name)}, not {getattr(new, name)}"
        for name in _FIXED
        if getattr(old, name) != getattr(new, name)
    ]
    if new.max_distance < old.max_distance:
        problems.append(
            f"max_distance {new.max_distance} would drop what was learnt up to {old.max_distance}"
        )
    if keeps_head and new.num_classes != old.num_classes:
        problems.append(
            f"its head has {old.num_classes} outputs, which cannot be kept for {new.num_classes} "
            "classes"
        )
    if problems:
        raise ValueError(
            f"these weights cannot be adapted: {'; '.join(problems)}. Image size, classes (with a "
            "fresh head) and a larger max_distance may change; else train from scratch"
        )
