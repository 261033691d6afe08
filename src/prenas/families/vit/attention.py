"""Self-attention with contextual 2-D relative positions, at the cost of a slightly wider head.

The direct form, `logit = scale * q.(k + Kv[iv] + Kh[ih])` and `out = sum p * (v + Vv[iv] + Vh[ih])`
(method.md, section 5), needs an (N, N, head_dim) tensor. Here the query carries its products
with the key tables, one entry per key row and per key column, and each key and value carries a
one-hot feature of its row and column. Attention of that width gives the exact logits. Its output
is `sum p*v` together with the attention mass per key row and column, from which two small products
with the value tables give the rest. Nothing of size N x N is kept.

Shapes: B batch, H heads, N tokens (class token first), R x C patch grid, d head_dim, F features,
T = 2R + 2C - 1 rows of a table laid out for a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from prenas.families.vit.attention_in_parts import attention_in_parts, suits_parts
from prenas.families.vit.attention_with_tables import attention_with_tables, suits_tables

_WIDTH_MULTIPLE = 8  # fused kernels need head widths in multiples of 8; zeros fill the rest


def padded_width(head_dim: int, rows: int, columns: int) -> int:
    """Head width for attention: head_dim, one feature per key row, class and column, padding."""
    width = head_dim + rows + 1 + columns
    return width + -width % _WIDTH_MULTIPLE


class GridIndex(NamedTuple):
    """What attention needs to know about the patch grid; the same for all layers and heads."""

    rows: Tensor
    """[2R - 1] rows of the vertical table for key row minus query row = R - 1 ... 1 - R."""
    columns: Tensor
    """[2C - 1] rows of the horizontal table, in the same order."""
    features: Tensor
    """[N, F] one-hot features of each key: rows from last to first, class, columns from last to
    first, zeros."""

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return (len(self.rows) + 1) // 2, (len(self.columns) + 1) // 2


def grid_index(rows: int, columns: int, head_dim: int, max_distance: int) -> GridIndex:
    """Indices and key features of a grid; distances are clipped to +-max_distance, and table row 0
    belongs to the class token."""
    device = torch.get_default_device()
    with torch.device("cpu"):  # on the meta device, each index is slow in Python
        index = _grid_index(rows, columns, head_dim, max_distance)
    return GridIndex(*(tensor.to(device) for tensor in index))


def _grid_index(rows: int, columns: int, head_dim: int, max_distance: int) -> GridIndex:
    def table_rows(side: int) -> Tensor:
        distance = torch.arange(side - 1, -side, -1)  # key minus query
        return distance.clamp(-max_distance, max_distance) + max_distance + 1

    features = torch.zeros(rows * columns + 1, padded_width(head_dim, rows, columns) - head_dim)
    features[0, rows] = 1.0
    patch = torch.arange(rows * columns)
    features[patch + 1, rows - 1 - patch // columns] = 1.0
    features[patch + 1, rows + columns - patch % columns] = 1.0
    return GridIndex(table_rows(rows), table_rows(columns), features)


def lay_out(vertical: Tensor, horizontal: Tensor, grid: GridIndex) -> Tensor:
    """Looks up a pair of tables [2 * max_distance + 2, d] once for a grid: [T, d].

    The result has one vector per vertical distance, one per horizontal distance, and a last one for
    every pair that includes the class token. Key rows count down, so for a query in row r the
    vectors of all key rows are the entries r ... r + R - 1.
    """
    class_token = vertical[:1] + horizontal[:1]
    return torch.cat([vertical[grid.rows], horizontal[grid.columns], class_token])


@register_notrace_module  # the way of computing depends on shapes, which a trace does not know
class RelativeAttention(nn.Module):
    """Multi-head attention of width `num_heads * head_dim` with relative positions on k and v.

    The rows of `qkv` are ordered head by head, (head, q k v, channel), so that a subnet with
    fewer heads owns the leading rows. All heads share the four tables.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, max_distance: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim)
        table_shape = (2 * max_distance + 2, head_dim)
        self.key_vertical = nn.Parameter(torch.empty(table_shape))
        self.key_horizontal = nn.Parameter(torch.empty(table_shape))
        self.value_vertical = nn.Parameter(torch.empty(table_shape))
        self.value_horizontal = nn.Parameter(torch.empty(table_shape))
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)

    def forward(self, tokens: Tensor, grid: GridIndex) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        qkv = torch.unflatten(self.qkv(tokens), 2, (self.num_heads, 3, self.head_dim))
        out = _form_for(qkv)(
            qkv,
            lay_out(self.key_vertical, self.key_horizontal, grid).to(qkv.dtype),
            lay_out(self.value_vertical, self.value_horizontal, grid).to(qkv.dtype),
            grid.features.to(qkv.dtype),
            grid.shape,
            self.scale,
        )
        return self.proj(out.flatten(2))  # type: ignore[no-any-return]


