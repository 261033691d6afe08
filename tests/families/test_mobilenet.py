"""The convolutional family against numbers measured on public code, and facts of its own.

Golden: `cnn_published.json` (published, extreme and random subnets with exact counts) and
`cnn_forward.json` (logits of five of them, weights filled by a formula).
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor

from families.drawing import archs, new_supernet, run, statistics_for
from prenas.cost import count
from prenas.families import build, family_of, get_space
from prenas.families.base import StageChoice, check_contains, envelope, named_tensors
from prenas.families.mobilenet.arch import MobileNetArch, StageArch
from prenas.families.mobilenet.blocks import make_block
from prenas.families.mobilenet.parts import block_specs
from prenas.families.mobilenet.space import MobileNetSpace
from prenas.supernet import Supernet

GOLDEN = Path(__file__).parents[1] / "golden"


def published_space() -> MobileNetSpace:
    space = get_space("mobilenet")
    assert isinstance(space, MobileNetSpace)
    return space


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


PUBLISHED = {entry["name"]: entry for entry in golden("cnn_published")}
FORWARD = golden("cnn_forward")


def arch_of(entry: dict[str, Any], resolution: int | None = None) -> MobileNetArch:
    """A golden entry as an architecture of `mobilenet`."""
    stem, *widths, head = entry["width"]
    return MobileNetArch(
        resolution=resolution or entry["resolution"],
        stem=stem,
        stages=tuple(
            StageArch(
                width=width,
                kernel=(kernel,) * depth,
                expand=(expand,) * depth,
                stride=options.stride,
                se=options.se,
                act=options.act,
                expansion=options.has_expansion,
            )
            for width, depth, kernel, expand, options in zip(
                widths,
                entry["depth"],
                entry["kernel"],
                entry["expand"],
                published_space().stages,
                strict=True,
            )
        ),
        head=head,
    )


# --- golden --------------------------------------------------------------------------------------


def test_costs_are_the_published_ones_to_the_unit() -> None:
    found = {
        name: count(arch_of(entry), published_space().settings) for name, entry in PUBLISHED.items()
    }
    assert {name: (cost["params"], cost["macs"]) for name, cost in found.items()} == {
        name: (entry["params"], entry["macs"]) for name, entry in PUBLISHED.items()
    }


def test_every_kind_of_golden_entry_is_there() -> None:
    sources = {entry["source"].split()[0] for entry in PUBLISHED.values()}
    assert len(PUBLISHED) > 35
    assert {"AttentiveNAS", "AlphaNet"} <= sources
    assert len(FORWARD["cases"]) == 6


@pytest.mark.parametrize(
    ("name", "size", "num_archs", "smallest", "largest"),
    [
        ("mobilenet-micro", 28, 5184, (13_122, 0.212), (146_778, 2.088)),
        ("mobilenet-micro", 32, 5184, (13_122, 0.257), (146_778, 2.396)),
        ("mobilenet-small", 28, 2_985_984, (145_802, 1.947), (657_418, 9.904)),
        ("mobilenet-small", 32, 2_985_984, (145_802, 2.254), (657_418, 11.351)),
    ],
)
def test_small_spaces_are_as_stated(
    name: str, size: int, num_archs: int, smallest: Any, largest: Any
) -> None:
    space = get_space(name).with_settings(image_size=size)
    assert space.num_archs == num_archs
    for arch, (params, macs) in ((space.smallest, smallest), (space.largest, largest)):
        cost = count(arch, space.settings)
        assert cost["params"] == params
        assert round(cost["macs"] / 1e6, 3) == macs


def test_the_published_space_has_its_size() -> None:
    space = published_space()
    assert space.num_archs == 4 * 110_075_314_176
    untied = space.model_copy(update={"tied": False}).num_archs // 4
    assert untied == pytest.approx(1.63e27, rel=0.01)
    assert get_space("mobilenet-small").model_copy(update={"tied": False}).num_archs == (
        pytest.approx(5.96e11, rel=0.01)
    )


def test_the_supernet_holds_no_idle_shortcuts() -> None:
    """One more than in the largest subnet, whose count is golden: from 24 to 24 channels."""
    space = published_space()
    supernet = Supernet(space.supernet, space.settings)
    extra = (
        sum(p.numel() for p in supernet.parameters())
        - count(space.largest, space.settings)["params"]
    )
    assert extra == 24 * 24


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform in [-1, 1): one splitmix64 step of index + crc32(name) * 2**32, in float64."""
    index = np.arange(math.prod(shape), dtype=np.uint64)
    z = index + np.uint64((zlib.crc32(name.encode()) << 32) % 2**64)
    with np.errstate(over="ignore"):
        z += np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(11)).astype(np.float64) / 2**53 * 2 - 1
    return torch.from_numpy(uniform.reshape(shape))


