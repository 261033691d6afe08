"""A network compiled by `torch.compile`, with a way back.

The preferred set is small and a training's batches have one size, so every subnet is one static
graph. What does not fit the graph, the smaller batch at the end of an epoch, runs uncompiled; so
does everything after the compiler has failed.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

_MOST_GRAPHS = 256  # PyTorch gives up after 8 graphs of one function, which all subnets share

_logger = logging.getLogger(__name__)


class Compiled:
    """Runs a network in compiled form on batches of one size; its weights stay its own."""

    def __init__(self, network: nn.Module, num_images: int) -> None:
        import torch._dynamo as dynamo

        limit = dynamo.config.recompile_limit
        dynamo.config.recompile_limit = max(limit, _MOST_GRAPHS)
        self._failure: type[Exception] = dynamo.exc.TorchDynamoException
        self._network, self._num_images = network, num_images
        self._compiled: Any = torch.compile(network, dynamic=False)
        self._works = True

    def __call__(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Logits [B, num_classes]; see the network's own call."""
        if self._works and len(images) == self._num_images:
            try:
                return self._compiled(images, noise)  # type: ignore[no-any-return]
            except self._failure as error:
                self._works = False
                reason = str(error).strip().partition("\n")[0]
                _logger.warning(
                    "torch.compile failed (%s): this subnet is trained uncompiled, to the same "
                    "end. Compiling needs a C++ compiler on a processor, Triton on a GPU",
                    reason,
                )
        return self._network(images, noise)  # type: ignore[no-any-return]
