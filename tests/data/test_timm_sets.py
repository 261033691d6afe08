"""Sets through timm's factory: real libraries, on small sets that are written here."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.making import BYTES, GREY_BYTES, GREY_SETTINGS, SETTINGS, everything
from prenas.data import load_data, open_data, with_data
from prenas.data.images import ImageData
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe
from training.runs import value_error_of

SPLITS = {"train": range(12), "validation": range(12, 18), "test": range(18, 22)}
"""Numbers of pictures: number n is grey of value 10 n, of class n % 2."""


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (10, 12), (10 * number,) * 3)


def folders(root: Path, splits: Mapping[str, range] = SPLITS) -> Path:
    for split, numbers in splits.items():
        for number in numbers:
            folder = root / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture(number).save(folder / f"{number:03d}.png")
    return root


def loaded(name: str, root: Path | None, **fields: Any) -> ImageData:
    options = {"preprocessing": BYTES, "num_workers": 0, **fields}
    return load_data(DataRecipe(name=name, root=root and str(root), **options), SETTINGS)


def numbers(found: ImageData) -> dict[str, list[int]]:
    """Split -> the numbers of its pictures; every label must be its picture's."""
    result = {}
    for name, source in {"train": found.train, **found.splits}.items():
        images, labels = everything(source)
        result[name] = (values(images) / 10).round().int().tolist()
        assert [number % 2 for number in result[name]] == labels.tolist()
    return result


def values(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


WHOLE = {split: sorted(members) for split, members in SPLITS.items()}


def check_whole(name: str, root: Path | None, names: tuple[str, ...] = ("cat", "dog")) -> None:
    """All three splits, and training alone with a share of it."""
    found = loaded(name, root, validation="validation", test="test")
    assert found.class_names == names
    assert {split: sorted(members) for split, members in numbers(found).items()} == WHOLE
    shared = loaded(name, root, validation=0.25)
    parts = numbers(shared)
    assert list(parts) == ["train", "validation"]
    assert sorted(parts["train"] + parts["validation"]) == WHOLE["train"]
    assert len(parts["validation"]) == 4  # round(0.25 * 6) of each class
    assert loaded(name, root, validation=0.25).fingerprint == shared.fingerprint
    on_disk = loaded(name, root, validation="validation", memory_gib=0.001)
    assert numbers(on_disk)["validation"] == numbers(found)["validation"]


# --- torch/ --------------------------------------------------------------------------------------


def test_torch_folders(tmp_path: Path) -> None:
    check_whole("torch/folder", folders(tmp_path / "set"))


def test_a_split_that_torchvision_makes_up_is_refused(tmp_path: Path) -> None:
    """timm takes the whole folder for a split that is not there: its classes are the splits."""
    root = folders(tmp_path / "set")
    message = value_error_of(lambda: loaded("torch/folder", root, validation="extra"))
    assert message is not None
    for words in ("'extra'", "test, train, validation", "cat, dog"):
        assert words in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch/bogus", "Unknown torchvision dataset bogus"),
        ("torch/mnist", "not found"),
        ("torch/folder", "root None"),
    ],
)
def test_what_timm_cannot_open_is_said(name: str, words: str, tmp_path: Path) -> None:
    root = None if name == "torch/folder" else tmp_path
    message = value_error_of(lambda: loaded(name, root))
    assert message is not None
    assert f"timm cannot open split 'train' of {name}" in message
    assert words in message


# --- hfds/ ---------------------------------------------------------------------------------------


