"""The fuzzer: what it plants is noticed, its cases repeat, and fifty of them find nothing."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.fuzz import guard, judging, odd
from benchmarks.fuzz.__main__ import KINDS, maker
from benchmarks.fuzz.judging import Case, Outcome, Verdict
from benchmarks.paired import ROOT

from prenas import cli


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder as cases have it."""
    run = tmp_path / "case" / "work" / "run"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("the user's own")
    (run / "recipe.json").write_text("{}")
    (tmp_path / "case/outside").mkdir()
    (tmp_path / "case/outside/precious.txt").write_text("somebody else's")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "case"


Command = Callable[[], None]


def ended(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch, case: Case | None = None
) -> Verdict:
    """The verdict on a command that does this."""
    monkeypatch.setattr(cli, "main", command)
    guard.install()
    done = judging.run((), home, seconds=0.5)
    return judging.judge(case or Case("test", "planted", (), ("run/x.json",)), done, seconds=0.5)


def say(words: str) -> None:
    sys.stdout.write(words)


def refuse(words: str) -> None:
    sys.stderr.write(words)
    sys.exit(2)


def fail() -> None:
    raise RuntimeError("a bug")


def change_and_refuse() -> None:
    Path("run/recipe.json").write_text("[]")
    refuse("error: run/x.json is damaged")


def leave_and_refuse() -> None:
    Path("run/.x.json.12.tmp").touch()
    refuse("error: run/x.json is damaged")


def write_elsewhere() -> None:
    Path("../../elsewhere/new.txt").write_text("x")


PLANTED: dict[str, tuple[Command, Outcome]] = {
    "nothing": (lambda: say("fine"), Outcome.RIGHT),
    "a refusal": (lambda: refuse("error: run/x.json is damaged"), Outcome.REFUSED),
    "a bug": (fail, Outcome.TRACEBACK),
    "a hidden bug": (lambda: refuse("Traceback (most recent call last):"), Outcome.TRACEBACK),
    "waiting": (lambda: time.sleep(30), Outcome.SLOW),
    "not a number": (lambda: say('{"probability": NaN}'), Outcome.SILENT),
    "a text about such a number": (lambda: say('{"problem": "lr is NaN"}'), Outcome.RIGHT),
    "a bare refusal": (lambda: refuse("error: something is damaged"), Outcome.UNCLEAR),
    "silence": (lambda: sys.exit(2), Outcome.UNCLEAR),
    "an errno": (lambda: refuse("error: [Errno 21] Is a directory: run/x.json"), Outcome.UNCLEAR),
    "a flood": (lambda: refuse("run/x.json\n" * 5_000), Outcome.UNCLEAR),
    "another status": (lambda: sys.exit(3), Outcome.UNCLEAR),
    "a changed file": (change_and_refuse, Outcome.CHANGED),
    "a lost file": (lambda: Path("run/notes.txt").unlink(), Outcome.CHANGED),
    "a file of others": (lambda: Path("../outside/precious.txt").unlink(), Outcome.CHANGED),
    "a leftover": (leave_and_refuse, Outcome.CHANGED),
    "a file elsewhere": (write_elsewhere, Outcome.OUTSIDE),
    "a program": (lambda: os.system("true"), Outcome.OUTSIDE),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_noticed(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, outcome = PLANTED[name]
    assert ended(command, home, monkeypatch).outcome == outcome


def test_a_difference_is_silent_unless_the_file_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "main", lambda: say("top-1 90.0"))
    expected = judging.run((), home, seconds=0.5)
    case = Case("test", "planted", (), ("x.json",), expected)
    said = "WARNING: x.json is damaged, so it is left out"
    for out, err, outcome in (
        ("top-1 90.0", "", Outcome.RIGHT),
        ("top-1 89.9", "", Outcome.SILENT),
        ("top-1 89.9", said, Outcome.RIGHT),
    ):

        def command(out: str = out, err: str = err) -> None:
            sys.stdout.write(out)
            sys.stderr.write(err)

        assert ended(command, home, monkeypatch, case).outcome == outcome


def test_only_what_was_finished_before_a_refusal_may_be_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "work/run/recipe.json"
    case = Case("test", "planted", (), ("x.json",), written=(file,))
    assert ended(change_and_refuse, home, monkeypatch, case).outcome == Outcome.CHANGED
    (home / file).write_text("{}")
    case = case._replace(written=(), kept=(file,))
    assert ended(change_and_refuse, home, monkeypatch, case).outcome == Outcome.REFUSED


def test_results_of_other_bytes_are_a_difference(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = home / "work/run/supernet.safetensors"
    monkeypatch.setattr(cli, "main", lambda: None)
    weights.write_bytes(b"right")
    case = Case("test", "planted", (), ("x.json",), judging.run((), home, seconds=0.5))
    weights.write_bytes(b"wrong")
    verdict = ended(lambda: None, home, monkeypatch, case)
    assert verdict == (Outcome.SILENT, "work/run/supernet.safetensors")


def test_any_numbers_in_a_row_have_every_kind() -> None:
    """And a number always means the same kind."""
    length = sum(KINDS.values())
    for first in (0, 1, 1000):
        makers = [maker(number) for number in range(first, first + length)]
        assert {make: makers.count(make) for make in makers} == KINDS


@pytest.mark.parametrize("damage", [*odd.BYTES, *odd.WRONG])
def test_damage_is_damage_and_repeats(damage: Callable[[bytes, random.Random], bytes]) -> None:
    content = random.Random(0).randbytes(3000)
    changed = [damage(content, random.Random(seed)) for seed in range(30)]
    assert changed == [damage(content, random.Random(seed)) for seed in range(30)]
    assert all(one != content for one in changed if damage is not odd.blot)
    assert len(set(changed)) > 1


def test_one_edit_changes_a_document() -> None:
    document = {"a": [1, 2, {"b": "c"}], "d": None, "e": 0.5}
    edits = [odd.edited(document, random.Random(seed))[0] for seed in range(200)]
    assert document == {"a": [1, 2, {"b": "c"}], "d": None, "e": 0.5}
    assert sum(edit == document for edit in edits) < 20  # a value may be replaced by its equal
    assert len({json.dumps(edit) for edit in edits}) > 50


@pytest.mark.slow
def test_fifty_cases_have_no_fault(tmp_path: Path) -> None:
    """In a process that has started no threads yet; the limit allows for a busy machine."""
    out = tmp_path / "fuzz.json"
    words = ["--cases", "50", "--seed", "11", "--seconds", "60", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-2_000:]
    found = json.loads(out.read_text())
    assert found["cases"] == 50
    assert found["faults"] == []
    assert found["outcomes"][Outcome.REFUSED] > 25
    assert found["outcomes"][Outcome.RIGHT] > 5
