"""The registered families, and the networks of their architectures."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

from torch import nn

from prenas import artifacts
from prenas.families import mobilenet, timm_cut, vit
from prenas.families.base import Arch, Settings, Shape, TensorRole
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
from prenas.families.structure import pickled, structure_only
from prenas.families.timm_models import add_generic_to_timm, add_to_timm
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
    "register",
    "require_stored",
    "shapes_by_role",
    "structure_only",
]

for _family in (vit.FAMILY, mobilenet.FAMILY, timm_cut.FAMILY):
    register(_family)
    add_to_timm(_family)
add_generic_to_timm()


def build(
    arch: Arch, settings: Settings, drop_path_rates: Sequence[float] = (), dropout: float = 0.0
) -> nn.Module:
    """Builds the plain network of one architecture, with uninitialised weights.

    Layer constructors draw from the global generator; its state is restored afterwards.
    """
    with isolated_global_state(0, "constructors"):
        return family_of(arch).build(arch, settings, drop_path_rates, dropout)


def build_structure(
    arch: Arch, settings: Settings, drop_path_rates: Sequence[float] = (), dropout: float = 0.0
) -> nn.Module:
    """Builds the same network without memory for its weights, on the `meta` device."""
    return _structures(arch, settings, tuple(drop_path_rates), dropout)()


class _Structures:
    """Equal networks without weights: those after the second are copies, six times as fast."""

    def __init__(
        self, arch: Arch, settings: Settings, drop_path_rates: tuple[float, ...], dropout: float
    ) -> None:
        self._wanted = arch, settings, drop_path_rates, dropout
        self._num_built = 0
        self._stored: bytes | None = None

    def __call__(self) -> nn.Module:
        if self._stored is not None:
            return cast(nn.Module, pickle.loads(self._stored))
        with structure_only():
            network = family_of(self._wanted[0]).build(*self._wanted)
        self._num_built += 1
        if self._num_built == 2:  # most are asked for once, when their cost is counted
            self._stored = pickled(network)
        return network


_structures = lru_cache(maxsize=512)(_Structures)  # of up to 130 kB each


def build_shared(arch: Arch, settings: Settings) -> nn.Module:
    """Builds the network that holds the shared weights of a supernet; `arch` is its largest."""
    family = family_of(arch)
    with isolated_global_state(0, "constructors"):
        return (family.build_shared or family.build)(arch, settings, (), 0.0)


def require_stored(path: Path, arch: Arch, settings: Settings, *, shared: bool) -> None:
    """Checks that a weight file has the tensors of the network of `arch`.

    Only its header is read, and the network takes no memory: a small description of an absurdly
    large network is refused before anything is built.

    Args:
        shared: whether they are the shared weights of the supernet whose largest network is `arch`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a safetensors file, or has other tensors.
    """
    num_stored = len(artifacts.stored_shapes(path))
    if arch.num_layers > num_stored:  # before building the structure of 100,000 layers
        problem = f"it has {num_stored:,} tensors, too few for {arch.num_layers:,} layers"
        raise artifacts.other_weights(path, [problem])
    with structure_only():
        tensors = (build_shared if shared else build)(arch, settings).state_dict()
    artifacts.require_shapes(path, {name: tuple(one.shape) for name, one in tensors.items()})


def shapes_by_role(arch: Arch, settings: Settings) -> dict[TensorRole, dict[str, Shape]]:
    """Shapes of the plain network's parameters: stage and layer -> name -> shape."""
    parameters = dict(build_structure(arch, settings).named_parameters())
    found: dict[TensorRole, dict[str, Shape]] = {}
    for name, role in family_of(arch).roles(arch, parameters).items():
        found.setdefault(role, {})[name] = tuple(parameters[name].shape)
    return found
