"""How many processes read images: by what the machine grants, not by what it has."""

import os
from pathlib import Path

import pytest

from prenas.data import cores
from prenas.data.cores import num_readers, usable_cores


def grant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, files: dict[str, str]) -> None:
    """64 cores by affinity, and control groups as in the given files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(cores, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "mounted")


V1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/a:b\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 64),
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, 64),
        ("0::/job\n", {"job/cpu.max": "650000 100000\n"}, 6),
        ("0::/job\n", {"job/cpu.max": "50000 100000\n"}, 1),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/cpu.max": "400000 100000"}, 4),
        ("0::/job/step\n", {"job/step/cpu.max": "300000 100000", "job/cpu.max": "800000 99"}, 3),
        ("0::/outside\n", {"cpu.max": "200000 100000\n"}, 2),  # a container sees the root only
        ("0::/\n", {"cpu.max": "nonsense\n"}, 64),
        (V1, {"cpu/docker/a:b/cpu.cfs_quota_us": "-1\n"}, 64),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 5),
        ("2:cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "1\n"}, 64),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
    ],
)
def test_the_least_of_affinity_and_all_quotas(
    own: str,
    files: dict[str, str],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    grant(monkeypatch, tmp_path, own, files)
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("quota", "local", "expected"),
    [(16, None, 16), (16, "4", 4), (15, "4", 3), (2, "8", 1), (64, None, 32), (64, "2", 32)],
)
def test_processes_of_a_machine_share_its_cores(
    quota: int,
    local: str | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    grant(monkeypatch, tmp_path, "0::/", {"cpu.max": f"{quota}00000 100000"})
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert num_readers() == expected


def test_a_single_core_by_affinity_is_one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert num_readers() == 1
