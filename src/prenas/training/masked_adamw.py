"""AdamW that touches only what a step sampled: moments, decay and step counts per owned region.

Plain AdamW moves every weight at every step: where a subnet owns nothing the gradient is zero, but
momentum and decay act on it, and the moments fade. Here an element's moments, decay and bias
correction advance only at steps whose subnets own it, as if it were alone in an optimiser that ran
at those steps (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101, applied per element).

Step counts are kept per cell of a grid: subnets own leading boxes, so the edges of the boxes seen
so far cut a tensor into cells whose elements have always been owned together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prenas.families.base import Box

Edges = tuple[tuple[int, ...], ...]
"""Per dimension the upper ends of the cells, rising; the last is the size of the tensor."""


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
            for parameter in group["params"]:
                boxes = owned.get(parameter)
                if boxes and parameter.grad is not None:
                    self._move(parameter, boxes, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores moments and counts; counts stay on the CPU, where cells are worked out."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["counts"] = state["counts"].cpu()

    def _move(self, parameter: Tensor, boxes: Sequence[Box], group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["edges"] = tuple((size,) for size in parameter.shape)
            state["counts"] = torch.zeros([1] * parameter.ndim)
        ends = {tuple(part.stop for part in box) for box in boxes}
        for end in ends:
            _cut(state, end)
        edges: Edges = state["edges"]
        hull = tuple(max(sizes) for sizes in zip(*ends, strict=True))
        inner = tuple(slice(0, size) for size in hull)
        cells = tuple(slice(0, _cell(row, size)) for row, size in zip(edges, hull, strict=True))
        is_owned = torch.zeros_like(state["counts"][cells], dtype=torch.bool)
        for end in ends:
            is_owned[
                tuple(slice(0, _cell(r, size)) for r, size in zip(edges, end, strict=True))
            ] = 1
        state["counts"][cells] += is_owned

        weight, gradient = parameter[inner], parameter.grad[inner]  # type: ignore[index]
        mean, square = state["exp_avg"][inner], state["exp_avg_sq"][inner]
        if not is_owned.all():  # several boxes, none of which holds the others
            mask = _spread(is_owned, edges, hull).to(weight.device)
            kept = [tensor.clone() for tensor in (weight, mean, square)]
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        weight.mul_(1 - lr * group["weight_decay"])
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        counts = state["counts"][cells].double()
        first = lr / (1 - beta1**counts)
        second = (1 - beta2**counts).sqrt()
        if counts.min() == counts.max():
            denominator = (square.sqrt() / second.max().item()).add_(eps)
            weight.addcdiv_(mean, denominator, value=-first.max().item())
        else:
            per_element = [_spread(one.float(), edges, hull).to(weight) for one in (first, second)]
            denominator = (square.sqrt() / per_element[1]).add_(eps)
            weight.sub_(mean.mul(per_element[0]).div_(denominator))
        if not is_owned.all():
            for tensor, before in zip((weight, mean, square), kept, strict=True):
                tensor.copy_(torch.where(mask, tensor, before))


def _cell(edges: Sequence[int], size: int) -> int:
    """How many cells make up the leading `size` elements."""
    return bisect_left(edges, size) + 1


def _cut(state: dict[str, Any], end: Sequence[int]) -> None:
    """Cuts the cells at the edges of a leading box; both halves keep their count."""
    edges: list[tuple[int, ...]] = list(state["edges"])
    for dimension, size in enumerate(end):
        if size not in edges[dimension]:
            place = bisect_left(edges[dimension], size)
            halves = torch.ones(len(edges[dimension]), dtype=torch.long)
            halves[place] = 2
            state["counts"] = state["counts"].repeat_interleave(halves, dim=dimension)
            row = edges[dimension]
            edges[dimension] = (*row[:place], size, *row[place:])
    state["edges"] = tuple(edges)


def _spread(cells: Tensor, edges: Edges, hull: Sequence[int]) -> Tensor:
    """One value per cell -> one per element of the box `hull`, or of size 1 where all are equal."""
    for dimension, (row, size) in enumerate(zip(edges, hull, strict=True)):
        if cells.shape[dimension] > 1:
            ends = [end for end in row if end <= size]
            widths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
            cells = cells.repeat_interleave(torch.tensor(widths), dim=dimension)
    return cells
