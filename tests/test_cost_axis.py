"""A third cost axis, added in a few lines, is a budget, a limit and a column everywhere."""

import csv
import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from families.drawing import ALL_SPACES, choices
from prenas import artifacts, load, pipeline
from prenas.cost import AXES, CostAxis, count, register
from prenas.families import build_structure
from prenas.families.base import SearchSpace
from prenas.proxy.tables import cost_tables
from prenas.recipe import EvolutionRecipe
from prenas.recipe.budgets import parse_budgets
from prenas.rivals.evolution import evolve
from prenas.runs.status import read_status
from prenas.selection.exact import optimum
from prenas.selection.search import zero_cost_search
from prenas.selection.select import Candidates
from prenas.sources.transfer import read_source
from selection.brute import UNTIED, every_candidate, inside, ranking, tables_of
from test_cli import Command
from test_cli import prenas as prenas_command
from training.runs import MINI, mini_recipe

__all__ = ["prenas_command"]  # a fixture of another file

pytestmark = pytest.mark.pictures

ROOT = Path(__file__).resolve().parents[1]


def bytes_of(shapes: Any) -> int:
    """Of weights in which matrices take one byte an element, vectors four (as int8 networks do)."""
    return sum(math.prod(shape) * (1 if len(shape) > 1 else 4) for shape in shapes)


@pytest.fixture(scope="module")
def weight_bytes() -> Iterator[CostAxis]:
    """The axis of docs/extending.md, as the page adds it."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page.partition("## A cost axis")[2]
    exec(section.partition("```python\n")[2].partition("```")[0], {})
    yield AXES["bytes"]
    del AXES["bytes"]


@pytest.fixture(scope="module")
def run(weight_bytes: CostAxis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run whose budgets bound the new axis. Tests only read it."""
    out = tmp_path_factory.mktemp("third") / "run"
    pipeline.run(mini_recipe(search={"budgets": ("bytes=1200:3000:600",)}), out, device="cpu")
    return out


# --- in other processes --------------------------------------------------------------------------


