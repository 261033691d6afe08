"""Cuts of timm models: what is read, what a cut is, and what timm alone makes of it."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.models
import torch
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models import Eva
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from families.drawing import (
    assert_equal,
    fill_as_trained,
    imagenet_weights,
    images_for,
    new_supernet,
    timm_space,
)
from prenas.cost import count
from prenas.families import build
from prenas.families.base import PretrainedNetwork
from prenas.families.timm_cut import reading
from prenas.families.timm_cut.arch import BlockGroups, CutBlock, TimmArch, TimmSettings, whole
from prenas.families.timm_cut.arguments import built_by_arguments, describe_arguments
from prenas.families.timm_cut.parts import classifier
from prenas.families.timm_cut.pretrained import read_pretrained
from prenas.families.timm_cut.reading import read_groups
from prenas.families.timm_cut.resizing import resize
from prenas.families.timm_cut.resolutions import resolutions
from prenas.families.timm_cut.space import TimmSpace, cuts
from prenas.families.timm_cut.stock import describe_stock, from_timm, stock, to_timm
from prenas.families.units import UnitGroup, reorder
from prenas.models.export import load_timm, write_model
from prenas.recipe.data import Preprocessing

NAMES = {
    "tf_efficientnet_lite0": {"channels": 15},
    "efficientnet_b0": {"channels": 15},
    "tf_efficientnetv2_b0": {"channels": 20},
    "mobilenetv2_100": {"channels": 16},
    "mobilenetv3_small_100": {"channels": 10},
    "mobilenetv3_large_100": {"channels": 14},
    "mobilenetv4_conv_small": {"channels": 14},
    "mobilenetv4_conv_medium": {"channels": 22},
    "resnet18": {"channels": 8},
    "resnet50": {"channels": 32},
    "seresnet50": {"channels": 32},
    "convnext_atto": {"channels": 12},
    "convnextv2_atto": {"channels": 12},
    "convnext_tiny": {"units": 18},
    "vit_tiny_patch16_224": {"heads": 12, "units": 12},
    "deit_tiny_patch16_224": {"heads": 12, "units": 12},
    "deit3_small_patch16_224": {"heads": 12, "units": 12},
    "vit_small_patch14_reg4_dinov2": {"heads": 12, "units": 12},
    "vit_tiny_patch16_dinov3_qkvb": {"heads": 12, "units": 12},
    "vit_small_plus_patch16_dinov3": {"heads": 12, "units": 12},
    "eva02_tiny_patch14_224": {"heads": 12, "units": 12},
    "vit_pe_core_tiny_patch16_384": {"heads": 12, "units": 12},
    "swin_tiny_patch4_window7_224": {"units": 12},
    "mixer_s32_224": {"units": 16},
}
"""timm's name -> how many groups of units can be cut."""

_QUICK = {
    "tf_efficientnet_lite0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "resnet18",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "eva02_tiny_patch14_224",
}
"""One of every line, for tests of every day."""


_SIZES = {
    "vit_small_patch14_reg4_dinov2": 56,
    "eva02_tiny_patch14_224": 56,
    "swin_tiny_patch4_window7_224": 112,
}


SMALL_EVA: dict[str, tuple[dict[str, Any], set[str]]] = {
    "small_eva_dinov3": ({"use_rot_pos_emb": True, "rope_type": "dinov3"}, {"heads", "units"}),
    "small_eva_packed": ({"swiglu_mlp": True, "qkv_bias": False}, {"heads", "units"}),
    "small_eva_aligned": (
        {"swiglu_mlp": True, "swiglu_align_to": 8, "use_rot_pos_emb": True},
        {"heads", "units"},
    ),
    "small_eva_unfused": (
        {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True},
        {"heads"},
    ),
    "small_eva_inner_norm": ({"scale_attn_inner": True}, {"units"}),
    "small_eva_gated": ({"gated": True}, {"heads", "units"}),
    "small_eva_qk_norm": ({"qk_norm": True}, {"heads", "units"}),
    "small_eva_mlp_norm": ({"scale_mlp": True}, {"heads"}),
    "small_eva_rope": (
        {"attn_type": "rope", "use_rot_pos_emb": True, "rope_rotate_half": True},
        {"heads", "units"},
    ),
    "small_eva_shared_keys": (
        {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2},
        {"units"},
    ),
    "small_eva_mixed": ({"use_rot_pos_emb": True, "rope_type": "mixed"}, {"units"}),
}
"""Two blocks of timm's class `Eva`: name -> its arguments, and what can be cut."""


