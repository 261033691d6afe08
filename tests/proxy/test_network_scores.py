"""Scores of single networks against their formulas, written out with NumPy and loops."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prenas.families import all_spaces, build, family_of
from prenas.proxy.network_scores import (
    NETWORK_SCORES,
    Batch,
    fan_in_entropy,
    fisher,
    grad_norm,
    naswot,
    synflow,
    zico,
)
from prenas.randomness import torch_generator

CLASSES, IMAGES = 3, 4


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "numbers of a test", *shape))


def batch(seed: int = 0, *, chans: int = 2, side: int = 3) -> Batch:
    labels = torch.tensor([0, 2, 1, 2])
    return numbers(IMAGES, chans, side, side, seed=seed), labels


def filled(network: nn.Module) -> nn.Module:
    for number, parameter in enumerate(network.parameters()):
        parameter.data = numbers(*parameter.shape, seed=number + 7)
    return network


def linear() -> nn.Module:
    """Softmax regression, whose gradients are known in closed form."""
    return filled(nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES)))


def perceptron() -> nn.Module:
    return filled(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(18, 5, bias=False),
            nn.ReLU(),
            nn.Linear(5, CLASSES, bias=False),
        )
    )


def of_linear(network: nn.Module, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs [B, 18], logits [B, classes] and probabilities [B, classes]."""
    inputs = images.flatten(1).double().numpy()
    weight, bias = (p.detach().double().numpy() for p in network.parameters())
    logits = inputs @ weight.T + bias
    return inputs, logits, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def errors_of_linear(network: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """dL/dlogits [B, classes] for the loss of each image."""
    return of_linear(network, images)[2] - np.eye(CLASSES)[labels.numpy()]


def test_grad_norm() -> None:
    network, (images, labels) = linear(), batch()
    inputs, _, _ = of_linear(network, images)
    errors = errors_of_linear(network, images, labels) / IMAGES
    expected = np.linalg.norm(errors.T @ inputs) + np.linalg.norm(errors.sum(axis=0))
    assert grad_norm(network, [(images, labels)]) == pytest.approx(expected, rel=1e-5)


def test_synflow() -> None:
    """R is the sum of |W2| |W1| 1, and the saliency of each layer adds up to R."""
    network = perceptron()
    first, second = (p.detach().abs().double().numpy() for p in network.parameters())
    flow = (second @ first @ np.ones(18)).sum()
    assert synflow(network, [batch()]) == pytest.approx(2 * flow, rel=1e-12)
    assert synflow(network, [batch(seed=1)]) == synflow(network, [batch()])  # needs no images


def test_fisher_of_a_linear_map() -> None:
    network, (images, labels) = linear(), batch()
    _, logits, _ = of_linear(network, images)
    products = logits * errors_of_linear(network, images, labels)
    expected = (products**2).sum() / (2 * IMAGES)
    assert fisher(network, [(images, labels)]) == pytest.approx(expected, rel=1e-5)


def test_fisher_of_a_convolution() -> None:
    """Products are summed over places before they are squared; the pixels after it are averaged, so
    that a place's gradient is a ninth of that of the mean."""
    convolution, head = nn.Conv2d(2, 5, 1, bias=False), nn.Linear(5, CLASSES, bias=False)
    network = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    filled(network)
    images, labels = batch()
    kernel = convolution.weight.detach().double().numpy()[:, :, 0, 0]
    weight = head.weight.detach().double().numpy()
    expected = 0.0
    for image, label in zip(images.double().numpy(), labels.tolist(), strict=True):
        maps = np.einsum("oc,chw->ohw", kernel, image)
        logits = weight @ maps.mean(axis=(1, 2))
        error = np.exp(logits) / np.exp(logits).sum() - np.eye(CLASSES)[label]
        expected += ((logits * error) ** 2).sum()
        for channel in range(5):
            of_a_place = (weight.T @ error)[channel] / 9
            expected += (
                sum(maps[channel, y, x] * of_a_place for y, x in product(range(3), range(3))) ** 2
            )
    assert fisher(network, [(images, labels)]) == pytest.approx(expected / (2 * IMAGES), rel=1e-5)


def test_fisher_sums_over_the_tokens_of_a_linear_map() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(9, 4), nn.Linear(4, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.embed(images.flatten(2)).mean(dim=1))

    network, (images, labels) = filled(Tokens()), batch()
    tokens = network.embed(images.flatten(2)).detach().requires_grad_()
    logits = network.head(tokens.mean(dim=1))
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    on_tokens, on_logits = torch.autograd.grad(loss, (tokens, logits))
    expected = 0.0
    for image in range(IMAGES):
        expected += sum(
            float(sum(tokens.data[image, t, c] * on_tokens[image, t, c] for t in range(2))) ** 2
            for c in range(4)
        )
        expected += float((logits.data[image] * on_logits[image]).square().sum())
    assert fisher(network, [(images, labels)]) == pytest.approx(expected / (2 * IMAGES), rel=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(True)])