def test_a_command_names_what_is_not_loaded_and_loads_it(
    run: Path, weight_bytes: CostAxis, prenas_command: Command, tmp_path: Path
) -> None:
    """A later command runs in a process that has not heard of the axis."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code = page.partition("## A cost axis")[2].partition("```python\n")[2].partition("```")[0]
    file = tmp_path / "bytes_axis.py"
    file.write_text(code)
    shutil.copytree(run, tmp_path / "run")
    del AXES["bytes"]
    try:
        refused = prenas_command("info", str(tmp_path / "run"))
        assert refused.status == 2
        assert "unknown budget axis 'bytes'" in refused.err
        assert "prenas --import FILE COMMAND" in refused.err
        assert "damaged" not in refused.err
        shown = prenas_command("--import", str(file), "info", str(tmp_path / "run"))
        assert shown.status == 0, shown.err
        assert "weights, kB" in shown.out
        missing = prenas_command("--import", "nowhere.py", "info")
        assert missing.status == 2
        assert "there is no Python file nowhere.py" in missing.err
    finally:
        AXES["bytes"] = weight_bytes


# --- counted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ALL_SPACES)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tables_and_networks_agree(
    space: SearchSpace, weight_bytes: CostAxis, data: st.DataObject
) -> None:
    """For any options of the layers, at every resolution."""
    picked, resolution = data.draw(choices(space)), data.draw(st.sampled_from(space.resolutions))
    arch = space.compose(picked, resolution)
    network = build_structure(arch, space.settings)
    expected = bytes_of(tuple(parameter.shape) for parameter in network.parameters())
    costs = count(arch, space)
    assert list(costs) == ["params", "macs", "relative_macs", "bytes"]
    assert costs["bytes"] == expected
    tables = cost_tables(space, resolution)
    assert tables.cost(picked).tolist() == [costs["params"], costs["macs"], expected]


# --- a budget ------------------------------------------------------------------------------------


def test_a_budget_reads_like_any_other(weight_bytes: CostAxis) -> None:
    budgets = parse_budgets(["bytes=12kB:20kB:4kB,params=6M", "bytes=1.5mb"]).kept
    assert [str(budget) for budget in budgets] == [
        "bytes in [12kB, 16kB), params <= 6M",
        "bytes in [16kB, 20kB), params <= 6M",
        "bytes <= 1.5MB",
    ]
    with pytest.raises(ValueError, match="write a number with kB or MB, such as 250kB or 6MB"):
        parse_budgets(["bytes=6M"])


BUDGETS = [
    {"bytes": 0.3},
    {"bytes": 0.7},
    {"bytes": 0.5, "macs": 0.4},
    {"bytes": 0.4, "params": 0.5},
    {"params": 0.5, "macs": 0.5, "bytes": 0.6},
]
"""Upper ends, as shares of all subnets that cost less; the lower end is a tenth below."""


@pytest.mark.parametrize("shares", BUDGETS, ids=lambda shares: "-".join(shares))
@pytest.mark.parametrize("free", [False, True], ids=["classes", "whole-space"])
def test_both_selectors_honour_it(
    shares: dict[str, float], free: bool, weight_bytes: CostAxis
) -> None:
    """Compared with every single subnet of a chain of five stages."""
    tables = tables_of.__wrapped__(UNTIED)
    every = every_candidate(tables, free=free)
    bounds = []
    for axis, share in shares.items():
        costs = np.sort([one.cost[axis] for one in every])
        low, high = (int(costs[int(place * len(costs))]) for place in (share / 10, share))
        bounds.append(f"{axis}={low}:{high}")
    (budget,) = parse_budgets([",".join(bounds)]).kept
    assert 0 < sum(inside(one, budget) for one in every) < len(every)
    expected = ranking(every, budget)
    if free:
        found = optimum(tables, budget)
        assert found is not None
        assert found.candidate.score == pytest.approx(expected[0].score, rel=1e-9)
        assert inside(found.candidate, budget)
    else:
        (best,) = Candidates(tables).best([budget], 3)
        assert [one.score for one in best] == pytest.approx([one.score for one in expected[:3]])
        assert all(inside(one, budget) for one in best)


def test_searches_and_evolution_honour_it(weight_bytes: CostAxis) -> None:
    """Over all 40 of the mini space: the evolved one is the best of those within."""
    (budget,) = parse_budgets(["bytes=1200:1800"]).kept
    preferred = zero_cost_search(mini_recipe(search={"budgets": ("bytes=1200:1800",)})).preferred
    assert 1200 <= preferred.subnets[0].costs["bytes"] < 1800
    every = {MINI.sample(np.random.default_rng(seed)) for seed in range(1000)}
    fitting = [arch for arch in every if budget.holds(count(arch, MINI))]
    assert 0 < len(fitting) < len(every) == 40
    recipe = EvolutionRecipe(generations=3)
    found = evolve(
        MINI, budget, lambda archs: [float(arch.id < "8") for arch in archs], recipe, seed=0
    )
    assert found.num_evaluated == len(fitting)
    best = min(
        fitting, key=lambda a: (a.id >= "8", count(a, MINI)["bytes"], *count(a, MINI).values())
    )
    assert (found.arch, found.costs) == (best, count(best, MINI))


# --- a column ------------------------------------------------------------------------------------


def test_its_amounts_are_in_every_file(run: Path) -> None:
    preferred, rows = pipeline.read_preferred(run), pipeline.evaluate(run)
    assert [1200 <= one.costs["bytes"] < 3000 for one in preferred.subnets] == [True] * 3
    sizes = [count(arch, MINI)["bytes"] for arch in preferred.archs]
    assert sizes == sorted(sizes)  # numbered by what the first budget bounds
    assert [row.costs["bytes"] for row in rows] == sizes
    with (run / "evaluation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:4] == ["subnet", "params", "macs", "bytes"]
    assert [int(line["bytes"]) for line in table] == sizes
    document = json.loads((run / "evaluation.json").read_text())
    assert [row["costs"]["bytes"] for row in document["subnets"]] == sizes
    models = [artifacts.read_json(path) for path in sorted(run.glob("subnets/*/arch.json"))]
    assert [model["provenance"]["costs"]["bytes"] for model in models] == sizes
    progress = read_status(run).progress
    assert progress is not None
    assert [each.costs["bytes"] for each in progress.validations] == sizes


def test_its_column_is_in_the_printed_tables(run: Path, prenas_command: Command) -> None:
    sizes = [one.costs["bytes"] for one in pipeline.read_preferred(run).subnets]
    for command in ("info", "evaluate"):
        result = prenas_command(command, run)
        assert result.status == 0
        assert re.search(r"params +MACs, M +weights, kB +architecture", result.out)
        for size in sizes:
            assert f"   {size / 1000:.4g}   " in result.out
    spaces = prenas_command("info", "digits").out
    assert "weights, kB" in spaces
    assert ", and from bytes=" in spaces


def test_its_column_and_picture_are_in_the_report(run: Path) -> None:
    text = (run / "report.md").read_text()
    assert "| subnet | params | MACs, M | weights, kB | architecture |" in text
    assert "against parameters, against MACs and against bytes of weights" in text
    for one in pipeline.read_preferred(run).subnets:
        assert f" | {one.costs['bytes'] / 1000:#.4g} | {one.arch.summary} |" in text
    picture = (run / "report" / "accuracy.svg").read_text()
    assert "bytes of weights" in picture
    assert "MACs per image" in picture


# --- a limit -------------------------------------------------------------------------------------


def test_it_limits_what_is_handed_over_and_fine_tuned(
    run: Path, prenas_command: Command, tmp_path: Path
) -> None:
    rows = pipeline.evaluate(run)
    most = rows[1].costs["bytes"]
    best = max(rows[:2], key=lambda row: (row.splits["validation"].top1, -row.costs["params"]))
    for limits in ({"bytes": most}, f"bytes={most}B", f"bytes={most / 1000}kB,params=1M"):
        folder = pipeline.specialize(run, limits=limits)
        assert artifacts.read_json(folder / "arch.json")["provenance"]["costs"] == best.costs
    load(folder)
    assert read_source(run, limits={"bytes": most}).archs == (best.arch,)
    result = prenas_command("specialize", run, "--max", f"bytes={most}", "--to", tmp_path / "to")
    assert f" MACs, {best.costs['bytes']:,} bytes of weights, validation" in result.out
    with pytest.raises(ValueError, match=r"satisfies bytes <= 10B\. The subnets are 0: bytes 1,"):
        pipeline.specialize(run, limits="bytes=10B")


# --- where it is not known -----------------------------------------------------------------------


def test_an_earlier_run_has_no_such_column(weight_bytes: CostAxis, tmp_path: Path) -> None:
    """The old run is read; choosing by the new axis is refused, and the message lists the axes."""
    golden = ROOT / "tests" / "golden" / "runs_0_1_0" / "preferred"
    earlier = shutil.copytree(golden, tmp_path / "run")
    assert [set(row.costs) for row in pipeline.evaluate(earlier)] == [{"params", "macs"}] * 2
    text = pipeline.report(earlier).read_text()
    assert "| subnet | params | MACs, M | architecture |" in text
    assert "against parameters and against MACs" in text
    with pytest.raises(ValueError, match=r"without the cost .bytes.: limit one of params"):
        pipeline.specialize(earlier, limits="bytes=3kB")


def test_without_the_axis_its_budgets_cannot_be_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(AXES, "bytes")
    with pytest.raises(ValueError, match=r"unknown budget axis 'bytes': available: macs, params"):
        pipeline.read_preferred(run)


def test_what_is_kept_of_tables_is_not_of_another_table(
    weight_bytes: CostAxis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts and tables are cached, but not across the addition or removal of an axis."""
    arch = MINI.largest
    with_it = count(arch, MINI), cost_tables(MINI).cost(MINI.extreme(-1))
    monkeypatch.delitem(AXES, "bytes")
    without = count(arch, MINI), cost_tables(MINI).cost(MINI.extreme(-1))
    assert set(with_it[0]) - set(without[0]) == {"bytes"}
    assert [len(with_it[1]), len(without[1])] == [3, 2]
    assert torch.equal(torch.tensor(with_it[1][:2]), torch.tensor(without[1]))