def test_hugging_face_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder of pictures; nothing is fetched."""
    pytest.importorskip("datasets", reason="needs Hugging Face datasets: pip install datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = folders(tmp_path / "set")
    check_whole(f"hfds/{root}", tmp_path / "cache")
    recipe = with_data(get_recipe("photos"), f"hfds/{root}:{tmp_path / 'cache'}")
    assert recipe.space.settings.num_classes == 2


def test_hugging_face_mistakes_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="needs Hugging Face datasets: pip install datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = folders(tmp_path / "set")
    message = value_error_of(lambda: loaded(f"hfds/{root}", tmp_path / "cache", test="tset"))
    assert message is not None
    assert "'tset'" in message
    message = value_error_of(lambda: loaded(f"hfds/{tmp_path / 'no'}", tmp_path / "cache"))
    assert message is not None
    assert "timm cannot open" in message


def test_an_unreadable_picture_is_not_replaced_by_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm would silently read the next one."""
    pytest.importorskip("datasets", reason="needs Hugging Face datasets: pip install datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = folders(tmp_path / "set")
    (root / "validation/cat/014.png").write_text("broken")
    fields = {"validation": "validation"}
    with pytest.raises(ValueError, match=r"1 of \d+ pictures cannot be read: 1 \("):
        loaded(f"hfds/{root}", tmp_path / "cache", **fields)
    found = loaded(f"hfds/{root}", tmp_path / "cache", unreadable="skip", **fields)
    assert sorted(numbers(found)["validation"]) == [12, 13, 15, 16, 17]


# --- wds/ ----------------------------------------------------------------------------------------


def shard(path: Path, members: range, *, broken: int | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for number in members:
            buffer = io.BytesIO()
            picture(number).save(buffer, "PNG")
            content = b"broken" if number == broken else buffer.getvalue()
            for ending, part in (("png", content), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))


def shards(root: Path, **options: Any) -> Path:
    """Two shards of training, one of the others, and their description."""
    root.mkdir()
    files = {
        "train": {"train-0.tar": range(8), "train-1.tar": range(8, 12)},
        "validation": {"validation-0.tar": SPLITS["validation"]},
        "test": {"test-0.tar": SPLITS["test"]},
    }
    described = {}
    for split, parts in files.items():
        for name, members in parts.items():
            shard(root / name, members, **options)
        described[split] = {
            "name": split,
            "num_samples": sum(map(len, parts.values())),
            "filenames": list(parts),
            "shard_lengths": [len(members) for members in parts.values()],
        }
    (root / "_info.json").write_text(json.dumps({"splits": described}))
    return root


def test_webdataset_shards(tmp_path: Path) -> None:
    """Classes have no names there: their numbers stand."""
    pytest.importorskip("webdataset", reason="needs webdataset: pip install webdataset")
    check_whole("wds/mine", shards(tmp_path / "set"), names=("0", "1"))


def test_webdataset_shards_in_grey(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs webdataset: pip install webdataset")
    root = shards(tmp_path / "set")
    recipe = DataRecipe(
        name="wds/mine", root=str(root), validation="validation", preprocessing=GREY_BYTES
    )
    images, _ = everything(load_data(recipe, GREY_SETTINGS).validation, GREY_SETTINGS)
    expected = torch.tensor([10.0 * number for number in SPLITS["validation"]])
    assert torch.allclose(values(images), expected, atol=1e-3)


def test_webdataset_mistakes_are_said(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="needs webdataset: pip install webdataset")
    root = shards(tmp_path / "set")
    for fields, words in (
        ({"validation": "dev"}, "split dev not found"),
        ({"memory_gib": 1e-7}, r"does not fit into data\.memory_gib"),
    ):
        with pytest.raises(ValueError, match=words):
            loaded("wds/mine", root, **fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timm cannot open split 'train'"):
        loaded("wds/mine", tmp_path / "no")
    (root / "train-1.tar").unlink()
    with pytest.raises(ValueError, match="claims 12 pictures, but 8 can be read"):
        loaded("wds/mine", root)


def test_a_broken_picture_in_a_shard_is_noticed(tmp_path: Path) -> None:
    """webdataset passes over it with a warning only."""
    pytest.importorskip("webdataset", reason="needs webdataset: pip install webdataset")
    root = shards(tmp_path / "set", broken=5)
    with pytest.raises(ValueError, match="claims 12 pictures, but 11 can be read"):
        loaded("wds/mine", root)


# --- others --------------------------------------------------------------------------------------


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    try:
        import tensorflow_datasets  # noqa: F401
    except ImportError:
        message = value_error_of(lambda: open_data(DataRecipe(name="tfds/mnist")))
        assert message is not None
        assert "tensorflow" in message
    else:
        pytest.skip("TensorFlow Datasets is here")


def test_pixels_of_large_numbers_are_not_rounded() -> None:
    """What the other tests lean on: pictures are told apart by their grey."""
    assert np.asarray(picture(21)).max() == 210
