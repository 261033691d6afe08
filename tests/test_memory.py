"""What the process keeps of the memory it frees: page faults counted in processes of their own."""

import os
import subprocess
import sys
from multiprocessing import active_children

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prenas import cli, memory
from prenas.data import reading

BLOCK = 20 * 2**20  # below what every glibc can be told to keep
TOTAL = 6 * BLOCK  # more than what any glibc keeps on its own
PAGES = TOTAL // 4096

PROGRAM = f"""
import ctypes, os, resource, sys
from prenas.memory import give_back_freed_memory, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

PR_SET_THP_DISABLE = 41  # with huge pages, faults would be fewer
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
if sys.argv[1] == "keep":
    keep_freed_memory()

def step():
    [bytearray(int(sys.argv[2])) for _ in range({TOTAL} // int(sys.argv[2]))]

step()
step()
before = faults()
step()
again, kept = faults() - before, held()
give_back_freed_memory()
print(again, kept - held())
"""

glibc = pytest.mark.skipif(memory._glibc() is None, reason="what is freed is a matter of glibc")


def again_and_given_back(word: str, block: int = BLOCK, **environment: str) -> tuple[int, int]:
    """Page faults of a step like those before, and bytes that were given back after it."""
    unset = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, word, str(block)],
        env=unset | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    again, given_back = done.stdout.split()
    return int(again), int(given_back)


@glibc
def test_freed_memory_is_used_again_until_it_is_given_back() -> None:
    again, given_back = again_and_given_back("keep")
    assert again < PAGES / 10
    assert given_back > TOTAL / 2


@glibc
def test_blocks_that_would_leave_large_holes_go_back_at_once() -> None:
    again, given_back = again_and_given_back("keep", block=5 * BLOCK)
    assert again > 5 * BLOCK / 4096 / 2
    assert given_back < TOTAL / 2


@glibc
def test_without_it_the_system_fills_every_page_again() -> None:
    again, given_back = again_and_given_back("leave")
    assert again > PAGES / 2
    assert given_back < TOTAL / 2


@glibc
@pytest.mark.parametrize(
    "setting",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_what_a_user_has_set_is_left_alone(setting: dict[str, str]) -> None:
    again, _ = again_and_given_back("keep", **setting)
    assert again > PAGES / 2


def test_every_command_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(sys, "argv", ["prenas", "info", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert calls == ["kept"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_is_given_back_before_readers_are_forked(
    monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    readers_at_calls = []
    monkeypatch.setattr(
        reading, "give_back_freed_memory", lambda: readers_at_calls.append(len(active_children()))
    )
    images = TensorDataset(torch.zeros(4, 1))
    loader = DataLoader(
        images, num_workers=num_workers, multiprocessing_context="fork" if num_workers else None
    )
    assert len(list(reading.isolated(loader, seed=0, epoch=0))) == 4
    assert readers_at_calls == ([0] if num_workers else [])
