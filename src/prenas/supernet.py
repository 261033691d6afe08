"""The supernet: one full-size plain network, of which every subnet is a view.

A subnet *is* the plain network of its architecture, run on views of the shared weights. The
supernet therefore remembers no architecture: `supernet(images, arch)` is a function of its
arguments and its weights. Gradients of a subnet arrive, through the views, in the full-size
gradients of the shared weights, and are zero outside the part that the subnet owns.
"""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prenas.families import build, build_structure, family_of
from prenas.families.base import Arch, Box, Settings, leading_boxes, named_tensors, tensor_shapes


def _structure(
    arch: Arch,
    settings: Settings,
    drop_path_rates: tuple[float, ...] = (),
    dropout: float = 0.0,
    training: bool = False,
) -> nn.Module:
    """The layers of a subnet without weights, kept for the next call.

    One per mode, so that a call changes nothing; one per thread, because a call lends it weights.
    """
    return _kept_structure(arch, settings, drop_path_rates, dropout, training, get_ident())


@lru_cache(maxsize=256)
def _kept_structure(
    arch: Arch,
    settings: Settings,
    drop_path_rates: tuple[float, ...],
    dropout: float,
    training: bool,
    _thread: int,
) -> nn.Module:
    return build_structure(arch, settings, drop_path_rates, dropout).train(training)


@lru_cache(maxsize=256)
def owned_boxes(arch: Arch, largest: Arch, settings: Settings) -> dict[str, Box]:
    """Which part of every tensor of the `largest` network the subnet `arch` owns."""
    return leading_boxes(
        tensor_shapes(_structure(arch, settings)),
        tensor_shapes(_structure(largest, settings)),
    )


class Supernet(nn.Module):
    """Weight-sharing network over all architectures that fit inside `arch`.

    Args:
        arch: the largest network, whose weights all subnets share.
        settings: input and classes, the same for all subnets.
        drop_path: stochastic-depth rate of the last layer, rising linearly from 0 over the depth
            of the supernet; a layer keeps its rate in every subnet.
        dropout: rate of the features before the classifier.
    """

    def __init__(
        self, arch: Arch, settings: Settings, *, drop_path: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.family = family_of(arch)
        self.arch = arch
        self.settings = settings
        # One rate per layer of the deepest network, so layer i has the same rate in all of them.
        num_layers = max(1, self.family.num_layers(arch))
        self.drop_path_rates: tuple[float, ...] = tuple(
            torch.linspace(0.0, drop_path, num_layers).tolist()
        )
        self.dropout = dropout
        self.network = build(arch, settings, self.drop_path_rates, dropout)

    @property
    def num_draws(self) -> int:
        """Columns of `noise`: one per residual branch, then, only with dropout, one per feature
        before the classifier."""
        num_features = int(self.network.head_hidden_size) if self.dropout else 0  # type: ignore[arg-type]
        return self.family.num_branches(self.arch) + num_features

    def initialize(self, generator: torch.Generator) -> Supernet:
        """Fills the weights with the family's initialisation; returns self."""
        with torch.no_grad():
            self.family.initialize(self.network, generator)
        return self

    def forward(self, images: Tensor, arch: Arch, noise: Tensor | None = None) -> Tensor:
        """Logits [B, num_classes] of the subnet `arch` for images [B, in_chans, height, width].

        Args:
            noise: uniform numbers in [0, 1) of shape [B, num_draws], one row per sample, that
                decide in training which residual branches stochastic depth drops and which
                features dropout drops.

        Raises:
            ValueError: the architecture does not fit, or the images have another shape.
        """
        views = self.views(arch)
        structure = _structure(arch, self.settings, *self._drops(arch), self.training)
        return functional_call(structure, views, (images, noise), strict=True)  # type: ignore[no-any-return]

    def views(self, arch: Arch) -> dict[str, Tensor]:
        """The subnet's tensors (parameters and buffers) as views of the shared ones."""
        shared = named_tensors(self.network)
        return {name: shared[name][box] for name, box in self.owned(arch).items()}

    def owned(self, arch: Arch) -> dict[str, Box]:
        """Which part of every shared tensor the subnet owns; absent names are not owned.

        Raises:
            ValueError: the architecture does not fit into this supernet.
        """
        self.family.check_contains(self.arch, arch)
        return dict(owned_boxes(arch, self.arch, self.settings))

    def cut(self, arch: Arch) -> nn.Module:
        """The plain network of `arch` with a copy of its weights, in the supernet's mode."""
        views = self.views(arch)
        like = next(self.network.parameters())
        structure = build_structure(arch, self.settings, *self._drops(arch)).to(like.dtype)
        network = structure.to_empty(device=like.device).train(self.training)
        with torch.no_grad():
            for name, tensor in named_tensors(network).items():
                tensor.copy_(views[name])
        return network

    def bound(self, arch: Arch, *, drops: bool = True) -> nn.Module:
        """The plain network of `arch` on the shared weights themselves, in the supernet's mode.

        Its parameters are leaves that view the owned part of the shared ones, and their `.grad`
        views that part of the shared `.grad`: backward passes add to it in place, as cheaply as
        in a network of its own. It holds as long as the shared tensors stay where they are.

        Args:
            drops: with stochastic depth and dropout, where this supernet has them.

        Raises:
            ValueError: the architecture does not fit into this supernet, or a shared parameter
                that is trained has no `.grad` to add to.
        """
        shared, owned = named_tensors(self.network), self.owned(arch)
        rates = self._drops(arch) if drops else ()
        network = build_structure(arch, self.settings, *rates).train(self.training)
        for name, box in owned.items():
            path, _, own_name = name.rpartition(".")
            tensor = shared[name]
            view = tensor.detach()[box]
            if isinstance(tensor, nn.Parameter):
                view = nn.Parameter(view, requires_grad=tensor.requires_grad)
                if tensor.requires_grad:
                    if tensor.grad is None:
                        raise ValueError(
                            f"{name} is trained, but has no .grad that a bound subnet could add "
                            "to: make a GradientBuffer of the parameters first, or call "
                            "supernet(images, arch)"
                        )
                    view.grad = tensor.grad[box]
            setattr(network.get_submodule(path), own_name, view)
        return network

    def trimmed(self, arch: Arch, *, drop_path: float = 0.0, dropout: float = 0.0) -> Supernet:
        """A smaller supernet whose largest network is `arch`, with a copy of these weights."""
        supernet = Supernet(arch, self.settings, drop_path=drop_path, dropout=dropout)
        supernet.to(next(self.parameters()))
        supernet.network.load_state_dict(self.cut(arch).state_dict())
        return supernet.train(self.training)

    def with_network(self, network: nn.Module) -> Supernet:
        """The same supernet over other weights, such as a moving average; nothing is copied."""
        other = copy(self)
        other._modules = {"network": network}
        return other

    def _drops(self, arch: Arch) -> tuple[tuple[float, ...], float]:
        """Stochastic-depth rates of the subnet's layers, and its dropout."""
        return self.drop_path_rates[: self.family.num_layers(arch)], self.dropout
