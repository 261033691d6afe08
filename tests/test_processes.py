"""Several processes: how they are joined, which device each takes, and whole runs of two."""

import csv
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from prenas import artifacts, processes
from prenas.processes import ALONE, Processes, join, resolve_device

ROOT = Path(__file__).resolve().parent.parent

SPACE = """
family: vit
embed_dim: [8, 16]
depth: [1, 2]
num_heads: [1, 2]
mlp_ratio: [1, 2]
image_size: 8
in_chans: 1
num_classes: 10
patch_size: 4
head_dim: 4
max_distance: 2
"""


@given(st.integers(1, 9), st.lists(st.integers(), max_size=30))
def test_shares_are_nearly_equal_and_hold_everything_once(
    world_size: int, items: list[int]
) -> None:
    shares = [Processes(rank, world_size).share(items) for rank in range(world_size)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_nothing_is_joined_where_nothing_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert join() == ALONE
    assert ALONE.is_main
    tensor = torch.ones(2)
    ALONE.add_up(tensor)
    ALONE.wait()
    assert tensor.tolist() == [1, 1]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_variables_that_do_not_read_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "two")
    with pytest.raises(ValueError, match=f"{name} is 'two'.*torchrun"):
        join() if name == "WORLD_SIZE" else processes.local_rank()


# --- devices -------------------------------------------------------------------------------------


