"""Trackers follow a training: they show its numbers once, change nothing and stop nothing."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from prenas import pipeline
from prenas.runs.log import MetricsLog, read_log
from prenas.training import tracking
from prenas.training.tracking import check_trackers, open_trackers, scalars
from training.runs import (
    StoppedError,
    assert_same_training,
    hearing,
    mini_recipe,
    never,
    stop_at,
)

pytest_plugins = "training.runs"

STEP: dict[str, Any] = {"event": "step", "epoch": 0, "step": 1, "loss": 1.0, "lr": 0.1}
CONFIG: dict[str, Any] = {
    "name": "a",
    "k": 2,
    "share": 0.5,
    "on": True,
    "budgets": ["params=1k"],
    "test": None,
}


def shown(folder: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value, of what TensorBoard shows; no step may be shown twice."""
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    found = {name: accumulator.Scalars(name) for name in accumulator.Tags()["scalars"]}
    for name, events in found.items():
        steps = [event.step for event in events]
        assert steps == sorted(set(steps)), name
    return {name: {e.step: e.value for e in events} for name, events in found.items()}


# --- names ---------------------------------------------------------------------------------------


def test_names_of_scalars() -> None:
    """Every number has a unique name; numbers that were not measured are left out."""
    validation = {
        "event": "validation",
        "subnet": 3,
        "costs": {"params": 9},
        "num_images": 4,
        "loss": 0.5,
    }
    assert scalars({**STEP, "grad_norm": None, "images_per_second": 5.0}) == {
        "train/loss": 1.0,
        "train/lr": 0.1,
        "train/images_per_second": 5.0,
    }
    assert scalars({**STEP, "event": "epoch", "skipped": 0}) == {
        "epoch/loss": 1.0,
        "epoch/lr": 0.1,
        "epoch/skipped": 0,
    }
    assert scalars({**validation, "weights": "trained", "top1": 0.25, "top5": None}) == {
        "validation/03/top1": 0.25,
        "validation/03/loss": 0.5,
    }
    assert set(scalars({**validation, "weights": "ema", "top1": 0.25, "top5": 0.5})) == {
        "validation-ema/03/top1",
        "validation-ema/03/top5",
        "validation-ema/03/loss",
    }
    assert scalars({"event": "skipped", "epoch": 0, "step": 1, "loss": None}) == {}


# --- TensorBoard ---------------------------------------------------------------------------------


