"""A run opened once: what it reads, when it reads again, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prenas
from edits import replace_text, write_edited
from prenas import artifacts, pipeline
from prenas.evaluation.accuracy import Evaluation
from prenas.recipe import Recipe, with_overrides
from prenas.runs.lock import held
from prenas.runs.run import Run
from prenas.runs.status import read_status
from prenas.steps import measuring, training
from test_pipeline_convolutional import recipe_of as conv_recipe
from training.runs import (
    assert_same_tensors,
    contents,
    hearing,
    mini_recipe,
    never,
    own_data,
    own_recipe,
)

pytest_plugins = "training.runs"


# --- reading -------------------------------------------------------------------------------------


def test_a_run_is_read_from_python(finished: Path, finished_rows: list[Evaluation]) -> None:
    before = contents(finished)
    (finished / ".lock").unlink(missing_ok=True)
    run = prenas.Run(finished)
    assert run.recipe == mini_recipe()
    assert run.evaluations == finished_rows
    assert run.subnets is run.preferred
    assert tuple(row.arch for row in run.evaluations) == run.preferred.archs
    assert run.class_names == tuple("0123456789")
    assert run.supernet(torch.zeros(2, 1, 8, 8), run.preferred.archs[0]).shape == (2, 10)
    assert contents(finished) == before
    assert not (finished / ".lock").exists()  # reading locks nothing


def test_it_reads_while_another_process_trains(searched: Path) -> None:
    seen = []

    def look(progress: Any) -> None:
        if progress.step == 12:
            seen.append(Run(searched).preferred)

    pipeline.train(searched, observer=hearing(steps=look))
    assert seen == [Run(searched).preferred]


def test_what_is_not_there_is_said_with_the_command(searched: Path, tmp_path: Path) -> None:
    nowhere = Run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"recipe\.json is missing.*run `prenas search RECIPE"):
        _ = nowhere.recipe
    with pytest.raises(ValueError, match=r"preferred\.json is missing.*run `prenas search RECIPE"):
        _ = nowhere.preferred
    run = Run(searched)
    with pytest.raises(ValueError, match=f"run `prenas train {searched}` first"):
        _ = run.supernet
    with pytest.raises(
        ValueError, match=f"not been evaluated yet.*run `prenas evaluate {searched}`"
    ):
        _ = run.evaluations
    assert (run.class_names, run.supernet_sha256, run.results.calibration) == (None, None, None)
    is_done = [run.is_trained, run.results.are_calibrated, run.is_evaluated, run.is_imported]
    assert not any(is_done)


def test_a_file_is_read_again_only_after_it_has_changed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read_json = artifacts.read_json
    monkeypatch.setattr(
        artifacts,
        "read_json",
        lambda path, **options: reads.append(path.name) or read_json(path, **options),
    )
    run = Run(finished)
    rows = run.evaluations
    assert run.evaluations == rows
    assert reads.count("evaluation.json") == 1
    path = finished / "evaluation.json"
    document = json.loads(path.read_text())
    document["subnets"][0]["splits"]["test"]["top1"] = 0.25
    write_edited(path, document)
    assert run.evaluations[0].splits["test"].top1 == 0.25
    assert reads.count("evaluation.json") == 2
    path.unlink()
    assert not run.is_evaluated
    with pytest.raises(ValueError, match="not been evaluated yet"):
        _ = run.evaluations


@pytest.mark.parametrize("recipe", [mini_recipe(), conv_recipe()], ids=["transformer", "conv"])
def test_what_a_run_keeps_is_what_it_would_read(recipe: Recipe, tmp_path: Path) -> None:
    """The recipe, the preferred set, the images and the weights, to the bit; without drops."""
    run = Run(tmp_path / "run", recipe)
    needs = training.prepare(run)
    pipeline.search(recipe, tmp_path / "run")
    kept = training.train(run, needs=needs)
    again = Run(tmp_path / "run")
    assert (run.recipe, run.preferred) == (again.recipe, again.preferred)
    assert run.images.recorded == again.images.recorded
    assert kept is run.supernet
    assert_same_tensors(kept.network.state_dict(), again.supernet.network.state_dict())
    assert kept.drop_path_rates == again.supernet.drop_path_rates
    assert not any(module.training for module in kept.modules())
    for ours, theirs in zip(
        kept.network.parameters(), again.supernet.network.parameters(), strict=True
    ):
        assert ours.stride() == theirs.stride()
        assert ours.grad is None


# --- belonging together --------------------------------------------------------------------------


def test_a_run_of_another_recipe_is_not_opened(searched: Path) -> None:
    before = contents(searched)
    with pytest.raises(ValueError, match=r"was made with another recipe[^$]*seed: 0 -> 1"):
        Run(searched, with_overrides(mini_recipe(), ["seed=1"]))
    assert contents(searched) == before
    more = with_overrides(mini_recipe(), ["training.keep_checkpoints=5"])
    assert Run(searched, more).recipe == more


def test_the_recipe_is_looked_at_again_under_the_lock(tmp_path: Path) -> None:
    """Two processes that begin different runs in a new folder: the second one is refused."""
    first, second = (Run(tmp_path / "run", mini_recipe(seed=seed)) for seed in (0, 1))
    first.record_recipe(first.recipe)
    with pytest.raises(ValueError, match="was made with another recipe"), second.locked():
        pass


def test_a_new_run_among_images_of_a_relative_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "train").mkdir(parents=True)
    for changes in (["data.root=photos"], ["data.root=photos", "data.train=train"]):
        absolute = with_overrides(mini_recipe(), ["data.name=folder", *changes])
        assert absolute.data is not None
        relative = absolute.data.model_copy(update={"root": "photos"})
        for recipe, root in (
            (absolute, f"{tmp_path.resolve()}/photos"),
            (absolute.model_copy(update={"data": relative}), "photos"),
        ):
            with pytest.raises(ValueError, match=f"lies among the images in {root}"):
                Run("photos/train/run", recipe)
    assert not (tmp_path / "photos" / "train" / "run").exists()


def test_a_new_run_among_its_images_is_refused_before_it_leaves_anything(tmp_path: Path) -> None:
    """Its folder, with a lock in it, was refused as a class without pictures, ever after."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for field in ("root", "train"):
        recipe = with_overrides(mini_recipe(), ["data.name=folder", f"data.{field}={photos}"])
        for out in (photos, photos / "run", photos / "cat" / ".." / "run"):
            with pytest.raises(
                ValueError, match=rf"{out} lies among the images in {photos}, where"
            ):
                Run(out, recipe)
        Run(tmp_path / "photos-run", recipe)
    assert contents(photos) == {}
    (photos / "run").mkdir()
    artifacts.write_json(photos / "run/recipe.json", {"recipe": recipe.model_dump(mode="json")})
    assert Run(photos / "run", recipe).recipe == recipe  # one that is there goes on


