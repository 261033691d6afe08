"""The contract of a search-space family: everything the other rooms know about networks.

A family names the type of its spaces, builds and initialises the plain network of one architecture,
states what each part computes and what its tensors are called, and leaves the rest to defaults.
Which part of the supernet's tensors a subnet owns follows from the shapes of its plain network
(`Family.owned_boxes`), so it is written down once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple

import torch
from torch import Tensor, nn

from prenas.families.arch import (
    A,
    Arch,
    Design,
    Link,
    Links,
    S,
    Settings,
    check_contains,
    envelope,
    span,
)
from prenas.families.space import (
    NOT_TOO_DEEP,
    OPTIONAL,
    OPTIONS,
    Chain,
    Choices,
    LayerAxis,
    SearchSpace,
    Stage,
    StageChoice,
)

__all__ = [
    "NOT_TOO_DEEP",
    "OPTIONAL",
    "OPTIONS",
    "A",
    "Arch",
    "Box",
    "Chain",
    "Choices",
    "Design",
    "Family",
    "LayerAxis",
    "Link",
    "Links",
    "Released",
    "ReleasedNetwork",
    "Resizing",
    "S",
    "SearchSpace",
    "Settings",
    "Shape",
    "Stage",
    "StageChoice",
    "StageNames",
    "TensorRole",
    "Work",
    "check_contains",
    "check_images",
    "envelope",
    "leading_box",
    "named_tensors",
    "span",
    "tensor_shapes",
]

Box = tuple[slice, ...]
"""The part of a tensor that a subnet owns, as an index: `tensor[box]` is a view."""

Shape = tuple[int, ...]


class TensorRole(NamedTuple):
    """Where a parameter stands: its stage, and its layer there if it belongs to one."""

    stage: int
    layer: int | None


class Work(NamedTuple):
    """Multiply-accumulates of one image in one layer, or in all that a stage has beside layers."""

    role: TensorRole
    macs: int
    extra_macs: int = 0
    """What is computed as well, but left out by convention, e.g. for relative positions."""


class StageNames(NamedTuple):
    """What the names of a stage's tensors begin with, such as `blocks.0.`."""

    layers: Sequence[str] = ()
    """Of every layer, in order."""
    others: Sequence[str] = ()
    """Of everything else in the stage. What no name of any stage begins belongs to the last."""


class ReleasedNetwork(NamedTuple):
    """A network whose weights its authors released, in the terms of this package."""

    arch: Arch
    settings: Settings
    tensors: dict[str, Tensor]
    """Everything that the plain network's state dict holds, by its names, in its layout."""


@dataclass(frozen=True, kw_only=True)
class Released(Generic[A]):
    """What the authors of a family released: weights and chosen architectures."""

    read: Callable[[Mapping[str, Tensor], Mapping[str, object]], ReleasedNetwork]
    """(tensors as the authors named them, training options saved with them) -> the network.

    Raises ValueError, which says why, for tensors that are not of this family.
    """
    published: Mapping[str, tuple[A, ...]] = field(default_factory=dict)
    """Space -> the preferred architectures that the authors published, the cheapest first."""


@dataclass(frozen=True, kw_only=True)
class Resizing(Generic[S]):
    """How weights follow the image size, in a family whose tensors depend on it."""

    resize: Callable[[Mapping[str, Tensor], S, S], dict[str, Tensor]]
    """(tensors of a supernet or a subnet, their settings, new settings) -> tensors for the new."""
    growing: frozenset[str] = frozenset()
    """Settings that may change as well, but only to larger numbers."""
    extended: Callable[[S], S] = lambda settings: settings
    """Settings -> the same with those numbers as large as the image size can use."""


def leading_box(name: str, shape: Shape, full: Shape) -> Box:
    """The first channels, heads, hidden units of a tensor (weights are shared "entangled")."""
    return tuple(slice(0, size) for size in shape)


def rising_rates(arch: Arch, rate: float) -> tuple[float, ...]:
    """Rising linearly from layer to layer, up to `rate` in the last."""
    depth = arch.num_layers
    return tuple(rate * layer / depth for layer in range(1, depth + 1))


def same_size(arch: Arch) -> tuple[int, ...]:
    """Architectures of equal resolution and number of layers form one group."""
    return arch.resized_to or 0, arch.num_layers


