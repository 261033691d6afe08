"""The subnets of a training: real networks on the shared weights, kept from step to step.

With `supernet(images, arch)`, every tensor is sliced again in each step, and the backward pass
writes a full-size tensor of zeros per slice. Here the views are made once per subnet. They are
leaves, so their gradients are added in place to the part of the shared gradient that they view.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain

from torch import Tensor, nn

from prenas.families.base import Arch
from prenas.supernet import Supernet
from prenas.training.compiled import Compiled
from prenas.training.features import Answer, WithFeatures

MOST_KEPT = 64
"""Subnets of a whole space that are kept: the same one is rarely drawn twice."""
_MOST_PREFERRED = 1024
"""Preferred subnets that are kept. They share the weights; the modules and views of one take 1 to
4 MB, and making them takes as long as a small step."""


_Subnet = Callable[[Tensor, Tensor | None], Tensor | Answer]
"""(images, noise) -> logits, with the features if they were asked for."""


def num_kept(num_preferred: int | None) -> int:
    """How many subnets a training keeps from step to step; None: it samples from a whole space.

    A preferred subnet may be used both with and without stochastic depth and dropout.
    """
    return MOST_KEPT if num_preferred is None else min(2 * num_preferred, _MOST_PREFERRED)


# PyTorch warns once per process about adding to the `.grad` of a strided view; that is intended.
warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")


class BoundSubnets:
    """Subnet -> `supernet.bound(arch)`, kept as long as the shared tensors stay where they are.

    A subnet that is used both with and without stochastic depth and dropout is kept twice.

    Args:
        compiled_for: compile the subnets for batches of this many images; None: do not compile.
        most_kept: number of subnets to keep, those used last.
        features: return features too, as `WithFeatures` does.
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        compiled_for: int | None = None,
        most_kept: int = MOST_KEPT,
        features: bool = False,
    ) -> None:
        self._supernet, self._compiled_for = supernet, compiled_for
        self._features = features
        self._most_kept = most_kept
        # Not `lru_cache` of a method: in a cycle, networks and gradients outlive the training.
        self._kept: OrderedDict[tuple[Arch, bool], tuple[nn.Module, _Subnet]] = OrderedDict()
        self._addresses: list[tuple[int, int, bool]] = []

    def __call__(self, arch: Arch, *, drops: bool = True) -> _Subnet:
        """The network of a subnet, in the mode of the supernet: (images, noise) -> logits.

        Args:
            drops: apply stochastic depth and dropout, if the supernet has them.

        Raises:
            ValueError: the architecture does not fit, or a shared parameter has no `.grad` yet.
        """
        addresses = self.addresses()
        if addresses != self._addresses:
            self._kept.clear()
            self._addresses = addresses
        key = arch, drops
        if key not in self._kept:
            self._kept[key] = self._make(arch, drops)
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        network, run = self._kept[key]
        if network.training != self._supernet.training:
            network.train(self._supernet.training)
        return run

    def _make(self, arch: Arch, drops: bool) -> tuple[nn.Module, _Subnet]:
        network = self._supernet.bound(arch, drops=drops)
        if self._features:
            network = WithFeatures(network).train(network.training)
        if self._compiled_for is None:
            return network, network
        return network, Compiled(network, self._compiled_for)

    def addresses(self) -> list[tuple[int, int, bool]]:
        """What the views depend on: addresses of tensors and gradients, and which are trained.

        Moving, casting or assigning to a network gives its tensors other memory. Memory that a
        view refers to is not freed, so no address is reused while the view is kept.
        """
        network = self._supernet.network
        return [
            (
                tensor.data_ptr(),
                0 if tensor.grad is None else tensor.grad.data_ptr(),
                tensor.requires_grad,
            )
            for tensor in chain(network.parameters(), network.buffers())
        ]
