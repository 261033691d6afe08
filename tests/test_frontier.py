"""The plot in the terminal: every network at its place."""

import io

import pytest

from prenas.cli import frontier as module
from prenas.cli.frontier import frontier, print_frontier
from prenas.cli.output import PlainConsole
from prenas.evaluation.accuracy import Evaluation, Metrics
from prenas.families.vit.space import VitArch


def network(params: int, top1: float, split: str = "validation") -> Evaluation:
    return Evaluation(
        arch=VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.0,)),
        costs={"params": params, "macs": 2 * params},
        splits={split: Metrics(top1=top1, top5=None, loss=1.0, num_images=10)},
    )


ROWS = [network(100, 0.5), network(200, 0.9), network(300, 0.7)]


def test_every_network_has_its_place() -> None:
    title, *lines, bottom, ticks = frontier(ROWS, [network(250, 0.6)], 21)
    assert title == ("Validation top-1 in % over params; numbers are subnets; + is another network")
    assert lines == [
        "  90.00 |          1",
        "        |",
        "        |",
        "        |",
        "        |                    2",
        "        |",
        "        |               +",
        "        |",
        "  50.00 |0",
    ]
    assert (bottom, ticks) == ("        +" + "-" * 21, "         100               300")


def test_of_marks_that_would_overlap_the_most_accurate_is_shown() -> None:
    lines = frontier([network(100, 0.5), network(101, 0.5001), network(900, 0.9)], [], 30)
    assert lines[-3] == "  50.00 |1"
    assert lines[1].endswith("2")


def test_equal_networks_need_no_range() -> None:
    lines = frontier([network(100, 0.5)] * 3, [], 11)
    assert sum("50.00" in line for line in lines) == 1


def shown(monkeypatch: pytest.MonkeyPatch, rows: list[Evaluation], width: int, tty: bool) -> str:
    file = io.StringIO()
    console = PlainConsole(file=file, width=width, force_terminal=tty)
    monkeypatch.setattr(module, "console", console)
    print_frontier(rows)
    return file.getvalue()


def test_only_a_terminal_that_is_wide_enough_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shown(monkeypatch, ROWS, 80, True).splitlines()) == 12
    assert max(map(len, shown(monkeypatch, ROWS, 40, True).splitlines()[1:])) <= 40
    assert shown(monkeypatch, ROWS, 30, True) == ""
    assert shown(monkeypatch, ROWS, 80, False) == ""
    assert shown(monkeypatch, ROWS[:2], 80, True) == ""
    assert shown(monkeypatch, [network(n, 0.5, "all") for n in (1, 2, 3)], 80, True) == ""
