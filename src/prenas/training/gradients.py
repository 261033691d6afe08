"""The gradient of a step: one full-size, contiguous buffer behind all parameters.

Subnets are views, so their gradients arrive full-size and zero outside what they own. Keeping all
`.grad` tensors as views of one buffer makes a step's gradient one vector: however many subnets a
step trains, they add up in it; several processes add it up once; clipping is one norm; and an
optimiser always sees the same tensors, whichever layers the step left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class GradientBuffer:
    """Owns the `.grad` of the given parameters, all of one type and on one device."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, num_extras: int = 0) -> None:
        """`extras` are further numbers that travel with the gradient from process to process."""
        parameters = list(parameters)
        total = sum(parameter.numel() for parameter in parameters)
        like = parameters[0]
        self.message = torch.zeros(total + num_extras, dtype=like.dtype, device=like.device)
        """The whole buffer, what processes add up: the gradient, then the extras."""
        self.flat, self.extras = self.message[:total], self.message[total:]
        start = 0
        for parameter in parameters:
            view = self.flat[start : start + parameter.numel()].view_as(parameter)
            parameter.grad = view
            start += parameter.numel()

    def zero(self) -> None:
        """Starts a step. Use this, never `optimizer.zero_grad()`, which would drop the views."""
        self.message.zero_()

    def norm(self) -> Tensor:
        """The L2 norm of the whole gradient; not finite if any part of it is not."""
        norm: Tensor = torch.linalg.vector_norm(self.flat)
        return norm

    def clip(self, norm: Tensor, max_norm: float) -> None:
        """Scales the whole gradient, of that L2 norm, so that it is at most `max_norm`."""
        self.flat.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))

    def clip_values(self, limit: float) -> None:
        """Moves every element of the gradient into [-limit, limit]."""
        self.flat.clamp_(-limit, limit)