def register_small(name: str, *, gated: bool = False, **fields: object) -> None:
    """Makes a small network known to timm; on request with a gate for what every head finds."""

    def make(*, num_classes: int, in_chans: int, **_: object) -> nn.Module:
        own = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": 32}
        network: Any = Eva(num_classes=num_classes, in_chans=in_chans, **own, **fields)
        network.pretrained_cfg = {"classifier": "head"}
        for block in network.blocks if gated else ():
            block.attn.gate = nn.Linear(64, 64)
        return network

    make.__name__ = name
    timm.models.register_model(make)


for _name, (_fields, _) in SMALL_EVA.items():
    register_small(_name, **_fields)


def settings_of(name: str) -> TimmSettings:
    """Settings of a model at a small image size."""
    return TimmSettings(model=name, image_size=_SIZES.get(name, 64), num_classes=7)


def timms_own(settings: TimmSettings) -> nn.Module:
    """timm's model, built without this package."""
    known = timm.get_pretrained_cfg(settings.model)
    size = {"img_size": settings.image_size} if known and known.fixed_input_size else {}
    fields = {"num_classes": settings.num_classes, "in_chans": settings.in_chans}
    return timm.create_model(settings.model, **fields, **size)


def assert_equal_in_any_order(
    ours: nn.Module, theirs: nn.Module, arch: TimmArch, dtype: torch.dtype, relative: float
) -> None:
    """The same logits, before and after all units of `ours` are put into another order."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *ours.settings.image_size, generator=generator).to(dtype)
    ours, theirs = ours.to(dtype).eval(), theirs.to(dtype).eval()
    with torch.no_grad():
        expected = theirs(images)
        assert_equal(ours(images), expected, relative)
        for group, units in arch.kept():
            reorder(ours, group, torch.randperm(units, generator=generator))
        assert_equal(ours(images), expected, relative)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in _QUICK else pytest.mark.slow) for name in NAMES],
)
def test_a_model_is_read_and_its_full_size_is_timms(name: str) -> None:
    settings = settings_of(name)
    arch = whole(read_groups(settings))
    found: dict[str, int] = {}
    for group, units in arch.kept():
        assert units == group.num_units
        found[group.axis] = found.get(group.axis, 0) + 1
    assert found == NAMES[name]

    theirs = fill_as_trained(timms_own(settings))
    assert isinstance(theirs.get_submodule(classifier(settings)), nn.Linear)
    ours = build(arch, settings).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), settings))
    # In double precision, because random weights of a deep network amplify rounding.
    assert_equal_in_any_order(ours, theirs, arch, torch.float64, 1e-9)
    costs = count(arch, settings)
    assert costs["params"] == sum(one.numel() for one in theirs.parameters())
    assert costs["macs"] == counted_macs(theirs.float(), settings)


@pytest.mark.parametrize("name", SMALL_EVA)
def test_every_form_of_evas_attention_and_mlp(name: str) -> None:
    """Full size equals timm in any order of units; cuts cost what PyTorch counts."""
    settings = TimmSettings(model=name, image_size=32, num_classes=7)
    arch = whole(read_groups(settings))
    assert {group.axis for group, _ in arch.kept()} == SMALL_EVA[name][1]
    theirs = fill_as_trained(timms_own(settings))
    ours = build(arch, settings).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), settings))
    assert_equal_in_any_order(ours, theirs, arch, torch.float64, 1e-9)

    assert count(arch, settings)["macs"] == counted_macs(theirs.float(), settings)
    half = cuts(arch, settings, "cuts").sample(np.random.default_rng(0))
    costs = count(half, settings)
    network = build(half, settings).eval()
    assert half != arch
    assert costs["params"] == sum(one.numel() for one in network.parameters())
    assert costs["macs"] == counted_macs(network, settings)


def counted_macs(network: nn.Module, settings: TimmSettings) -> int:
    """What PyTorch's counter finds, with attention by plain matrix products."""
    network.requires_grad_(False)  # for the counter
    images = torch.zeros(1, settings.in_chans, *settings.image_size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(images)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("size", ["lite0", "lite2"])
def test_real_trained_weights_keep_their_outputs_in_another_order(size: str) -> None:
    tensors = imagenet_weights(size)
    settings = TimmSettings(model=f"tf_efficientnet_{size}", image_size=96)
    theirs = timms_own(settings).eval()
    theirs.load_state_dict(tensors)
    arch = whole(read_groups(settings))
    ours = build(arch, settings).eval()
    ours.load_state_dict(from_timm(tensors, settings))
    assert_equal_in_any_order(ours, theirs, arch, torch.float32, 1e-5)


SPACES = {
    name: timm_space(name, size)
    for name, size in (
        ("test_efficientnet", 32),
        ("test_resnet", 40),
        ("test_vit", 64),
        ("small_eva_dinov3", 32),
        ("small_eva_packed", 32),
        ("small_eva_unfused", 32),
        ("small_eva_gated", 32),
    )
}


@pytest.mark.parametrize(
    ("name", "noticed"),
    [("test_efficientnet", "channels"), ("test_resnet", "channels"), ("test_vit", "units")],
)
def test_a_tensor_that_is_missing_from_a_reading_is_noticed(
    name: str, noticed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SPACES[name].settings
    expected = read_groups(settings)
    hidden = reading._group

    def incomplete(*arguments: object) -> object:
        group = hidden(*arguments)
        return group.model_copy(update={"tensors": group.tensors[:-1]})

    monkeypatch.setattr(reading, "_group", incomplete)
    read_again = read_groups.__wrapped__  # nothing that is remembered
    assert {group.axis for block in expected for group in block.groups} >= {noticed}
    if noticed == "units":  # heads are read from the module itself
        found = read_again(settings)
        assert {group.axis for block in found for group in block.groups} == {"heads"}
    else:
        with pytest.raises(ValueError, match="cannot be reordered"):
            read_again(settings)


@settings_(max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize("name", SPACES)
def test_a_cut_keeps_the_leading_units(name: str, data: st.DataObject) -> None:
    """Zero weights for the removed units in the layer that takes them give the same logits."""
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(data.draw(st.integers(0, 10**6))))
    full = fill_as_trained(build(space.largest, space.settings))
    ours = build(arch, space.settings).eval()
    tensors = dict(full.state_dict())
    for group, units in arch.kept():
        for part in group.tensors:
            tensors[part.name] = tensors[part.name].narrow(part.dim, 0, units * part.per_unit)
    ours.load_state_dict(tensors)
    removes_gates = any(part.name.count(".se.") for g, _ in arch.kept() for part in g.tensors)
    for group, units in arch.kept():
        consumer = full.get_submodule(group.consumer)
        per_unit = next(p.per_unit for p in group.tensors if p.name == f"{group.consumer}.weight")
        with torch.no_grad():
            consumer.weight[:, units * per_unit :] = 0
    images = torch.randn(2, 3, *space.settings.image_size)
    if not removes_gates:
        with torch.no_grad():
            assert_equal(ours(images), full(images), 1e-5)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("test_vit", {"attn", "mlp"}),
        ("small_eva_dinov3", {"attn", "mlp"}),
        ("small_eva_unfused", {"attn"}),
        ("test_resnet", {"conv2"}),
        ("convnext_atto", {"mlp"}),
    ],
)
def test_a_branch_without_units_adds_nothing(name: str, left_out: set[str]) -> None:
    """Every branch alone: as if the layer that takes its units, and all biases, were zero."""
    settings = settings_of(name).changed(image_size=32)
    arch = whole(read_groups(settings))
    full = fill_as_trained(build(arch, settings))
    images = torch.randn(2, 3, *settings.image_size)
    zeros = {
        key: torch.zeros_like(tensor) if "bias" in key or key.endswith("mean") else tensor
        for key, tensor in full.state_dict().items()
    }
    found = set()
    for block, group, without in without_one_branch(arch):
        ours = build(without, settings).eval()
        own = {key: zeros[key] for key in ours.state_dict()}
        assert len(own) < len(zeros)
        ours.load_state_dict(own)
        consumer = f"{group.consumer}.weight"
        full.load_state_dict({**zeros, consumer: torch.zeros_like(zeros[consumer])})
        with torch.no_grad():
            assert_equal(ours(images), full(images), 1e-5)
        costs = count(without, settings)
        assert costs["params"] == sum(one.numel() for one in ours.parameters())
        assert costs["macs"] == counted_macs(ours, settings)
        assert without.summary.endswith("1 branch left out")
        with pytest.raises(ValueError, match="leaves out 1 of its residual branches"):
            describe_stock(without, settings)
        found.add(group.branch[0].removeprefix(f"{block}."))
    assert found == left_out


