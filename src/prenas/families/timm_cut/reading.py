"""Finds out which hidden units of a timm model can be removed, and which tensors they own.

Torch-Pruning's dependency graph says what belongs together in convolutions and MLPs; the heads of
attention, and the units of MLPs with gates, are read from timm's own modules. The result is proved:
with its units in another order, the model must give the same logits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from prenas.families.timm_cut.arch import BlockGroups, TimmSettings
from prenas.families.timm_cut.initialization import initialize
from prenas.families.timm_cut.network import build_whole, gated_mlps_of, heads_of, leave_out
from prenas.families.timm_cut.parts import positions
from prenas.families.units import UnitGroup, UnitTensor, reorder
from prenas.randomness import torch_generator

_logger = logging.getLogger(__name__)

_FEWEST_UNITS = 2
"""Groups of fewer units cannot be cut."""

_LARGEST_DIFFERENCE = 1e-9
"""Of logits with all units in another order, relative to the largest logit, in double precision."""


@lru_cache(maxsize=32)
def read_groups(settings: TimmSettings) -> tuple[BlockGroups, ...]:
    """The blocks of a timm model whose hidden units can be removed, in the order of the network.

    Takes a few seconds, once for equal settings.

    Raises:
        ValueError: no unit can be removed; the message says what stands in the way.
    """
    with torch.device("meta"):
        network = build_whole(settings)
        problems: dict[str, str] = {}
        try:
            groups = [
                *_hidden_groups(network, settings, problems),
                *_head_groups(network, problems),
                *_gated_groups(network, problems),
            ]
        except Exception as error:  # each kind of layer fails differently in the graph
            raise ValueError(
                f"the layers of {settings.model} cannot be followed ({type(error).__name__}: "
                f"{error}): choose another timm model"
            ) from error
    network, images = _proving(settings)
    groups, folded = _of_whole_images(network, images, groups)
    problems |= {one.consumer: "it sees parts of an image as images of their own" for one in folded}
    movable, fixed = _movable(network, images, groups)
    problems |= {group.consumer: "its units cannot be reordered" for group in fixed}
    for name, problem in problems.items():
        _logger.info("%s keeps all units of %s: %s", settings.model, name, problem)
    if not movable:
        reasons = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise ValueError(
            f"{settings.model} has no hidden units that can be removed"
            + (f" ({reasons})" if reasons else "")
            + ": choose another timm model, such as an EfficientNet, a ResNet or a ViT"
        )
    return _with_branches(network, images, _by_block(network, movable))


def _hidden_groups(
    network: nn.Module, settings: TimmSettings, problems: dict[str, str]
) -> Iterator[UnitGroup]:
    """Channels of convolutions, and units of MLPs, that stay inside one block."""
    from torch_pruning import DependencyGraph  # takes a second

    images = torch.zeros(1, settings.in_chans, *settings.image_size)
    network = network.eval()
    graph = DependencyGraph().build_dependency(network, images, verbose=False)
    names: dict[Any, str] = {module: name for name, module in network.named_modules()}
    names |= {parameter: name for name, parameter in network.named_parameters()}
    own_modules = {**heads_of(network), **gated_mlps_of(network)}
    read_elsewhere = tuple(f"{name}." for name in own_modules)
    seen = positions(settings)
    kinds = [nn.Conv2d, nn.Linear]
    for found in graph.get_all_groups(root_module_types=kinds):
        items = [item for item in found if item.dep.target.module in names]
        producer = names[items[0].dep.target.module]
        if _block_of([names[item.dep.target.module] for item in items]) is None:
            continue  # they lead from block to block
        if producer.startswith(read_elsewhere) or len(items[0].idxs) < _FEWEST_UNITS:
            continue
        if len({seen.get(names[item.dep.target.module], 1) for item in items} - {1}) == 0:
            continue  # between pooled maps only, as in squeeze-and-excitation
        try:
            yield _group(graph, items, names, seen)
        except ValueError as error:
            problems[producer] = str(error)


def _group(
    graph: Any, items: Sequence[Any], names: dict[Any, str], seen: Mapping[str, int]
) -> UnitGroup:
    """One group of the graph; ValueError if its units are not consecutive everywhere."""
    num_units = len(items[0].idxs)
    tensors: list[UnitTensor] = []
    consumers = []
    for item in items:
        module = item.dep.target.module
        name, indices = names[module], list(item.idxs)
        per_unit, rest = divmod(len(indices), num_units)
        roots = [number // max(per_unit, 1) for number in range(len(indices))]
        if rest or indices != list(range(len(indices))) or list(item.root_idxs) != roots:
            raise ValueError(f"{name} mixes the units of several layers")
        if graph.is_out_channel_pruning_fn(item.dep.handler):
            own = _output_tensors(name, module, len(indices), item.dep.target.pruning_dim)
        else:
            own = {f"{name}.weight": 1}
            if seen[name] > 1:  # not the pooled maps of squeeze-and-excitation
                consumers.append(name)
            if module.weight.shape[1] != len(indices):
                raise ValueError(f"{name} takes other inputs too")
        tensors += [
            UnitTensor(name=tensor, dim=dim, per_unit=per_unit) for tensor, dim in own.items()
        ]
    if len(consumers) != 1:
        raise ValueError(f"{len(consumers)} layers take them")
    is_channel = isinstance(items[0].dep.target.module, nn.Conv2d)
    return UnitGroup(
        axis="channels" if is_channel else "units",
        num_units=num_units,
        consumer=consumers[0],
        tensors=tuple({(one.name, one.dim): one for one in tensors}.values()),
    )


def _output_tensors(name: str, module: Any, num_outputs: int, dim: int) -> dict[str, int]:
    """Name -> dimension of the tensors in which the outputs of a module own slices."""
    if isinstance(module, nn.Parameter):
        dim %= module.ndim
        if module.shape[dim] != num_outputs:
            raise ValueError(f"{name} has the shape {tuple(module.shape)}")
        return {name: dim}
    known = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
    if isinstance(module, nn.LayerNorm):
        raise ValueError(f"{name} normalises the units together")
    if not isinstance(module, known):
        raise ValueError(f"{name} is a {type(module).__name__}")
    if isinstance(module, nn.Conv2d) and module.groups not in (1, module.out_channels):
        raise ValueError(f"{name} is a convolution of {module.groups} groups")
    if module.weight is not None and module.weight.shape[0] != num_outputs:
        raise ValueError(f"{name} has other outputs too")
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    return {
        f"{name}.{tensor_name}": 0
        for tensor_name, tensor in own.items()
        if tensor.ndim and tensor.shape[0] == num_outputs
    }


def _head_groups(network: nn.Module, problems: dict[str, str]) -> Iterator[UnitGroup]:
    """The heads of every attention; their rows in `qkv` are ordered by head (see `network`)."""
    for name, attention in heads_of(network).items():
        if attention.num_heads < _FEWEST_UNITS:
            continue
        if not isinstance(attention.norm, nn.Identity):
            problems[name] = "its heads are normalised together"
            continue
        if getattr(attention, "num_kv_groups", 1) > 1:
            problems[name] = "its heads share keys and values"
            continue
        size, biases = attention.head_dim, ("q_bias", "v_bias")
        parts = [("qkv", 3 * size), *((part, size) for part in ("q_proj", "k_proj", "v_proj"))]
        tensors = [
            *(tensor for part, rows in parts for tensor in _rows(attention, part, rows)),
            *_rows(attention, "gate", size),
            *(
                UnitTensor(name=bias, dim=0, per_unit=size)
                for bias in biases
                if _has(attention, bias)
            ),
            UnitTensor(name="proj.weight", dim=1, per_unit=size),
        ]
        yield _group_inside(name, "heads", attention.num_heads, "proj", tensors)


def _gated_groups(network: nn.Module, problems: dict[str, str]) -> Iterator[UnitGroup]:
    """Units of MLPs with gates; their rows in `fc1` are ordered by unit (see `network`)."""
    for name, mlp in gated_mlps_of(network).items():
        if not isinstance(mlp.norm, nn.Identity):
            problems[name] = "its units are normalised together"
            continue
        tensors = [*_rows(mlp, "fc1", 2), UnitTensor(name="fc2.weight", dim=1)]
        yield _group_inside(name, "units", mlp.fc2.in_features, "fc2", tensors)


def _rows(module: nn.Module, part: str, per_unit: int) -> Iterator[UnitTensor]:
    """Weight and bias of a linear layer inside a module, if it has them."""
    for kind in ("weight", "bias"):
        if _has(getattr(module, part, None), kind):
            yield UnitTensor(name=f"{part}.{kind}", dim=0, per_unit=per_unit)


def _has(module: nn.Module | None, tensor: str) -> bool:
    return getattr(module, tensor, None) is not None


def _group_inside(
    name: str, axis: str, num_units: int, consumer: str, tensors: Sequence[UnitTensor]
) -> UnitGroup:
    """A group whose tensors are named as inside the module of this name."""
    return UnitGroup(
        axis=axis,
        num_units=num_units,
        consumer=f"{name}.{consumer}",
        tensors=tuple(one.model_copy(update={"name": f"{name}.{one.name}"}) for one in tensors),
    )


@torch.no_grad()
def _proving(settings: TimmSettings) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights, none of them zero, and images, in double precision."""
    generator = torch_generator(0, "proof of a reading")
    network = build_whole(settings).eval().double()
    initialize(network, generator)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1 and tensor.numel() > 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.add_(noise if name.endswith("var") else 0.5 * noise)
    shape = (2, settings.in_chans, *settings.image_size)
    return network, torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def _of_whole_images(
    network: nn.Module, images: torch.Tensor, groups: Sequence[UnitGroup]
) -> tuple[list[UnitGroup], list[UnitGroup]]:
    """Groups whose units see every image as one entry of the batch, and all others.

    Scores are sums over the positions of an image, and stochastic depth drops branches per image.
    """
    seen: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = inputs[0].shape[0]

        return hook

    handles = [
        network.get_submodule(name).register_forward_pre_hook(note(name))
        for name in {group.consumer for group in groups}
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    whole = [seen.get(group.consumer) in (None, len(images)) for group in groups]
    pairs = list(zip(groups, whole, strict=True))
    return [one for one, is_whole in pairs if is_whole], [one for one, yes in pairs if not yes]


@torch.no_grad()
def _movable(
    network: nn.Module, images: torch.Tensor, groups: Sequence[UnitGroup]
) -> tuple[list[UnitGroup], list[UnitGroup]]:
    """Groups whose units can be reordered without changing the logits, and all others."""
    generator = torch_generator(0, "orders that prove a reading")
    expected = network(images)

    def is_movable(some: Sequence[UnitGroup]) -> bool:
        orders = [torch.randperm(group.num_units, generator=generator) for group in some]
        for group, order in zip(some, orders, strict=True):
            reorder(network, group, order)
        difference = (network(images) - expected).abs().max() / expected.abs().max()
        for group, order in zip(some, orders, strict=True):
            reorder(network, group, torch.argsort(order))
        return bool(difference <= _LARGEST_DIFFERENCE)

    if is_movable(groups):
        return list(groups), []
    verdicts = [(group, is_movable([group])) for group in groups]
    return [one for one, yes in verdicts if yes], [one for one, yes in verdicts if not yes]


@torch.no_grad()
def _with_branches(
    network: nn.Module, images: torch.Tensor, blocks: tuple[BlockGroups, ...]
) -> tuple[BlockGroups, ...]:
    """The same blocks, with the branches of all groups whose branch may be left out."""
    calls: dict[str, _Call] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], fields: dict[str, Any]) -> None:
            calls[name] = _Call(arguments, fields)

        return hook

    handles = [
        network.get_submodule(block.name).register_forward_pre_hook(
            keep(block.name), with_kwargs=True
        )
        for block in blocks
    ]
    network(images)
    for handle in handles:
        handle.remove()
    found = tuple(
        _with_branches_of_block(network.get_submodule(block.name), block, calls[block.name])
        for block in blocks
    )
    return next(one for one in _keeping_one(found) if _sees(network, images, one))