_FIRST_BLOCKS = (0, 2, 7, 13, 19, 27, 35)
_INNER = {
    "conv_pw": "expand.conv", "bn1": "expand.bn", "conv_dw": "depthwise.conv",
    "bn2": "depthwise.bn", "conv_pwl": "project.conv", "bn3": "project.bn",
    "se.conv_reduce": "se.reduce", "se.conv_expand": "se.expand", "shortcut.conv": "shortcut.conv",
}  # fmt: skip
_INNER_WITHOUT_EXPANSION = {
    "conv_dw": "depthwise.conv", "bn1": "depthwise.bn", "conv_pw": "project.conv",
    "bn2": "project.bn", "shortcut.conv": "shortcut.conv",
}  # fmt: skip
_OUTER = {
    "conv_stem": "stem.conv", "bn1": "stem.bn", "conv_head": "head.mix.conv",
    "classifier": "classifier", "blocks.7.0.conv": "head.expand.conv",
    "blocks.7.0.bn1": "head.expand.bn",
}  # fmt: skip


def golden_name(name: str) -> str:
    """Name in production -> name in the golden file."""
    module, _, tensor = name.rpartition(".")
    if module in _OUTER:
        return f"{_OUTER[module]}.{tensor}"
    _, stage, block, inner = module.split(".", 3)
    names = _INNER if int(stage) else _INNER_WITHOUT_EXPANSION
    return f"block{_FIRST_BLOCKS[int(stage)] + int(block)}.{names[inner]}.{tensor}"


def golden_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights by the formula, scaled as the golden file says."""
    drawn = formula(name, shape)
    module, _, tensor = name.rpartition(".")
    if tensor == "running_var":
        return 2 + drawn
    if module.endswith(".bn"):
        return 1 + 0.1 * drawn if tensor == "weight" else 0.1 * drawn
    return 0.1 * drawn if tensor == "bias" else drawn * (6 / math.prod(shape[1:])) ** 0.5


@pytest.fixture(scope="module")
def filled() -> Supernet:
    """The published space's supernet, with every tensor and statistic from the formula."""
    space = published_space()
    supernet = Supernet(space.supernet, space.settings)
    with torch.no_grad():
        for name, tensor in named_tensors(supernet.network).items():
            if tensor.is_floating_point():
                tensor.copy_(golden_value(golden_name(name), tuple(tensor.shape)))
    return supernet


@pytest.mark.parametrize("number", range(6))
def test_logits_are_the_golden_ones(filled: Supernet, number: int) -> None:
    """Sliced from the full supernet and resized inside, with stored and with batch statistics."""
    case = FORWARD["cases"][number]
    side = case["input_resolution"]
    arch = arch_of(PUBLISHED[case["name"]], case["subnet_resolution"])
    supernet = Supernet(filled.arch, filled.settings.changed(image_size=side))
    supernet.network.load_state_dict(filled.network.state_dict())
    images = 2 * formula("input", (2, 3, side, side)).float()
    views = supernet.views(arch)
    statistics = {name: views[name] for name in supernet.fresh_statistics(arch)}
    with torch.no_grad():
        kept = supernet.eval()(images, arch, statistics=statistics)
        of_batch = supernet.train()(images, arch)
    expected = torch.tensor(case["eval_logits_first8"])
    torch.testing.assert_close(kept[:, :8], expected, rtol=0, atol=1e-5)
    expected = torch.tensor(case["trainmode_bn_logits_first8"])
    torch.testing.assert_close(of_batch[:, :8], expected, rtol=0, atol=1e-5)
    assert kept.double().sum(1).tolist() == pytest.approx(case["eval_logits_sum"], abs=1e-3)
    assert kept.abs().mean().item() == pytest.approx(case["eval_logits_abs_mean"], rel=1e-5)


# --- sharing -------------------------------------------------------------------------------------


