"""The contract of a search-space family: everything the other rooms know about networks.

A family gives named spaces, a plain network for exactly one architecture, the cost of an
architecture, and the role of each tensor. Which part of the supernet's tensors a subnet owns
follows from the shapes of its plain network (`leading_boxes`), so it is written down once, here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn

from prenas.values import Value, explain

Box = tuple[slice, ...]
"""The part of a tensor that a subnet owns, as an index: `tensor[box]` is a view."""

Shape = tuple[int, ...]


class Arch(Value):
    """One architecture of a family: a value, never the state of a module."""

    @property
    def id(self) -> str:
        """Ten characters that are the same for equal architectures only, for files and logs."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:10]

    @property
    def summary(self) -> str:
        """A few words for tables, e.g. "192 x 12, heads 3-4, ratio 3.5-4" (width x depth)."""
        raise NotImplementedError

    @property
    def network_options(self) -> Mapping[str, float]:
        """What was chosen once per network, e.g. width and depth: different for each skeleton."""
        raise NotImplementedError

    @property
    def layer_options(self) -> Mapping[str, tuple[float | None, ...]]:
        """Per layer axis of its space, the option of every layer, from the input on.

        None keeps the place of a layer that this architecture lacks and a deeper one has there;
        layers missing at the end are simply missing. With `network_options` it tells equal
        architectures from others.
        """
        raise NotImplementedError


