"""Adapts the weights of a Vision Transformer to another image size or to longer distances.

It needs only the tensors and their names, so it treats a supernet and a plain subnet alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from prenas.families.vit.space import VitSettings

_TABLES = ("vertical", "horizontal")  # how the names of the relative tables end


def resize(tensors: Mapping[str, Tensor], old: VitSettings, new: VitSettings) -> dict[str, Tensor]:
    """Resamples position embeddings as timm does and extends tables; leaves other tensors alone.

    The class token's position is kept. A table of relative positions is extended by repeating its
    outermost rows. Longer distances used to be clipped to these rows, so at first the network
    computes the same as before.
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
    """[2 * old + 2, d] -> [2 * max_distance + 2, d]: class row, then distances in rising order."""
    reach = len(table) // 2 - 1
    distance = torch.arange(-max_distance, max_distance + 1).clamp(-reach, reach)
    return table[torch.cat([torch.zeros(1, dtype=torch.long), distance + reach + 1])]
