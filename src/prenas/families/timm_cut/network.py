"""The plain network of a cut: timm's own modules, with fewer units."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, cached_property, lru_cache
from typing import Any

import timm
import torch
from timm.layers import (
    Attention,
    AttentionRope,
    DropPath,
    GluMlp,
    apply_rot_embed_cat,
    drop_path,
    register_notrace_module,
)
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.functional import dropout, interpolate, scaled_dot_product_attention

from prenas.families.base import check_images
from prenas.families.habits import record_image_size, without_proxy
from prenas.families.structure import pickled, structure_only
from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.units import UnitGroup

BRANCHES = 2
"""Columns of noise per block: blocks of timm have one or two residual branches."""

_FEATURE_DROPOUT = "feature_dropout"
"""Name of the module in the classifier that drops what it gets."""

_BRANCH_DROPS = {"drop_path": 0, "drop_path1": 0, "drop_path2": 1}
"""timm's names for stochastic depth in a block -> the number of the branch that it drops."""


class CutNetwork(nn.Module):
    """What is added to timm's class: noise as an argument, and a check of the images."""

    settings: TimmSettings
    resolution: int | None = None
    """Side in pixels to which images are resized first; None: they are not."""

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes].

        `noise` [B, 2 * blocks or more], uniform in [0, 1), decides which branches are dropped in
        training; with dropout, its last columns, one per feature, decide which features are
        dropped. Without it, the global generator decides.
        """
        noise = without_proxy(noise)
        if (
            not isinstance(images, Proxy) and images.shape[0] == 0
        ):  # a process without images; timm's own reshapes need some
            blank = images.new_zeros((2, *images.shape[1:]))
            kept = None if noise is None else noise.new_ones((2, *noise.shape[1:]))
            return self.forward(blank, kept)[:0]
        drops = [one for one in self.modules() if isinstance(one, (_DropBranch, _Dropout))]
        for drop in drops:
            drop.noise = noise
        try:
            logits: Tensor = super().forward(images)
            return logits
        finally:
            if not self._recomputes():
                for drop in drops:
                    drop.noise = None

    def _recomputes(self) -> bool:
        """Whether the backward pass calls layers again, which then need the noise once more."""
        return any(getattr(module, "grad_checkpointing", False) for module in self.modules())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles timm's class, because that of cuts is made when it is needed."""
        return _blank, (type(self).__mro__[2],), self.__dict__

    def forward_features(self, images: Tensor, *arguments: Any, **fields: Any) -> Tensor:
        """timm's features, for images of the right shape."""
        images = self._prepared(images)
        features: Tensor = super().forward_features(images, *arguments, **fields)  # type: ignore[misc]
        return features

    def forward_intermediates(self, x: Tensor, *arguments: Any, **fields: Any) -> Any:
        """timm's intermediates, for images [B, in_chans, height, width] of the right shape."""
        return super().forward_intermediates(self._prepared(x), *arguments, **fields)  # type: ignore[misc]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, **fields: Any) -> None:
        """Takes images of another size from now on.

        A cut with a resolution resizes them to it as before; otherwise timm's network changes, if
        it depends on the size.
        """
        inherited = getattr(super(), "set_input_size", None)
        if self.resolution is None and inherited is not None:
            inherited(img_size=img_size, **fields)
        if img_size is not None:
            self.settings = self.settings.changed(image_size=img_size)
            record_image_size(self, self.settings.image_size)

    def _prepared(self, images: Tensor) -> Tensor:
        """The images in the size and the order that timm's network takes."""
        check_images(images, self.settings)
        if self.resolution is not None:
            images = resized(images, (self.resolution, self.resolution))
        is_traced = isinstance(images, Proxy)
        if self._pads_averages and not is_traced and images.device.type != "cpu":
            return images  # PyTorch 2.12 has a wrong gradient there, channels last (pytorch#188344)
        # With channels last, depthwise convolutions take two thirds of the time on a CPU.
        return images.contiguous(memory_format=torch.channels_last)

    @cached_property
    def _pads_averages(self) -> bool:
        """Whether some average pooling has a padding."""
        pools = (one for one in self.modules() if isinstance(one, nn.AvgPool2d))
        return any(pool.padding not in (0, (0, 0)) for pool in pools)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimiser factory must not decay, besides biases and norms."""
        inherited: Callable[[], set[str]] = getattr(super(), "no_weight_decay", set)
        return set(inherited()) & {name for name, _ in self.named_parameters()}


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, height, width] -> [B, C, *size], smoothed as when a picture is made smaller."""
    if images.shape[2:] == size:
        return images
    return interpolate(images, size, mode="bicubic", antialias=True)


