"""Built-in sets by name: digits (scikit-learn), CIFAR-10/100 and Fashion-MNIST (torchvision)."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prenas.data.pictures import ArrayPictures, PictureSet

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class NamedSet(NamedTuple):
    """A set with splits of its own."""

    class_names: tuple[str, ...]
    pools: Mapping[str, PictureSet]


def download_folder() -> Path:
    """Where named sets are kept: `$PRENAS_DATA`, or a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PRENAS_DATA") or cache / "prenas")


def _of_arrays(images: np.ndarray[Any, Any], labels: Any) -> PictureSet:
    if len(images) != len(labels):
        raise ValueError(
            f"there are {len(images)} pictures and {len(labels)} labels: restore the files"
        )
    numbers = tuple(map(str, range(len(images))))
    return PictureSet(numbers, tuple(map(int, labels)), ArrayPictures(images))


def _digits(root: str | None) -> NamedSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey: 60 % train, 20 % validation, 20 % test.

    The split is stratified and fixed, whatever the seed of a run. Pixels 0..16 become 8-bit grey
    first, so that a digit saved as a picture and loaded again gives the same input.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if root is not None:
        raise ValueError(f"digits come with scikit-learn: leave data.root out (given: {root})")
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


def _cifar(kind: str) -> Callable[[str | None], NamedSet]:
    def opened(root: str | None) -> NamedSet:
        import torchvision.datasets

        reader = getattr(torchvision.datasets, kind)
        parts = {
            name: _downloaded(
                kind, root, lambda folder, t=is_train, **options: reader(folder, train=t, **options)
            )
            for name, is_train in (("train", True), ("test", False))
        }
        return NamedSet(
            tuple(parts["train"].classes),
            {name: _of_arrays(part.data, part.targets) for name, part in parts.items()},
        )

    return opened


def _fashion_mnist(root: str | None) -> NamedSet:
    """60,000 and 10,000 grey pictures of clothes, 28 x 28.

    From a folder of the four original files (`train-images-idx3-ubyte.gz`, ...; Debian's package
    dataset-fashion-mnist has them), or torchvision's folder, downloaded where it is missing.
    """
    from torchvision.datasets import FashionMNIST

    folder = Path(root) if root else _DEBIAN_FASHION_MNIST
    if (folder / "train-images-idx3-ubyte.gz").is_file():
        pools = {
            name: _of_arrays(
                _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"),
                _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"),
            )
            for name, prefix in (("train", "train"), ("test", "t10k"))
        }
        return NamedSet(_FASHION_NAMES, pools)
    parts = {
        name: _downloaded(
            "FashionMNIST",
            root,
            lambda at, t=is_train, **options: FashionMNIST(at, train=t, **options),
        )
        for name, is_train in (("train", True), ("test", False))
    }
    return NamedSet(
        _FASHION_NAMES,
        {name: _of_arrays(part.data.numpy(), part.targets) for name, part in parts.items()},
    )


def _read_idx(path: Path) -> np.ndarray[Any, Any]:
    """An array of bytes in the format of the MNIST files: magic, sizes, then the numbers."""
    try:
        content = gzip.decompress(path.read_bytes())
        num_dimensions = content[3]
        start = 4 + 4 * num_dimensions
        shape = np.frombuffer(content[4:start], dtype=">i4")
        return np.frombuffer(content[start:], dtype=np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged or missing ({error}): restore it") from None


def _downloaded(kind: str, root: str | None, read: Callable[..., Any]) -> Any:
    """torchvision's set: from the given folder, or from the cache, fetched there first."""
    if root is not None:
        try:
            return read(root, download=False)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{root} does not hold {kind} as torchvision keeps it ({error}): give the folder "
                "that holds it, or leave data.root out to download it"
            ) from None
    folder = download_folder()
    try:
        return read(folder, download=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{kind} is not in {folder} and cannot be downloaded ({error}): put it there, or say "
            "where it is with --set data.root=FOLDER, or --data FOLDER for image folders or tars"
        ) from None


NAMED: dict[str, Callable[[str | None], NamedSet]] = {
    "digits": _digits,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "fashion-mnist": _fashion_mnist,
}