def test_a_run_that_was_cut_off_shows_every_step_once(tmp_path: Path) -> None:
    """Cut after step 7, continued from the checkpoint of step 4: as if it had never stopped."""

    def train(first_step: int, last_step: int, value: float) -> None:
        with open_trackers(["tensorboard"], tmp_path, "run", CONFIG, first_step) as sinks:
            log = MetricsLog(tmp_path / "metrics.jsonl", step=first_step, sinks=sinks)
            if first_step:  # what a checkpoint at the end of an epoch leaves to do
                validate(log, first_step)
            for step in range(first_step + 1, last_step + 1):
                log.append("step", epoch=step // 4, step=step, loss=value * step, lr=0.1)
                if step % 4 == 0:
                    log.append("epoch", epoch=step // 4 - 1, step=step, loss=value, lr=0.1)
                    validate(log, step)

    def validate(log: MetricsLog, step: int) -> None:
        log.append(
            "validation",
            **{"epoch": step // 4 - 1, "step": step, "subnet": 0, "costs": {"params": 9}},
            **{"weights": "trained", "top1": step / 100, "top5": None, "loss": 1.0},
            num_images=4,
        )

    train(0, 4, 1.0)
    train(0, 7, 1.0)  # from the start again: its checkpoint was never written
    train(4, 12, 2.0)
    found = shown(tmp_path)
    assert found["train/loss"] == {n: n * (1 if n <= 4 else 2) for n in range(1, 13)}
    assert found["epoch/loss"] == {4: 1, 8: 2, 12: 2}
    assert found["validation/00/top1"] == pytest.approx({4: 0.04, 8: 0.08, 12: 0.12})


def test_tensorboard_holds_the_recipe(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, "run", CONFIG, 0) as sinks:
        sinks[0](STEP)
    (events,) = (tmp_path / "tensorboard").iterdir()  # and no other file
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    content = accumulator.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    stored = HParamsPluginData.FromString(content).session_start_info.hparams
    assert stored.keys() == CONFIG.keys()
    assert stored["name"].string_value == "a"
    assert stored["k"].number_value == 2
    assert stored["budgets"].string_value == '["params=1k"]'
    assert stored["test"].string_value == "null"


def test_a_tracked_training_is_the_same_training(searched: Path, finished_run: Path) -> None:
    """Interrupted and continued, to the bit; TensorBoard shows what the log holds."""
    position = read_log(finished_run / "metrics.jsonl").position
    assert position is not None
    steps = position.steps_per_epoch
    assert steps is not None
    with pytest.raises(StoppedError):
        pipeline.train(
            searched, track=["tensorboard"], observer=hearing(steps=stop_at(2 * steps + 3))
        )
    seen: list[Mapping[str, Any]] = []
    pipeline.train(searched, track=["tensorboard"], observer=hearing(records=seen.append))
    assert_same_training(searched, finished_run)
    epochs = read_log(searched / "metrics.jsonl").epochs
    assert shown(searched)["epoch/loss"] == pytest.approx(
        {(epoch.epoch + 1) * steps: epoch.loss for epoch in epochs}
    )
    ends = [record["epoch"] for record in seen if record["event"] == "epoch"]
    assert ends == [1, 2]  # the first stands for the restart


# --- Weights & Biases, MLflow ---------------------------------------------------------------------

LONG_CONFIG = {**CONFIG, **{f"field{n}": n for n in range(300)}}
PLAIN_CONFIG = {**LONG_CONFIG, "budgets": '["params=1k"]', "test": "null"}


def two_steps(name: str, folder: Path) -> None:
    with open_trackers([name], folder, "my run", LONG_CONFIG, 0) as (sink,):
        sink(STEP)
        sink({**STEP, "step": 2, "loss": 0.5})


class Wandb(SimpleNamespace):
    """Stands for the package, and for the run that it starts."""

    def __init__(self) -> None:
        super().__init__(logged={}, finished=False)

    def init(self, **started: Any) -> "Wandb":
        self.started = started
        return self

    def __enter__(self) -> "Wandb":
        return self

    def __exit__(self, *error: object) -> None:
        self.finished = True

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged[step] = values


def test_wandb_gets_recipe_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    two_steps("wandb", tmp_path)
    assert package.started == {
        "project": "prenas",
        "name": "my run",
        "dir": str(tmp_path),
        "config": PLAIN_CONFIG,
    }
    assert package.logged == {
        1: {"train/loss": 1.0, "train/lr": 0.1},
        2: {"train/loss": 0.5, "train/lr": 0.1},
    }
    assert package.finished


def test_wandb_itself_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    two_steps("wandb", tmp_path)
    (stored,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = stored.read_bytes()
    assert b"train/loss" in content
    assert b"field299" in content


def test_mlflow_itself_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also more fields than it takes in one call."""
    mlflow: Any = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    two_steps("mlflow", tmp_path)
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("prenas")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "my run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in PLAIN_CONFIG.items()}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in history} == {1: 1.0, 2: 0.5}


# --- what goes wrong -----------------------------------------------------------------------------


class Recorder:
    """Stands for a tracker."""

    def __init__(self, *, starts: bool = True, logs: bool = True) -> None:
        self._starts, self._logs = starts, logs
        self.num_logged = self.num_finished = 0

    @contextmanager
    def __call__(self, run: Any) -> Iterator[Callable[[Mapping[str, float], int], None]]:
        assert run.config["budgets"] == '["params=1k"]'
        if not self._starts:
            raise PermissionError("log in first")
        yield self._log
        self.num_finished += 1
        if not self._logs:
            raise ConnectionError("still no network")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        self.num_logged += 1
        if not self._logs:
            raise ConnectionError(f"no network at step {step}")


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Three trackers more, as if they were known and installed."""
    made = {
        "recorder": Recorder(),
        "unplugged": Recorder(logs=False),
        "stranger": Recorder(starts=False),
    }
    for name, recorder in made.items():
        monkeypatch.setitem(tracking._TRACKERS, name, recorder)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    return made


def test_a_tracker_that_fails_warns_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recorders: dict[str, Recorder]
) -> None:
    names = ["unplugged", "tensorboard", "recorder", "tensorboard"]
    with (
        caplog.at_level(logging.WARNING),
        open_trackers(names, tmp_path, "run", CONFIG, 0) as sinks,
    ):
        assert len(sinks) == 3
        log = MetricsLog(tmp_path / "metrics.jsonl", step=0, sinks=sinks)
        for step in (1, 2, 3):
            log.append("step", epoch=0, step=step, loss=1.0, lr=0.1)
    first, last = (record.getMessage() for record in caplog.records)
    assert "tracker unplugged failed (ConnectionError: no network at step 1)" in first
    assert "metrics.jsonl" in first
    assert "tracker unplugged did not finish" in last
    assert set(shown(tmp_path)["train/loss"]) == {1, 2, 3}
    assert (recorders["unplugged"].num_logged, recorders["unplugged"].num_finished) == (1, 1)
    assert (recorders["recorder"].num_logged, recorders["recorder"].num_finished) == (3, 1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_does_not_start_is_an_error(
    tmp_path: Path, recorders: dict[str, Recorder]
) -> None:
    """Before the first step, and those that did start are finished."""
    message = r"'stranger' does not start \(PermissionError: log in first\).*train without"
    with (
        pytest.raises(ValueError, match=message),
        open_trackers(["recorder", "stranger"], tmp_path, "run", CONFIG, 0),
    ):
        never()
    assert recorders["recorder"].num_finished == 1


def test_an_error_of_the_training_finishes_them(searched: Path) -> None:
    with pytest.raises(StoppedError):
        pipeline.train(searched, track=["tensorboard"], observer=hearing(steps=stop_at(10)))
    assert len(shown(searched)["epoch/loss"]) == 1


def test_trackers_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'tensorbord': did you mean 'tensorboard'\?.* mlflow, "):
        check_trackers(["tensorboard", "tensorbord"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"'wandb' is not installed: pip install wandb"):
        check_trackers(["tensorboard", "wandb"])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        check_trackers(["tensorboard"])
    check_trackers([])  # who tracks nothing needs nothing
    with open_trackers([], tmp_path, "run", CONFIG, 0) as sinks:
        assert sinks == []


def test_unknown_trackers_are_refused_before_anything_is_spent(
    tmp_path: Path, searched: Path
) -> None:
    with pytest.raises(ValueError, match="unknown tracker 'notes'"):
        pipeline.run(mini_recipe(), tmp_path / "run", track=["notes"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="unknown tracker 'notes'"):
        pipeline.train(searched, track=["notes"])
    assert not (searched / "data.json").exists()
