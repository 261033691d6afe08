"""Built-in data sets: digits (scikit-learn), CIFAR-10/100 and Fashion-MNIST (torchvision)."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prenas.data.names import Integers, Names
from prenas.data.pictures import ArrayPictures, PictureSet
from prenas.files import open_file

_MOST_BYTES = 2**30
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class NamedSet(NamedTuple):
    """A data set that is already split."""

    class_names: tuple[str, ...]
    pools: Mapping[str, PictureSet]


def download_folder() -> Path:
    """Where named data sets are stored: `$PRENAS_DATA`, or a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PRENAS_DATA") or cache / "prenas")


def _of_arrays(images: np.ndarray[Any, Any], labels: Any) -> PictureSet:
    if len(images) != len(labels):
        raise ValueError(
            f"there are {len(images)} pictures but {len(labels)} labels: restore the files"
        )
    numbers = Names.of(map(str, range(len(images))))
    return PictureSet(numbers, Integers.of(np.asarray(labels)), ArrayPictures(images))


def _digits(root: str | None) -> NamedSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey: 60 % train, 20 % validation, 20 % test.

    The split is stratified and does not depend on the seed of a run. Pixels 0..16 are first
    converted to 8-bit grey, so that a digit that is saved as a picture and loaded again gives the
    same input.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if root is not None:
        raise ValueError(f"the digits are part of scikit-learn: leave out data.root (got {root})")
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target
    everything = np.arange(len(labels))
    rest, test = train_test_split(everything, test_size=0.2, stratify=labels, random_state=0)
    train, validation = train_test_split(
        rest, test_size=0.25, stratify=labels[rest], random_state=0
    )
    pools = {"train": train, "validation": validation, "test": test}
    return NamedSet(
        tuple(map(str, digits.target_names)),
        {name: _of_arrays(pixels[chosen], labels[chosen]) for name, chosen in pools.items()},
    )


def _torchvision(kind: str, root: str | None) -> NamedSet:
    """A torchvision data set with its two splits, read from `root` or downloaded to the cache."""
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)
    if root is None:
        folder: str | Path = download_folder()
        problem = f"{kind} is not in {folder} and could not be downloaded"
        remedy = (
            "put it there, or give its folder with --set data.root=FOLDER (or --data FOLDER for "
            "image folders or tars)"
        )
    else:
        folder = root
        problem = f"{root} does not contain {kind} in torchvision's layout"
        remedy = "give the folder that does, or leave out data.root to download it"
    try:
        parts = {
            name: reader(folder, train=name == "train", download=root is None)
            for name in ("train", "test")
        }
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{problem} ({error}): {remedy}") from None
    return NamedSet(
        tuple(parts["train"].classes),
        {name: _of_arrays(np.asarray(part.data), part.targets) for name, part in parts.items()},
    )


def _fashion_mnist(root: str | None) -> NamedSet:
    """60,000 and 10,000 grey pictures of clothes, 28 x 28.

    Read from a folder with the four original files (`train-images-idx3-ubyte.gz`, ...) if there is
    one, as in Debian's package dataset-fashion-mnist; torchvision does not read those. Otherwise
    read by torchvision.
    """
    folder = Path(root) if root else _DEBIAN_FASHION_MNIST
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        return _torchvision("FashionMNIST", root)
    from torchvision.datasets import FashionMNIST

    pools = {
        name: _of_arrays(
            _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"),
            _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"),
        )
        for name, prefix in (("train", "train"), ("test", "t10k"))
    }
    return NamedSet(tuple(FashionMNIST.classes), pools)


def _read_idx(path: Path) -> np.ndarray[Any, Any]:
    """An array of bytes in the format of the MNIST files: magic, sizes, then the numbers."""
    try:
        with open_file(path) as packed, gzip.open(packed) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
        num_dimensions = content[3]
        start = 4 + 4 * num_dimensions
        shape = np.frombuffer(content[4:start], dtype=">i4")
        return np.frombuffer(content[start:], dtype=np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path} is missing or damaged ({error}): restore it") from None


NAMED: dict[str, Callable[[str | None], NamedSet]] = {
    "digits": _digits,
    "cifar10": partial(_torchvision, "CIFAR10"),
    "cifar100": partial(_torchvision, "CIFAR100"),
    "fashion-mnist": _fashion_mnist,
}
