"""Our networks as timm's: its registry, its arguments, and what its own tests ask for."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_modules, is_model
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from families.drawing import fill_as_trained, some_branches_left_out, timm_space
from prenas.cost import count
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.families.timm_models import GENERIC, description_of
from prenas.families.vit import FAMILY
from prenas.families.vit.published import PUBLISHED

CUT = timm_space("test_resnet", 64)
SPACES: dict[str, SearchSpace[Any, Any]] = {
    "transformer": get_space("digits"),
    "convolutions": get_space("mobilenet-micro"),
    "cut of convolutions": CUT,
    "cut of a transformer": timm_space("test_vit3", 32),
    "cut without a block": timm_space("test_resnet", 64, absent_branches=True),
    "cut without some branches": some_branches_left_out(32),
}
PUBLISHED_NAMES = [
    *(f"prenas_tiny_{millions}m" for millions in (6, 7, 8, 9, 10, 11)),
    *(f"prenas_small_{millions}m" for millions in (18, 23, 28, 33)),
    *(f"prenas_base_{millions}m" for millions in (42, 54, 66)),
]
STEP = {"tiny": 1, "small": 5, "base": 12}


def created(space: SearchSpace[Any, Any], **options: Any) -> Any:
    """The smallest network of a space, built by timm with weights that make differences sharp."""
    described = description_of(space.smallest, space.settings)
    # As a config.json would have it: numbers and lists only.
    network = timm.create_model(GENERIC, **{**json.loads(json.dumps(described)), **options})
    return fill_as_trained(network).eval()


def images_for(network: Any, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = network.settings.image_size
    return torch.randn(batch, network.settings.in_chans, *size, generator=generator)


@pytest.fixture(params=list(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace[Any, Any]:
    return SPACES[request.param]


# --- names ---------------------------------------------------------------------------------------


def test_the_published_architectures_have_names_that_state_their_limit() -> None:
    assert set(timm.list_models("prenas*")) == {*PUBLISHED_NAMES, GENERIC}
    assert list(FAMILY.timm_names) == PUBLISHED_NAMES
    assert [arch for arch, _ in FAMILY.timm_names.values()] == [
        arch for archs in PUBLISHED.values() for arch in archs
    ]
    for name, (arch, settings) in FAMILY.timm_names.items():
        _, space, limit = name.split("_")
        millions = count(arch, settings)["params"] / 1e6
        assert int(limit[:-1]) - STEP[space] <= millions < int(limit[:-1])
        assert settings == get_space(space).settings


def test_a_name_builds_its_architecture_for_ones_own_input_and_classes() -> None:
    network = timm.create_model("prenas_tiny_6m", num_classes=7, img_size=(32, 48), in_chans=1)
    assert network.arch == PUBLISHED["tiny"][0]
    assert network(torch.zeros(1, 1, 32, 48)).shape == (1, 7)
    known = timm.models.get_pretrained_cfg("prenas_tiny_6m")
    assert known is not None
    assert (known.input_size, known.classifier, known.first_conv) == (
        (3, 224, 224),
        "head",
        "patch_embed.proj",
    )


def test_a_name_that_timm_has_already_is_left_to_timm(caplog: pytest.LogCaptureFixture) -> None:
    from prenas.families import timm_models

    before = timm.models.model_entrypoint("resnet18")
    timm_models._register("resnet18", lambda *_, **__: nn.Identity())
    assert timm.models.model_entrypoint("resnet18") is before
    assert "timm already has a model resnet18" in caplog.text
    assert is_model(GENERIC)


# --- weights and rates ---------------------------------------------------------------------------


def test_weights_follow_the_global_seed_as_timms_do() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        first, second = (
            timm.create_model(GENERIC, **description_of(s.smallest, s.settings))
            for s in (SPACES["transformer"],) * 2
        )
        assert not torch.equal(first.head.weight, second.head.weight)
        return first.head.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_rates_act_in_training_only(space: SearchSpace[Any, Any]) -> None:
    network = created(space, drop_path_rate=0.3, drop_rate=0.2)
    rates = [getattr(module, "drop_prob", None) for module in network.modules()]
    assert 0 <= max(rate for rate in rates if isinstance(rate, float)) < 0.3 + 1e-6
    images = images_for(network, batch=16)
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


# --- what timm asks of a network -----------------------------------------------------------------


def test_intermediates_are_those_of_feature_info(space: SearchSpace[Any, Any]) -> None:
    network = created(space)
    images = images_for(network)
    info = FeatureInfo(network.feature_info, len(network.feature_info))
    final, maps = network.forward_intermediates(images)
    assert torch.equal(final, network.forward_features(images))
    assert [one.shape[1] for one in maps] == info.channels()
    side = space.smallest.resized_to or images.shape[2]
    assert [one.shape[2] for one in maps] == [-(-side // each) for each in info.reduction()]
    only = network.forward_intermediates(images, indices=[0], intermediates_only=True)
    early = network.forward_intermediates(
        images, indices=[0], stop_early=True, intermediates_only=True
    )
    assert len(only) == len(early) == 1
    assert torch.equal(only[0], maps[0])
    assert torch.equal(early[0], maps[0])


def test_features_only_gives_all_levels_or_the_last_of_one_size(
    space: SearchSpace[Any, Any],
) -> None:
    """As timm's own networks do: all maps of convolutional networks, the last three of others."""
    whole = created(space)
    images = images_for(whole)
    _, maps = whole.forward_intermediates(images)
    features = created(space, features_only=True)
    features.model.load_state_dict(whole.state_dict(), strict=False)
    found = features(images)
    has_sizes = len({one.shape[2] for one in maps}) > 1
    assert len(found) == (len(maps) if has_sizes else min(3, len(maps)))
    for mine, expected in zip(found, maps[-len(found) :], strict=True):
        assert torch.equal(mine, expected)
    (first,) = created(space, features_only=True, out_indices=(0,))(images)
    assert first.shape == maps[0].shape


