"""What is specific to the ViT family: its values, its published spaces, its stochastic depth."""

import math
import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from families.drawing import assert_equal, new_supernet
from prenas.cost import count
from prenas.families import build, build_structure, get_family, get_space
from prenas.families.base import StageChoice, check_contains, envelope
from prenas.families.vit.attention import GridIndex
from prenas.families.vit.network import VisionTransformer
from prenas.families.vit.space import SPACES, VitArch, VitSettings, VitSpace
from prenas.supernet import Supernet

FAMILY = get_family("vit")


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_heads": (2,)}, ["num_heads has 1", "mlp_ratio has 2", "one entry per layer"]),
        ({"mlp_ratio": (4.0, 4.0, 4.0)}, ["num_heads has 2", "mlp_ratio has 3"]),
        ({"num_heads": (), "mlp_ratio": ()}, ["at least one layer"]),
        ({"embed_dim": 0}, ["embed_dim", "greater than or equal to 1"]),
        ({"num_heads": (2, 0)}, ["num_heads.1", "greater than or equal to 1"]),
        ({"mlp_ratio": (4.0, 0.0)}, ["mlp_ratio.1", "greater than 0"]),
        ({"mlp_ratio": (4.0, math.nan)}, ["mlp_ratio.1", "finite"]),
        ({"mlp_ratio": (4.0, math.inf)}, ["mlp_ratio.1", "finite"]),
        ({"num_heads": (2, 2.5)}, ["num_heads.1", "integer"]),
        ({"depth": 2}, ["depth", "Extra inputs"]),
    ],
)
def test_arch_is_checked(fields: dict[str, Any], words: list[str]) -> None:
    good = {"embed_dim": 32, "num_heads": (2, 3), "mlp_ratio": (4.0, 3.0)}
    VitArch(**good)
    with pytest.raises(ValidationError) as caught:
        VitArch(**{**good, **fields})
    assert all(word in str(caught.value) for word in words)


