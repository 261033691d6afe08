"""The Vision Transformer family of PreNAS."""

from __future__ import annotations

import math
import re

from prenas.families.base import Family, TensorRole
from prenas.families.vit.adaptation import adapt, with_full_reach
from prenas.families.vit.network import VisionTransformer, drop_path_rates, initialize, work
from prenas.families.vit.published import PUBLISHED
from prenas.families.vit.released import read_released
from prenas.families.vit.space import (
    SPACES,
    VitArch,
    VitSettings,
    VitSpace,
    balancing_group,
    check_contains,
    envelope,
    space_of,
)

_UNIT_TENSORS = {
    "num_heads": (("attn.qkv.weight", 0),),
    "mlp_ratio": (("mlp.fc1.weight", 0), ("mlp.fc2.weight", 1)),
}


def _role(arch: VitArch, name: str) -> TensorRole:
    match = re.match(r"blocks\.(\d+)\.", name)
    return TensorRole(0, int(match[1]) if match else None)


def _is_scored(name: str) -> bool:
    """The class token, the position embedding and the relative tables are left out of S."""
    return not re.search(r"cls_token|pos_embed|(key|value)_(vertical|horizontal)$", name)


def _entropy(arch: VitArch, settings: VitSettings) -> float:
    """Sum over layers of log(hidden) + log(head_dim*heads) + log(196) + 4 log(width).

    196 patches whatever the grid, as in the original: it only weighs depth.
    """
    return sum(
        math.log(hidden)
        + math.log(settings.head_dim * heads)
        + math.log(196)
        + 4 * math.log(arch.embed_dim)
        for heads, hidden in zip(arch.num_heads, arch.hidden_dims, strict=True)
    )


FAMILY = Family(
    name="vit",
    arch_type=VitArch,
    space_type=VitSpace,
    settings_type=VitSettings,
    spaces=SPACES,
    build=VisionTransformer,
    initialize=initialize,
    work=work,
    role=_role,
    is_scored=_is_scored,
    unit_tensors=_UNIT_TENSORS,
    layers=lambda arch: tuple(f"blocks.{layer}." for layer in range(arch.depth)),
    drop_path_rates=drop_path_rates,
    num_branches=lambda arch: 2 * arch.depth,
    balancing_group=balancing_group,
    envelope=envelope,
    check_contains=check_contains,
    space_of=space_of,
    adapt=adapt,
    with_full_reach=with_full_reach,
    arch_scores={"entropy": _entropy},
    published=PUBLISHED,
    read_released=read_released,
)
