"""Runs that release 0.1.0 made are read, and go on, with the numbers that their files hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edits import write_edited
from prenas import artifacts, load, pipeline
from prenas.evaluation.accuracy import Evaluation
from prenas.rivals.evolution import Evolved
from prenas.runs.status import read_status
from prenas.selection.preferred import ExactOptimum, PreferredSubnet
from prenas.sources.transfer import read_source

RUNS = Path(__file__).parents[1] / "golden" / "runs_0_1_0"


@pytest.fixture
def preferred_run(tmp_path: Path) -> Path:
    return shutil.copytree(RUNS / "preferred", tmp_path / "preferred")


@pytest.fixture
def evolved_run(tmp_path: Path) -> Path:
    return shutil.copytree(RUNS / "evolved", tmp_path / "evolved")


def stored(run: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / name).read_text())
    return document


def agrees(found: Any, entry: dict[str, Any]) -> bool:
    """Field by field with an entry of version 1, where costs were fields."""
    fields = json.loads(found.model_dump_json())
    costs = fields.pop("costs")
    assert set(costs) == {"params", "macs", "relative_macs"} & set(entry)
    return {**fields, **costs} == entry


def test_the_preferred_set_is_read(preferred_run: Path) -> None:
    document, found = (
        stored(preferred_run, "preferred.json"),
        pipeline.read_preferred(preferred_run),
    )
    assert document["schema_version"] == 1
    kinds: list[tuple[str, type[Any]]] = [("subnets", PreferredSubnet), ("optima", ExactOptimum)]
    for field, kind in kinds:
        entries = getattr(found, field)
        assert len(entries) == len(document[field]) == 2
        assert all(isinstance(entry, kind) for entry in entries)
        assert all(map(agrees, entries, document[field]))
    assert list(found.budgets) == document["budgets"]


@pytest.mark.parametrize("name", ["preferred", "evolved"])
def test_the_evaluation_is_read(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(f"{name}_run")
    rows, document = pipeline.evaluate(run), stored(run, "evaluation.json")
    assert [type(row) for row in rows] == [Evaluation] * 2
    assert all(map(agrees, rows, document["subnets"]))


def test_the_evolution_is_read_and_not_done_again(evolved_run: Path) -> None:
    before = (evolved_run / "evolution.json").read_bytes()
    found = pipeline.evolve(evolved_run)
    assert [type(one) for one in found] == [Evolved] * 2
    assert all(map(agrees, found, stored(evolved_run, "evolution.json")["budgets"]))
    assert (evolved_run / "evolution.json").read_bytes() == before


def test_an_evolution_goes_on_in_the_present_form(evolved_run: Path) -> None:
    """With the budget where it was cut off; what was found before stays as it is."""
    path = evolved_run / "evolution.json"
    whole = stored(evolved_run, path.name)
    write_edited(path, {**whole, "budgets": whole["budgets"][:1]})
    found = pipeline.evolve(evolved_run)
    document = stored(evolved_run, path.name)
    assert document["schema_version"] == 2
    assert [one["costs"]["params"] for one in document["budgets"]] == [1130, 1558]
    assert agrees(found[0], whole["budgets"][0])
    assert found[1].costs.items() >= {"params": 1558, "macs": 5224}.items()
    assert (found[1].accuracy, found[1].history) == (
        whole["budgets"][1]["accuracy"],
        tuple(whole["budgets"][1]["history"]),
    )


def test_the_status_is_read(preferred_run: Path, evolved_run: Path) -> None:
    status = read_status(preferred_run)
    assert status.problems == ()
    assert (status.num_subnets, status.num_models, status.hand_over) == (2, 2, "done")
    assert status.progress is not None
    assert [(v.subnet, v.costs, v.top1) for v in status.progress.validations] == [
        (0, {"params": 1826}, 0.5),
        (1, {"params": 2814}, 0.49444444444444446),
    ]
    status = read_status(evolved_run)
    assert status.problems == ()
    assert status.next_command == f"prenas specialize {evolved_run} --max-params 1558"


def test_the_report_is_written(preferred_run: Path, evolved_run: Path) -> None:
    text = pipeline.report(preferred_run).read_text()
    assert "best by validation is subnet 0 (1,826 parameters, 0.006704 M MACs)" in text
    assert "| subnet | params | MACs, M | architecture |" in text
    assert "| 1 | 2,814 | 0.01074 | 16 x 2, heads 1-2, ratio 1 |" in text
    assert "| 1 | 1,558 | 0.005224 |" in pipeline.report(evolved_run).read_text()


@pytest.mark.parametrize(
    ("choice", "number"),
    [({"index": 1}, 1), ({"limits": "params=2k"}, 0), ({"limits": {"macs": "11k"}}, 0)],
)
def test_subnets_are_handed_over(
    choice: dict[str, Any], number: int, preferred_run: Path, tmp_path: Path
) -> None:
    """Where they lie already, and anew: as the release wrote them, in the present form."""
    lies = preferred_run / "subnets" / f"{number:02d}"
    assert pipeline.specialize(preferred_run, **choice) == lies
    new = pipeline.specialize(preferred_run, **choice, to=tmp_path / "new")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (new, lies))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    before, after = (artifacts.read_json(folder / "arch.json") for folder in (lies, new))
    assert stored(lies, "arch.json")["schema_version"] == 1
    assert stored(new, "arch.json")["schema_version"] == 2
    assert after.pop("weights_sha256") == artifacts.carried_digest(new / "model.safetensors")
    del after["provenance"]["commit"]  # which the release did not record
    for document in (before, after):
        del document["provenance"]["versions"]
    assert before == after


@pytest.mark.parametrize("number", [0, 1])
def test_models_are_loaded(number: int, preferred_run: Path) -> None:
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network, _ = load(preferred_run / "subnets" / f"{number:02d}")
    supernet = pipeline.read_supernet(preferred_run, device="cpu")
    arch = pipeline.read_preferred(preferred_run).archs[number]
    torch.testing.assert_close(network(images), supernet(images, arch), rtol=0, atol=1e-6)


def test_a_run_and_a_model_are_fine_tuned(preferred_run: Path) -> None:
    archs = pipeline.read_preferred(preferred_run).archs
    assert read_source(preferred_run).archs == archs
    assert read_source(preferred_run, limits="params=2k").archs == archs[:1]
    assert read_source(preferred_run / "subnets" / "01").archs == archs[1:]


def test_a_search_that_is_asked_for_more_is_written_in_the_present_form(
    preferred_run: Path,
) -> None:
    before = pipeline.read_preferred(preferred_run)
    search = before.recipe.search.model_copy(update={"further_seeds": 2})
    recipe = before.recipe.model_copy(update={"search": search})
    after = pipeline.search(recipe, preferred_run, device="cpu")
    assert stored(preferred_run, "preferred.json")["schema_version"] == 2
    assert after.subnets == before.subnets
    assert [one.seed for one in after.agreement] == [1, 2]


def test_a_damaged_file_of_then_is_named(preferred_run: Path) -> None:
    path = preferred_run / "preferred.json"
    document = stored(preferred_run, path.name)
    subnets = document["subnets"]
    without_params = [{k: v for k, v in one.items() if k != "params"} for one in subnets]
    for damaged in (without_params, 3, [3], []):
        content = {**document, "subnets": damaged}
        write_edited(path, content)
        with pytest.raises(
            ValueError, match=r"preferred\.json is damaged or was not written by prenas"
        ):
            pipeline.read_preferred(preferred_run)
