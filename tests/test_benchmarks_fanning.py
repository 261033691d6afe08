"""Parts of experiments in processes of their own: failures, deaths and stops stay apart."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest
from benchmarks.fanning import Failure, fan_out

from prenas.training.stopping import stop_requests


def root_or_death(number: float) -> float:
    if number == 0:
        os._exit(9)
    return math.sqrt(number)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_that_fails_is_named_and_the_others_finish(workers: int) -> None:
    found = dict(fan_out(math.sqrt, [4.0, -1.0, 9.0], workers))
    assert (found[4.0], found[9.0]) == (2.0, 3.0)
    failure = found[-1.0]
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("ValueError: ")
    assert "Traceback" in failure.trace


def test_a_process_that_dies_takes_only_its_part_along() -> None:
    found = dict(fan_out(root_or_death, [0.0, 16.0], 2))
    assert found[16.0] == 4.0
    failure = found[0.0]
    assert isinstance(failure, Failure)
    assert "died" in failure.reason


def saved_when_asked(file: str) -> str:
    """Like a training: a request to stop is noticed, and everything is saved."""
    with stop_requests() as request:
        Path(file).write_text("started")
        while not request:
            time.sleep(0.01)
        Path(file).write_text("saved")
    raise KeyboardInterrupt


SCRIPT = """
    import sys
    from benchmarks.fanning import fan_out
    from test_benchmarks_fanning import saved_when_asked
    if __name__ == "__main__":
        for part, found in fan_out(saved_when_asked, sys.argv[1:], 2):
            print(part, found)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_parts_are_asked_to_stop_and_do_not_outlive_the_command(
    number: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "fanned.py"
    script.write_text(dedent(SCRIPT))
    files = [tmp_path / name for name in ("a", "b", "never")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = subprocess.Popen(
        [sys.executable, str(script), *map(str, files)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not all(file.exists() for file in files[:2]):
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)
    command.send_signal(number)
    output, errors = command.communicate(timeout=60)  # no process holds them any more
    assert output == b""
    assert not files[2].exists()
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in errors
        assert [file.read_text() for file in files[:2]] == ["saved", "saved"]
