"""The supernet: one full-size plain network; every subnet is a view of it.

A subnet *is* the plain network of its architecture, run on views of the shared weights. So the
supernet stores no current architecture: `supernet(images, arch)` is a function of its arguments
and its weights. Through the views, a subnet's gradients end up in the full-size gradients of the
shared weights; they are zero outside the part that the subnet owns.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import lru_cache
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prenas.families import build_shared, build_structure, family_of, structure_only
from prenas.families.base import (
    Arch,
    Box,
    Settings,
    Shape,
    check_contains,
    named_tensors,
    tensor_shapes,
)

Statistics = Mapping[str, Tensor]
"""BatchNorm statistics of one subnet: its buffers, by name."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_Mode = Literal["training", "evaluating", "observing"]


def _structure(
    arch: Arch,
    settings: Settings,
    drop_path_rates: tuple[float, ...],
    dropout: float,
    mode: _Mode,
) -> nn.Module:
    """The layers of a subnet without weights, cached for the next call.

    There is one per mode, so that no call changes another's mode, and one per thread, because a
    call puts its weights into it.
    """
    return _kept_structure(arch, settings, drop_path_rates, dropout, mode, get_ident())


@lru_cache(maxsize=256)
def _kept_structure(
    arch: Arch,
    settings: Settings,
    drop_path_rates: tuple[float, ...],
    dropout: float,
    mode: _Mode,
    _thread: int,
) -> nn.Module:
    structure = build_structure(arch, settings, drop_path_rates, dropout)
    return _in_mode(structure, mode)


def _in_mode(network: nn.Module, mode: _Mode) -> nn.Module:
    """Sets the mode of a network.

    Training does not update running statistics, because those of one subnet are wrong for all
    others. Observing is evaluation, except that BatchNorm gathers the plain average over batches.
    """
    network.train(mode == "training")
    for module in network.modules():
        if isinstance(getattr(module, _BIAS_CACHE, None), dict):
            setattr(module, _BIAS_CACHE, _AlwaysNew())
        if isinstance(module, _BATCH_NORMS):
            module.track_running_stats = mode == "observing"
            if mode == "observing":
                module.train()
    return network


_BIAS_CACHE = "attention_bias_cache"
"""Where timm's LeViT, TinyViT and others keep a lookup of a parameter in evaluation, for good."""


class _AlwaysNew(dict[Any, Any]):
    """Looks empty, so that what depends on weights is looked up again: they are lent and change."""

    def __contains__(self, key: object) -> bool:
        return False


