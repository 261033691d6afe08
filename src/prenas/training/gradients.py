"""The gradient of a step: one full-size, contiguous buffer behind all parameters.

Subnets are views, so their gradients arrive full-size and zero outside what they own. Keeping all
`.grad` tensors as views of one buffer makes a step's gradient one vector: however many subnets a
step trains, they add up in it; several processes reduce it once; clipping is one norm; and an
optimiser always sees the same tensors, whichever layers the step left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class GradientBuffer:
    """Owns the `.grad` of the given parameters, all of one type and on one device."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        total = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.zeros(total, dtype=parameters[0].dtype, device=parameters[0].device)
        start = 0
        for parameter in parameters:
            view = self.flat[start : start + parameter.numel()].view_as(parameter)
            parameter.grad = view
            start += parameter.numel()

    def zero(self) -> None:
        """Starts a step. Use this, never `optimizer.zero_grad()`, which would drop the views."""
        self.flat.zero_()

    def clip(self, max_norm: float) -> None:
        """Scales the whole gradient so that its L2 norm is at most `max_norm`."""
        norm = torch.linalg.vector_norm(self.flat)
        self.flat.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
