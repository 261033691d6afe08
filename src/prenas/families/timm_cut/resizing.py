"""Another image size for the weights of a cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from prenas.families.base import tensor_shapes
from prenas.families.timm_cut.arch import TimmSettings
from prenas.families.timm_cut.network import build_whole

_POSITIONS = "pos_embed"


def resize(
    tensors: Mapping[str, Tensor], old: TimmSettings, new: TimmSettings
) -> dict[str, Tensor]:
    """Interpolates absolute position embeddings; convolutions suit any image size.

    Raises:
        ValueError: other tensors depend on the image size too, such as tables of relative
            positions.
    """
    if old.image_size == new.image_size:
        return dict(tensors)
    with torch.device("meta"):
        before, after = _whole(old), _whole(new)
    shapes = tensor_shapes(before), tensor_shapes(after)
    parameters = {name for name, _ in after.named_parameters()}
    differing = {
        name
        for name in parameters
        if shapes[0].get(name) != shapes[1][name] and not _is_of_classes(name, before)
    }
    if differing - {_POSITIONS}:
        raise ValueError(
            f"the tensors {', '.join(sorted(differing - {_POSITIONS})[:3])} of {old.model} depend "
            f"on the image size: leave it at {old.image_size[0]} x {old.image_size[1]} pixels"
        )
    changed = dict(tensors)
    old_grid, new_grid = _grid(before), _grid(after)
    # Two grids may have equally many cells, such as 4 x 16 and 8 x 8.
    if _POSITIONS in changed and old_grid and new_grid and old_grid != new_grid:
        resampled: Tensor = resample_abs_pos_embed(
            changed[_POSITIONS],
            new_size=list(new_grid),
            old_size=list(old_grid),
            num_prefix_tokens=_num_prefix_tokens(old_grid, changed[_POSITIONS]),
        )
        changed[_POSITIONS] = resampled
    return changed


def _whole(settings: TimmSettings) -> Any:
    return build_whole(settings)


def _grid(network: Any) -> tuple[int, int] | None:
    """Rows and columns of patches; None for networks without patches."""
    grid: tuple[int, int] | None = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    return grid


def _is_of_classes(name: str, network: Any) -> bool:
    """Whether a tensor belongs to the classifier, which depends on the number of classes."""
    classifier: str = network.pretrained_cfg["classifier"]
    return name.rpartition(".")[0] == classifier


def _num_prefix_tokens(grid: tuple[int, int], positions: Tensor) -> int:
    """How many positions are those of tokens that are not patches."""
    return int(positions.shape[1]) - grid[0] * grid[1]
