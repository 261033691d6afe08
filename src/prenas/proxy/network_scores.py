"""Zero-cost scores of one network, computed from its own weights before training.

They are here to be compared (`prenas bench proxies`); searches use `prenas.proxy.scores`. Each is a
function of a network that is initialised and prepared as its family prescribes, and of batches of
images [B, C, H, W] with labels [B]. None changes the network, apart from running statistics of
BatchNorm, which none reads. They follow the definitions that they cite; larger is meant to be
better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

Batch = tuple[Tensor, Tensor]
"""Images [B, C, H, W] and labels [B]."""

_MATRICES = (nn.Linear, nn.Conv2d)
_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
)


@dataclass(frozen=True)
class NetworkScore:
    """A score of a network, and what it needs."""

    function: Callable[[nn.Module, Sequence[Batch]], float]
    num_batches: int = 1
    """How many batches it looks at."""
    is_random: bool = True
    """Whether it depends on the weights, and so on the seed."""


def grad_norm(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Sum over tensors of the Euclidean norm of the loss gradient.

    Abdelfattah et al., "Zero-cost proxies for lightweight NAS", ICLR 2021 (grad_norm).
    """
    return float(sum(gradient.norm() for gradient in _gradients(network, batches[0]).values()))


def synflow(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Sum over weights of |w * dR/dw|, where R is the sum of the outputs for an image of ones in a
    network of absolute weights.

    Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
    flow", NeurIPS 2020 (the saliency of R_SF), summed over a network as by Abdelfattah et al.,
    ICLR 2021. In double precision, because R grows with every layer. BatchNorm uses its initial
    statistics, which leave values as they are. Of the batches, only the shape of an image is
    used.
    """
    images = batches[0][0][:1]
    # Not every accelerator has double precision.
    precision = torch.float32 if images.device.type == "mps" else torch.float64
    positive = deepcopy(network).to(precision).eval()
    for module in positive.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
    weights = list(positive.parameters())
    total = positive(torch.ones_like(images, dtype=precision)).sum()
    gradients = torch.autograd.grad(total, weights, materialize_grads=True)
    pairs = zip(weights, gradients, strict=True)
    return float(sum((weight.detach() * gradient).abs().sum() for weight, gradient in pairs))


def fisher(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Sum over channels c of the mean over images of (sum over places of a * dL/da)^2 / 2, where a
    is the output of a linear map or convolution and L the loss of an image.

    Turner et al., "BlockSwap: Fisher-guided block substitution for network compression on a
    budget", ICLR 2020 (the Fisher potential), after Theis et al., "Faster gaze prediction with
    dense networks and Fisher pruning", 2018.
    """
    images, labels = batches[0]
    with _outputs(network, _MATRICES) as maps, torch.enable_grad():
        loss = cross_entropy(network(images), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, maps, materialize_grads=True)
    total = 0.0
    for activation, gradient in zip(maps, gradients, strict=True):
        product = (activation * gradient).detach().double()
        # Channels are the second dimension of a convolution's output, and the last of a linear map.
        is_map = activation.ndim == 4
        places = (2, 3) if is_map else tuple(range(1, activation.ndim - 1))
        per_image = product.sum(dim=places) if places else product  # [B, channels]
        total += float(per_image.square().sum()) / (2 * len(images))
    return total


def naswot(network: nn.Module, batches: Sequence[Batch]) -> float:
    """log |det K|, where K[i, j] counts the units that images i and j switch alike; a unit is on if
    the input of its activation is positive.

    Mellor et al., "Neural architecture search without training", ICML 2021 (the kernel of Hamming
    distances, and its score). It is made for ReLU; smooth activations are read by the sign of their
    input. Minus infinity if two images of the batch switch all units alike.

    Raises:
        ValueError: the network has no activations of a known type.
    """
    images, _ = batches[0]
    with _inputs(network, _ACTIVATIONS) as inputs, torch.no_grad():
        network(images)
    if not inputs:
        raise ValueError(
            "naswot needs activations such as ReLU or GELU as modules, and this network has none: "
            "leave the score out"
        )
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)
    for one in inputs:  # activations that overwrite their input keep its sign
        code = (one > 0).flatten(1).float()
        same = code @ code.T + (1 - code) @ (1 - code).T
        kernel += same.cpu().double()
    return float(torch.linalg.slogdet(kernel).logabsdet)


def zico(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Sum over layers of log(sum over weights of mean / standard deviation of |dL/dw|), mean and
    deviation over batches.

    Li et al., "ZiCo: Zero-shot NAS via inverse coefficient of variation on gradients", ICLR 2023.
    Layers are linear maps and convolutions; weights whose gradient is the same in all batches are
    left out, and so are layers without others.

    Raises:
        ValueError: there is only one batch.
    """
    if len(batches) < 2:
        raise ValueError("ZiCo needs at least two batches: the deviation is taken over batches")
    layers = [
        f"{path}.weight" if path else "weight"
        for path, module in network.named_modules()
        if isinstance(module, _MATRICES)
    ]
    found = [_gradients(network, batch) for batch in batches]
    total = 0.0
    for name in layers:
        sizes = torch.stack([gradients[name].abs() for gradients in found]).double()
        deviation, mean = torch.std_mean(sizes, dim=0, correction=0)
        varies = deviation > 0
        if varies.any():
            total += math.log(float((mean[varies] / deviation[varies]).sum()))
    return total


def fan_in_entropy(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Sum over linear maps and convolutions of the logarithm of the inputs of one output unit.

    The sum in the Gaussian entropy of a network by Shen et al., "DeepMAD: Mathematical architecture
    design for deep convolutional neural network", CVPR 2023 (channels times kernel area over
    groups). Their factor for the size of the last layer is left out: within a
    space, networks end alike. It needs neither weights nor images.
    """
    return math.fsum(
        math.log(module.weight[0].numel())
        for module in network.modules()
        if isinstance(module, _MATRICES)
    )


NETWORK_SCORES: dict[str, NetworkScore] = {
    "grad_norm": NetworkScore(grad_norm),
    "synflow": NetworkScore(synflow),
    "fisher": NetworkScore(fisher),
    "naswot": NetworkScore(naswot),
    "zico": NetworkScore(zico, num_batches=2),
    "fan_in_entropy": NetworkScore(fan_in_entropy, num_batches=0, is_random=False),
}


def _gradients(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy of a batch, by the name of the parameter."""
    images, labels = batch
    parameters = dict(network.named_parameters())
    with torch.enable_grad():
        loss = cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


@contextmanager
def _inputs(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[list[Tensor]]:
    """Collects the inputs of all modules of these kinds, call by call."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    with _hooked([one.register_forward_pre_hook(keep) for one in _modules(network, kinds)]):
        yield found


@contextmanager
def _outputs(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[list[Tensor]]:
    """Collects the outputs of all modules of these kinds, call by call, with their gradients."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        found.append(output)
        return output.clone()  # what follows may overwrite its input

    with _hooked([one.register_forward_hook(keep) for one in _modules(network, kinds)]):
        yield found


def _modules(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    return (module for module in network.modules() if isinstance(module, kinds))


@contextmanager
def _hooked(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
