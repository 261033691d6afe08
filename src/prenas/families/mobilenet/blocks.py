"""timm's blocks with our own shortcut, and with stochastic depth from given random numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import drop_path, get_act_layer, make_divisible, register_notrace_module
from timm.models._efficientnet_blocks import (
    DepthwiseSeparableConv,
    InvertedResidual,
    SqueezeExcite,
)
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from prenas.families.mobilenet.parts import BlockSpec

squeeze_excite = partial(
    SqueezeExcite,
    gate_layer="hard_sigmoid",
    force_act_layer=nn.ReLU,
    rd_round_fn=make_divisible,
)


@register_notrace_module  # whether it pads depends on shapes, which a trace does not know
class Shortcut(nn.Module):
    """The shortcut around a block whose input and output differ.

    It pools if the block has a stride, and projects if the width changes, by a 1x1 convolution
    without bias or normalisation.
    """

    def __init__(self, in_width: int, out_width: int, *, pools: bool, projects: bool) -> None:
        super().__init__()
        self.pools = pools
        self.conv = nn.Conv2d(in_width, out_width, 1, bias=False) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']; odd sides are padded with zeros before pooling."""
        if self.pools:
            height, width = x.shape[2] % 2, x.shape[3] % 2
            if height or width:
                # Not padded by avg_pool2d: on CUDA, its gradient for channels-last maps ignores
                # the border.
                x = pad(x, (width, width, height, height))
            x = avg_pool2d(x, 2)
        return self.conv(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Adds the shortcut to one of timm's blocks, whose tensors keep timm's names.

    A mixin for `InvertedResidual` and `DepthwiseSeparableConv`, built without timm's shortcut.
    """

    rate: float
    """Rate of stochastic depth, which only acts if the shortcut is an identity."""
    kind: str
    shortcut: nn.Module

    def add_shortcut(self, spec: BlockSpec, rate: float) -> None:
        """Adds the shortcut and the drop rate to a block that timm's constructor has built."""
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
        """Rate of stochastic depth, under timm's name."""
        return self.rate

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']; `noise` [B] in [0, 1) decides which branches to drop."""
        branch: Tensor = super().forward(x)
        if self.kind == "none":
            return branch
        if noise is None:
            branch = drop_path(branch, self.rate, self.training)
        elif self.training and self.rate:
            kept = (noise >= self.rate).to(branch.dtype) / (1.0 - self.rate)
            branch = branch * kept[:, None, None, None]
        return branch + (x if self.kind == "identity" else self.shortcut(x))


class WideningBlock(Block, InvertedResidual):
    """Expands the width, convolves depthwise and projects to the output width."""


class NarrowBlock(Block, DepthwiseSeparableConv):
    """Convolves depthwise and projects to the output width; for stages without expansion."""


def make_block(spec: BlockSpec, rate: float) -> Block:
    """Builds the block of a spec, with this rate of stochastic depth."""
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
