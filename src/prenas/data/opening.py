"""Which pictures are read, by training, evaluation and prediction alike, and how."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from PIL import Image, features

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
FORMATS = (*_FORMATS, "AVIF") if features.check("avif") else _FORMATS
"""Pillow's names of the formats that are read. Others are refused whatever the file is called:
Pillow would start Ghostscript for a PostScript file named `cat.jpg`."""

_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm",
)  # fmt: skip
PICTURE_ENDINGS = (*_ENDINGS, ".avif") if "AVIF" in FORMATS else _ENDINGS
"""Endings of the files that are pictures."""

OTHER_PICTURE_ENDINGS = frozenset(
    (
        ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".tga", ".psd", ".svg", ".eps", ".ico",
        ".exr", ".hdr", ".dcm", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2",
    )
) - {*PICTURE_ENDINGS}  # fmt: skip
"""Endings of pictures that are not read: a class of nothing else must not vanish unnoticed."""

_MOST_BYTES = 2**30
_MOST_RATIO = 100


def read_file(path: Path) -> bytes:
    """The content of a picture file.

    Raises:
        OSError: it is missing, not a regular file, or larger than a picture may be.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    check_size(status.st_size)
    return path.read_bytes()


def check_size(num_bytes: int) -> None:
    """Raises OSError for a file that is larger than a picture may be."""
    if num_bytes > _MOST_BYTES:
        raise OSError(f"it has {num_bytes:,} bytes, more than the {_MOST_BYTES:,} of a picture")


def open_picture(content: bytes) -> Image.Image:
    """A picture, perhaps not decoded yet, from the content of its file.

    Raises:
        UnidentifiedImageError: it is in none of the formats that are read.
        ValueError: it is so elongated that resizing it would take gigabytes.
    """
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    short, long = sorted(image.size)
    if long > _MOST_RATIO * short:
        width, height = image.size
        raise ValueError(
            f"it is {width} x {height} pixels: one side may be at most {_MOST_RATIO} times the "
            "other, crop it first"
        )
    return image
