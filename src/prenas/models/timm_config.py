"""A handed-over model as timm describes its own: `config.json`, and the same on a network.

All of it follows from the description in `arch.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from prenas.families.timm_models import description_of, first_conv_of, pretrained_cfg_of

if TYPE_CHECKING:
    from prenas.models.export import Description


def timm_config(network: Any, description: Description) -> dict[str, Any]:
    """The content of `config.json`, from which timm builds the network and prepares pictures."""
    known = _pretrained_cfg(network, description)
    return {
        "architecture": known.pop("architecture"),
        "num_classes": description.settings.num_classes,
        "num_features": network.num_features,
        "label_names": [*description.class_names],
        "model_args": description_of(description.arch, description.settings),
        "pretrained_cfg": known,
    }


def describe_to_timm(network: nn.Module, description: Description) -> None:
    """Gives a loaded network the attributes by which timm knows its own.

    With these, `timm.data.resolve_data_config(model=network)` answers for this network, and
    `timm.models.save_for_hf` writes it.
    """
    known = _pretrained_cfg(network, description)
    known["label_names"] = [*description.class_names]
    described: Any = network
    described.pretrained_cfg = described.default_cfg = known
    described._model_args = description_of(description.arch, description.settings)
    described._traits = {
        **getattr(network, "_traits", {}),
        "fixed_input_size": True,
        "first_conv": known["first_conv"],
        "img_size": description.settings.image_size,
    }


def _pretrained_cfg(network: nn.Module, description: Description) -> dict[str, Any]:
    preprocessing, licence = description.preprocessing, description.licence
    return {
        **pretrained_cfg_of(description.arch, description.settings, first_conv_of(network)),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": "center",
        "interpolation": preprocessing.interpolation,
        **({"license": licence} if licence else {}),
    }