def statistic_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the buffers that contain BatchNorm statistics."""
    return tuple(
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if isinstance(module, _BATCH_NORMS)
        for name, _ in module.named_buffers(recurse=False)
    )


@lru_cache(maxsize=256)
def owned_boxes(arch: Arch, largest: Arch, settings: Settings) -> dict[str, Box]:
    """For each tensor of the `largest` network, the part that the subnet `arch` owns.

    Names that are missing are not owned. Do not modify the result: it is cached.

    Raises:
        ValueError: the architecture does not fit into the largest one.
    """
    check_contains(largest, arch)
    shapes = tensor_shapes(_structure(arch, settings, (), 0.0, "evaluating"))
    return family_of(arch).owned_boxes(shapes, _shared_shapes(largest, settings))


@lru_cache(maxsize=64)
def _shared_shapes(largest: Arch, settings: Settings) -> dict[str, Shape]:
    with structure_only():
        return tensor_shapes(build_shared(largest, settings))


class Supernet(nn.Module):
    """Weight-sharing network over all architectures that fit inside `arch`.

    Args:
        arch: the largest network, whose weights all subnets share.
        settings: input and classes, the same for all subnets.
        drop_path: highest stochastic-depth rate. The family gives each layer a rate, which the
            layer keeps in every subnet.
        dropout: dropout rate of the features before the classifier.
    """

    def __init__(
        self, arch: Arch, settings: Settings, *, drop_path: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.family = family_of(arch)
        self.arch = arch
        self.settings = settings
        self.dropout = dropout
        rates = self.family.drop_path_rates(arch, drop_path)
        self.drop_path_rates = dict(zip(self.family.layers(arch), rates, strict=True))
        """Prefix of a layer's tensor names -> stochastic-depth rate of the layer."""
        self.network = build_shared(arch, settings)
        self.has_statistics = bool(statistic_names(self.network))
        """Whether each subnet needs its own BatchNorm statistics for evaluation."""

    @classmethod
    def around(cls, network: nn.Module, arch: Arch, settings: Settings) -> Supernet:
        """A supernet with a copy of the weights of this plain network of `arch`.

        Tensors that only smaller subnets would own are zero.
        """
        supernet = cls(arch, settings)
        views, tensors = supernet.views(arch), named_tensors(network)
        with torch.no_grad():
            for name, shared in named_tensors(supernet.network).items():
                if name not in views:
                    shared.zero_()
                else:
                    views[name].copy_(tensors[name])
        return supernet

    @property
    def num_draws(self) -> int:
        """Columns of `noise`: one per residual branch, and with dropout one more per feature before
        the classifier."""
        num_features = int(self.network.head_hidden_size) if self.dropout else 0  # type: ignore[arg-type]
        return self.family.num_branches(self.arch) + num_features

    def initialize(self, generator: torch.Generator) -> Supernet:
        """Initialises the weights as the family prescribes; returns self."""
        with torch.no_grad():
            self.family.initialize(self.network, generator)
        return self

    def forward(
        self,
        images: Tensor,
        arch: Arch,
        noise: Tensor | None = None,
        statistics: Statistics | None = None,
    ) -> Tensor:
        """Logits [B, num_classes] of the subnet `arch` for images [B, in_chans, height, width].

        Args:
            noise: uniform numbers in [0, 1) of shape [B, num_draws], one row per image. They decide
                which residual branches and which features are dropped in training.
            statistics: result of the calibration of this subnet; needed in evaluation mode if
                `has_statistics`.

        Raises:
            ValueError: the architecture does not fit, the images have another shape, or the
                statistics are missing or belong to another subnet.
        """
        views = self.views(arch)
        if not self.training:
            views.update(self.required(arch, statistics))
        structure = self._lent(arch, "training" if self.training else "evaluating")
        return functional_call(structure, views, (images, noise), strict=True)  # type: ignore[no-any-return]

    def _lent(self, arch: Arch, mode: _Mode) -> nn.Module:
        return _structure(arch, self.settings, *self._drops(arch), mode)

    def fresh_statistics(self, arch: Arch) -> dict[str, Tensor]:
        """Statistics before any image, for `observe` to update; empty without BatchNorm."""
        found, shared = {}, named_tensors(self.network)
        for name, shape in self._statistic_shapes(arch).items():
            like = shared[name]
            fill = torch.ones if name.endswith("running_var") else torch.zeros
            found[name] = fill(shape, dtype=like.dtype, device=like.device)
        return found

    def _statistic_shapes(self, arch: Arch) -> dict[str, Shape]:
        boxes = self.owned_boxes(arch)
        structure = _structure(arch, self.settings, (), 0.0, "evaluating")
        return {
            name: tuple(part.stop for part in boxes[name]) for name in statistic_names(structure)
        }

    @torch.no_grad()
    def observe(self, images: Tensor, arch: Arch, statistics: dict[str, Tensor]) -> None:
        """Updates the statistics of a subnet with a batch of images, in place.

        Statistics are plain averages over batches, of means and unbiased variances. Each layer
        receives the output of the layers before it for the same batch. Stochastic depth and dropout
        are off.

        Args:
            statistics: result of `fresh_statistics`, possibly updated with earlier batches.
        """
        views = {**self.views(arch), **statistics}
        structure = self._lent(arch, "observing")
        # With a momentum of None, every layer would read its count, and wait for the device.
        counts = (one for name, one in statistics.items() if name.endswith("num_batches_tracked"))
        share = 1 / (1 + int(next(counts, torch.tensor(0))))
        for module in structure.modules():
            if isinstance(module, _BATCH_NORMS):
                module.momentum = share
        functional_call(structure, views, (images, None), strict=True)

    def required(self, arch: Arch, statistics: Statistics | None) -> Statistics:
        """The statistics to evaluate a subnet with, checked.

        Raises:
            ValueError: they are needed but missing, or belong to a subnet of other sizes.
        """
        if not self.has_statistics and not statistics:
            return {}
        if not statistics:
            raise ValueError(
                f"subnet {arch.id} ({arch.summary}) has no BatchNorm statistics yet. Subnets share "
                "weights, but not these statistics. Calibrate it first (`prenas calibrate RUN`; in "
                "Python prenas.calibrate(RUN), or calibrate(supernet, archs, batches) of "
                "prenas.evaluation.calibration) and pass the result as `statistics`"
            )
        given = {name: tuple(tensor.shape) for name, tensor in statistics.items()}
        if given != self._statistic_shapes(arch):
            raise ValueError(
                f"these statistics do not belong to subnet {arch.id} ({arch.summary}): names or "
                "sizes differ. Pass what its own calibration returned"
            )
        device = next(self.network.parameters()).device
        return {name: tensor.to(device) for name, tensor in statistics.items()}

    def views(self, arch: Arch) -> dict[str, Tensor]:
        """The subnet's parameters and buffers, as views of the shared ones."""
        shared = named_tensors(self.network)
        return {name: shared[name][box] for name, box in self.owned_boxes(arch).items()}

    def owned_boxes(self, arch: Arch) -> dict[str, Box]:
        """For each shared tensor, the part that the subnet owns; missing names are not owned.

        Raises:
            ValueError: the architecture does not fit into this supernet.
        """
        return dict(owned_boxes(arch, self.arch, self.settings))

    def cut(self, arch: Arch, statistics: Statistics | None = None) -> nn.Module:
        """The plain network of `arch` with a copy of its weights, in the supernet's mode.

        BatchNorm gets the given statistics; without them, in training mode, those of a new network.

        Raises:
            ValueError: the architecture does not fit, or statistics for evaluation are missing.
        """
        views = self.views(arch)
        if statistics is None and self.training:
            statistics = self.fresh_statistics(arch)
        views.update(self.required(arch, statistics))
        like = next(self.network.parameters())
        structure = build_structure(arch, self.settings, *self._drops(arch))
        network = structure.to(like.dtype).to_empty(device=like.device).train(self.training)
        with torch.no_grad():
            for name, tensor in named_tensors(network).items():
                tensor.copy_(views[name])
        return network

    def bound(self, arch: Arch, *, drops: bool = True) -> nn.Module:
        """The plain network of `arch` on the shared weights themselves, in the supernet's mode.

        Its parameters are leaves that view the owned part of the shared ones, and their `.grad`
        views that part of the shared `.grad`. So backward passes add to it in place, as cheaply as
        in a separate network. The result is valid as long as the shared tensors keep their memory.

        Args:
            drops: whether stochastic depth and dropout are active in training.

        Raises:
            ValueError: the architecture does not fit into this supernet, or a trained shared
                parameter has no `.grad` to add to.
        """
        shared, boxes = named_tensors(self.network), self.owned_boxes(arch)
        rates = self._drops(arch) if drops else ()
        structure = build_structure(arch, self.settings, *rates)
        network = _in_mode(structure, "training" if self.training else "evaluating")
        for name, box in boxes.items():
            path, _, own_name = name.rpartition(".")
            tensor = shared[name]
            view = tensor.detach()[box]
            if isinstance(tensor, nn.Parameter):
                view = nn.Parameter(view, requires_grad=tensor.requires_grad)
                if tensor.requires_grad:
                    if tensor.grad is None:
                        raise ValueError(
                            f"{name} is trained but has no .grad for a bound subnet to add to: "
                            "create a GradientBuffer of the parameters first, or call "
                            "supernet(images, arch)"
                        )
                    view.grad = tensor.grad[box]
            setattr(network.get_submodule(path), own_name, view)
        return network

    def trimmed(self, arch: Arch, *, drop_path: float = 0.0, dropout: float = 0.0) -> Supernet:
        """A smaller supernet whose largest network is `arch`, with a copy of these weights.

        Raises:
            ValueError: the architecture does not fit into this supernet.
        """
        check_contains(self.arch, arch)
        supernet = Supernet(arch, self.settings, drop_path=drop_path, dropout=dropout)
        supernet = supernet.to(next(self.parameters()))
        smaller, shared = named_tensors(supernet.network), named_tensors(self.network)
        boxes = self.family.owned_boxes(
            tensor_shapes(supernet.network), tensor_shapes(self.network)
        )
        with torch.no_grad():
            for name, tensor in smaller.items():
                tensor.copy_(shared[name][boxes[name]])
        return supernet.train(self.training)

    def with_network(self, network: nn.Module) -> Supernet:
        """The same supernet with other weights, such as a moving average, in that network's mode.

        Nothing is copied.
        """
        other = copy(self)
        other._modules = {"network": network}
        other.training = network.training
        return other

    def _drops(self, arch: Arch) -> tuple[tuple[float, ...], float]:
        """Rates of stochastic depth and of dropout in a subnet."""
        rates = tuple(self.drop_path_rates[layer] for layer in self.family.layers(arch))
        return rates, self.dropout
