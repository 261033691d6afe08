"""The authors' ViT checkpoints: sizes from shapes, names and layout, and what they published."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from families.drawing import assert_equal
from prenas.cost import count
from prenas.families import build_structure, get_family, get_space
from prenas.families.base import check_contains
from prenas.families.vit.published import PUBLISHED
from prenas.families.vit.released import read_released
from prenas.families.vit.space import VitArch, VitSettings
from reference.original import fill, native_name, to_native
from test_golden_vit import golden_space, golden_supernet, load_golden, read_arch

Tensors = dict[str, Tensor]

_BLOCK = [
    *(
        f"{module}.{kind}"
        for module in ("attn.qkv", "attn.proj", "attn_layer_norm", "ffn_layer_norm", "fc1", "fc2")
        for kind in ("weight", "bias")
    ),
    *(f"attn.rel_pos_embed_{kv}.embeddings_table_{axis}" for kv in "kv" for axis in "vh"),
]
_OUTSIDE = [
    "cls_token",
    "pos_embed",
    *(
        f"{module}.{kind}"
        for module in ("patch_embed_super.proj", "norm", "head")
        for kind in ("weight", "bias")
    ),
]


def original_names(depth: int) -> list[str]:
    return [*_OUTSIDE, *(f"blocks.{layer}.{name}" for layer in range(depth) for name in _BLOCK)]


def to_original(native: Mapping[str, Tensor], depth: int, head_dim: int) -> Tensors:
    """The inverse of the import: the authors' names, qkv rows interleaved one by one."""
    original = {}
    for name in original_names(depth):
        tensor = native[native_name(name)]
        if ".attn.qkv." in name:
            rows = []
            for row in range(len(tensor)):
                unit, t = divmod(row, 3)
                head, channel = divmod(unit, head_dim)
                rows.append(tensor[(3 * head + t) * head_dim + channel])
            tensor = torch.stack(rows)
        original[name] = tensor
    return original


def random_native(arch: VitArch, settings: VitSettings) -> Tensors:
    generator = torch.Generator().manual_seed(arch.embed_dim)
    shapes = build_structure(arch, settings).state_dict()
    return {name: torch.randn(t.shape, generator=generator) for name, t in shapes.items()}


ARCH = VitArch(embed_dim=12, num_heads=(2, 1), mlp_ratio=(2.0, 3.5))
SETTINGS = VitSettings(
    image_size=(8, 8), in_chans=3, num_classes=5, patch_size=4, head_dim=4, max_distance=3
)


def mini() -> Tensors:
    return to_original(random_native(ARCH, SETTINGS), ARCH.depth, SETTINGS.head_dim)


# --- what is read --------------------------------------------------------------------------------


def test_the_measured_network() -> None:
    """Sizes, names and layout match the reference, for a checkpoint as the authors wrote it."""
    golden = load_golden("vit_micro")
    original = fill(golden["parameter_shapes"])
    arch, settings, tensors = read_released(original, {"gp": True, "change_qkv": True})
    assert arch == golden_supernet("vit_micro").arch
    assert settings == golden_space("vit_micro").settings
    expected = to_native(original)
    assert tensors.keys() == expected.keys()
    for name in expected:
        assert torch.equal(tensors[name], expected[name]), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_published_supernets(name: str) -> None:
    """From shapes alone: tensors without memory suffice, even for the 16 layers of `base`."""
    space = get_space(name)
    with torch.device("meta"):
        native = build_structure(space.supernet, space.settings).state_dict()
    depth = {"tiny": 14, "small": 14, "base": 16}[name]
    original = {theirs: native[native_name(theirs)] for theirs in original_names(depth)}
    arch, settings, tensors = read_released(original, {})
    assert arch == space.supernet
    assert arch.depth == depth
    assert settings == space.settings
    assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in native.items()}