def without_one_branch(arch: TimmArch) -> Iterator[tuple[str, UnitGroup, TimmArch]]:
    """For the first and the last of every kind of branch: block, group, and the cut without it."""
    for number, block in enumerate(arch.blocks):
        if number not in (0, len(arch.blocks) - 1):
            continue
        for place, group in enumerate(block.groups):
            if group.branch:
                units = [*block.units[:place], 0, *block.units[place + 1 :]]
                changed = block.model_copy(update={"units": tuple(units)})
                blocks = [*arch.blocks[:number], changed, *arch.blocks[number + 1 :]]
                yield block.name, group, TimmArch(blocks=tuple(blocks))


@pytest.mark.parametrize(("name", "number"), [("tf_efficientnet_lite0", 9), ("resnet18", 5)])
def test_branches_are_the_blocks_with_an_identity_shortcut(name: str, number: int) -> None:
    groups = [group for block in read_groups(settings_of(name)) for group in block.groups]
    assert sum(bool(group.branch) for group in groups) == number


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("small_eva_dinov3", 32)])
def test_without_all_branches_a_network_still_sees_its_images(name: str, size: int) -> None:
    """The last attention stays where the class token is read, but not where tokens are pooled."""
    space = timm_space(name, size, absent_branches=True)
    network = fill_as_trained(build(space.smallest, space.settings))
    with torch.no_grad():
        first, second = network(images_for(space, 2))
    assert not torch.allclose(first, second, rtol=1e-3)
    stays = [group.consumer for block in space.blocks for group in block.groups if not group.branch]
    assert stays == ([f"{space.blocks[-1].name}.attn.proj"] if name == "test_vit" else [])


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_vit"])
def test_a_block_without_branches_is_not_computed(name: str) -> None:
    """Its module contains nothing and returns its very input."""
    space = timm_space(name, 64, absent_branches=True)
    network = build(space.smallest, space.settings)
    absent = [block.name for block in space.smallest.blocks if not any(block.units)]
    assert absent
    for module in map(network.get_submodule, absent):
        images = torch.zeros(1)
        assert module(images, None, rope=None) is images
        assert not list(module.children())


