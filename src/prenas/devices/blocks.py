"""The layers of a space's networks, each as a module on its own, so that they can be timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prenas.families import build, family_of
from prenas.families.base import Arch, Settings
from prenas.proxy.importance import noise_images
from prenas.randomness import torch_generator


class Block(NamedTuple):
    """One layer of a network, and what it gets there."""

    module: nn.Module
    """Takes one tensor."""
    example: Tensor
    """Its input for a batch of images."""


def network_of(arch: Arch, settings: Settings, *, deploys: bool) -> nn.Module:
    """A plain network of random weights in evaluation mode.

    Args:
        deploys: in the form that is exported.
    """
    family = family_of(arch)
    network = build(arch, settings)
    family.initialize(network, torch_generator(0, "timed network"))
    network = network.eval().requires_grad_(False)
    return family.deployed(network) if deploys else network


def example_images(settings: Settings, batch: int) -> Tensor:
    """Images [batch, in_chans, height, width] of noise."""
    mean, std = (0.0,) * settings.in_chans, (1.0,) * settings.in_chans
    return noise_images(batch, settings.in_chans, settings.image_size, mean, std, seed=0)


def blocks_of(network: nn.Module, layers: Iterable[str], images: Tensor) -> Iterator[Block]:
    """Layers of a network, with the inputs that they get for these images.

    Args:
        layers: their names in the plain network; a deployed one may contain that network.
    """
    inputs: dict[str, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
    modules = {layer: _module(network, layer) for layer in layers}
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, named, layer=layer: inputs.setdefault(layer, (given, named)) and None,
            with_kwargs=True,
        )
        for layer, module in modules.items()
    ]
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    for layer, module in modules.items():
        (example, *others), named = inputs[layer]
        yield Block(_Alone(module, tuple(others), named).eval(), example.clone())


def _module(network: nn.Module, layer: str) -> nn.Module:
    names = [name for name, _ in network.named_modules() if f".{name}".endswith(f".{layer}")]
    return network.get_submodule(min(names, key=len))


class _Alone(nn.Module):
    """A layer whose further arguments, such as the positions of a grid, are fixed."""

    def __init__(self, layer: nn.Module, others: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer, self.others, self.named = layer, others, dict(named)

    def forward(self, x: Tensor) -> Any:
        """The layer's own output."""
        return self.layer(x, *self.others, **self.named)