@given(data=st.data())
def test_any_sizes_come_back_exactly(data: st.DataObject) -> None:
    """Ours -> theirs -> ours: the same tensors, architecture and settings."""
    depth = data.draw(st.integers(1, 4), label="depth")
    width = data.draw(st.integers(1, 40), label="width")
    hidden = [data.draw(st.integers(1, 3 * width + 2)) for _ in range(depth)]
    head_dim = data.draw(st.sampled_from([1, 2, 5, 8]), label="head_dim")
    patch = data.draw(st.integers(1, 3), label="patch_size")
    side = data.draw(st.integers(1, 4), label="side")
    # Any ratio that gives these hidden units stands for the same network.
    ratios = tuple((units + 0.5) / width for units in hidden)
    arch = VitArch(
        embed_dim=width,
        num_heads=tuple(data.draw(st.integers(1, 4)) for _ in range(depth)),
        mlp_ratio=ratios,
    )
    settings = VitSettings(
        image_size=(side * patch, side * patch),
        in_chans=data.draw(st.integers(1, 4), label="in_chans"),
        num_classes=data.draw(st.integers(1, 30), label="num_classes"),
        patch_size=patch,
        head_dim=head_dim,
        max_distance=data.draw(st.integers(1, 5), label="max_distance"),
    )
    native = random_native(arch, settings)
    found, found_settings, tensors = read_released(to_original(native, depth, head_dim), {})
    assert isinstance(found, VitArch)
    assert (found.embed_dim, found.num_heads) == (width, arch.num_heads)
    assert found.hidden_dims == arch.hidden_dims == tuple(hidden)
    assert found_settings == settings
    assert tensors.keys() == native.keys()
    for name in native:
        assert torch.equal(tensors[name], native[name]), name


def test_whole_ratios_are_found_as_they_were() -> None:
    arch, settings, _ = read_released(mini(), {})
    assert (arch, settings) == (ARCH, SETTINGS)


# --- what is refused -----------------------------------------------------------------------------


def changed(change: Callable[[Tensors], object]) -> Tensors:
    tensors = mini()
    change(tensors)
    return tensors


def put(name: str, *shape: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def drop(*names: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in names]


TABLE = "blocks.0.attn.rel_pos_embed_k.embeddings_table_v"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            put("pos_drop.mask", 3), ["contains the unknown tensors pos_drop.mask"], id="extra"
        ),
        pytest.param(drop("norm.bias"), ["lacks norm.bias"], id="missing"),
        pytest.param(drop("pos_embed"), ["lacks pos_embed"], id="no-abs-pos"),
        pytest.param(
            lambda t: [t.pop(name) for name in list(t) if "rel_pos" in name],
            [f"lacks {TABLE}", "and 5 more", "--relative_position"],
            id="no-relative-position",
        ),
        pytest.param(
            lambda t: t.update({n.replace("blocks.1", "blocks.2"): t.pop(n) for n in list(t)}),
            ["lacks blocks.1.", "contains the unknown tensors blocks.2."],
            id="layer-gap",
        ),
        pytest.param(lambda t: t.clear(), ["lacks cls_token, pos_embed"], id="empty"),
        pytest.param(
            put("blocks.0.attn.qk_scaling.scalings", 2, 8),
            ["--scale-attn", "blocks.0.attn.qk_scaling.scalings"],
            id="scale-attn",
        ),
        pytest.param(put("blocks.1.mlp_scaling.scalings", 2, 8), ["--scale-mlp"], id="scale-mlp"),
        pytest.param(put("embed_scaling.scalings", 2, 8), ["--scale-embed"], id="scale-embed"),
        pytest.param(
            put("blocks.0.embed_scaling2.scalings", 2, 8), ["--scale-embed"], id="scale-embed2"
        ),
        pytest.param(
            lambda t: t.update({"norm.lns.0.weight": t.pop("norm.weight")}),
            ["--switch-ln", "norm.lns.0.weight"],
            id="switch-ln",
        ),
        pytest.param(
            put("blocks.1.fc2.weight", 12, 41),
            ["blocks.1.fc2.weight has shape (12, 41)", "the other tensors imply (12, 42)"],
            id="fc2",
        ),
        pytest.param(
            put("blocks.1.fc1.bias", 41),
            ["fc1.bias has shape (41,)", "the other tensors imply (42,)"],
            id="fc1",
        ),
        pytest.param(
            put("norm.weight", 13),
            ["norm.weight has shape (13,)", "the other tensors imply (12,)"],
            id="norm",
        ),
        pytest.param(
            put("patch_embed_super.proj.weight", 12, 3, 4, 2),
            ["has shape (12, 3, 4, 2)", "the other tensors imply (12, 3, 4, 4)"],
            id="oblong-patches",
        ),
        pytest.param(
            put("blocks.1.attn.rel_pos_embed_v.embeddings_table_h", 10, 4),
            ["embeddings_table_h has shape (10, 4)", "the other tensors imply (8, 4)"],
            id="tables-differ",
        ),
        pytest.param(
            put("blocks.1.attn.qkv.weight", 25, 12),
            ["blocks.1.attn.qkv.weight has 25 rows", "3 * 4"],
            id="part-of-a-head",
        ),
        pytest.param(put(TABLE, 9, 4), [f"{TABLE} has 9 rows"], id="odd-table"),
        pytest.param(put(TABLE, 2, 4), [f"{TABLE} has 2 rows"], id="no-distance"),
        pytest.param(
            put("pos_embed", 1, 7, 12), ["6 of them patches", "not a square grid"], id="grid"
        ),
        pytest.param(put("pos_embed", 1, 1, 12), ["0 of them patches"], id="no-patches"),
        pytest.param(
            put("cls_token", 12), ["cls_token has shape (12,): it should have 3 dim"], id="rank"
        ),
        pytest.param(put("head.weight", 0, 12), ["head.weight has shape (0, 12)"], id="no-head"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[Tensors], object], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_released(changed(change), {})
    for word in words:
        assert word in str(caught.value)


