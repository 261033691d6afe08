"""Built-in sets: from small files of the real forms, and what is said where they are missing."""

import gzip
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from torch import Tensor

from data.making import BYTES, GREY_BYTES, everything
from prenas.data import load_data, open_data, with_data
from prenas.data.images import ImageData
from prenas.data.named import NAMED, download_folder
from prenas.families.vit.space import VitSettings
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe
from training.runs import global_state_untouched, value_error_of

RNG = np.random.default_rng(0)
NUM = {"train": 40, "t10k": 20, "test": 20}


def loaded(name: str, root: Path | None, side: int, in_chans: int, num_classes: int) -> ImageData:
    settings = VitSettings(
        image_size=(side, side), in_chans=in_chans, num_classes=num_classes, patch_size=4
    )
    preprocessing = BYTES if in_chans == 3 else GREY_BYTES
    recipe = DataRecipe(
        name=name, root=root and str(root), preprocessing=preprocessing, test="test"
    )
    return load_data(recipe, settings)


def sorted_pixels(images: Tensor) -> list[list[int]]:
    return sorted(images.round().int().flatten(1).tolist())


# --- CIFAR ---------------------------------------------------------------------------------------


class Cifar:
    """The files of one of the two sets, as their authors pack them, with random pictures."""

    def __init__(self, root: Path, num_classes: int) -> None:
        self.num_classes = num_classes
        self.kind = getattr(torchvision.datasets, f"CIFAR{num_classes}")
        key = "labels" if num_classes == 10 else "fine_labels"
        names_key = "label_names" if num_classes == 10 else "fine_label_names"
        self.names = [f"class {number}" for number in range(num_classes)]
        self.pixels: dict[str, np.ndarray[Any, Any]] = {}
        self.labels: dict[str, list[int]] = {}
        folder = root / self.kind.base_folder
        folder.mkdir(parents=True)
        for split, files in (("train", self.kind.train_list), ("test", self.kind.test_list)):
            number = max(20, 2 * num_classes)
            parts = [RNG.integers(0, 256, (number, 3072), dtype=np.uint8) for _ in files]
            labels = [[n % num_classes for n in range(number)] for _ in files]
            for (name, _), part, some in zip(files, parts, labels, strict=True):
                (folder / name).write_bytes(pickle.dumps({"data": part, key: some}))
            self.pixels[split] = np.concatenate(parts).reshape(-1, 3, 32, 32)
            self.labels[split] = [label for some in labels for label in some]
        meta = pickle.dumps({names_key: self.names})
        (folder / self.kind.meta["filename"]).write_bytes(meta)


@pytest.fixture(params=[10, 100])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar:
    """The published files are known by their MD5 sums: generated ones pass with the check off."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return Cifar(tmp_path / "cifar", request.param)


def test_cifar_is_read_whole(cifar: Cifar, tmp_path: Path) -> None:
    """Every picture once, with its label; validation is a tenth of every class of training."""
    name = f"cifar{cifar.num_classes}"
    found = loaded(name, tmp_path / "cifar", 32, 3, cifar.num_classes)
    assert found.class_names == tuple(cifar.names)
    images, labels = everything(found.splits["test"], settings_of(found))
    assert torch.equal(images.round(), torch.from_numpy(cifar.pixels["test"]).float())
    assert labels.tolist() == cifar.labels["test"]
    parts = [everything(source, settings_of(found)) for source in (found.train, found.validation)]
    together = torch.cat([images for images, _ in parts])
    assert sorted_pixels(together) == sorted_pixels(torch.from_numpy(cifar.pixels["train"]))
    counts = torch.bincount(parts[1][1], minlength=cifar.num_classes)
    assert counts.tolist() == [max(1, len(cifar.labels["train"]) // cifar.num_classes // 10)] * len(
        counts
    )


def settings_of(found: ImageData) -> VitSettings:
    return VitSettings(image_size=(32, 32), num_classes=len(found.class_names), patch_size=4)


def test_cifar_is_found_in_prenas_data(
    cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched where the files are there."""
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", forbidden)
    monkeypatch.setenv("PRENAS_DATA", str(tmp_path / "cifar"))
    name = f"cifar{cifar.num_classes}"
    assert loaded(name, None, 32, 3, cifar.num_classes).class_names == tuple(cifar.names)
    recipe = with_data(get_recipe("cifar10"), f"{name}:{tmp_path / 'cifar'}")
    assert recipe.space.settings.num_classes == cifar.num_classes


def forbidden(*_: object, **__: object) -> None:
    raise OSError("no connection")


def test_damaged_cifar_files_are_refused(tmp_path: Path) -> None:
    """With the check on, nothing but the published files is read."""
    Cifar(tmp_path / "cifar", 10)
    message = value_error_of(lambda: loaded("cifar10", tmp_path / "cifar", 32, 3, 10))
    assert message is not None
    assert str(tmp_path / "cifar") in message
    assert "does not contain CIFAR10 in torchvision's layout" in message