def test_tokens_of_a_transformer_may_keep_their_prefix() -> None:
    network = created(SPACES["transformer"])
    images = images_for(network)
    tokens, prefix = network.get_intermediate_layers(images, return_prefix_tokens=True, norm=True)[
        0
    ]
    assert torch.equal(torch.cat([prefix, tokens], 1), network.forward_features(images))
    (maps,) = network.get_intermediate_layers(images, reshape=True, norm=True)
    assert torch.equal(maps.flatten(2).transpose(1, 2), tokens)
    found = network.forward_intermediates(images, output_dict=True, return_prefix_tokens=True)
    assert set(found) == {"image_intermediates", "image_intermediates_prefix", "image_features"}
    with pytest.raises(ValueError, match="output_fmt='NHWC' is unknown: choose 'NCHW' or 'NLC'"):
        network.forward_intermediates(images, output_fmt="NHWC")


def test_checkpointing_changes_no_gradient(space: SearchSpace[Any, Any]) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        network = created(space, drop_path_rate=0.2).train()
        network.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        network(images_for(network, batch=4)).square().sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    pairs = list(zip(gradients(False), gradients(True), strict=True))
    assert len(pairs) > 10
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_checkpointing_keeps_fewer_activations() -> None:
    """What a forward pass keeps for the backward pass, in numbers."""

    def kept(checkpointing: bool) -> int:
        network, sizes = created(SPACES["transformer"]).train(), []
        network.set_grad_checkpointing(checkpointing)

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images_for(network))
        return sum(sizes)

    assert kept(True) < kept(False) / 3


def test_a_network_takes_another_image_size(space: SearchSpace[Any, Any]) -> None:
    network = created(space)
    larger = tuple(2 * side for side in space.settings.image_size)
    network.set_input_size(larger)
    images = images_for(network)
    assert images.shape[2:] == larger
    logits = network(images)
    assert logits.shape == (2, space.settings.num_classes)
    assert network._model_args["img_size"] == larger  # from which timm builds it again
    state = network.state_dict()
    again = created(space, img_size=larger)
    again.load_state_dict(state)
    assert torch.equal(again(images), logits)
    network.reset_classifier(0)
    network.set_input_size(space.settings.image_size)
    assert network(images_for(network)).shape == (2, network.head_hidden_size)


@pytest.mark.parametrize("name", ["transformer", "convolutions"])
def test_classifier_and_pooling_can_go(name: str) -> None:
    network = created(SPACES[name])
    images = images_for(network)
    features = network.forward_features(images)
    pooled = network.forward_head(features, pre_logits=True)
    network.reset_classifier(0)
    assert torch.equal(network(images), pooled)
    network.reset_classifier(0, "")
    unpooled = network(images)
    assert unpooled.ndim == features.ndim
    assert torch.equal(created(SPACES[name], num_classes=0, global_pool="")(images), unpooled)
    with pytest.raises(ValueError, match="global_pool='' gives features, not 3 classes"):
        network.reset_classifier(3)
    network.reset_classifier(3, "avg")
    assert network(images).shape == (2, 3)
    with pytest.raises(ValueError, match="global_pool='max' is not supported"):
        network.reset_classifier(3, "max")


def test_a_symbolic_trace_computes_the_same(space: SearchSpace[Any, Any]) -> None:
    network = created(space)
    images = images_for(network)
    options = {"leaf_modules": get_notrace_modules()}
    nodes, _ = get_graph_node_names(network, tracer_kwargs=options)
    traced = create_feature_extractor(network, [nodes[-1]], tracer_kwargs=options).eval()
    (logits,) = traced(images).values()
    assert torch.equal(logits, network(images))


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: timm.create_model("prenas_tiny_6m", img_size=225),
            r"prenas_tiny_6m: image_size \(225, 225\) is not a multiple of patch_size 16",
        ),
        (
            lambda: timm.create_model("prenas_tiny_6m", num_classes=-3),
            "prenas_tiny_6m: num_classes: Input should be greater than or equal to 1",
        ),
        (
            lambda: timm.create_model("prenas_tiny_6m", global_pool="max"),
            "global_pool='max' is not supported",
        ),
        (lambda: timm.create_model(GENERIC), "prenas_subnet needs the description of a network"),
        (
            lambda: timm.create_model(GENERIC, family="vitt", arch={}),
            "unknown family 'vitt': did you mean 'vit'",
        ),
        (
            lambda: timm.create_model(GENERIC, family="vit", arch={"embed_dim": 8}),
            "the model_args of prenas_subnet are wrong: num_heads: Field required",
        ),
        (
            lambda: created(SPACES["transformer"]).set_input_size(9),
            r"image_size \(9, 9\) is not a multiple of patch_size 2",
        ),
        (
            lambda: created(SPACES["transformer"]).set_input_size(8, patch_size=4),
            "patch_size=4 is not supported: the patches of this network have 2 x 2 pixels",
        ),
        (
            lambda: created(SPACES["transformer"]).forward_intermediates(torch.zeros(1, 3, 8, 8)),
            "but this network expects",
        ),
    ],
)
def test_what_a_network_cannot_be_is_said(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


def test_weights_that_nobody_has_are_refused_by_timm() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for prenas_tiny_6m"):
        timm.create_model("prenas_tiny_6m", pretrained=True)
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model("prenas_tiny_5m")
