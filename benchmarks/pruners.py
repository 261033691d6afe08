"""Torch-Pruning's own pruners, as rivals of our choice: their networks, and these trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from timm import create_model, get_pretrained_cfg, is_model
from timm.layers import Attention
from timm.models import adapt_model_from_string, register_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import prenas
from prenas import artifacts
from prenas.data import ImageData, evaluation_batches
from prenas.evaluation.calibration import calibration_batches, first_new_epoch
from prenas.families.timm_cut.stock import text_of
from prenas.recipe import Recipe, TransferRecipe
from prenas.selection.trained import scored_batches
from prenas.sources.transfer import Source, finetuning_recipe, read_source

TAYLOR = "Torch-Pruning Taylor"
PRUNERS = (TAYLOR, "Torch-Pruning L1")
_STEPS = 40
_IMAGES = 442

default_cfgs: dict[str, Any] = {}
"""What timm knows of the pruned networks: `register_model` reads it under this name."""


def pruned(
    arm: str, adapted: Path, recipe: Recipe, data: ImageData, shares: Sequence[float]
) -> Iterator[tuple[float, nn.Module]]:
    """The pruned network at each share of the MACs, with its true share, in %.

    The pruner may prune all widths of a convolutional network, and heads and hidden units of a
    Transformer. It does so in steps, and its network is the same object throughout.

    Args:
        adapted: folder of the network that is pruned.
        shares: in %, the largest first.
    """
    network = deepcopy(prenas.load(adapted).network).eval()
    images, _ = next(evaluation_batches(data.splits["test"], recipe.space.settings, 1))
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    steps = _STEPS // 2 if attentions else _STEPS  # each must remove a head
    pruner = torch_pruning.pruner.BasePruner(
        network,
        images,
        importance=torch_pruning.importance.GroupTaylorImportance()
        if arm == TAYLOR
        else torch_pruning.importance.GroupMagnitudeImportance(p=1),
        global_pruning=True,
        pruning_ratio=0.95,
        iterative_steps=steps,
        round_to=8,
        ignored_layers=_kept(network, bool(attentions)),
        num_heads={attention.qkv: attention.num_heads for attention in attentions},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.95,
    )
    whole, _ = torch_pruning.utils.count_ops_and_params(network, images)
    left = list(shares)
    for _ in range(steps):
        if arm == TAYLOR:
            _accumulate_gradients(network, recipe, data)
        pruner.step()
        for attention in attentions:  # timm's attention has its sizes as numbers, too
            heads = attention.qkv.out_features // (3 * attention.head_dim)
            pruner.num_heads[attention.qkv] = attention.num_heads = heads
            attention.attn_dim = heads * attention.head_dim
        now, _ = torch_pruning.utils.count_ops_and_params(network, images)
        while left and 100 * now / whole <= left[0]:
            left.pop(0)
            yield 100 * now / whole, network
        if not left:
            break


def _kept(network: nn.Module, keeps_width: bool) -> list[nn.Module]:
    """Layers whose outputs the pruner keeps: the classifier; of a Transformer, all but its heads
    and hidden units, because its width also stands in tensors that the pruner does not see."""
    if not keeps_width:
        return [network.get_classifier()]  # type: ignore[operator]
    cut = (".qkv", ".fc1")
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.endswith(cut)
    ]


def _accumulate_gradients(network: nn.Module, recipe: Recipe, data: ImageData) -> None:
    network.zero_grad()
    search = recipe.search.model_copy(update={"num_images": _IMAGES})
    batches = scored_batches(recipe.model_copy(update={"search": search}), data, "cpu")
    for images, labels in batches:
        cross_entropy(network(images), labels).backward()


@torch.no_grad()
def repaired(network: nn.Module, recipe: Recipe, data: ImageData) -> nn.Module:
    """A copy whose BatchNorm statistics are measured anew."""
    network = deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average
            module.train()
    batches: Iterator[Tensor] = calibration_batches(
        data,
        recipe.space.settings,
        recipe.calibration,
        recipe.calibration.num_images,
        seed=recipe.seed,
        first_epoch=first_new_epoch(data, recipe.training),
    )
    for images in batches:
        network(images)
    return network.eval()


def read(file: Path, model: str) -> Source:
    """A stored pruned network as a source of trainings.

    timm learns to build it, under the name of its file, from a model that it knows.

    Args:
        model: timm's name of the network that was pruned.
    """
    text = text_of(artifacts.read_tensors(file))

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return adapt_model_from_string(create_model(model, **options), text)

    if not is_model(file.stem):
        build.__name__ = file.stem
        default_cfgs[file.stem] = get_pretrained_cfg(model).to_dict()
        register_model(build)
    return read_source(f"timm/{file.stem}={file}")


def training_recipe(source: Source, cuts: Recipe, epochs: int) -> Recipe:
    """The recipe that trains a pruned network as the cuts are trained, for so many epochs."""
    assert cuts.training is not None, "cuts are trained"
    assert cuts.data is not None, "on images"
    settings = cuts.space.settings
    transfer = TransferRecipe(
        name="pruned",
        augmentation=cuts.data.augmentation,
        training=cuts.training.model_copy(update={"epochs": epochs, "min_steps": 0}),
    )
    recipe = finetuning_recipe(
        replace(source, data=cuts.data), transfer, image_size=settings.image_size
    )
    return recipe.model_copy(update={"seed": cuts.seed, "calibration": cuts.calibration})
