"""AdamW that touches only what a step sampled: moments, decay and step counts per element.

Plain AdamW moves every weight at every step: where a subnet owns nothing the gradient is zero, but
momentum and decay act on it, and the moments fade. Here an element's moments, decay and bias
correction advance only at steps whose subnets own it, as if it were alone in an optimiser that ran
at those steps (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101, applied per element).

Subnets own leading boxes. Their union is cut into boxes that do not overlap, and the step is
AdamW's on views of these: what nobody owns is never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prenas.families.base import Box


class MaskedAdamW(torch.optim.Optimizer):
    """AdamW whose step is confined to boxes of the tensors; equal to AdamW where all is owned."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, owned: Mapping[Tensor, Sequence[Box]]) -> None:  # type: ignore[override]
        """Moves the owned part of every parameter.

        Args:
            owned: parameter -> leading boxes, whose union the step sampled; absent ones stay.
        """
        for group in self.param_groups:
            parts = [
                [tensor[box] for tensor in self._tensors(parameter)]
                for parameter in group["params"]
                if parameter.grad is not None
                for box in disjoint(owned.get(parameter, ()))
            ]
            if parts:
                _move([list(tensors) for tensors in zip(*parts, strict=True)], group)

    def _tensors(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """Weight, gradient, first and second moment, steps: all of one shape."""
        state = self.state[parameter]
        if not state:
            for name in ("exp_avg", "exp_avg_sq", "steps"):
                state[name] = torch.zeros_like(parameter)
        assert parameter.grad is not None, "left out above"
        return parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["steps"]


def _move(lists: list[list[Tensor]], group: Mapping[str, Any]) -> None:
    """AdamW's step on lists of weights, gradients, moments, and steps taken per element."""
    weights, gradients, means, squares, steps = lists
    lr, (beta1, beta2) = group["lr"], group["betas"]
    torch._foreach_add_(steps, 1)
    torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    # beta ** steps - 1, exact also where it is small
    first, second = (torch._foreach_mul(steps, math.log(beta)) for beta in (beta1, beta2))
    torch._foreach_expm1_(first)
    torch._foreach_expm1_(second)
    # mean / (1 - beta1 ** steps) / (sqrt(square / (1 - beta2 ** steps)) + eps)
    torch._foreach_neg_(second)
    denominators = torch._foreach_div(squares, second)
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, group["eps"])
    torch._foreach_mul_(denominators, first)
    torch._foreach_addcdiv_(weights, means, denominators, value=lr)


def disjoint(boxes: Iterable[Box]) -> list[Box]:
    """Boxes that do not overlap, of the same union as some leading boxes."""
    return _disjoint({tuple(part.stop for part in box) for box in boxes})


def _disjoint(ends: set[tuple[int, ...]]) -> list[Box]:
    """The same for boxes from the origin to these ends, slab by slab along the first dimension."""
    outer = {end for end in ends if not any(_is_within(end, o) for o in ends if o != end)}
    if len(outer) == 1:
        return [tuple(slice(0, size) for size in end) for end in outer]
    found: list[Box] = []
    start = 0
    for stop in sorted({end[0] for end in outer}):
        inner = _disjoint({end[1:] for end in outer if end[0] >= stop})
        found += [(slice(start, stop), *box) for box in inner]
        start = stop
    return found


def _is_within(end: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(size <= limit for size, limit in zip(end, other, strict=True))
