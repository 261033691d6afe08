"""Losses against the formulas of the papers, written out."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from prenas.recipe import TeacherRecipe, TrainingRecipe
from prenas.training.objective import balanced_weights, label_loss, taught_loss

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, OTHER = torch.randn(2, 7, 5, generator=GENERATOR).double()
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def probabilities(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(dim=1, keepdim=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_are_smoothed_over_all_classes(smoothing: float) -> None:
    recipe = TrainingRecipe(epochs=1, label_smoothing=smoothing)
    target = torch.eye(5).double()[LABELS] * (1 - smoothing) + smoothing / 5
    expected = -(target * probabilities(STUDENT).log()).sum(dim=1).mean()
    torch.testing.assert_close(label_loss(STUDENT, LABELS, recipe), expected)
    shares = torch.eye(5).double()[LABELS]  # as mixing gives them
    torch.testing.assert_close(label_loss(STUDENT, shares, recipe), expected)


@pytest.mark.parametrize("share", [0.5, 0.1, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_soft_teacher_is_equation_2_of_deit(share: float, temperature: float) -> None:
    """(1 - lambda) L_CE(psi(Z_s), y) + lambda tau^2 KL(psi(Z_s / tau), psi(Z_t / tau)), where
    the divergence is taken from the teacher, as everywhere in distillation."""
    recipe = TeacherRecipe(name="x", loss="soft", share=share, temperature=temperature)
    labels = torch.tensor(1.7).double()
    ours, theirs = probabilities(STUDENT / temperature), probabilities(OTHER / temperature)
    divergence = (theirs * (theirs / ours).log()).sum(dim=1).mean()
    expected = (1 - share) * labels + share * temperature**2 * divergence
    torch.testing.assert_close(taught_loss(labels, STUDENT, OTHER, recipe), expected)


def test_a_hard_teacher_is_equation_3_of_deit() -> None:
    """1/2 L_CE(psi(Z_s), y) + 1/2 L_CE(psi(Z_s), y_t), y_t the decision of the teacher."""
    plain = TrainingRecipe(epochs=1, label_smoothing=0.0)
    labels = label_loss(STUDENT, LABELS, plain)
    rows, log = torch.arange(7), probabilities(STUDENT).log()
    expected = -log[rows, LABELS].mean() / 2 - log[rows, OTHER.argmax(dim=1)].mean() / 2
    found = taught_loss(labels, STUDENT, OTHER, TeacherRecipe(name="x"))
    torch.testing.assert_close(found, expected)


def test_balanced_weights_are_the_inverse_of_the_sizes() -> None:
    """As scikit-learn's `balanced`: N / (classes * count)."""
    labels = [0] * 480 + [1] * 24 + [2] * 4
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = balanced_weights([480, 24, 4], num_classes=3)
    torch.testing.assert_close(found.double(), torch.tensor(expected), atol=1e-6, rtol=1e-6)
    each = found[torch.tensor(labels)]
    assert each.mean() == pytest.approx(1.0)
    assert [float(each[torch.tensor(labels) == n].sum()) for n in range(3)] == pytest.approx(
        [508 / 3] * 3, rel=1e-5
    )


def test_classes_without_images_have_no_weight() -> None:
    assert balanced_weights([2, 0, 6], num_classes=5).tolist() == pytest.approx(
        [8 / (2 * 2), 0, 8 / (2 * 6), 0, 0]
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weighted_loss_counts_images_by_their_class(smoothing: float) -> None:
    """The mean over the images of weight times loss; a mixed image has the mean of its weights."""
    recipe = TrainingRecipe(epochs=1, label_smoothing=smoothing)
    weights = torch.tensor([0.5, 2.0, 1.0, 4.0, 0.25]).double()
    each = [label_loss(STUDENT[[n]], LABELS[[n]], recipe) for n in range(7)]
    expected = sum(weights[LABELS[n]] * each[n] for n in range(7)) / 7
    torch.testing.assert_close(label_loss(STUDENT, LABELS, recipe, weights), expected)
    shares = torch.eye(5).double()[LABELS]
    torch.testing.assert_close(label_loss(STUDENT, shares, recipe, weights), expected)
    mixed = 0.3 * shares + 0.7 * shares.flip(0)
    one_by_one = [label_loss(STUDENT[[n]], mixed[[n]], recipe) for n in range(7)]
    by_hand = sum((mixed[n] @ weights) * one_by_one[n] for n in range(7)) / 7
    torch.testing.assert_close(label_loss(STUDENT, mixed, recipe, weights), by_hand)
    ones = torch.ones(5).double()
    torch.testing.assert_close(
        label_loss(STUDENT, LABELS, recipe, ones), label_loss(STUDENT, LABELS, recipe)
    )
