"""AdamW that updates only what a step sampled: moments, decay and step counts per element.

Plain AdamW moves every weight at every step: outside the sampled subnets the gradient is zero, but
momentum and decay still act, and the moments fade. Here the moments, decay and bias correction of
an element advance only at steps whose subnets own it, as if it had an optimiser that ran only at
those steps (Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101, applied per element).

Every subnet owns a box of each of its tensors. The union of the boxes is cut into boxes that do not
overlap, and AdamW's step is taken on views of these; elements outside them are never touched. The
views are kept for the next step of the same subnets, in blocks that fit into a CPU's cache.
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

_BLOCK = 2**16  # elements; in float32 the step reads and writes two MiB for them

State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Weight, gradient, first and second moment and step counts, all of the same shape."""


class _Kept(NamedTuple):
    """Views to reuse in the next step of the same subnets."""

    owned: Mapping[Tensor, Sequence[Box]]
    addresses: list[int]
    """Addresses of the viewed tensors, which must not have moved."""
    blocks: list[list[list[list[Tensor]]]]
    """For each parameter group its blocks, each as lists of weights, gradients and so on."""


class MaskedAdamW(torch.optim.Optimizer):
    """AdamW restricted to boxes of the tensors; equal to AdamW if everything is owned."""

    most_kept = MOST_KEPT
    """Number of subnets, or of sets of subnets, whose views are kept from step to step."""

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
        """Updates the owned part of every parameter.

        Args:
            owned: parameter -> boxes, whose union the step sampled; parameters that are missing
                are not changed. Pass the same object again for the same boxes: that is faster.
        """
        for group, blocks in zip(self.param_groups, self._blocks(owned), strict=True):
            for block in blocks:
                _move(block, group)

    def _blocks(self, owned: Mapping[Tensor, Sequence[Box]]) -> list[list[list[list[Tensor]]]]:
        states = [
            [
                (self._state_of(parameter), owned[parameter])
                for parameter in group["params"]
                if parameter.grad is not None and owned.get(parameter)
            ]
            for group in self.param_groups
        ]
        # Step counts are created and replaced together with the moments.
        addresses = [
            tensor.data_ptr() for group in states for state, _ in group for tensor in state[:3]
        ]
        kept = self._kept.get(id(owned))
        if kept is None or kept.owned is not owned or kept.addresses != addresses:
            kept = _Kept(owned, addresses, [list(_in_blocks(group)) for group in states])
            self._kept.pop(id(owned), None)
            if len(self._kept) == self.most_kept:
                del self._kept[next(iter(self._kept))]
            self._kept[id(owned)] = kept
        return kept.blocks

    def _state_of(self, parameter: Tensor) -> State:
        state = self.state[parameter]
        if not state:
            for name in ("exp_avg", "exp_avg_sq", "steps"):
                state[name] = torch.zeros_like(parameter)
        assert parameter.grad is not None, "left out above"
        return parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["steps"]


def _in_blocks(states: Iterable[tuple[State, Sequence[Box]]]) -> Iterator[list[list[Tensor]]]:
    """Views of the boxes, transposed to lists; on a CPU no list has more than `_BLOCK` elements.

    A CPU reads a block a dozen times, which is fast if the block fits into its cache; an
    accelerator is fastest with everything in one call.
    """
    block: list[tuple[Tensor, ...]] = []
    size = 0
    for state, boxes in states:
        limit = _BLOCK if state[0].device.type == "cpu" else math.inf
        for box in disjoint(boxes):
            for views in _in_pieces([tensor[box] for tensor in state], limit):
                if block and size + views[0].numel() > limit:
                    yield [list(tensors) for tensors in zip(*block, strict=True)]
                    block, size = [], 0
                block.append(views)
                size += views[0].numel()
    if block:
        yield [list(tensors) for tensors in zip(*block, strict=True)]


def _in_pieces(views: Sequence[Tensor], limit: float) -> Iterable[tuple[Tensor, ...]]:
    """The views, split along their first dimension until they fit or are single rows."""
    first = views[0]
    if first.numel() <= limit:
        return [tuple(views)]
    rows = max(1, int(limit * len(first) // first.numel()))
    return zip(*(view.split(rows) for view in views), strict=True)  # type: ignore[no-untyped-call]


def _move(lists: Sequence[list[Tensor]], group: Mapping[str, Any]) -> None:
    """AdamW's step on lists of weights, gradients, moments and step counts per element."""
    weights, gradients, means, squares, steps = lists
    lr, (beta1, beta2) = group["lr"], group["betas"]
    torch._foreach_add_(steps, 1)
    torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    # beta ** steps - 1, accurate even if it is small
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
    """Boxes that do not overlap and have the same union."""
    return _disjoint({tuple((part.start, part.stop) for part in box) for box in boxes})


def _disjoint(boxes: set[tuple[tuple[int, int], ...]]) -> list[Box]:
    """The same for boxes given as (start, stop) pairs, slab by slab along the first dimension."""
    outer = {box for box in boxes if not any(_is_within(box, o) for o in boxes if o != box)}
    if len(outer) == 1:
        return [tuple(slice(*part) for part in box) for box in outer]
    result: list[Box] = []
    for start, stop in pairwise(sorted({edge for box in outer for edge in box[0]})):
        inner = {box[1:] for box in outer if box[0][0] <= start and stop <= box[0][1]}
        result += [(slice(start, stop), *box) for box in _disjoint(inner)]
    return result


def _is_within(box: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> bool:
    return all(o[0] <= b[0] and b[1] <= o[1] for b, o in zip(box, other, strict=True))
