"""The table of families, and lookups that name the choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prenas.families import vit
from prenas.families.base import Arch, Family, SearchSpace, Settings, Shape
from prenas.randomness import isolated_global_state

FAMILIES: dict[str, Family] = {family.name: family for family in (vit.FAMILY,)}


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> ValueError:
    """The error for a name that is not in a table: nearest names first, then all of them."""
    choices = sorted(choices)
    near = get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}available: {', '.join(choices)}")


def get_family(name: str) -> Family:
    """The family of that name; ValueError lists the choices."""
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES)
    return FAMILIES[name]


def family_of(value: Arch | SearchSpace | Settings) -> Family:
    """The family that an architecture, a space or settings belong to."""
    for family in FAMILIES.values():
        if isinstance(value, (family.arch_type, family.space_type, family.settings_type)):
            return family
    raise TypeError(f"{type(value).__name__} belongs to no family of {', '.join(FAMILIES)}")


def all_spaces() -> dict[str, SearchSpace]:
    """Every named space of every family."""
    return {name: space for family in FAMILIES.values() for name, space in family.spaces.items()}


def get_space(name: str) -> SearchSpace:
    """The named space; ValueError lists the choices."""
    spaces = all_spaces()
    if name not in spaces:
        raise unknown_name("space", name, spaces)
    return spaces[name]


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
