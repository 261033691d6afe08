"""In-place distillation: golden numbers, formulas written out, and what holds for any logits."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prenas.recipe import Distillation, TrainingRecipe
from prenas.training.distillation import (
    Divergence,
    adaptive_divergence,
    alpha_divergence,
    inplace_distillation_loss,
)
from prenas.training.objective import label_loss

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "cnn_losses.json").read_text()
)
"""Logits, and what losses and gradients were measured to be, rounded to seven digits."""
STUDENT, TEACHER = (
    torch.tensor(GOLDEN[name], dtype=torch.float64) for name in ("student_logits", "teacher_logits")
)
ALPHAS = (-1.0, 0.0, 0.5, 1.0, 2.0)
KINDS: tuple[Distillation, ...] = get_args(Distillation)


def graded(loss_of: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    """What a function of the student's logits gives, and its gradient."""
    logits = logits.clone().requires_grad_()
    loss = loss_of(logits)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def assert_golden(loss_of: Any, name: str, loss: float | None = None) -> None:
    for dtype in (torch.float64, torch.float32):
        found, gradient = graded(loss_of, STUDENT.to(dtype))
        expected = GOLDEN[name]["loss"] if loss is None else loss
        assert found.item() == pytest.approx(expected, abs=1e-6)
        torch.testing.assert_close(
            gradient.double(), torch.tensor(GOLDEN[name]["grad"]).double(), rtol=0, atol=1e-6
        )


# --- golden numbers ------------------------------------------------------------------------------


def test_every_golden_entry_is_compared() -> None:
    compared = {"smooth_ce_0.1", "soft_ce_kd", "adaptive_-1_1_clip5", "adaptive_picks_alpha_min"}
    compared |= {f"alpha_{alpha:g}_clip5" for alpha in ALPHAS}
    assert compared | {"student_logits", "teacher_logits", "labels"} == GOLDEN.keys()


def test_golden_labels() -> None:
    labels, recipe = torch.tensor(GOLDEN["labels"]), TrainingRecipe(epochs=1, label_smoothing=0.1)
    assert_golden(lambda logits: label_loss(logits, labels, recipe), "smooth_ce_0.1")