def test_what_is_left_keeps_its_column_of_noise() -> None:
    space = timm_space("test_vit", 64)

    def columns(arch: TimmArch) -> dict[str, int]:
        network = build(arch, space.settings, [0.1] * len(arch.blocks))
        named = network.named_modules()
        return {name: module.column for name, module in named if hasattr(module, "drop_prob")}

    whole_columns = columns(space.largest)
    assert len(whole_columns) == len({*whole_columns.values()}) == 2 * len(space.blocks)
    for block, group, without in without_one_branch(space.largest):
        kept = columns(without)
        assert kept.items() < whole_columns.items()
        number = 1 if group.axis == "heads" else 2
        assert {*whole_columns} - {*kept} == {f"{block}.drop_path{number}"}


def test_a_space_without_branches_cannot_offer_to_leave_them_out() -> None:
    """Such as one of bottlenecks, which have two groups of channels on one branch."""
    space = timm_space("resnet26", 64)
    with pytest.raises(ValueError, match="no residual branch of resnet26 may be left out"):
        TimmSpace.model_validate({**dict(space), "absent_branches": True})


@pytest.mark.parametrize("field", ["branch", "tensors"])
def test_an_architecture_that_names_other_modules_is_refused(field: str) -> None:
    """As after a change by hand, or of timm's names."""
    space = timm_space("test_resnet", 40, absent_branches=True)
    described = space.smallest.model_dump(mode="json")
    first, second, *_ = described["blocks"]
    if field == "branch":
        first["groups"][0]["branch"][1] = "layer1.0.conv9"
    else:
        second["groups"][0]["tensors"][0]["name"] = "layer1.0.conv9"
    with pytest.raises(ValueError, match=r"has units in layer1\.0\.conv9, which its timm model"):
        build(TimmArch.model_validate(described), space.settings)


