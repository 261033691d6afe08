"""Comparing an exported file with the network that it was written from."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prenas.devices.formats import Runner, logits_of
from prenas.values import Value

MOST_DIFFERENCE = 1e-5
"""Between logits of float32 files and of their network, relative to the largest logit; where the
network itself is further from its exact logits, `TIMES_ROUNDING` times that."""
TIMES_ROUNDING = 4
_NUM_EXACT = 32
_BATCHES = (1, 2, 5)
"""Sizes that a file for any number of images is run with."""


class Agreement(Value):
    """A file next to its network, on the same images."""

    num_images: int
    difference: float
    """Largest difference of a logit, relative to the largest logit of the network."""
    rounding: float
    """The same between the network in float32 and in float64, on the first images."""
    same_class: float
    """Share of the images (0 to 1) that both put into the same class."""
    top1: float | None = None
    """Accuracy of the file on these images; None without labels."""
    top1_of_network: float | None = None

    @property
    def allowed(self) -> float:
        """The difference that rounding explains."""
        return max(MOST_DIFFERENCE, TIMES_ROUNDING * self.rounding)


class Labelled(NamedTuple):
    """Images [B, C, H, W] with their labels [B]; None if nobody knows them."""

    images: Tensor
    labels: Tensor | None


def agreement(
    run: Runner, network: nn.Module, batches: Iterable[Labelled], batch: int | None
) -> Agreement:
    """Runs a file and its network on the same images.

    Args:
        run: the file in its engine.
        network: in evaluation mode, on the CPU.
        batches: at least one.
        batch: images per call of the file; None for any number, and then several numbers are tried.

    Raises:
        ValueError: a logit of the file is not finite, or there are not as many as images.
    """
    number = same = right = right_of_network = 0
    difference = scale = rounding = 0.0
    has_labels = True
    exact = deepcopy(network).double()
    for images, labels in batches:
        for part, classes in _parts(images, labels, batch, is_first=number == 0):
            found = _logits(run, part, batch)
            with torch.inference_mode():
                expected = network(part).float()
                if number < _NUM_EXACT:
                    error = (exact(part.double()) - expected).abs().max()
                    rounding = max(rounding, float(error))
            difference = max(difference, float((found - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
            ours, theirs = found.argmax(1), expected.argmax(1)
            number += len(part)
            same += int((ours == theirs).sum())
            has_labels &= classes is not None
            if classes is not None:
                right += int((ours == classes).sum())
                right_of_network += int((theirs == classes).sum())
    return Agreement(
        num_images=number,
        difference=difference / scale,
        rounding=rounding / scale,
        same_class=same / number,
        top1=right / number if has_labels else None,
        top1_of_network=right_of_network / number if has_labels else None,
    )


def _parts(
    images: Tensor, labels: Tensor | None, batch: int | None, *, is_first: bool
) -> Iterable[Labelled]:
    """The images in the numbers that a file takes; a file for any number is tried with several."""
    sizes = [len(images)]
    if batch is not None:
        sizes = [batch] * -(-len(images) // batch)
    elif is_first:
        small = [size for size in _BATCHES if sum(_BATCHES) <= len(images)]
        sizes = [*small, len(images) - sum(small)]
    start = 0
    for size in sizes:
        if len(part := images[start : start + size]):
            yield Labelled(part, None if labels is None else labels[start : start + size])
        start += size


def _logits(run: Runner, images: Tensor, batch: int | None) -> Tensor:
    """[B, num_classes]; ValueError unless they are finite."""
    found = logits_of(run, images, batch)
    if not torch.isfinite(found).all():
        raise ValueError("the file returned logits that are not finite")
    return found
