"""How often a run reads and digests files, builds its supernet from disk, and loads its teacher."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prenas import artifacts, pipeline
from prenas.recipe import Recipe
from prenas.runs.run import Run
from prenas.steps import training
from test_pipeline_convolutional import recipe_of as conv_recipe
from training.runs import mini_recipe

pytest_plugins = "training.runs"

EVOLUTION = {"population": 4, "generations": 2, "num_parents": 2, "num_mutations": 2}
JSON = {"recipe.json", "preferred.json", "data.json", "evaluation.json"}
LARGE = {"supernet.safetensors", "calibration.safetensors"}


class Reads:
    """Counts by file, relative to a folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.parsed, self.loaded, self.digested = Counter[str](), Counter[str](), Counter[str]()
        self.num_teachers = 0
        for name, counter in (
            ("read_json", self.parsed),
            ("read_tensors", self.loaded),
            ("sha256", self.digested),
        ):
            patch.setattr(artifacts, name, self._counted(getattr(artifacts, name), counter))
        load = training.load_teacher

        def load_teacher(*args: Any, **options: Any) -> Any:
            self.num_teachers += 1
            return load(*args, **options)

        patch.setattr(training, "load_teacher", load_teacher)

    def _counted(self, read: Callable[..., Any], counter: Counter[str]) -> Callable[..., Any]:
        def counted(path: Path, **options: Any) -> Any:
            is_inside = path.is_relative_to(self.folder)
            counter[str(path.relative_to(self.folder) if is_inside else path)] += 1
            return read(path, **options)

        return counted

    @property
    def most(self) -> int:
        """Of any file the most times that it was parsed, loaded, or digested."""
        return max(max(c.values(), default=0) for c in (self.parsed, self.loaded, self.digested))


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(mini_recipe(training={"epochs": 1}), id="preferred"),
        pytest.param(mini_recipe(training={"epochs": 1}, evolution=EVOLUTION), id="one-shot"),
        pytest.param(conv_recipe(), id="convolutional"),
    ],
)
def test_a_whole_run_reads_each_file_at_most_once(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that it has just written, but the weights before training and the models."""
    reads = Reads(tmp_path / "run", monkeypatch)
    pipeline.run(recipe, tmp_path / "run")
    assert reads.most == 1
    assert set(reads.parsed) == {f"subnets/0{number}/arch.json" for number in range(3)}
    models = {f"subnets/0{number}/model.safetensors" for number in range(3)}
    assert set(reads.loaded) == {"initial.safetensors", *models}
    large = {name for name in LARGE if (tmp_path / "run" / name).exists()}
    assert {name for name in reads.digested if not name.startswith("checkpoints")} == large


def test_a_run_of_an_earlier_process_is_read_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated and cut again: recipe, preferred set, images and supernet once each."""
    (finished / "evaluation.json").unlink()
    for path in finished.glob("subnets/*/*"):
        path.unlink()
    reads = Reads(finished, monkeypatch)
    pipeline.run(mini_recipe(), finished)
    assert reads.most == 1
    assert {name for name in reads.parsed if "/" not in name} == JSON - {"evaluation.json"}
    assert "supernet.safetensors" in reads.loaded
    assert set(reads.digested) == {"supernet.safetensors"}


def test_a_finished_run_is_read_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(finished, monkeypatch)
    pipeline.run(mini_recipe(), finished)
    assert reads.most == 1
    assert {name for name in reads.parsed if "/" not in name} == JSON


def test_the_teacher_that_is_checked_is_the_one_that_teaches(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = {"name": str(finished_run / "subnets" / "02"), "loss": "soft"}
    reads = Reads(tmp_path / "run", monkeypatch)
    pipeline.run(mini_recipe(training={"epochs": 1, "teacher": teacher}), tmp_path / "run")
    assert reads.num_teachers == 1
    assert reads.most == 1  # its folder included


def test_the_supernet_is_built_from_disk_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    load = Run._load_supernet

    def loaded(run: Run, preferred: Any, path: Path) -> Any:
        loads.append(path)
        return load(run, preferred, path)

    monkeypatch.setattr(Run, "_load_supernet", loaded)
    run = Run(finished)
    assert run.supernet is run.supernet
    assert run.on(None).supernet is run.supernet
    assert loads == [finished / "supernet.safetensors"]


HOPS = 4
"""From the command to the training step, at most."""


def test_the_way_from_the_command_to_the_training_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions of the package on the stack between `prenas run` and `TrainingStep`."""
    from prenas import cli
    from prenas.training.step import TrainingStep

    found: list[str] = []

    def look(self: TrainingStep, *args: Any, **options: Any) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_name != "run_command":
            if "/prenas/" in frame.f_code.co_filename:
                found.append(frame.f_code.co_name)
            frame = frame.f_back
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingStep, "__call__", look)
    with pytest.raises(SystemExit):
        cli.app(["run", "digits", "--out", str(tmp_path / "run")])
    assert found == ["train_supernet", "train", "run"]
    assert len(found) + 1 <= HOPS