def test_no_units_are_an_option_only_of_a_residual_branch() -> None:
    space = timm_space("test_resnet", 40, absent_branches=True)
    first, second, *_ = space.blocks
    assert [stage.axes[0].options[0] for stage in space.chain[:2]] == [0, 8]
    assert first.stage(absent_branches=False).axes[0].options[0] > 0
    listed = first.model_copy(update={"options": ((0, *first.options[0]),)})
    assert {listed.stage(absent_branches=one) for one in (False, True)} == {space.chain[0]}
    options = {**second.model_dump(), "options": [[0, 8]]}
    with pytest.raises(ValueError, match="0 is not an option"):
        TimmSpace.model_validate({**space.model_dump(), "blocks": [options]})
    units = {**space.largest.blocks[1].model_dump(), "units": [0]}
    with pytest.raises(ValueError, match=r"layer2.0 cannot do without channels"):
        TimmArch.model_validate({"blocks": [units]})
    again = cuts(space.smallest, space.settings, "again")
    assert again.blocks[0].options == ((0,),)  # what is left out stays so


@settings_(max_examples=10)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_timm_alone_loads_a_convolutional_cut(name: str, seed: int) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(seed))
    ours = fill_as_trained(build(arch, space.settings), seed)
    theirs = stock(arch, space.settings).eval()
    assert not type(theirs).__module__.startswith("prenas")
    theirs.load_state_dict(to_timm(ours.state_dict(), space.settings))
    images = torch.randn(2, 3, *space.settings.image_size)
    with torch.no_grad():
        assert_equal(theirs(images), ours(images), 1e-5)


def test_timm_alone_loads_a_cut_that_resizes_its_images() -> None:
    """With its own description: the arguments of PyTorch's interpolation."""
    space = timm_space("test_efficientnet", 64).model_copy(update={"resolution": (40, 64)})
    ours = fill_as_trained(build(space.smallest, space.settings))
    images = torch.randn(2, 3, 64, 64)
    theirs = stock(space.smallest, space.settings).eval()
    theirs.load_state_dict(ours.state_dict())
    described: dict[str, Any] = describe_stock(space.smallest, space.settings)
    fields = {name: described[name] for name in ("num_classes", "in_chans")}
    alone = timm.models.adapt_model_from_string(
        timm.create_model(described["model"], **fields), described["shapes"]
    ).eval()
    alone.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = ours(images)
        assert_equal(theirs(images), expected, 1e-5)
        assert_equal(alone(interpolate(images, **described["resize"])), expected, 1e-5)
        assert not torch.allclose(alone(images), expected, atol=1e-3)
    assert "resize" not in describe_stock(space.largest, space.settings)


@pytest.mark.parametrize(
    ("model", "image_size", "expected"),
    [
        ("tf_efficientnet_lite0", 224, (96, 128, 160, 192, 224)),
        ("test_resnet", 96, (64, 80, 96)),
        ("test_resnet", 40, ()),
        ("test_resnet", (96, 80), ()),
        ("vit_tiny_patch16_224", 224, ()),  # its positions are those of one grid
    ],
)
def test_smaller_images_are_offered_where_a_network_takes_them(
    model: str, image_size: Any, expected: tuple[int, ...]
) -> None:
    settings = TimmSettings(model=model, image_size=image_size, num_classes=5)
    assert resolutions(settings) == expected
    space = cuts(whole(read_groups(settings)), settings, model)
    assert space.resolution == expected
    if expected:
        half = space.largest.model_copy(update={"resolution": expected[0]})
        small = settings.changed(image_size=(expected[0], expected[0]))
        plain = space.largest.model_copy(update={"resolution": None})
        assert count(half, settings) == count(plain, small)


def test_a_network_that_is_built_for_one_size_is_not_offered_smaller_images() -> None:
    """CrossViT takes any, because it resizes them itself."""
    settings = TimmSettings(model="crossvit_tiny_240", image_size=240, num_classes=5)
    assert resolutions(settings) == ()


def test_deep_networks_and_blocks_of_many_groups_can_be_cut() -> None:
    """Such as EfficientNetV2-XL and Inception: their spaces stay within what a search allows."""
    settings = TimmSettings(model="test_resnet", image_size=40, num_classes=5)
    group = read_groups(settings)[0].groups[0]
    for num_blocks, num_groups, most in ((100, 1, 32), (1, 3, 6), (1, 4, 4), (1, 6, 2), (1, 11, 1)):
        blocks = [
            BlockGroups(name=f"blocks.{number}", groups=(group,) * num_groups)
            for number in range(num_blocks)
        ]
        space = cuts(whole(blocks), settings, "large")
        assert len(space.blocks) == num_blocks
        for block in space.blocks:
            assert max(map(len, block.options)) <= most
            assert num_groups > 8 or min(map(len, block.options)) > 1
            assert {options[-1] for options in block.options} == {group.num_units}


