"""A folder is walked once, but never taken for what it was."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.making import tar_of, write
from prenas.data import folders
from prenas.data.folders import list_pictures

NAMES = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/deep/3.png"]


def settle(root: Path) -> None:
    """As if nothing had changed for a minute."""
    for path in (root, *root.rglob("*")):
        os.utime(path, (time.time() - 60,) * 2)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was listed."""
    found: list[str] = []
    for name in ("_walked", "TarFiles"):
        original: Callable[..., object] = getattr(folders, name)

        def noted(path: Path, *args: object, original: Callable[..., object] = original) -> object:
            found.append(path.name)
            return original(path, *args)

        monkeypatch.setattr(folders, name, noted)
    return found


def add(root: Path) -> None:
    write(root, ["dog/deep/4.png"])


def remove(root: Path) -> None:
    (root / "cat/2.png").unlink()


def rename(root: Path) -> None:
    (root / "dog").rename(root / "wolf")


def deeper(root: Path) -> None:
    (root / "dog/deep/deeper").mkdir()


@pytest.mark.parametrize("change", [add, remove, rename, deeper])
def test_a_folder_is_walked_again_when_it_changed(
    change: Callable[[Path], None], walks: list[str], tmp_path: Path
) -> None:
    root = write(tmp_path / "set", NAMES)
    settle(root)
    first = [*list_pictures(root).sizes]
    assert [*list_pictures(root).sizes] == first == NAMES
    assert walks == ["set"]
    change(root)
    there = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    assert [*list_pictures(root).sizes] == there
    assert len(walks) == 2


def test_bytes_are_asked_for_every_time(walks: list[str], tmp_path: Path) -> None:
    """A file that is written anew leaves no trace in its folder."""
    root = write(tmp_path / "set", NAMES)
    settle(root)
    before = dict(list_pictures(root).sizes)
    (root / "cat/1.png").write_bytes(b"1234567")
    assert dict(list_pictures(root).sizes) == {**before, "cat/1.png": 7}
    assert walks == ["set"]


def test_what_has_just_changed_is_listed_again(walks: list[str], tmp_path: Path) -> None:
    """A second change within a tick of the disk's clock could not be seen."""
    root = write(tmp_path / "set", NAMES)
    list_pictures(root)
    list_pictures(root)
    assert walks == ["set", "set"]


def test_a_tar_is_read_again_when_it_changed(walks: list[str], tmp_path: Path) -> None:
    tar = tar_of(write(tmp_path / "set", NAMES), tmp_path / "set.tar")
    settle(tar)
    first = list_pictures(tar)
    assert dict(list_pictures(tar).sizes) == dict(first.sizes)
    assert walks == ["set.tar"]
    tar_of(write(tmp_path / "set", ["cat/9.png"]), tar)
    assert "cat/9.png" in list_pictures(tar).sizes
    assert len(walks) == 2
