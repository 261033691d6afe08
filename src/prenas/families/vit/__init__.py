"""The Vision Transformer family of PreNAS."""

from __future__ import annotations

import math
import re

from prenas.families.base import Family, Released, Resizing, StageNames
from prenas.families.vit.adaptation import resize, with_full_reach
from prenas.families.vit.deployment import deployed
from prenas.families.vit.network import VisionTransformer, drop_path_rates, initialize, work
from prenas.families.vit.published import PUBLISHED, TIMM_NAMES
from prenas.families.vit.released import read_released
from prenas.families.vit.space import SPACES, VitArch, VitSettings, VitSpace

_UNIT_TENSORS = {
    "num_heads": (("attn.qkv.weight", 0),),
    "mlp_ratio": (("mlp.fc1.weight", 0), ("mlp.fc2.weight", 1)),
}


def _stage_names(arch: VitArch) -> list[StageNames]:
    return [StageNames([f"blocks.{layer}." for layer in range(arch.depth)])]


def _is_scored(name: str) -> bool:
    """S leaves out the class token, the position embedding and the relative position tables."""
    return not re.search(r"cls_token|pos_embed|(key|value)_(vertical|horizontal)$", name)


def _entropy(arch: VitArch, settings: VitSettings) -> float:
    """Sum over layers of log(hidden) + log(head_dim*heads) + log(196) + 4 log(width).

    It uses 196 patches for every grid, as the original does: the term only weights the depth.
    """
    return sum(
        math.log(hidden)
        + math.log(settings.head_dim * heads)
        + math.log(196)
        + 4 * math.log(arch.embed_dim)
        for heads, hidden in zip(arch.num_heads, arch.hidden_dims, strict=True)
    )


FAMILY = Family[VitArch, VitSettings](
    name="vit",
    space_type=VitSpace,
    spaces=SPACES,
    build=VisionTransformer,
    initialize=initialize,
    work=work,
    stage_names=_stage_names,
    unit_tensors=_UNIT_TENSORS,
    branches_per_layer=2,
    is_scored=_is_scored,
    drop_path_rates=drop_path_rates,
    balancing_group=lambda arch: (arch.embed_dim, arch.depth),
    resizing=Resizing(resize=resize, growing=frozenset({"max_distance"}), extended=with_full_reach),
    arch_scores={"entropy": _entropy},
    deployed=deployed,
    released=Released(read=read_released, published=PUBLISHED),
    timm_names=TIMM_NAMES,
)
