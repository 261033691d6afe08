"""Small spaces of every family, how tests draw architectures, and weights worth comparing."""

import functools

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from prenas.families import FAMILIES, get_space
from prenas.families.base import Arch, SearchSpace, Skeleton
from prenas.families.vit.space import VitSettings, VitSpace
from prenas.supernet import Supernet

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

TEST_SPACES: dict[str, tuple[SearchSpace, ...]] = {"vit": (get_space("digits"), _VIT_ODD)}
"""Family -> spaces that the contract suite runs on: small, and awkward in every way there is."""


ALL_SPACES = [
    pytest.param(space, id=f"{family}-{space.name}")
    for family in FAMILIES
    for space in TEST_SPACES.get(family, ())
]
"""For parametrising tests; a family without test spaces fails a test of its own."""


@st.composite
def choices(draw: st.DrawFn, space: SearchSpace, skeleton: Skeleton) -> list[list[int]]:
    """One option index per axis and layer of a skeleton."""
    return [
        draw(
            st.lists(
                st.integers(0, len(axis.options) - 1),
                min_size=skeleton.num_layers,
                max_size=skeleton.num_layers,
            )
        )
        for axis in space.layer_axes
    ]


@st.composite
def archs(draw: st.DrawFn, space: SearchSpace) -> Arch:
    """Any architecture of a space; the smallest, largest and the supernet's own come up too."""
    extremes = st.sampled_from([space.smallest, space.largest, space.supernet])
    if draw(st.integers(0, 5)) == 0:
        return draw(extremes)
    skeleton = draw(st.sampled_from(space.skeletons))
    return space.compose(skeleton, draw(choices(space, skeleton)))


@functools.cache
def shared_supernet(space: SearchSpace, drop_path: float = 0.0, training: bool = False) -> Supernet:
    """A supernet that tests may share, since they leave it as they found it."""
    return new_supernet(space, drop_path).train(training)


def new_supernet(space: SearchSpace, drop_path: float = 0.0, arch: Arch | None = None) -> Supernet:
    """A supernet whose every parameter matters: initialisation leaves biases at zero."""
    generator = torch.Generator().manual_seed(20)
    supernet = Supernet(arch or space.supernet, space.settings, drop_path=drop_path)
    supernet.initialize(generator)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return supernet


def images_for(space: SearchSpace, batch: int = 3, seed: int = 0) -> Tensor:
    """Normal noise [batch, channels, height, width] of the size that a space takes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, space.settings.in_chans, *space.settings.image_size)
    return torch.randn(shape, generator=generator)


def noise_for(supernet: Supernet, batch: int = 3, seed: int = 0) -> Tensor:
    """Uniform numbers [batch, draws] that decide what stochastic depth and dropout drop."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, supernet.num_draws, generator=generator)


def assert_equal(actual: Tensor, expected: Tensor, relative: float = 1e-6) -> None:
    """Equal up to a share of the largest magnitude expected, in shape and type as well."""
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * largest)
