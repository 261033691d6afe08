"""Training losses: cross-entropy with the labels, optionally combined with a teacher's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from prenas.recipe import TeacherRecipe, TrainingRecipe


def label_loss(
    logits: Tensor, labels: Tensor, training: TrainingRecipe, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy with label smoothing, averaged over the images.

    Args:
        logits: [B, num_classes].
        labels: class indices [B], or class probabilities [B, num_classes].
        class_weights: the weight of an image by its class [num_classes]; of a mixed image, the
            mean of the weights. None: all images count the same.
    """
    smoothing = training.label_smoothing
    if class_weights is None:
        return cross_entropy(logits, labels, label_smoothing=smoothing)
    losses = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    weights = class_weights[labels] if labels.ndim == 1 else labels @ class_weights
    return (weights * losses).mean()


def balanced_weights(counts: Sequence[int], num_classes: int) -> Tensor:
    """Weights [num_classes] with which every class counts the same: N / (classes * count).

    Classes without images, which no loss will ask for, get 0 and are not counted.
    """
    padded = torch.zeros(num_classes, dtype=torch.float64)
    padded[: len(counts)] = torch.tensor(counts, dtype=torch.float64)
    weights = padded.sum() / ((padded > 0).sum() * padded)
    return torch.where(padded > 0, weights, 0.0).float()


def taught_loss(
    loss: Tensor, logits: Tensor, teacher_logits: Tensor, teacher: TeacherRecipe
) -> Tensor:
    """Weighted mean of the label loss and the teacher's (DeiT, arXiv 2012.12877, section 4).

    Soft: Kullback-Leibler divergence at a temperature T, times T squared (equation 2). Hard:
    cross-entropy with the teacher's decision (equation 3), as in PreNAS' released code.

    Args:
        loss: the label loss.
        logits: the student's, [B, num_classes].
        teacher_logits: [B, num_classes].
        teacher: the kind of loss, its temperature, and the teacher's share of the total.
    """
    if teacher.loss == "hard":
        told = cross_entropy(logits, teacher_logits.argmax(dim=1))
    else:
        ours, theirs = (
            log_softmax(one / teacher.temperature, dim=1) for one in (logits, teacher_logits)
        )
        told = kl_div(ours, theirs, reduction="batchmean", log_target=True)
        told = told * teacher.temperature**2
    return (1 - teacher.share) * loss + teacher.share * told
