"""What every part of a cut computes, and how its tensors are named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prenas.families.base import Shape, StageNames, TensorRole, Work
from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.timm_cut.network import build_whole, heads_of

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

_BATCHED = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""Products of two activations; those with weights are `mm` and `addmm`."""


class _Seen(NamedTuple):
    """What one forward pass of a whole network shows."""

    positions: Mapping[str, int]
    products: Mapping[str, int]


def positions(settings: TimmSettings) -> Mapping[str, int]:
    """Name of a convolution or linear layer -> how many outputs each unit has per image.

    Attention whose heads can be removed is included: with the number of pairs of its tokens.
    """
    return _seen(settings).positions


@lru_cache(maxsize=32)
def _seen(settings: TimmSettings) -> _Seen:
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton, where it is installed

    found: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                number = output.shape[-2] * output.shape[-1]
            elif isinstance(module, nn.Linear):
                number = output.numel() // module.out_features
            else:
                number = inputs[0].shape[0] * inputs[0].shape[1] ** 2
            found[name] = found.get(name, 0) + number

        return hook

    with torch.device("meta"), torch.no_grad():
        network = build_whole(settings).eval().requires_grad_(False)
        heads = heads_of(network)
        for name, module in network.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) or name in heads:
                module.register_forward_hook(note(name))
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(torch.zeros(1, settings.in_chans, *settings.image_size))
    return _Seen(found, _products(counter, heads))


def _products(counter: FlopCounterMode, heads: Collection[str]) -> dict[str, int]:
    """Name of a module -> multiply-accumulates of its own products of activations.

    Such as attention within windows. That of attention whose heads can be removed is left out.
    """
    total = {
        name.partition(".")[2]: sum(flops for kind, flops in kinds.items() if kind in _BATCHED) // 2
        for name, kinds in counter.get_flop_counts().items()
        if name != "Global"
    }
    own = dict(total)
    for name, macs in total.items():
        if name:
            own[_called_around(name, total)] -= macs
    removable = tuple(f"{name}." for name in heads)
    return {
        name: macs for name, macs in own.items() if macs and not f"{name}.".startswith(removable)
    }


def _called_around(name: str, called: Collection[str]) -> str:
    """The innermost module around another one that is called, unlike lists of modules."""
    name = name.rpartition(".")[0]
    while name not in called:
        name = name.rpartition(".")[0]
    return name


def work(arch: TimmArch, settings: TimmSettings) -> list[Work]:
    """Multiply-accumulates per image of convolutions, linear layers and attention."""
    shapes = _weight_shapes(settings)
    if arch.resolution is not None:
        settings = settings.changed(image_size=(arch.resolution, arch.resolution))
    kept: dict[str, dict[int, int]] = {}
    heads: dict[str, int] = {}
    absent = [f"{name}." for group, units in arch.kept() if not units for name in group.branch]
    for group, units in arch.kept():
        for tensor in group.tensors:
            kept.setdefault(tensor.name, {})[tensor.dim] = units * tensor.per_unit
        if group.axis == "heads":
            heads[group.consumer.rpartition(".")[0]] = units
    amounts = list(_seen(settings).products.items())
    for name, macs in positions(settings).items():
        if name in shapes:
            for dim, size in enumerate(shapes[name]):
                macs *= kept.get(f"{name}.weight", {}).get(dim, size)
        else:  # queries times keys, and the result times values
            num_heads, head_dim = _heads(settings)[name]
            macs *= 2 * heads.get(name, num_heads) * head_dim
        amounts.append((name, macs))
    of_block = dict.fromkeys((block.name for block in arch.blocks), 0)
    rest = 0
    for name, macs in amounts:
        if f"{name}.".startswith(tuple(absent)):
            continue
        block = _block_of(name, of_block)
        if block is None:
            rest += macs
        else:
            of_block[block] += macs
    parts = [Work(TensorRole(stage, 0), macs) for stage, macs in enumerate(of_block.values())]
    return [*parts, Work(TensorRole(len(of_block), None), rest)]


def _block_of(name: str, blocks: Mapping[str, int]) -> str | None:
    """The innermost of these blocks that contains a module."""
    while name:
        if name in blocks:
            return name
        name = name.rpartition(".")[0]
    return None


@lru_cache(maxsize=32)
def _weight_shapes(settings: TimmSettings) -> Mapping[str, Shape]:
    with torch.device("meta"):
        network = build_whole(settings)
    return {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


@lru_cache(maxsize=32)
def _heads(settings: TimmSettings) -> Mapping[str, tuple[int, int]]:
    with torch.device("meta"):
        network = build_whole(settings)
    return {name: (one.num_heads, one.head_dim) for name, one in heads_of(network).items()}


def stage_names(arch: TimmArch) -> list[StageNames]:
    """One layer per block; all other tensors belong to the last stage."""
    blocks = (StageNames([f"{block.name}."]) for block in arch.blocks)
    return [*blocks, StageNames()]


@lru_cache(maxsize=32)
def classifier(settings: TimmSettings) -> str:
    """Name of the linear classifier, as timm's `pretrained_cfg` states it.

    Raises:
        ValueError: timm's model has none, or several.
    """
    with torch.device("meta"):
        described: Any = build_whole(settings).pretrained_cfg
    name = described.get("classifier")
    if not isinstance(name, str):
        raise ValueError(
            f"{settings.model} has {'several classifiers' if name else 'no classifier'}: choose a "
            "timm model with one"
        )
    return name