def test_the_lock_may_be_taken_again_inside(searched: Path) -> None:
    run = Run(searched)
    ask = (
        "import sys; from pathlib import Path; from prenas.runs.lock import is_held\n"
        "print(is_held(Path(sys.argv[1])))"
    )

    def is_held() -> bool:
        result = subprocess.run(
            [sys.executable, "-c", ask, searched], capture_output=True, text=True, check=True
        )
        return result.stdout == "True\n"

    with run.locked():
        with run.locked(), run.on(own_data()).locked():
            pass
        assert is_held()
    assert not is_held()


@pytest.mark.parametrize(
    ("result", "name", "advice"),
    [
        (
            lambda run: run.evaluations,
            "evaluation.json",
            "to evaluate and hand over again, remove it, and subnets/ in the same folder",
        ),
        (
            lambda run: run.results.calibration,
            "calibration.json",
            "to calibrate again, remove it, and evaluation.json and subnets/ in the same folder",
        ),
        (
            lambda run: run.results.evolved,
            "evolution.json",
            "to evolve again, remove it, and evaluation.json and subnets/ in the same folder",
        ),
    ],
)
def test_results_of_other_weights_are_refused_in_one_way(
    result: Callable[[Run], object], name: str, advice: str, tmp_path: Path
) -> None:
    evolution = {"population": 3, "generations": 1, "num_parents": 1}
    recipe = conv_recipe(training={"epochs": 1, "optimizer": "sgd"}, evolution=evolution)
    recipe = with_overrides(recipe, ["calibration.while_evolving=64"])
    pipeline.run(recipe, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert result(run)
    path = tmp_path / "run" / "supernet.safetensors"
    weights = {name: 0.5 * tensor for name, tensor in artifacts.read_tensors(path).items()}
    artifacts.write_tensors(path, weights)
    with pytest.raises(ValueError, match=f"{name} belongs to other weights than .*{advice}") as e:
        result(run)  # the same object notices
    assert str(path) in str(e.value)
    path.unlink()
    assert result(run)  # as for a report, once the weights are gone


# --- images --------------------------------------------------------------------------------------


def test_images_are_read_once_and_anew_to_hold_more(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prenas.runs import images

    held: list[tuple[str, ...]] = []
    load = images.load_data
    monkeypatch.setattr(
        images, "load_data", lambda *args, hold: held.append(tuple(hold)) or load(*args, hold=hold)
    )
    run = Run(finished)
    assert run.images.read(hold=("validation",)) is run.images.read(hold=())
    assert run.images.read_few() is run.images.read(hold=())
    run.images.read()
    run.images.read(hold=("test",))
    assert held == [("validation",), ("train", "validation", "test")]


def test_the_same_run_on_other_images(tmp_path: Path) -> None:
    data = own_data()
    out = tmp_path / "run"
    pipeline.search(own_recipe(), out)
    run = Run(out, data=data)
    assert run.images.read() is data
    other = run.on(None)
    assert other.preferred is run.preferred
    with pytest.raises(ValueError, match="data passed from Python"):
        other.images.read()
    assert run.images.read() is data


# --- one recipe ----------------------------------------------------------------------------------

RELEASE = Path(__file__).parents[1] / "golden" / "runs_0_1_0" / "preferred"


def test_the_recipe_stands_in_one_file(searched: Path) -> None:
    """What changes there is what every step sees."""
    assert "recipe" not in json.loads((searched / "preferred.json").read_text())
    run = Run(searched)
    assert run.preferred.recipe == mini_recipe()
    document = json.loads((searched / "recipe.json").read_text())
    document["recipe"]["training"]["keep_checkpoints"] = 7
    write_edited(searched / "recipe.json", document)
    assert run.preferred.recipe.training == mini_recipe(training={"keep_checkpoints": 7}).training
    (searched / "recipe.json").unlink()
    with pytest.raises(ValueError, match=r"recipe\.json is missing: restore it"):
        _ = run.preferred
    assert "recipe.json is missing: restore it" in read_status(searched).problems[0]


def test_a_run_of_0_1_0_repeats_its_recipe_and_may_not_contradict_it(tmp_path: Path) -> None:
    out = shutil.copytree(RELEASE, tmp_path / "run")
    path = out / "preferred.json"
    document = json.loads(path.read_text())
    assert Run(out).preferred.recipe.model_dump(mode="json") == Run(out).recipe.model_dump(
        mode="json"
    )
    document["recipe"]["training"]["keep_checkpoints"] = 9  # decides nothing
    write_edited(path, document)
    assert Run(out).preferred.recipe == Run(out).recipe
    document["recipe"]["seed"] = 77
    write_edited(path, document)
    with pytest.raises(
        ValueError, match=r"preferred\.json .*differs from that in recipe\.json \(seed: 0"
    ):
        _ = Run(out).preferred


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        (
            "recipe.json",
            '"budgets": [',
            '"budgets": ["params=900", ',
            "subnet 0 was chosen for params .* budget 0, params <= 900",
        ),
    ],
)
def test_a_search_and_its_recipe_contradict_each_other_if_one_was_edited(
    name: str, before: str, after: str, words: str, finished: Path
) -> None:
    """A table would otherwise show other budgets or costs than the subnets have."""
    replace_text(finished / name, before, after)
    for read in (lambda: Run(finished).preferred, lambda: pipeline.report(finished)):
        with pytest.raises(ValueError, match=rf"preferred\.json .*{words}.*from a copy"):
            read()


