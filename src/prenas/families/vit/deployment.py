"""The form of the Vision Transformer that is exported: for one patch grid, and without gradients.

It computes what `attention.attention_at_once` computes, with matrix products, concatenations and a
softmax only: engines run no einsum well, and have no windows over a table. The tables are laid out
for the grid once, and the scale of the logits is part of the weights.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from prenas.families.vit.attention import GridIndex, RelativeAttention, lay_out, windows
from prenas.families.vit.network import VisionTransformer


class DeployedAttention(nn.Module):
    """Relative attention of one layer with its tables laid out for a grid of R x C patches.

    The attention mass over all key rows is 1. So the value vector that belongs to the class token
    can be taken out of the vectors of all rows, and be added to every token by the bias of `proj`.
    Then a class query, all of whose pairs have that vector, needs no relative values at all.
    """

    by_row: Tensor
    by_column: Tensor
    value_by_row: Tensor
    value_by_column: Tensor

    def __init__(self, attention: RelativeAttention, grid: GridIndex) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.rows, self.columns = grid.shape
        key = lay_out(attention.key_vertical, attention.key_horizontal, grid)
        value = lay_out(attention.value_vertical, attention.value_horizontal, grid)
        of_class = value[-1]
        by_row, by_column = windows(key, self.rows, self.columns)
        value_by_row, value_by_column = windows(value, self.rows, self.columns)
        for name, tensor in (
            ("by_row", by_row),
            ("by_column", by_column),
            ("value_by_row", value_by_row.transpose(1, 2) - of_class),
            ("value_by_column", value_by_column.transpose(1, 2)),
        ):
            self.register_buffer(name, tensor.detach().clone())
        self.qkv, self.proj = _by_kind(attention), deepcopy(attention.proj)
        with torch.no_grad():
            self.proj.bias.add_(self.proj.weight @ of_class.repeat(self.num_heads))

    def forward(self, tokens: Tensor, grid: GridIndex) -> Tensor:
        """[B, N, D] -> [B, N, D]; `grid` has the features [N, R + 1 + C] of the keys."""
        batch, num_tokens = tokens.shape[0], tokens.shape[1]
        heads, width = self.num_heads, self.head_dim
        qkv = self.qkv(tokens).reshape(batch, num_tokens, 3 * heads, width).transpose(1, 2)
        q, k, v = torch.split(qkv, heads, dim=1)  # each [B, H, N, d]
        patches = q[:, :, 1:].reshape(batch, heads, self.rows, self.columns, width)
        by_row = patches @ self.by_row  # [B, H, R, C, R + 1]
        by_column = (patches.transpose(2, 3) @ self.by_column).transpose(2, 3)
        # A class query adds the same number to all its logits, which softmax ignores: zeros do.
        products = pad(torch.cat([by_row, by_column], dim=4).flatten(2, 3), (0, 0, 1, 0))
        features = grid.features.expand(batch, heads, -1, -1)
        logits = torch.cat([q, products], dim=3) @ torch.cat([k, features], dim=3).transpose(2, 3)
        out = logits.softmax(dim=3) @ torch.cat([v, features], dim=3)
        out, mass = torch.split(out, [width, features.shape[3]], dim=3)
        mass = mass[:, :, 1:].reshape(batch, heads, self.rows, self.columns, -1)
        rows, columns = torch.split(mass, [self.rows + 1, self.columns], dim=4)
        relative = rows @ self.value_by_row
        relative = relative + (columns.transpose(2, 3) @ self.value_by_column).transpose(2, 3)
        out = out + pad(relative.flatten(2, 3), (0, 0, 1, 0))
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


def _by_kind(attention: RelativeAttention) -> nn.Linear:
    """The projection to queries, keys and values, with its rows ordered by kind and then by head,
    and queries times the scale of the logits."""
    heads, width, old = attention.num_heads, attention.head_dim, attention.qkv
    new = nn.Linear(old.in_features, old.out_features)
    scale = torch.tensor([attention.scale, 1.0, 1.0]).view(3, 1, 1)

    def ordered(rows: Tensor) -> Tensor:
        by_head = rows.detach().reshape(heads, 3, width, -1).transpose(0, 1)
        return (by_head * scale.to(rows).unsqueeze(3)).flatten(0, 2)

    with torch.no_grad():
        new.weight.copy_(ordered(old.weight))
        new.bias.copy_(ordered(old.bias).squeeze(1))
    return new


def deployed(network: nn.Module) -> nn.Module:
    """A copy of a network in this form."""
    assert isinstance(network, VisionTransformer)
    copy = deepcopy(network)
    grid = GridIndex(copy.row_index, copy.column_index, copy.key_features)
    for block in copy.blocks:
        block.attn = DeployedAttention(block.attn, grid)  # type: ignore[arg-type]
    rows, columns = grid.shape
    copy.key_features = grid.features[:, : rows + 1 + columns].clone()  # without the padding
    return copy
