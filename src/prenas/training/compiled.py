"""A network compiled by `torch.compile`, with the plain network as a fallback.

The preferred set is small and a training's batches all have the same size, so every subnet is one
static graph. The smaller batch at the end of an epoch does not fit the graph and runs uncompiled;
so does everything after a failure of the compiler.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from prenas.training.features import Answer

_MOST_GRAPHS = 256  # PyTorch compiles one function at most 8 times; all subnets share it

_logger = logging.getLogger(__name__)


class Compiled:
    """Runs a network compiled on batches of one size; the weights remain those of the network."""

    def __init__(self, network: nn.Module, num_images: int) -> None:
        from torch._dynamo.exc import TorchDynamoException

        limit = torch.compiler.config.recompile_limit
        torch.compiler.config.recompile_limit = max(limit, _MOST_GRAPHS)
        self._failure: type[Exception] = TorchDynamoException
        self._network, self._num_images = network, num_images
        self._compiled: Any = torch.compile(network, dynamic=False)
        self._works = True

    def __call__(self, images: Tensor, noise: Tensor | None) -> Tensor | Answer:
        """What the network itself returns."""
        if self._works and len(images) == self._num_images:
            try:
                return self._compiled(images, noise)  # type: ignore[no-any-return]
            except self._failure as error:
                self._works = False
                reason = str(error).strip().partition("\n")[0]
                _logger.warning(
                    "torch.compile failed (%s): this subnet is trained without compiling, with the "
                    "same result. Compiling needs a C++ compiler on a CPU and Triton on a GPU",
                    reason,
                )
        return self._network(images, noise)  # type: ignore[no-any-return]
