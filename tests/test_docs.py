"""What the documents promise runs as written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prenas.cli import app
from prenas.recipe.catalogue import RECIPES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "docs/guide.md", "docs/method.md", "docs/extending.md", "CONTRIBUTING.md"]


def code_blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def prenas_commands() -> list[str]:
    """Every `prenas ...` line of a code block, without its comment."""
    lines = [
        line.removeprefix("$ ")
        for document in DOCUMENTS
        for _, block in code_blocks(document)
        for line in block.splitlines()
    ]
    commands = [line.split("#")[0].strip() for line in lines]
    return sorted({command for command in commands if command.startswith("prenas ")})


def test_quickstart_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "examples/quickstart.py", tmp_path],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "a picture of a zero: class" in result.stdout
    assert (tmp_path / "run" / "preferred.json").exists()


def test_documents_show_commands() -> None:
    names = {shlex.split(command)[1] for command in prenas_commands()}
    assert {"run", "search", "train", "evaluate", "specialize", "info"} <= names


@pytest.mark.parametrize("command", prenas_commands())
def test_command_exists_with_these_options(command: str) -> None:
    """Each shown command parses: its options stand in the command's help, its recipe exists."""
    _, name, *words = shlex.split(command.replace("[", "").replace("]", ""))
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for word in words:
        if word.startswith("--"):
            assert word in result.output, f"{word} is no option of prenas {name}"
    if name in ("run", "search") and words and not words[0].startswith("-"):
        assert words[0] in RECIPES


def test_python_of_the_guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The guide's own-data snippet, its dots filled with generated images and a short training."""
    import torch
    from torch.utils.data import TensorDataset

    (snippet,) = [text for language, text in code_blocks("docs/guide.md") if language == "python"]
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    split = TensorDataset(images, torch.arange(20) % 5)
    filled = snippet.replace("train=..., validation=...", "train=split, validation=split")
    filled = filled.replace("epochs=50", "epochs=1")
    assert filled.count("split") == 2
    assert "epochs=1)" in filled
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"split": split}
    exec(compile(filled, "docs/guide.md", "exec"), names)
    logits = names["network"](images)  # type: ignore[operator]
    assert logits.shape == (20, 5)
    assert (tmp_path / "runs/mine/preferred.json").exists()


def test_the_walk_on_own_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The README's commands on a folder of pictures, one after the other, with a short training."""
    import numpy as np
    from PIL import Image

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## On your own pictures")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line.split("#")[0]) for line in block.splitlines()]
    assert [words[1] for words in commands] == ["run", "run", "specialize", "predict"]
    generator = np.random.default_rng(0)
    for place, (name, ending) in enumerate((("cat", "jpg"), ("dog", "png"))):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 128, (90, 120, 3)) + 127 * place
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.{ending}")
    monkeypatch.chdir(tmp_path)
    short = ["--set", "training.epochs=1", "--set", "data.num_workers=0", "--threads", "1"]
    for words in commands:
        more = short if words[1] == "run" else ["--threads", "1"]
        result = CliRunner().invoke(app, [*words[1:], *more])
        assert result.exit_code == 0, (words, result.output, result.exception)
    assert all(name in result.output for name in ("photos/cat/1.jpg", "cat", "dog", "%"))
    assert (tmp_path / "runs/photos/report.md").exists()


def test_no_placeholder_is_left() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"@[A-Z]+@", (ROOT / document).read_text(encoding="utf-8")), document


def test_linked_files_exist() -> None:
    """Relative links of all documents point at files of the repository."""
    for document in [*DOCUMENTS, "CHANGELOG.md", "results/README.md", "docs/decisions.md"]:
        path = ROOT / document
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{document} links to missing {target}"