@pytest.fixture
def two_accelerators(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with two CUDA devices, as far as `resolve_device` looks; which became current."""
    current: list[int] = []
    accelerator = torch.accelerator
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    monkeypatch.setattr(accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(accelerator, "set_device_index", current.append)
    monkeypatch.setattr(processes.torch, "empty", lambda *args, **options: None)
    return current


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    [
        ("auto", 0, "cuda"),
        ("auto", 1, "cuda:1"),
        ("cuda", 1, "cuda:1"),
        ("cuda:0", 1, "cuda:0"),
        ("cpu", 1, "cpu"),
        ("cpu", 7, "cpu"),
        ("cpu:0", 0, "cpu:0"),
    ],
)
def test_each_process_takes_its_own_accelerator(
    name: str,
    rank: int,
    expected: str,
    two_accelerators: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    device = resolve_device(name)
    assert device == torch.device(expected)
    is_numbered = device.type == "cuda" and device.index is not None
    assert two_accelerators == ([device.index] if is_numbered else [])


@pytest.mark.usefixtures("two_accelerators")
def test_more_processes_than_accelerators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ValueError, match=r"process 2 .* there are only 2: start at most 2 processes"
    ):
        resolve_device("auto")


@pytest.mark.usefixtures("two_accelerators")
@pytest.mark.parametrize(("name", "is_there"), [("cuda:1", True), ("quantum", False)])
def test_a_device_that_is_there_and_fails_is_said_to_fail(
    name: str, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with ...")

    monkeypatch.setattr(processes.torch, "empty", fail)
    end = r"\. PyTorch says: CUDA error: out of memory$" if is_there else "choose auto, cpu, cuda$"
    with pytest.raises(ValueError, match=f"'{name}' does not exist on this machine: .*{end}"):
        resolve_device(name)


# --- whole runs ----------------------------------------------------------------------------------


def launched(
    words: list[str], *, launcher: list[str], program: Sequence[str] = ("-m", "prenas")
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *program, *words],
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=280)
    finally:
        process.kill()
    return process.returncode, output, errors


def words_of(out: Path, **overrides: Any) -> list[str]:
    space = out.with_suffix(".yaml")
    space.write_text(SPACE)
    fields = {"training.epochs": 2, "training.batch_size": 128, **overrides}
    changes = [text for name, value in fields.items() for text in ("--set", f"{name}={value}")]
    budget = ["--budget", "params=1200:3300:700"]
    return ["run", "digits", "--space", str(space), *budget, *changes, "--out", str(out)]


def launcher_of_the_tutorial() -> list[str]:
    """How docs/tutorials/several-processes.md starts two processes."""
    page = (ROOT / "docs/tutorials/several-processes.md").read_text(encoding="utf-8")
    (options,) = re.findall(r"^torchrun (.+) -m prenas run ", page, flags=re.MULTILINE)
    return shlex.split(options)


def launcher_of_the_guide() -> list[str]:
    """How docs/guide/training.md starts processes on two machines."""
    page = (ROOT / "docs/guide/training.md").read_text(encoding="utf-8")
    (options,) = re.findall(r"^torchrun (--nnodes=2 .+) -m prenas ", page, flags=re.MULTILINE)
    return shlex.split(options)


def accuracies(out: Path) -> list[tuple[str, str]]:
    with (out / "evaluation.csv").open() as file:
        return [(row["params"], row["validation_top1"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, str, str]]:
    """The folder of a run of two processes, and how it ended."""
    home = tmp_path_factory.mktemp("processes")
    return home, finished(launched(words_of(home / "two"), launcher=launcher_of_the_tutorial()))


@pytest.mark.slow
def test_a_run_of_two_processes_is_a_run(of_two: tuple[Path, tuple[int, str, str]]) -> None:
    """Every line once, every subnet handed over, the accuracies of one process."""
    tmp_path, (code, output, errors) = of_two
    assert code == 0, errors
    lines = [line for line in output.splitlines() if re.search(r"[A-Za-z]", line)]
    told = [line for line in lines if re.match(r"Images|Search|Training|epoch|Report|Models", line)]
    assert len(told) == len(set(told)) >= 12
    assert "Traceback" not in errors
    assert len(list((tmp_path / "two" / "subnets").iterdir())) == 3
    assert not list((tmp_path / "two").rglob("*.tmp"))

    alone = subprocess.run(
        [sys.executable, "-m", "prenas", *words_of(tmp_path / "one")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert alone.returncode == 0, alone.stderr
    assert len(alone.stdout.splitlines()) == len(output.splitlines())
    assert accuracies(tmp_path / "two") == accuracies(tmp_path / "one")


@pytest.mark.slow
def test_mistakes_are_said_in_words_before_training(tmp_path: Path) -> None:
    words = words_of(tmp_path / "bad", **{"training.epochz": 3})
    code, _, errors = finished(launched(words, launcher=["--standalone", "--nproc_per_node=2"]))
    assert code != 0
    # torchrun stops the other process as soon as one has ended, perhaps before it said the same.
    assert re.search(r"process [01]: error: unknown recipe field 'training\.epochz'", errors)
    assert "did you mean 'training.epochs'" in errors
    assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_every_process_says_a_mistake_with_its_number(tmp_path: Path) -> None:
    """Started one by one, as a cluster does, so that none is stopped when another one ends."""
    words = words_of(tmp_path / "bad", **{"training.epochz": 3})
    for rank in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "prenas", *words],
            env={**os.environ, "COLUMNS": "200", "WORLD_SIZE": "2", "RANK": rank}
            | {"LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode != 0
        assert f"process {rank}: error: unknown recipe field 'training.epochz'" in done.stderr
        assert "did you mean 'training.epochs'" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "bad").exists()


DYING = """
import os, signal, sys
from pathlib import Path
from prenas import cli
from prenas.training.step import TrainingStep

call, mark = TrainingStep.__call__, Path(sys.argv.pop(1))

def dying(self, step, batch, **options):
    if (step, os.environ["RANK"]) == (15, "1") and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return call(self, step, batch, **options)

TrainingStep.__call__ = dying
cli.main()
"""
"""`prenas`, but one of two processes is killed in the second epoch, in its first life."""


@pytest.mark.slow
def test_two_machines_train_together_and_restart_when_one_fails(
    tmp_path: Path, of_two: tuple[Path, tuple[int, str, str]]
) -> None:
    """Two agents of torchrun, as on two machines that share the run folder.

    Both start their processes again when one of them is killed. The weights are those of two
    processes on one machine, to the bit.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script, mark = tmp_path / "dying.py", tmp_path / "killed"
    script.write_text(DYING)
    words, options = words_of(tmp_path / "run"), launcher_of_the_guide()
    options = [option.replace("HOST:29500", f"127.0.0.1:{port}") for option in options]
    agents = [
        launched(words, launcher=[*options, "--nproc_per_node=1"], program=(str(script), str(mark)))
        for _ in range(2)
    ]
    ends = [finished(agent) for agent in agents]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert mark.exists()
    errors = "".join(errors for _, _, errors in ends)
    assert "another process of this run has ended" in errors
    silence, told = sorted((output for _, output, _ in ends), key=len)
    assert "Training done" in told  # of either agent: which one has the first process is chance
    assert silence == ""
    assert (tmp_path / "run" / "report.md").exists()
    weights, on_one = (
        artifacts.read_tensors(folder / artifacts.SUPERNET)
        for folder in (tmp_path / "run", of_two[0] / "two")
    )
    assert weights.keys() == on_one.keys()
    assert all(torch.equal(weights[name], on_one[name]) for name in weights)


def test_a_process_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_TIMEOUT", timedelta(seconds=0.2))
    with pytest.raises(TimeoutError, match=r"processes \[1, 2\] of 3 did not start"):
        processes._fresh(dist.HashStore(), 0, 3)


def test_what_an_earlier_life_left_behind_is_not_taken_for_this_one() -> None:
    """Both of two processes find the same part of the store, with a word of before in it."""
    store = dist.HashStore()
    store.set("prenas/hello/1", "a word of a process that was killed")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: processes._fresh(store, rank, 2), (0, 1))
    first.set("key", "value")
    assert second.get("key") == b"value"
    with ThreadPoolExecutor(2) as pool:
        again, _ = pool.map(lambda rank: processes._fresh(store, rank, 2), (0, 1))
    assert not again.check(["key"])
