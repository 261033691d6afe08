"""One backward pass at initialisation: the gradient of every weight (method.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prenas.families.base import Arch
from prenas.precision import float32_products
from prenas.randomness import torch_generator
from prenas.supernet import Supernet

_FEWEST_IMAGES = 8
"""Smallest batch for networks that use batch statistics; 8 and 32 chose the same subnets."""


class Importance(NamedTuple):
    """The full-size weights w of the scored supernet, by name, and their gradients g, taken at the
    largest subnet."""

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]


def noise_images(
    num_images: int,
    in_chans: int,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
) -> Tensor:
    """Data-free images [B, C, H, W]: independent normals with the data's mean and deviation.

    They go into the network without further normalisation.
    """
    generator = torch_generator(seed, "importance images")
    images = torch.randn(num_images, in_chans, *image_size, generator=generator)
    per_channel = (1, in_chans, 1, 1)
    return images * torch.tensor(std).view(per_channel) + torch.tensor(mean).view(per_channel)


def measure_importance(
    supernet: Supernet,
    largest: Arch,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    batch_size: int = 4,
) -> Importance:
    """Gradient of one scalar at the subnet `largest`, for all weights of the supernet.

    The scalar is the sum of all logits of all images, or, with labels, the mean cross-entropy.

    The supernet keeps its weights: the family prepares a copy of the network (in evaluation mode
    unless it chooses otherwise), and the result contains the copy's weights. Nothing is dropped,
    so the result is deterministic (the original leaves stochastic depth on).

    To bound the memory, images pass in small batches, whose gradients are summed. Networks that
    normalise by batch statistics get equal batches of at least eight images (if there are that
    many), because statistics of fewer images mean little.

    Raises:
        ValueError: there are no images, a gradient is not finite, or a matrix of the largest subnet
            that S sums over has a gradient of zero, so that its importance would be meaningless.
    """
    network = deepcopy(supernet.network)
    supernet.family.prepare_for_scoring(network)
    prepared = supernet.with_network(network)
    prepared.drop_path_rates, prepared.dropout = dict.fromkeys(prepared.drop_path_rates, 0.0), 0.0
    parameters = dict(network.named_parameters())
    total: list[Tensor] | None = None
    device = images.device.type
    with (
        torch.enable_grad(),  # whatever the caller has switched off or on
        torch.autocast(device, enabled=False),
        float32_products("fp32", images.device),
    ):
        for batch in _batches(len(images), batch_size, supernet.has_statistics):
            logits = prepared(images[batch], largest)
            scalar = (
                logits.sum()
                if labels is None
                else cross_entropy(logits, labels[batch], reduction="sum") / len(images)
            )
            gradients = torch.autograd.grad(
                scalar, list(parameters.values()), materialize_grads=True
            )
            if total is None:  # copies, because autograd may return gradients that share memory
                total = [gradient.clone() for gradient in gradients]
            else:
                for sum_so_far, gradient in zip(total, gradients, strict=True):
                    sum_so_far += gradient
            del logits, scalar, gradients  # frees their memory before the next batch
    if total is None:
        raise ValueError("no images given: computing importance needs at least one")
    importance = Importance(
        {name: parameter.detach().cpu() for name, parameter in parameters.items()},
        {name: gradient.cpu() for name, gradient in zip(parameters, total, strict=True)},
    )
    _check(importance, supernet, largest)
    return importance


def _batches(num_images: int, batch_size: int, are_equal: bool) -> list[slice]:
    """Batches of this size and a smaller rest, or equal ones of at least this size and eight."""
    if not are_equal:
        return [slice(start, start + batch_size) for start in range(0, num_images, batch_size)]
    number = max(num_images // max(batch_size, _FEWEST_IMAGES), 1)
    ends = [num_images * part // number for part in range(number + 1)]
    return [slice(*pair) for pair in pairwise(ends) if num_images]


def _check(importance: Importance, supernet: Supernet, largest: Arch) -> None:
    """Refuses gradients that are not finite, and scored matrices whose gradient is all zero."""
    owned = supernet.owned_boxes(largest)
    for name, gradient in importance.gradients.items():
        if not torch.isfinite(gradient).all():
            raise ValueError(
                f"the gradient of {name} is not finite at initialisation: check that the images "
                "are finite and normalised, or choose another seed"
            )
        is_matrix = gradient.ndim > 1 and supernet.family.is_scored(name)
        if is_matrix and name in owned and not gradient.any():
            raise ValueError(
                f"the gradient of {name} is zero everywhere at initialisation, so the weight "
                "cannot be scored: check the initialisation of the network"
            )
