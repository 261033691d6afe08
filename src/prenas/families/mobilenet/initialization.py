"""Initialises a network, and prepares it for scoring."""

from __future__ import annotations

import torch
from torch import nn

from prenas.families.mobilenet.blocks import Block, WideningBlock
from prenas.families.mobilenet.network import draw_uniform


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's defaults, except that the last BatchNorm of a block with a shortcut starts at zero.

    So the block starts as its shortcut (Goyal et al. 2017, arXiv 1706.02677). In a block without a
    shortcut, such as one that changes the width in a network with identity shortcuts, a weight of
    zero would block the signal.
    """
    fan_in = 1
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()  # a bias follows its weight
        if _is_norm(name):
            is_zero = name.endswith("weight") and _ends_branch(network, name)
            nn.init.constant_(parameter, 0.0 if is_zero or name.endswith("bias") else 1.0)
        else:
            draw_uniform(parameter, fan_in, generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()


def _is_norm(name: str) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] in ("bn1", "bn2", "bn3")


def _ends_branch(network: nn.Module, name: str) -> bool:
    """Whether this BatchNorm is the last of a block that has a shortcut."""
    path, _, norm = name.removesuffix(".weight").rpartition(".")
    block = network.get_submodule(path)
    last = "bn3" if isinstance(block, WideningBlock) else "bn2"
    return isinstance(block, Block) and norm == last and block.kind != "none"


def prepare_for_scoring(network: nn.Module) -> None:
    """Normalises by batch statistics, as in training, and sets every BatchNorm weight to 1.

    With a weight of zero, no gradient would reach the inside of a block. With running statistics,
    which no image has set yet, a different function would be scored.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
