"""Smaller images for a cut: which sides its network takes, and how images are resized to them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from prenas.families.interpolation import deployed_with
from prenas.families.timm_cut.arch import TimmSettings
from prenas.families.timm_cut.network import CutNetwork, model_fields, resized, timm_model

_STEP = 32
_SMALL_STEP = 16
_SMALL = 160
"""Below this side, options are closer together."""
_LEAST_SIDE = 64
_LEAST_SHARE = 0.4


@lru_cache(maxsize=32)
def resolutions(settings: TimmSettings) -> tuple[int, ...]:
    """Sides in pixels from about 40 % of the image size up to it, if the network takes them.

    Empty for images that are not square, for small ones, and for networks that are built for one
    image size, such as Transformers with learned positions.
    """
    height, width = settings.image_size
    if height != width or "img_size" in model_fields(settings):
        return ()
    step = _SMALL_STEP if height < _SMALL else _STEP * max(1, round(height / 224))
    least = max(_LEAST_SIDE, int(_LEAST_SHARE * height))
    smaller = range((height - 1) // step * step, least - 1, -step)
    sides = sorted(side for side in smaller if _takes(settings, side))
    return (*sides, height) if sides else ()


def _takes(settings: TimmSettings, side: int) -> bool:
    with torch.device("meta"), torch.no_grad():
        network = timm_model(settings).eval()
        try:
            network(torch.zeros(1, settings.in_chans, side, side))
        except Exception:  # every network says so in its own way
            return False
    return True


def deployed(network: nn.Module) -> nn.Module:
    """The network as it is exported."""
    assert isinstance(network, CutNetwork)
    return deployed_with(network, network.resolution, resized)
