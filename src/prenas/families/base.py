"""The contract of a search-space family: everything the other rooms know about networks.

A family gives named spaces, a plain network for exactly one architecture, the cost of an
architecture, and the role of each tensor. Which part of the supernet's tensors a subnet owns
follows from the shapes of its plain network (`owned_boxes`), so it is written down once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator
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
        """What was chosen once per network, e.g. width and depth: in the order of the network."""
        raise NotImplementedError

    @property
    def layer_options(self) -> Mapping[str, tuple[tuple[float, ...], ...]]:
        """Per layer axis of its space, and per stage with layers, the option of every layer.

        With `network_options` it tells equal architectures from others.
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


_MOST_LAYERS = 1000


def _listed(value: object) -> object:
    """One number is one option."""
    return (value,) if isinstance(value, (str, int, float)) else value


def _rising(options: tuple[float, ...]) -> tuple[float, ...]:
    rising = sorted(set(options))
    if list(options) != rising:
        raise ValueError(
            f"options {list(options)} must be all different and in rising order: write {rising}"
        )
    return options


def _some(options: tuple[float, ...]) -> tuple[float, ...]:
    if not options:
        raise ValueError("no option is given: list at least one, in rising order")
    return options


def _not_absurd(depths: tuple[int, ...]) -> tuple[int, ...]:
    if depths[-1] > _MOST_LAYERS:
        raise ValueError(
            f"{depths[-1]:,} layers are more than a search can handle: write at most "
            f"{_MOST_LAYERS:,}"
        )
    return depths


OPTIONAL = BeforeValidator(_listed), AfterValidator(_rising)
"""As `OPTIONS`, where there may be none."""

OPTIONS = *OPTIONAL, AfterValidator(_some)
"""For fields of a space that list options: `Annotated[tuple[int, ...], *OPTIONS]`."""

NOT_TOO_DEEP = AfterValidator(_not_absurd)
"""For those that list depths."""


class LayerAxis(NamedTuple):
    """A choice made in every layer, its options from small to large."""

    name: str
    options: tuple[float, ...]


