"""Two processes of one run: a fault in one stops both with a clear message; nothing is lost."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prenas import pipeline
from training.pairs import RECIPE
from training.runs import assert_same_tensors, assert_same_training, metrics_of

TESTS = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs that `training.pairs` made."""
    home = tmp_path_factory.mktemp("pairs")
    command = [sys.executable, "-m", "training.pairs", str(home)]
    subprocess.run(command, check=True, timeout=500, env=ENVIRONMENT)
    return home


def ends(pairs: Path, name: str) -> list[list[tuple[int, str]]]:
    """Per life and process: exit status, words."""
    document: dict[str, Any] = json.loads((pairs / "ends.json").read_text())
    return [
        [(status, " ".join(words.split())) for status, words in life] for life in document[name]
    ]


def test_a_request_to_one_process_stops_both_after_the_same_step(pairs: Path) -> None:
    stopped, continued = ends(pairs, "stopped")
    assert [status for status, _ in stopped] == [143, 143]
    assert "stopped and saved after training step 7: give the same command again" in stopped[0][1]
    assert [status for status, _ in continued] == [0, 0]
    assert_same_training(pairs / "stopped", pairs / "whole")


@pytest.mark.parametrize(("name", "killed"), [("first-killed", 0), ("second-killed", 1)])
def test_the_other_process_of_a_killed_one_stops_with_a_message(
    name: str, killed: int, pairs: Path
) -> None:
    ended, continued = ends(pairs, name)
    assert ended[killed][0] == -9
    status, words = ended[1 - killed]
    assert status == 2
    assert f"process {1 - killed}: error: another process of this run has ended" in words
    assert "Give the same command to continue from the last checkpoint" in words
    assert "Traceback" not in words
    assert [status for status, _ in continued] == [0, 0]
    assert_same_training(pairs / name, pairs / "whole")


def test_what_is_no_number_in_one_process_is_left_out_in_both(pairs: Path) -> None:
    assert [status for status, _ in ends(pairs, "spoilt")[0]] == [0, 0]
    assert [line["step"] for line in metrics_of(pairs / "spoilt", "skipped")] == [6]
    for name in ("spoilt", "whole"):
        weights = [load_file(pairs / f"{name}.{rank}.safetensors") for rank in range(2)]
        assert all(tensor.isfinite().all() for tensor in weights[0].values())
        assert_same_tensors(*weights)


def test_another_number_of_processes_is_warned_of(pairs: Path) -> None:
    _, ((status, words),) = ends(pairs, "alone")
    assert status == 0
    assert "the training was started with 2 processes and continues with 1" in words


DISTURBED = """
import os, signal, sys, time
from pathlib import Path
from prenas import cli
from prenas.training.step import TrainingStep

call, rank = TrainingStep.__call__, os.environ["RANK"]
if (os.environ["TORCHELASTIC_RESTART_COUNT"], rank) == ("1", "1"):
    time.sleep(2)  # the first one meets the traces that the killed one left behind

def once(what):
    mark = Path(f"{sys.argv[2]}.{what}")
    is_first = not mark.exists()
    mark.touch()
    return is_first

def disturbed(self, step, batch, **options):
    if (step, rank) == (6, "0") and once("stopped"):
        os.kill(os.getppid(), signal.SIGTERM)
    if (step, rank) == (13, "1") and once("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return call(self, step, batch, **options)

TrainingStep.__call__ = disturbed
cli.main()
"""


def test_torchrun_stops_a_run_and_restarts_one_of_which_a_process_was_killed(
    pairs: Path, tmp_path: Path
) -> None:
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(DISTURBED)
    pipeline.search(RECIPE, run)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command = [sys.executable, "-m", *launcher, str(script), "train", str(run), "--device", "cpu"]

    def launched() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--threads", "1"],
            env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    stopped = launched()  # torchrun itself gets SIGTERM, and passes it on
    assert stopped.returncode != 0
    assert re.search(r"stopped and saved after training step (\d+)", stopped.stderr), stopped.stderr
    assert not (run / "supernet.safetensors").exists()

    restarted = launched()
    assert restarted.returncode == 0, restarted.stderr
    assert Path(f"{run}.killed").exists()
    assert "another process of this run has ended" in restarted.stderr
    assert_same_training(run, pairs / "whole")
