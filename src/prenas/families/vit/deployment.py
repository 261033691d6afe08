"""The form of the Vision Transformer that is exported: for one patch grid, and without gradients.

It computes what `attention.attention_at_once` computes, with matrix products, concatenations,
lookups and a softmax only: engines run no einsum well, and have no windows over a table. The scale
of the logits is part of the weights.

Shapes are named as in `attention`; E = 2R + 2C - 2 is the number of distances on a grid, and here
F = R + 1 + C.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from prenas.families.lookup import Lookup
from prenas.families.vit.attention import GridIndex, RelativeAttention, lay_out
from prenas.families.vit.network import VisionTransformer


class DeployedAttention(nn.Module):
    """Relative attention of one layer with its tables looked up for a grid of R x C patches.

    The vectors of pairs with the class token are taken out of all pairs. Of the keys' vector, each
    logit of a query loses the same number, which softmax ignores. Of the values' vector, every
    token loses the same, because the attention mass over all keys is 1; the bias of `proj` gives it
    back. Then pairs with the class token have no relative positions, and feature R is always zero.

    A query is multiplied with the vectors of all distances. `windows` gives it the F products that
    belong to the features of keys: those of its own row and column. `spread` does the reverse for
    the attention mass.
    """

    key_table: Tensor
    value_table: Tensor

    def __init__(
        self, attention: RelativeAttention, grid: GridIndex, windows: Lookup, spread: Lookup
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.windows, self.spread = windows, spread
        key, _ = _without_class(attention.key_vertical, attention.key_horizontal, grid)
        value, of_class = _without_class(attention.value_vertical, attention.value_horizontal, grid)
        self.register_buffer("key_table", torch.cat([key, torch.zeros_like(key[:1])]).T.clone())
        self.register_buffer("value_table", value)
        self.qkv, self.proj = _by_kind(attention), deepcopy(attention.proj)
        with torch.no_grad():
            self.proj.bias.add_(self.proj.weight @ of_class.repeat(self.num_heads))

    def forward(self, tokens: Tensor, grid: GridIndex) -> Tensor:
        """[B, N, D] -> [B, N, D]; `grid` has the features [N, F] of the keys."""
        batch, num_tokens = tokens.shape[0], tokens.shape[1]
        heads, width = self.num_heads, self.head_dim
        qkv = self.qkv(tokens).reshape(batch, num_tokens, 3 * heads, width).transpose(1, 2)
        q, k, v = torch.split(qkv, heads, dim=1)  # each [B, H, N, d]
        products = self.windows(q @ self.key_table)  # [B, H, N, F]
        features = grid.features.expand(batch, heads, -1, -1)
        logits = torch.cat([q, products], dim=3) @ torch.cat([k, features], dim=3).transpose(2, 3)
        seen = logits.softmax(dim=3) @ torch.cat([v, features], dim=3)  # [B, H, N, d + F]
        out = seen[..., :width] + self.spread(seen) @ self.value_table
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


def _without_class(vertical: Tensor, horizontal: Tensor, grid: GridIndex) -> tuple[Tensor, Tensor]:
    """The vectors of all distances, less that of the class token: [E, d], and that one [d].

    A pair of patches has a vertical and a horizontal distance, so one of both is reduced.
    """
    table = lay_out(vertical.detach(), horizontal.detach(), grid)
    num_vertical, of_class = len(grid.rows), table[-1]
    return torch.cat([table[:num_vertical] - of_class, table[num_vertical:-1]]), of_class


def _windows(rows: int, columns: int) -> Tensor:
    """For every token and feature, the place of its product: [N, F]. The last place, E, is zero."""
    features, zero = rows + 1 + columns, 2 * rows + 2 * columns - 2
    places = torch.full((rows, columns, features), zero)
    row, column = torch.arange(rows), torch.arange(columns)
    places[:, :, :rows] = (row[:, None] + row)[:, None]
    places[:, :, rows + 1 :] = 2 * rows - 1 + column[:, None] + column
    return torch.cat([torch.full((1, features), zero), places.flatten(0, 1)])


def _spread(windows: Tensor, head_dim: int, rows: int) -> Tensor:
    """The reverse, in vectors of values and features: [N, E]."""
    features, num_places = windows.shape[1], int(windows.max()) + 1
    places = torch.full((len(windows), num_places), head_dim + rows)  # the feature that is zero
    of_features = torch.arange(head_dim, head_dim + features).expand_as(windows)
    return places.scatter(1, windows, of_features)[:, :-1].contiguous()


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
    rows, columns = grid.shape
    head_dim, features = copy.settings.head_dim, rows + 1 + columns
    places = _windows(rows, columns)
    windows = Lookup(places, int(places.max()) + 1)
    spread = Lookup(_spread(places, head_dim, rows), head_dim + features)
    for block in copy.blocks:
        block.attn = DeployedAttention(block.attn, grid, windows, spread)  # type: ignore[arg-type]
    copy.key_features = grid.features[:, :features].clone()  # without the padding
    copy.key_features[0] = 0.0
    return copy
