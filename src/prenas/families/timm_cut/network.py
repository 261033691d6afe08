"""The plain network of a cut: timm's own modules, with fewer units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache, lru_cache
from typing import Any

import timm
import torch
from timm.layers import Attention, DropPath, drop_path
from torch import Tensor, nn
from torch.nn.functional import dropout

from prenas.families.base import check_images
from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.units import UnitGroup

BRANCHES = 2
"""Columns of noise per block: blocks of timm have one or two residual branches."""

_BRANCH_DROPS = ("drop_path", "drop_path1", "drop_path2")


class CutNetwork(nn.Module):
    """What is added to timm's class: noise as an argument, and a check of the images."""

    settings: TimmSettings

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes].

        `noise` [B, 2 * blocks or more], uniform in [0, 1), decides which branches are dropped in
        training; with dropout, its last columns, one per feature, decide which features are
        dropped. Without it, the global generator decides.
        """
        if not len(images):  # a process without images; timm's own reshapes need some
            blank = images.new_zeros((2, *images.shape[1:]))
            kept = None if noise is None else noise.new_ones((2, *noise.shape[1:]))
            return self.forward(blank, kept)[:0]
        for module in self.modules():
            if isinstance(module, (_DropBranch, _Dropout)):
                module.noise = noise
        logits: Tensor = super().forward(images)
        return logits

    def forward_features(self, images: Tensor, *arguments: Any, **fields: Any) -> Tensor:
        """timm's features, for images of the right shape."""
        check_images(images, self.settings)
        # With channels last, depthwise convolutions take two thirds of the time on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        features: Tensor = super().forward_features(images, *arguments, **fields)  # type: ignore[misc]
        return features

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimiser factory must not decay, besides biases and norms."""
        inherited: Callable[[], set[str]] = getattr(super(), "no_weight_decay", set)
        return set(inherited()) & {name for name, _ in self.named_parameters()}


@cache
def _plain_type(kind: Any) -> type[nn.Module]:
    return type(kind.__name__, (CutNetwork, kind), {})


class _DropBranch(nn.Module):
    """Stochastic depth that takes its column of the noise."""

    def __init__(self, rate: float, column: int) -> None:
        super().__init__()
        self.drop_prob, self.column = rate, column
        self.noise: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        if self.noise is None:
            dropped: Tensor = drop_path(x, self.drop_prob, self.training)
            return dropped
        kept = (self.noise[:, self.column] >= self.drop_prob).to(x.dtype)
        return x * kept.view(-1, *(1,) * (x.ndim - 1)) / (1.0 - self.drop_prob)


class _Dropout(nn.Module):
    """Dropout of the features before the classifier, by the last columns of the noise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.noise: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        if self.noise is None:
            return dropout(features, self.rate)
        kept = self.noise[:, -features.shape[-1] :] >= self.rate
        return features * kept.to(features.dtype) / (1.0 - self.rate)


class _HeadMajorLinear(nn.Linear):
    """A projection to queries, keys and values whose rows are ordered by head, not by kind.

    So the leading rows belong to the leading heads. The output has timm's order.
    """

    head_dim: int

    def forward(self, x: Tensor) -> Tensor:
        num_heads = self.out_features // (3 * self.head_dim)
        by_head = super().forward(x).reshape(*x.shape[:-1], num_heads, 3, self.head_dim)
        return by_head.transpose(-3, -2).flatten(-3)


def timm_model(settings: TimmSettings) -> nn.Module:
    """timm's model with these settings, with random weights, on the default device."""
    known: Any = timm.get_pretrained_cfg(settings.model)
    fields: dict[str, Any] = {"num_classes": settings.num_classes, "in_chans": settings.in_chans}
    if known is not None and known.fixed_input_size:
        fields["img_size"] = settings.image_size
    return timm.create_model(settings.model, pretrained=False, **fields)


@lru_cache(maxsize=8)
def _structure(settings: TimmSettings) -> nn.Module:
    with torch.device("meta"):
        return timm_model(settings)


def build(
    arch: TimmArch,
    settings: TimmSettings,
    drop_path_rates: Sequence[float] = (),
    dropout_rate: float = 0.0,
) -> nn.Module:
    """Builds the plain network of a cut, on the default device."""
    network = build_whole(settings)
    for group, units in arch.kept():
        keep_leading(network, group, units)
    _add_drops(network, arch, drop_path_rates, dropout_rate)
    return network


def build_whole(settings: TimmSettings) -> nn.Module:
    """Builds timm's model with all of its units, on the default device.

    Its tensors are timm's, except that the rows of `qkv` are ordered by head.
    """
    is_structure = torch.empty(0).is_meta
    network = deepcopy(_structure(settings)) if is_structure else timm_model(settings)
    for module in heads_of(network).values():
        _order_by_head(module)
    plain: Any = network
    kind: Any = type(network)
    plain.__class__ = _plain_type(kind)
    plain.settings = settings
    return network


def heads_of(network: nn.Module) -> dict[str, Attention]:
    """The attention modules whose heads can be removed, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) is Attention and module.gate is None
    }


def _order_by_head(attention: Attention) -> None:
    projection: Any = attention.qkv
    projection.__class__ = _HeadMajorLinear
    projection.head_dim = attention.head_dim


def keep_leading(network: nn.Module, group: UnitGroup, units: int) -> None:
    """Removes all but the leading units of a group, in place."""
    if units == group.num_units:
        return
    changed = {}
    for tensor in group.tensors:
        path, _, name = tensor.name.rpartition(".")
        module = network.get_submodule(path)
        old = getattr(module, name)
        new = old.detach().narrow(tensor.dim, 0, units * tensor.per_unit).clone()
        is_parameter = isinstance(old, nn.Parameter)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if is_parameter else new)
        changed[path] = module
    for module in changed.values():
        _correct_sizes(module)
    if group.axis == "heads":
        attention: Any = network.get_submodule(group.consumer.rpartition(".")[0])
        attention.num_heads, attention.attn_dim = units, units * attention.head_dim


def _correct_sizes(module: nn.Module) -> None:
    """Makes a module's own numbers agree with its tensors."""
    if isinstance(module, nn.Conv2d):
        is_depthwise = module.groups == module.in_channels == module.out_channels > 1
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels if is_depthwise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = module.weight.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _add_drops(
    network: nn.Module, arch: TimmArch, drop_path_rates: Sequence[float], dropout_rate: float
) -> None:
    rates = tuple(drop_path_rates) or (0.0,) * len(arch.blocks)
    if len(rates) < len(arch.blocks):
        raise ValueError(f"{len(rates)} drop-path rates for {len(arch.blocks)} blocks")
    for number, (block, rate) in enumerate(zip(arch.blocks, rates, strict=False)):
        for branch, name in enumerate(_branch_drops(network.get_submodule(block.name))):
            drop = _DropBranch(rate, BRANCHES * number + branch)
            setattr(network.get_submodule(block.name), name, drop)
    if dropout_rate:
        classifier = network.get_classifier()  # type: ignore[operator]
        drop_features = _Dropout(dropout_rate)
        network.add_module("feature_dropout", drop_features)
        classifier.register_forward_pre_hook(lambda _, inputs: drop_features(inputs[0]))


def _branch_drops(block: nn.Module) -> Iterator[str]:
    """Names of a block's modules for stochastic depth."""
    for name in _BRANCH_DROPS:
        if isinstance(getattr(block, name, ...), (DropPath, nn.Identity, type(None))):
            yield name
