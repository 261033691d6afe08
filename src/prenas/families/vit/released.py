"""Reads the authors' ViT checkpoints, of PreNAS and of AutoFormer, into our names and layout.

All sizes follow from the tensors. In our layout a subnet owns the leading part of every tensor. So
the rows of qkv, which the authors interleave (row 3m+t is q, k, v for t = 0, 1, 2 of unit
m = head_dim * head + channel), are reordered to (head, q k v, channel). Source: method.md,
section 1, and the released code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from prenas.families.base import ReleasedNetwork
from prenas.families.vit.network import VisionTransformer
from prenas.families.vit.space import VitArch, VitSettings


def _weights_and_biases(modules: Mapping[str, str]) -> dict[str, str]:
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in modules.items()
        for kind in ("weight", "bias")
    }


_OUTSIDE_BLOCKS = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    **_weights_and_biases(
        {"patch_embed_super.proj": "patch_embed.proj", "norm": "norm", "head": "head"}
    ),
}
_IN_A_BLOCK = {
    **_weights_and_biases(
        {
            "attn_layer_norm": "norm1",
            "attn.qkv": "attn.qkv",
            "attn.proj": "attn.proj",
            "ffn_layer_norm": "norm2",
            "fc1": "mlp.fc1",
            "fc2": "mlp.fc2",
        }
    ),
    "attn.rel_pos_embed_k.embeddings_table_v": "attn.key_vertical",
    "attn.rel_pos_embed_k.embeddings_table_h": "attn.key_horizontal",
    "attn.rel_pos_embed_v.embeddings_table_v": "attn.value_vertical",
    "attn.rel_pos_embed_v.embeddings_table_h": "attn.value_horizontal",
}
"""Name in one of their blocks -> name in one of ours."""

_UNSUPPORTED = {
    r"\b(qk|v|mlp|embed)_scaling\d?\.": "trained scales (--scale-attn, --scale-mlp, --scale-embed)",
    r"_?norm\.lns\.": "one LayerNorm per width (--switch-ln)",
}
"""Pattern of names that only one of their options creates -> that option."""

_REQUIRED = {
    "gp": "without --gp, so it pools the class token, not the mean over the patch tokens",
    "change_qkv": "without --change_qkv, so its heads do not have a fixed width",
}
"""Their switches that leave no trace in the tensors -> what a checkpoint without them means."""


def read_released(tensors: Mapping[str, Tensor], options: Mapping[str, object]) -> ReleasedNetwork:
    """Converts their tensors to our network; its sizes are inferred from the shapes.

    Args:
        tensors: their names -> tensors in their layout.
        options: the training options saved with the tensors; may be empty.

    Raises:
        ValueError: names are unknown or missing, shapes contradict each other, or the checkpoint
            was trained with an option that this network does not support.
    """
    for option, meaning in _REQUIRED.items():
        if options.get(option) is False:
            raise ValueError(f"it was trained {meaning}: prenas does not support this")
    names = _native_names(_depth(tensors))
    _check_names(tensors, names)
    arch, settings = _sizes(tensors)
    _check_shapes(tensors, names, arch, settings)
    native = {}
    for name, ours in names.items():
        is_qkv = ".attn.qkv." in ours
        native[ours] = _by_heads(tensors[name], settings.head_dim) if is_qkv else tensors[name]
    return ReleasedNetwork(arch, settings, native)


def _depth(names: Iterable[str]) -> int:
    """Number of blocks: the number of different layer numbers in the names, at least one."""
    found = (re.match(r"blocks\.(\d+)\.", name) for name in names)
    return max(1, len({match[1] for match in found if match}))


def _native_names(depth: int) -> dict[str, str]:
    """Their name -> our name, for each tensor of a network with this many blocks."""
    blocks = {
        f"blocks.{layer}.{theirs}": f"blocks.{layer}.{ours}"
        for layer in range(depth)
        for theirs, ours in _IN_A_BLOCK.items()
    }
    return {**_OUTSIDE_BLOCKS, **blocks}


def _check_names(found: Mapping[str, Tensor], expected: Mapping[str, str]) -> None:
    unknown = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    for pattern, option in _UNSUPPORTED.items():
        of_option = [name for name in unknown if re.search(pattern, name)]
        if of_option:
            raise ValueError(
                f"it was trained with {option}, which prenas does not support: {_few(of_option)}"
            )
    problems = [
        f"{what} {_few(names)}"
        for what, names in (("it lacks", missing), ("it contains the unknown tensors", unknown))
        if names
    ]
    if problems:
        raise ValueError(
            f"not a checkpoint of the authors' Vision Transformer: {'; '.join(problems)}. Give a "
            "file saved by PreNAS or AutoFormer, trained with --gp --change_qkv "
            "--relative_position. If these are the weights of a model of timm, give timm/NAME=FILE"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _sizes(tensors: Mapping[str, Tensor]) -> tuple[VitArch, VitSettings]:
    """Reads each size from one tensor; `_check_shapes` then compares all the others."""

    def size(name: str, dim: int, ndim: int) -> int:
        shape = tuple(tensors[name].shape)
        if len(shape) != ndim or 0 in shape:
            raise ValueError(
                f"{name} has shape {shape}: it should have {ndim} dimensions, none of them empty"
            )
        return shape[dim]

    table = "blocks.0.attn.rel_pos_embed_k.embeddings_table_v"
    table_rows, head_dim = size(table, 0, 2), size(table, 1, 2)
    if table_rows < 4 or table_rows % 2:
        raise ValueError(
            f"{table} has {table_rows} rows: it should have 2 * distance + 2, for a distance of 1 "
            "or more"
        )
    num_patches = size("pos_embed", 1, 3) - 1
    side = math.isqrt(max(0, num_patches))
    if side == 0 or side**2 != num_patches:
        raise ValueError(
            f"pos_embed has {num_patches + 1} positions, {num_patches} of them patches: that is "
            "not a square grid, and the checkpoint does not say what the grid is"
        )
    patch_size = size("patch_embed_super.proj.weight", 2, 4)
    width = size("cls_token", 2, 3)
    num_heads, ratios = [], []
    for layer in range(_depth(tensors)):
        rows = size(f"blocks.{layer}.attn.qkv.weight", 0, 2)
        if rows % (3 * head_dim):
            raise ValueError(
                f"blocks.{layer}.attn.qkv.weight has {rows} rows, which is not a multiple of "
                f"3 * {head_dim} (q, k, v of one head; {table} is {head_dim} wide)"
            )
        num_heads.append(rows // (3 * head_dim))
        ratios.append(_ratio(width, size(f"blocks.{layer}.fc1.weight", 0, 2)))
    arch = VitArch(embed_dim=width, num_heads=tuple(num_heads), mlp_ratio=tuple(ratios))
    settings = VitSettings(
        image_size=(side * patch_size, side * patch_size),
        in_chans=size("patch_embed_super.proj.weight", 1, 4),
        num_classes=size("head.weight", 0, 2),
        patch_size=patch_size,
        head_dim=head_dim,
        max_distance=table_rows // 2 - 1,
    )
    return arch, settings


def _ratio(width: int, hidden: int) -> float:
    """The MLP ratio that gives this many hidden units: `int(width * ratio) == hidden`."""
    ratio = hidden / width
    # Rounding the quotient down may give just less than `hidden` units, e.g. 15 / 11.
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _check_shapes(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    arch: VitArch,
    settings: VitSettings,
) -> None:
    """Raises ValueError unless every tensor has the shape that it has in this network."""
    with torch.device("meta"):
        network = VisionTransformer(arch, settings)
    # The order of qkv rows does not show in a shape.
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, ours in names.items():
        shape = tuple(tensors[name].shape)
        if shape != wanted[ours]:
            raise ValueError(
                f"{name} has shape {shape}, but the other tensors imply {wanted[ours]} "
                f"({arch.summary}; images of {settings.image_size[0]} pixels in patches of "
                f"{settings.patch_size}, {settings.num_classes} classes)"
            )


def _by_heads(interleaved: Tensor, head_dim: int) -> Tensor:
    """Reorders qkv rows or biases from (head, channel, q k v) to (head, q k v, channel)."""
    units = interleaved.reshape(-1, head_dim, 3, *interleaved.shape[1:])
    return units.transpose(1, 2).reshape(interleaved.shape)
