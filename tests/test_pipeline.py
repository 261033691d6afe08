"""Runs: each step once, continued where it stopped, and never over somebody else's files."""

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from edits import write_edited
from prenas import pipeline
from prenas.artifacts import read_tensors, write_tensors
from prenas.cost import count
from prenas.data import ImageData
from prenas.evaluation.accuracy import Evaluation
from prenas.models import hand_over
from prenas.models.export import load
from prenas.processes import resolve_device
from prenas.recipe import Recipe, with_overrides
from prenas.runs.run import Run
from prenas.steps import choosing, measuring, training
from training.runs import (
    StoppedError,
    assert_same_tensors,
    assert_same_training,
    contents,
    hearing,
    mini_recipe,
    never,
    own_data,
    own_recipe,
    stop_at,
)

pytest_plugins = "training.runs"


def files(run: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file but the lock."""
    return {name: value for name, value in contents(run).items() if name != ".lock"}


WORK: dict[str, tuple[Any, str]] = {
    "search": (choosing, "zero_cost_search"),
    "train": (training, "train_supernet"),
    "evaluate": (measuring, "evaluate_archs"),
    "cut": (hand_over, "verified_cut"),
}


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every step's work an error."""
    for home, name in WORK.values():
        monkeypatch.setattr(home, name, never)


# --- once ----------------------------------------------------------------------------------------


def without_report(run: Path) -> dict[str, tuple[bytes, int]]:
    return {name: file for name, file in files(run).items() if not name.startswith("report")}


def test_a_finished_run_holds_what_it_promises(finished_run: Path) -> None:
    found = {name for name in files(finished_run) if not name.startswith("checkpoints")}
    assert found == {
        "recipe.json",
        "initial.safetensors",
        "preferred.json",
        "data.json",
        "metrics.jsonl",
        "supernet.safetensors",
        "evaluation.json",
        "evaluation.csv",
        "accuracy.png",
        *(
            f"subnets/{n:02d}/{name}"
            for n in range(3)
            for name in ("arch.json", "config.json", "model.safetensors")
        ),
        "report.md",
        "report.html",
        *(
            f"report/{name}.{ending}"
            for name in ("accuracy", "architectures", "block_scores", "confusion", "training")
            for ending in ("png", "svg")
        ),
    }
    versions = {"recipe.json": 1, "preferred.json": 2, "data.json": 1, "evaluation.json": 2}
    for name, version in versions.items():
        assert json.loads((finished_run / name).read_text())["schema_version"] == version
    documents = {
        path
        for path in finished_run.rglob("*.json")
        if path.name != "config.json"  # in timm's form
    }
    assert len(documents) == 7
    for path in documents:
        assert len(json.loads(path.read_text())["content_sha256"]) == 64, path


def test_a_finished_run_is_not_redone(
    finished: Path, finished_rows: list[Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither worked again nor written again, the report apart; and the answers are the same."""
    before = without_report(finished)
    supernet = pipeline.read_supernet(finished)
    forbid_work(monkeypatch)
    assert pipeline.run(mini_recipe(), finished) == finished_rows
    assert pipeline.search(mini_recipe(), finished) == pipeline.read_preferred(finished)
    again = pipeline.train(finished)
    assert_same_tensors(again.state_dict(), supernet.state_dict())
    assert not again.training
    assert pipeline.evaluate(finished) == finished_rows
    assert pipeline.specialize(finished, 1) == finished / "subnets" / "01"
    assert without_report(finished) == before


def test_run_is_its_steps_in_order(searched: Path, finished_run: Path) -> None:
    """Whether in one call or one by one."""
    trained = pipeline.train(searched)
    assert not any(module.training for module in trained.modules())
    rows = pipeline.evaluate(searched)
    for number in range(len(rows)):
        pipeline.specialize(searched, number)
    pipeline.report(searched)
    pipeline.page(searched)
    assert_same_training(searched, finished_run)
    ours, theirs = files(searched), files(finished_run)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if not name.endswith((".png", "metrics.jsonl", "state.pt", ".svg", ".md", ".html")):
            assert ours[name][0] == theirs[name][0], name


def test_a_whole_run_twice_from_scratch_is_the_same(tmp_path: Path, finished_run: Path) -> None:
    """The same preferred set, weights, evaluation and models, byte for byte."""
    torch.rand(7)
    pipeline.run(mini_recipe(), tmp_path / "again")
    assert_same_training(tmp_path / "again", finished_run)
    ours, theirs = files(tmp_path / "again"), files(finished_run)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith((".json", ".csv", ".safetensors")):
            assert ours[name][0] == theirs[name][0], name


@pytest.mark.parametrize("step", [1, 13, 27])
def test_an_unfinished_run_is_continued(
    step: int, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        pipeline.run(mini_recipe(), out, observer=hearing(steps=stop_at(step)))
    assert (out / "preferred.json").exists()
    assert not (out / "evaluation.json").exists()
    monkeypatch.setattr(choosing, "zero_cost_search", never)
    pipeline.run(mini_recipe(), out)
    assert_same_training(out, finished_run)
    for name in ("evaluation.json", "subnets/02/model.safetensors"):
        assert (out / name).read_bytes() == (finished_run / name).read_bytes()


@pytest.mark.parametrize(
    ("lost", "redone"),
    [
        (["evaluation.json"], "evaluate"),
        (["evaluation.json", "evaluation.csv", "accuracy.png"], "evaluate"),
        (["subnets/01/arch.json"], "cut"),
        (["subnets"], "cut"),
    ],
)
def test_only_what_is_missing_is_done(
    lost: list[str],
    redone: str,
    finished: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after an end between two files: each step's last file says that it is done."""
    for name in lost:
        path = finished / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    home, name = WORK[redone]
    work = getattr(home, name)
    forbid_work(monkeypatch)
    monkeypatch.setattr(home, name, work)
    pipeline.run(mini_recipe(), finished)
    for name, (content, _) in files(finished).items():
        if not name.endswith((".png", ".html")):  # a page names its folder
            assert content == (finished_run / name).read_bytes(), name


def test_a_search_cut_off_is_done_again(tmp_path: Path, searched_run: Path) -> None:
    """Weights are written before the set, so a folder without the set is not searched yet."""
    out = shutil.copytree(searched_run, tmp_path / "run")
    (out / "preferred.json").unlink()
    (out / "initial.safetensors").write_bytes(b"half a fi")
    (out / ".preferred.json.77.tmp").write_bytes(b"half a fi")
    pipeline.search(mini_recipe(), out)
    for name in ("preferred.json", "initial.safetensors"):
        assert (out / name).read_bytes() == (searched_run / name).read_bytes()
    assert not list(out.glob(".*.tmp"))


# --- somebody else's folder ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.epochs=4", "training.epochs: 3 -> 4"),
        ("seed=1", "seed: 0 -> 1"),
        ('search.budgets=["params=2k"]', 'search.budgets: ["params=1200:3400:700", "params=10k'),
        ("training.clip_grad_norm=none", "training.clip_grad_norm: "),
    ],
)
@pytest.mark.parametrize("step", [pipeline.search, pipeline.run])
def test_a_folder_of_another_recipe_is_refused(
    override: str, line: str, step: Callable[..., object], finished: Path
) -> None:
    """With the difference, and without touching anything."""
    before = contents(finished)
    with pytest.raises(ValueError, match="was made with another recipe") as caught:
        step(with_overrides(mini_recipe(), [override]), finished)
    assert line in str(caught.value)
    assert str(finished) in str(caught.value)
    assert "Nothing was changed" in str(caught.value)
    assert contents(finished) == before


def test_a_folder_with_foreign_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.txt").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is neither empty nor a run folder of prenas"):
        pipeline.search(mini_recipe(), tmp_path)
    monkeypatch.setattr(training, "prepare", never)  # reads the images
    with pytest.raises(ValueError, match="is neither empty nor a run folder of prenas"):
        pipeline.run(mini_recipe(), tmp_path)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_an_empty_or_new_folder_is_taken(tmp_path: Path) -> None:
    for out in (tmp_path / "new" / "deep", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert pipeline.search(mini_recipe(), str(out)) == pipeline.read_preferred(out)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file: give a folder"):
        pipeline.search(mini_recipe(), tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot write to .*file/run"):
        pipeline.search(mini_recipe(), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_refuses_files_is_found_out_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its permissions look right: the first file fails."""

    def deny(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(choosing, "zero_cost_search", never)
    monkeypatch.setattr(Path, "write_text", deny)
    with pytest.raises(ValueError, match=r"cannot write to .*run \(Permission denied\): choose"):
        pipeline.search(mini_recipe(), tmp_path / "run")


@pytest.fixture
def lock() -> Any:
    """Holds the lock of a run folder, as another process would."""
    held = []

    def take(run: Path) -> None:
        file = (run / ".lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(file)

    yield take
    for file in held:
        file.close()


def test_a_folder_in_use_is_refused(
    searched: Path, finished: Path, lock: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished / "evaluation.json").unlink()
    lock(searched)
    lock(finished)
    before = files(searched), files(finished)
    for action in (
        lambda: pipeline.search(mini_recipe(), searched),
        lambda: pipeline.train(searched),
        lambda: pipeline.run(mini_recipe(), searched),
        lambda: pipeline.evaluate(finished),
        lambda: pipeline.specialize(finished, 0, to=finished.parent / "model"),
    ):
        with pytest.raises(ValueError, match=r"another process is working on .*: wait for it"):
            action()
    assert (files(searched), files(finished)) == before


def test_a_folder_is_free_again_afterwards(searched: Path, lock: Callable[[Path], None]) -> None:
    """After success and after an interruption."""
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(3)))
    pipeline.search(mini_recipe(), searched)
    lock(searched)


# --- steps out of order --------------------------------------------------------------------------

STEPS: dict[str, Callable[[Path], object]] = {
    "train": pipeline.train,
    "evaluate": pipeline.evaluate,
    "specialize": lambda out: pipeline.specialize(out, 0),
    "read_preferred": pipeline.read_preferred,
    "read_supernet": pipeline.read_supernet,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("exists", [False, True])
def test_before_the_search_the_command_is_named(step: str, exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if exists:
        out.mkdir()
    with pytest.raises(ValueError, match=r"preferred\.json is missing.*run `prenas search RECIPE"):
        STEPS[step](out)
    assert out.exists() is exists
    assert list(tmp_path.rglob("*/*")) == []


@pytest.mark.parametrize("step", ["evaluate", "specialize", "read_supernet"])
def test_before_the_training_the_command_is_named(step: str, searched: Path) -> None:
    before = files(searched)
    with pytest.raises(
        ValueError, match=f"no trained supernet.*run `prenas train {searched}` first"
    ):
        STEPS[step](searched)
    assert files(searched) == before


def test_a_recipe_that_only_searches_does_not_train(tmp_path: Path) -> None:
    recipe = mini_recipe().model_copy(update={"training": None})
    pipeline.search(recipe, tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(ValueError, match=r"recipe 'mini' only searches.*prenas info"):
        pipeline.train(tmp_path / "run")
    assert files(tmp_path / "run") == before


# --- own data ------------------------------------------------------------------------------------


def test_own_data_go_all_the_way(tmp_path: Path) -> None:
    recipe = own_recipe(num_classes=12, search={"images": "data"}, training={"epochs": 1})
    data, out = own_data(num_classes=12), tmp_path / "run"
    rows = pipeline.run(recipe, out, data=data)
    assert pipeline.evaluate(out, data=data) == rows
    description = json.loads((out / "subnets" / "00" / "arch.json").read_text())
    assert description["class_names"] == [f"class {number}" for number in range(12)]
    assert load(out / "subnets" / "00").network(torch.randn(1, 1, 8, 8)).shape == (1, 12)


def test_own_data_of_another_number_are_not_the_runs(tmp_path: Path) -> None:
    """Nothing else is known of data from Python."""
    out, data = tmp_path / "run", own_data()
    pipeline.search(own_recipe(training={"epochs": 2}), out)
    with pytest.raises(StoppedError):
        pipeline.train(out, data=data, observer=hearing(steps=stop_at(1)))
    before = files(out)
    with pytest.raises(ValueError, match="was started with 40 train images, and these are 60"):
        pipeline.train(out, data=own_data(num_images=60))
    assert files(out) == before
    pipeline.train(out, data=data)
    larger = ImageData(data.train, own_data(num_images=80).validation, None, data.class_names)
    pipeline.evaluate(out, data=larger)
    assert not (out / "evaluation.json").exists()
    pipeline.evaluate(out, data=data)
    assert pipeline.specialize(out, np.int64(1), data=data) == out / "subnets" / "01"


def test_without_a_test_split_a_run_goes_all_the_way(tmp_path: Path) -> None:
    data = own_data()
    without = ImageData(data.train, data.validation, None, data.class_names)
    rows = pipeline.run(own_recipe(training={"epochs": 1}), tmp_path / "run", data=without)
    assert [list(row.splits) for row in rows] == [["validation"]] * 3


@pytest.mark.parametrize("step", ["train", "evaluate", "specialize"])
def test_own_data_must_be_passed_to_every_step(step: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipeline.search(own_recipe(training={"epochs": 1}), out)
    if step != "train":
        pipeline.train(out, data=own_data())
    if step == "specialize":
        pipeline.evaluate(out, data=own_data())
    before = files(out)
    with pytest.raises(ValueError, match=r"data passed from Python: pass data=prenas\.ImageData"):
        STEPS[step](out)
    assert files(out) == before


def test_own_data_do_not_replace_a_recipes_own(searched: Path) -> None:
    with pytest.raises(
        ValueError, match=r"recipe 'mini' loads 'digits' itself, but data were passed"
    ):
        pipeline.train(searched, data=own_data())


def test_more_classes_than_the_head_has_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipeline.search(own_recipe(num_classes=10), out)
    with pytest.raises(
        ValueError, match=r"12 classes, but the network has 10 outputs.*num_classes=12"
    ):
        pipeline.train(out, data=own_data(num_classes=12))


def test_a_recipe_without_data_says_so(tmp_path: Path) -> None:
    recipe = own_recipe(in_chans=3).model_copy(update={"data": None})
    out = tmp_path / "run"
    pipeline.search(recipe, out)
    with pytest.raises(ValueError, match=r"recipe 'mini' names no data.*pass data="):
        pipeline.train(out)
    pipeline.train(out, data=own_data(in_chans=3))


def test_images_that_do_not_fit_are_found_at_once(tmp_path: Path) -> None:
    """Before the first step, in words."""
    out = tmp_path / "run"
    pipeline.search(own_recipe(), out)
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\).* \(batch, 1, 8, 8\)"):
        pipeline.train(out, data=own_data(in_chans=3), observer=hearing(steps=never))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_split_that_is_no_use_is_found_before_training(
    split: str, tmp_path: Path
) -> None:
    """An empty split after days of training would be a poor joke."""
    data = own_data()
    empty = TensorDataset(torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.long))
    splits = {"validation": data.validation, "test": data.test, split: empty}
    broken = ImageData(data.train, splits["validation"], splits["test"], data.class_names)
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="empty"):
        pipeline.run(own_recipe(training={"epochs": 1}), out, data=broken)
    assert not (out / "supernet.safetensors").exists()


def test_a_loader_that_gives_nothing_is_found_before_training(tmp_path: Path) -> None:
    """Its data set is not empty, yet dropping the last batch leaves none."""
    data = own_data()
    loader = DataLoader(data.validation, batch_size=64, drop_last=True)  # type: ignore[arg-type]
    broken = ImageData(data.train, loader, None, data.class_names)
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="empty"):
        pipeline.run(own_recipe(training={"epochs": 1}), out, data=broken)
    assert not (out / "supernet.safetensors").exists()


# --- damage --------------------------------------------------------------------------------------


def drop(field: str) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        document = json.loads(path.read_text())
        del document[field]
        write_edited(path, document)

    return apply


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def newer(path: Path) -> None:
    document = json.loads(path.read_text())
    write_edited(path, {**document, "schema_version": document["schema_version"] + 1})


def read_run(run: Path) -> None:
    """Everything that reads a finished run."""
    pipeline.run(mini_recipe(), run)
    pipeline.train(run)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(name, damage, id=f"{name}-{label}")
        for name, fields in (
            ("recipe.json", ["recipe"]),
            ("preferred.json", ["subnets", "choices", "budgets"]),
            ("evaluation.json", ["family", "subnets"]),
        )
        for label, damage in (
            ("cut-short", halve),
            ("empty", replace(b"")),
            ("foreign", replace(b'{"name": "my-package", "version": "1.0"}')),
            ("newer", newer),
            ("bare", replace(b'{"schema_version": 1}')),
            *((f"without-{field}", drop(field)) for field in fields),
        )
    ],
)
def test_a_damaged_description_is_refused_by_name(
    name: str, damage: Callable[[Path], object], finished: Path
) -> None:
    """One ValueError that names the file: no KeyError, no page of a library's own words."""
    damage(finished / name)
    before = files(finished)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_run(finished)
    assert str(finished / name) in str(caught.value)
    assert files(finished) == before


def put(keys: Sequence[Any], value: object, document: Any) -> None:
    """Replaces the value at the end of a path of keys."""
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(
            "preferred.json",
            lambda d: d["subnets"][0].pop("arch"),
            id="preferred-subnet-without-arch",
        ),
        pytest.param(
            "preferred.json",
            lambda d: d["subnets"][0]["arch"].update(embed_dim=-1),
            id="preferred-negative-width",
        ),
        pytest.param(
            "preferred.json",
            lambda d: d["choices"][0].update(subnet="first"),
            id="preferred-choice-of-a-word",
        ),
        pytest.param("preferred.json", lambda d: d.update(subnets=[]), id="preferred-no-subnets"),
        pytest.param(
            "recipe.json", lambda d: d["recipe"].update(colour="red"), id="recipe-unknown-field"
        ),
        pytest.param("recipe.json", lambda d: d.update(recipe=[]), id="recipe-recipe-is-a-list"),
        pytest.param(
            "evaluation.json",
            lambda d: d["subnets"][0].pop("splits"),
            id="evaluation-row-without-splits",
        ),
        pytest.param(
            "evaluation.json",
            lambda d: d["subnets"][0]["arch"].update(embed_dim=-1),
            id="evaluation-negative-width",
        ),
        pytest.param(
            "evaluation.json", lambda d: d.update(family="mlp"), id="evaluation-unknown-family"
        ),
        *(
            pytest.param(name, partial(put, keys, value), id=f"{name}-{keys[-1]}-{str(value)[:9]}")
            for name, keys, value in (
                ("evaluation.json", ["subnets"], []),
                ("evaluation.json", ["subnets", 0], None),
                ("evaluation.json", ["subnets", 0, "splits"], {}),
                ("evaluation.json", ["subnets", 0, "splits", "test", "top1"], 7),
                ("evaluation.json", ["subnets", 0, "splits", "test", "num_images"], True),
                ("evaluation.json", ["subnets", 0, "costs"], {}),
                ("evaluation.json", ["subnets", 0, "costs", "params"], 10**400),
                ("preferred.json", ["choices"], []),
                ("preferred.json", ["choices", 0, "budget"], 99),
                ("preferred.json", ["choices", 0, "subnet"], 99),
                ("preferred.json", ["empty_budgets"], [99]),
                ("preferred.json", ["block_scores"], 5),
                ("preferred.json", ["block_scores", "mlp_ratio", 0], 5),
                ("preferred.json", ["subnets", 0, "costs", "params"], -1),
                ("recipe.json", ["recipe", "seed"], True),
                ("recipe.json", ["recipe", "space", "settings", "image_size"], [8000, 8000]),
                ("data.json", ["class_names"], "0123456789"),
                ("data.json", ["class_names"], [*range(10)]),
                ("data.json", ["num_images", "train"], 1e400),
                ("data.json", ["num_images"], [1, 2]),
                ("data.json", ["notes"], "a note"),
                ("data.json", ["fingerprint"], 3),
            )
        ),
    ],
)
def test_a_wrong_field_is_refused_by_file_name(
    name: str, change: Callable[[Any], object], finished: Path
) -> None:
    path = finished / name
    document = json.loads(path.read_text())
    change(document)
    write_edited(path, document)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_run(finished)
    assert str(path) in str(caught.value)
    assert "' object " not in str(caught.value)  # as Python says it of a wrong type


@pytest.mark.parametrize("damage", [halve, replace(b""), replace(b"hello" * 99)])
def test_damaged_weights_are_refused_by_name(
    damage: Callable[[Path], object], searched: Path, finished: Path
) -> None:
    damage(searched / "initial.safetensors")
    with pytest.raises(
        ValueError, match=r"searched/initial\.safetensors is not a readable safetensors"
    ):
        pipeline.train(searched)
    damage(finished / "supernet.safetensors")
    with pytest.raises(ValueError, match=r"finished/supernet\.safetensors is not a readable"):
        pipeline.train(finished)


def test_missing_or_foreign_weights_are_refused_by_name(searched: Path, finished: Path) -> None:
    shutil.copy(finished / "subnets" / "00" / "model.safetensors", searched / "initial.safetensors")
    with pytest.raises(
        ValueError, match=r"initial\.safetensors does not contain the weights of this"
    ):
        pipeline.train(searched)
    (searched / "initial.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"initial\.safetensors does not exist.*restore it"):
        pipeline.train(searched)
    shutil.copy(
        finished / "subnets" / "00" / "model.safetensors", finished / "supernet.safetensors"
    )
    with pytest.raises(ValueError, match=r"supernet\.safetensors does not contain the weights"):
        pipeline.read_supernet(finished)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("data", {"name": "folder", "root": "/nowhere"}, r"/nowhere .* named in \S+recipe\.json"),
        ("space", {"mlp_ratio": [1.0, 3.0]}, r"initial\.safetensors does .* from \S+recipe\.json"),
    ],
)
def test_a_recipe_that_was_edited_is_named(
    part: str, change: dict[str, Any], words: str, searched: Path
) -> None:
    path = searched / "recipe.json"
    document = json.loads(path.read_text())
    document["recipe"][part] |= change
    write_edited(path, document)
    with pytest.raises(ValueError, match=words):
        pipeline.train(searched)


