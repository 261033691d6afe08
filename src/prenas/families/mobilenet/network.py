"""The plain MobileNet-like network of exactly one architecture, made of timm's blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d, create_act_layer, get_act_layer, make_divisible
from timm.models._efficientnet_blocks import (
    ConvBnAct,
    DepthwiseSeparableConv,
    InvertedResidual,
    SqueezeExcite,
)
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, dropout, interpolate

from prenas.families.base import Box, Shape, TensorRole, Work
from prenas.families.mobilenet.space import Activation, MobileNetArch, MobileNetSettings
from prenas.randomness import isolated_global_state, torch_generator

squeeze_excite = partial(
    SqueezeExcite,
    gate_layer="hard_sigmoid",
    force_act_layer=nn.ReLU,
    rd_round_fn=make_divisible,
)


class BlockSpec(NamedTuple):
    """All that decides the tensors and the work of one block, whatever network it stands in."""

    stage: int
    """From 1; the stem is stage 0."""
    block: int
    in_width: int
    hidden: int
    out_width: int
    kernel: int
    stride: int
    se: bool
    act: Activation
    expansion: bool
    shortcut: str
    """`none`, `identity`, `pool`, `project` or `pool and project`."""

    @property
    def layer(self) -> str:
        """What its parameter names begin with."""
        return f"blocks.{self.stage - 1}.{self.block}."


def block_specs(arch: MobileNetArch, settings: MobileNetSettings) -> Iterator[BlockSpec]:
    """Every block of a network, from the input on."""
    for number, stage in enumerate(arch.stages):
        for block in range(stage.depth):
            in_width = stage.width if block else arch.widths[number]
            stride = 1 if block else stage.stride
            yield BlockSpec(
                stage=number + 1,
                block=block,
                in_width=in_width,
                hidden=stage.hidden(block, in_width),
                out_width=stage.width,
                kernel=stage.kernel[block],
                stride=stride,
                se=stage.se,
                act=stage.act,
                expansion=stage.expansion,
                shortcut=_shortcut(stride, in_width != stage.width, settings.shortcut),
            )


def _shortcut(stride: int, projects: bool, kind: str) -> str:
    if kind == "identity":
        return "none" if stride > 1 or projects else "identity"
    parts = ["pool"] * (stride > 1) + ["project"] * projects
    return " and ".join(parts) or "identity"


class Shortcut(nn.Module):
    """What stands around a block whose ends differ: pooled if it strides, projected to its width.

    The projection is a 1x1 convolution without bias or normalisation.
    """

    def __init__(self, in_width: int, out_width: int, *, pools: bool, projects: bool) -> None:
        super().__init__()
        self.pools = pools
        self.conv = nn.Conv2d(in_width, out_width, 1, bias=False) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], of odd sides one half and a border of zeros."""
        if self.pools:
            x = avg_pool2d(x, 2, 2, padding=(x.shape[2] % 2, x.shape[3] % 2))
        return self.conv(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Adds the shortcut to a block of timm's; its tensors have the names that timm gives them.

    Mixed into `InvertedResidual` and `DepthwiseSeparableConv`, both without a shortcut of theirs.
    """

    rate: float
    """Of stochastic depth, which acts where the shortcut is an identity."""
    kind: str
    shortcut: nn.Module

    def add_shortcut(self, spec: BlockSpec, rate: float) -> None:
        """Completes a block of timm's that was just made."""
        self.kind, self.rate = spec.shortcut, rate if spec.shortcut == "identity" else 0.0
        if spec.shortcut not in ("none", "identity"):
            self.shortcut = Shortcut(
                spec.in_width,
                spec.out_width,
                pools="pool" in spec.shortcut,
                projects="project" in spec.shortcut,
            )

    @property
    def drop_prob(self) -> float:
        """Rate of stochastic depth, by timm's name."""
        return self.rate

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']; `noise` [B] in [0, 1) decides which branches to drop."""
        branch: Tensor = super().forward(x)
        if self.kind == "none":
            return branch
        if self.training and self.rate:
            if noise is None:
                noise = torch.rand(len(x), device=x.device)
            kept = (noise >= self.rate).to(branch.dtype) / (1.0 - self.rate)
            branch = branch * kept[:, None, None, None]
        return branch + (x if self.kind == "identity" else self.shortcut(x))


class WideningBlock(Block, InvertedResidual):
    """Widens, convolves depthwise, narrows."""


class NarrowBlock(Block, DepthwiseSeparableConv):
    """Convolves depthwise, then to the output width; for stages without expansion."""


def _block(spec: BlockSpec, rate: float) -> Block:
    common: dict[str, Any] = {
        "dw_kernel_size": spec.kernel,
        "stride": spec.stride,
        "noskip": True,
        "act_layer": get_act_layer(spec.act),
        "se_layer": squeeze_excite if spec.se else None,
    }
    block: Block
    if spec.expansion:
        ratio = spec.hidden / spec.in_width
        block = WideningBlock(spec.in_width, spec.out_width, exp_ratio=ratio, **common)
    else:
        block = NarrowBlock(spec.in_width, spec.out_width, **common)
    block.add_shortcut(spec, rate)
    return block


class MobileNet(nn.Module):
    """Stem, stages of inverted residual blocks, and the head of MobileNetV3.

    Names and layers are those of timm's `MobileNetV3`, which this is, weights included, where
    shortcuts are identities. Built without initialisation: `initialize` fills it.
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
        rates = tuple(drop_path_rates) or (0.0,) * arch.num_blocks
        if len(rates) < arch.num_blocks:
            raise ValueError(f"{len(rates)} drop-path rates for {arch.num_blocks} blocks")
        stride = settings.stem_stride
        self.conv_stem = nn.Conv2d(
            settings.in_chans, arch.stem, 3, stride=stride, padding=1, bias=False
        )
        self.bn1 = BatchNormAct2d(arch.stem, act_layer=get_act_layer(settings.stem_act))
        stages: list[list[nn.Module]] = [[] for _ in arch.stages]
        for spec, rate in zip(block_specs(arch, settings), rates, strict=False):
            stages[spec.stage - 1].append(_block(spec, rate))
        act = get_act_layer(settings.head_act)
        stages.append([ConvBnAct(arch.widths[-1], last, 1, act_layer=act)])
        self.blocks = nn.ModuleList(nn.ModuleList(stage) for stage in stages)
        self.conv_head = nn.Conv2d(last, arch.head, 1, bias=False)
        self.act2 = create_act_layer(settings.head_act)
        self.classifier = self._make_classifier(settings.num_classes)

    def forward_features(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> feature maps [B, channels, height', width']."""
        expected = (self.settings.in_chans, *self.settings.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, but this network takes "
                f"(batch, {expected[0]} channels, {expected[1]}, {expected[2]}): resize the "
                "images, or build the network with another image_size or in_chans"
            )
        self._check_noise(images, noise)
        side = self.arch.resolution
        if side is not None and (side, side) != expected[1:]:
            images = interpolate(images, (side, side), mode="bicubic", align_corners=False)
        x = self.bn1(self.conv_stem(images))
        place = 0
        for stage in self.blocks[:-1]:
            for block in stage:
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
                pooled = dropout(pooled, self.drop_rate)
            else:
                kept = noise[:, -pooled.shape[1] :] >= self.drop_rate
                pooled = pooled * kept.to(pooled.dtype) / (1.0 - self.drop_rate)
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes].

        `noise` [B, blocks or more], uniform in [0, 1), decides in training which branches are
        dropped, and by its last columns, one per feature, which features; without it the global
        generator decides.
        """
        return self.forward_head(self.forward_features(images, noise), noise=noise)

    def _check_noise(self, images: Tensor, noise: Tensor | None) -> None:
        needed = self.arch.num_blocks + (self.arch.head if self.drop_rate else 0)
        if noise is not None and (
            noise.ndim != 2 or len(noise) != len(images) or noise.shape[1] < needed
        ):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, but {len(images)} images through "
                f"{self.arch.num_blocks} blocks need ({len(images)}, {needed} or more)"
            )

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimiser factory must not decay, beside biases and norms."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the layers for timm's layer-wise decay: stem, blocks (the last with the head
        convolution after it), and, matched by none, the classifier."""
        blocks = r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"
        return {
            "stem": r"^conv_stem|bn1",
            "blocks": [(blocks, None), (r"^conv_head", (99999,))],
        }

    def get_classifier(self) -> nn.Module:
        """The linear classifier."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one of `num_classes` outputs; 0 gives pooled features.

        Its weights are drawn from a generator of their own, the same at every call.

        Raises:
            ValueError: another pooling than the mean over the map.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool {global_pool!r}: this network only has 'avg'")
        self.settings = self.settings.model_copy(update={"num_classes": num_classes})
        self.num_classes = num_classes
        like = self.conv_stem.weight
        with isolated_global_state(0, "constructors"):
            self.classifier = self._make_classifier(num_classes).to(like)
        if isinstance(self.classifier, nn.Linear):
            for parameter in self.classifier.parameters():
                draw_classifier(parameter, self.head_hidden_size, torch_generator(0, "classifier"))

    def _make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()


def build_shared(
    arch: MobileNetArch,
    settings: MobileNetSettings,
    drop_path_rates: Sequence[float] = (),
    dropout: float = 0.0,
) -> MobileNet:
    """The network of `arch` with a projection around the first block of every stage.

    Where the two widths of the largest network are equal it has none, but subnets whose widths
    differ there do.
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


