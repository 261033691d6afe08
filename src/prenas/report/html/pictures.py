"""Small pictures of images that subnets classify wrongly."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from prenas.data import CENTRE_CROP
from prenas.recipe.data import Preprocessing

if TYPE_CHECKING:
    from prenas.runs.run import Run

MOST_BYTES = 2 * 10**6
"""Of all pictures of a page, as they are written into it."""

_SIDE = 144  # pixels, at most
_SMALL = 64  # below this side, a picture is kept without loss and enlarged in the page


class Thumbnail(NamedTuple):
    """A picture inside the page."""

    url: str
    """Its content, as a `data:` URL."""
    is_small: bool
    """Whether it has so few pixels that enlarging should keep them sharp."""


def thumbnails(run: Run, split: str, numbers: Iterable[int], most: int) -> dict[int, Thumbnail]:
    """Small pictures of images of a split, as the networks see them.

    Args:
        numbers: of the images, the most important first.
        most: bytes that they may take together; the first ones that fit are returned.

    Raises:
        ValueError: the images of the run cannot be read, or are not those that it was started with.
        OSError: a file cannot be read.
    """
    images = run.images.read_few()
    if not run.images.may_be_own(images):
        raise ValueError("they are not those that the run was evaluated on")
    source: Any = images.splits.get(split)
    if source is None or not hasattr(source, "__getitem__"):
        raise ValueError(f"the split {split} has no images that can be read one by one")
    data = run.recipe.data
    found: dict[int, Thumbnail] = {}
    num_bytes = 0
    for number in numbers:
        image = torch.as_tensor(source[number][0])
        thumbnail = _thumbnail(image, data.preprocessing if data else None)
        num_bytes += len(thumbnail.url)
        if num_bytes > most:
            break
        found[number] = thumbnail
    return found


def _thumbnail(image: Tensor, preprocessing: Preprocessing | None) -> Thumbnail:
    """A network's input [C, H, W], or the centre of its crops [crops, C, H, W], as a picture."""
    pixels = (image[CENTRE_CROP] if image.ndim == 4 else image).float()
    if preprocessing is not None and len(preprocessing.mean) == len(pixels):
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std)
        )
        pixels = pixels * std + mean
    else:  # nobody knows how they were normalised
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-6)
    channels = pixels if len(pixels) == 3 else pixels[:1]
    values = (255 * channels.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(values if len(channels) == 3 else values[:, :, 0])
    is_small = max(picture.size) < _SMALL
    picture.thumbnail((_SIDE, _SIDE))
    file = BytesIO()
    form = "PNG" if is_small else "JPEG"
    picture.save(file, form, **({} if is_small else {"quality": 80}))
    content = b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/{form.lower()};base64,{content}", is_small)
