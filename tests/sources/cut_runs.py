"""A small run that cuts a timm model, and what it is made from.

A test file that wants the fixtures says `pytest_plugins = "sources.cut_runs"`.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from families.drawing import fill_as_trained
from prenas.cli import app
from prenas.sources.transfer import Source, read_source

MODEL = "test_resnet"
LENGTHS = ("training.epochs=2", "adaptation.epochs=1")
FEW = ("training.batch_size=8",)
SHORT = (*LENGTHS, *FEW)


@pytest.fixture(scope="session")
def cut_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with weights of timm's model for the three classes of `cut_pictures`."""
    network = fill_as_trained(timm.create_model(MODEL, num_classes=3), seed=3)
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def cut_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured pictures, twenty of each."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cow")):
        (folder / name).mkdir()
        for number in range(20):
            pixels = generator.integers(60 * label, 60 * label + 100, (40, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def cut_source(cut_weights: Path) -> Source:
    return read_source(f"timm/{MODEL}={cut_weights}")


@pytest.fixture(scope="session")
def cut_run(
    cut_weights: Path, cut_pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "cut"
    result = CliRunner().invoke(app, command(cut_weights, cut_pictures, out))
    assert result.exit_code == 0, result.output
    return out


def command(
    weights: Path, pictures: Path, out: Path, *, lengths: tuple[str, ...] = LENGTHS
) -> list[str]:
    settings = [part for field in (*lengths, *FEW) for part in ("--set", field)]
    budgets = ["--budget", "macs=90%", "--budget", "macs=75%"]
    source = f"timm/{MODEL}={weights}"
    options = ["--data", str(pictures), "--image-size", "40", "--out", str(out), "--threads", "1"]
    return ["run", "--from", source, *options, *budgets, *settings]