def test_naswot(activation: nn.Module) -> None:
    network = perceptron()
    network[2] = activation
    images, labels = numbers(3, 2, 3, 3), torch.tensor([0, 1, 2])
    on = (images.flatten(1) @ network[1].weight.T > 0).tolist()
    kernel = np.zeros((3, 3))
    for i, j in product(range(3), range(3)):
        kernel[i, j] = 5 - sum(one != other for one, other in zip(on[i], on[j], strict=True))
    expected = math.log(abs(np.linalg.det(kernel)))
    assert naswot(network, [(images, labels)]) == pytest.approx(expected, rel=1e-9)


def test_naswot_of_equal_images_is_minus_infinity() -> None:
    images = numbers(1, 2, 3, 3).expand(2, -1, -1, -1)
    assert naswot(perceptron(), [(images, torch.tensor([0, 1]))]) == -math.inf


def test_naswot_needs_activations() -> None:
    with pytest.raises(ValueError, match="leave the score out"):
        naswot(linear(), [batch()])


def test_zico() -> None:
    network, batches = linear(), [batch(seed) for seed in range(3)]
    sizes = []
    for images, labels in batches:
        inputs, _, _ = of_linear(network, images)
        sizes.append(np.abs(errors_of_linear(network, images, labels).T @ inputs) / IMAGES)
    ratios = np.mean(sizes, axis=0) / np.std(sizes, axis=0)
    assert zico(network, batches) == pytest.approx(math.log(ratios.sum()), rel=1e-4)


def test_zico_sums_logarithms_over_layers_and_leaves_out_what_does_not_vary() -> None:
    network = perceptron()
    network[1].weight.data[0] = 0  # its unit is never on, so no gradient reaches it
    batches = [batch(seed) for seed in range(2)]
    expected = 0.0
    for layer in (network[1], network[3]):
        gradients = []
        for images, labels in batches:
            network.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            gradients.append(layer.weight.grad.abs().double().numpy().copy())
        mean, deviation = np.mean(gradients, axis=0), np.std(gradients, axis=0)
        expected += math.log((mean[deviation > 0] / deviation[deviation > 0]).sum())
    network.zero_grad()
    assert zico(network, batches) == pytest.approx(expected, rel=1e-4)


def test_zico_needs_two_batches() -> None:
    with pytest.raises(ValueError, match="at least two batches"):
        zico(linear(), [batch()])


def test_fan_in_entropy() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(12, 2)
    )
    assert fan_in_entropy(network, ()) == pytest.approx(
        math.log(3 * 25) + math.log(8 * 9 / 4) + math.log(12)
    )


def test_synflow_normalises_by_the_initial_statistics() -> None:
    """Also after another score has left statistics of its batch."""
    norm, head = nn.BatchNorm2d(2), nn.Linear(18, CLASSES, bias=False)
    network = filled(nn.Sequential(norm, nn.Flatten(), head)).train()
    grad_norm(network, [batch()])
    assert norm.running_mean.any()
    factor, shift = norm.weight.detach().abs(), norm.bias.detach().abs()
    channels = (factor / math.sqrt(1 + norm.eps) + shift).repeat_interleave(9).double()
    flow = float((head.weight.detach().abs().double() @ channels).sum())
    assert synflow(network, [batch()]) == pytest.approx(2 * flow, rel=1e-6)


def test_fisher_sees_outputs_before_they_are_overwritten() -> None:
    convolution, head = nn.Conv2d(2, 5, 2), nn.Linear(20, CLASSES)
    values = [
        fisher(filled(nn.Sequential(convolution, nn.SiLU(inplace), nn.Flatten(), head)), [batch()])
        for inplace in (False, True)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("score", NETWORK_SCORES)
@pytest.mark.parametrize("space", ["digits", "mobilenet-micro"])
def test_scores_of_networks_are_finite_repeatable_and_change_nothing(
    score: str, space: str
) -> None:
    chosen = all_spaces()[space]
    network = build(chosen.smallest, chosen.settings)
    with torch.no_grad():
        family_of(chosen).initialize(network, torch_generator(0, "weights"))
    family_of(chosen).prepare_for_scoring(network)
    settings = chosen.settings
    batches = [
        (numbers(8, settings.in_chans, *settings.image_size, seed=seed), torch.arange(8))
        for seed in range(2)
    ]
    entry = NETWORK_SCORES[score]
    before = {name: one.clone() for name, one in network.named_parameters()}
    first, second = (entry.function(network, batches) for _ in range(2))
    assert math.isfinite(first)
    assert first == second
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