def test_arch_counts_layers_and_hidden_units() -> None:
    arch = VitArch(embed_dim=27, num_heads=(1, 2, 3), mlp_ratio=(3.5, 2.77, 4))
    assert arch.depth == 3
    assert arch.hidden_dims == (94, 74, 108)  # int(94.5), int(74.79)
    assert arch == VitArch(embed_dim=27, num_heads=[1, 2, 3], mlp_ratio=[3.5, 2.77, 4.0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": (224, 220)}, ["(224, 220)", "multiple of patch_size 16", "from 4, 2, 1"]),
        (
            {"image_size": 30, "patch_size": 4},
            ["(30, 30)", "multiple of patch_size 4", "from 3, 5, 2"],
        ),
        ({"image_size": (0, 16)}, ["(0, 16)", "positive"]),
        ({"image_size": (16, 16, 16)}, ["image_size", "[height, width]", "(16, 16, 16)"]),
        ({"image_size": (16,)}, ["image_size", "[height, width]"]),
        ({"image_size": "224"}, ["image_size", "one integer", "'224'"]),
        ({"image_size": 8}, ["(8, 8)", "multiple of patch_size 16", "from 8, 4, 2"]),
        ({"in_chans": 0}, ["in_chans", "greater than or equal to 1"]),
        ({"num_classes": 0}, ["num_classes", "greater than or equal to 1"]),
        ({"patch_size": 0}, ["patch_size", "greater than or equal to 1"]),
        ({"head_dim": 0}, ["head_dim", "greater than or equal to 1"]),
        ({"max_distance": 0}, ["max_distance", "greater than or equal to 1"]),
        ({"window": 7}, ["window", "Extra inputs"]),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        VitSettings(**fields)
    assert all(word in str(caught.value) for word in words)


def test_settings_default_to_the_published_input() -> None:
    settings = VitSettings()
    assert settings.image_size == (224, 224)
    assert (settings.in_chans, settings.num_classes) == (3, 1000)
    assert (settings.patch_size, settings.head_dim, settings.max_distance) == (16, 64, 14)
    assert settings.grid == (14, 14)
    assert VitSettings(image_size=32, patch_size=8) == VitSettings(
        image_size=(32, 32), patch_size=8
    )
    assert VitSettings(image_size=(32, 48), patch_size=8).grid == (4, 6)


@pytest.mark.parametrize("axis", ["embed_dim", "depth", "num_heads", "mlp_ratio"])
@pytest.mark.parametrize("options", [(), (3, 2), (2, 2), (1, 3, 2)])
def test_space_options_rise(axis: str, options: tuple[int, ...]) -> None:
    fields = {"embed_dim": (8, 16), "depth": (1, 2), "num_heads": (1, 2), "mlp_ratio": (2, 4)}
    VitSpace(name="good", **fields)
    with pytest.raises(ValidationError, match="rising order") as caught:
        VitSpace(name="bad", **{**fields, axis: options})
    assert axis in str(caught.value)
    if options:
        assert re.search(r"write \[[123.0, ]+\]", str(caught.value))


@pytest.mark.parametrize("axis", ["embed_dim", "depth", "num_heads", "mlp_ratio"])
def test_one_number_is_one_option(axis: str) -> None:
    fields = {"embed_dim": (8, 16), "depth": (1, 2), "num_heads": (1, 2), "mlp_ratio": (2, 4)}
    space = VitSpace(name="good", **{**fields, axis: 3})
    assert space == VitSpace(name="good", **{**fields, axis: (3,)})


def test_a_depth_that_no_search_can_handle_is_refused() -> None:
    fields = {"embed_dim": 8, "num_heads": 1, "mlp_ratio": 2}
    assert VitSpace(name="deep", depth=1000, **fields).num_archs == 1
    with pytest.raises(ValidationError, match=r"(?s)depth.*12,000 layers.*at most 1,000"):
        VitSpace(name="bad", depth=(12, 12_000), **fields)


@pytest.mark.parametrize("axis", ["embed_dim", "depth", "num_heads", "mlp_ratio"])
def test_space_options_are_positive(axis: str) -> None:
    fields = {"embed_dim": (8, 16), "depth": (1, 2), "num_heads": (1, 2), "mlp_ratio": (2, 4)}
    with pytest.raises(ValidationError, match="greater than"):
        VitSpace(name="bad", **{**fields, axis: (0, 1)})


def test_supernet_is_at_least_as_wide_as_the_widest_option() -> None:
    fields = {"embed_dim": (8, 16), "depth": (1, 2), "num_heads": (1, 2), "mlp_ratio": (2, 4)}
    for width, expected in ((None, 16), (16, 16), (17, 17)):
        space = VitSpace(name="good", **fields, supernet_embed_dim=width)
        assert space.supernet == VitArch(embed_dim=expected, num_heads=(2, 2), mlp_ratio=(4.0, 4.0))
        assert space.largest == VitArch(embed_dim=16, num_heads=(2, 2), mlp_ratio=(4.0, 4.0))
        assert space.smallest == VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(2.0,))
    with pytest.raises(ValidationError, match=r"supernet_embed_dim 15 .* widest option 16"):
        VitSpace(name="bad", **fields, supernet_embed_dim=15)


# --- published spaces (docs/method.md, section 1) ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "embed_dim", "num_heads", "depth", "mlp_ratio", "supernet"),
    [
        ("tiny", (192, 216, 240), (3, 4), (12, 13, 14), (3.5, 4), (256, 4, 14, 4)),
        ("small", (320, 384, 448), (5, 6, 7), (13, 14), (3, 3.5, 4), (448, 7, 14, 4)),
        ("base", (528, 576, 624), (9, 10), (14, 15, 16), (3, 3.5, 4), (640, 10, 16, 4)),
    ],
)
def test_published_spaces(
    name: str,
    embed_dim: tuple[int, ...],
    num_heads: tuple[int, ...],
    depth: tuple[int, ...],
    mlp_ratio: tuple[float, ...],
    supernet: tuple[int, ...],
) -> None:
    space = SPACES[name]
    assert space.embed_dim == embed_dim
    assert space.num_heads == num_heads
    assert space.depth == depth
    assert space.mlp_ratio == mlp_ratio
    width, heads, layers, ratio = supernet
    assert space.supernet == VitArch(
        embed_dim=width, num_heads=(heads,) * layers, mlp_ratio=(ratio,) * layers
    )
    assert space.settings == VitSettings()