class Settings(Value):
    """What all networks of one space have in common: the input and the number of classes."""

    image_size: tuple[int, int] = (224, 224)
    in_chans: int = Field(3, ge=1)
    num_classes: int = Field(1000, ge=1)

    def changed(self, **fields: Any) -> Self:
        """A copy with other values of some fields, checked; ValueError for unknown fields."""
        try:
            return type(self).model_validate({**self.model_dump(), **fields})
        except ValidationError as error:
            raise ValueError(explain(error)) from None

    @field_validator("image_size", mode="before")
    @classmethod
    def _square_from_one_number(cls, value: object) -> object:
        if isinstance(value, int):
            return (value, value)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"one whole number or [height, width] is needed (given: {value!r})")
        return value

    @field_validator("image_size")
    @classmethod
    def _positive(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1:
            raise ValueError(f"image size {value} must be positive in both directions")
        return value


class Cost(NamedTuple):
    """What a subnet costs; budgets name these fields.

    `macs` counts matrix products (attention, patch convolution and head included) without
    relative positions; `relative_macs` is what relative positions add in the form that is run.
    """

    params: int
    macs: int
    relative_macs: int = 0


COST_AXES = ("params", "macs")
"""The costs a budget may bound, in the order in which they break ties between equal scores."""


class LayerAxis(NamedTuple):
    """A choice made in every layer, its options from small to large."""

    name: str
    options: tuple[float, ...]


class Skeleton(Value):
    """The choices made once per network; what is left to choose is one option per layer axis."""

    @property
    def num_layers(self) -> int:
        """Layers that take part in the per-layer choices."""
        raise NotImplementedError


class SearchSpace(Value):
    """The architectures of one family that a search considers, and their common settings."""

    family: str
    name: str
    settings: Settings

    @property
    def layer_axes(self) -> tuple[LayerAxis, ...]:
        """The per-layer choices, each with its options in rising order."""
        raise NotImplementedError

    @property
    def skeletons(self) -> tuple[Skeleton, ...]:
        """Every combination of the per-network choices, the smallest first, the largest last.

        This order breaks ties between equal scores.
        """
        raise NotImplementedError

    def compose(self, skeleton: Skeleton, choices: Sequence[Sequence[int]]) -> Arch:
        """The architecture with option `choices[axis][layer]` (an index) on `skeleton`."""
        raise NotImplementedError

    @property
    def supernet(self) -> Arch:
        """The network that is initialised and scored: it contains every architecture."""
        raise NotImplementedError

    @property
    def smallest(self) -> Arch:
        """The smallest option everywhere."""
        return self._extreme(0)

    @property
    def largest(self) -> Arch:
        """The largest option everywhere: the subnet whose gradient scores all others."""
        return self._extreme(-1)

    def _extreme(self, end: int) -> Arch:
        skeleton = self.skeletons[end]
        choices = [
            [range(len(axis.options))[end]] * skeleton.num_layers for axis in self.layer_axes
        ]
        return self.compose(skeleton, choices)

    @property
    def num_archs(self) -> int:
        """How many different architectures the space holds."""
        per_layer = 1
        for axis in self.layer_axes:
            per_layer *= len(axis.options)
        return sum(per_layer**skeleton.num_layers for skeleton in self.skeletons)

    def sample(self, generator: np.random.Generator) -> Arch:
        """An architecture of the space: a skeleton uniformly, every per-layer option uniformly."""
        skeleton = self.skeletons[generator.integers(len(self.skeletons))]
        choices = [
            generator.integers(len(axis.options), size=skeleton.num_layers).tolist()
            for axis in self.layer_axes
        ]
        return self.compose(skeleton, choices)

    def with_settings(self, **fields: Any) -> Self:
        """The same space for another input or number of classes."""
        return self.model_copy(update={"settings": self.settings.changed(**fields)})


class TensorRole(NamedTuple):
    """Where a parameter stands: its layer and the layer axis that sizes it, if any."""

    layer: int | None
    axis: str | None


class ReleasedNetwork(NamedTuple):
    """A network whose weights the authors released, in the terms of this package."""

    arch: Arch
    settings: Settings
    tensors: dict[str, Tensor]
    """Everything that the plain network's state dict holds, by its names, in its layout."""


@dataclass(frozen=True)
class Family:
    """Everything the rooms outside `families/` need to know about one kind of network."""

    name: str
    arch_type: type[Arch]
    space_type: type[SearchSpace]
    settings_type: type[Settings]
    spaces: Mapping[str, SearchSpace]
    build: Callable[[Any, Any, Sequence[float], float], nn.Module]
    """(arch, settings, stochastic-depth rate of each layer, dropout before the classifier) -> plain
    network, uninitialised.

    With timm's `no_weight_decay`, `group_matcher`, `get_classifier` and `head_hidden_size`.
    """
    initialize: Callable[[nn.Module, torch.Generator], None]
    """Fills a network that `build` made, every draw from the generator."""
    macs: Callable[[Any, Any], tuple[int, int]]
    """(arch, settings) -> (MACs without relative positions, what relative positions add)."""
    role: Callable[[str], TensorRole]
    """Parameter name -> layer and axis."""
    is_scored: Callable[[str], bool]
    """Whether the score S sums over this parameter."""
    unit_tensors: Mapping[str, tuple[tuple[str, int], ...]]
    """Layer axis -> (name inside the layer, dimension) of the matrices whose units it adds."""
    layer_prefix: Callable[[int], str]
    """Layer number -> what its parameter names begin with."""
    num_layers: Callable[[Any], int]
    """Layers of an architecture, each with a stochastic-depth rate of its own."""
    num_branches: Callable[[Any], int]
    """Residual branches of an architecture: the width of the stochastic-depth noise."""
    balancing_group: Callable[[Any], tuple[int, ...]]
    """The group of an architecture: draw a group, then a member (method.md, section 4)."""
    envelope: Callable[[Sequence[Any]], Arch]
    """The architecture that contains all the given ones, smallest on every axis."""
    check_contains: Callable[[Any, Any], None]
    """(largest, arch): raises ValueError, with both sizes, unless arch fits inside largest."""
    space_of: Callable[[str, Sequence[Any], Any], SearchSpace]
    """(name, archs, settings) -> the space of all options that occur in these architectures."""
    adapt: Callable[[Mapping[str, Tensor], Any, Any, torch.Generator | None], dict[str, Tensor]]
    """(tensors, their settings, new settings, generator) -> tensors for the new settings.

    Of a supernet or a subnet alike. The head is drawn anew from the generator; None keeps it.
    Raises ValueError, in words, for settings that these weights cannot serve.
    """
    with_full_reach: Callable[[Any], Settings]
    """Settings -> the same, where relative positions tell all distances of the image apart."""
    arch_scores: Mapping[str, Callable[[Any, Any], float]] = field(default_factory=dict)
    """Scores that need no weights: name -> function of (arch, settings), additive over layers."""
    published: Mapping[str, tuple[Arch, ...]] = field(default_factory=dict)
    """Space -> the preferred architectures that its authors published, the cheapest first."""
    read_released: Callable[[Mapping[str, Tensor], Mapping[str, Any]], ReleasedNetwork] | None = (
        None
    )
    """(tensors as the authors named them, training options saved beside) -> the network.

    Raises ValueError, which says why, for tensors that are not of this family.
    """


def leading_boxes(shapes: Mapping[str, Shape], full_shapes: Mapping[str, Shape]) -> dict[str, Box]:
    """The box of every tensor that a subnet owns inside the supernet: its leading part.

    Weights are shared "entangled" (method.md, section 1): the first channels, heads, hidden units
    and layers belong to every subnet that is large enough. Tensors missing from `shapes` (of layers
    that the subnet does not have) are not owned at all.

    Raises:
        ValueError: a tensor of the subnet is absent from the supernet or larger than there.
    """
    boxes: dict[str, Box] = {}
    for name, shape in shapes.items():
        full = full_shapes.get(name)
        if full is None or len(full) != len(shape) or any(map(int.__gt__, shape, full)):
            raise ValueError(f"{name} of shape {shape} does not fit into the supernet's {full}")
        boxes[name] = tuple(slice(0, size) for size in shape)
    return boxes


def tensor_shapes(network: nn.Module) -> dict[str, Shape]:
    """Name -> shape of every parameter and buffer, non-persistent buffers included."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(network).items()}


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Name -> every parameter and buffer of a network, non-persistent buffers included."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