def owned_box(name: str, shape: Shape, full: Shape) -> Box:
    """Leading channels of every tensor, and the centre of its kernels."""
    if len(shape) != 4:
        return tuple(slice(0, size) for size in shape)
    starts = (0, 0, (full[2] - shape[2]) // 2, (full[3] - shape[3]) // 2)
    return tuple(slice(start, start + size) for start, size in zip(starts, shape, strict=True))


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's defaults; the last BatchNorm of every block with a shortcut begins at zero.

    So every block begins as its shortcut (Goyal et al. 2017, arXiv 1706.02677). Without one, as at
    the ends of stages with identity shortcuts, zero would end the signal there.
    """
    assert isinstance(network, MobileNet), f"not a MobileNet: {type(network)}"
    fan_in = 1
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()  # a bias follows its weight
        if _is_norm(name):
            is_zero = name.endswith("weight") and _ends_branch(network, name)
            nn.init.constant_(parameter, 0.0 if is_zero or name.endswith("bias") else 1.0)
        else:
            draw_classifier(parameter, fan_in, generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()


def draw_classifier(parameter: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """PyTorch's default of convolutions and linear layers: within 1/sqrt(fan_in)."""
    nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)


def _is_norm(name: str) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] in ("bn1", "bn2", "bn3")


