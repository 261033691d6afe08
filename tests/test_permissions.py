"""Files and folders that this user may not read or write are named, with the reason.

Root may read and write everything, so where the tests run as root, they act as another user.
"""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import prenas
from prenas import pipeline
from prenas.cli import main
from prenas.data.folders import list_pictures
from prenas.devices.prediction import predict
from prenas.recipe.space_file import read_space
from prenas.runs.run import Run
from prenas.runs.status import read_status
from prenas.steps import choosing
from training.runs import mini_recipe, never

pytest_plugins = "training.runs"

_NOBODY = 65534


@contextmanager
def as_another_user() -> Iterator[None]:
    """Gives up the rights of root for a while; does nothing for any other user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that belongs to the user of the test; pytest's own belong to root."""
    path = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def forbid(path: Path, mode: int = 0) -> Path:
    """Takes rights away from everybody but root."""
    path.chmod(mode)
    return path


def own(path: Path) -> Path:
    """Gives everything in a folder to the user of the test."""
    if os.geteuid() == 0:
        for each in (path, *path.rglob("*")):
            os.chown(each, _NOBODY, _NOBODY)
    return path


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 100).save(path)
    return path


def test_the_tests_below_mean_something(folder: Path) -> None:
    (folder / "secret").write_text("text")
    forbid(folder / "secret")
    with as_another_user(), pytest.raises(PermissionError):
        (folder / "secret").read_text()


def test_a_read_only_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "zero_cost_search", never)
    out = folder / "run"
    out.mkdir(mode=0o500)
    own(out)
    with as_another_user(), pytest.raises(ValueError, match=f"cannot write to {out} .*ermission d"):
        pipeline.search(mini_recipe(), out)


def test_a_read_only_run_is_read(folder: Path, finished_run: Path) -> None:
    run = own(shutil.copytree(finished_run, folder / "run"))
    (run / ".lock").unlink()
    forbid(run, 0o500)
    with as_another_user():
        assert len(Run(run).evaluations) == len(Run(run).preferred.subnets)
        assert read_status(run).problems == ()
        assert prenas.load(run / "subnets" / "00").network is not None
        with pytest.raises(OSError, match=r"cannot write \S+report\.md \(Permission denied\)"):
            pipeline.report(run)


def test_an_unreadable_file_of_a_run_is_named(folder: Path, finished_run: Path) -> None:
    run = own(shutil.copytree(finished_run, folder / "run"))
    for name in ("evaluation.json", "supernet.safetensors", "subnets/00/arch.json"):
        forbid(run / name)
    with as_another_user():
        with pytest.raises(OSError, match=r"evaluation\.json cannot be read: Permission denied"):
            _ = Run(run).evaluations
        with pytest.raises(OSError, match=r"supernet\.safetensors cannot be read: Permission den"):
            _ = Run(run).supernet
        with pytest.raises(OSError, match=r"arch\.json cannot be read: Permission denied"):
            prenas.load(run / "subnets" / "00")


def test_an_unreadable_space_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "space.yaml").write_text("family: vit\n")
    forbid(folder / "space.yaml")
    (folder / "secret").mkdir()
    (folder / "secret" / "space.yaml").write_text("family: vit\n")
    forbid(folder / "secret")
    with as_another_user():
        with pytest.raises(OSError, match=r"space\.yaml cannot be read: Permission denied"):
            read_space(folder / "space.yaml")
        monkeypatch.setattr("sys.argv", ["prenas", "info", str(folder / "secret" / "space.yaml")])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert f"error: {folder}/secret/space.yaml: Permission denied" in message
    assert "Errno" not in message


def test_unreadable_images_are_named(folder: Path) -> None:
    draw(folder / "photos" / "cat" / "1.png")
    draw(folder / "photos" / "dog" / "1.png")
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photos", ".")
    own(folder / "photos")
    forbid(folder / "photos.tar")
    forbid(folder / "photos" / "dog")
    with as_another_user():
        with pytest.raises(ValueError, match=r"photos\.tar cannot be read \(Permission denied\)"):
            list_pictures(folder / "photos.tar")
        with pytest.raises(ValueError, match=r"dog cannot be read \(Permission denied\)"):
            list_pictures(folder / "photos")


def test_an_unreadable_picture_is_named_and_others_are_classified(
    folder: Path, finished_run: Path
) -> None:
    model = own(shutil.copytree(finished_run / "subnets" / "00", folder / "model"))
    good, secret = draw(folder / "good.png"), forbid(draw(folder / "secret.png"))
    with as_another_user():
        found = {row.path: row for row in predict(model, [good, secret], device="cpu")}
    assert found[good].error is None
    assert "Permission denied" in str(found[secret].error)


@pytest.mark.parametrize(
    "command",
    [
        "info {}/space.yaml",
        "info {}/space.py",
        "status {}/run",
        "evaluate {}/run",
        "predict {}/model picture.png",
        "predict model {}/picture.png",
        "run digits --dry-run --data {}/photos",
        "run --from timm/resnet18={}/weights.pth --dry-run --data photos",
        "run digits --dry-run --set training.teacher.name=resnet18 "
        "--set training.teacher.weights={}/weights.pth",
    ],
)
def test_what_lies_in_a_folder_that_may_not_be_entered_is_not_called_missing(
    command: str,
    folder: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own(shutil.copytree(finished_run / "subnets" / "00", folder / "model"))
    for name in ("photos/cat/1.png", "photos/dog/1.png", "picture.png"):
        draw(folder / name)
    own(folder)
    secret = folder / "secret"
    secret.mkdir()
    forbid(secret)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["prenas", *command.format(secret).split()])
    with as_another_user(), pytest.raises(SystemExit) as ended:
        main()
    message = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert f"{secret}/" in message
    assert "Permission denied" in message