@pytest.mark.parametrize(
    ("name", "end", "reason"),
    [
        ("test_vit", "smallest", "rows of queries, keys and values"),
        ("small_eva_unfused", "smallest", "its heads differ from block to block"),
        ("test_vit", "largest", "rows of queries, keys and values"),  # timm would read other heads
        ("convnextv2_atto", "smallest", r"timm cannot change the size of .*grn"),
        ("convnext_tiny", "smallest", "its units differ from block to block"),
    ],
)
def test_what_timm_cannot_build_is_not_called_stock(name: str, end: str, reason: str) -> None:
    space = SPACES.get(name) or timm_space(name, 64)
    for make in (stock, describe_stock):
        with pytest.raises(ValueError, match=reason):
            make(getattr(space, end), space.settings)


def uniform(space: TimmSpace, **places: int) -> TimmArch:
    """The cut in which every block takes the option at the same place of each kind."""
    blocks = [
        CutBlock(
            name=block.name,
            groups=block.groups,
            units=tuple(
                options[places.get(group.axis, -1)]
                for group, options in zip(block.groups, block.options, strict=True)
            ),
        )
        for block in space.blocks
    ]
    return TimmArch(blocks=tuple(blocks))


ALONE = """
import json, sys
import safetensors.torch, timm, torch

class Prenas:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("prenas"), name
sys.meta_path.insert(0, Prenas())

described = json.load(open(sys.argv[1] + "/arch.json"))["timm"]
{lines}
images = safetensors.torch.load_file(sys.argv[1] + "/images")["images"]
with torch.no_grad():
    logits = model.eval()(images)
safetensors.torch.save_file({{"logits": logits}}, sys.argv[1] + "/logits")
"""


def lines_of_the_guide() -> str:
    """How the guide loads a uniform cut of a Transformer by timm alone."""
    guide = (Path(__file__).parents[2] / "docs/guide/pretrained.md").read_text()
    code = next(part for part in guide.split("```")[1::2] if "attn_head_dim" in part)
    return code.replace(
        'open("runs/vit/subnets/00/arch.json")', 'open(sys.argv[1] + "/arch.json")'
    ).replace('"runs/vit/subnets/00/model.safetensors"', 'sys.argv[1] + "/model.safetensors"')


@pytest.mark.parametrize(
    ("model", "places"),
    [
        ("test_vit", {"heads": 0, "units": 1}),
        ("test_vit", {"units": 0}),
        ("test_vit", {}),
        ("test_vit2", {"heads": 0, "units": 2}),
        ("test_vit4", {"heads": 1}),
    ],
)
def test_timm_alone_builds_a_uniform_transformer(model: str, places: dict[str, int]) -> None:
    space = timm_space(model, 64)
    arch = uniform(space, **places)
    ours = fill_as_trained(build(arch, space.settings))
    theirs = built_by_arguments(arch, space.settings).eval()
    theirs.load_state_dict(to_timm(ours.state_dict(), space.settings))
    assert not any(
        type(one).__module__.startswith("prenas.families.timm_cut.network")
        for one in theirs.modules()
    )
    images = torch.randn(2, 3, *space.settings.image_size)
    with torch.no_grad():
        assert_equal(theirs(images), ours(images), 1e-5)
    described = describe_arguments(arch, space.settings)
    assert ("head_dim" in described) == ("heads" in places)


def test_a_uniform_transformer_is_handed_over_for_timm_alone(tmp_path: Path) -> None:
    """The guide's own lines, in a process that cannot import this package."""
    space = SPACES["test_vit"]
    arch = uniform(space, heads=0, units=1)
    ours = fill_as_trained(build(arch, space.settings))
    write_model(
        tmp_path, ours, arch, space.settings, family="timm", class_names=tuple("abcde"),
        preprocessing=Preprocessing(), provenance={},
    )  # fmt: skip
    images = torch.randn(2, 3, *space.settings.image_size)
    save_file({"images": images}, tmp_path / "images")
    code = ALONE.format(lines=lines_of_the_guide())
    subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], check=True)
    loaded = load_timm(tmp_path).network
    assert type(loaded) is timm.models.VisionTransformer
    with torch.no_grad():
        expected = ours(images)
        assert_equal(load_file(tmp_path / "logits")["logits"], expected, 1e-5)
        assert_equal(loaded(images), expected, 1e-5)


