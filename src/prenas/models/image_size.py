"""Another image size for a trained network: which networks take one, and what they become."""

from __future__ import annotations

import torch

from prenas.families import build_structure
from prenas.families.base import A, S, Shape


def at_image_size(arch: A, settings: S, image_size: int | tuple[int, int]) -> tuple[A, S]:
    """A network whose weights stay as they are, for images of another size.

    The network computes at this size: one that resizes its images itself does so no more.

    A network takes another size if none of its tensors depends on it. Tensors are also compared at
    twice the size, because two grids of positions in different proportions may have equally many
    cells.

    Args:
        arch: a trained network.
        settings: those that it was trained with.
        image_size: side in pixels, or (height, width).

    Raises:
        ValueError: the size is impossible, a tensor depends on it, or the network cannot compute at
            this size.
    """
    changed = settings.changed(image_size=image_size)
    if arch.resized_to is not None:
        arch = type(arch).from_links(arch.links, None)
    elif changed == settings:
        return arch, settings
    height, width = settings.image_size
    expected = _stored_shapes(arch, settings)
    for size in ((2 * height, 2 * width), changed.image_size):
        found = _stored_shapes(arch, settings.changed(image_size=size))
        if differing := [name for name, shape in expected.items() if found.get(name) != shape]:
            raise ValueError(
                f"this network takes images of {height} x {width} pixels only, because its tensor "
                f"{differing[0]} was trained for that size: leave out image_size, or train the "
                "model for another one (prenas finetune MODEL --image-size N)"
            )
    _require_computable(arch, changed)
    return arch, changed


def _stored_shapes(arch: A, settings: S) -> dict[str, Shape]:
    tensors = build_structure(arch, settings).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_computable(arch: A, settings: S) -> None:
    """Raises ValueError if the network fails on images of these settings, without computing."""
    network = build_structure(arch, settings).eval()
    try:
        with torch.inference_mode():
            network(torch.zeros(1, settings.in_chans, *settings.image_size, device="meta"))
    except Exception as error:  # every network says so in its own way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"this network does not take images of {settings.image_size[0]} x "
            f"{settings.image_size[1]} pixels ({reason}): choose another image_size"
        ) from None
