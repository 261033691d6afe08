"""Opening pictures: supported formats and limits, the same for training and prediction."""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from PIL import Image, UnidentifiedImageError, features

from prenas.files import mistaken_for

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
FORMATS = (*_FORMATS, "AVIF") if features.check("avif") else _FORMATS
"""Pillow's names of the supported formats. Other formats are refused whatever the file is called:
Pillow would start Ghostscript for a PostScript file named `cat.jpg`."""

UNSUPPORTED = "not a supported picture format"
"""Why a picture of another format cannot be read."""

_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm",
)  # fmt: skip
PICTURE_ENDINGS = (*_ENDINGS, ".avif") if "AVIF" in FORMATS else _ENDINGS
"""Suffixes of files that count as pictures."""

OTHER_PICTURE_ENDINGS = frozenset(
    (
        ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".tga", ".psd", ".svg", ".eps", ".ico",
        ".exr", ".hdr", ".dcm", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2",
    )
) - {*PICTURE_ENDINGS}  # fmt: skip
"""Suffixes of unsupported picture formats: a class with only such files must not go unnoticed."""

_logger = logging.getLogger(__name__)
_MOST_BYTES = 2**30
_MOST_RATIO = 100


def read_file(path: Path) -> bytes:
    """The content of a picture file.

    Raises:
        OSError: it is missing, not a regular file, or over the size limit.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    check_size(status.st_size)
    return path.read_bytes()


def check_size(num_bytes: int) -> None:
    """Raises OSError for a file over the size limit."""
    if num_bytes > _MOST_BYTES:
        raise OSError(
            f"it is {num_bytes:,} bytes long, more than the limit of {_MOST_BYTES:,} bytes"
        )


def open_picture(content: bytes) -> Image.Image:
    """A picture, possibly not decoded yet, from the content of its file.

    Raises:
        UnidentifiedImageError: its format is not supported.
        ValueError: it is a Git LFS pointer or a web page, or so elongated that resizing it would
            take gigabytes.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if mistaken := mistaken_for(content[:100]):
            raise ValueError(f"it {mistaken}") from None
        raise
    short, long = sorted(image.size)
    if long > _MOST_RATIO * short:
        width, height = image.size
        raise ValueError(
            f"it is {width} x {height} pixels: the longer side may be at most {_MOST_RATIO} times "
            "the shorter; crop it first"
        )
    return image


class _NamedWarnings:
    """Shows warnings with the name of the picture that the thread is reading.

    Pillow's warnings do not name the picture. `warnings.catch_warnings` would not help, because it
    is for one thread only.
    """

    def __init__(self) -> None:
        self._lock, self._num_open = threading.Lock(), 0
        self._names = threading.local()
        self._before = warnings.showwarning

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        with self._lock:
            if self._num_open == 0:
                self._before, warnings.showwarning = warnings.showwarning, self._show
            self._num_open += 1
        self._names.current = name
        try:
            yield
        finally:
            self._names.current = None
            with self._lock:
                self._num_open -= 1
                if self._num_open == 0:
                    warnings.showwarning = self._before

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        name = getattr(self._names, "current", None)
        if name is None:  # of another thread, which reads no picture
            self._before(message, category, filename, lineno, file, line)
        else:
            _logger.warning("picture %s: %s", name, message)


_named_warnings = _NamedWarnings()
warnings_named = _named_warnings.reading
"""While a picture is read: warnings about it are logged, with this name."""
