"""Faults one by one: nothing is lost, the message says what to do, the same command continues."""

import logging
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typer.testing import CliRunner

from prenas import pipeline
from prenas.cli import app
from prenas.data import Batch, ImageData
from prenas.recipe import Recipe
from prenas.runs.run import Run
from prenas.runs.status import read_status
from prenas.training.loop import Progress
from prenas.training.step import Outcome, TrainingStep
from prenas.training.stopping import Stopped
from training.runs import (
    StoppedError,
    assert_same_training,
    hearing,
    metrics_of,
    mini_recipe,
    own_data,
    own_recipe,
    stop_at,
)

pytest_plugins = "training.runs"

ADVICE = (
    r"free some disk space or fix the permissions of the folder, then give the same command to "
    r"continue"
)


# --- a full disk ---------------------------------------------------------------------------------


@contextmanager
def longest_file(num_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
    """Inside the block no file grows beyond a size, from now on or from when it is called."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    try:
        if num_bytes is not None:
            limit(num_bytes)
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("event", "number", "message"),
    [
        ("epoch", 2, r"cannot write the checkpoint of step 18 to .*checkpoints \(File too large\); "
         r".*step-00000009 is the last one\. Free some disk space .* the same command to continue"),
        ("epoch", 1, r"cannot write the checkpoint of step 9 .*; there is no earlier one\. Free"),
        ("validation", 3, rf"cannot write .*best\.safetensors \(File too large\): {ADVICE}"),
        ("validation", 4, rf"cannot write .*metrics\.jsonl \(File too large\): {ADVICE}"),
    ],
    ids=["checkpoint", "first-checkpoint", "best", "log"],
)  # fmt: skip
def test_a_full_disk_loses_nothing(
    event: str, number: int, message: str, searched: Path, finished_run: Path
) -> None:
    """The disk is full from a record of the log on."""
    seen = []
    with longest_file() as limit:

        def fill(record: Mapping[str, Any]) -> None:
            seen.append(record["event"])
            if seen.count(event) == number:
                limit(100)

        with pytest.raises(OSError, match=message):
            pipeline.train(searched, observer=hearing(records=fill))
    assert not list(searched.rglob("*.tmp"))
    pipeline.train(searched)
    assert_same_training(searched, finished_run)


def test_a_full_disk_at_the_end_loses_nothing(finished: Path, finished_run: Path) -> None:
    result = finished / "supernet.safetensors"
    size = result.stat().st_size
    result.unlink()
    (finished / "checkpoints" / "best.safetensors").unlink()
    with longest_file(size - 1), pytest.raises(OSError, match=rf"cannot write .*\(.*: {ADVICE}"):
        pipeline.train(finished)
    assert not result.exists()
    (finished / "checkpoints" / "best.safetensors").write_bytes(
        (finished_run / "checkpoints" / "best.safetensors").read_bytes()
    )
    pipeline.train(finished)
    assert_same_training(finished, finished_run)


def test_a_disk_that_is_full_from_the_start_is_reported_at_once(searched: Path) -> None:
    before = sorted(searched.rglob("*"))
    with (
        longest_file(0),
        pytest.raises(ValueError, match=r"cannot write to .*free some disk space"),
    ):
        pipeline.train(searched)
    assert sorted(searched.rglob("*")) == before


@pytest.mark.slow
def test_a_small_disk_that_fills_up_is_continued_once_there_is_room(
    searched_run: Path, finished_run: Path, tmp_path: Path
) -> None:
    """A real one, of the size of the search and one checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        out = shutil.copytree(searched_run, disk / "run")
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - 60_000))
        with pytest.raises(OSError, match="No space left on device") as caught:
            pipeline.train(out)
        assert "same command" in str(caught.value)
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        pipeline.train(out)
        assert_same_training(out, finished_run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- damaged files -------------------------------------------------------------------------------


def test_a_damaged_checkpoint_never_outlives_a_later_good_one(searched: Path) -> None:
    """Were it counted among those to keep, the only readable one would be dropped for it."""
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(20)))
    (searched / "checkpoints" / "step-00000018" / "state.pt").write_bytes(b"")
    recipe = mini_recipe(training={"keep_checkpoints": 1, "checkpoint_steps": 2})
    pipeline.search(recipe, searched)
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(13)))
    assert [path.name for path in (searched / "checkpoints").glob("step-*")] == ["step-00000012"]
    pipeline.train(searched)


def test_lost_best_weights_are_reported_before_training_continues(tmp_path: Path) -> None:
    recipe, data = own_recipe(training={"epochs": 4, "final_weights": "best"}), own_data()
    pipeline.search(recipe, tmp_path / "run", data=data)
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    with pytest.raises(Stopped):  # of four steps after the third
        pipeline.train(
            tmp_path / "run", data=data, observer=hearing(steps=request_at(2, signal.SIGTERM))
        )
    whole = best.read_bytes()
    best.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=f"cannot read the best weights so far.*restore {best}"):
        pipeline.train(tmp_path / "run", data=data, observer=hearing(steps=stop_at(0)))
    best.write_bytes(whole)
    pipeline.train(tmp_path / "run", data=data)


