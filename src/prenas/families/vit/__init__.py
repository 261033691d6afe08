"""The Vision Transformer family of PreNAS."""

from __future__ import annotations

import math
import re

from prenas.families.base import Family, TensorRole
from prenas.families.vit.adaptation import adapt, with_full_reach
from prenas.families.vit.network import VisionTransformer, initialize, macs
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
_AXIS_OF_MODULE = {
    "attn.qkv": "num_heads",
    "attn.proj": "num_heads",
    "mlp.fc1": "mlp_ratio",
    "mlp.fc2": "mlp_ratio",
}


def _role(name: str) -> TensorRole:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.\w+", name)
    if match is None:
        return TensorRole(None, None)
    return TensorRole(int(match[1]), _AXIS_OF_MODULE.get(match[2]))


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
    macs=macs,
    role=_role,
    is_scored=_is_scored,
    unit_tensors=_UNIT_TENSORS,
    layer_prefix=lambda layer: f"blocks.{layer}.",
    num_layers=lambda arch: arch.depth,
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