def test_kernels_are_shared_by_their_centre() -> None:
    space = get_space("mobilenet-micro")
    supernet = Supernet(space.supernet, space.settings)
    name = "blocks.1.0.conv_dw.weight"
    assert supernet.owned_boxes(space.smallest)[name][2:] == (slice(1, 4), slice(1, 4))
    assert supernet.owned_boxes(space.largest)[name][2:] == (slice(0, 5), slice(0, 5))


def test_a_subnet_may_own_a_shortcut_that_the_largest_does_not_have() -> None:
    """24 -> 24 channels need no projection but 16 -> 24 do, so the supernet has one."""
    space = published_space()
    changed = list(space.extreme(-1))
    changed[0] = StageChoice(width=0, depth=0)
    narrow = space.compose(tuple(changed), 224)
    supernet = Supernet(space.supernet, space.settings)
    name = "blocks.0.0.shortcut.conv.weight"
    assert supernet.owned_boxes(narrow)[name] == (
        slice(0, 24),
        slice(0, 16),
        slice(0, 1),
        slice(0, 1),
    )
    assert name not in supernet.owned_boxes(space.largest)
    assert name in dict(supernet.cut(narrow).named_parameters())
    trimmed = supernet.trimmed(envelope([narrow, space.smallest]))
    assert torch.equal(trimmed.views(narrow)[name], supernet.views(narrow)[name])


def test_a_space_without_projections_has_none() -> None:
    space = get_space("mobilenet").with_settings(shortcut="identity")
    supernet = Supernet(space.supernet, space.settings)
    assert not [name for name, _ in supernet.named_parameters() if "shortcut" in name]


@settings(max_examples=10)
@given(data=st.data())
@pytest.mark.parametrize("size", [(9, 14), (1, 1), (31, 28)])
def test_odd_sides_and_single_images(size: tuple[int, int], data: st.DataObject) -> None:
    """Maps shrink as counted, and an image gives the same output alone and in a batch."""
    space = get_space("mobilenet-micro").with_settings(image_size=size, in_chans=1)
    supernet = new_supernet(space).eval()
    arch = data.draw(archs(space))
    images = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(1))
    logits = run(supernet, images, arch)
    assert logits.shape == (3, 10)
    torch.testing.assert_close(run(supernet, images[:1], arch), logits[:1], rtol=0, atol=1e-5)


# --- initialisation ------------------------------------------------------------------------------


def test_stochastic_depth_keeps_the_mean() -> None:
    """A branch is dropped where noise is below the rate, and divided by its keep rate elsewhere."""
    space = published_space()
    specs = block_specs(space.largest, space.settings)
    spec = next(each for each in specs if each.shortcut == "identity")
    block = make_block(spec, 0.2).train()
    x = torch.randn(3, spec.in_width, 6, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.tensor([0.1, 0.2, 0.9])
    found = block(x, noise)
    branch = block(x, torch.ones(3)) - x  # kept by all, of the same batch statistics
    kept = torch.tensor([0.0, 1.0, 1.0])[:, None, None, None]
    torch.testing.assert_close(found, x + kept * branch)
    block.rate = 0.0
    torch.testing.assert_close(branch, (block(x, torch.ones(3)) - x) / 0.8)


@pytest.mark.parametrize("shortcut", ["projected", "identity"])
def test_every_block_begins_as_its_shortcut(shortcut: str) -> None:
    """Only if it has a shortcut; without one, a weight of zero would block the signal."""
    space = get_space("mobilenet-micro").with_settings(shortcut=shortcut)
    supernet = Supernet(space.supernet, space.settings)
    network = supernet.initialize(torch.Generator().manual_seed(0)).network
    blocks = [block for stage in list(network.blocks)[:-1] for block in stage]
    assert len(blocks) == 8
    for block in blocks:
        last = block.bn3 if hasattr(block, "bn3") else block.bn2
        assert last.weight.any() == (block.kind == "none")
        assert block.bn1.weight.eq(1).all()
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    assert supernet.train()(images, space.largest).std() > 1e-3


# --- stock models --------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["mobilenet-micro", "ofa-mobilenetv3"])
def test_with_identity_shortcuts_a_subnet_is_a_stock_model(name: str, data: st.DataObject) -> None:
    """The same tensors under the same names, in the same order of operations: the same bits."""
    space = get_space(name).with_settings(shortcut="identity")
    arch = data.draw(archs(space))
    assert isinstance(arch, MobileNetArch)
    space = space.with_settings(image_size=arch.resolution or 32)
    supernet = new_supernet(space, arch=arch).eval()
    network = supernet.cut(arch, statistics_for(supernet, arch))
    stock = family_of(space).stock
    assert stock is not None
    theirs = stock(arch, space.settings)
    assert type(theirs) is MobileNetV3
    theirs.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, *space.settings.image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(theirs.eval()(images), network(images))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "projected shortcuts"),
        ({"shortcut": "identity", "stem_stride": 1}, "a stem of stride 1"),
        ({"shortcut": "identity", "head_act": "relu"}, "silu in its stem but relu in its head"),
        ({"shortcut": "identity", "image_size": 225}, r"resize from \(225, 225\) to 224"),
    ],
)
def test_what_timm_does_not_have_is_refused(changes: dict[str, Any], said: str) -> None:
    space = published_space().with_settings(**changes)
    stock = family_of(space).stock
    assert stock is not None
    with pytest.raises(ValueError, match=said):
        stock(space.scored, space.settings)