@cache
def _plain_type(kind: Any) -> type[nn.Module]:
    return type(kind.__name__, (CutNetwork, kind), {})


def _blank(kind: Any) -> nn.Module:
    """A network of timm's class without its content, as `pickle` and `copy` fill it."""
    made = _plain_type(kind)
    return made.__new__(made)


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


class _Nothing(nn.Module):
    """What is left of a residual branch: a zero [], which is added to the shortcut."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x.new_zeros(())


class _PassedOn(nn.Module):
    """What is left of the rest of a branch, and of a block without any branch: its input."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x


@register_notrace_module  # its shapes are those of its input, which a trace does not know
class UnitMajorLinear(nn.Linear):
    """A projection to several things at once whose rows are ordered by unit, not by kind.

    Such as queries, keys and values of heads, or gates and values of MLP units. So the leading rows
    belong to the leading units. The output has timm's order.
    """

    kinds: int
    """How many things each unit gets."""
    per_unit: int
    """Rows of each kind per unit: 1, or the size of a head."""

    def forward(self, x: Tensor) -> Tensor:
        num_units = self.out_features // (self.kinds * self.per_unit)
        by_unit = super().forward(x).reshape(*x.shape[:-1], num_units, self.kinds, self.per_unit)
        return by_unit.transpose(-3, -2).flatten(-3)


class _EvaAttention(EvaAttention):
    """EVA's attention with any number of heads: timm's needs them to be as wide as the input."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """[B, tokens, dim] -> [B, tokens, dim], with rotary positions for all but the prefix."""
        if self.qkv is None:
            rows = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)
        else:
            rows = self.qkv(x)
        if self.q_bias is not None:
            rows = rows + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        heads = rows.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        if rope is not None:
            queries, keys = self._rotated(queries, rope), self._rotated(keys, rope)
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=attn_mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            is_causal=is_causal,
        )
        joined = self.norm(attended.transpose(1, 2).flatten(2))
        if self.gate is not None:
            joined = joined * self.gate(x).sigmoid()
        out: Tensor = self.proj_drop(self.proj(joined))
        return out

    def _rotated(self, heads: Tensor, rope: Tensor) -> Tensor:
        """[B, heads, tokens, head_dim], of which the tokens of patches are rotated."""
        prefix, patches = heads.tensor_split((self.num_prefix_tokens,), dim=2)
        rotated = apply_rot_embed_cat(patches, rope, half=self.rotate_half)
        return torch.cat([prefix, rotated], dim=2).type_as(heads)


def timm_model(settings: TimmSettings) -> nn.Module:
    """timm's model with these settings, with random weights, on the default device."""
    return timm.create_model(settings.model, pretrained=False, **model_fields(settings))


def model_fields(settings: TimmSettings) -> dict[str, Any]:
    """The arguments with which timm makes the model."""
    known: Any = timm.get_pretrained_cfg(settings.model)
    fields: dict[str, Any] = {"num_classes": settings.num_classes, "in_chans": settings.in_chans}
    if known is not None and known.fixed_input_size:
        fields["img_size"] = settings.image_size
    return fields


@lru_cache(maxsize=8)
def _structure(settings: TimmSettings) -> Callable[[], nn.Module]:
    """Makes copies of timm's model on the meta device."""
    with structure_only():
        network = timm_model(settings)
    stored = pickled(network)
    return lambda: deepcopy(network) if stored is None else pickle.loads(stored)


def build(
    arch: TimmArch,
    settings: TimmSettings,
    drop_path_rates: Sequence[float] = (),
    dropout_rate: float = 0.0,
) -> nn.Module:
    """Builds the plain network of a cut, on the default device."""
    network = build_whole(settings)
    for block in arch.blocks:
        for group, units in zip(block.groups, block.units, strict=True):
            if units:
                keep_leading(network, group, units)
            else:
                leave_out(network, block.name, group.branch)
    _add_drops(network, arch, drop_path_rates, dropout_rate)
    network.resolution = arch.resolution  # type: ignore[assignment]
    return network