def test_published_spaces_hold_this_many_archs() -> None:
    """Widths times the sum over depths of (options per layer) ** depth."""
    assert SPACES["tiny"].num_archs == 3 * (4**12 + 4**13 + 4**14)
    assert SPACES["small"].num_archs == 3 * (9**13 + 9**14)
    assert SPACES["base"].num_archs == 3 * (6**14 + 6**15 + 6**16)
    assert SPACES["digits"].num_archs == 3 * (9**3 + 9**4 + 9**5)


def test_the_chain_has_one_stage() -> None:
    """Its width is the embedding dimension of the whole network."""
    space = get_space("tiny")
    (stage,) = space.chain
    assert stage.widths == space.embed_dim
    assert stage.depths == space.depth
    assert not stage.tied
    assert [axis.name for axis in stage.axes] == ["num_heads", "mlp_ratio"]


# --- containment, envelope -----------------------------------------------------------------------


def test_envelope_takes_the_largest_of_everything() -> None:
    """Members too shallow for a layer do not count there; the order of members does not matter."""
    members = [
        VitArch(embed_dim=16, num_heads=(3, 1), mlp_ratio=(2.0, 4.0)),
        VitArch(embed_dim=24, num_heads=(1, 2, 1, 2), mlp_ratio=(3.0, 3.0, 2.0, 3.0)),
        VitArch(embed_dim=8, num_heads=(1, 1, 2), mlp_ratio=(2.0, 2.0, 3.5)),
    ]
    expected = VitArch(embed_dim=24, num_heads=(3, 2, 2, 2), mlp_ratio=(3.0, 4.0, 3.5, 3.0))
    assert envelope(members) == expected
    assert envelope(members[::-1]) == expected


def test_what_does_not_fit_is_listed_whole() -> None:
    largest = VitArch(embed_dim=16, num_heads=(2, 2), mlp_ratio=(2.0, 2.0))
    arch = VitArch(embed_dim=20, num_heads=(1, 3, 1), mlp_ratio=(1.0, 2.0, 1.0))
    with pytest.raises(ValueError, match="does not fit") as caught:
        check_contains(largest, arch)
    for problem in (
        "embed_dim 20 > 16",
        "depth 3 > 2",
        "num_heads 3 > 2 in layer 1",
        "mlp_ratio 2 (40 units > 32) in layer 1",
    ):
        assert problem in str(caught.value)
    assert "layer 0" not in str(caught.value)


def test_a_narrow_network_may_have_a_larger_ratio_than_its_supernet() -> None:
    """Hidden units must fit, not ratios, because tensors have hidden units."""
    largest = VitArch(embed_dim=16, num_heads=(1,), mlp_ratio=(2.0,))
    check_contains(largest, VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(4.0,)))
    with pytest.raises(ValueError, match=r"mlp_ratio 4\.126 \(33 units > 32\) in layer 0"):
        check_contains(largest, VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(4.126,)))


def test_balancing_group_is_width_and_depth() -> None:
    arch = VitArch(embed_dim=16, num_heads=(2, 1), mlp_ratio=(2.0, 4.0))
    assert FAMILY.balancing_group(arch) == (16, 2)


# --- roles and scores ----------------------------------------------------------------------------


