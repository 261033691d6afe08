"""Scores of hidden units: the fast forms equal the literal ones, for one unit and one image."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from families.drawing import fill_as_trained, timm_space
from prenas.families import build
from prenas.families.units import UnitGroup, reorder
from prenas.proxy.scores import UnitScoreName
from prenas.proxy.unit_scores import unit_scores

MODELS = {"test_resnet": 40, "mobilenetv3_small_050": 32, "test_vit": 64, "test_convnext": 64}


class Case:
    """A network with random weights and statistics, and a few labelled images."""

    def __init__(self, model: str) -> None:
        self.space = timm_space(model, MODELS[model])
        generator = torch.Generator().manual_seed(5)
        network = build(self.space.largest, self.space.settings)
        self.network = fill_as_trained(network, seed=5).double()
        shape = (4, 3, *self.space.settings.image_size)
        self.images = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.labels = torch.tensor([0, 3, 1, 4])
        self.groups = [group for group, _ in self.space.largest.kept()]

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))

    def loss(self, image: int) -> Tensor:
        one = slice(image, image + 1)
        return cross_entropy(self.network(self.images[one]), self.labels[one])


def scaled_by(case: Case, group: UnitGroup, unit: int, image: int, factor: float) -> float:
    """The loss of an image if what the next layer gets from one unit is scaled."""
    consumer = case.network.get_submodule(group.consumer)
    tensor = next(t for t in group.tensors if t.name == f"{group.consumer}.weight")
    own = slice(unit * tensor.per_unit, (unit + 1) * tensor.per_unit)
    dim = 1 if isinstance(consumer, nn.Conv2d) else -1

    def scale(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        changed = inputs[0].clone()
        changed.movedim(dim, 0)[own] *= factor
        return (changed,)

    hook = consumer.register_forward_pre_hook(scale)
    try:
        with torch.no_grad():
            return float(case.loss(image))
    finally:
        hook.remove()


@pytest.mark.parametrize("model", MODELS)
def test_a_gate_is_the_derivative_of_each_images_loss(model: str) -> None:
    """d loss / d factor at 1, by differences: squared and summed over images, then the root."""
    case = Case(model)
    found = unit_scores(case.network, case.groups, case.batches(2), score="gate").scores
    h = 1e-5
    for number in {0, len(case.groups) // 2, len(case.groups) - 1}:
        group = case.groups[number]
        for unit in {0, group.num_units - 1}:
            slopes = [
                (
                    scaled_by(case, group, unit, image, 1 + h)
                    - scaled_by(case, group, unit, image, 1 - h)
                )
                / (2 * h)
                for image in range(len(case.labels))
            ]
            expected = sum(slope**2 for slope in slopes) ** 0.5
            assert float(found[number][unit]) == pytest.approx(expected, rel=1e-4, abs=1e-10)


def test_the_sum_of_gates_and_batches_of_another_size() -> None:
    case = Case("test_resnet")
    whole, parts = (
        unit_scores(case.network, case.groups, case.batches(size), score="gate_sum").scores
        for size in (4, 1)
    )
    for left, right in zip(whole, parts, strict=True):
        torch.testing.assert_close(left, right)
        assert (left > 0).any()


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_fisher_sums_squares_over_images_and_is_additive(model: str) -> None:
    """Image by image and unit by unit: (sum over positions and channels of a * dL/da) squared."""
    case = Case(model)
    found = unit_scores(case.network, case.groups, case.batches(3), score="fisher").scores
    for group, scores in zip(case.groups, found, strict=True):
        consumer, got = case.network.get_submodule(group.consumer), []
        hook = consumer.register_forward_pre_hook(lambda _, inputs, got=got: got.append(inputs[0]))
        totals = [0.0] * group.num_units
        for image in range(len(case.labels)):
            loss = case.loss(image)
            product = got[-1].detach() * torch.autograd.grad(loss, got[-1])[0]
            of_slice = product.movedim(1 if isinstance(consumer, nn.Conv2d) else -1, 0)
            for unit, slices in enumerate(of_slice.chunk(group.num_units)):
                totals[unit] += float(slices.sum()) ** 2
        hook.remove()
        assert scores.tolist() == pytest.approx(totals, rel=1e-9, abs=1e-20)


def test_weights_times_gradients_are_summed_over_the_units_tensors() -> None:
    case = Case("test_resnet")
    loss = sum(case.loss(image) for image in range(4))
    parameters = dict(case.network.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    of = dict(zip(parameters, gradients, strict=True))
    found = unit_scores(
        case.network, case.groups, case.batches(3), score="weight_times_gradient"
    ).scores
    sizes = unit_scores(case.network, case.groups, [], score="weight").scores
    for group, scores, plain in zip(case.groups, found, sizes, strict=True):
        trained = [tensor for tensor in group.tensors if tensor.name in parameters]
        for unit in (0, group.num_units - 1):
            total = magnitude = 0.0
            for tensor in trained:
                own = slice(unit * tensor.per_unit, (unit + 1) * tensor.per_unit)
                weight = parameters[tensor.name].detach().movedim(tensor.dim, 0)[own]
                gradient = of[tensor.name].movedim(tensor.dim, 0)[own]
                total += float((weight * gradient).abs().sum())
                magnitude += float(weight.abs().sum())
            assert float(scores[unit]) == pytest.approx(total, rel=1e-9)
            assert float(plain[unit]) == pytest.approx(magnitude, rel=1e-9)


@pytest.mark.parametrize("score", sorted({*get_args(UnitScoreName)} - {"random"}))
def test_scores_follow_the_units_into_another_order(score: str) -> None:
    case = Case("test_vit")
    before = unit_scores(case.network, case.groups, case.batches(4), score=score).scores
    orders = [torch.randperm(group.num_units) for group in case.groups]
    for group, order in zip(case.groups, orders, strict=True):
        reorder(case.network, group, order)
    after = unit_scores(case.network, case.groups, case.batches(4), score=score).scores
    for left, order, right in zip(before, orders, after, strict=True):
        torch.testing.assert_close(right, left[order], rtol=1e-7, atol=1e-12)


def test_the_network_is_left_as_it_was() -> None:
    case = Case("test_resnet")
    before = {name: tensor.clone() for name, tensor in case.network.state_dict().items()}
    unit_scores(case.network.train(), case.groups, case.batches(2), score="gate")
    assert all(torch.equal(before[n], t) for n, t in case.network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in case.network.modules())


def test_random_scores_are_a_function_of_the_seed() -> None:
    case = Case("test_resnet")
    first, same, other = (
        unit_scores(case.network, case.groups, [], score="random", seed=seed).scores
        for seed in (1, 1, 2)
    )
    assert all(map(torch.equal, first, same))
    assert not any(map(torch.equal, first, other))


def test_no_images_and_values_that_are_not_finite_are_refused() -> None:
    case = Case("test_resnet")
    with pytest.raises(ValueError, match="no images given"):
        unit_scores(case.network, case.groups, [], score="gate")
    bad = [(torch.full_like(case.images, torch.inf), case.labels)]
    with pytest.raises(ValueError, match="are not finite"):
        unit_scores(case.network, case.groups, bad, score="gate")


@pytest.mark.parametrize("score", ["gate", "gate_sum", "fisher", "weight_times_gradient"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_halves_are_the_scores_of_every_second_image(score: UnitScoreName, size: int) -> None:
    case = Case("test_resnet")
    found = unit_scores(case.network, case.groups, case.batches(size), score=score)
    assert found.halves is not None
    for half, scores in enumerate(found.halves):
        own = [(case.images[half::2], case.labels[half::2])]
        alone = unit_scores(case.network, case.groups, own, score=score).scores
        for one, other in zip(scores, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("model", MODELS)
def test_roots_of_the_squares_are_the_gate(model: str) -> None:
    case = Case(model)
    gate, fisher = (
        unit_scores(case.network, case.groups, case.batches(3), score=name)
        for name in ("gate", "fisher")
    )
    roots = fisher.roots
    assert roots.halves is not None
    assert gate.halves is not None
    for one, other in zip((roots.scores, *roots.halves), (gate.scores, *gate.halves), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_scores_without_images_have_no_halves() -> None:
    case = Case("test_resnet")
    assert unit_scores(case.network, case.groups, [], score="weight").halves is None