class Stage(NamedTuple):
    """One link of the chain that a network is: layers that lead from one width to the next.

    What is chosen: the width at its end, how many layers it has, and in each of them one option
    per axis. Its first layer leads from the width before to its own, all others from its own to
    its own. A stage of depth 0 has tensors without layers, such as a stem or a head.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (0,)
    axes: tuple[LayerAxis, ...] = ()
    tied: bool = False
    """Whether all layers take the same option of every axis."""


class StageChoice(NamedTuple):
    """What is chosen in one stage."""

    width: int
    """Index of its width."""
    depth: int
    """Number of its layers."""
    options: tuple[tuple[int, ...], ...] = ()
    """Per axis, the index of the option of every layer."""


Choices = tuple[StageChoice, ...]
"""What is chosen in every stage of a chain."""


class SearchSpace(Value):
    """The architectures of one family that a search considers, and their common settings.

    Their networks are chains of stages. Neighbours know each other by the width between them
    alone: what a layer costs and scores depends on the two widths at its ends and its own options.
    """

    family: str
    name: str
    settings: Settings

    @property
    def chain(self) -> tuple[Stage, ...]:
        """The stages from the input on; widths, depths and options from small to large."""
        raise NotImplementedError

    @property
    def resolutions(self) -> tuple[int | None, ...]:
        """The sides, in pixels, that networks resize their images to, from small to large.

        None takes images as they come. It is no stage: scores say nothing about it.
        """
        return (None,)

    def resolution_for(self, macs: int) -> int | None:
        """The resolution that suits a budget of so many MACs, by the space's own schedule."""
        raise NotImplementedError

    def compose(self, choices: Choices, resolution: int | None = None) -> Arch:
        """The architecture of a choice in every stage, at one of the resolutions.

        Of None, where there are several, the one that is scored.
        """
        raise NotImplementedError

    @property
    def supernet(self) -> Arch:
        """The network that is initialised and scored: it contains every architecture."""
        raise NotImplementedError

    @property
    def layer_axes(self) -> tuple[LayerAxis, ...]:
        """Every per-layer choice once, with all options that any stage has, in rising order."""
        options: dict[str, set[float]] = {}
        for stage in self.chain:
            for axis in stage.axes:
                options.setdefault(axis.name, set()).update(axis.options)
        return tuple(LayerAxis(name, tuple(sorted(found))) for name, found in options.items())

    @property
    def smallest(self) -> Arch:
        """The smallest option everywhere."""
        return self.compose(self.extreme(0), self.resolutions[0])

    @property
    def largest(self) -> Arch:
        """The largest option everywhere."""
        return self.compose(self.extreme(-1), self.resolutions[-1])

    @property
    def scored(self) -> Arch:
        """The subnet whose gradient scores all others: the largest option everywhere."""
        return self.compose(self.extreme(-1))

    def extreme(self, end: int) -> Choices:
        """The smallest (0) or the largest (-1) option everywhere."""
        return tuple(
            StageChoice(
                width=range(len(stage.widths))[end],
                depth=stage.depths[end],
                options=tuple(
                    (range(len(axis.options))[end],) * stage.depths[end] for axis in stage.axes
                ),
            )
            for stage in self.chain
        )

    @property
    def num_archs(self) -> int:
        """How many different architectures the space holds."""
        total = len(self.resolutions)
        for stage in self.chain:
            per_layer = prod(len(axis.options) for axis in stage.axes)
            ways = sum(per_layer ** (depth > 0 if stage.tied else depth) for depth in stage.depths)
            total *= len(stage.widths) * ways
        return total

    def sample(self, generator: np.random.Generator) -> Arch:
        """An architecture of the space: every choice takes each of its options equally often."""
        return self.compose(*self.sample_choices(generator))

    def sample_choices(self, generator: np.random.Generator) -> tuple[Choices, int | None]:
        """The same as choices and resolution."""
        resolutions = self.resolutions
        number = generator.integers(len(resolutions)) if len(resolutions) > 1 else 0
        choices = []
        for stage in self.chain:
            place = int(generator.integers(len(stage.widths) * len(stage.depths)))
            width, nth = divmod(place, len(stage.depths))
            depth = stage.depths[nth]
            options = tuple(
                (int(generator.integers(len(axis.options))),) * depth
                if stage.tied
                else tuple(generator.integers(len(axis.options), size=depth).tolist())
                for axis in stage.axes
            )
            choices.append(StageChoice(width, depth, options))
        return tuple(choices), resolutions[number]

    def with_settings(self, **fields: Any) -> Self:
        """The same space for another input or number of classes."""
        return self.model_copy(update={"settings": self.settings.changed(**fields)})


class TensorRole(NamedTuple):
    """Where a parameter stands: its stage, and its layer there if it belongs to one."""

    stage: int
    layer: int | None


class Work(NamedTuple):
    """Multiply-accumulates of one image in one layer, or in all that a stage has beside layers."""

    role: TensorRole
    macs: int
    relative_macs: int = 0
    """What relative positions add."""


class ReleasedNetwork(NamedTuple):
    """A network whose weights the authors released, in the terms of this package."""

    arch: Arch
    settings: Settings
    tensors: dict[str, Tensor]
    """Everything that the plain network's state dict holds, by its names, in its layout."""


def leading_box(name: str, shape: Shape, full: Shape) -> Box:
    """The first channels, heads, hidden units of a tensor (weights are shared "entangled")."""
    return tuple(slice(0, size) for size in shape)


