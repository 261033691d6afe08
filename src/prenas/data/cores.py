"""How many processor cores this process may use, and how many processes read images by default."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from prenas.processes import local_world_size

_MOST_READERS = 32
"""For one process that trains. They decode some 5,000 photographs a second; each holds batches in
shared memory."""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def num_readers() -> int:
    """One per usable core, shared among the processes of this run on this machine; 1 to 32.

    Raises:
        ValueError: the launcher's variable is set, but is not a number.
    """
    return min(max(1, usable_cores() // local_world_size()), _MOST_READERS)


def usable_cores() -> int:
    """Cores by the affinity of this process and by the quotas of its control groups; at least 1.

    A container or a job scheduler grants fewer cores than the machine has by either of them.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS
        cores = os.cpu_count() or 1
    return max(1, math.floor(min([float(cores), *_quotas(_OWN_CGROUPS, _CGROUPS)])))


def _quotas(own: Path, mounted: Path) -> Iterator[float]:
    """The cores that each control group of this process grants, itself and those above it.

    Version 2 has one tree of groups, version 1 one for processor time. A container may show the
    path of its group outside, of which only the root is mounted inside.

    Args:
        own: lists the groups of this process, a line `number:controllers:path` for each tree.
        mounted: where the trees are mounted.
    """
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tree, read = mounted, _quota_of_version_2
        elif "cpu" in controllers.split(","):
            tree, read = mounted / "cpu", _quota_of_version_1
        else:
            continue
        inside = PurePosixPath(path).relative_to("/")
        for group in (inside, *inside.parents):
            if (quota := read(tree / group)) is not None:
                yield quota


def _quota_of_version_2(group: Path) -> float | None:
    """From `cpu.max`: microseconds of processor time or `max`, and the period."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    return _cores(quota, period)


def _quota_of_version_1(group: Path) -> float | None:
    """From two files; a quota of -1 is none."""
    return _cores(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> float | None:
    quota, period = quota.strip(), period.strip()
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    """The content of a file of the system, empty if there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
