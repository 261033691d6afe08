"""Uniform cuts of plain Vision Transformers, which timm builds by arguments of `create_model`.

All blocks of timm's `VisionTransformer` have the same number of heads and of MLP units. Heads keep
their size when some of them are removed, which timm's attention can do but its model cannot say: a
class of attention says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import nn

from prenas.families.base import tensor_shapes
from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.timm_cut.network import build, model_fields, timm_model
from prenas.families.timm_cut.stock import reordered


def describe_arguments(arch: TimmArch, settings: TimmSettings) -> dict[str, object]:
    """What timm needs to build a uniform cut of a plain Vision Transformer, and to load it.

    - `arguments`: further arguments of `timm.create_model`.
    - `head_dim`: the size of a head, for `attn_head_dim` of timm's `Attention`; absent if it is
      the width divided by the number of heads, as in timm's models.
    - `rows`: name of a tensor -> [kinds, rows of each kind per unit]. Its rows are ordered by
      unit here, and by kind in timm.

    Raises:
        ValueError: the cut is not uniform, or timm's model is not a plain Vision Transformer.
    """
    with torch.device("meta"):
        whole: Any = timm_model(settings)
    if type(whole) is not VisionTransformer:
        raise ValueError(
            f"this subnet is not a stock model of timm: {settings.model} is no plain Vision "
            "Transformer. Load it with prenas.load instead"
        )
    if whole.attn_pool is not None:
        raise ValueError(
            "this subnet is not a stock model of timm: its pooling has heads and units of its own, "
            "which the same arguments would change. Load it with prenas.load instead"
        )
    numbers: dict[str, set[int]] = {}
    for group, units in arch.kept():
        numbers.setdefault(group.axis, set()).add(units)
    for axis, found in numbers.items():
        if len(found) > 1 or not min(found):
            raise ValueError(
                f"this subnet is not a stock model of timm: its {axis} differ from block to block. "
                "Load it with prenas.load instead, or cut with search.allocation=uniform"
            )
    first: Any = whole.blocks[0]
    attention, mlp = first.attn, first.mlp
    heads = numbers.get("heads", {attention.num_heads}).pop()
    units = numbers.get("units", {mlp.fc2.in_features}).pop()
    hidden = units * mlp.fc1.out_features // mlp.fc2.in_features  # with gates, if there are any
    own = model_fields(settings)
    fields: dict[str, object] = {
        "model": settings.model,
        **{name: own.pop(name) for name in ("num_classes", "in_chans")},
        "arguments": {
            **own,
            "num_heads": heads,
            "mlp_ratio": (hidden + 0.5) / whole.embed_dim,  # timm rounds the product down
        },
        **(
            {}
            if heads * attention.head_dim == whole.embed_dim
            else {"head_dim": attention.head_dim}
        ),
        "rows": {
            f"{name}.{kind}": [layer.kinds, layer.per_unit]
            for name, layer in reordered(settings).items()
            for kind, _ in layer.named_parameters()
        },
    }
    with torch.device("meta"):
        shapes, theirs = (tensor_shapes(one) for one in (build(arch, settings), _built(fields)))
    if differing := [name for name in shapes if theirs.get(name) != shapes[name]]:
        raise ValueError(
            "this subnet is not a stock model of timm: no argument gives its "
            f"{differing[0]} the right size. Load it with prenas.load instead"
        )
    return fields


def built_by_arguments(arch: TimmArch, settings: TimmSettings) -> nn.Module:
    """timm's own network of a uniform cut; its tensors are those of `to_timm`.

    Raises:
        ValueError: as `describe_arguments`.
    """
    return _built(describe_arguments(arch, settings))


def _built(fields: Mapping[str, Any]) -> nn.Module:
    arguments = dict(fields["arguments"])
    if "head_dim" in fields:
        arguments["attn_layer"] = _attention_of(fields["head_dim"])
    return timm.create_model(
        fields["model"],
        num_classes=fields["num_classes"],
        in_chans=fields["in_chans"],
        **arguments,
    )


def _attention_of(head_dim: int) -> type[Attention]:
    class HeadsOfOneSize(Attention):
        def __init__(self, dim: int, **fields: Any) -> None:
            super().__init__(dim, attn_head_dim=head_dim, **fields)

    return HeadsOfOneSize