def test_golden_cross_entropy_and_kullback_leibler() -> None:
    """One gradient; the values differ by the teacher's entropy, which no student changes."""
    name, p = "soft_ce_kd", TEACHER.softmax(1)
    entropy = -(p * p.log()).sum(1).mean().item()
    divergence = sum(GOLDEN["alpha_1_clip5"]["divergence_per_sample"]) / 4
    for kind, loss in (("cross_entropy", None), ("kl", GOLDEN[name]["loss"] - entropy)):
        assert_golden(lambda q, k=kind: inplace_distillation_loss(q, TEACHER.to(q), k), name, loss)
    assert loss == pytest.approx(divergence, abs=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_golden_alpha_divergences(alpha: float) -> None:
    name = f"alpha_{alpha:g}_clip5"
    assert_golden(lambda q: alpha_divergence(q, TEACHER.to(q), alpha).surrogate.mean(), name)
    found = alpha_divergence(STUDENT, TEACHER, alpha).value.tolist()
    assert found == pytest.approx(GOLDEN[name]["divergence_per_sample"], abs=1e-6)


def test_golden_adaptive_divergence() -> None:
    """The surrogate is followed, the divergence of each image's own alpha is what is recorded."""
    name = "adaptive_-1_1_clip5"
    assert_golden(lambda q: adaptive_divergence(q, TEACHER.to(q)).surrogate.mean(), name)
    picked = [
        GOLDEN[f"alpha_{-1 if is_min else 1}_clip5"]["divergence_per_sample"][image]
        for image, is_min in enumerate(GOLDEN["adaptive_picks_alpha_min"])
    ]
    assert adaptive_divergence(STUDENT, TEACHER).value.tolist() == pytest.approx(picked, abs=1e-6)
    recorded = sum(picked) / 4
    assert_golden(lambda q: inplace_distillation_loss(q, TEACHER.to(q), "alpha"), name, recorded)
    assert recorded != pytest.approx(GOLDEN[name]["loss"], abs=0.1)


# --- properties ----------------------------------------------------------------------------------


def divergence_of(logits: Tensor, p: Tensor, alpha: float) -> Tensor:
    """D as a function that autograd can follow, without any clipping [B]."""
    q = logits.softmax(1)
    if alpha == 1:
        return (p * (p / q).log()).sum(1)
    if alpha == 0:
        return (q * (q / p).log()).sum(1)
    return (q * ((p / q) ** alpha - 1)).sum(1) / (alpha * (alpha - 1))


def logits(size: float, number: int = 2) -> st.SearchStrategy[Tensor]:
    """Some [3, 4] of logits in [-size, size]."""
    values = st.floats(-size, size)
    return st.lists(values, min_size=number * 12, max_size=number * 12).map(
        lambda drawn: torch.tensor(drawn, dtype=torch.float64).view(number, 3, 4)
    )


@given(pair=logits(0.4), alpha=st.sampled_from((-1.0, -0.5, 0.0, 0.3, 1.0)))
def test_the_surrogate_moves_as_the_divergence_where_nothing_is_clipped(
    pair: Tensor, alpha: float
) -> None:
    """Logits within 0.4 of 0 give ratios within e ** 1.6 of 1, less than 5."""
    student, teacher = pair
    p = teacher.softmax(1)
    expected, gradient = graded(lambda q: divergence_of(q, p, alpha).mean(), student)
    _, found = graded(lambda q: alpha_divergence(q, teacher, alpha).surrogate.mean(), student)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    value = alpha_divergence(student, teacher, alpha).value.mean()
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


@given(pair=logits(8.0))
def test_the_adaptive_one_takes_the_larger_divergence_of_each_image(pair: Tensor) -> None:
    student, teacher = pair
    q, p = student.softmax(1), teacher.softmax(1)
    over = (q * ((q / p).clamp(max=5) - 1)).sum(1) / 2
    under = divergence_of(student, p, 1)
    loss, gradient = graded(lambda q: inplace_distillation_loss(q, teacher, "alpha"), student)
    torch.testing.assert_close(loss, torch.maximum(over, under).mean())
    assert loss >= -1e-12
    if ((over - under).abs() > 1e-9).all():
        alphas = [-1.0 if is_over else 1.0 for is_over in over > under]

        def each(q: Tensor) -> Tensor:
            rows = zip(q.split(1), teacher.split(1), alphas, strict=True)
            return torch.cat([alpha_divergence(*row).surrogate for row in rows]).mean()

        torch.testing.assert_close(gradient, graded(each, student)[1])


@given(student=logits(8.0, number=1))
def test_a_student_like_its_teacher_is_left_alone(student: Tensor) -> None:
    for kind in KINDS:
        loss, gradient = graded(lambda q, k=kind: inplace_distillation_loss(q, q, k), student[0])
        assert gradient.abs().max() < 1e-14
        if kind != "cross_entropy":
            assert abs(loss) < 1e-14
    for alpha in ALPHAS:
        found = alpha_divergence(student[0], student[0], alpha)
        assert not found.value.any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_flows_back_through_the_largest(kind: Distillation) -> None:
    student, largest = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    inplace_distillation_loss(student, largest, kind).backward()
    assert largest.grad is None
    assert student.grad is not None
    assert student.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_ratios_that_overflow_do_no_harm(kind: Distillation) -> None:
    """Probabilities are zero in float32 here, of the student's class and of the teacher's."""
    student, teacher = torch.tensor([[0.0, -3e3], [2e3, 0.0]]), torch.tensor([[-3e3, 0.0]] * 2)
    loss, gradient = graded(lambda q: inplace_distillation_loss(q, teacher, kind), student)
    assert loss.isfinite()
    assert loss > 100
    assert gradient.isfinite().all()
    assert gradient.any()


def test_a_divergence_has_one_number_per_image() -> None:
    for found in (alpha_divergence(STUDENT, TEACHER, -1.0), adaptive_divergence(STUDENT, TEACHER)):
        assert isinstance(found, Divergence)
        assert found.value.shape == found.surrogate.shape == (4,)
        assert not found.value.requires_grad
