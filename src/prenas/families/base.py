"""The contract of a family: everything that the rest of the package knows about networks.

A family names the type of its spaces, builds and initialises the plain network of one architecture,
and states what each part computes and how its tensors are named. The rest has defaults. Which part
of the supernet's tensors a subnet owns follows from the shapes of its plain network
(`Family.owned_boxes`), so no family states it a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy

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
from prenas.families.units import UnitGroup

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
    "Pretrained",
    "PretrainedNetwork",
    "Rebuilding",
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
    """Where a parameter belongs: its stage, and its layer in that stage if it is part of one."""

    stage: int
    layer: int | None


class Work(NamedTuple):
    """Multiply-accumulates per image of one layer, or of everything outside a stage's layers.

    A layer that an option leaves out has 0, and no tensors: it passes on its input.
    """

    role: TensorRole
    macs: int
    extra_macs: int = 0
    """Multiply-accumulates that are left out by convention, e.g. those of relative positions."""


class StageNames(NamedTuple):
    """Prefixes of the names of a stage's tensors, such as `blocks.0.`."""

    layers: Sequence[str] = ()
    """The prefix of each layer, in order."""
    others: Sequence[str] = ()
    """Prefixes of all other tensors. A tensor that matches no prefix belongs to the last stage."""


class ReleasedNetwork(NamedTuple):
    """A released network, converted to the names and layout of this package."""

    arch: Arch
    settings: Settings
    tensors: dict[str, Tensor]
    """The complete state dict of the plain network."""


@dataclass(frozen=True, kw_only=True)
class Released(Generic[A]):
    """What the authors of a family released: weights and chosen architectures."""

    read: Callable[[Mapping[str, Tensor], Mapping[str, object]], ReleasedNetwork]
    """Converts the authors' tensors: (tensors by the authors' names, training options saved with
    them) -> network.

    Raises ValueError, with the reason, for tensors that do not belong to this family.
    """
    published: Mapping[str, tuple[A, ...]] = field(default_factory=dict)
    """Space -> the preferred architectures that the authors published, cheapest first."""


class PretrainedNetwork(NamedTuple):
    """A trained network from elsewhere, in the names and layout of this package."""

    arch: Arch
    settings: Settings
    tensors: dict[str, Tensor]
    """The complete state dict of the plain network, with BatchNorm statistics."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    licence: str | None
    """The licence of the weights, as their source states it."""
    origin: str | None
    """Where the weights come from, to be cited."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """How a family reads trained networks that are published under names."""

    prefix: str
    """What these names begin with, such as `timm/`."""
    read: Callable[[str, Mapping[str, Tensor] | None], PretrainedNetwork]
    """Reads the network of this name, without the prefix: (name, its tensors, or None to download
    them) -> network.

    Raises ValueError for an unknown name, for tensors of another network, and if the weights cannot
    be downloaded.
    """


@dataclass(frozen=True, kw_only=True)
class Rebuilding(Generic[A, S]):
    """timm's own network of an architecture, where its tensors have another order than ours."""

    describe: Callable[[A, S], Mapping[str, object]]
    """Gives what timm needs to build it without this package: (arch, settings) -> JSON fields.

    Raises ValueError, which says what differs, if timm has no such network.
    """
    build: Callable[[A, S], nn.Module]
    """Builds it: (arch, settings) -> network. Raises ValueError as `describe` does."""
    tensors: Callable[[Mapping[str, Tensor], S], dict[str, Tensor]]
    """Gives its state dict: (state dict of the plain network, settings) -> tensors."""


@dataclass(frozen=True, kw_only=True)
class Resizing(Generic[S]):
    """How weights change with the image size, for a family whose tensors depend on it."""

    resize: Callable[[Mapping[str, Tensor], S, S], dict[str, Tensor]]
    """Resizes the tensors of a supernet or a subnet: (tensors, old settings, new settings) ->
    tensors."""
    growing: frozenset[str] = frozenset()
    """Settings that may also change, but only to larger numbers."""
    extended: Callable[[S], S] = lambda settings: settings
    """Raises the `growing` settings to the largest values that the image size can use."""


def leading_box(name: str, shape: Shape, full: Shape) -> Box:
    """The leading channels, heads or hidden units of a tensor ("weight entanglement")."""
    return tuple(slice(0, size) for size in shape)


