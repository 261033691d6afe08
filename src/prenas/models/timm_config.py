"""A handed-over model as timm describes its own: `config.json`, and the same on a network.

All of it follows from the description in `arch.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from prenas.families.base import Arch, Settings
from prenas.families.timm_models import description_of, first_conv_of, pretrained_cfg_of
from prenas.recipe.data import Preprocessing


def timm_config(
    network: Any,
    arch: Arch,
    settings: Settings,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    licence: str | None,
) -> dict[str, Any]:
    """The content of `config.json`, from which timm builds the network and prepares pictures."""
    known = _pretrained_cfg(network, arch, settings, preprocessing, licence)
    return {
        "architecture": known.pop("architecture"),
        "num_classes": settings.num_classes,
        "num_features": network.num_features,
        "label_names": [*class_names],
        "model_args": description_of(arch, settings),
        "pretrained_cfg": known,
    }


def describe_to_timm(
    network: nn.Module,
    arch: Arch,
    settings: Settings,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    licence: str | None,
) -> None:
    """Gives a loaded network the attributes by which timm knows its own.

    With these, `timm.data.resolve_data_config(model=network)` answers for this network, and
    `timm.models.save_for_hf` writes it.
    """
    known = _pretrained_cfg(network, arch, settings, preprocessing, licence)
    known["label_names"] = [*class_names]
    described: Any = network
    described.pretrained_cfg = described.default_cfg = known
    described._model_args = description_of(arch, settings)
    described._traits = {
        **getattr(network, "_traits", {}),
        "fixed_input_size": True,
        "first_conv": known["first_conv"],
        "img_size": settings.image_size,
    }


def _pretrained_cfg(
    network: nn.Module,
    arch: Arch,
    settings: Settings,
    preprocessing: Preprocessing,
    licence: str | None,
) -> dict[str, Any]:
    return {
        **pretrained_cfg_of(arch, settings, first_conv_of(network)),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": "center",
        "interpolation": preprocessing.interpolation,
        **({"license": licence} if licence else {}),
    }