def _keeping_one(blocks: tuple[BlockGroups, ...]) -> Iterator[tuple[BlockGroups, ...]]:
    """The same blocks; then those in which one branch must be kept, the last first; then all.

    A Transformer that reads its class token sees nothing without any attention.
    """
    yield blocks
    groups = [group for block in blocks for group in block.groups if group.branch]
    for kept in reversed(groups):
        yield tuple(_without_branches(block, [kept]) for block in blocks)
    yield tuple(_without_branches(block, block.groups) for block in blocks)


def _without_branches(block: BlockGroups, kept: Sequence[UnitGroup]) -> BlockGroups:
    """The block with some groups whose branch must be kept."""
    groups = [
        group.model_copy(update={"branch": ()}) if group in kept else group
        for group in block.groups
    ]
    return block.model_copy(update={"groups": tuple(groups)})


def _sees(network: nn.Module, images: torch.Tensor, blocks: Sequence[BlockGroups]) -> bool:
    """Whether the logits depend on the image without any of the branches of these blocks."""
    rest = deepcopy(network)
    for block in blocks:
        for group in block.groups:
            if group.branch:
                leave_out(rest, block.name, group.branch)
    first, second = rest(images)
    return bool((first - second).abs().max() > _LARGEST_DIFFERENCE * first.abs().max())