def build_whole(settings: TimmSettings) -> nn.Module:
    """Builds timm's model with all of its units, on the default device.

    Its tensors are timm's, except that rows of joint projections are ordered by unit.
    """
    is_structure = torch.empty(0).is_meta
    network = _structure(settings)() if is_structure else timm_model(settings)
    for attention in heads_of(network).values():
        _prepare_heads(attention)
    for mlp in gated_mlps_of(network).values():
        _order_by_unit(mlp.fc1, kinds=2, per_unit=1)
    plain: Any = network
    kind: Any = type(network)
    plain.__class__ = _plain_type(kind)
    plain.settings = settings
    return network


def heads_of(network: nn.Module) -> dict[str, Any]:
    """The attention modules that have heads of the known forms, by name."""
    kinds = (Attention, AttentionRope, EvaAttention, _EvaAttention)
    return {name: module for name, module in network.named_modules() if type(module) in kinds}


def gated_mlps_of(network: nn.Module) -> dict[str, Any]:
    """MLPs that compute gates and values of their units in one linear layer, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) is GluMlp and isinstance(module.fc1, nn.Linear)
    }


def _prepare_heads(attention: Any) -> None:
    if isinstance(attention, EvaAttention):
        attention.__class__ = _EvaAttention
        attention.k_bias = None  # zeros, which timm keeps in a buffer
    if attention.qkv is not None:
        _order_by_unit(attention.qkv, kinds=3, per_unit=attention.head_dim)


def _order_by_unit(projection: Any, *, kinds: int, per_unit: int) -> None:
    projection.__class__ = UnitMajorLinear
    projection.kinds, projection.per_unit = kinds, per_unit


def keep_leading(network: nn.Module, group: UnitGroup, units: int) -> None:
    """Removes all but the leading units of a group, in place."""
    if units == group.num_units:
        return
    changed: dict[nn.Module, None] = {}
    for tensor in group.tensors:
        module, name = _owner(network, tensor.name)
        old = getattr(module, name)
        new = old.detach().narrow(tensor.dim, 0, units * tensor.per_unit).clone()
        is_parameter = isinstance(old, nn.Parameter)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if is_parameter else new)
        changed[module] = None
    for module in changed:
        _correct_sizes(module)
    if group.axis == "heads":
        attention: Any = network.get_submodule(group.consumer.rpartition(".")[0])
        attention.num_heads, attention.attn_dim = units, units * attention.head_dim


def leave_out(network: nn.Module, block: str, branch: Sequence[str]) -> None:
    """Removes a residual branch (`UnitGroup.branch`) of a block, in place.

    A block without any tensor left passes on what it takes, which costs no time.
    """
    for number, name in enumerate(branch):
        parent, own_name = _owner(network, name)
        if isinstance(getattr(parent, own_name), nn.Parameter):
            setattr(parent, own_name, None)  # as timm's blocks without layer scale
        else:
            setattr(parent, own_name, _PassedOn() if number else _Nothing())
    if not network.get_submodule(block).state_dict():
        network.set_submodule(block, _PassedOn())


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a module or a tensor of this name, and its own name for it.

    Raises:
        ValueError: the network has nothing of this name.
    """
    found: Any = network
    for own_name in name.split("."):
        owner, found = found, getattr(found, own_name, None)
    if found is None:
        raise ValueError(
            f"the architecture has units in {name}, which its timm model does not have: it was "
            "changed by hand, or belongs to another version of timm"
        )
    return owner, own_name


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


def _add_drops(
    network: nn.Module, arch: TimmArch, drop_path_rates: Sequence[float], dropout_rate: float
) -> None:
    rates = tuple(drop_path_rates) or (0.0,) * len(arch.blocks)
    if len(rates) < len(arch.blocks):
        raise ValueError(f"{len(rates)} drop-path rates for {len(arch.blocks)} blocks")
    for number, (block, rate) in enumerate(zip(arch.blocks, rates, strict=False)):
        module = network.get_submodule(block.name)
        for name, branch in _BRANCH_DROPS.items():
            if isinstance(getattr(module, name, ...), (DropPath, nn.Identity, type(None))):
                setattr(module, name, _DropBranch(rate, BRANCHES * number + branch))
    if dropout_rate:
        classifier = network.get_classifier()  # type: ignore[operator]
        classifier.add_module(_FEATURE_DROPOUT, _Dropout(dropout_rate))
        classifier.register_forward_pre_hook(_drop_features)


def _drop_features(classifier: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """A hook that finds the dropout in the classifier itself, so that copies use their own."""
    return classifier.get_submodule(_FEATURE_DROPOUT)(inputs[0])
