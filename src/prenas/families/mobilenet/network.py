"""The plain MobileNet-like network of exactly one architecture, made of timm's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_act_layer, get_act_layer
from timm.models._efficientnet_blocks import ConvBnAct
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from prenas.families.base import check_images
from prenas.families.habits import (
    record_image_size,
    require_pooling,
    with_image_size,
    without_proxy,
)
from prenas.families.interpolation import deployed_with
from prenas.families.mobilenet.arch import MobileNetArch, MobileNetSettings
from prenas.families.mobilenet.blocks import Block, Shortcut, make_block
from prenas.families.mobilenet.parts import block_specs
from prenas.randomness import isolated_global_state, torch_generator


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, height, width] -> [B, C, *size]."""
    return interpolate(images, size, mode="bicubic", align_corners=False)


class MobileNet(nn.Module):
    """Stem, stages of inverted residual blocks, and the head of MobileNetV3.

    Layers and names are those of timm's `MobileNetV3`; with identity shortcuts the two networks
    are the same, and have the same state dict. It is built uninitialised: `initialize` fills it.
    """

    grad_checkpointing = False
    """Whether blocks are computed again in the backward pass, to save memory."""

    def __init__(
        self,
        arch: MobileNetArch,
        settings: MobileNetSettings,
        drop_path_rates: Sequence[float] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.arch, self.settings = arch, settings
        self.num_classes, self.in_chans = settings.num_classes, settings.in_chans
        self.global_pool = "avg"
        self.feature_info = feature_info(arch, settings)
        last: int = self.feature_info[-1]["num_chs"]
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
        noise = without_proxy(noise)
        check_images(images, self.settings)
        self._check_noise(images, noise)
        x = self._stem(images)
        place = 0
        for stage in self.blocks:
            x = self._applied(stage, x, noise, place)
            place += len(stage)  # type: ignore[arg-type]
        return x

    def _stem(self, images: Tensor) -> Tensor:
        """[B, in_chans, height, width] -> what the first block takes."""
        side = self.arch.resolution
        if side is not None and (side, side) != self.settings.image_size:
            images = resized(images, (side, side))
        # With channels last, convolutions of this kind take two thirds of the time on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        return self.bn1(self.conv_stem(images))  # type: ignore[no-any-return]

    def _applied(self, stage: Any, x: Tensor, noise: Tensor | None, place: int) -> Tensor:
        """One stage; `place` is the column of the noise for its first block."""
        for number, block in enumerate(stage, start=place):
            inputs: tuple[Tensor | None, ...] = (x,)
            if isinstance(block, Block):  # not the last convolution, which drops nothing
                inputs = (x, None if noise is None else noise[:, number])
            if self.grad_checkpointing:
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps at several resolutions, those of `feature_info`, as timm gives them.

        Args:
            x: images [B, in_chans, height, width].
            indices: numbers of levels, or how many of the last; None for all.
            norm: without effect; the maps are normalised.
            stop_early: compute nothing after the last level that is asked for.
            output_fmt: NCHW is the only one.
            intermediates_only: leave out the features of the last block.

        Returns:
            (features of the last block, list of maps [B, channels, height', width']).

        Raises:
            ValueError: the images have another shape, or the format is unknown.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: choose 'NCHW'")
        check_images(x, self.settings)
        levels, last = feature_take_indices(len(self.feature_info), indices)
        wanted = {self.feature_info[level]["stage"] for level in levels}
        end = self.feature_info[last]["stage"]
        x = self._stem(x)
        found = [x] if 0 in wanted else []
        for number, stage in enumerate(self.blocks[:end] if stop_early else self.blocks, start=1):
            x = self._applied(stage, x, None, 0)
            if number in wanted:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes what these intermediates do not need, in place; returns the numbers of their
        levels. The head goes with the last stages."""
        levels, last = feature_take_indices(len(self.feature_info), indices)
        end = self.feature_info[last]["stage"]
        loses_stages = end < len(self.blocks)
        if loses_stages:
            self.num_features = self.feature_info[last]["num_chs"]
        self.blocks = self.blocks[:end]
        if prune_head or loses_stages:
            self.conv_head, self.act2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, "")
        return levels

    def forward_head(
        self, features: Tensor, pre_logits: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """Maps [B, channels, H, W] -> logits [B, num_classes], or the pooled features [B, D].

        With `global_pool=""`, the map [B, D, H, W] of the head convolution.
        """
        noise = without_proxy(noise)
        if not self.global_pool:
            return self.act2(self.conv_head(features))  # type: ignore[no-any-return]
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

        Args:
            global_pool: "avg" for the mean over the map, "" for the map itself, which needs 0
                classes; None keeps what it is.

        Raises:
            ValueError: another pooling was asked for.
        """
        pooling = self.global_pool if global_pool is None else global_pool
        require_pooling(pooling, num_classes)
        self.global_pool = pooling
        self.settings = self.settings.model_copy(update={"num_classes": num_classes})
        self.num_classes = num_classes
        like = self.conv_stem.weight
        with isolated_global_state(0, "constructors"):
            self.classifier = self._make_classifier(num_classes)
        if isinstance(self.classifier, nn.Linear):
            for parameter in self.classifier.parameters():  # drawn on the processor
                draw_uniform(parameter, self.head_hidden_size, torch_generator(0, "classifier"))
        self.classifier.to(like)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Computes blocks again in the backward pass instead of keeping their activations.

        Stochastic depth drops the same again; BatchNorm counts every batch twice, as in timm.
        """
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int] | None = None) -> None:
        """Takes images of another size from now on; the weights suit any."""
        if img_size is not None:
            self.settings = with_image_size(self.settings, img_size, self.num_classes)
            record_image_size(self, self.settings.image_size)

    def _make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()


def feature_info(arch: MobileNetArch, settings: MobileNetSettings) -> list[dict[str, Any]]:
    """The last map of every resolution, as timm describes the features of a network."""
    reduction: int = settings.stem_stride
    levels: list[dict[str, Any]] = []
    if arch.stages[0].stride > 1:
        levels.append({"module": "bn1", "stage": 0, "num_chs": arch.stem, "reduction": reduction})
    for number, stage in enumerate(arch.stages, start=1):
        reduction *= stage.stride
        if number < len(arch.stages) and arch.stages[number].stride > 1:
            levels.append(
                {
                    "module": f"blocks.{number - 1}",
                    "stage": number,
                    "num_chs": stage.width,
                    "reduction": reduction,
                }
            )
    levels.append(
        {
            "module": f"blocks.{len(arch.stages)}",
            "stage": len(arch.stages) + 1,
            "num_chs": int(arch.widths[-1] * settings.head_expand),
            "reduction": reduction,
        }
    )
    return levels


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


def deployed(network: nn.Module) -> nn.Module:
    """The network as it is exported."""
    assert isinstance(network, MobileNet)
    return deployed_with(network, network.arch.resolution, resized)
