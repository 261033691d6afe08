"""The plain PreNAS ViT of one architecture, written exactly as the formulas read.

Nothing here is fast on purpose: the relative positions are (N, N, head_dim) tensors gathered with
explicit index matrices (PreNAS paper / original code). Parameter names and layouts are the native
ones of the production network, so its state dicts load with ``strict=True``.

Shapes: B batch, H heads, N tokens (class token first, then patches row by row), D width,
d channels of one head, T rows of a relative table (2 * max_distance + 2).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relative_indices(rows: int, cols: int, max_distance: int) -> tuple[Tensor, Tensor]:
    """Return the table rows ``(iv, ih)``, each [N, N] indexed [query, key], N = rows * cols + 1.

    iv = clip(row_key - row_query, -max, max) + max + 1, ih likewise with columns; both are 0 if
    either the query or the key is the class token (position 0). They have values on the CPU even
    where a network is built without them.
    """
    num_tokens = rows * cols + 1
    vertical = [[0] * num_tokens for _ in range(num_tokens)]
    horizontal = [[0] * num_tokens for _ in range(num_tokens)]
    for query in range(1, num_tokens):
        query_row, query_col = divmod(query - 1, cols)
        for key in range(1, num_tokens):
            key_row, key_col = divmod(key - 1, cols)
            row_distance = max(-max_distance, min(max_distance, key_row - query_row))
            col_distance = max(-max_distance, min(max_distance, key_col - query_col))
            vertical[query][key] = row_distance + max_distance + 1
            horizontal[query][key] = col_distance + max_distance + 1
    return torch.tensor(vertical, device="cpu"), torch.tensor(horizontal, device="cpu")


def literal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_vertical: Tensor,
    key_horizontal: Tensor,
    value_vertical: Tensor,
    value_horizontal: Tensor,
    iv: Tensor,
    ih: Tensor,
    scale: float,
) -> Tensor:
    """Attention with contextual 2-D relative positions on keys and values; all [B, H, N, d].

    logit = scale * q . (k + Kv[iv] + Kh[ih]);  out = sum over keys of p * (v + Vv[iv] + Vh[ih]),
    with the rows iv, ih of :func:`relative_indices`.
    """
    key_positions = key_vertical[iv] + key_horizontal[ih]  # [N, N, d]
    value_positions = value_vertical[iv] + value_horizontal[ih]  # [N, N, d]
    content = torch.einsum("bhqd,bhkd->bhqk", q, k)
    position = torch.einsum("bhqd,qkd->bhqk", q, key_positions)
    p = (scale * (content + position)).softmax(dim=-1)  # [B, H, N, N]
    out_content = torch.einsum("bhqk,bhkd->bhqd", p, v)
    out_position = torch.einsum("bhqk,qkd->bhqd", p, value_positions)
    return out_content + out_position


class LiteralAttention(nn.Module):
    """Multi-head attention of one layer; the heads share the layer's four relative tables."""

    iv: Tensor
    ih: Tensor

    def __init__(
        self, embed_dim: int, num_heads: int, head_dim: int, rows: int, cols: int, max_distance: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        iv, ih = relative_indices(rows, cols, max_distance)
        self.register_buffer("iv", iv, persistent=False)
        self.register_buffer("ih", ih, persistent=False)
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim)
        table_shape = (2 * max_distance + 2, head_dim)  # [T, d]
        self.key_vertical = nn.Parameter(torch.empty(table_shape))
        self.key_horizontal = nn.Parameter(torch.empty(table_shape))
        self.value_vertical = nn.Parameter(torch.empty(table_shape))
        self.value_horizontal = nn.Parameter(torch.empty(table_shape))
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]; qkv row = head * 3d + t * d + channel, t = q, k, v."""
        batch, num_tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, num_tokens, self.num_heads, 3, self.head_dim)
        q = qkv[:, :, :, 0, :].transpose(1, 2)  # [B, H, N, d]
        k = qkv[:, :, :, 1, :].transpose(1, 2)
        v = qkv[:, :, :, 2, :].transpose(1, 2)
        out = literal_attention(
            q,
            k,
            v,
            self.key_vertical,
            self.key_horizontal,
            self.value_vertical,
            self.value_horizontal,
            self.iv,
            self.ih,
            self.head_dim**-0.5,
        )
        out = out.transpose(1, 2).reshape(batch, num_tokens, self.num_heads * self.head_dim)
        return self.proj(out)


class LiteralMlp(nn.Module):
    """fc2(GELU(fc1(x))) with the exact (erf) GELU."""

    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="none"))


class LiteralBlock(nn.Module):
    """Pre-norm block: x += attention(LN(x)); x += mlp(LN(x)). No stochastic depth."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float,
        head_dim: int,
        rows: int,
        cols: int,
        max_distance: int,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-5)
        self.attn = LiteralAttention(embed_dim, num_heads, head_dim, rows, cols, max_distance)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-5)
        self.mlp = LiteralMlp(embed_dim, int(embed_dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LiteralPatchEmbed(nn.Module):
    """Patch convolution; one token per patch, row by row."""

    def __init__(self, embed_dim: int, patch_size: int, in_chans: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, C, height, width] to [B, N - 1, D]."""
        return self.proj(images).flatten(2).transpose(1, 2)


class LiteralVit(nn.Module):
    """Plain ViT of exactly one architecture (PreNAS paper / original code, drop-path 0)."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: Sequence[int],
        mlp_ratio: Sequence[float],
        image_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        num_classes: int,
        head_dim: int = 64,
        max_distance: int = 14,
    ) -> None:
        super().__init__()
        if len(num_heads) != len(mlp_ratio):
            raise ValueError(
                f"one head count and one ratio per layer: {len(num_heads)} != {len(mlp_ratio)}"
            )
        rows, cols = image_size[0] // patch_size, image_size[1] // patch_size
        self.patch_embed = LiteralPatchEmbed(embed_dim, patch_size, in_chans)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, rows * cols + 1, embed_dim))
        self.blocks = nn.ModuleList(
            LiteralBlock(embed_dim, heads, ratio, head_dim, rows, cols, max_distance)
            for heads, ratio in zip(num_heads, mlp_ratio, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        self.head = nn.Linear(embed_dim, num_classes)
        self.initialise()

    def initialise(self) -> None:
        """Truncated normal (std 0.02) weights, tables and tokens; zero biases; LayerNorm 1 and 0.

        The patch convolution keeps PyTorch's default, as in the original code.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("patch_embed.") or "norm" in name:
                continue
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, C, height, width] to logits [B, classes]; head on the mean patch token."""
        patches = self.patch_embed(images)  # [B, N - 1, D]
        cls_token = self.cls_token.expand(images.shape[0], -1, -1)
        x = torch.cat([cls_token, patches], dim=1) + self.pos_embed  # [B, N, D]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 1:].mean(dim=1))
