"""How important every hidden unit of a trained network is, by its response to labelled images.

At random weights these scores say little; at trained weights they say which units a smaller network
should keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prenas.families.units import UnitGroup, num_kept
from prenas.precision import float32_products
from prenas.proxy.scores import UnitScoreName
from prenas.randomness import torch_generator


class UnitScores(NamedTuple):
    """Scores of the units of every group, each [units] in double precision on the CPU."""

    scores: list[Tensor]
    """From all images."""
    halves: tuple[list[Tensor], list[Tensor]] | None
    """From every second image alone, beginning with the first and with the second; None for a
    score that needs no images."""

    @property
    def roots(self) -> UnitScores:
        """The square root of every score: `gate` for `fisher`."""
        halves = self.halves and (
            [*map(torch.sqrt, self.halves[0])],
            [*map(torch.sqrt, self.halves[1])],
        )
        return UnitScores([*map(torch.sqrt, self.scores)], halves)


def unit_scores(
    network: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    score: UnitScoreName,
    seed: int = 0,
) -> UnitScores:
    """The score of every unit; higher is better.

    The network is put into evaluation mode, so that the gradients of different images do not
    influence each other.

    - `gate`: sqrt of the sum over images of (sum over positions of a * dL/da)^2, where `a` is what
      the layer after the unit receives from it and L the image's cross-entropy. This is the
      first-order estimate of what removing the unit does to the loss of each image (Molchanov et
      al., CVPR 2019, without the mean over a batch).
    - `fisher`: the square of `gate`. Half of it is the second-order estimate of how much the loss
      rises, with the Fisher information in place of the Hessian (Theis et al., arXiv 1801.05787;
      for groups of layers Liu et al., ICML 2021, arXiv 2108.00708). The units of a layer get the
      order that `gate` gives them; layers get other shares.
    - `gate_sum`: the absolute value of the same terms, summed over images before.
    - `weight_times_gradient`: sum of |w * g| over the unit's weights, the gradient summed over
      images: PreNAS' score S, per unit.
    - `weight`: sum of |w| over the unit's weights (L1).
    - `random`: uniform numbers, a control.

    Args:
        batches: (images [B, C, H, W], labels [B]) of the network's classes.

    Raises:
        ValueError: there are no images, or a score is not finite.
    """
    network, device = network.eval(), next(network.parameters()).device
    if score == "random":
        generator = torch_generator(seed, "unit scores")
        drawn = [
            torch.rand(num_kept(network, group), generator=generator, dtype=torch.float64)
            for group in groups
        ]
        return UnitScores(drawn, None)
    if score == "weight":
        found = UnitScores(_per_unit(network, groups, None), None)
    elif score == "weight_times_gradient":
        with float32_products("fp32", device):
            first, second = _gradients(network, batches)
        total = {name: first[name] + second[name] for name in first}
        halves = _per_unit(network, groups, first), _per_unit(network, groups, second)
        found = UnitScores(_per_unit(network, groups, total), halves)
    else:
        with float32_products("fp32", device):
            found = _gates(network, groups, batches, *_FORMS[score])
    for group, scores in zip(groups, found.scores, strict=True):
        if not torch.isfinite(scores).all():
            raise ValueError(
                f"the scores of the {group.axis} before {group.consumer} are not finite: check "
                "that the weights and the images are finite"
            )
    return found


def _by_half(
    batches: Iterable[tuple[Tensor, Tensor]],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The images and labels of either half (0 or 1): every second image of the whole stream."""
    read = 0
    for images, labels in batches:
        for half in (0, 1):
            own = slice((half + read) % 2, None, 2)
            if len(labels[own]):
                yield half, images[own], labels[own]
        read += len(labels)
    if not read:
        raise ValueError("no images given: scoring units needs at least one")


_FORMS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gate": (torch.square, torch.sqrt),
    "gate_sum": (torch.clone, torch.abs),
    "fisher": (torch.square, torch.clone),
}
"""Score -> what is done with the terms of each image, and with their sum over images."""


def _gates(
    network: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Iterable[tuple[Tensor, Tensor]],
    of_image: Callable[[Tensor], Tensor],
    finish: Callable[[Tensor], Tensor],
) -> UnitScores:
    numbers = [num_kept(network, group) for group in groups]
    totals = [[torch.zeros(number, dtype=torch.float64) for number in numbers] for _ in range(2)]
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs[name] = arguments[0]

        return hook

    present = [group for group, number in zip(groups, numbers, strict=True) if number]
    consumers = {group.consumer: network.get_submodule(group.consumer) for group in present}
    hooks = [one.register_forward_pre_hook(keep(name)) for name, one in consumers.items()]
    try:
        for half, images, labels in _by_half(batches):
            loss = cross_entropy(network(images), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [inputs[group.consumer] for group in present])
            own_totals = [total for total in totals[half] if len(total)]
            for group, total, gradient in zip(present, own_totals, gradients, strict=True):
                effect = inputs[group.consumer].detach() * gradient
                if effect.device.type != "mps":  # which has no float64
                    effect = effect.double()
                is_map = isinstance(consumers[group.consumer], nn.Conv2d)
                slices = effect.movedim(1 if is_map else -1, 0)  # [slices, images, ...]
                units = slices.reshape(len(total), -1, *slices.shape[1:])
                each = units.movedim(2, 1).flatten(2).sum(-1)  # [units, images]
                total += of_image(each).sum(1).cpu()
            inputs.clear()
            del loss, gradients  # before the next images, for which there may be no room beside
    finally:
        for hook in hooks:
            hook.remove()
    first, second = totals
    both = [finish(one + other) for one, other in zip(first, second, strict=True)]
    return UnitScores(both, ([*map(finish, first)], [*map(finish, second)]))


_Gradients = Mapping[str, Tensor]


def _gradients(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[_Gradients, _Gradients]:
    """The gradient of every trained tensor, summed over the images of either half."""
    parameters = dict(network.named_parameters())
    totals = [{name: torch.zeros_like(one) for name, one in parameters.items()} for _ in range(2)]
    for half, images, labels in _by_half(batches):
        loss = cross_entropy(network(images), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for total, gradient in zip(totals[half].values(), gradients, strict=True):
            total += gradient
    return totals[0], totals[1]


def _per_unit(
    network: nn.Module, groups: Sequence[UnitGroup], gradients: _Gradients | None
) -> list[Tensor]:
    """Sums of |w|, or of |w * g| if there are gradients, over the tensors of every unit."""
    elements = {
        name: (one.detach() if gradients is None else one.detach() * gradients[name])
        for name, one in network.named_parameters()
    }
    elements = {name: one.abs().cpu().double() for name, one in elements.items()}
    return [_of_group(elements, group, num_kept(network, group)) for group in groups]


def _of_group(elements: Mapping[str, Tensor], group: UnitGroup, number: int) -> Tensor:
    total = torch.zeros(number, dtype=torch.float64)
    for part in group.tensors:
        if part.name in elements:
            own = elements[part.name].movedim(part.dim, 0)
            total += own.reshape(number, -1).sum(1)
    return total
