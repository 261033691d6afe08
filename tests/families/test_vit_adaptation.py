"""Adapted weights of a Vision Transformer: compared with literal forms, and what is refused."""

import re
from functools import partial

import pytest
import torch
from timm import create_model
from timm.models import group_parameters
from torch import nn

from families.drawing import images_for, new_supernet
from prenas.families import get_family, get_space
from prenas.families.adaptation import adapt as adapt_tensors
from prenas.families.adaptation import extended
from prenas.families.vit.space import VitArch, VitSettings
from prenas.randomness import torch_generator

SPACE = get_space("digits")
OLD = SPACE.settings
ARCH = SPACE.smallest
FAMILY = get_family("vit")
adapt, with_full_reach = partial(adapt_tensors, FAMILY), partial(extended, FAMILY)


@pytest.mark.parametrize("size", [(12, 12), (4, 10), (16, 8)])
def test_positions_are_resampled_channel_by_channel(size: tuple[int, int]) -> None:
    """Each channel is an image over the patch grid, scaled bicubically; the class row is kept."""
    tensors = dict(new_supernet(SPACE).cut(ARCH).state_dict())
    new = OLD.changed(image_size=size)
    position, adapted = tensors["pos_embed"], adapt(tensors, OLD, new, None)["pos_embed"]
    rows, columns = new.grid
    assert adapted.shape == (1, rows * columns + 1, ARCH.embed_dim)
    assert torch.equal(adapted[:, 0], position[:, 0])
    for channel in range(0, ARCH.embed_dim, 7):
        picture = position[:, 1:, channel].reshape(1, 1, *OLD.grid)
        scaled = nn.functional.interpolate(picture, (rows, columns), mode="bicubic", antialias=True)
        found = adapted[:, 1:, channel].reshape(1, 1, rows, columns)
        torch.testing.assert_close(found, scaled, rtol=0, atol=1e-6)


def test_tables_repeat_their_outermost_rows() -> None:
    """Row by row: class, then distances in rising order; new rows repeat the old edge."""
    tensors = dict(new_supernet(SPACE).cut(ARCH).state_dict())
    old_reach, reach = OLD.max_distance, OLD.max_distance + 4
    adapted = adapt(tensors, OLD, OLD.changed(max_distance=reach), None)
    names = [name for name in tensors if re.search(r"(key|value)_(vertical|horizontal)$", name)]
    assert len(names) == 4 * ARCH.depth
    for name in names:
        old, new = tensors[name], adapted[name]
        assert len(new) == 2 * reach + 2
        assert torch.equal(new[0], old[0])
        for distance in range(-reach, reach + 1):
            clipped = max(-old_reach, min(old_reach, distance))
            assert torch.equal(new[1 + reach + distance], old[1 + old_reach + clipped])


def test_full_reach_is_that_of_the_longer_side() -> None:
    settings = OLD.changed(image_size=(8, 20))
    assert with_full_reach(settings) == settings.changed(max_distance=9)
    assert with_full_reach(with_full_reach(settings)) == with_full_reach(settings)
    far = OLD.changed(max_distance=40)
    assert with_full_reach(far) == far


def test_only_what_a_new_image_brings_depends_on_the_reach() -> None:
    """At the larger size, clipped and extended tables give the same logits to the bit."""
    supernet = new_supernet(SPACE).eval()
    large = OLD.changed(image_size=(16, 16))
    images = images_for(SPACE.with_settings(image_size=(16, 16)))
    logits = []
    for settings in (large, with_full_reach(large)):
        network = get_family("vit").build(ARCH, settings, ())
        network.load_state_dict(adapt(supernet.cut(ARCH).state_dict(), OLD, settings, None))
        logits.append(network.eval()(images))
    assert torch.equal(*logits)


def test_a_fresh_head_is_a_small_truncated_normal() -> None:
    tensors = dict(new_supernet(SPACE).cut(SPACE.largest).state_dict())
    new = OLD.changed(num_classes=500)
    head = adapt(tensors, OLD, new, torch_generator(3, "x"))
    assert not head["head.bias"].any()
    assert head["head.bias"].shape == (500,)
    assert head["head.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    again = adapt(tensors, OLD, new, torch_generator(3, "x"))
    assert torch.equal(again["head.weight"], head["head.weight"])
    assert not torch.equal(
        adapt(tensors, OLD, new, torch_generator(4, "x"))["head.weight"], head["head.weight"]
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"in_chans": 3}, "in_chans is 1, not 3"),
        ({"patch_size": 4}, "patch_size is 2, not 4"),
        ({"head_dim": 8}, "head_dim is 16, not 8"),
        ({"max_distance": 2}, "max_distance 2 would discard what was trained up to 3"),
        ({"num_classes": 11}, "the classifier has 10 outputs and cannot be kept for 11 classes"),
    ],
)
def test_what_weights_cannot_serve_is_refused_in_words(fields: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        adapt({}, OLD, OLD.changed(**fields), None)
    assert "Only the image size, a larger max_distance and" in str(caught.value)


def test_all_that_is_in_the_way_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"in_chans is 1.*patch_size is 2.*10 outputs"):
        adapt({}, OLD, VitSettings(head_dim=16), None)


def test_layers_are_grouped_as_timms_are() -> None:
    """Stem, blocks (the last with the norm) and head, as in timm's own network of equal depth."""
    theirs = create_model("vit_tiny_patch16_224", depth=3, global_pool="avg", fc_norm=False)
    arch = VitArch(embed_dim=8, num_heads=(1, 1, 1), mlp_ratio=(1.0, 1.0, 1.0))
    ours = get_family("vit").build(arch, OLD, ())
    layers = [
        group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        for network in (theirs, ours)
    ]
    shared = layers[0].keys() & layers[1].keys()
    assert {"cls_token", "pos_embed", "blocks.1.attn.qkv.weight", "norm.bias"} <= shared
    assert {name: layers[0][name] for name in shared} == {name: layers[1][name] for name in shared}
    assert layers[1]["head.weight"] == 4
    assert {layers[1][f"blocks.{n}.attn.key_vertical"] for n in range(3)} == {1, 2, 3}
