"""Freed memory serves the next tensors."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from prenas.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import torch
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(2**24) for _ in range(5)]  # activations of 64 MiB, all freed together
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min([faults() for _ in range(10)][5:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="works with glibc only")
def test_steps_reuse_the_memory_of_the_steps_before() -> None:
    """Fresh memory comes in pages, of which each must be filled by the system."""
    pages = {
        how: int(subprocess.check_output([sys.executable, "-c", SCRIPT, how], text=True))
        for how in ("given back", "kept")
    }
    assert pages["kept"] < 100
    assert pages["given back"] > 10 * max(pages["kept"], 1)
