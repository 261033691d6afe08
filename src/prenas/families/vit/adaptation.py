"""Weights of a Vision Transformer for another image size or a longer reach.

Works on the tensors alone, by name, so that a supernet and a plain subnet are resized alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from prenas.families.vit.space import VitSettings

_TABLES = ("vertical", "horizontal")  # how the names of the relative tables end


def resize(tensors: Mapping[str, Tensor], old: VitSettings, new: VitSettings) -> dict[str, Tensor]:
    """Resamples positions as timm does and extends tables; other tensors stay what they are.

    The class token's position is kept. A relative table gets its outermost rows repeated: before,
    distances beyond the table were clipped to them, so the network computes the same at first.
    """
    resized = dict(tensors)
    for name, tensor in tensors.items():
        if name == "pos_embed":
            resized[name] = resample_abs_pos_embed(tensor, list(new.grid), list(old.grid))
        elif name.endswith(_TABLES):
            resized[name] = _extended(tensor, new.max_distance)
    return resized


def with_full_reach(settings: VitSettings) -> VitSettings:
    """The same settings with tables for every distance of the patch grid."""
    return settings.changed(
        max_distance=max(settings.max_distance, *(n - 1 for n in settings.grid))
    )


def _extended(table: Tensor, max_distance: int) -> Tensor:
    """[2 * old + 2, d] -> [2 * max_distance + 2, d]: class row, then from most negative on."""
    reach = len(table) // 2 - 1
    distance = torch.arange(-max_distance, max_distance + 1).clamp(-reach, reach)
    return table[torch.cat([torch.zeros(1, dtype=torch.long), distance + reach + 1])]
