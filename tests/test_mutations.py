"""The list of faults that tests must notice; trying them takes long and is done by hand."""

from pathlib import Path

import pytest
from benchmarks import mutations
from benchmarks.mutations import MUTATIONS, Mutation, main, occurrences, run_tests, verdict

TESTS = Path(__file__).parent


def test_every_fault_can_be_put_in() -> None:
    """Its text occurs once, its tests exist, and it changes something."""
    assert len(MUTATIONS) >= 25
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert {m.name: occurrences(m) for m in MUTATIONS} == {m.name: 1 for m in MUTATIONS}
    for mutation in MUTATIONS:
        assert mutation.old != mutation.new
        assert mutation.tests
        assert all((TESTS / test).is_file() for test in mutation.tests), mutation.name


@pytest.mark.parametrize(
    ("status", "words"),
    [(1, "killed by t.py::test_y"), (0, "SURVIVED"), (2, "not judged"), (-1, "not judged")],
)
def test_a_fault_is_put_in_for_its_tests_only(
    status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "src/prenas/a.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\ny = 2\n")

    def run_tests(tree: Path, tests: object) -> tuple[int, str]:
        assert (tree, file.read_text()) == (tmp_path, "x = 1\ny = 3\n")
        return status, "t.py::test_y"

    monkeypatch.setattr(mutations, "run_tests", run_tests)
    assert verdict(tmp_path, Mutation("m", "a.py", "y = 2", "y = 3", ("t.py",))).startswith(words)
    assert file.read_text() == "x = 1\ny = 2\n"
    twice = Mutation("m", "a.py", " = ", " != ", ("t.py",))
    assert verdict(tmp_path, twice) == "not applied: its text occurs 2 times"


def test_status_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = MUTATIONS[0].name
    monkeypatch.setattr(mutations, "copy_tree", lambda _: None)
    monkeypatch.setattr(mutations, "verdict", lambda *_: "SURVIVED")
    assert main([name]) == 1
    assert f"{name} " in capsys.readouterr().out
    monkeypatch.setattr(mutations, "verdict", lambda *_: "killed by x")
    assert main([name]) == 0
    monkeypatch.setattr(mutations, "run_tests", lambda *_: (1, "t.py::test_z"))
    assert main([name, "--sound"]) == 1
    assert "fails without any fault: t.py::test_z" in capsys.readouterr().out


def test_what_failed_is_read_from_pytest(tmp_path: Path) -> None:
    """In a process of its own, on the code of the tree that is given."""
    (tmp_path / "src").mkdir()
    (tmp_path / "tests").mkdir()
    test = tmp_path / "tests/test_a.py"
    test.write_text("def test_one():\n    pass\n\n\ndef test_two():\n    assert 1 == 2\n")
    assert run_tests(tmp_path, ["test_a.py"]) == (1, "test_a.py::test_two")
    test.write_text("def test_one():\n    pass\n")
    assert run_tests(tmp_path, ["test_a.py"]) == (0, "")
