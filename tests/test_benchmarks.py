"""The harness behind every claim about speed; the sections themselves are run by hand."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from benchmarks.__main__ import SECTIONS
from benchmarks.paired import ROOT, Options, Section, peak_bytes, ratio, take_turns


def test_variants_take_turns_and_each_round_starts_with_another() -> None:
    calls: list[str] = []
    names = "abc"
    seconds = take_turns({n: lambda n=n: calls.append(n) for n in names}, 4, warm_ups=2)  # type: ignore[misc]
    assert "".join(calls) == "abcabc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys(names, 4)


def test_a_ratio_is_the_median_of_rounds_not_of_seconds() -> None:
    found = ratio("x", [1.0, 20.0, 3.0], [1.0, 10.0, 1.0], target=2.0)
    assert (found.median, found.quartiles, found.is_met) == (2.0, (1.5, 2.5), True)
    assert ratio("x", [3.0], [1.0], target=2.0).is_met is False
    assert ratio("x", [3.0], [1.0]).is_met is None


def test_peak_memory_counts_what_is_held_at_once() -> None:
    """Two tensors of 4 MB beside each other, then a third after both are gone."""

    def work() -> None:
        pair = [torch.ones(10**6), torch.ones(10**6)]
        del pair
        torch.ones(10**6)

    assert peak_bytes(work) == pytest.approx(8e6, rel=0.01)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_can_be_asked(name: str) -> None:
    measure = import_module(f"benchmarks.{name}").measure
    assert measure.__annotations__ == {"options": Options.__name__, "return": Section.__name__}


def test_results_state_what_they_were_measured_on() -> None:
    document = json.loads((ROOT / "results" / "speed.json").read_text())
    assert set(document) == set(SECTIONS)
    for found in document.values():
        assert {"command", "commit", "date", "hardware", "versions", "ratios", "facts"} <= set(
            found
        )
        assert "dirty" not in found["commit"]


def test_an_unknown_section_is_refused_with_the_choices(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "speling", "--out", str(tmp_path / "x.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "unknown section 'speling': choose from attention, supernet" in done.stderr
