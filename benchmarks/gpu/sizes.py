"""The sizes of the benchmarks: those of the tables, or tiny ones that a CPU runs in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import timm
from torch import nn

from benchmarks.gpu.clock import Plan
from prenas.cost import count
from prenas.families import get_family, get_space
from prenas.families.base import Arch, SearchSpace, Settings, envelope
from prenas.families.vit.space import VitArch
from prenas.randomness import numpy_generator
from prenas.recipe import TrainingRecipe
from prenas.recipe.catalogue import get_recipe

_ABOUT = 0.01
"""Relative tolerance for the MACs of a drawn subnet."""


@dataclass(frozen=True)
class Subject:
    """A supernet, some of its subnets, and their training recipe."""

    supernet: Arch
    archs: tuple[Arch, ...]
    """Cheapest first."""
    settings: Settings
    training: TrainingRecipe


@dataclass(frozen=True)
class Sizes:
    """The sizes of all benchmarks."""

    plan: Plan
    vit: Subject
    mobilenet: Subject
    small_set: Subject
    """The subject that trains on a data set in memory."""
    rival: Callable[[float], nn.Module]
    """Stochastic depth rate -> timm's network of about the size of the cheapest ViT."""
    batches: tuple[int, int]
    inference_batches: tuple[int, ...]
    attention: tuple[int, int, int]
    """Images, heads, patches per side."""
    readers: tuple[int, ...]
    reading_batch: int
    num_read: int
    """Pictures per epoch of the loader."""
    num_photos: int
    """Number of different pictures among them."""
    num_in_memory: int
    backend: str
    """Backend of torch.compile."""


def full() -> Sizes:
    """The sizes of the tables: 224 pixels and 100 timed calls."""
    vit, recipe = get_family("vit"), get_recipe("imagenet-tiny")
    assert vit.released is not None, "the authors released Vision Transformers"
    published = vit.released.published["tiny"]
    training = _one_by_one(recipe.training)
    convolutional = get_recipe("imagenet-mobilenet")
    space, cifar = convolutional.space, get_recipe("cifar10")
    return Sizes(
        plan=Plan(warm_ups=30, turns=20, calls=5),
        vit=Subject(envelope(published), published, recipe.space.settings, training),
        mobilenet=Subject(
            space.largest,
            (_drawn(space, 400_000_000),),
            space.settings,
            _one_by_one(convolutional.training),
        ),
        small_set=Subject(
            cifar.space.largest,
            (cifar.space.largest,),
            cifar.space.settings,
            _one_by_one(cifar.training),
        ),
        rival=_deit_tiny,
        batches=(128, 512),
        inference_batches=(1, 32, 256),
        attention=(128, 4, 14),
        readers=(8, 12, 16),
        reading_batch=128,
        num_read=10_240,
        num_photos=256,
        num_in_memory=50_000,
        backend="inductor",
    )


def quick() -> Sizes:
    """Runs the same code in seconds; the numbers are meaningless."""
    micro = get_space("mobilenet-micro")
    training = _one_by_one(get_recipe("digits").training)
    small = VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.0,))
    large = VitArch(embed_dim=16, num_heads=(2,), mlp_ratio=(2.0,))
    vit = Subject(large, (small, large, large, large), get_space("digits").settings, training)
    return Sizes(
        plan=Plan(warm_ups=1, turns=2, calls=1),
        vit=vit,
        mobilenet=Subject(
            micro.largest,
            (micro.smallest,),
            micro.settings,
            _one_by_one(get_recipe("mobilenet-micro").training),
        ),
        small_set=vit,
        rival=_tiny_rival,
        batches=(2, 3),
        inference_batches=(1, 2),
        attention=(2, 2, 3),
        readers=(1,),
        reading_batch=2,
        num_read=6,
        num_photos=2,
        num_in_memory=8,
        backend="aot_eager",
    )


def _one_by_one(training: TrainingRecipe | None) -> TrainingRecipe:
    """The recipe with one subnet per step, in bfloat16."""
    assert training is not None, "the recipe trains"
    plain = {"sandwich": None, "sandwich_loss": "mean", "inplace_distillation": None}
    return training.model_copy(update={**plain, "drops_in": "all", "precision": "bf16"})


@cache
def _drawn(space: SearchSpace, macs: int) -> Arch:
    """The first drawn subnet with about this many multiply-accumulates."""
    generator = numpy_generator(0, "benchmark")
    while True:
        arch = space.sample(generator)
        if abs(count(arch, space)["macs"] / macs - 1) < _ABOUT:
            return arch


def _deit_tiny(drop_path: float) -> nn.Module:
    network: nn.Module = timm.create_model("deit_tiny_patch16_224", drop_path_rate=drop_path)
    return network


def _tiny_rival(drop_path: float) -> nn.Module:
    network: nn.Module = timm.create_model(
        "deit_tiny_patch16_224",
        drop_path_rate=drop_path,
        img_size=8,
        patch_size=2,
        in_chans=1,
        embed_dim=12,
        depth=2,
        num_heads=3,
        num_classes=10,
    )
    return network
