"""The list of faults that tests must notice; trying them takes long and is done by hand."""

from pathlib import Path

import pytest
from benchmarks import mutations
from benchmarks.mutations import MUTATIONS, Mutation, main, occurrences, verdict

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
    ("statuses", "words"),
    [([1], "killed"), ([0], "SURVIVED"), ([2], "not judged"), ([-1], "not judged")],
)
def test_a_fault_is_put_in_for_its_tests_only(
    statuses: list[int], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "src/prenas/a.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\ny = 2\n")

    def run_tests(tree: Path, tests: object) -> int:
        assert (tree, file.read_text()) == (tmp_path, "x = 1\ny = 3\n")
        return statuses.pop()

    monkeypatch.setattr(mutations, "run_tests", run_tests)
    assert verdict(tmp_path, Mutation("m", "a.py", "y = 2", "y = 3", ("t.py",))).startswith(words)
    assert file.read_text() == "x = 1\ny = 2\n"
    twice = Mutation("m", "a.py", " = ", " != ", ("t.py",))
    assert verdict(tmp_path, twice) == "not applied: its text occurs 2 times"


def test_a_survivor_and_a_failure_without_a_fault_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = MUTATIONS[0].name
    monkeypatch.setattr(mutations, "copy_tree", lambda _: None)
    monkeypatch.setattr(mutations, "run_tests", lambda *_: 0)
    monkeypatch.setattr(mutations, "verdict", lambda *_: "SURVIVED")
    assert main([name]) == 1
    assert f"{name} " in capsys.readouterr().out
    monkeypatch.setattr(mutations, "verdict", lambda *_: "killed")
    assert main([name]) == 0
    monkeypatch.setattr(mutations, "run_tests", lambda *_: 1)
    assert main([name]) == 1
    assert "fail without any fault" in capsys.readouterr().out
