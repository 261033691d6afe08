"""A handed-over model is measured on other images, as its run would measure it."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from data.making import write
from models.handed_over import model_of
from prenas.cli import app
from prenas.cost import count
from prenas.devices.prediction import predict
from prenas.models.export import load, load_described
from prenas.models.measurement import measure

NAMES = ("cat", "dog", "eel", "owl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of(tmp_path_factory.mktemp("measured") / "00", names=NAMES)


def pictures(root: Path, number: int = 5, names: tuple[str, ...] = NAMES) -> Path:
    return write(root, [f"{name}/{name}{n}.png" for name in names for n in range(number)])


def share_right(model: Path, folder: Path) -> float:
    """By one prediction after the other."""
    found = list(predict(model, [folder], top=1))
    return sum(one.classes[0][0] == one.path.parent.name for one in found) / len(found)


def test_all_images_of_a_folder_are_measured(model: Path, tmp_path: Path) -> None:
    found = measure(model, [str(pictures(tmp_path))])
    assert list(found.splits) == ["all"]
    assert found.splits["all"].num_images == 20
    assert found.splits["all"].top1 == share_right(model, tmp_path)
    description = load_described(model).description
    assert found.arch == description.arch
    assert found.costs == count(description.arch, description.settings)


def test_classes_are_shown_by_their_names(model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(model), "--data", str(pictures(tmp_path))])
    assert result.exit_code == 0, result.output
    assert re.search(rf"weakest: ({'|'.join(NAMES)}) \d+\.\d % of 5, ", result.output)


def test_splits_are_measured_by_their_names(model: Path, tmp_path: Path) -> None:
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        pictures(tmp_path / split, number)
    found = measure(model, [str(tmp_path)])
    assert {name: split.num_images for name, split in found.splits.items()} == {
        "validation": 8,
        "test": 12,
    }
    assert found.splits["test"].top1 == share_right(model, tmp_path / "test")


def test_crops_are_averaged(model: Path, tmp_path: Path) -> None:
    pictures(tmp_path)
    one, five = (measure(model, [str(tmp_path)], crops=crops) for crops in (1, 5))
    assert one == measure(model, [str(tmp_path)])
    assert one.splits["all"].loss != five.splits["all"].loss


def test_what_cannot_be_measured(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a model and names no images: .*--data PATH"):
        measure(model, [])
    others = pictures(tmp_path / "others", names=("cat", "dog", "eel", "emu"))
    with pytest.raises(ValueError, match=r"other classes than .* \(differing: emu, owl\)"):
        measure(model, [str(others)])
    with pytest.raises(ValueError, match="gives no images"):
        measure(model, ["test=none"])
    with pytest.raises(ValueError, match="crops"):
        measure(model, [str(others)], crops=3)
    with pytest.raises(FileNotFoundError, match="prenas specialize"):
        measure(tmp_path, [str(others)])
    assert torch.equal(*(next(load(model).network.parameters()) for _ in range(2)))
