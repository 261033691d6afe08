"""What the command line writes: plain text, tables that fit, and no control characters."""

import json
import logging
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from data.making import noise
from prenas import pipeline
from prenas.cli import tables
from prenas.cli.output import PlainConsole, PlainFormatter
from prenas.data import with_data
from prenas.evaluation.accuracy import Evaluation, Metrics
from prenas.families import all_spaces
from prenas.families.vit.space import VitArch
from prenas.recipe import with_overrides
from prenas.recipe.catalogue import RECIPES, get_recipe
from training.runs import mini_recipe

ESCAPE = "\x1b[31mred\x1b[0m"
LATIN = b"caf\xe9".decode(errors="surrogateescape")
HTML = "a|b <b>&c<!-- $x$ `d`"


def as_process(*arguments: object, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    """`prenas ARGUMENTS` on a strict UTF-8 terminal."""
    return subprocess.run(
        [sys.executable, "-m", "prenas", *map(os.fsencode, map(str, arguments))],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "80"},
        capture_output=True,
        check=False,
    )


def test_names_of_any_bytes_are_shown_and_steer_nothing(tmp_path: Path) -> None:
    for name in (ESCAPE, LATIN, HTML):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            noise(number).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / ESCAPE / "broken.png").write_bytes(b"no picture")
    changes = [
        "data.unreadable=skip",
        "search.num_images=8",
        "training.epochs=1",
        'search.budgets=["params=200k"]',
    ]
    recipe = with_overrides(get_recipe("photos"), changes)
    pipeline.run(with_data(recipe, str(tmp_path / "photos")), tmp_path / "run")
    told = as_process("predict", "run/subnets/00", "photos", cwd=tmp_path)
    assert told.returncode == 1, told.stderr
    assert rb"photos/\x1b[31mred\x1b[0m/broken.png cannot be read" in told.stdout
    red = rb"\x1b[31mred\x1b[0m"
    assert {rb"caf\xe9", red, rb"photos/caf\xe9/1.png", rb"photos/%s/1.png" % red} <= {
        *told.stdout.split()
    }
    assert b"\x1b" not in told.stdout + told.stderr

    page = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert r"\\x1b[31mred\\x1b[0m/broken.png" in page


def test_the_log_is_plain_text() -> None:
    """Also where a library writes into it, and in a traceback."""
    record = logging.LogRecord("timm", logging.WARNING, "x.py", 1, "class %s", (ESCAPE,), None)
    shown = PlainFormatter("process 1: %(levelname)s: %(message)s").format(record)
    assert shown == r"process 1: WARNING: class \x1b[31mred\x1b[0m"


def test_a_run_folder_whose_weights_could_not_be_read_is_refused(tmp_path: Path) -> None:
    """The reader of safetensors files takes UTF-8 paths only."""
    with pytest.raises(ValueError, match="is not UTF-8"):
        pipeline.search(mini_recipe(), tmp_path / LATIN)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_of_any_bytes_has_a_status(tmp_path: Path) -> None:
    (tmp_path / LATIN).mkdir()
    plain = as_process("status", LATIN, cwd=tmp_path)
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert plain.stdout.startswith(rb"caf\xe9: no recipe yet")
    document = json.loads(as_process("status", LATIN, "--json", cwd=tmp_path).stdout)
    assert document["folder"] == LATIN
    missing = as_process("status", ESCAPE, cwd=tmp_path)
    assert missing.stderr.startswith(rb"error: \x1b[31mred\x1b[0m does not exist")


# --- tables --------------------------------------------------------------------------------------


class Terminal:
    """Stands in for a terminal of this many columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        self._shown = StringIO()
        console = PlainConsole(
            file=self._shown, force_terminal=True, color_system=None, width=width
        )
        monkeypatch.setattr(tables, "console", console)

    @property
    def lines(self) -> list[str]:
        return self._shown.getvalue().splitlines()


@pytest.mark.parametrize("name", all_spaces())
def test_spaces_fit_on_a_small_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    tables.print_space(all_spaces()[name])
    rows = [line for line in terminal.lines if line.startswith(" ")]
    assert len(rows) > 10
    assert max(map(len, rows)) <= 80


def test_lists_fit_on_a_small_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    tables.print_lists()
    assert max(map(len, terminal.lines)) <= 80
    for name in (*RECIPES, *all_spaces()):
        assert any(line.startswith(f" {name} ") for line in terminal.lines)


def test_results_with_every_column_fit_on_a_small_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics(top1=0.98765, top5=0.99999, loss=1.25, num_images=7)
    arch = VitArch(embed_dim=640, num_heads=(10,) * 14, mlp_ratio=(3.0, 3.5) * 7)
    splits = {"validation": metrics, "test": metrics}
    costs = {"params": 66_123_456, "macs": 12_345_678_901}
    terminal = Terminal(monkeypatch, 80)
    tables.print_evaluations([Evaluation(arch=arch, costs=costs, splits=splits)], "title")
    table = [line for line in terminal.lines if line.startswith(" ")]
    assert max(map(len, table)) <= 80
    words = " ".join(table).split()
    assert {"66,123,456", *arch.summary.split()} <= {*words}
    assert [words.count(cell) for cell in ("98.77", "100.00", "1.250")] == [2, 2, 2]


def test_a_wide_terminal_and_a_file_show_a_row_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ("a long picture of words " * 5, 1.25, "[1, 2]")
    terminal = Terminal(monkeypatch, 200)
    tables.print_table("title", ["words", "number", "list"], [cells])
    wide = "\n".join(terminal.lines)
    monkeypatch.undo()
    tables.print_table("title", ["words", "number", "list"], [cells])
    assert capsys.readouterr().out.strip() == wide.strip()
    assert f" {cells[0].strip()}" in wide


def test_a_cell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table("title", ["name"], [["two\nlines"], [ESCAPE]])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert r"two\nlines" in lines
    assert r"\x1b[31mred\x1b[0m" in lines
