"""Images resized by two matrix products, for networks that are exported."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

Interpolation = Callable[[Tensor, tuple[int, int]], Tensor]
"""Images [B, C, height, width] and another size -> images [B, C, *size]; linear in the images."""


class Resized(nn.Module):
    """A network that resizes its images by two matrix products, which every engine does fast.

    ONNX Runtime takes longer to resize an image of 224 pixels bicubically than to compute a small
    network on it.

    Args:
        network: has `settings`, and resizes images that are not of the size in them.
        side: in pixels, to which it resizes them.
        interpolate: how it does so.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, network: Any, side: int, interpolate: Interpolation) -> None:
        super().__init__()
        height, width = network.settings.image_size
        self.register_buffer("rows", _weights(height, side, interpolate))
        self.register_buffer("columns", _weights(width, side, interpolate).T)
        self.network = deepcopy(network)
        self.network.settings = network.settings.changed(image_size=(side, side))

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes]."""
        logits: Tensor = self.network(self.rows @ images @ self.columns)
        return logits


def deployed_with(network: Any, side: int | None, interpolate: Interpolation) -> nn.Module:
    """The network as it is exported: unchanged if it does not resize its images."""
    if side is None or network.settings.image_size == (side, side):
        return network  # type: ignore[no-any-return]
    return Resized(network, side, interpolate)


def _weights(size: int, side: int, interpolate: Interpolation) -> Tensor:
    """[side, size] of the interpolation along one axis, which is linear."""
    lines = torch.eye(size, dtype=torch.float64)[None, None]
    return interpolate(lines, (size, side))[0, 0].T.float()