def test_only_the_first_unknown_names_are_listed() -> None:
    tensors = {**mini(), **{f"ema.{i}": torch.zeros(1) for i in range(9)}}
    with pytest.raises(ValueError, match=r"unknown tensors ema\.0, ema\.1, ema\.2 and 6 more\."):
        read_released(tensors, {})


@pytest.mark.parametrize(
    ("option", "words"), [("gp", "pools the class token"), ("change_qkv", "a fixed width")]
)
def test_options_that_leave_no_trace_in_the_tensors(option: str, words: str) -> None:
    read_released(mini(), {option: True, "epochs": 500})
    with pytest.raises(ValueError, match=words):
        read_released(mini(), {option: False})


# --- what was published --------------------------------------------------------------------------


def published_entries(name: str) -> list[dict[str, Any]]:
    path = Path(__file__).parents[1] / "golden" / "published_preferred.json"
    intervals = json.loads(path.read_text(encoding="utf-8"))["preferred"][name]
    return [entry for interval in intervals.values() for entry in interval]


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_published_archs(name: str) -> None:
    """Their parameter counts match the publication exactly, and their space contains them."""
    space, entries = get_space(name), published_entries(name)
    archs = PUBLISHED[name]
    assert archs == tuple(map(read_arch, entries))
    counts = [count(arch, space.settings)["params"] for arch in archs]
    assert counts == [round(entry["num_params"] * 1e6) for entry in entries]
    assert counts == sorted(counts)
    for arch in archs:
        check_contains(space.supernet, arch)


def test_every_published_space_is_there() -> None:
    assert {name: len(archs) for name, archs in PUBLISHED.items()} == {
        "tiny": 6,
        "small": 4,
        "base": 3,
    }


def test_logits_do_not_see_the_way_the_weights_came() -> None:
    """The network built from the checkpoint gives the same logits as before."""
    native = random_native(ARCH, SETTINGS)
    arch, settings, tensors = read_released(to_original(native, ARCH.depth, SETTINGS.head_dim), {})
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = []
    for weights in (native, tensors):
        network = get_family("vit").build(arch, settings, ()).eval()
        network.load_state_dict(weights)
        logits.append(network(images))
    assert_equal(*logits)
