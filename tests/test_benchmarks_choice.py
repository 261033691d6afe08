"""The experiments about the choice: what they plan, run and conclude; on numbers made by hand."""

import json
from functools import partial
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from benchmarks.choice import command, running
from benchmarks.choice.answers import (
    Difference,
    cells,
    document,
    drawing,
    fronts,
    overall,
    verdict,
)
from benchmarks.choice.command import main
from benchmarks.choice.questions import QUESTIONS, Arm
from benchmarks.choice.running import Row, Task, missing, overlap, run, tasks
from benchmarks.fanning import fan_out
from benchmarks.strategies import quiet_recipe
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from prenas.families.base import envelope
from prenas.recipe import with_overrides
from prenas.report import render
from prenas.runs.run import Run
from prenas.supernet import Supernet
from training.runs import MINI, mini_recipe

SKELETONS, CONTROL = "skeletons, k = 3", "random, k = 3"


def row(arm: str, seed: int, *best: float, data: str = "digits", question: str = "choice") -> Any:
    """Accuracies of the budgets a, b, ..."""
    names = [chr(ord("a") + number) for number in range(len(best))]
    return {
        "question": question,
        "data": data,
        "arm": arm,
        "seed": seed,
        "epochs": 5,
        "num_subnets": len(best),
        "overlap": 0.5,
        "cells": {
            name: {"best": one, "first": one - 1, "mean": one - 2, "spread_on_validation": 0.2}
            for name, one in zip(names, best, strict=True)
        },
    }


ROWS = [
    *(row(SKELETONS, seed, 80 + seed, 70.5 + seed) for seed in range(3)),
    *(row(CONTROL, seed, 79 + seed, 70.4 + 1.2 * seed) for seed in range(3)),
    row(CONTROL, 7, 1.0, 1.0),  # without a partner
]


ARMS = [(arm, seed) for arm in (SKELETONS, CONTROL) for seed in range(3)]


def test_differences_are_paired_by_seed_and_budget() -> None:
    found = {one.where: one for one in cells(ROWS, "choice", SKELETONS, CONTROL)}
    assert list(found) == ["digits, 5 epochs, a", "digits, 5 epochs, b"]
    assert found["digits, 5 epochs, a"].of_seeds == pytest.approx((1, 1, 1))
    assert found["digits, 5 epochs, b"].of_seeds == pytest.approx((0.1, -0.1, -0.3))
    (both,) = overall(ROWS, "choice", SKELETONS, CONTROL)
    assert both.of_seeds == pytest.approx((0.55, 0.45, 0.35))


def test_intervals_are_those_of_a_paired_t_test() -> None:
    ours, theirs = [80.1, 80.9, 79.7, 81.3], [79.8, 80.1, 80.0, 80.2]
    rows = [row("S", seed, one) for seed, one in enumerate(ours)]
    rows += [row("random", seed, one) for seed, one in enumerate(theirs)]
    (found,) = overall(rows, "choice", "S", "random")
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    assert found.error == pytest.approx(stdev(differences) / sqrt(4))
    assert found.mean == pytest.approx(mean(differences))


@pytest.mark.parametrize(
    ("cells_of_seeds", "beats"),
    [
        ([(1, 1.1, 0.9), (0, 0.1, -0.1)], True),  # ahead in half of the cells
        ([(1, 1.1, 0.9), (0, 0.1, -0.1), (0, 0.2, 0)], False),
        ([(1, 1.1, 0.9), (-0.9, -1, -0.8)], True),  # behind, but not by a point
        ([(1, 1.1, 0.9), (-1, -1.1, -0.9)], False),
        ([(1, -1, 3.0)], False),  # ahead, but not by two errors
        ([(1.0,)], None),
        ([], None),
    ],
)
def test_the_decision_rule(cells_of_seeds: list[tuple[float, ...]], beats: bool | None) -> None:
    assert verdict([Difference("x", "y", "z", one) for one in cells_of_seeds]) is beats