# --- devices -------------------------------------------------------------------------------------


def test_auto_takes_what_is_there() -> None:
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert resolve_device("auto").type == (expected.type if expected else "cpu")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["quantum", "cuda:99", "", "gpu", "meta"])
def test_an_unknown_device_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"device {name!r} does not exist on this machine: choose auto, cpu"
    ):
        pipeline.search(mini_recipe(), tmp_path / "run", device=name)
    assert not (tmp_path / "run").exists()


def test_a_recipe_is_kept_as_it_was_given(finished_run: Path) -> None:
    from prenas.recipe import recipe_from_dict

    kept = json.loads((finished_run / "recipe.json").read_text())["recipe"]
    assert isinstance(recipe_from_dict(kept), Recipe)
    assert recipe_from_dict(kept) == mini_recipe()


# --- results that belong together ----------------------------------------------------------------


def test_results_of_other_weights_are_refused(finished: Path) -> None:
    """After the supernet has changed, its old evaluation and models are not handed out."""
    path = finished / "supernet.safetensors"
    weights = {name: 0.5 * tensor for name, tensor in read_tensors(path).items()}
    write_tensors(path, weights)
    with pytest.raises(ValueError, match=r"belongs to other weights than .*, remove it"):
        pipeline.specialize(finished, 0)
    (finished / "evaluation.json").unlink()
    pipeline.evaluate(finished)
    with pytest.raises(ValueError, match=r"was handed over from other weights than .*: remove it"):
        pipeline.specialize(finished, 0)
    shutil.rmtree(finished / "subnets")
    folder = pipeline.specialize(finished, 0)
    head = read_tensors(folder / "model.safetensors")["head.weight"]
    assert torch.equal(head, weights["head.weight"][:, : head.shape[1]])


