"""First weights, and how a network is made ready to be scored."""

from __future__ import annotations

import torch
from torch import nn

from prenas.families.mobilenet.blocks import Block, WideningBlock
from prenas.families.mobilenet.network import draw_uniform


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's defaults; the last BatchNorm of every block with a shortcut begins at zero.

    So every block begins as its shortcut (Goyal et al. 2017, arXiv 1706.02677). Without one, as at
    the ends of stages with identity shortcuts, zero would end the signal there.
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
    """Batch statistics, as in training, and every BatchNorm weight 1.

    At a weight of zero no gradient would reach the inside of a block, and statistics that no image
    has set would score another function.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