@pytest.mark.pictures
def test_the_tables_say_what_the_rows_say(tmp_path: Path) -> None:
    text = document(ROWS, "choice")
    assert "+0.45 (+0.20 to +0.70) | 1 of 2 | -0.10 | beats it" in text
    assert "| a | b | mean | of all subnets | spread |" in text
    assert f"| {SKELETONS} | 0, 1, 2 | 2 | 50 | 81.00 | 71.50 | 76.25 | 74.25 | 0.20 |" in text
    render(drawing(ROWS, "choice"), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_the_verdict_is_about_all_data_sets() -> None:
    """Ahead on one and behind on the other, which is one line more than they have."""
    others = [row(arm, seed, 60.0 + 9 * (arm == CONTROL), data="x") for arm, seed in ARMS]
    lines = [line for line in document([*ROWS, *others], "choice").splitlines() if "9.00" in line]
    assert (
        f"| {SKELETONS} | {CONTROL} | x, 5 epochs | -9.00 (-9.00 to -9.00) | 0 of 1 | -9.00 |  |"
        in lines
    )
    assert f"| {SKELETONS} | {CONTROL} | all |  | 1 of 3 | -9.00 | does not beat it |" in lines


def test_budgets_keep_their_order_where_an_arm_has_one_of_them() -> None:
    alone, *others = [row(name, 0, 80.0, 70.0) for name in (CONTROL, SKELETONS)]
    del alone["cells"]["a"]
    (heads,) = [one for one in document([alone, *others], "choice").splitlines() if " a |" in one]
    assert "| a | b |" in heads


def test_numbers_are_drawn_once_the_common_budget_is_trained(tmp_path: Path) -> None:
    rows = [{**row, "question": "number", "arm": "S, k = 1"} for row in ROWS[:1]]
    legends: list[Any] = []

    def draw(figure: Figure) -> None:
        drawing(rows, "number")(figure)
        legends.extend(axes.get_legend() for axes in figure.axes)

    render(draw, tmp_path / "x.png")
    assert {*legends} == {None}


def test_every_pair_is_one_of_arms_and_every_arm_changes_a_recipe() -> None:
    for question in QUESTIONS.values():
        names = [arm.name for arm in question.arms]
        assert len(set(names)) == len(names)
        assert {name for pair in question.pairs for name in pair} <= set(names)
        for arm in question.arms:
            with_overrides(quiet_recipe("digits", 3, 0, ()), arm.changes)


def test_shared_weights_are_counted_as_masks_are() -> None:
    (choice,) = MINI.extreme(-1)
    archs = [MINI.smallest, MINI.largest, MINI.compose((choice._replace(width=0),))]
    supernet = Supernet(envelope(archs), MINI.settings)
    masks = []
    for arch in archs:
        parts = {name: torch.zeros(p.shape) for name, p in supernet.network.named_parameters()}
        for name, box in supernet.owned_boxes(arch).items():
            if name in parts:  # the others are no weights
                parts[name][box] = 1
        masks.append(torch.cat([part.flatten() for part in parts.values()]))
    shares = [
        float((one * two).sum() / min(one.sum(), two.sum())) for one, two in combinations(masks, 2)
    ]
    assert overlap(archs, MINI.settings) == pytest.approx(mean(shares), abs=1e-4)
    assert overlap(archs[:1], MINI.settings) is None


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_arms_run_once_and_are_measured_per_budget(tmp_path: Path) -> None:
    quiet = {"epochs": 1, "validate_epochs": 0, "validate_all_epochs": 0}
    recipe = mini_recipe(search={"k": 1}, training=quiet)
    planned = tasks("choice", "mini", [recipe], 1, only=["S", "skeletons, k = 2"])
    assert [task.arm.name for task in planned] == ["S", "skeletons, k = 2"]
    found = [run(task, tmp_path) for task in planned]
    assert [len(one["cells"]) for one in found] == [3, 3]
    for task, one in zip(planned, found, strict=True):
        this = Run(task.folder(tmp_path) / "run", device="cpu")
        assert one["num_subnets"] == len(this.preferred.subnets)
        for budget, cell in one["cells"].items():
            number = this.preferred.budgets.index(budget)
            own = [c.subnet for c in this.preferred.choices if c.budget == number]
            rows = [this.evaluations[subnet].splits for subnet in own]
            best = max(rows, key=lambda splits: splits["validation"].top1)
            assert cell["best_on_validation"] == pytest.approx(
                100 * best["validation"].top1, abs=1e-3
            )
            assert cell["num_subnets"] == len(own)
            assert cell["mean"] == pytest.approx(
                100 * mean(one["test"].top1 for one in rows), abs=1e-3
            )
    assert found[1]["num_subnets"] > 3
    assert missing(planned, found) == []
    assert missing(planned, found[:1]) == planned[1:]
    apart = dict(fan_out(partial(run, home=tmp_path / "apart"), planned[:1], workers=2))
    clock = dict.fromkeys(("seconds", "seconds_to_choose"), 0)
    assert apart[planned[0]] | clock == found[0] | clock
    _share_of_the_steps(planned[0], tmp_path)
    _equal_choices_are_trained_once(planned[0], found[0], tmp_path)


def _equal_choices_are_trained_once(task: Task, found: Row, home: Path) -> None:
    clock = dict.fromkeys(("seconds", "seconds_to_choose"), 0)
    again = task._replace(arm=Arm("again", ("search.exact_optimum=true",)))
    names = {"arm": "again", "changes": [*again.arm.changes], "trained_as": ["S-1-0"]}
    assert run(again, home) | clock == {**found, **clock, **names}
    assert not Run(again.folder(home) / "run", device="cpu").is_trained
    longer = task._replace(arm=Arm("longer", ("training.min_lr=0.1",)))
    assert "trained_as" not in run(longer, home)


def _share_of_the_steps(together: Task, home: Path) -> None:
    """Alone, the subnets of all budgets have as many steps as all had together."""
    task = together._replace(arm=Arm("alone", trainings="shares"))
    lengths = []
    for name, recipe in running._recipes(task, home):
        assert name.startswith("budget-")
        assert recipe.training is not None
        assert recipe.training.steps is not None
        assert len(recipe.search.budgets) == 1
        lengths.append(recipe.training.steps)
    assert len(lengths) == 3
    assert sum(lengths) == 9  # one epoch
    middle = together._replace(arm=Arm("one", only_middle=True))
    ((_, recipe),) = running._recipes(middle, home)
    assert recipe.search.budgets == ("params=2600:3300",)


def test_rivals_train_as_many_images_and_are_compared_by_whole_fronts(tmp_path: Path) -> None:
    quiet = {"epochs": 3, "validate_epochs": 0, "validate_all_epochs": 0}
    recipe = mini_recipe(search={"k": 1}, training=quiet)
    small = ["evolution.population=4", "evolution.generations=2", "evolution.num_parents=2"]
    small += ["evolution.num_mutations=2", "evolution.num_crossovers=2"]
    planned = tasks(
        "rivals", "mini", [recipe], 3, ["preferred", "whole space, sandwich, evolution"]
    )
    planned[1] = planned[1]._replace(
        arm=planned[1].arm._replace(changes=(*planned[1].arm.changes, *small))
    )
    found = [run(task, tmp_path) for task in planned]
    ours, theirs = (Run(task.folder(tmp_path) / "run", device="cpu") for task in planned)
    training = theirs.preferred.recipe.training
    assert training is not None
    assert training.epochs == 1  # a sandwich of three
    assert training.sandwich == 1
    assert found[0]["cells"].keys() == found[1]["cells"].keys()
    evolved = {one.arch for one in theirs.results.evolved}
    assert evolved == set(theirs.subnets.archs)
    for this, one in zip((ours, theirs), found, strict=True):
        points = [(row.costs["params"], 100 * row.splits["test"].top1) for row in this.evaluations]
        most = 10_999  # the most that the last budget allows, though nothing fits it
        literal = mean(  # of one rectangle for every parameter
            max([top for cost, top in points if cost <= params], default=0)
            for params in range(most)
        )
        assert one["hypervolume"] == pytest.approx(literal, abs=1e-3)
    (difference,) = fronts(found, "rivals", "preferred", "whole space, sandwich, evolution")
    assert difference.of_seeds == (found[0]["hypervolume"] - found[1]["hypervolume"],)
    assert "choosing, s" in document(found, "rivals")


def test_arms_that_fail_are_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = []

    def some_fail(task: Task, home: Path) -> Any:
        order.append(task.arm.name)
        if task.arm.name == "together":
            raise ValueError("no memory")
        return row(task.arm.name, task.recipe.seed, 80, data=task.data, question=task.question)

    monkeypatch.setattr(command, "run", some_fail)
    monkeypatch.setattr(command, "_print_plan", lambda *_: None)
    arms = [arm.name for arm in QUESTIONS["alone"].arms]
    out = tmp_path / "choice.json"
    words = ["--question", "alone", "--seeds", "3", "--epochs", "5", "--out", str(out)]
    assert main(words) == 1
    assert order == arms  # the run that the others read is the first
    errors = capsys.readouterr().err
    assert "digits, seed 3, together failed: ValueError: no memory" in errors
    assert [one["arm"] for one in json.loads(out.read_text())["rows"]] == arms[1:]
    assert main(words) == 1
    assert order[3:] == arms[:1]  # nothing else is missing


def test_the_command_needs_known_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "choice.json")]
    with pytest.raises(SystemExit):
        main(["--only", "T", *out])
    assert "unknown arm 'T': choose from S; S, p = 1/2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--workers", "0", *out])
    assert "--workers 0: give at least 1" in capsys.readouterr().err
    assert main(["--only-tables", *out]) == 0
    assert not (tmp_path / "choice.json").exists()


