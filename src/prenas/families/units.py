"""Hidden units, which can be scored one by one and put into another order."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from prenas.values import Value

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class UnitTensor(Value):
    """A parameter or buffer in which every unit owns the same number of consecutive slices."""

    name: str
    """Its name in the whole network."""
    dim: int = Field(ge=0)
    per_unit: Positive = 1
    """Slices along `dim` that belong to one unit."""


class UnitGroup(Value):
    """The hidden units of a layer that one axis counts, e.g. channels, MLP units or heads."""

    axis: str
    """What the units are, as tables call it: `channels`, `units` (of an MLP) or `heads`."""
    num_units: Positive
    """Their number in the largest network."""
    consumer: str
    """Name of the convolution or linear layer that takes the units as its input."""
    tensors: tuple[UnitTensor, ...]
    """All tensors in which the units own slices."""
    branch: tuple[str, ...] = ()
    """The residual branch through these units, which is left out if none is kept: its modules and
    parameters, first the one that contains the consumer. Empty if one unit must be kept."""


def num_kept(network: nn.Module, group: UnitGroup) -> int:
    """How many units of a group a network has: all of them, or fewer if it was cut."""
    tensor = next(one for one in group.tensors if one.name == f"{group.consumer}.weight")
    weight = dict(network.named_parameters()).get(tensor.name)
    return 0 if weight is None else weight.shape[tensor.dim] // tensor.per_unit


@torch.no_grad()
def reorder(network: nn.Module, group: UnitGroup, order: Tensor) -> None:
    """Puts the units of a group into another order, in place: unit i is the former `order[i]`."""
    if not len(order):
        return  # the branch was left out, with all of its tensors
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for part in group.tensors:
        tensor = tensors[part.name]
        slices = order.to(tensor.device)[:, None] * part.per_unit
        slices = (slices + torch.arange(part.per_unit, device=tensor.device)).flatten()
        tensor.copy_(tensor.index_select(part.dim, slices))
