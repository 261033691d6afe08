"""Self-attention with contextual 2-D relative positions, as one fused attention call.

The direct form, `logit = scale * q.(k + Kv[iv] + Kh[ih])` and `out = sum p * (v + Vv[iv] + Vh[ih])`
(method.md, section 5), needs an (N, N, head_dim) tensor. Here the query carries its products
with the key tables, one entry per key row and per key column, and each key and value carries a
one-hot feature of its row and column. One `scaled_dot_product_attention` of a slightly larger
width then gives the exact logits, and beside `sum p*v` the attention mass per key row and column,
which two small products with the value tables finish. Memory stays O(N).

Shapes: B batch, H heads, N tokens (class token first), R x C patch grid, d head_dim, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

_WIDTH_MULTIPLE = 8  # fused kernels want head widths in multiples of 8; the rest is zeros


def padded_width(head_dim: int, rows: int, columns: int) -> int:
    """Head width of the fused call: head_dim, a feature per key row, class and column, padding."""
    width = head_dim + rows + 1 + columns
    return width + -width % _WIDTH_MULTIPLE


class GridIndex(NamedTuple):
    """What attention needs to know about the patch grid; the same for all layers and heads."""

    rows: Tensor
    """[R, R] table row for (query row, key row)."""
    columns: Tensor
    """[C, C] table row for (query column, key column)."""
    features: Tensor
    """[N, F] one-hot row, class and column features of every key, padded with zeros."""


def grid_index(rows: int, columns: int, head_dim: int, max_distance: int) -> GridIndex:
    """Indices and key features of a grid: distances clipped to +-max_distance, 0 left for class."""

    def table_rows(side: int) -> Tensor:
        position = torch.arange(side)
        distance = position[None, :] - position[:, None]  # key minus query
        return distance.clamp(-max_distance, max_distance) + max_distance + 1

    num_features = padded_width(head_dim, rows, columns) - head_dim
    features = torch.zeros(rows * columns + 1, num_features)
    features[0, rows] = 1.0
    patch = torch.arange(rows * columns)
    features[patch + 1, patch // columns] = 1.0
    features[patch + 1, rows + 1 + patch % columns] = 1.0
    return GridIndex(table_rows(rows), table_rows(columns), features)


class RelativeAttention(nn.Module):
    """Multi-head attention of width `num_heads * head_dim` with relative positions on k and v.

    The rows of `qkv` are laid out head by head, (head, q k v, channel), so that a subnet with
    fewer heads owns the leading rows; the four tables are shared by the heads.
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
        qkv = self.qkv(tokens).reshape(*tokens.shape[:2], self.num_heads, 3, self.head_dim)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each [B, H, N, d]
        out = fused_relative_attention(
            q,
            k,
            v,
            lay_out(self.key_vertical, self.key_horizontal, grid),
            lay_out(self.value_vertical, self.value_horizontal, grid),
            grid.features,
            self.scale,
        )
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class LaidTable(NamedTuple):
    """A pair of tables, looked up once for a grid."""

    rows: Tensor
    """[R, R + 1, d]: for each query row, the vector of every key row and of the class key."""
    columns: Tensor
    """[C, C, d]: for each query column, the vector of every key column."""
    class_token: Tensor
    """[d]: the vector of every pair with the class token in it."""


def lay_out(vertical: Tensor, horizontal: Tensor, grid: GridIndex) -> LaidTable:
    """Looks up a vertical and a horizontal table [2 * max_distance + 2, d] for a grid."""
    class_token = vertical[0] + horizontal[0]
    by_row = vertical[grid.rows]
    by_row = torch.cat([by_row, class_token.expand(by_row.shape[0], 1, -1)], dim=1)
    return LaidTable(by_row, horizontal[grid.columns], class_token)


def fused_relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_table: LaidTable,
    value_table: LaidTable,
    features: Tensor,
    scale: float,
) -> Tensor:
    """Attention with contextual 2-D relative positions; q, k, v and the result are [B, H, N, d]."""
    batch, heads, _, head_dim = q.shape
    rows, columns = key_table.rows.shape[0], key_table.columns.shape[0]
    grid_shape = (batch, heads, rows, columns)
    num_used = rows + 1 + columns
    features = features.to(q.dtype).expand(batch, heads, -1, -1)  # [B, H, N, F]

    patches = q[:, :, 1:].reshape(*grid_shape, head_dim)  # [B, H, R, C, d]
    by_row = torch.einsum("bhrcd,rsd->bhrcs", patches, key_table.rows.to(q.dtype))
    by_column = torch.einsum("bhrcd,csd->bhrcs", patches, key_table.columns.to(q.dtype))
    # A class query adds the same number to all its logits, which softmax does not see: zeros do.
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
    values = out[..., :head_dim]
    mass = out[:, :, 1:, head_dim:].reshape(*grid_shape, features.shape[-1])
    relative = torch.einsum(
        "bhrcs,rsd->bhrcd", mass[..., : rows + 1], value_table.rows.to(q.dtype)
    ) + torch.einsum(
        "bhrcs,csd->bhrcd", mass[..., rows + 1 : num_used], value_table.columns.to(q.dtype)
    )
    # Every pair of a class query uses the class vector, and its attention sums to one.
    class_query = value_table.class_token.to(q.dtype).expand(batch, heads, 1, -1)
    return values + torch.cat([class_query, relative.flatten(2, 3)], dim=2)