def rising_rates(arch: Arch, rate: float) -> tuple[float, ...]:
    """Rates that rise linearly from layer to layer, up to `rate` in the last."""
    depth = arch.num_layers
    return tuple(rate * layer / depth for layer in range(1, depth + 1))


def same_size(arch: Arch) -> tuple[int, ...]:
    """Groups architectures by resolution and number of layers."""
    return arch.resized_to or 0, arch.num_layers


@dataclass(frozen=True, kw_only=True, eq=False)
class Family(Generic[A, S]):
    """Everything that the code outside `families/` needs to know about one kind of network.

    The first eight fields are required. `A` is the type of its architectures, `S` the type of its
    settings.
    """

    name: str
    space_type: type[SearchSpace[A, S]]
    spaces: Mapping[str, SearchSpace[A, S]]
    """The spaces that can be selected by name on the command line."""
    build: Callable[[A, S, Sequence[float], float], nn.Module]
    """Builds the plain network, uninitialised: (arch, settings, stochastic-depth rate of each
    layer, dropout before the classifier) -> network.

    It has timm's `no_weight_decay`, `group_matcher`, `get_classifier` and `head_hidden_size`.
    Normalisation by batch statistics must be PyTorch's BatchNorm or a subclass of it: this is how
    the rest of the package recognises it.
    """
    initialize: Callable[[nn.Module, torch.Generator], None]
    """Fills every parameter in place and draws from the generator only: (network, generator).

    The network comes from `build`, or is a module that contains nothing but the classifier, under
    the name that it has in the network.
    """
    work: Callable[[A, S], Sequence[Work]]
    """Counts the multiply-accumulates of every part of the network: (arch, settings) -> parts.

    Every layer has an entry, also one that is left out."""
    stage_names: Callable[[A], Sequence[StageNames]]
    """Gives the prefixes of the tensor names of every stage in the chain: (arch) -> stages."""
    unit_tensors: Mapping[str, tuple[tuple[str, int], ...]]
    """Layer axis -> the tensors that a larger option enlarges: (name in the layer, dimension)."""

    branches_per_layer: int = 1
    """Residual branches per layer; stochastic depth may drop each of them."""
    classifier: str | Callable[[S], str] = "head"
    """Name of the linear classifier inside the network, or a function of the settings."""
    is_scored: Callable[[str], bool] = lambda name: True
    """Whether the score S sums over the parameter of this name."""
    prepare_for_scoring: Callable[[nn.Module], object] = nn.Module.eval
    """Prepares an initialised network for scoring, in place: its mode and, if needed, values."""
    drop_path_rates: Callable[[A, float], tuple[float, ...]] = rising_rates
    """Gives the stochastic-depth rate of each layer, which it keeps in every subnet: (largest
    architecture, highest rate) -> rates."""
    balancing_group: Callable[[A], tuple[int, ...]] = same_size
    """Gives the group of an architecture. Training draws a group, then one of its members
    (method.md, section 4)."""
    owned_box: Callable[[str, Shape, Shape], Box] = leading_box
    """Gives the part of a shared tensor that a subnet owns: (name of the parameter or buffer, its
    shape in the subnet, its shape in the supernet) -> box."""
    build_shared: Callable[[A, S, Sequence[float], float], nn.Module] | None = None
    """Like `build`, for the network that holds the supernet's shared weights. Needed only if
    subnets own tensors that the largest network lacks; None uses the plain largest network."""
    resizing: Resizing[S] | None = None
    """How to adapt weights to another image size; None if tensors suit any image size."""
    arch_scores: Mapping[str, Callable[[A, S], float]] = field(default_factory=dict)
    """Scores that need no weights: name -> function of (arch, settings), additive over layers."""
    unit_groups: Callable[[A], Sequence[Sequence[UnitGroup]]] | None = None
    """Gives, for each layer and each of its axes, the units that the axis counts, if trained units
    can be scored and put into another order: (arch) -> layers. Every option of these axes is a
    number of units. Replaces `unit_tensors`."""
    cuts: Callable[[A, S, str], SearchSpace[A, S]] | None = None
    """Gives the space of everything that can be cut out of one trained network by removing units:
    (its arch, its settings, name of the space) -> space. Needed together with `unit_groups`."""
    stock: Callable[[A, S], nn.Module] | None = None
    """Builds timm's own network of this architecture, with the same state dict: (arch, settings)
    -> network. Raises ValueError, which says what differs, if timm has no such network."""
    describe_stock: Callable[[A, S], Mapping[str, object]] | None = None
    """Gives what timm needs to build `stock` without this package: (arch, settings) -> JSON fields.
    Raises ValueError as `stock` does."""
    rebuilding: Rebuilding[A, S] | None = None
    """Makes timm's own network where `stock` cannot, because tensors have another order."""
    deployed: Callable[[nn.Module], nn.Module] = lambda network: network
    """Gives a network, in evaluation mode, in the operations that engines run best: (network) -> a
    module that computes the same."""
    released: Released[A] | None = None
    """The released checkpoints that `prenas import` reads."""
    timm_names: Mapping[str, tuple[A, S]] = field(default_factory=dict)
    """Name in timm's registry, which begins with `prenas_` -> the architecture and the settings of
    the network that `timm.create_model` builds under it."""
    pretrained: Pretrained | None = None
    """The trained networks that `prenas run --from` and `prenas finetune` read by name."""

    @property
    def arch_type(self) -> type[A]:
        """The type of its architectures."""
        return self.space_type.arch_type()

    @property
    def settings_type(self) -> type[S]:
        """The type of its settings."""
        return self.space_type.settings_type()

    def classifier_of(self, settings: S) -> str:
        """Name of the linear classifier in networks of these settings."""
        return self.classifier if isinstance(self.classifier, str) else self.classifier(settings)

    def layers(self, arch: A) -> tuple[str, ...]:
        """The prefix of each layer's tensor names, from the input on."""
        return tuple(prefix for stage in self.stage_names(arch) for prefix in stage.layers)

    def roles(self, arch: A, names: Iterable[str]) -> dict[str, TensorRole]:
        """Name -> stage and layer of these parameters, by the longest prefix that matches."""
        stages = self.stage_names(arch)
        if len(stages) != len(arch.links):
            raise ValueError(
                f"stage_names of the family {self.name} gives {len(stages)} entries for a chain of "
                f"{len(arch.links)} stages: give one for every stage, also for a stem and the "
                "classifier"
            )
        known = {"": TensorRole(len(stages) - 1, None)}
        for number, stage in enumerate(stages):
            known |= dict.fromkeys(stage.others, TensorRole(number, None))
            known |= {prefix: TensorRole(number, at) for at, prefix in enumerate(stage.layers)}
        return {
            name: next(known[name[:end]] for end in range(len(name), -1, -1) if name[:end] in known)
            for name in names
        }

    def num_branches(self, arch: A) -> int:
        """Number of residual branches in an architecture."""
        return self.branches_per_layer * arch.num_layers

    def owned_boxes(
        self, shapes: Mapping[str, Shape], full_shapes: Mapping[str, Shape]
    ) -> dict[str, Box]:
        """For each tensor of a subnet, the box that it owns in the supernet's tensor.

        Tensors missing from `shapes` (of layers that the subnet does not have) are not owned.

        Raises:
            ValueError: the supernet lacks a tensor of the subnet, or its tensor is smaller.
        """
        boxes: dict[str, Box] = {}
        for name, shape in shapes.items():
            full = full_shapes.get(name)
            if full is None or len(full) != len(shape) or any(map(int.__gt__, shape, full)):
                raise ValueError(
                    f"{name} has shape {shape}, which does not fit into the supernet's {full}"
                )
            boxes[name] = self.owned_box(name, shape, full)
        return boxes


def check_images(images: Tensor, settings: Settings) -> None:
    """Raises ValueError, with both shapes, unless the images suit a network of these settings."""
    if isinstance(images, Proxy):  # a symbolic trace knows no shapes
        return
    expected = (settings.in_chans, *settings.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, but this network expects "
            f"(batch, {expected[0]} channels, {expected[1]}, {expected[2]}): resize the "
            "images, or build or load the network with another image_size"
        )


def tensor_shapes(network: nn.Module) -> dict[str, Shape]:
    """Name -> shape of every parameter and buffer, non-persistent buffers included."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(network).items()}


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a network by name, non-persistent buffers included."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
