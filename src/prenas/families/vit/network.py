"""The plain Vision Transformer of exactly one architecture, made of timm layers where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp, PatchEmbed
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prenas.families.base import TensorRole, Work, check_images
from prenas.families.habits import (
    record_image_size,
    require_pooling,
    with_image_size,
    without_proxy,
)
from prenas.families.vit.adaptation import resize
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
    num_prefix_tokens = 1
    """The class token."""
    grad_checkpointing = False
    """Whether blocks are computed again in the backward pass, to save memory."""

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
        self.num_classes, self.in_chans = settings.num_classes, settings.in_chans
        self.num_features = self.head_hidden_size = arch.embed_dim
        self.global_pool = "avg"
        self.feature_info = [
            {
                "module": f"blocks.{layer}",
                "num_chs": arch.embed_dim,
                "reduction": settings.patch_size,
            }
            for layer in range(arch.depth)
        ]
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
        self._set_grid()
        self.register_load_state_dict_post_hook(_restore_grid)  # type: ignore[no-untyped-call]

    def _set_grid(self) -> None:
        for name, tensor in self._grid().items():
            self.register_buffer(name, tensor, persistent=False)

    def _grid(self) -> dict[str, Tensor]:
        """The buffers that follow from the settings."""
        settings = self.settings
        grid = grid_index(*settings.grid, settings.head_dim, settings.max_distance)
        return {
            "row_index": grid.rows,
            "column_index": grid.columns,
            "key_features": grid.features,
        }

    def forward_features(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> normalised tokens [B, N, D], the class token first."""
        noise = without_proxy(noise)
        check_images(images, self.settings)
        num_draws = 2 * len(self.blocks) + (self.num_features if self.head_drop.p else 0)
        if noise is not None and (
            noise.ndim != 2 or len(noise) != len(images) or noise.shape[1] < num_draws
        ):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but {len(images)} images through "
                f"{len(self.blocks)} blocks need ({len(images)}, {num_draws} or more)"
            )
        tokens = self._embedded(images)
        grid = GridIndex(self.row_index, self.column_index, self.key_features)
        for layer, block in enumerate(self.blocks):
            branches = None if noise is None else noise[:, 2 * layer : 2 * layer + 2]
            tokens = self._applied(block, tokens, grid, branches)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def _embedded(self, images: Tensor) -> Tensor:
        """[B, in_chans, height, width] -> the tokens [B, N, D] that the first block takes."""
        tokens = self.patch_embed(images)
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        return torch.cat([cls_token, tokens], dim=1) + self.pos_embed

    def _applied(
        self, block: nn.Module, tokens: Tensor, grid: GridIndex, branches: Tensor | None
    ) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(block, tokens, grid, branches, use_reentrant=False)  # type: ignore[no-any-return]
        return block(tokens, grid, branches)  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """The tokens after several blocks, under the names and in the forms of timm.

        Args:
            x: images [B, in_chans, height, width].
            indices: numbers of blocks, or how many of the last; None for all.
            return_prefix_tokens: also give the class token [B, 1, D] of each.
            norm: apply the final norm to each.
            stop_early: compute no block after the last that is asked for.
            output_fmt: NCHW for maps [B, D, rows, columns], NLC for tokens [B, rows * columns, D].
            intermediates_only: leave out the features of the last block.
            output_dict: give a dictionary, as timm does.

        Returns:
            (normalised tokens [B, N, D] after the last block, list of the intermediates).

        Raises:
            ValueError: the images have another shape, or the format is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: choose 'NCHW' or 'NLC'")
        check_images(x, self.settings)
        wanted, last = feature_take_indices(len(self.blocks), indices)
        tokens = self._embedded(x)
        grid = GridIndex(self.row_index, self.column_index, self.key_features)
        taken = []
        for layer, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            tokens = self._applied(block, tokens, grid, None)
            if layer in wanted:
                taken.append(self.norm(tokens) if norm else tokens)
        prefixes = [each[:, : self.num_prefix_tokens] for each in taken]
        found = [each[:, self.num_prefix_tokens :] for each in taken]
        if output_fmt == "NCHW":
            rows, columns = self.settings.grid
            found = [
                each.transpose(1, 2).unflatten(2, (rows, columns)).contiguous() for each in found
            ]
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": found}
            if return_prefix_tokens:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else {**result, "image_features": self.norm(tokens)}
        pairs = list(zip(found, prefixes, strict=True)) if return_prefix_tokens else found
        return pairs if intermediates_only else (self.norm(tokens), pairs)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> Any:
        """The intermediates alone, of the last `n` blocks or of the blocks in `n`, as DINO names
        them: tokens, or maps with `reshape`."""
        return self.forward_intermediates(
            x,
            n,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes what these intermediates do not need, in place; returns the numbers of their
        blocks."""
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        self.arch = VitArch(
            embed_dim=self.arch.embed_dim,
            num_heads=self.arch.num_heads[: last + 1],
            mlp_ratio=self.arch.mlp_ratio[: last + 1],
        )
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def forward_head(
        self, tokens: Tensor, pre_logits: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, N, D] -> logits [B, num_classes], or the pooled features [B, D].

        The last D columns of `noise` decide which features dropout drops in training. With
        `global_pool=""`, the tokens are returned as they are.
        """
        if not self.global_pool:
            return tokens
        pooled = self._drop(tokens[:, 1:].mean(dim=1), without_proxy(noise))
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

        Args:
            global_pool: "avg" for the mean over the patch tokens, "" for all tokens as they are,
                which needs 0 classes; None keeps what it is.

        Raises:
            ValueError: another pooling was asked for.
        """
        pooling = self.global_pool if global_pool is None else global_pool
        require_pooling(pooling, num_classes)
        self.global_pool = pooling
        self.settings = self.settings.model_copy(update={"num_classes": num_classes})
        self.num_classes = num_classes
        reference = self.cls_token
        with isolated_global_state(0, "constructors"):
            self.head = self._make_head(num_classes)
        if isinstance(self.head, nn.Linear):
            generator = torch_generator(0, "classifier")  # of the processor
            nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.head.bias)
        self.head.to(reference)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes blocks again in the backward pass instead of keeping their activations.

        Stochastic depth and dropout drop the same again.
        """
        self.grad_checkpointing = enable

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Takes images of another size from now on: resamples the position embedding, in place.

        Raises:
            ValueError: the patch size does not divide the image size, or would change.
        """
        size = self.settings.patch_size
        if patch_size not in (None, size, (size, size)):
            raise ValueError(
                f"patch_size={patch_size} is not supported: the patches of this network have "
                f"{size} x {size} pixels"
            )
        if img_size is None:
            return
        old, new = self.settings, with_image_size(self.settings, img_size, self.num_classes)
        with torch.no_grad():
            moved = resize({"pos_embed": self.pos_embed}, old, new)["pos_embed"]
        self.pos_embed = nn.Parameter(moved.detach(), self.pos_embed.requires_grad)
        self.settings = new
        self.patch_embed.set_input_size(new.image_size)
        with self.row_index.device:
            self._set_grid()
        record_image_size(self, new.image_size)

    def _make_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def _restore_grid(network: nn.Module, _: object) -> None:
    """Computes again what no state dict has, for a network that was built without memory.

    Such as one on the meta device, or after `to_empty`.
    """
    assert isinstance(network, VisionTransformer)
    like = network.pos_embed
    if like.device.type == "meta":
        return
    with like.device:
        grid = network._grid()
    for name, tensor in grid.items():
        buffer = network.get_buffer(name)
        if buffer.device.type == "meta":
            dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
            network.register_buffer(name, tensor.to(like.device, dtype), persistent=False)
        else:  # in place, because others may hold these tensors
            buffer.copy_(tensor)


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
