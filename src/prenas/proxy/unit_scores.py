"""How important every hidden unit of a trained network is, by its response to labelled images.

At random weights these scores say little; at trained weights they say which units a smaller network
should keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prenas.families.units import UnitGroup, num_kept
from prenas.proxy.scores import UnitScoreName
from prenas.randomness import torch_generator


def unit_scores(
    network: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    score: UnitScoreName,
    seed: int = 0,
) -> list[Tensor]:
    """The score [units] of every unit, in double precision on the CPU; higher is better.

    The network is put into evaluation mode, so that the gradients of different images do not
    influence each other.

    - `gate`: sqrt of the sum over images of (sum over positions of a * dL/da)^2, where `a` is what
      the layer after the unit receives from it and L the image's cross-entropy. This is the
      first-order estimate of what removing the unit does to the loss of each image (Molchanov et
      al., CVPR 2019, without the mean over a batch).
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
    network = network.eval()
    if score == "random":
        generator = torch_generator(seed, "unit scores")
        return [
            torch.rand(num_kept(network, group), generator=generator, dtype=torch.float64)
            for group in groups
        ]
    if score in ("weight", "weight_times_gradient"):
        elements = _weight_elements(network, batches if score != "weight" else None)
        found = [_per_unit(elements, group, num_kept(network, group)) for group in groups]
    else:
        found = _gates(network, groups, batches, per_image=score == "gate")
    for group, scores in zip(groups, found, strict=True):
        if not torch.isfinite(scores).all():
            raise ValueError(
                f"the scores of the {group.axis} before {group.consumer} are not finite: check "
                "that the weights and the images are finite"
            )
    return found


def _gates(
    network: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    per_image: bool,
) -> list[Tensor]:
    numbers = [num_kept(network, group) for group in groups]
    totals = [torch.zeros(number, dtype=torch.float64) for number in numbers]
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs[name] = arguments[0]

        return hook

    consumers = {group.consumer: network.get_submodule(group.consumer) for group in groups}
    hooks = [one.register_forward_pre_hook(keep(name)) for name, one in consumers.items()]
    has_images = False
    try:
        for images, labels in batches:
            has_images = True
            loss = cross_entropy(network(images), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [inputs[group.consumer] for group in groups])
            for group, total, gradient in zip(groups, totals, gradients, strict=True):
                effect = (inputs[group.consumer].detach() * gradient).double().cpu()
                is_map = isinstance(consumers[group.consumer], nn.Conv2d)
                slices = effect.movedim(1 if is_map else -1, 0)  # [slices, images, ...]
                units = slices.reshape(len(total), -1, *slices.shape[1:])
                each = units.movedim(2, 1).flatten(2).sum(-1)  # [units, images]
                total += each.square().sum(1) if per_image else each.sum(1)
            inputs.clear()
    finally:
        for hook in hooks:
            hook.remove()
    if not has_images:
        raise ValueError("no images given: scoring units needs at least one")
    return [total.sqrt() if per_image else total.abs() for total in totals]


def _weight_elements(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]] | None
) -> dict[str, Tensor]:
    """|w|, or |w * g| if there are images, of every trained tensor."""
    parameters = dict(network.named_parameters())
    if batches is None:
        return {name: one.detach().abs().double().cpu() for name, one in parameters.items()}
    totals = {name: torch.zeros_like(one) for name, one in parameters.items()}
    for images, labels in batches:
        loss = cross_entropy(network(images), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total += gradient
    return {
        name: (parameters[name].detach() * total).abs().double().cpu()
        for name, total in totals.items()
    }


def _per_unit(elements: Mapping[str, Tensor], group: UnitGroup, number: int) -> Tensor:
    total = torch.zeros(number, dtype=torch.float64)
    for part in group.tensors:
        if part.name in elements:
            own = elements[part.name].movedim(part.dim, 0)
            total += own.reshape(number, -1).sum(1)
    return total