class _Call(NamedTuple):
    """What a block got in a network."""

    arguments: tuple[Any, ...]
    fields: Mapping[str, Any]


def _with_branches_of_block(module: nn.Module, block: BlockGroups, call: _Call) -> BlockGroups:
    """The block with its branches: each is proved alone, and all of them together."""
    groups: list[UnitGroup] = []
    for group in block.groups:
        possible = _possible_branches(module, block, group)
        named = [group.model_copy(update={"branch": branch}) for branch in possible]
        proved = (one for one in named if _are_branches(module, block.name, [one], call))
        groups.append(next(proved, group))
    is_several = len(groups) > 1 and all(group.branch for group in groups)
    if is_several and not _are_branches(module, block.name, groups, call):
        return block
    return block.model_copy(update={"groups": tuple(groups)})


_AROUND = {
    "attn": ("drop_path1", "norm1", "ls1", "gamma_1"),
    "mlp": ("drop_path2", "norm2", "ls2", "gamma_2"),
}
"""timm's names in blocks of two branches: of the module that computes one of them, and of what else
belongs to it. Every such block has the stochastic depth, which comes first."""


def _possible_branches(
    module: nn.Module, block: BlockGroups, group: UnitGroup
) -> Iterator[tuple[str, ...]]:
    """What may be the branch through some units: all of the block, or its attention or its MLP.

    All of the block only if no other units are in it: they would score without being there.
    """

    def named(parts: Iterable[str]) -> tuple[str, ...]:
        return tuple(f"{block.name}.{part}" for part in parts)

    first = group.consumer.removeprefix(f"{block.name}.").partition(".")[0]
    if len(block.groups) == 1:
        own = dict.fromkeys(name.partition(".")[0] for name in module.state_dict())
        yield named((first, *(name for name in own if name != first)))
    drop, *others = _AROUND.get(first, ("",))
    if _has(module, drop):
        yield named((first, drop, *(name for name in others if _has(module, name))))