def test_tensors_that_the_score_sums() -> None:
    """All except the class token, the position embedding and the relative tables."""
    arch = VitArch(embed_dim=8, num_heads=(1, 1), mlp_ratio=(2.0, 2.0))
    settings = VitSettings(image_size=8, patch_size=4, head_dim=4, num_classes=3)
    names = [name for name, _ in build_structure(arch, settings).named_parameters()]
    tables = [f"{x}_{y}" for x in ("key", "value") for y in ("vertical", "horizontal")]
    left_out = {"cls_token", "pos_embed"} | {
        f"blocks.{layer}.attn.{table}" for layer in range(2) for table in tables
    }
    assert {name for name in names if not FAMILY.is_scored(name)} == left_out
    scored = [name for name in names if FAMILY.is_scored(name)]
    assert len(scored) == 2 + 2 * 12 + 2 + 2  # convolution, layers, final LayerNorm, head


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("blocks.0.attn.qkv.weight", (0, 0)),
        ("blocks.11.attn.proj.weight", (0, 11)),
        ("blocks.2.attn.proj.bias", (0, 2)),
        ("blocks.3.mlp.fc1.bias", (0, 3)),
        ("blocks.3.mlp.fc2.weight", (0, 3)),
        ("blocks.4.norm1.weight", (0, 4)),
        ("blocks.4.attn.key_vertical", (0, 4)),
        ("patch_embed.proj.weight", (0, None)),
        ("norm.weight", (0, None)),
        ("head.bias", (0, None)),
        ("cls_token", (0, None)),
    ],
)
def test_roles(name: str, role: tuple[int, int | None]) -> None:
    assert FAMILY.roles(get_space("tiny").largest, [name]) == {name: role}


def test_entropy_by_hand() -> None:
    arch = VitArch(embed_dim=10, num_heads=(1, 2), mlp_ratio=(2.0, 2.25))
    settings = VitSettings(image_size=8, patch_size=4, head_dim=6)
    product = 20 * 22 * 6 * 12 * 196**2 * 10**8
    assert FAMILY.arch_scores["entropy"](arch, settings) == pytest.approx(math.log(product))


# --- initialisation (docs/method.md, section 1) --------------------------------------------------