def test_a_transformer_that_is_not_uniform_is_not_described() -> None:
    space = SPACES["test_vit"]
    first, *others = space.largest.blocks
    fewer = first.model_copy(update={"units": (first.units[0], first.units[1] - 8)})
    arch = TimmArch(blocks=(fewer, *others))
    with pytest.raises(ValueError, match="its units differ from block to block"):
        describe_arguments(arch, space.settings)
    pooling = timm_space("test_vit3", 64)
    with pytest.raises(ValueError, match="pooling has heads and units of its own"):
        describe_arguments(uniform(pooling, heads=1), pooling.settings)
    eva = SPACES["small_eva_dinov3"]
    with pytest.raises(ValueError, match="small_eva_dinov3 is no plain Vision Transformer"):
        describe_arguments(eva.largest, eva.settings)


@pytest.mark.parametrize("name", ["test_vit", "small_eva_dinov3", "small_eva_packed"])
def test_rows_by_unit_and_back(name: str) -> None:
    settings = SPACES[name].settings
    tensors = timms_own(settings).state_dict()
    there = from_timm(tensors, settings)
    assert any(not torch.equal(there[name], tensors[name]) for name in tensors)
    back = to_timm(there, settings)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_what_timm_looks_up_once_follows_the_weights() -> None:
    """LeViT and its like keep their attention biases in evaluation; a supernet's weights change."""
    space = timm_space("levit_128s", 224)
    supernet, images = new_supernet(space).eval(), images_for(space, batch=1)
    statistics = supernet.fresh_statistics(space.smallest)
    biases = [
        one for name, one in supernet.network.named_parameters() if "attention_biases" in name
    ]
    found = []
    with torch.no_grad():
        for seed in range(2):
            for one in biases:
                one.normal_(generator=torch.Generator().manual_seed(seed))
            found.append(supernet(images, space.smallest, statistics=statistics))
            network = supernet.cut(space.smallest, statistics).eval()
            assert_equal(found[-1], network(images), 1e-5)
    assert not torch.allclose(*found, rtol=1e-2)


def test_padded_averages_get_maps_in_the_usual_order_off_the_processor() -> None:
    """PyTorch had a wrong gradient there for maps with channels last."""
    space = timm_space("test_resnet", 64)
    network, images = new_supernet(space).network, images_for(space, batch=2)
    kinds = []
    for pool in (nn.AvgPool2d(2), nn.AvgPool2d(3, stride=1, padding=1)):
        vars(network).pop("_pads_averages", None)
        network.add_module("pool", pool)
        for device in ("cpu", "meta"):
            prepared = network._prepared(images.to(device))  # type: ignore[operator]
            kinds.append(prepared.is_contiguous(memory_format=torch.channels_last))
    assert kinds == [True, True, True, False]


