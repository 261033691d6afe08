"""Runs in Jupyter: what they show, and the notebook in examples/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.ipynb"


def executed(cells: list[str], folder: Path) -> list[list[Any]]:
    """The outputs of every cell of a notebook, run in this folder."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def shown(outputs: list[Any], kind: str) -> list[str]:
    """What is shown in one of its forms."""
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of the example by the code of the cell, after one epoch, and of more cells."""
    cells = [cell.source for cell in nbformat.read(EXAMPLE, 4).cells if cell.cell_type == "code"]
    first = cells[0].replace(
        'prenas.get_recipe("digits")',
        'prenas.with_overrides(prenas.get_recipe("digits"), '
        '["training.epochs=1", "data.num_workers=0"])',
    )
    assert first != cells[0], "the recipe of the example is shortened here"
    damage = "open(run.folder / 'evaluation.json', 'w').write('<b>[')\nrun"
    more = ["prenas.Run('runs/<b>none*')", damage]
    folder = tmp_path_factory.mktemp("notebook")
    return dict(zip([*cells, *more], executed([first, *cells[1:], *more], folder), strict=True))


@pytest.mark.slow
def test_runs_show_themselves(example: dict[str, list[Any]]) -> None:
    found = [(code.splitlines()[-1], outputs) for code, outputs in example.items()]
    preferred, run = (
        next(outputs for last, outputs in found if last == name) for name in ("preferred", "run")
    )

    (table,) = shown(preferred, "text/markdown")
    assert table.count("\n| ") == 8, "a row for each of six subnets, below two of heads"
    assert "validation" not in table

    (table,) = shown(run, "text/markdown")
    assert table.count("\n| ") == 8
    assert "validation top-1, %" in table
    assert "runs/notebook/report.html" in table
    assert "](subnets" not in table, "a link would start in the folder of the notebook"
    assert len(shown(run, "image/png")) == 1


@pytest.mark.slow
def test_a_bar_shows_the_training(example: dict[str, list[Any]]) -> None:
    (outputs,) = (found for code, found in example.items() if code.startswith("rows = "))
    (bar,) = (text for text in shown(outputs, "text/html") if "<progress" in text)
    assert 'value="17" max="17"' in bar, "17 batches of 64 out of 1,077 images"
    assert "epoch 1" in bar
    assert not any("ipywidgets" in output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_runs_without_results_say_so(example: dict[str, list[Any]]) -> None:
    *_, missing, damaged = example.values()
    (text,) = shown(missing, "text/markdown")
    assert "nothing is chosen yet" in text
    assert r"\<b>none\*" in text, "names of folders are text"
    (text,) = shown(damaged, "text/markdown")
    assert "evaluation.json" in text
    assert not any(output.output_type == "error" for output in damaged)


def test_the_example_is_kept_as_it_ran() -> None:
    notebook = nbformat.read(EXAMPLE, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type in ("error", "stream")]
    assert EXAMPLE.stat().st_size < 300_000
    for folder in (str(Path.home()), "site-packages", str(EXAMPLE.parent.parent)):
        assert folder not in EXAMPLE.read_text()
