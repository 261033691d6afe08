"""The plain MobileNet-like network of exactly one architecture, made of timm's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_act_layer, get_act_layer
from timm.models._efficientnet_blocks import ConvBnAct
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import interpolate

from prenas.families.base import check_images
from prenas.families.mobilenet.arch import MobileNetArch, MobileNetSettings
from prenas.families.mobilenet.blocks import Shortcut, make_block
from prenas.families.mobilenet.parts import block_specs
from prenas.randomness import isolated_global_state, torch_generator


class MobileNet(nn.Module):
    """Stem, stages of inverted residual blocks, and the head of MobileNetV3.

    Layers and names are those of timm's `MobileNetV3`; with identity shortcuts the two networks
    are the same, and have the same state dict. It is built uninitialised: `initialize` fills it.
    """

    def __init__(
        self,
        arch: MobileNetArch,
        settings: MobileNetSettings,
        drop_path_rates: Sequence[float] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.arch, self.settings = arch, settings
        self.num_classes = settings.num_classes
        last = int(arch.widths[-1] * settings.head_expand)
        self.num_features, self.head_hidden_size = last, arch.head
        self.drop_rate = dropout
        self.num_blocks = arch.num_layers
        rates = tuple(drop_path_rates) or (0.0,) * self.num_blocks
        if len(rates) < self.num_blocks:
            raise ValueError(f"{len(rates)} drop-path rates for {self.num_blocks} blocks")
        stride = settings.stem_stride
        self.conv_stem = nn.Conv2d(
            settings.in_chans, arch.stem, 3, stride=stride, padding=1, bias=False
        )
        self.bn1 = BatchNormAct2d(arch.stem, act_layer=get_act_layer(settings.stem_act))
        stages: list[list[nn.Module]] = [[] for _ in arch.stages]
        for spec, rate in zip(block_specs(arch, settings), rates, strict=False):
            stages[spec.stage - 1].append(make_block(spec, rate))
        act = get_act_layer(settings.head_act)
        stages.append([ConvBnAct(arch.widths[-1], last, 1, act_layer=act)])
        self.blocks = nn.ModuleList(nn.ModuleList(stage) for stage in stages)
        self.conv_head = nn.Conv2d(last, arch.head, 1, bias=False)
        self.act2 = create_act_layer(settings.head_act)
        self.classifier = self._make_classifier(settings.num_classes)

    def forward_features(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> feature maps [B, channels, height', width']."""
        check_images(images, self.settings)
        self._check_noise(images, noise)
        side = self.arch.resolution
        if side is not None and (side, side) != self.settings.image_size:
            images = interpolate(images, (side, side), mode="bicubic", align_corners=False)
        # With channels last, convolutions of this kind take two thirds of the time on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.bn1(self.conv_stem(images))
        place = 0
        for stage in self.blocks[:-1]:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, None if noise is None else noise[:, place])
                place += 1
        return self.blocks[-1][0](x)  # type: ignore[no-any-return, index]

    def forward_head(
        self, features: Tensor, pre_logits: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """Maps [B, channels, H, W] -> logits [B, num_classes], or the pooled features [B, D]."""
        pooled = self.act2(self.conv_head(features.mean((2, 3), keepdim=True))).flatten(1)
        if self.training and self.drop_rate:
            if noise is None:
                pooled = drop(pooled, self.drop_rate)
            else:
                kept = noise[:, -pooled.shape[1] :] >= self.drop_rate
                pooled = pooled * kept.to(pooled.dtype) / (1.0 - self.drop_rate)
        return pooled if pre_logits else self.classifier(pooled)  # type: ignore[no-any-return]

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes].

        `noise` [B, blocks or more], uniform in [0, 1), decides which branches are dropped in
        training; with dropout, its last columns, one per feature, decide which features are
        dropped. Without it, the global generator decides.
        """
        return self.forward_head(self.forward_features(images, noise), noise=noise)

    def _check_noise(self, images: Tensor, noise: Tensor | None) -> None:
        needed = self.num_blocks + (self.arch.head if self.drop_rate else 0)
        if noise is not None and (
            noise.ndim != 2 or len(noise) != len(images) or noise.shape[1] < needed
        ):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but {len(images)} images through "
                f"{self.num_blocks} blocks need ({len(images)}, {needed} or more)"
            )

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimiser factory must not decay, besides biases and norms."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise decay: the stem and the blocks, of which the last includes
        the head convolution. The classifier, which matches none, is a group too."""
        blocks = r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"
        return {
            "stem": r"^conv_stem|bn1",
            "blocks": [(blocks, None), (r"^conv_head", (99999,))],
        }

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier with a fresh one of `num_classes` outputs; 0 removes it.

        The new weights are the same at every call: they come from a generator with a fixed seed.

        Raises:
            ValueError: a pooling other than the mean over the map was asked for.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(
                f"global_pool={global_pool!r} is not supported: this network only has 'avg'"
            )
        self.settings = self.settings.model_copy(update={"num_classes": num_classes})
        self.num_classes = num_classes
        like = self.conv_stem.weight
        with isolated_global_state(0, "constructors"):
            self.classifier = self._make_classifier(num_classes).to(like)
        if isinstance(self.classifier, nn.Linear):
            for parameter in self.classifier.parameters():
                draw_uniform(parameter, self.head_hidden_size, torch_generator(0, "classifier"))

    def _make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()


def build_shared(
    arch: MobileNetArch,
    settings: MobileNetSettings,
    drop_path_rates: Sequence[float] = (),
    dropout: float = 0.0,
) -> MobileNet:
    """Builds the network of `arch` with a projection around the first block of every stage.

    The plain network has none if the widths at both ends of the block are equal, but there are
    subnets whose widths differ there.
    """
    network = MobileNet(arch, settings, drop_path_rates, dropout)
    if settings.shortcut == "projected":
        for spec in block_specs(arch, settings):
            if spec.block == 0 and "project" not in spec.shortcut:
                block: Any = network.get_submodule(spec.layer.removesuffix("."))
                block.shortcut = Shortcut(
                    spec.in_width, spec.out_width, pools=spec.stride > 1, projects=True
                )
    return network


def draw_uniform(parameter: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """PyTorch's default for convolutions and linear layers: uniform within 1/sqrt(fan_in)."""
    nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