def test_what_another_process_works_on_is_refused_before_time_is_spent(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "evaluate_archs", never)
    (finished / "evaluation.json").unlink()
    with held(finished), pytest.raises(ValueError, match="another process is working on"):
        pipeline.evaluate(finished)


# --- nothing outside the folder ------------------------------------------------------------------


def test_a_lock_that_is_a_link_is_not_followed(finished: Path, tmp_path: Path) -> None:
    """Its target would be overwritten with the number of a process."""
    mine = tmp_path / "letter.txt"
    mine.write_text("a letter")
    (finished / ".lock").unlink(missing_ok=True)
    (finished / ".lock").symlink_to(mine)
    (finished / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=r"\.lock is a symbolic link.*remove it"):
        pipeline.evaluate(finished)
    assert mine.read_text() == "a letter"
    assert not (finished / "evaluation.json").exists()


def test_a_lock_that_is_a_pipe_is_refused_and_does_not_stop_the_status(finished: Path) -> None:
    (finished / ".lock").unlink(missing_ok=True)
    os.mkfifo(finished / ".lock")
    (finished / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=r"\.lock is not a regular file: remove it"):
        pipeline.evaluate(finished)
    assert not read_status(finished).is_busy


@pytest.mark.parametrize("name", ["checkpoints", "subnets", "report", "tensorboard"])
def test_folders_of_a_run_that_are_links_are_refused(
    name: str, finished: Path, tmp_path: Path
) -> None:
    """Tidying would delete what somebody else keeps there."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / ".step-00000009.tmp").mkdir(parents=True)
    shutil.rmtree(finished / name, ignore_errors=True)
    (finished / name).symlink_to(elsewhere)
    (finished / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=rf"{name} is a symbolic link.*Replace the link"):
        pipeline.evaluate(finished)
    assert (elsewhere / ".step-00000009.tmp").exists()


def test_a_file_in_the_place_of_a_folder_is_noticed_before_anything_is_trained(
    finished: Path,
) -> None:
    for name in ("checkpoints", "supernet.safetensors", "evaluation.json"):
        shutil.rmtree(finished / name) if (finished / name).is_dir() else (finished / name).unlink()
    (finished / "checkpoints").write_text("mine")
    log = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"checkpoints is a file, where prenas keeps a folder"):
        pipeline.train(finished)
    assert (finished / "checkpoints").read_text() == "mine"
    assert (finished / "metrics.jsonl").read_bytes() == log


def flip_last_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def flip_digest(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b'"weights_sha256": "') + 25] ^= 1
    path.write_bytes(content)


def name_other_weights(path: Path) -> None:
    write_edited(path, {**json.loads(path.read_text()), "weights_sha256": "0" * 64})


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", flip_last_weight, r"model\.safetensors is damaged"),
        ("arch.json", flip_digest, r"arch\.json is damaged or was edited"),
        ("arch.json", name_other_weights, r"model\.safetensors does not contain"),
    ],
)
def test_a_damaged_model_is_not_handed_over_again(
    name: str, damage: Callable[[Path], None], words: str, finished: Path
) -> None:
    """A model that lies in the run already is looked at, not only named."""
    path = finished / "subnets" / "00" / name
    damage(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=rf"subnets/00/{words}"):
        pipeline.specialize(finished, 0)
    assert path.read_bytes() == content


def test_only_temporary_files_of_this_package_are_removed(finished: Path) -> None:
    mine = [
        finished / ".notes.tmp",
        finished / ".notes.7.tmp",
        finished / ".recipe.yaml.123.tmp",
        finished / "report" / ".my-accuracy.svg.45.tmp",
        finished / "checkpoints" / ".old.tmp",
    ]
    ours = [
        finished / ".prenas-recipe.json.123.tmp",
        finished / ".recipe.json.123.tmp",
        finished / "report" / ".prenas-accuracy.svg.45.tmp",
        finished / "report" / ".accuracy.svg.45.tmp",
        finished / "subnets" / "00" / ".model.safetensors.6.tmp",
    ]
    for path in [*mine, *ours]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half a fi")
    (finished / "evaluation.json").unlink()
    pipeline.evaluate(finished)
    assert all(path.exists() for path in mine)
    assert not [path for path in ours if path.exists()]


def test_a_report_tidies_its_pictures_but_not_those_of_running_processes(finished: Path) -> None:
    """It takes no lock, so another process may be writing a report too."""
    folder = finished / "report"
    folder.mkdir(exist_ok=True)
    killed = subprocess.Popen(["true"])
    killed.wait()
    gone, running = (
        folder / f".prenas-accuracy.svg.{number}.tmp" for number in (killed.pid, os.getppid())
    )
    for path in (gone, running):
        path.write_text("half a pic")
    pipeline.report(finished)
    assert not gone.exists()
    assert running.exists()


def test_a_report_does_not_follow_a_link(finished: Path, tmp_path: Path) -> None:
    shutil.rmtree(finished / "report", ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (finished / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="report is a symbolic link"):
        pipeline.report(finished)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder does not exist"):
        _ = Run(tmp_path / "nowhere").preferred
    (tmp_path / "arch.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"it is a handed-over model, not a run\. Use prenas\.load"
    ):
        _ = Run(tmp_path).preferred
