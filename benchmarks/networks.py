"""The networks that are compared: one architecture in three forms."""

from __future__ import annotations

import sys

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.paired import ROOT
from prenas import get_recipe
from prenas.families import build, family_of
from prenas.families.base import Settings
from prenas.families.vit.published import PUBLISHED
from prenas.families.vit.space import VitArch, VitSettings
from prenas.randomness import torch_generator

sys.path.insert(0, str(ROOT / "tests"))

from reference.vit import LiteralVit


def published(number: int) -> tuple[VitArch, VitSettings]:
    """A published subnet of the space `tiny`, the smallest (6.0 M parameters) first."""
    space = get_recipe("tiny").space
    arch = PUBLISHED["tiny"][number]
    assert isinstance(arch, VitArch)
    assert isinstance(space.settings, VitSettings)
    return arch, space.settings


def fused(arch: VitArch, settings: VitSettings) -> nn.Module:
    """The network of prenas."""
    network = build(arch, settings)
    family_of(arch).initialize(network, torch_generator(0, "weights"))
    return network


def without_relative_positions(arch: VitArch, settings: VitSettings) -> nn.Module:
    """The same with timm's attention, with the same number of heads of the same width."""
    network = fused(arch, settings)
    for block, heads in zip(network.blocks, arch.num_heads, strict=True):
        block.attn = _WithoutPositions(arch.embed_dim, heads, settings.head_dim)
    return network


class _WithoutPositions(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.attention = Attention(embed_dim, num_heads, attn_head_dim=head_dim, qkv_bias=True)

    def forward(self, tokens: Tensor, *_: object) -> Tensor:
        return self.attention(tokens)


def in_literal_form(arch: VitArch, settings: VitSettings) -> nn.Module:
    """Relative positions as in the formulas, with (N, N, head_dim) tensors."""
    network = LiteralVit(
        embed_dim=arch.embed_dim,
        num_heads=arch.num_heads,
        mlp_ratio=arch.mlp_ratio,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        in_chans=settings.in_chans,
        num_classes=settings.num_classes,
        head_dim=settings.head_dim,
        max_distance=settings.max_distance,
    )
    network.load_state_dict(fused(arch, settings).state_dict())
    return network


class PlainStep:
    """One training step of a network as in a plain PyTorch script."""

    def __init__(
        self, network: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        self.network, self.images, self.labels, self.dtype = network.train(), images, labels, dtype
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.images.device.type, self.dtype, self.dtype != torch.float32):
            logits = self.network(self.images)
        cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()

    @property
    def state_bytes(self) -> int:
        """Memory of weights and moments, which are kept between steps."""
        return 3 * sum(p.numel() * p.element_size() for p in self.network.parameters())


def some_images(number: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Noise images [B, C, H, W] and labels [B]."""
    generator = torch_generator(0, "benchmark")
    images = torch.randn(number, settings.in_chans, *settings.image_size, generator=generator)
    return images, torch.randint(settings.num_classes, (number,), generator=generator)