def _ends_branch(network: nn.Module, name: str) -> bool:
    """Whether this BatchNorm is the last of a block that has a shortcut."""
    path, _, norm = name.removesuffix(".weight").rpartition(".")
    block = network.get_submodule(path)
    last = "bn3" if isinstance(block, WideningBlock) else "bn2"
    return isinstance(block, Block) and norm == last and block.kind != "none"


def prepare_for_scoring(network: nn.Module) -> None:
    """Batch statistics, as in training, and every BatchNorm weight 1.

    At a weight of zero no gradient would reach the inside of a block, and statistics that no image
    has set would score another function.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


def layers(arch: MobileNetArch) -> tuple[str, ...]:
    """What the parameter names of every block begin with."""
    return tuple(
        f"blocks.{number}.{block}."
        for number, stage in enumerate(arch.stages)
        for block in range(stage.depth)
    )


def drop_path_rates(arch: MobileNetArch, rate: float) -> tuple[float, ...]:
    """`rate * i / blocks` for block i of the last two stages, 0 before (as AttentiveNAS)."""
    first = arch.num_blocks - sum(stage.depth for stage in arch.stages[-2:])
    return tuple(
        rate * block / arch.num_blocks if block >= first else 0.0
        for block in range(arch.num_blocks)
    )


def work(arch: MobileNetArch, settings: MobileNetSettings) -> list[Work]:
    """Multiply-accumulates of one image; normalisation, activations, pooling, sums are free."""
    side = arch.resolution
    sides = settings.image_size if side is None else (side, side)
    height, width = (-(-one // settings.stem_stride) for one in sides)
    parts = [
        Work(TensorRole(0, None), 9 * settings.in_chans * arch.stem * height * width),
    ]
    for spec in block_specs(arch, settings):
        before = height * width
        height, width = (-(-one // spec.stride) for one in (height, width))
        after = height * width
        macs = spec.hidden * spec.kernel**2 * after + spec.hidden * spec.out_width * after
        if spec.expansion:
            macs += spec.in_width * spec.hidden * before
        if spec.se:
            macs += 2 * spec.hidden * int(make_divisible(spec.hidden * 0.25))
        if "project" in spec.shortcut:
            macs += spec.in_width * spec.out_width * after
        parts.append(Work(TensorRole(spec.stage, spec.block), macs))
    last = int(arch.widths[-1] * settings.head_expand)
    head = arch.widths[-1] * last * height * width
    head += last * arch.head + arch.head * settings.num_classes
    return [*parts, Work(TensorRole(len(arch.stages) + 1, None), head)]
