"""Attention with relative positions on CUDA: every query is multiplied with the whole table.

`attention.attention_at_once` multiplies the queries of each row and column with the part of the
table that they use. These are many small products of odd sizes, for which a GPU has only slow
kernels. Here one large, regular product has the table padded to a multiple of 8; the part that a
query uses is a window of its result, a view. On an H100, in bfloat16, the kernels take 0.55 of the
time (results/log.md, 2026-11-27, the first GPU).

Shapes are named as in `attention`; W is the padded number of entries of a table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from prenas.families.vit.attention_in_parts import is_traced_or_transformed

_MULTIPLE = 8  # of which fast kernels want the sides of a matrix


def suits_tables(qkv: Tensor) -> bool:
    """Whether to use `attention_with_tables` for queries, keys and values [B, N, H, 3, d].

    It does not suit code that looks inside the function and knows no windows: exporters,
    `torch.jit.trace`, and the transforms of `torch.func`.
    """
    return (
        qkv.device.type == "cuda"
        and not torch.compiler.is_exporting()
        and not is_traced_or_transformed()
    )


class _Windows(NamedTuple):
    """Sliding windows: the part of the products [B, R * C, H, W] that each patch uses."""

    rows: tuple[tuple[int, ...], tuple[int, ...], int]
    """Size, stride and offset of the part among the vertical entries."""
    columns: tuple[tuple[int, ...], tuple[int, ...], int]
    """The same among the horizontal entries."""

    @classmethod
    def of(cls, images: int, heads: int, grid: tuple[int, int], width: int) -> _Windows:
        """The windows of contiguous products."""
        rows, columns = grid
        column = heads * width
        row, image = columns * column, rows * columns * column
        sizes = (images, rows, columns, heads)
        return cls(
            ((*sizes, rows), (image, row + 1, column, width, 1), 0),
            ((*sizes, columns), (image, row, column + 1, width, 1), 2 * rows - 1),
        )


def attention_with_tables(
    qkv: Tensor,
    key_table: Tensor,
    value_table: Tensor,
    features: Tensor,
    grid: tuple[int, int],
    scale: float,
) -> Tensor:
    """Computes the same as `attention_at_once`, with the same arguments: [B, N, H, d]."""
    q, k, v = qkv.unbind(3)  # each [B, N, H, d]
    images, _, heads, head_dim = q.shape
    rows, columns = grid
    used, last = rows + 1 + columns, len(key_table) - 1
    even = (0, 0, 0, -len(key_table) % _MULTIPLE)
    products = linear(q[:, 1:], pad(key_table, even)).contiguous()  # [B, R * C, H, W]
    windows = _Windows.of(images, heads, grid, products.shape[-1])
    seen = [
        products.as_strided(*windows.rows).flatten(1, 2),
        products[..., last : last + 1],
        products.as_strided(*windows.columns).flatten(1, 2),
    ]
    # A class query adds the same number to all its logits, which softmax ignores: zeros suffice.
    tail = pad(torch.cat(seen, dim=-1), (0, features.shape[1] - used, 0, 0, 1, 0))
    given = features[:, None].expand(images, -1, heads, -1)
    query, key, value = (
        torch.cat(pair, dim=-1).transpose(1, 2) for pair in ((q, tail), (k, given), (v, given))
    )
    out = scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)

    mass = out[:, 1:, :, head_dim : head_dim + used]
    by_row, by_class, by_column = torch.split(mass, [rows, 1, columns], dim=-1)
    zeros = torch.zeros_like(products)
    # Not chained: PyTorch's gradient of chained scatters is wrong (seen in 2.14).
    spread = (
        zeros.as_strided_scatter(torch.unflatten(by_row, 1, grid), *windows.rows)
        + zeros.as_strided_scatter(torch.unflatten(by_column, 1, grid), *windows.columns)
        + pad(by_class, (last, products.shape[-1] - last - 1))
    )
    relative = spread @ pad(value_table, even)
    # Every pair of a class query uses the class vector, and its attention sums to one.
    class_query = value_table[-1].expand(images, 1, heads, -1)
    return out[..., :head_dim] + torch.cat([class_query, relative], dim=1)