def test_initialisation_is_the_published_one() -> None:
    """Truncated normal 0.02, zero biases, LayerNorm 1 and 0, the convolution PyTorch's default."""
    supernet = Supernet(get_space("digits").supernet, get_space("digits").settings)
    supernet.initialize(torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(1 * 2 * 2)  # channels, patch height and width
    for name, parameter in supernet.network.named_parameters():
        values = parameter.detach()
        if name.startswith("patch_embed."):
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.8 * bound
            assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
        elif "norm" in name:
            assert (values == (1.0 if name.endswith("weight") else 0.0)).all()
        elif name.endswith(".bias"):
            assert not values.any()
        else:
            error = 4 / math.sqrt(2 * values.numel())  # four standard errors
            assert values.std().item() == pytest.approx(0.02, rel=error)
            assert abs(values.mean().item()) < 4 * 0.02 / math.sqrt(values.numel())


def test_drop_path_rates_must_cover_all_layers() -> None:
    arch = get_space("digits").smallest
    with pytest.raises(ValueError, match="2 drop-path rates for 3 layers"):
        build(arch, get_space("digits").settings, (0.0, 0.1))


# --- stochastic depth ----------------------------------------------------------------------------


def test_layers_keep_the_rate_of_the_supernets_depth() -> None:
    """Layer i of 5 has the rate 0.2 * i / 4, also in a subnet of 3 layers."""
    space = get_space("digits")
    supernet = new_supernet(space, drop_path=0.2)
    for arch in (space.largest, space.smallest):
        blocks = supernet.cut(arch).blocks
        rates = [block.drop_path.drop_prob for block in blocks]
        assert rates == pytest.approx([0.2 * layer / 4 for layer in range(arch.depth)])
    trimmed = supernet.trimmed(space.smallest, drop_path=0.2)
    assert [*trimmed.drop_path_rates.values()] == pytest.approx([0.0, 0.1, 0.2])


def tokens_by_hand(network: VisionTransformer, images: Tensor, scales: Tensor) -> Tensor:
    """The network with branch j of sample b multiplied by scales[b, j]; LayerNorm last."""
    tokens = network.patch_embed(images)
    tokens = torch.cat([network.cls_token.expand(len(images), -1, -1), tokens], 1)
    tokens = tokens + network.pos_embed
    grid = GridIndex(network.row_index, network.column_index, network.key_features)
    for layer, block in enumerate(network.blocks):
        attention, mlp = scales[:, 2 * layer], scales[:, 2 * layer + 1]
        tokens = tokens + attention[:, None, None] * block.attn(block.norm1(tokens), grid)
        tokens = tokens + mlp[:, None, None] * block.mlp(block.norm2(tokens))
    return network.norm(tokens)


def test_noise_decides_which_features_are_dropped() -> None:
    """Feature i of D is kept if the noise in column i - D is at least the rate, and scaled."""
    space, rate = get_space("digits"), 0.25
    arch = space.smallest
    width, branches = arch.embed_dim, 2 * arch.depth
    supernet = new_supernet(space).trimmed(space.supernet, dropout=rate).train()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    noise = torch.rand(5, branches + width, generator=torch.Generator().manual_seed(5))
    noise[0, -width:] = rate  # kept, all of them
    noise[1, -width:] = 0.2499
    network = supernet.cut(arch)
    pooled = network.forward_features(images)[:, 1:].mean(1)
    kept = noise[:, branches:] >= rate
    assert kept[0].all()
    assert not kept[1].any()
    expected = torch.where(kept, pooled / (1 - rate), 0.0)
    assert_equal(network(images, noise), network.head(expected))
    assert_equal(network.forward_head(network.forward_features(images), True, noise), expected)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = network(images)
        torch.manual_seed(3)
        assert torch.equal(found, network.head(nn.functional.dropout(pooled, rate)))
    with pytest.raises(ValueError, match=rf"need \(5, {branches + width} or more\)"):
        network(images, noise[:, 1:])


def test_noise_decides_which_branches_are_dropped() -> None:
    """Branch j of sample b is kept if noise[b, j] >= the layer's rate, and scaled by 1/(1-rate).

    Exactly at the rate it is kept; attention has the even columns, the MLP the odd ones.
    """
    space = get_space("digits")
    supernet = new_supernet(space, drop_path=0.5).train()
    arch = space.compose((StageChoice(0, 4, ((1,) * 4, (0,) * 4)),))  # of the supernet's 5 layers
    rates = torch.tensor([0.0, 0.0, 0.125, 0.125, 0.25, 0.25, 0.375, 0.375])
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    noise = torch.rand(6, 10, generator=torch.Generator().manual_seed(5))
    noise[0, :8] = rates  # kept, all of them
    noise[1, :8] = torch.nextafter(rates, torch.tensor(-1.0))  # dropped, all but the first layer
    noise[2, :8] = torch.tensor([0, 0, 0, 1, 1, 0, 0, 1]) * 0.99
    kept = (noise[:, :8] >= rates).float()
    assert kept[0].all()
    assert not kept[1, 2:].any()
    scales = kept / (1 - rates)
    scales[:, :2] = 1.0  # rate 0 never drops
    network = supernet.cut(arch)
    expected = tokens_by_hand(network, images, scales)[:, 1:].mean(1)
    actual = supernet(images, arch, noise)
    torch.testing.assert_close(actual, network.head(expected), rtol=0, atol=1e-5)


def test_without_noise_timm_draws_from_the_global_generator() -> None:
    """A cut network is independent: training it needs nothing from the package."""
    space = get_space("digits")
    network = new_supernet(space, drop_path=0.5).train().cut(space.largest)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    outputs = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outputs.append(network(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# --- sizes ---------------------------------------------------------------------------------------


def test_fractional_hidden_width_is_cut_down() -> None:
    """int(15 * 2.78) = int(41.7) = 41 units, in the network and in its cost."""
    settings = VitSettings(image_size=8, patch_size=4, head_dim=4, num_classes=3, in_chans=1)
    arch = VitArch(embed_dim=15, num_heads=(1,), mlp_ratio=(2.78,))
    assert build_structure(arch, settings).blocks[0].mlp.fc1.weight.shape == (41, 15)
    same = VitArch(embed_dim=15, num_heads=(1,), mlp_ratio=(41 / 15,))
    assert same.hidden_dims == (41,)
    assert count(arch, settings) == count(same, settings)
