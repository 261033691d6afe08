"""Rows of results: added by several commands at once, and replaced by newer ones."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.rows import add_row, stored_rows


def test_commands_that_add_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "results" / "rows.json"
    assert stored_rows(file) == []

    def command(seed: int) -> None:
        for number in range(20):
            add_row(file, {"seed": seed, "number": number}, ("seed", "number"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(command, range(4)))
    found = [(row["seed"], row["number"]) for row in stored_rows(file)]
    assert sorted(found) == [(seed, number) for seed in range(4) for number in range(20)]
    assert [path.name for path in file.parent.iterdir()] == ["rows.json"]


def test_a_newer_row_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    """And stands last; what else the file holds is that of the newest."""
    file = tmp_path / "rows.json"
    add_row(file, {"seed": 0, "top1": 1}, ("seed", "arm"), commit="a")
    add_row(file, {"seed": 1, "top1": 2}, ("seed", "arm"), commit="b")
    rows = add_row(file, {"seed": 0, "top1": 3}, ("seed", "arm"), commit="c")
    assert rows == stored_rows(file) == [{"seed": 1, "top1": 2}, {"seed": 0, "top1": 3}]
    assert json.loads(file.read_text())["commit"] == "c"