@pytest.mark.parametrize("name", ["small_eva_dinov3", "small_eva_packed", "small_eva_unfused"])
def test_a_view_of_the_supernet_is_the_cut(name: str) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(1))
    supernet = new_supernet(space).eval()
    images = images_for(space)
    with torch.no_grad():
        assert_equal(supernet(images, arch), supernet.cut(arch)(images))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnext50_32x4d", "layer1.0.conv2 is a convolution of 32 groups"),
        ("hgnet_tiny", "mixes the units of several layers"),
        ("densenet121", "no hidden units that can be removed"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_by_layer(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_groups(TimmSettings(model=name, image_size=64))


def test_options_end_at_the_full_number_in_even_steps() -> None:
    settings = settings_of("tf_efficientnet_lite0")
    space = cuts(whole(read_groups(settings)), settings, "cuts")
    for block in space.blocks:
        for group, options in zip(block.groups, block.options, strict=True):
            assert options[-1] == group.num_units
            assert len(options) <= 32
            assert len(set(np.diff(options))) == 1
            assert options[0] % 8 == 0


def test_an_architecture_survives_json() -> None:
    space = SPACES["test_vit"]
    arch = space.sample(np.random.default_rng(3))
    assert TimmArch.model_validate(json.loads(arch.model_dump_json())) == arch
    assert TimmArch.from_links(arch.links) == arch
    assert re.fullmatch(r"heads \d+% \(\d+%-\d+%\), units \d+% \(\d+%-\d+%\)", arch.summary)


def test_unknown_models_and_impossible_cuts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timm has no model 'resnet5O': did you mean"):
        TimmSettings(model="resnet5O")
    arch = SPACES["test_resnet"].largest
    block = arch.blocks[0].model_dump()
    with pytest.raises(ValueError, match=r"has \d+ channels, so it cannot keep 9999"):
        TimmArch.model_validate({"blocks": [{**block, "units": [9999]}]})
    with pytest.raises(ValueError, match="give one number per group"):
        TimmArch.model_validate({"blocks": [{**block, "units": [1, 1, 1]}]})


def assert_same_weights(found: PretrainedNetwork, expected: PretrainedNetwork) -> None:
    assert found.settings == expected.settings
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)


def test_weights_under_the_names_of_their_authors_are_read() -> None:
    """The file of DINOv2's authors has a token for masked patches, which timm leaves out."""
    tensors = timm.create_model("test_vit").state_dict()
    given = {**tensors, "mask_token": torch.zeros(1, 64)}
    assert_same_weights(read_pretrained("test_vit", given), read_pretrained("test_vit", tensors))


def test_counters_of_batches_may_be_missing() -> None:
    """PyTorch loads such a state dict, too."""
    tensors = timm.create_model("test_resnet", num_classes=3).state_dict()
    given = {name: one for name, one in tensors.items() if "num_batches_tracked" not in name}
    assert len(given) < len(tensors)
    expected = read_pretrained("test_resnet", tensors)
    assert_same_weights(read_pretrained("test_resnet", given), expected)


# --- copies, noise and sizes ---------------------------------------------------------------------


def trained_cut(name: str = "test_vit", drop_path: float = 0.0, dropout: float = 0.0) -> nn.Module:
    """A cut with weights that are not those of the start."""
    space = timm_space(name, 64)
    arch = space.sample(np.random.default_rng(2))
    network = build(arch, space.settings, [drop_path] * len(arch.blocks), dropout)
    fill_as_trained(network)
    return network


def test_positions_are_resampled_to_a_grid_of_as_many_patches() -> None:
    """4 x 16 patches become 8 x 8: the tensor keeps its shape, but not its meaning."""
    old = TimmSettings(model="test_vit", image_size=(64, 256), num_classes=4)
    new = old.changed(image_size=(128, 128))
    network: Any = timms_own(old)
    fill_as_trained(network)
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = resize(tensors, old, new)
    network.set_input_size((128, 128))
    expected = network.state_dict()
    assert not torch.equal(found["pos_embed"], tensors["pos_embed"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_layers_that_see_parts_of_images_keep_their_units() -> None:
    """MobileViT folds parts of an image into the batch: nothing there is one entry per image."""
    settings = TimmSettings(model="mobilevit_xxs", image_size=64)
    arch = whole(read_groups(settings))
    consumers = [group.consumer for group, _ in arch.kept()]
    assert consumers
    assert not [name for name in consumers if ".transformer." in name]
    assert count(arch, settings)["macs"] == counted_macs(timms_own(settings).eval(), settings)


def test_a_copy_drops_features_by_itself() -> None:
    network = trained_cut(dropout=0.5)
    images = torch.randn(2, 3, 64, 64)
    copied = deepcopy(network).eval()
    network.train()
    with torch.no_grad():
        assert torch.equal(copied(images), copied(images))
        assert not torch.equal(network(images), network(images))
        network.eval()
        assert torch.equal(network(images), copied(images))
        copied.train()
        assert not torch.equal(copied(images), copied(images))


def test_noise_of_a_call_does_not_stay() -> None:
    network: Any = trained_cut(drop_path=0.5).train()
    network(torch.randn(2, 3, 64, 64), torch.rand(2, 64))
    images = torch.randn(3, 3, 64, 64)  # another number than the noise was for
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(network.forward_features(images))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_layers_that_are_computed_again_get_the_same_noise() -> None:
    network: Any = trained_cut(drop_path=0.5).train()
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 64)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        network(images, noise).sum().backward()
        gradients.append([one.grad.clone() for one in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_resnet"])
def test_cuts_are_pickled(name: str) -> None:
    network = trained_cut(name, drop_path=0.1, dropout=0.1).eval()
    images = torch.randn(2, 3, 64, 64)
    loaded = pickle.loads(pickle.dumps(network))
    assert type(loaded) is type(network)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
        assert loaded.settings == network.settings