# --- axes that cannot work -----------------------------------------------------------------------


@contextmanager
def registered(of_part: Any) -> Iterator[CostAxis]:
    axis = CostAxis(name="odd", of_part=of_part, label="odd", noun="odd units")
    register(axis)
    try:
        yield axis
    finally:
        del AXES["odd"]


def test_costs_that_depend_on_the_rest_of_the_network_are_refused() -> None:
    """A search would otherwise record networks outside of their budgets."""
    smallest = count(MINI.smallest, MINI)["params"]
    with (
        registered(lambda part: part.arch.num_layers),
        pytest.raises(ValueError, match=r"was chosen as one of \d+ odd, but has \d+: .*`of_part`"),
    ):
        zero_cost_search(mini_recipe(search={"budgets": (f"params={smallest}",)}))


def test_an_axis_that_fails_is_named_with_the_remedy() -> None:
    with registered(lambda part: part.settings.of_another_family):
        message = "cost axis 'odd' fails on .*VitArch.* with AttributeError: .* `knows`"
        with pytest.raises(ValueError, match=message):
            count(MINI.largest, MINI)
    with registered(lambda part: 1 // 0) as axis:
        object.__setattr__(axis, "knows", lambda part: False)
        assert "odd" not in count(MINI.largest, MINI)
