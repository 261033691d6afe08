"""The table of families, lookups that name the choices, and networks by their architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prenas.families import mobilenet, vit
from prenas.families.base import Arch, Settings, Shape
from prenas.families.registry import (
    FAMILIES,
    all_families,
    all_spaces,
    family_names,
    family_of,
    get_family,
    get_space,
    register,
)
from prenas.randomness import isolated_global_state

__all__ = [
    "FAMILIES",
    "all_families",
    "all_spaces",
    "build",
    "build_shared",
    "build_structure",
    "family_names",
    "family_of",
    "get_family",
    "get_space",
    "parameter_shapes",
    "register",
]

for _family in (vit.FAMILY, mobilenet.FAMILY):
    register(_family)


def build(
    arch: Arch, settings: Settings, drop_path_rates: Sequence[float] = (), dropout: float = 0.0
) -> nn.Module:
    """The plain network of one architecture, its weights yet to be filled.

    Layer constructors draw from the global generator; here that leaves no trace.
    """
    with isolated_global_state(0, "constructors"):
        return family_of(arch).build(arch, settings, drop_path_rates, dropout)


def build_structure(
    arch: Arch, settings: Settings, drop_path_rates: Sequence[float] = (), dropout: float = 0.0
) -> nn.Module:
    """The same network without memory: shapes and layers only, on the `meta` device."""
    with torch.device("meta"):
        return family_of(arch).build(arch, settings, drop_path_rates, dropout)


def build_shared(arch: Arch, settings: Settings) -> nn.Module:
    """The network that holds the shared weights of a supernet whose largest is `arch`."""
    family = family_of(arch)
    with isolated_global_state(0, "constructors"):
        return (family.build_shared or family.build)(arch, settings, (), 0.0)


class _WeightsWithoutValues(TorchFunctionMode):
    """Layers made under it reserve no memory for their weights, and nothing fills them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def parameter_shapes(arch: Arch, settings: Settings) -> dict[str, Shape]:
    """Name -> shape of every parameter of the plain network, in half the time of a structure."""
    with _WeightsWithoutValues():  # nothing is drawn
        network = family_of(arch).build(arch, settings, (), 0.0)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
