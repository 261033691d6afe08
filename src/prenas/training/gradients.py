"""The gradient of a step: one full-size, contiguous buffer behind all parameters.

Subnets are views, so their gradients are full-size, and zero outside the part that they own. With
all `.grad` tensors as views of one buffer, the gradient of a step is a single vector: the gradients
of all its subnets add up in it, several processes reduce it once, clipping needs one norm, and the
optimiser always sees the same tensors, whichever layers the step left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class GradientBuffer:
    """Owns the `.grad` of the given parameters, which must share one dtype and device."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, num_extras: int = 0) -> None:
        """Makes a buffer with `num_extras` further numbers, which are reduced with the gradient."""
        parameters = list(parameters)
        total = sum(parameter.numel() for parameter in parameters)
        like = parameters[0]
        self.message = torch.zeros(total + num_extras, dtype=like.dtype, device=like.device)
        """The buffer that the processes add up: the gradient, then the extras."""
        self.flat, self.extras = self.message[:total], self.message[total:]
        start = 0
        for parameter in parameters:
            view = self.flat[start : start + parameter.numel()].view_as(parameter)
            parameter.grad = view
            start += parameter.numel()

    def zero(self) -> None:
        """Starts a step. Never call `optimizer.zero_grad()` instead: it would drop the views."""
        self.message.zero_()

    def norm(self) -> Tensor:
        """The L2 norm of the gradient; not finite if any part of it is not finite."""
        norm: Tensor = torch.linalg.vector_norm(self.flat)
        return norm

    def clip(self, norm: Tensor, max_norm: float) -> None:
        """Scales the gradient, whose L2 norm is `norm`, down to at most `max_norm`."""
        self.flat.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))

    def clip_values(self, limit: float) -> None:
        """Clamps every element of the gradient to [-limit, limit]."""
        self.flat.clamp_(-limit, limit)