def test_rows_of_another_recipe_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ["--question", "choice", "--data", "digits", "--seeds", "0", "--only", "S"]
    (task,) = tasks("choice", "digits", [mini_recipe()], 240, only=["S"])
    row = dict(zip(running.KEY, task.key, strict=True)) | {"seed": 0}
    file = tmp_path / "choice.json"
    file.write_text(json.dumps({"rows": [row]}))
    left: list[list[Task]] = []
    monkeypatch.setattr(command, "_print_plan", lambda _, tasks, workers: left.append(tasks))
    for words in ([], ["--set", "training.batch_size=32"]):
        main([*plain, *words, "--dry-run", "--out", str(file)])
    assert [len(one) for one in left] == [0, 1]
    assert left[1][0].folder(tmp_path) != task.folder(tmp_path)


# --- what is recorded ----------------------------------------------------------------------------


def test_two_cells_of_the_recorded_tables_follow_from_the_rows() -> None:
    """Computed anew from the rows, by other code than that which wrote the tables."""
    folder = Path(__file__).parent.parent / "results"
    rows = json.loads((folder / "choice.json").read_text())["rows"]
    lines = (folder / "choice-choice.md").read_text().splitlines()
    here = lines.index("## mobilenet-micro, 2 epochs")
    where = {"question": "choice", "data": "mobilenet-micro", "epochs": 2}

    def of(arm: str) -> list[dict[str, float]]:
        """Budget -> accuracy, by seed."""
        own = [one for one in rows if one.items() >= (where | {"arm": arm}).items()]
        assert [one["seed"] for one in own] == [0, 1, 2]
        return [{name: cell["best"] for name, cell in one["cells"].items()} for one in own]

    heads, _, *body = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[here + 2 : here + 5]
    )
    budget = "macs in [1M, 1.25M)"
    assert body[0][0] == "S"
    assert body[0][heads.index(budget)] == f"{mean(one[budget] for one in of('S')):.2f}"

    ours, theirs = ([mean(one.values()) for one in of(arm)] for arm in ("S", "random"))
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    (line,) = [one for one in lines if one.startswith("| S | random | mobilenet-micro, 2 epochs")]
    in_words = f"{mean(ours) - mean(theirs):+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    assert line.strip("|").split("|")[3].strip() == in_words
