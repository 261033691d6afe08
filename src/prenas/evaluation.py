"""Evaluation: accuracy and loss of subnets, each as the plain network it will be handed over as."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import SerializeAsAny
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prenas.cost import count
from prenas.data import ImageSource, evaluation_batches
from prenas.families.base import Arch, Settings
from prenas.supernet import Supernet
from prenas.values import Value

_TOP5_FROM_CLASSES = 20  # with fewer, five guesses say little


class Metrics(Value):
    """Results on one split."""

    top1: float
    """Share of images, 0 to 1, whose highest logit is the label's."""
    top5: float | None
    """The same for the five highest logits; None below 20 classes."""
    loss: float
    """Mean cross-entropy, without label smoothing."""
    num_images: int


class Evaluation(Value):
    """One subnet: what it is, costs and achieves. Choose by `validation`; only report `test`."""

    arch: SerializeAsAny[Arch]
    params: int
    macs: int
    splits: dict[str, Metrics]


@torch.inference_mode()
def evaluate_network(
    network: nn.Module, source: ImageSource, settings: Settings, *, batch_size: int = 256
) -> Metrics:
    """Accuracy and loss of a network in evaluation mode over a whole split.

    Raises:
        ValueError: an empty split, or data that do not suit the network.
    """
    device = next(network.parameters()).device
    totals, num_images = torch.zeros(3, dtype=torch.float64), 0
    with_top5 = settings.num_classes >= _TOP5_FROM_CLASSES
    for images, labels in evaluation_batches(source, settings, batch_size):
        labels = labels.to(device)
        logits = network(images.to(device)).float()
        totals += torch.stack(
            [
                _hits(logits, labels, 1),
                _hits(logits, labels, 5) if with_top5 else torch.zeros((), device=device),
                cross_entropy(logits, labels, reduction="sum"),
            ]
        ).cpu()
        num_images += len(labels)
    if num_images == 0:
        raise ValueError("the split is empty: there is nothing to evaluate on")
    if not torch.isfinite(totals).all():
        raise ValueError(
            "the loss is not finite: the weights or the images are not. Train again with a lower "
            "training.lr_per_512_images, or mend the data"
        )
    top1, top5, loss = (totals / num_images).tolist()
    return Metrics(top1=top1, top5=top5 if with_top5 else None, loss=loss, num_images=num_images)


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many labels are among the k highest logits."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).sum().float()


def evaluate_arch(
    supernet: Supernet, arch: Arch, splits: Mapping[str, ImageSource], *, batch_size: int = 256
) -> Evaluation:
    """Evaluates any architecture that fits into the supernet on every split."""
    network = supernet.cut(arch).eval()
    cost = count(arch, supernet.settings)
    return Evaluation(
        arch=arch,
        params=cost.params,
        macs=cost.macs,
        splits={
            name: evaluate_network(network, source, supernet.settings, batch_size=batch_size)
            for name, source in splits.items()
        },
    )
