"""What a subnet learns from: labels, and a teacher beside them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from prenas.recipe import TeacherRecipe, TrainingRecipe


def label_loss(logits: Tensor, labels: Tensor, recipe: TrainingRecipe) -> Tensor:
    """Cross-entropy with label smoothing, mean over the images.

    Args:
        logits: [B, num_classes].
        labels: class numbers [B], or shares of the classes [B, num_classes].
    """
    return cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)


def taught_loss(loss: Tensor, logits: Tensor, teacher: Tensor, recipe: TeacherRecipe) -> Tensor:
    """A share of the loss is the teacher's (DeiT, ICML 2021, arXiv 2012.12877, section 4).

    Soft: Kullback-Leibler divergence at a temperature T, times T squared (equation 2). Hard:
    cross-entropy with the teacher's decision (equation 3), as in PreNAS' released code.

    Args:
        loss: of the labels.
        teacher: its logits [B, num_classes].
    """
    if recipe.loss == "hard":
        told = cross_entropy(logits, teacher.argmax(dim=1))
    else:
        ours, theirs = (log_softmax(one / recipe.temperature, dim=1) for one in (logits, teacher))
        told = kl_div(ours, theirs, reduction="batchmean", log_target=True)
        told = told * recipe.temperature**2
    return (1 - recipe.share) * loss + recipe.share * told