# --- Fashion-MNIST -------------------------------------------------------------------------------


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """The format of the MNIST files."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    folder = tmp_path / "fashion"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        generator = np.random.default_rng(len(prefix))
        images = generator.integers(0, 256, (NUM[prefix], 28, 28))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        labels = np.arange(NUM[prefix]) % 10
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    return folder


GREY28 = VitSettings(image_size=(28, 28), in_chans=1, num_classes=10, patch_size=4)


def test_fashion_mnist_is_read_whole(fashion: Path) -> None:
    found = loaded("fashion-mnist", fashion, 28, 1, 10)
    images, labels = everything(found.splits["test"], GREY28)
    expected = np.random.default_rng(4).integers(0, 256, (20, 28, 28))
    assert torch.equal(images[:, 0].round(), torch.from_numpy(expected).float())
    assert labels.tolist() == [n % 10 for n in range(20)]
    parts = [everything(source, GREY28)[0] for source in (found.train, found.validation)]
    expected = np.random.default_rng(5).integers(0, 256, (40, 28, 28))
    assert sorted_pixels(torch.cat(parts)) == sorted_pixels(torch.from_numpy(expected))
    assert found.class_names[0] == "T-shirt/top"
    assert found.class_names[9] == "Ankle boot"


def test_fashion_mnist_in_torchvisions_folder(fashion: Path, tmp_path: Path) -> None:
    """The same four files, unpacked, two folders further down."""
    raw = tmp_path / "root/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for path in fashion.iterdir():
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    ours = loaded("fashion-mnist", tmp_path / "root", 28, 1, 10)
    theirs = loaded("fashion-mnist", fashion, 28, 1, 10)
    assert ours.fingerprint == theirs.fingerprint
    for name, split in ours.splits.items():
        for left, right in zip(
            everything(split, GREY28), everything(theirs.splits[name], GREY28), strict=True
        ):
            assert torch.equal(left, right)


@pytest.mark.parametrize("file", ["train-images-idx3", "t10k-images-idx3", "train-labels-idx1"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut"),
        pytest.param(lambda content: b"no gzip" + content, id="foreign"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: gzip.compress(b""), id="empty-inside"),
        pytest.param(lambda content: gzip.compress(gzip.decompress(content)[:-5]), id="short"),
        pytest.param(lambda content: gzip.compress(gzip.decompress(content) + b"12"), id="long"),
        pytest.param(lambda content: content[:40] + b"????" + content[44:], id="bytes"),
        pytest.param(lambda content: None, id="missing"),
    ],
)
def test_damaged_fashion_mnist_files_are_named(file: str, damage: Any, fashion: Path) -> None:
    path = fashion / f"{file}-ubyte.gz"
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    is_known = content is not None or file != "train-images-idx3"  # else it may be torchvision's
    words = f"{path.name} is missing or damaged" if is_known else "does not contain FashionMNIST"
    with pytest.raises(ValueError, match=words):
        loaded("fashion-mnist", fashion, 28, 1, 10)


def test_fewer_labels_than_pictures_are_refused(fashion: Path) -> None:
    shutil.copy(fashion / "t10k-labels-idx1-ubyte.gz", fashion / "train-labels-idx1-ubyte.gz")
    message = value_error_of(lambda: loaded("fashion-mnist", fashion, 28, 1, 10))
    assert message is not None
    assert "40" in message
    assert "20" in message


# --- missing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_a_missing_set_says_where_it_would_be(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", forbidden)
    monkeypatch.setattr("prenas.data.named._DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setenv("PRENAS_DATA", str(tmp_path / "data"))
    message = value_error_of(lambda: open_data(DataRecipe(name=name)))
    assert message is not None
    for words in (str(tmp_path / "data"), "could not be downloaded", "data.root", "--data"):
        assert words in message
    message = value_error_of(lambda: open_data(DataRecipe(name=name, root=str(tmp_path / "no"))))
    assert message is not None
    for words in (str(tmp_path / "no"), "in torchvision's layout", "leave out data.root"):
        assert words in message
    assert not (tmp_path / "no").exists()


def test_downloads_lie_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRENAS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert download_folder() == tmp_path / "cache/prenas"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download_folder() == tmp_path / ".cache/prenas"
    monkeypatch.setenv("PRENAS_DATA", str(tmp_path / "here"))
    assert download_folder() == tmp_path / "here"


def test_reading_a_set_leaves_global_generators_alone(fashion: Path) -> None:
    import sklearn.datasets  # noqa: F401 - draws a number when it is imported first

    with global_state_untouched():
        loaded("fashion-mnist", fashion, 28, 1, 10)
        open_data(DataRecipe(name="digits"))


def test_digits_need_no_folder() -> None:
    with pytest.raises(ValueError, match=r"digits are part of scikit-learn.*got x"):
        NAMED["digits"]("x")
