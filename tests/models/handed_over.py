"""Small models as a run hands them over, for the tests of what is done with them."""

from pathlib import Path

import torch
from torch import nn

from families.drawing import fill_as_trained
from prenas.families import build
from prenas.families.base import Arch, SearchSpace
from prenas.families.vit.space import VitArch, VitSettings
from prenas.models.export import write_model
from prenas.recipe.data import Preprocessing

NAMES = ("cat", "dog", "owl", "eel")
ARCH = VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.0,))
PREPROCESSING = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def model_of(folder: Path, num_classes: int = 4, names: tuple[str, ...] = NAMES) -> Path:
    """A model of random weights, sharp enough to tell pictures apart."""
    settings = VitSettings(image_size=(8, 8), num_classes=num_classes, patch_size=4, head_dim=4)
    network = build(ARCH, settings).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    write_model(
        folder,
        network,
        ARCH,
        settings,
        family="vit",
        class_names=names,
        preprocessing=PREPROCESSING,
        provenance={},
    )
    return folder


def drawn_model(space: SearchSpace, arch: Arch, folder: Path, seed: int = 0) -> Path:
    """A model of any space, with weights that make all parts matter."""
    return written_model(space, arch, fill_as_trained(build(arch, space.settings), seed), folder)


def written_model(space: SearchSpace, arch: Arch, network: nn.Module, folder: Path) -> Path:
    """A model of any space, with the weights of a network."""
    in_chans = space.settings.in_chans
    write_model(
        folder,
        network,
        arch,
        space.settings,
        family=space.family,
        class_names=tuple("abcdefghij"[: space.settings.num_classes]),
        preprocessing=Preprocessing(mean=(0.5,) * in_chans, std=(0.25,) * in_chans),
        provenance={},
    )
    return folder
