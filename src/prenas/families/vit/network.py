"""The plain Vision Transformer of exactly one architecture, made of timm layers where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp, PatchEmbed
from torch import Tensor, nn

from prenas.families.base import TensorRole, Work, check_images
from prenas.families.vit.attention import (
    GridIndex,
    RelativeAttention,
    grid_index,
    padded_width,
)
from prenas.families.vit.space import VitArch, VitSettings
from prenas.randomness import isolated_global_state, torch_generator

_NORM_EPS = 1e-5


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth on both residual branches."""

    def __init__(
        self, embed_dim: int, num_heads: int, hidden_dim: int, settings: VitSettings, rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=_NORM_EPS)
        self.attn = RelativeAttention(
            embed_dim, num_heads, settings.head_dim, settings.max_distance
        )
        self.norm2 = nn.LayerNorm(embed_dim, eps=_NORM_EPS)
        self.mlp = Mlp(embed_dim, hidden_dim, act_layer=nn.GELU)
        self.drop_path = DropPath(rate)

    def forward(self, tokens: Tensor, grid: GridIndex, noise: Tensor | None) -> Tensor:
        """[B, N, D] -> [B, N, D]; `noise` [B, 2] in [0, 1) decides which branches to drop."""
        first, second = (None, None) if noise is None else noise.unbind(1)
        tokens = tokens + self._drop(self.attn(self.norm1(tokens), grid), first)
        return tokens + self._drop(self.mlp(self.norm2(tokens)), second)

    def _drop(self, branch: Tensor, noise: Tensor | None) -> Tensor:
        rate = self.drop_path.drop_prob
        if noise is None or not self.training or not rate:
            return self.drop_path(branch)  # type: ignore[no-any-return]
        kept = (noise >= rate).to(branch.dtype) / (1.0 - rate)
        return branch * kept[:, None, None]