def test_another_recipe_is_refused_and_changes_nothing(searched: Path, finished_run: Path) -> None:
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(12)))
    files = {path: path.read_bytes() for path in searched.rglob("*.*") if path.is_file()}
    other = mini_recipe(training={"lr_per_512_images": 3e-2})
    with pytest.raises(ValueError, match=r"training.lr_per_512_images: 0.02 -> 0.03"):
        pipeline.run(other, searched)
    assert {path: path.read_bytes() for path in searched.rglob("*.*") if path.is_file()} == files
    pipeline.train(searched)
    assert_same_training(searched, finished_run)


# --- numbers that are not finite -----------------------------------------------------------------


def spoil(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the images of some steps, from 0, not numbers."""
    call = TrainingStep.__call__

    def spoilt(self: TrainingStep, step: int, batch: Batch, **options: Any) -> Outcome:
        images = batch.images * math.nan if step in steps else batch.images
        return call(self, step, batch._replace(images=images), **options)

    monkeypatch.setattr(TrainingStep, "__call__", spoilt)


def test_skipped_steps_are_counted_and_survive_an_interruption(
    searched_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log, in `status`, and the same whether or not the training was interrupted."""
    spoil({3, 4, 5, 12}, monkeypatch)
    recipe = mini_recipe(
        training={"checkpoint_steps": 5, "skipped_steps_limit": 4, "ema_decay": 0.9}
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run in (whole, broken):
        pipeline.search(recipe, run)
    pipeline.train(whole)
    for step in (6, 13):
        with pytest.raises(StoppedError):
            pipeline.train(broken, observer=hearing(steps=stop_at(step)))
    pipeline.train(broken)
    assert_same_training(broken, whole)
    assert [line["step"] for line in metrics_of(whole, "skipped")] == [4, 5, 6, 13]
    assert [line["skipped"] for line in metrics_of(whole, "epoch")] == [3, 1, 0]
    progress = read_status(whole).progress
    assert progress is not None
    assert progress.skipped == 4


def test_a_row_of_skipped_steps_is_counted_over_an_interruption(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a training that is restarted often enough would never notice."""
    pipeline.search(mini_recipe(training={"checkpoint_steps": 1}), searched)
    spoil(set(range(4, 99)), monkeypatch)
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(15)))
    with pytest.raises(ValueError, match=r"in 16 steps in a row, the last of them step 20 "):
        pipeline.train(searched)


# --- data ----------------------------------------------------------------------------------------


class Faulty(Dataset[Any]):
    """40 images, read one by one; what is asked for before each may raise."""

    def __init__(self, trouble: Callable[[int], object] = int) -> None:
        self.trouble = trouble
        self.images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.trouble(index)
        return self.images[index], index % 10


FAULTY = own_recipe(training={"epochs": 2, "batch_size": 4, "checkpoint_steps": 3})
"""Ten steps per epoch."""


def faulty_data(num_workers: int = 0, trouble: Callable[[int], object] = int) -> ImageData:
    whole = own_data()
    return ImageData(
        Faulty(trouble), whole.validation, None, whole.class_names, num_workers=num_workers
    )


@pytest.fixture(scope="module")
def faulty_searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faulty") / "searched"
    pipeline.search(FAULTY, out, data=faulty_data())
    return out


@pytest.fixture(scope="module")
def faulty_whole(faulty_searched: Path) -> Path:
    """The unbroken run, without processes that read."""
    out = shutil.copytree(faulty_searched, faulty_searched.parent / "whole")
    pipeline.train(out, data=faulty_data())
    return out


@pytest.fixture
def faulty(faulty_searched: Path, tmp_path: Path) -> Path:
    return shutil.copytree(faulty_searched, tmp_path / "run")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_ends_it_in_its_words(
    num_workers: int, faulty: Path, faulty_whole: Path
) -> None:
    """In the middle of an epoch; once the picture is repaired, the training continues."""

    def trouble(index: int) -> None:
        if index == 17:
            raise OSError("picture 17 cannot be read")

    with pytest.raises(OSError, match="picture 17 cannot be read"):
        pipeline.train(faulty, data=faulty_data(num_workers, trouble))
    pipeline.train(faulty, data=faulty_data(num_workers))
    assert_same_training(faulty, faulty_whole)


def test_a_killed_reader_stops_the_training_with_a_message(
    faulty: Path, faulty_whole: Path
) -> None:
    def kill(progress: Progress) -> None:
        if progress.step == 5:
            reader = multiprocessing.active_children()[0]
            assert reader.pid is not None
            os.kill(reader.pid, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"reads images crashed .*lower data.num_workers"):
        pipeline.train(faulty, data=faulty_data(2), observer=hearing(steps=kill))
    pipeline.train(faulty, data=faulty_data(2))
    assert_same_training(faulty, faulty_whole)


# --- requests to stop ----------------------------------------------------------------------------


def request_at(step: int, *signals: int, readers: bool = False) -> Callable[[Progress], None]:
    """A watcher that has this process, and those that read, sent signals after a step."""

    def watch(progress: Progress) -> None:
        if progress.step == step:
            for number in signals:
                if readers:  # by another process, as they end when this one tells them to
                    processes = [str(child.pid) for child in multiprocessing.active_children()]
                    assert len(processes) == 2
                    subprocess.run(["kill", f"-{number}", *processes], check=True)
                os.kill(os.getpid(), number)

    return watch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [3, 9])
def test_a_request_to_stop_finishes_the_step_and_saves(
    number: signal.Signals, step: int, searched: Path, finished_run: Path
) -> None:
    """One more step is trained: the processes agree on it within a step."""
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped) as caught:
        pipeline.train(searched, observer=hearing(steps=request_at(step, number)))
    assert (caught.value.step, caught.value.signal_number) == (step + 1, number)
    assert (searched / "checkpoints" / f"step-{step + 1:08d}").is_dir()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    seen = []
    pipeline.train(searched, observer=hearing(steps=lambda progress: seen.append(progress.step)))
    assert seen[0] == step + 2
    assert_same_training(searched, finished_run)


def test_a_second_interrupt_ends_it_at_once(searched: Path, finished_run: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        pipeline.train(
            searched, observer=hearing(steps=request_at(12, signal.SIGINT, signal.SIGINT))
        )
    assert not isinstance(caught.value, Stopped)
    assert not (searched / "checkpoints" / "step-00000013").exists()
    pipeline.train(searched)
    assert_same_training(searched, finished_run)


def test_readers_outlive_a_request_that_all_processes_get(faulty: Path, faulty_whole: Path) -> None:
    """As from a job scheduler: a reader that left would end the training before it is saved."""
    with pytest.raises(Stopped) as caught:
        pipeline.train(
            faulty,
            data=faulty_data(2),
            observer=hearing(steps=request_at(4, signal.SIGTERM, readers=True)),
        )
    assert caught.value.step == 5
    pipeline.train(faulty, data=faulty_data(2))
    assert_same_training(faulty, faulty_whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_says_how_to_go_on(
    number: int, status: int, searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = TrainingStep.__call__

    def signalled(self: TrainingStep, step: int, batch: Batch, **options: Any) -> Outcome:
        if step == 3:
            os.kill(os.getpid(), number)
        return call(self, step, batch, **options)

    monkeypatch.setattr(TrainingStep, "__call__", signalled)
    result = CliRunner().invoke(app, ["train", str(searched), "--device", "cpu"])
    assert result.exit_code == status
    words = "stopped and saved after training step 5: give the same command again to continue"
    assert words in re.sub(r"\s+", " ", result.output + result.stderr)


# --- a killed process' lock -----------------------------------------------------------------------


def hold(out: Path, *, reader_seconds: float, then: Callable[[], object]) -> int:
    """A process that locks a folder, forks one as readers are forked, and does something."""
    child = os.fork()
    if child:
        return child
    try:
        with Run(out, mini_recipe()).locked():
            if os.fork() == 0:
                time.sleep(reader_seconds)
                os._exit(0)
            (out / "held").touch()
            then()
    finally:
        os._exit(0)


def test_what_a_killed_process_left_is_waited_for(tmp_path: Path) -> None:
    """Its readers hold the lock on, until they notice."""
    out = tmp_path / "run"
    child = hold(out, reader_seconds=1.5, then=lambda: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(child, 0)
    (out / "held").unlink()
    started = time.monotonic()
    with Run(out, mini_recipe()).locked():
        assert 0.5 < time.monotonic() - started < 10


def test_a_process_that_is_alive_is_not_waited_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = hold(out, reader_seconds=0, then=lambda: time.sleep(60))
    while not (out / "held").exists():
        time.sleep(0.01)
    (out / "held").unlink()
    started = time.monotonic()
    with (
        pytest.raises(ValueError, match="another process is working"),
        Run(out, mini_recipe()).locked(),
    ):
        pass
    assert time.monotonic() - started < 5
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# --- what may change when a run resumes ----------------------------------------------------------


def test_what_decides_nothing_may_change_while_a_run_goes_on(
    searched: Path, finished_run: Path
) -> None:
    """Other checkpoints from there on, the same result."""
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(12)))
    recipe: Recipe = mini_recipe(training={"checkpoint_steps": 2, "keep_checkpoints": 3})
    pipeline.search(recipe, searched)
    assert pipeline.read_preferred(searched).recipe == recipe
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(17)))
    kept = sorted(path.name for path in (searched / "checkpoints").glob("step-*"))
    assert kept == ["step-00000012", "step-00000014", "step-00000016"]
    pipeline.search(mini_recipe(), searched)
    pipeline.train(searched)
    assert_same_training(searched, finished_run)


def test_other_threads_are_warned_of(
    searched: Path, finished_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(12)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        with caplog.at_level(logging.WARNING), pytest.raises(StoppedError):
            pipeline.train(searched, observer=hearing(steps=stop_at(10)))
    finally:
        torch.set_num_threads(before)
    assert f"started with {before} threads and continues with {before + 1}" in caplog.text
