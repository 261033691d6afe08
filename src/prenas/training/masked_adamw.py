"""AdamW that touches only what a step sampled: moments, decay and step counts per element.

Plain AdamW moves every weight at every step: where a subnet owns nothing the gradient is zero, but
momentum and decay act on it, and the moments fade. Here an element's moments, decay and bias
correction advance only at steps whose subnets own it, as if it were alone in an optimiser that ran
at those steps (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101, applied per element).

Subnets own boxes of every tensor. Their union is cut into boxes that do not overlap, and the step
is AdamW's on views of them: what nobody owns is never looked at. The views are kept for the next
step of the same subnets, in blocks that fit into a processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prenas.families.base import Box
from prenas.training.subnets import MOST_KEPT

_BLOCK = 2**16  # elements: all that the step reads and writes of them is two MiB in float32

Place = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Weight, gradient, first and second moment, steps: all of one shape."""


class _Kept(NamedTuple):
    """Views for the next step of the same subnets."""

    owned: Mapping[Tensor, Sequence[Box]]
    addresses: list[int]
    """Of the tensors that were viewed, which must not have moved."""
    blocks: list[list[list[list[Tensor]]]]
    """Per group of parameters: blocks, each as lists of weights, gradients and so on."""


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
        self._kept: dict[int, _Kept] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._kept = {}

    @torch.no_grad()
    def step(self, owned: Mapping[Tensor, Sequence[Box]]) -> None:  # type: ignore[override]
        """Moves the owned part of every parameter.

        Args:
            owned: parameter -> boxes, whose union the step sampled; absent ones stay.
                The same object means the same boxes in a later step, which is then faster.
        """
        for group, blocks in zip(self.param_groups, self._blocks(owned), strict=True):
            for block in blocks:
                _move(block, group)

    def _blocks(self, owned: Mapping[Tensor, Sequence[Box]]) -> list[list[list[list[Tensor]]]]:
        places = [
            [
                (self._place(parameter), owned[parameter])
                for parameter in group["params"]
                if parameter.grad is not None and owned.get(parameter)
            ]
            for group in self.param_groups
        ]
        # Steps are made and replaced together with the moments.
        addresses = [
            tensor.data_ptr() for group in places for place, _ in group for tensor in place[:3]
        ]
        kept = self._kept.get(id(owned))
        if kept is None or kept.owned is not owned or kept.addresses != addresses:
            kept = _Kept(owned, addresses, [list(_in_blocks(group)) for group in places])
            self._kept.pop(id(owned), None)
            if len(self._kept) == MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[id(owned)] = kept
        return kept.blocks

    def _place(self, parameter: Tensor) -> Place:
        state = self.state[parameter]
        if not state:
            for name in ("exp_avg", "exp_avg_sq", "steps"):
                state[name] = torch.zeros_like(parameter)
        assert parameter.grad is not None, "left out above"
        return parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["steps"]


def _in_blocks(places: Iterable[tuple[Place, Sequence[Box]]]) -> Iterator[list[list[Tensor]]]:
    """Views of the boxes, transposed to lists; on a CPU no list has more than `_BLOCK` elements.

    A processor goes through a block a dozen times and should find it in its cache; an accelerator
    wants as much as there is in one call.
    """
    block: list[tuple[Tensor, ...]] = []
    size = 0
    for place, boxes in places:
        limit = _BLOCK if place[0].device.type == "cpu" else math.inf
        for box in disjoint(boxes):
            for views in _in_pieces([tensor[box] for tensor in place], limit):
                if block and size + views[0].numel() > limit:
                    yield [list(tensors) for tensors in zip(*block, strict=True)]
                    block, size = [], 0
                block.append(views)
                size += views[0].numel()
    if block:
        yield [list(tensors) for tensors in zip(*block, strict=True)]


def _in_pieces(views: Sequence[Tensor], limit: float) -> Iterable[tuple[Tensor, ...]]:
    """The same views, cut along their first dimension until they fit, or are single rows."""
    first = views[0]
    if first.numel() <= limit:
        return [tuple(views)]
    rows = max(1, int(limit * len(first) // first.numel()))
    return zip(*(view.split(rows) for view in views), strict=True)  # type: ignore[no-untyped-call]


def _move(lists: Sequence[list[Tensor]], group: Mapping[str, Any]) -> None:
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
    """Boxes that do not overlap, of the same union."""
    return _disjoint({tuple((part.start, part.stop) for part in box) for box in boxes})


def _disjoint(boxes: set[tuple[tuple[int, int], ...]]) -> list[Box]:
    """The same for boxes of (start, stop), slab by slab along the first dimension."""
    outer = {box for box in boxes if not any(_is_within(box, o) for o in boxes if o != box)}
    if len(outer) == 1:
        return [tuple(slice(*part) for part in box) for box in outer]
    found: list[Box] = []
    for start, stop in pairwise(sorted({edge for box in outer for edge in box[0]})):
        inner = {box[1:] for box in outer if box[0][0] <= start and stop <= box[0][1]}
        found += [(slice(start, stop), *box) for box in _disjoint(inner)]
    return found


def _is_within(box: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> bool:
    return all(o[0] <= b[0] and b[1] <= o[1] for b, o in zip(box, other, strict=True))
