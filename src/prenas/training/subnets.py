"""The subnets of a training: real networks on the shared weights, kept from step to step.

Run through `supernet(images, arch)`, every tensor is sliced anew in each step, and the backward
pass writes a full-size tensor of zeros per slice. Here the views are made once per subnet and are
leaves, whose gradients are added in place to the part of the shared ones that the subnet owns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from itertools import chain

from torch import Tensor, nn

from prenas.families.base import Arch
from prenas.supernet import Supernet
from prenas.training.compiled import Compiled

MOST_KEPT = 64
"""More than any preferred set has; who draws from a whole space rarely meets a subnet again."""

# Said once per process by an addition to `.grad` of a view with gaps, which is what we want.
warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")


class BoundSubnets:
    """Subnet -> `supernet.bound(arch)`, kept as long as the shared tensors stay where they are.

    With stochastic depth and dropout or without: a subnet asked for both ways is kept twice.

    Args:
        compiled_for: compile them for batches of so many images; None leaves them as they are.
    """

    def __init__(self, supernet: Supernet, *, compiled_for: int | None = None) -> None:
        self._supernet, self._compiled_for = supernet, compiled_for
        self._kept = lru_cache(maxsize=MOST_KEPT)(self._make)
        self._places: list[tuple[int, int, bool]] = []

    def __call__(
        self, arch: Arch, *, drops: bool = True
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The network of a subnet, in the supernet's mode: (images, noise) -> logits.

        Args:
            drops: with stochastic depth and dropout, where the supernet has them.

        Raises:
            ValueError: the architecture does not fit, or a shared parameter has no `.grad` yet.
        """
        places = self._found_places()
        if places != self._places:
            self._kept.cache_clear()
            self._places = places
        network, run = self._kept(arch, drops)
        if network.training != self._supernet.training:
            network.train(self._supernet.training)
        return run

    def _make(
        self, arch: Arch, drops: bool
    ) -> tuple[nn.Module, Callable[[Tensor, Tensor | None], Tensor]]:
        network = self._supernet.bound(arch, drops=drops)
        if self._compiled_for is None:
            return network, network
        return network, Compiled(network, self._compiled_for)

    def _found_places(self) -> list[tuple[int, int, bool]]:
        """Where tensors and gradients lie, and which are trained: what the views depend on.

        Moving or casting a network, and loading by assignment, put other memory behind it. What
        views hold on to is not freed, so no address comes back while they are kept.
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
