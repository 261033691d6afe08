"""Random weights for a timm model, from one generator."""

from __future__ import annotations

import torch
from torch import nn


def prepare_for_scoring(network: nn.Module) -> None:
    """Networks with BatchNorm use the statistics of the batch: they have no others at the start."""
    kinds = nn.modules.batchnorm._BatchNorm
    network.train(any(isinstance(module, kinds) for module in network.modules()))


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Fills every parameter in place.

    Matrices and kernels get He's normal distribution, position embeddings and tokens a deviation
    of 0.02, factors (of norms and of layer scale) ones, and biases zeros.
    """
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif "bias" in name:
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)
