"""Facts about the original code's parameters: golden fill, names, layout, what a subnet owns."""

import math
import re
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def fill(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Give every parameter the golden value; keys are the ORIGINAL names, layout the original's.

    p.flat[i] = base + s * sin(0.7310 i + phase + 0.013 sin(0.001 i)) in float64, cast to float32;
    phase = (crc32(name) % 1000) / 1000 * 2 pi; base 1, s 0.1 for LayerNorm weights, else 0, 0.04.
    """
    filled = {}
    for name, shape in shapes.items():
        phase = (zlib.crc32(name.encode("utf-8")) % 1000) / 1000 * 2 * math.pi
        base, s = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.04)
        i = torch.arange(math.prod(shape), dtype=torch.float64)
        values = base + s * torch.sin(0.7310 * i + phase + 0.013 * torch.sin(0.001 * i))
        filled[name] = values.to(torch.float32).reshape(tuple(shape))
    return filled


def golden_input(batch: int, image_size: tuple[int, int], in_chans: int = 3) -> Tensor:
    """x.flat[i] = sin(0.37 i) + 0.5 cos(0.0113 i) in float64, cast; [batch, chans, h, w]."""
    shape = (batch, in_chans, *image_size)
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    values = torch.sin(0.37 * i) + 0.5 * torch.cos(0.0113 * i)
    return values.to(torch.float32).reshape(shape)


_TABLES = {
    "rel_pos_embed_k.embeddings_table_v": "key_vertical",
    "rel_pos_embed_k.embeddings_table_h": "key_horizontal",
    "rel_pos_embed_v.embeddings_table_v": "value_vertical",
    "rel_pos_embed_v.embeddings_table_h": "value_horizontal",
}


def native_name(original_name: str) -> str:
    """Translate one parameter name of the original's checkpoints to the native name."""
    if original_name in (
        "cls_token",
        "pos_embed",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ):
        return original_name
    if original_name.startswith("patch_embed_super.proj."):
        return original_name.replace("patch_embed_super.", "patch_embed.", 1)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", original_name)
    if match is None:
        raise ValueError(f"not a parameter name of the original ViT: {original_name!r}")
    layer, rest = match.groups()
    for original_table, native_table in _TABLES.items():
        if rest == f"attn.{original_table}":
            return f"blocks.{layer}.attn.{native_table}"
    for original_module, native_module in {
        "attn.qkv": "attn.qkv",
        "attn.proj": "attn.proj",
        "attn_layer_norm": "norm1",
        "ffn_layer_norm": "norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    }.items():
        for kind in ("weight", "bias"):
            if rest == f"{original_module}.{kind}":
                return f"blocks.{layer}.{native_module}.{kind}"
    raise ValueError(f"not a parameter name of the original ViT: {original_name!r}")


def _deinterleave(tensor: Tensor, head_dim: int) -> Tensor:
    """Reorder qkv rows (or bias entries): 3m + t, m = d * head + channel, to the native order.

    The native row is head * 3d + t * d + channel, with t = 0, 1, 2 for q, k, v.
    """
    num_heads = tensor.shape[0] // (3 * head_dim)
    original_rows = []
    for head in range(num_heads):
        for t in range(3):
            for channel in range(head_dim):
                m = head_dim * head + channel
                original_rows.append(3 * m + t)
    return tensor[torch.tensor(original_rows)]


def to_native(state: Mapping[str, Tensor], head_dim: int = 64) -> dict[str, Tensor]:
    """Convert a state dict of the original (its names, interleaved qkv) to the native form."""
    native = {}
    for original_name, tensor in state.items():
        name = native_name(original_name)
        if name.endswith((".attn.qkv.weight", ".attn.qkv.bias")):
            tensor = _deinterleave(tensor, head_dim)
        native[name] = tensor
    return native


def slice_state(
    state: Mapping[str, Tensor],
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_dim: int = 64,
) -> dict[str, Tensor]:
    """Return views of the leading parts that a subnet owns of a native supernet's tensors.

    First ``embed_dim`` channels, first heads, first int(embed_dim * ratio) hidden units, first
    ``len(num_heads)`` layers, all rows of the relative tables. ``state`` may hold any subset of
    the supernet's names (gradients, for example); names of dropped layers are left out.
    """
    depth = len(num_heads)
    if len(mlp_ratio) != depth:
        raise ValueError(f"one head count and one ratio per layer: {depth} != {len(mlp_ratio)}")
    owned = {}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, layer_text, rest = name.split(".", 2)
            layer = int(layer_text)
            if layer >= depth:
                continue
            qkv_rows = 3 * num_heads[layer] * head_dim
            proj_columns = num_heads[layer] * head_dim
            hidden = int(embed_dim * mlp_ratio[layer])
            if rest in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
                owned[name] = tensor[:embed_dim]
            elif rest == "attn.qkv.weight":
                owned[name] = tensor[:qkv_rows, :embed_dim]
            elif rest == "attn.qkv.bias":
                owned[name] = tensor[:qkv_rows]
            elif rest in (
                "attn.key_vertical",
                "attn.key_horizontal",
                "attn.value_vertical",
                "attn.value_horizontal",
            ):
                owned[name] = tensor
            elif rest == "attn.proj.weight":
                owned[name] = tensor[:embed_dim, :proj_columns]
            elif rest == "attn.proj.bias":
                owned[name] = tensor[:embed_dim]
            elif rest == "mlp.fc1.weight":
                owned[name] = tensor[:hidden, :embed_dim]
            elif rest == "mlp.fc1.bias":
                owned[name] = tensor[:hidden]
            elif rest == "mlp.fc2.weight":
                owned[name] = tensor[:embed_dim, :hidden]
            elif rest == "mlp.fc2.bias":
                owned[name] = tensor[:embed_dim]
            else:
                raise ValueError(f"not a native parameter name: {name!r}")
        elif name in ("cls_token", "pos_embed"):
            owned[name] = tensor[:, :, :embed_dim]
        elif name in ("patch_embed.proj.weight", "patch_embed.proj.bias") or name in (
            "norm.weight",
            "norm.bias",
        ):
            owned[name] = tensor[:embed_dim]
        elif name == "head.weight":
            owned[name] = tensor[:, :embed_dim]
        elif name == "head.bias":
            owned[name] = tensor
        else:
            raise ValueError(f"not a native parameter name: {name!r}")
    return owned