@dataclass(frozen=True, kw_only=True, eq=False)
class Family(Generic[A, S]):
    """Everything the rooms outside `families/` need to know about one kind of network.

    The first eight fields are required. `A` is the type of its architectures, `S` of its settings.
    """

    name: str
    space_type: type[SearchSpace[A, S]]
    spaces: Mapping[str, SearchSpace[A, S]]
    """Spaces that commands know by name."""
    build: Callable[[A, S, Sequence[float], float], nn.Module]
    """(arch, settings, stochastic-depth rate of each layer, dropout before the classifier) -> plain
    network, uninitialised.

    With timm's `no_weight_decay`, `group_matcher`, `get_classifier` and `head_hidden_size`.
    Normalisation by batch statistics is PyTorch's BatchNorm or a subclass, by which the rest of the
    package recognises it.
    """
    initialize: Callable[[nn.Module, torch.Generator], None]
    """(network, generator): fills every parameter in place, and draws from that generator alone.

    The network is one that `build` made, or a module that holds nothing but the classifier, under
    its name in the network.
    """
    work: Callable[[A, S], Sequence[Work]]
    """(arch, settings) -> the multiply-accumulates of every part of the network."""
    stage_names: Callable[[A], Sequence[StageNames]]
    """For every stage of the chain, what the names of its tensors begin with."""
    unit_tensors: Mapping[str, tuple[tuple[str, int], ...]]
    """Layer axis -> (name inside the layer, dimension) of the tensors whose units it adds."""

    branches_per_layer: int = 1
    """Residual branches, each with a draw for stochastic depth."""
    classifier: str = "head"
    """Name of the linear classifier inside the network."""
    is_scored: Callable[[str], bool] = lambda name: True
    """Whether the score S sums over this parameter."""
    prepare_for_scoring: Callable[[nn.Module], object] = nn.Module.eval
    """Mode and values that an initialised network is scored with, set in place."""
    drop_path_rates: Callable[[A, float], tuple[float, ...]] = rising_rates
    """(supernet, highest rate) -> stochastic-depth rate of each layer, kept in every subnet."""
    balancing_group: Callable[[A], tuple[int, ...]] = same_size
    """The group of an architecture: draw a group, then a member (method.md, section 4)."""
    owned_box: Callable[[str, Shape, Shape], Box] = leading_box
    """(parameter or buffer, a subnet's shape of it, the supernet's) -> the part that is shared."""
    build_shared: Callable[[A, S, Sequence[float], float], nn.Module] | None = None
    """As `build`, for the network that holds the shared weights of a supernet, where subnets own
    tensors that the largest does not have; None: it is the plain network of the largest."""
    resizing: Resizing[S] | None = None
    """None if tensors suit any image size."""
    arch_scores: Mapping[str, Callable[[A, S], float]] = field(default_factory=dict)
    """Scores that need no weights: name -> function of (arch, settings), additive over layers."""
    stock: Callable[[A, S], nn.Module] | None = None
    """(arch, settings) -> timm's own network of this architecture, which takes the same state
    dict; raises ValueError, which says what differs, where timm has no such network."""
    released: Released[A] | None = None
    """What `prenas import` reads."""

    @property
    def arch_type(self) -> type[A]:
        """The type of its architectures."""
        return self.space_type.arch_type()

    @property
    def settings_type(self) -> type[S]:
        """The type of its settings."""
        return self.space_type.settings_type()

    def layers(self, arch: A) -> tuple[str, ...]:
        """What the names of each layer's tensors begin with, from the input on."""
        return tuple(prefix for stage in self.stage_names(arch) for prefix in stage.layers)

    def roles(self, arch: A, names: Iterable[str]) -> dict[str, TensorRole]:
        """Name -> stage and layer of these parameters: those of the longest prefix that fits."""
        stages = self.stage_names(arch)
        known = {"": TensorRole(len(stages) - 1, None)}
        for number, stage in enumerate(stages):
            known |= dict.fromkeys(stage.others, TensorRole(number, None))
            known |= {prefix: TensorRole(number, at) for at, prefix in enumerate(stage.layers)}
        return {
            name: next(known[name[:end]] for end in range(len(name), -1, -1) if name[:end] in known)
            for name in names
        }

    def num_branches(self, arch: A) -> int:
        """Residual branches of an architecture."""
        return self.branches_per_layer * arch.num_layers

    def owned_boxes(
        self, shapes: Mapping[str, Shape], full_shapes: Mapping[str, Shape]
    ) -> dict[str, Box]:
        """The box of every tensor that a subnet owns inside the supernet.

        Tensors missing from `shapes` (of layers that the subnet does not have) are not owned.

        Raises:
            ValueError: a tensor of the subnet is absent from the supernet or larger than there.
        """
        boxes: dict[str, Box] = {}
        for name, shape in shapes.items():
            full = full_shapes.get(name)
            if full is None or len(full) != len(shape) or any(map(int.__gt__, shape, full)):
                raise ValueError(f"{name} of shape {shape} does not fit into the supernet's {full}")
            boxes[name] = self.owned_box(name, shape, full)
        return boxes


def check_images(images: Tensor, settings: Settings) -> None:
    """Raises ValueError, with both shapes, unless a network of these settings takes the images."""
    expected = (settings.in_chans, *settings.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, but this network takes "
            f"(batch, {expected[0]} channels, {expected[1]}, {expected[2]}): resize the "
            "images, or build the network with another image_size or in_chans"
        )


def tensor_shapes(network: nn.Module) -> dict[str, Shape]:
    """Name -> shape of every parameter and buffer, non-persistent buffers included."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(network).items()}


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Name -> every parameter and buffer of a network, non-persistent buffers included."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