def test_a_model_without_its_weights_is_refused(finished: Path) -> None:
    (finished / "subnets" / "00" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is not complete"):
        pipeline.specialize(finished, 0)


def test_more_seeds_can_be_asked_of_a_finished_search(searched_run: Path, tmp_path: Path) -> None:
    """They only report: what was chosen, and the weights, stay as they are."""
    out = tmp_path / "run"
    shutil.copytree(searched_run, out)
    before = pipeline.read_preferred(out)
    weights = (out / "initial.safetensors").read_bytes()
    more = with_overrides(before.recipe, ["search.further_seeds=2"])
    after = pipeline.search(more, out)
    assert [seed.seed for seed in after.agreement] == [
        before.recipe.seed + 1,
        before.recipe.seed + 2,
    ]
    assert (after.subnets, after.choices) == (before.subnets, before.choices)
    assert (out / "initial.safetensors").read_bytes() == weights
    assert pipeline.search(before.recipe, out).agreement == after.agreement


def test_the_exact_optimum_can_be_asked_of_a_finished_search(
    searched_run: Path, tmp_path: Path
) -> None:
    """It only reports, and is kept when more seeds are asked for afterwards."""
    out = tmp_path / "run"
    shutil.copytree(searched_run, out)
    before = pipeline.read_preferred(out)
    assert before.optima == ()
    more = with_overrides(before.recipe, ["search.exact_optimum=true"])
    after = pipeline.search(more, out)
    held = [n for n in range(len(before.budgets)) if n not in before.empty_budgets]
    assert [found.budget for found in after.optima] == held
    for found in after.optima:
        cost = count(found.arch, before.recipe.space.settings)
        assert found.costs == cost
        (best,) = (
            before.subnets[choice.subnet]
            for choice in before.choices
            if choice.budget == found.budget and choice.rank == 0
        )
        assert best.score is not None
        assert found.gap is not None
        assert 0 <= found.gap < 0.1
        assert found.unproven == 0
        assert found.score * (1 - found.gap) == pytest.approx(best.score, rel=1e-9)
    assert (after.subnets, after.choices) == (before.subnets, before.choices)
    seeds = with_overrides(before.recipe, ["search.further_seeds=1"])
    assert pipeline.search(seeds, out).optima == after.optima


def test_more_seeds_are_kept_when_the_exact_optimum_is_asked_for(
    searched_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(searched_run, out)
    recipe = pipeline.read_preferred(out).recipe
    seeds = pipeline.search(with_overrides(recipe, ["search.further_seeds=2"]), out)
    both = pipeline.search(with_overrides(recipe, ["search.exact_optimum=true"]), out)
    assert both.agreement == seeds.agreement
    assert both.optima
    asked = both.recipe.search
    assert (asked.further_seeds, asked.exact_optimum) == (2, True)
    assert pipeline.read_preferred(out) == both


def test_other_data_are_evaluated_and_only_returned(tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", own_recipe(training={"epochs": 1})
    pipeline.run(recipe, out, data=own_data())
    stored = (out / "evaluation.json").read_bytes()
    data = own_data()
    half = dataclasses.replace(data, validation=Subset(data.validation, range(7)), test=None)  # type: ignore[arg-type]
    rows = pipeline.evaluate(out, data=half)
    assert {name: split.num_images for name, split in rows[0].splits.items()} == {"validation": 7}
    assert (out / "evaluation.json").read_bytes() == stored


@pytest.mark.parametrize(
    "overrides", [["data.name=digit"], ["space.settings.num_classes=5"], ["training=null"]]
)
def test_a_run_that_cannot_be_trained_does_not_begin(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        pipeline.run(with_overrides(mini_recipe(), overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_shuffling_loader_is_repeatable(tmp_path: Path) -> None:
    """Its order comes from the recipe's seed, not from the global generator."""
    weights = []
    for number in (1, 2):
        torch.manual_seed(number)
        data = own_data()
        shuffled = dataclasses.replace(
            data, train=DataLoader(data.train, batch_size=8, shuffle=True)
        )  # type: ignore[arg-type]
        out = tmp_path / str(number)
        pipeline.search(own_recipe(training={"epochs": 1}), out)
        pipeline.train(out, data=shuffled)
        weights.append((out / "supernet.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_process_that_lives_on_does_not_keep_the_lock(finished: Path) -> None:
    """Forked loader processes inherit the open lock file; the step that made them is over."""
    import signal

    with Run(finished, mini_recipe()).locked():
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with Run(finished, mini_recipe()).locked():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