def _form_for(qkv: Tensor) -> Callable[..., Tensor]:
    """The fastest form for the device, of those that suit what is done with it."""
    if suits_parts(qkv):
        return attention_in_parts
    return attention_with_tables if suits_tables(qkv) else attention_at_once


def attention_at_once(
    qkv: Tensor,
    key_table: Tensor,
    value_table: Tensor,
    features: Tensor,
    grid: tuple[int, int],
    scale: float,
) -> Tensor:
    """Attention with relative positions as one `scaled_dot_product_attention`.

    Args:
        qkv: [B, N, H, 3, d].
        key_table, value_table: [T, d] of `lay_out`.
        features: [N, F] of the `GridIndex`.
        grid: (R, C).
        scale: factor of the logits.

    Returns:
        [B, N, H, d].
    """
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each [B, H, N, d]
    rows, columns = grid
    num_used = rows + 1 + columns
    head_dim = q.shape[-1]
    features = features.expand(*q.shape[:2], -1, -1)  # [B, H, N, F]
    seen_rows, seen_columns = windows(key_table, rows, columns)

    patches = torch.unflatten(q[:, :, 1:], 2, grid)  # [B, H, R, C, d]
    by_row = torch.einsum("bhrcd,rds->bhrcs", patches, seen_rows)
    by_column = torch.einsum("bhrcd,cds->bhrcs", patches, seen_columns)
    # A class query adds the same number to all its logits, which softmax ignores: zeros suffice.
    products = pad(
        torch.cat([by_row, by_column], dim=-1).flatten(2, 3),
        (0, features.shape[-1] - num_used, 1, 0),
    )  # [B, H, N, F]

    out = scaled_dot_product_attention(
        torch.cat([q, products], dim=-1),
        torch.cat([k, features], dim=-1),
        torch.cat([v, features], dim=-1),
        scale=scale,
    )
    mass = torch.unflatten(out[:, :, 1:, head_dim : head_dim + num_used], 2, grid)
    seen_rows, seen_columns = windows(value_table, rows, columns)
    relative = torch.einsum("bhrcs,rds->bhrcd", mass[..., : rows + 1], seen_rows) + torch.einsum(
        "bhrcs,cds->bhrcd", mass[..., rows + 1 :], seen_columns
    )
    # Every pair of a class query uses the class vector, and its attention sums to one.
    class_query = value_table[-1].expand(*q.shape[:2], 1, -1)
    out = out[..., :head_dim] + torch.cat([class_query, relative.flatten(2, 3)], dim=2)
    return out.transpose(1, 2)


def windows(table: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The part of a table that queries of each row, and of each column, use: [R, d, R + 1] and
    [C, d, C].

    The class vector comes after the rows.
    """
    vertical, horizontal = table[: 2 * rows - 1], table[2 * rows - 1 : -1]
    class_token = table[-1, :, None].expand(rows, -1, 1)
    by_row = torch.cat([vertical.unfold(0, rows, 1), class_token], dim=2)
    return by_row, horizontal.unfold(0, columns, 1)