class VisionTransformer(nn.Module):
    """Vision Transformer of one width, in which each layer has its own heads and MLP ratio.

    It has a patch convolution, class token, absolute and relative positions, pre-norm blocks,
    LayerNorm, the mean over the patch tokens and a linear head (method.md, section 1). It is built
    uninitialised: `initialize` fills it.
    """

    row_index: Tensor
    column_index: Tensor
    key_features: Tensor

    def __init__(
        self,
        arch: VitArch,
        settings: VitSettings,
        drop_path_rates: Sequence[float] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.settings = settings
        self.num_classes = settings.num_classes
        self.num_features = self.head_hidden_size = arch.embed_dim
        rates = tuple(drop_path_rates) or (0.0,) * arch.depth
        if len(rates) < arch.depth:
            raise ValueError(f"{len(rates)} drop-path rates for {arch.depth} layers")

        self.patch_embed = PatchEmbed(
            settings.image_size,
            settings.patch_size,
            settings.in_chans,
            arch.embed_dim,
            strict_img_size=False,
        )
        rows, columns = settings.grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, arch.embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, rows * columns + 1, arch.embed_dim))
        self.blocks = nn.ModuleList(
            Block(arch.embed_dim, heads, hidden, settings, rate)
            for heads, hidden, rate in zip(
                arch.num_heads, arch.hidden_dims, rates[: arch.depth], strict=True
            )
        )
        self.norm = nn.LayerNorm(arch.embed_dim, eps=_NORM_EPS)
        self.head_drop = nn.Dropout(dropout)
        self.head = self._make_head(settings.num_classes)
        grid = grid_index(rows, columns, settings.head_dim, settings.max_distance)
        self.register_buffer("row_index", grid.rows, persistent=False)
        self.register_buffer("column_index", grid.columns, persistent=False)
        self.register_buffer("key_features", grid.features, persistent=False)

    def forward_features(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> normalised tokens [B, N, D], the class token first."""
        check_images(images, self.settings)
        num_draws = 2 * len(self.blocks) + (self.num_features if self.head_drop.p else 0)
        if noise is not None and (
            noise.ndim != 2 or len(noise) != len(images) or noise.shape[1] < num_draws
        ):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but {len(images)} images through "
                f"{len(self.blocks)} blocks need ({len(images)}, {num_draws} or more)"
            )
        tokens = self.patch_embed(images)
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([cls_token, tokens], dim=1) + self.pos_embed  # [B, N, D]
        grid = GridIndex(self.row_index, self.column_index, self.key_features)
        for layer, block in enumerate(self.blocks):
            branches = None if noise is None else noise[:, 2 * layer : 2 * layer + 2]
            tokens = block(tokens, grid, branches)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def forward_head(
        self, tokens: Tensor, pre_logits: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, N, D] -> logits [B, num_classes], or the pooled features [B, D].

        The last D columns of `noise` decide which features dropout drops in training.
        """
        pooled = self._drop(tokens[:, 1:].mean(dim=1), noise)
        return pooled if pre_logits else self.head(pooled)

    def _drop(self, features: Tensor, noise: Tensor | None) -> Tensor:
        rate = self.head_drop.p
        if noise is None or not self.training or not rate:
            return self.head_drop(features)  # type: ignore[no-any-return]
        draws = noise[:, -self.num_features :]
        return features * ((draws >= rate).to(features.dtype) / (1.0 - rate))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes].

        `noise` [B, 2 * depth or more], uniform in [0, 1), decides which residual branches are
        dropped in training; with dropout, its last D columns decide which features are dropped
        before the head. Without it, stochastic depth and dropout draw from the global generator.
        """
        return self.forward_head(self.forward_features(images, noise), noise=noise)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimiser factory must not decay, besides biases and norms."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise decay: the stem and the blocks, of which the last includes
        the final norm. The head, which matches none, is a group too."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def get_classifier(self) -> nn.Module:
        """The linear head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head with a fresh one of `num_classes` outputs; 0 removes it.

        The new weights are the same at every call: they come from a generator with a fixed seed.

        Raises:
            ValueError: a pooling other than the mean over the patch tokens was asked for.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(
                f"global_pool={global_pool!r} is not supported: this network only has 'avg'"
            )
        self.settings = self.settings.model_copy(update={"num_classes": num_classes})
        self.num_classes = num_classes
        reference = self.cls_token
        with isolated_global_state(0, "constructors"):
            self.head = self._make_head(num_classes).to(reference)
        if isinstance(self.head, nn.Linear):
            generator = torch_generator(0, "classifier")
            nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.head.bias)

    def _make_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Truncated normal (std 0.02) weights, tables, positions and class token; zero biases.

    The patch convolution has PyTorch's default: uniform within 1/sqrt(fan_in) (method.md,
    section 1).
    """
    fan_in = 1
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()  # a bias follows its weight
        if name.startswith("patch_embed."):
            bound = fan_in**-0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            nn.init.ones_(parameter)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)


def drop_path_rates(arch: VitArch, rate: float) -> tuple[float, ...]:
    """Rates that rise linearly from 0 in the first layer to `rate` in the last."""
    return tuple(torch.linspace(0.0, rate, arch.depth).tolist())


def work(arch: VitArch, settings: VitSettings) -> list[Work]:
    """Multiply-accumulates per image, and those of relative positions: first the part outside the
    layers, then each layer."""
    rows, columns = settings.grid
    patches = rows * columns
    tokens = patches + 1
    width, head_dim = arch.embed_dim, settings.head_dim
    features = padded_width(head_dim, rows, columns) - head_dim
    ends = patches * settings.in_chans * settings.patch_size**2 * width
    ends += width * settings.num_classes
    parts = [Work(TensorRole(0, None), ends)]
    for layer, (heads, hidden) in enumerate(zip(arch.num_heads, arch.hidden_dims, strict=True)):
        projections = tokens * width * heads * head_dim * 4
        attention = 2 * heads * tokens**2 * head_dim
        total = projections + attention + 2 * tokens * width * hidden
        relative = 2 * heads * tokens**2 * features
        relative += 2 * heads * patches * (rows + 1 + columns) * head_dim
        parts.append(Work(TensorRole(0, layer), total, relative))
    return parts
