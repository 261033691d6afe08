"""What networks of this package share to be used as timm uses its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from prenas.families.base import S

POOLINGS = ("avg", "")
"""What `global_pool` may be: the mean over all places, or no pooling."""


def without_proxy(noise: Tensor | None) -> Tensor | None:
    """None for the placeholder of a symbolic trace: the graph drops nothing on purpose.

    `torch.fx` makes a placeholder of every argument, also of one that is left out.
    """
    return None if isinstance(noise, Proxy) else noise


def require_pooling(global_pool: str, num_classes: int) -> None:
    """Raises ValueError for a pooling that the networks of this package do not have."""
    if global_pool not in POOLINGS:
        raise ValueError(
            f"global_pool={global_pool!r} is not supported: this network only has 'avg', or '' for "
            "features that are not pooled"
        )
    if global_pool == "" and num_classes:
        raise ValueError(
            f"global_pool='' gives features, not {num_classes:,} classes: set num_classes=0, "
            "or global_pool='avg'"
        )


def with_image_size(settings: S, image_size: int | tuple[int, int], num_classes: int) -> S:
    """The same settings for another image size; also those of a network without classes.

    Raises:
        ValueError: networks of these settings cannot take the size.
    """
    changed = settings.changed(image_size=image_size, num_classes=max(1, num_classes))
    return changed.model_copy(update={"num_classes": num_classes})


def record_image_size(network: nn.Module, image_size: tuple[int, int]) -> None:
    """Notes a new image size where timm looks for it, without touching `pretrained_cfg`.

    That still says which size the weights were trained at.
    """
    found: Any = network
    for name in ("_traits", "_model_args"):
        known: Mapping[str, Any] = getattr(network, name, {})
        setattr(found, name, {**known, "img_size": image_size})