def _are_branches(module: nn.Module, block: str, groups: Sequence[UnitGroup], call: _Call) -> bool:
    """Whether a block without these branches is the block whose consumers and biases are zero."""
    whole: Any = nn.ModuleDict({"block": deepcopy(module)})
    rest: Any = deepcopy(whole)
    for group in groups:
        consumer, *branch = (
            f"block.{name.removeprefix(f'{block}.')}" for name in (group.consumer, *group.branch)
        )
        whole.get_submodule(consumer).weight.zero_()
        leave_out(rest, "block", branch)
    for one in (whole, rest):
        for name, tensor in one.state_dict().items():
            if "bias" in name or name.endswith("running_mean"):
                tensor.zero_()
    try:
        actual, expected = (one["block"](*call.arguments, **call.fields) for one in (rest, whole))
        difference = (actual - expected).abs().max() / expected.abs().max()
    except Exception:  # a block that is not a sum of branches fails in its own way
        return False
    return actual.shape == expected.shape and bool(difference <= _LARGEST_DIFFERENCE)


def _by_block(network: nn.Module, groups: Sequence[UnitGroup]) -> tuple[BlockGroups, ...]:
    """The groups of every block; blocks and groups in the order of timm's modules."""
    order = {name: number for number, (name, _) in enumerate(network.named_modules())}
    found: dict[str, list[UnitGroup]] = {}
    for group in sorted(groups, key=lambda one: order[one.consumer]):
        block = _block_of([tensor.name for tensor in group.tensors])
        assert block is not None, "units that leave their block were left out"
        found.setdefault(block, []).append(group)
    return tuple(
        BlockGroups(name=name, groups=tuple(members))
        for name, members in sorted(found.items(), key=lambda item: order[item[0]])
    )


def _block_of(names: Sequence[str]) -> str | None:
    """The innermost numbered module that contains all these modules or tensors, if any."""
    paths = [name.split(".") for name in names]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if len(common) == min(map(len, paths)):
        common.pop()  # a name itself, not what contains it
    while common and not common[-1].isdigit():
        common.pop()
    return ".".join(common) or None
