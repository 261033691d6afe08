"""How many images are evaluated at once on a processor, and calibrated at once: time and memory.

Random images, random weights: neither matters for the time. The process keeps the memory that it
frees, as the commands do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm import create_model
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.networks import fused, published
from benchmarks.paired import Options, Ratio, Section, medians, peak_bytes, ratio, take_turns
from prenas.evaluation.accuracy import evaluate_networks, images_at_once
from prenas.families.base import Settings
from prenas.families.vit.space import VitSettings
from prenas.memory import keep_freed_memory
from prenas.recipe.catalogue.pretrained import pretrained

_MANY = 256
_CPU = torch.device("cpu")
_LITE0 = "tf_efficientnet_lite0"


def measure(options: Options) -> Section:
    """Evaluations of three networks, and a calibration with the batch size of `pretrained`."""
    keep_freed_memory()
    ratios: list[Ratio] = []
    facts: dict[str, Any] = {}
    lite0 = create_model(_LITE0).to(memory_format=torch.channels_last)
    small, large = (VitSettings(image_size=(side, side)) for side in (96, 224))
    of_tiny, tiny_settings = published(0)
    for name, network, settings in (
        (f"{_LITE0}, 96 px", lite0, small),
        (f"{_LITE0}, 224 px", lite0, large),
        ("tiny, 224 px", fused(of_tiny, tiny_settings), tiny_settings),
    ):
        number = images_at_once(settings, _CPU)
        _compare(
            f"{name}: evaluation, {number} images at once",
            _evaluation(network.eval(), settings, number),
            _evaluation(network.eval(), settings, _MANY),
            options,
            ratios,
            facts,
        )
    size = pretrained().calibration.batch_size
    _compare(
        f"{_LITE0}, 224 px: calibration, batches of {size}",
        _calibration(lite0, size),
        _calibration(lite0, _MANY),
        options,
        ratios,
        facts,
    )
    return Section("Fewer images at once on a processor", tuple(ratios), facts)


def _compare(
    what: str,
    few: Callable[[], object],
    many: Callable[[], object],
    options: Options,
    ratios: list[Ratio],
    facts: dict[str, Any],
) -> None:
    seconds = take_turns({"few": few, "many": many}, options.rounds)
    ratios.append(ratio(f"{what} / {_MANY}", seconds["few"], seconds["many"]))
    facts |= {f"{what}: {name}": value for name, value in medians(seconds).items()}
    facts |= {
        f"{what}: peak of tensors, {name}, MB": round(peak_bytes(work) / 1e6)
        for name, work in (("few", few), ("many", many))
    }


def _evaluation(network: nn.Module, settings: Settings, number: int) -> Callable[[], object]:
    images = torch.randn(_MANY, settings.in_chans, *settings.image_size)
    split = TensorDataset(images, torch.arange(_MANY))
    return lambda: evaluate_networks([network], split, settings, batch_size=number)


def _calibration(network: nn.Module, size: int) -> Callable[[], object]:
    images: Tensor = torch.randn(_MANY, 3, 224, 224)
    parts = images.contiguous(memory_format=torch.channels_last).split(size)

    @torch.no_grad()
    def work() -> None:
        network.train()
        for part in parts:
            network(part)
        network.eval()

    return work
