"""Training pictures among those that accuracies are measured on are pointed out."""

from pathlib import Path

import pytest
from PIL import Image

from data.making import loaded, noise, tar_of, write
from prenas.data.images import ImageData

CLASSES = ("cat", "dog")


def split(root: Path, name: str, keys: range) -> None:
    """Numbered pictures, each of a key of its own."""
    for kind in CLASSES:
        for number, key in enumerate(keys):
            path = root / name / kind / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(key + 10_000 * len(name) * CLASSES.index(kind)).save(path)


def notes(data: ImageData) -> list[str]:
    return [note for note in data.notes if "copies" in note]


@pytest.mark.parametrize("packed", [False, True])
def test_copies_of_training_pictures_are_pointed_out(tmp_path: Path, packed: bool) -> None:
    root = tmp_path / "photos"
    write(root, [f"train/{kind}/{n}.png" for kind in CLASSES for n in "abcdef"])
    write(root, [f"val/{kind}/{n}.png" for kind in CLASSES for n in "aex"])
    split(root, "test", range(6))
    (note,) = notes(loaded(tar_of(root, tmp_path / "photos.tar") if packed else root))
    assert note.startswith("validation: of 4 pictures that have the name of a training picture, 4 ")
    assert "such as cat/a.png: accuracy there would be too good" in note


def test_numbered_pictures_of_equal_names_are_no_copies(tmp_path: Path) -> None:
    split(tmp_path, "train", range(30))
    split(tmp_path, "val", range(100, 120))
    split(tmp_path, "test", range(200, 220))
    assert notes(loaded(tmp_path)) == []
    names = [f"val/{kind}/{n:04}.png" for kind in CLASSES for n in range(20)]
    for name in names[::2]:
        (tmp_path / name).write_bytes((tmp_path / name.replace("val", "train", 1)).read_bytes())
    (note,) = notes(loaded(tmp_path))
    assert note.startswith("validation: of 16 pictures that have the name of a training picture, ")


def test_shares_of_the_training_pictures_are_no_copies(tmp_path: Path) -> None:
    split(tmp_path, "all", range(30))
    assert notes(loaded(tmp_path / "all")) == []


def test_pictures_of_other_sizes_and_damaged_ones_are_no_copies(tmp_path: Path) -> None:
    split(tmp_path, "train", range(4))
    split(tmp_path, "val", range(4))
    for kind in CLASSES:
        Image.new("RGB", (30, 20)).save(tmp_path / "val" / kind / "0000.png")
        (tmp_path / "val" / kind / "0001.png").write_bytes(b"no picture")
    (note,) = notes(loaded(tmp_path, unreadable="skip"))
    assert "of 8 pictures that have the name of a training picture, 2 are copies" in note
