"""The best of each budget by validation: the rule, and where a run says so."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edits import write_edited
from prenas import pipeline
from prenas.artifacts import read_json, write_json
from prenas.cli import app
from prenas.models.choice import best_of_budget, contests_of
from prenas.models.export import load
from prenas.report.html.content import content_of
from prenas.runs.contests import Result, best_first, contests, were_decided
from prenas.runs.run import Run
from prenas.runs.status import read_status
from training.runs import mini_recipe

pytest_plugins = "training.runs"


def result(params: int, validation: float, test: float | None = None) -> Result:
    top1 = {"validation": validation} | ({} if test is None else {"test": test})
    return Result({"params": params, "macs": 10 * params}, top1)


RESULTS = [result(10, 0.7, 0.9), result(20, 0.8, 0.6), result(30, 0.8, 0.9), result(40, 0.5)]


def test_contests_by_hand() -> None:
    """Equal accuracies: the smaller subnet wins. A subnet may be of several budgets."""
    choices = [(0, 0), (0, 2), (0, 1), (2, 2), (2, 3), (3, 3)]
    found = contests(["a", "b", "c", "d"], choices, RESULTS)
    assert [(one.budget, one.named, one.subnets, one.winner) for one in found] == [
        (0, "a", (1, 2, 0), 1),
        (2, "c", (2, 3), 2),
        (3, "d", (3,), 3),
    ]
    assert [one.top1 for one in found] == [(0.8, 0.8, 0.7), (0.8, 0.5), (0.5,)]
    assert [one.spread for one in found] == pytest.approx([0.1, 0.3, 0.0])
    assert [one.test_top1 for one in found] == [0.6, 0.9, None]  # test decides nothing
    assert were_decided(found)
    assert not were_decided(found[2:])


def test_nothing_is_decided_without_validation() -> None:
    assert contests(["a"], [(0, 0)], [Result({"params": 1}, {})]) == ()
    assert contests(["a"], [], []) == ()


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8
    )
)
def test_the_best_is_never_worse_than_another_and_never_larger_than_its_equals(
    rows: list[tuple[int, int, int]],
) -> None:
    results = [result(params, val / 4, test / 4) for params, val, test in rows]
    order = best_first(results)
    assert sorted(order) == [*range(len(rows))]
    keys = [(-rows[number][1], rows[number][0], number) for number in order]
    assert keys == sorted(keys)
    (contest,) = contests(["all"], [(0, number) for number in range(len(rows))], results)
    assert [*contest.subnets] == order


# --- in a run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shapes per budget, trained together. Its accuracies are replaced, so that the second
    choice of the first budget wins there. Do not change it."""
    out = tmp_path_factory.mktemp("shapes") / "run"
    recipe = mini_recipe(search={"strategy": "skeletons", "k": 2})
    pipeline.run(recipe, out)
    document = read_json(out / "evaluation.json")
    preferred = Run(out, device="cpu").preferred
    second = {one.subnet for one in preferred.choices if (one.budget, one.rank) == (0, 1)}
    for number, subnet in enumerate(document["subnets"]):
        subnet["splits"]["validation"]["top1"] = 0.75 if number in second else 0.5
    write_json(out / "evaluation.json", document)
    return out


def test_everybody_names_the_same_winners(run_of_shapes: Path) -> None:
    """The library, the status, the report and the page."""
    run = Run(run_of_shapes, device="cpu")
    found = contests_of(run.preferred, run.evaluations)
    assert len(found) == 3
    assert len(found[0].subnets) == 2
    first = {choice.rank: choice.subnet for choice in run.preferred.choices if choice.budget == 0}
    assert found[0].winner == first[1]  # validation decided, not the score
    assert found[0].spread == 0.25
    assert read_status(run_of_shapes).contests == found
    assert [best_of_budget(run.preferred, run.evaluations, n) for n in range(3)] == [
        one.winner for one in found
    ]
    text = pipeline.report(run_of_shapes).read_text()
    section = text[text.index("## The best of each budget") :].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert [row[3] for row in rows[2:]] == [str(one.winner) for one in found]
    assert "slightly optimistic" in section
    page = content_of([run], with_pictures=False)["runs"][0]["contests"]
    assert [row[3] for row in page["rows"]] == [str(one.winner) for one in found]
    assert "slightly optimistic" in page["text"]


def test_the_best_of_a_budget_is_handed_over(run_of_shapes: Path, tmp_path: Path) -> None:
    run = Run(run_of_shapes, device="cpu")
    winner = contests_of(run.preferred, run.evaluations)[0].winner
    words = ["specialize", str(run_of_shapes), "--of-budget", "0", "--to", str(tmp_path / "best")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert f"Subnet {winner}:" in done.output
    provenance = read_json(tmp_path / "best" / "arch.json")["provenance"]
    assert provenance["best_by_validation_of"][0] == run.preferred.budgets[0]
    network = load(tmp_path / "best").network
    size = sum(parameter.numel() for parameter in network.parameters())
    assert size == run.preferred.subnets[winner].costs["params"]
    shown = CliRunner().invoke(app, ["status", str(run_of_shapes)]).output
    assert "The best of each budget by validation" in shown
    assert "slightly optimistic" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"of_budget": 7}, "budget 7 does not exist: this run has 0: params in"),
        ({"of_budget": -1}, "budget -1 does not exist"),
        ({"of_budget": 3}, r"no subnet fits budget 3 \(params in \[10k, 11k\)\)"),
        ({"of_budget": 0, "index": 1}, "budget 0 already says which subnet"),
        ({"of_budget": 0, "limits": "params=9k"}, "leave out its number and the limits"),
    ],
)
def test_a_budget_that_names_no_subnet_is_refused(
    run_of_shapes: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.specialize(run_of_shapes, **arguments)  # type: ignore[arg-type]


def test_a_run_of_one_subnet_per_budget_says_nothing_of_it(finished_run: Path) -> None:
    run = Run(finished_run, device="cpu")
    assert not were_decided(contests_of(run.preferred, run.evaluations))
    assert "The best of each budget" not in (finished_run / "report.md").read_text()
    assert content_of([run], with_pictures=False)["runs"][0]["contests"] is None
    assert (
        "The best of each budget"
        not in CliRunner().invoke(app, ["status", str(finished_run)]).output
    )


def test_a_damaged_evaluation_is_a_problem_of_the_status(finished: Path) -> None:
    document = json.loads((finished / "evaluation.json").read_text())
    del document["subnets"][0]["splits"]["validation"]["top1"]
    write_edited(finished / "evaluation.json", document)
    status = read_status(finished)
    assert status.contests == ()
    assert any("evaluation.json" in problem for problem in status.problems)