# --- values --------------------------------------------------------------------------------------


def test_wrong_architectures_are_told_in_words() -> None:
    with pytest.raises(ValueError, match="kernel 4 is even"):
        StageArch(width=8, kernel=(4,), expand=(1,))
    with pytest.raises(ValueError, match="kernel has 2 entries and expand has 1"):
        StageArch(width=8, kernel=(3, 3), expand=(1,))
    with pytest.raises(ValueError, match="without expansion layers"):
        StageArch(width=8, kernel=(3,), expand=(2,), expansion=False)
    space = published_space()
    with pytest.raises(ValueError, match="is not square"):
        MobileNetSpace.model_validate({**space.model_dump(), "settings": {"image_size": (4, 5)}})
    with pytest.raises(ValueError, match="the schedule uses resolution 100"):
        MobileNetSpace.model_validate({**space.model_dump(), "schedule": ((1, 100),)})
    with pytest.raises(ValueError, match="a chain of 5 stages, not 9"):
        check_contains(space.largest, get_space("mobilenet-micro").smallest)
    first, *others = space.smallest.stages
    for field, words in (
        ({"stride": 2}, "stride is 2, not 1, in stage 1"),
        ({"se": True}, "se is True, not False, in stage 1"),
        ({"act": "relu"}, "act is relu, not silu, in stage 1"),
    ):
        changed = space.smallest.model_copy(
            update={"stages": (first.model_copy(update=field), *others)}
        )
        with pytest.raises(ValueError, match=words):
            check_contains(space.largest, changed)


def test_summary_names_what_was_chosen() -> None:
    arch = arch_of(PUBLISHED["attentive_nas_a1"])
    assert arch.summary == (
        "224 px, 16-16-24-32-64-112-192-216-1984 x 1-3-3-3-3-3-1, kernel 3-5, expand 1-6"
    )


def test_resolutions_may_be_none_and_rise() -> None:
    fields = published_space().model_dump() | {"schedule": ()}
    assert MobileNetSpace.model_validate(fields | {"resolution": ()}).resolutions == (None,)
    assert MobileNetSpace.model_validate(fields | {"resolution": 224}).resolutions == (224,)
    with pytest.raises(ValidationError) as caught:
        MobileNetSpace.model_validate(fields | {"resolution": (64, 48)})
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("resolution",)
    assert "write [48, 64]" in problem["msg"]


@pytest.mark.parametrize(
    ("macs", "side"), [(203, 192), (210, 224), (429, 224), (430, 256), (560, 288), (1900, 288)]
)
def test_the_schedule_gives_the_resolution(macs: int, side: int) -> None:
    assert published_space().resolution_for(macs * 10**6) == side


def test_a_stand_alone_network_keeps_statistics() -> None:
    """Only supernets leave running statistics alone: a plain network trains like any other."""
    space = get_space("mobilenet-micro")
    supernet = new_supernet(space).train()
    network = supernet.cut(space.smallest)
    before = network.get_buffer("bn1.running_mean").clone()
    network(torch.randn(4, 3, 28, 28))
    assert not torch.equal(network.get_buffer("bn1.running_mean"), before)
    assert build(space.smallest, space.settings).get_buffer("bn1.num_batches_tracked") == 0
