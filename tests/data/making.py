"""Small pictures, and folders, tars and recipes of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prenas.data import evaluation_batches, load_data
from prenas.data.images import ImageData, ImageSource, num_samples
from prenas.data.sources import Opened, open_data
from prenas.families.vit.space import VitSettings
from prenas.recipe.data import DataRecipe, Preprocessing

SETTINGS = VitSettings(image_size=(8, 8), in_chans=3, num_classes=4, patch_size=4)
GREY_SETTINGS = VitSettings(image_size=(8, 8), in_chans=1, num_classes=4, patch_size=4)

BYTES = Preprocessing(mean=(0.0,) * 3, std=(1 / 255,) * 3, crop_pct=1.0)
"""Leaves pixels what they are, 0 to 255."""
GREY_BYTES = Preprocessing(mean=(0.0,), std=(1 / 255,), crop_pct=1.0)


def noise(key: int, width: int = 12, height: int = 10) -> Image.Image:
    """A picture of its own for every key."""
    pixels = np.random.default_rng(key).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(root: Path, names: Iterable[str]) -> Path:
    """Writes a picture under every name; which one follows from the name's last part."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(sum(map(ord, path.stem)) * 31 + len(path.stem)).save(path)
    return root


def tar_of(folder: Path, path: Path, *, inside: str = "", mode: str = "w") -> Path:
    """A tar of what a folder holds, perhaps inside a folder of its own, in no special order."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for file in sorted(folder.rglob("*"), reverse=True):
            if not file.is_dir() or file.is_symlink():
                tar.add(file, arcname=f"{inside}{file.relative_to(folder).as_posix()}")
    return path


Part = tuple[str, bytes]
"""A member of a shard: its name and content."""


def png(key: int) -> bytes:
    """The file of `noise(key)`."""
    file = io.BytesIO()
    noise(key).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, parts: Sequence[Part], **options: Any) -> Path:
    """A tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in parts:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1.5  # type: ignore[assignment]
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(number: int, label: str | None = None) -> list[Part]:
    """A picture of its own and its label: by default, ten in a row are of one class."""
    label = str(number // 10) if label is None else label
    return [(f"{number:04d}.png", png(number)), (f"{number:04d}.cls", label.encode())]


def shards(root: Path, numbers: Sequence[int] = range(30), name: str = "train") -> Path:
    """Shards of up to seven samples each; returns a pattern for them."""
    for first in range(0, len(numbers), 7):
        parts = [part for number in numbers[first : first + 7] for part in sample(number)]
        write_shard(root / f"{name}-{first // 7:03d}.tar", parts)
    return root / f"{name}-{{000..{(len(numbers) - 1) // 7:03d}}}.tar"


def recipe(root: Path | None = None, **fields: Any) -> DataRecipe:
    """Image folders at a place, read in this process."""
    at = None if root is None else str(root)
    return DataRecipe(
        **{"name": "folder", "root": at, "preprocessing": BYTES, "num_workers": 0, **fields}
    )


def opened(root: Path | None = None, **fields: Any) -> Opened:
    return open_data(recipe(root, **fields))


def loaded(root: Path | None = None, **fields: Any) -> ImageData:
    return load_data(recipe(root, **fields), SETTINGS)


def labelled_names(split: Any) -> list[tuple[str, int]]:
    """(name, label) of every picture of an opened split."""
    return list(zip(split.names, split.labels, strict=True))


def everything(source: ImageSource, settings: VitSettings = SETTINGS) -> tuple[Tensor, Tensor]:
    """All images and labels of a split, as an evaluation sees them."""
    if num_samples(source) == 0:
        return torch.empty(0), torch.empty(0)
    images, labels = zip(*evaluation_batches(source, settings, 5), strict=True)
    return torch.cat(images), torch.cat(labels)
