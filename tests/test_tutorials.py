"""The tutorials run as written, with short trainings, and show what a reader will see.

The commands of `own-pictures.md` run in `test_docs.py`, and the launcher of
`several-processes.md` in `test_processes.py`: these tests do the same already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from families.drawing import imagenet_weights
from prenas.devices import blocks, measuring
from prenas.devices.timing import Latency
from prenas.latency import use_table
from prenas.proxy.scores import WEIGHT_SCORES
from prenas.runs.run import Run
from prenas.sources.transfer import read_source
from test_docs import TUTORIALS, code_blocks, invoke, read, shown_commands, subnets_shown

SHORT = ("--set", "training.steps=2")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def blocks_of(page: str, language: str) -> list[str]:
    return [text for name, text in code_blocks(read(f"{TUTORIALS}/{page}")) if name == language]


def lines(text: str) -> set[str]:
    """Lines without what a terminal adds: trailing spaces and rulers of another width."""
    return {line.strip() for line in text.splitlines() if line.strip(" ─.")}


def headings(text: str, word: str) -> set[tuple[str, ...]]:
    """The columns of every table that has this word in one of them; two spaces part columns."""
    above = [line for line in text.splitlines() if re.search(rf"\b{word}\b", line)]
    found = {tuple(re.split(r" {2,}", line.strip())) for line in above if "  " in line.strip()}
    assert found
    return found


def test_the_weights_from_the_package_index_are_timms() -> None:
    (snippet,) = blocks_of("own-pictures.md", "python")
    exec(compile(snippet, "own-pictures.md", "exec"), {})
    written, expected = torch.load("lite0.pth", weights_only=True), imagenet_weights("lite0")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert "--from timm/tf_efficientnet_lite0=lite0.pth" in read(f"{TUTORIALS}/own-pictures.md")
    read_source("timm/tf_efficientnet_lite0=lite0.pth")


def test_own_space() -> None:
    (space,) = blocks_of("own-space.md", "yaml")
    Path("my_space.yaml").write_text(space, encoding="utf-8")
    looked, found, handed_over = blocks_of("own-space.md", "text")
    info, search, run, specialize = shown_commands(read(f"{TUTORIALS}/own-space.md"))
    assert lines(looked) <= lines(invoke(info))
    assert subnets_shown(found) == subnets_shown(invoke(search))
    assert len(subnets_shown(found)) == 2
    assert set(subnets_shown(found)) <= set(subnets_shown(invoke(run, *SHORT)))
    output = invoke(specialize)
    first, *others = handed_over.splitlines()
    assert first.removesuffix(" ...") in output
    assert lines("\n".join(others)) <= lines(output)


@pytest.fixture
def made_up_times(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times that follow from the sizes of layers: between 1.6 and 3.2 ms for the digits."""

    def timed(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        found = {}
        for name, call in calls.items():
            module: nn.Module = call.args[0]
            layers = [module.layer] if isinstance(module, blocks._Alone) else module.blocks
            num = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
            seconds = 8e-9 * num + (0 if isinstance(module, blocks._Alone) else 1.2e-3)
            found[name] = Latency(seconds, 0.0, (seconds, seconds))
        return found

    monkeypatch.setattr(measuring, "latencies", timed)
    yield
    use_table(None)


@pytest.mark.slow
@pytest.mark.usefixtures("made_up_times")
def test_a_budget_in_milliseconds() -> None:
    measure, run, specialize, again, export = shown_commands(read(f"{TUTORIALS}/device-budget.md"))
    measured, chosen, timed = blocks_of("device-budget.md", "text")
    tables = measured, chosen, timed.replace("onnxruntime, ms   ", "")  # making its files is slow
    again = again.replace(" --engine onnxruntime", "")
    outputs = [invoke(measure), invoke(run, *SHORT), invoke(again)]
    for shown, output in zip(tables, outputs, strict=True):
        assert headings(shown, "ms") <= headings(output, "ms")
    subnets = Run(Path("runs/fast")).preferred.subnets
    assert all(one.costs["latency"] <= 2.5e6 for one in subnets)
    assert subnets[0].costs["latency"] <= 2e6
    assert "Model     runs/fast/subnets/" in invoke(specialize)
    invoke(export.replace("onnx", "torch"))  # is quicker
    assert [folder.parent.name for folder in sorted(Path().glob("runs/fast/subnets/*/torch"))] == [
        folder.name for folder in sorted(Path("runs/fast/subnets").iterdir())
    ]


@pytest.mark.slow
def test_a_new_score() -> None:
    score, table = blocks_of("new-score.md", "python")
    Path("my_score.py").write_text(score, encoding="utf-8")
    chosen, compared = blocks_of("new-score.md", "text")
    search, run, bench = shown_commands(read(f"{TUTORIALS}/new-score.md"))
    try:
        assert subnets_shown(chosen) == subnets_shown(invoke(search))
        invoke(run.replace("training.epochs=60", "training.steps=2"))
        exec(compile(table, "new-score.md", "exec"), {})
        output = invoke(bench)
    finally:
        del WEIGHT_SCORES["sum_squared_gradient"]
    assert headings(compared, "Spearman") <= headings(output, "Spearman")
    assert "validation: 12 accuracies" in output
    names = re.findall(r"^ (\w+) +\+", compared, flags=re.MULTILINE)
    assert names == list(dict.fromkeys(re.findall(r"^ (\w+) +[+-]0", output, flags=re.MULTILINE)))