def unchanged(settings: Any) -> Any:
    """The settings of a family without relative positions reach as far as they ever will."""
    return settings


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything the rooms outside `families/` need to know about one kind of network.

    Fields with a default may be left out.
    """

    name: str
    arch_type: type[Arch]
    space_type: type[SearchSpace]
    settings_type: type[Settings]
    spaces: Mapping[str, SearchSpace]
    build: Callable[[Any, Any, Sequence[float], float], nn.Module]
    """(arch, settings, stochastic-depth rate of each layer, dropout before the classifier) -> plain
    network, uninitialised.

    With timm's `no_weight_decay`, `group_matcher`, `get_classifier` and `head_hidden_size`.
    Normalisation by batch statistics is PyTorch's BatchNorm or made of it; the rest of the package
    finds it by that.
    """
    initialize: Callable[[nn.Module, torch.Generator], None]
    """Fills a network that `build` made, every draw from the generator."""
    work: Callable[[Any, Any], Sequence[Work]]
    """(arch, settings) -> the multiply-accumulates of every part of the network."""
    role: Callable[[Any, str], TensorRole]
    """(arch, parameter name) -> stage and layer."""
    is_scored: Callable[[str], bool] = lambda name: True
    """Whether the score S sums over this parameter."""
    unit_tensors: Mapping[str, tuple[tuple[str, int], ...]]
    """Layer axis -> (name inside the layer, dimension) of the tensors whose units it adds."""
    layers: Callable[[Any], tuple[str, ...]]
    """What the parameter names of each layer begin with, from the input on."""
    drop_path_rates: Callable[[Any, float], tuple[float, ...]]
    """(supernet, highest rate) -> stochastic-depth rate of each layer, kept in every subnet."""
    num_branches: Callable[[Any], int]
    """Residual branches of an architecture: a draw for stochastic depth each."""
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
    Without tensors it only checks the settings.
    Raises ValueError, in words, for settings that these weights cannot serve.
    """
    with_full_reach: Callable[[Any], Settings] = unchanged
    """Settings -> the same, where relative positions tell all distances of the image apart."""
    owned_box: Callable[[str, Shape, Shape], Box] = leading_box
    """(parameter or buffer, a subnet's shape of it, the supernet's) -> the part that is shared."""
    build_shared: Callable[[Any, Any, Sequence[float], float], nn.Module] | None = None
    """As `build`, for the network that holds the shared weights of a supernet, where subnets own
    tensors that the largest does not have; None: it is the plain network of the largest."""
    prepare_for_scoring: Callable[[nn.Module], None] = nn.Module.eval  # type: ignore[assignment]
    """Mode and values that an initialised network is scored with, set in place."""
    stock: Callable[[Any, Any], nn.Module] | None = None
    """(arch, settings) -> timm's own network of this architecture, which takes the same state
    dict; raises ValueError, which says what differs, where timm has no such network."""
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


def check_images(images: Tensor, settings: Settings) -> None:
    """Raises ValueError, with both shapes, unless a network of these settings takes the images."""
    expected = (settings.in_chans, *settings.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, but this network takes "
            f"(batch, {expected[0]} channels, {expected[1]}, {expected[2]}): resize the "
            "images, or build the network with another image_size or in_chans"
        )


def owned_boxes(
    family: Family, shapes: Mapping[str, Shape], full_shapes: Mapping[str, Shape]
) -> dict[str, Box]:
    """The box of every tensor that a subnet owns inside the supernet.

    Tensors missing from `shapes` (of layers that the subnet does not have) are not owned at all.

    Raises:
        ValueError: a tensor of the subnet is absent from the supernet or larger than there.
    """
    boxes: dict[str, Box] = {}
    for name, shape in shapes.items():
        full = full_shapes.get(name)
        if full is None or len(full) != len(shape) or any(map(int.__gt__, shape, full)):
            raise ValueError(f"{name} of shape {shape} does not fit into the supernet's {full}")
        boxes[name] = family.owned_box(name, shape, full)
    return boxes


def tensor_shapes(network: nn.Module) -> dict[str, Shape]:
    """Name -> shape of every parameter and buffer, non-persistent buffers included."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(network).items()}


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Name -> every parameter and buffer of a network, non-persistent buffers included."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
