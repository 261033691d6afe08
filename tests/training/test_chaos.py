"""A training that is killed, wherever, ends with the same bits as one that was not."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from prenas import pipeline
from training.killing import IN_SHARDS, POINTS
from training.runs import assert_same_training, mini_recipe

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs that `training.killing` killed and continued."""
    home = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join([str(TESTS), *sys.path])
    subprocess.run(
        [sys.executable, "-m", "training.killing", str(home)],
        check=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return home


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(POINTS)), ids=list(POINTS))
def test_a_training_killed_at_a_point_is_continued_bit_exactly(
    number: int, killed_runs: Path
) -> None:
    assert_same_training(killed_runs / f"point-{number}", killed_runs / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(IN_SHARDS)), ids=IN_SHARDS)
def test_a_training_on_shards_killed_within_an_epoch_is_continued_bit_exactly(
    number: int, killed_runs: Path
) -> None:
    home = killed_runs / "shards"
    assert_same_training(home / f"point-{number}", home / "whole")


@pytest.mark.slow
def test_a_training_killed_before_any_change_of_a_file_is_continued_bit_exactly(
    killed_runs: Path,
) -> None:
    runs = list(killed_runs.glob("change-*"))
    assert len(runs) >= 15
    for run in runs:
        assert_same_training(run, killed_runs / "whole")


@pytest.mark.slow
def test_a_process_killed_at_random_moments_is_continued_bit_exactly(tmp_path: Path) -> None:
    """SIGKILL of `prenas train`, three times; then the same from Python."""
    recipe = mini_recipe(
        training={"epochs": 8, "batch_size": 32, "checkpoint_steps": 7, "log_steps": 1}
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for out in (killed, whole):
        pipeline.search(recipe, out)
    command = [sys.executable, "-m", "prenas", "train", str(killed), "--device", "cpu"]
    command += ["--threads", str(torch.get_num_threads())]
    dice, log = random.Random(3), killed / "metrics.jsonl"
    for _ in range(3):
        before = log.stat() if log.exists() else None
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        limit = time.monotonic() + 120
        while not log.exists() or (before and log.stat().st_ino == before.st_ino):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert not (killed / "supernet.safetensors").exists(), "it ended before it was killed"
    pipeline.train(killed, device="cpu")
    pipeline.train(whole, device="cpu")
    assert_same_training(killed, whole)
