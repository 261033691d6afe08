"""Paired timing: variants take turns in one process, so that all run under the same conditions.

A result is the ratio of two variants' seconds in the same round: the median over the rounds, with
quartiles. The seconds themselves are given for orientation only.
"""

from __future__ import annotations

import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent


class Options(NamedTuple):
    """The options of the command line."""

    threads: int
    rounds: int


@dataclass(frozen=True)
class Ratio:
    """The ratio of two variants in one run."""

    what: str
    """E.g. "training step, fused / no relative positions"."""
    median: float
    quartiles: tuple[float, float]
    target: float | None = None
    """The largest acceptable ratio, if there is a target."""
    note: str = ""
    limit: str = ""
    """The best ratio that is theoretically possible, if it is known."""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None if there is no target."""
        return None if self.target is None else self.median <= self.target


@dataclass(frozen=True)
class Section:
    """The results of one benchmark."""

    title: str
    ratios: tuple[Ratio, ...]
    facts: Mapping[str, Any]
    """Measured seconds, bytes, rates and counts by name."""

    def to_json(self) -> dict[str, Any]:
        """The form in which it is saved in results/."""
        return asdict(self)


def take_turns(
    variants: Mapping[str, Callable[[], object]], rounds: int, *, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Seconds of every variant in every round; each round starts with a different variant.

    Work on an accelerator is waited for.
    """
    names = list(variants)
    for _ in range(warm_ups):
        for name in names:
            variants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _finish()
            started = time.perf_counter()
            variants[name]()
            _finish()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(
    what: str,
    over: list[float],
    under: list[float],
    *,
    target: float | None = None,
    note: str = "",
    limit: str = "",
) -> Ratio:
    """The ratio of two variants that took turns."""
    rounds = [a / b for a, b in zip(over, under, strict=True)]
    if len(rounds) == 1:
        return Ratio(what, rounds[0], (rounds[0], rounds[0]), target, note, limit)
    low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Ratio(what, median, (low, high), target, note, limit)


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Variant -> the median of its seconds."""
    return {f"{name}, s": statistics.median(found) for name, found in seconds.items()}


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak memory of PyTorch's CPU allocator while `work` runs, above the level before.

    Counted from the events of the allocator, so it is the same on every machine; memory that a
    library takes directly from the system is not included.
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = [
        event
        for event in profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def environment(options: Options) -> dict[str, Any]:
    """What every result states in addition to its numbers."""
    return {
        "command": command_of(sys.argv[1:]),
        "commit": commit_in_use(),
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {_cpu_model()}, {options.threads} threads",
        "versions": _versions(),
    }


def command_of(words: Sequence[str]) -> str:
    """The command as it is told: of absolute paths, which are of one machine, only the names."""
    named = (re.sub(r"(?<![\w.])/(?:[^/=]+/)*(?=[^/=]+$)", "", word) for word in words)
    return f"python -m benchmarks {shlex.join(named)}"


def commit_in_use() -> str:
    """The commit of the code, with `-dirty` if anything but results was changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return git("describe", "--always") + ("-dirty" if changed else "")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    units = [
        unit
        for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if any(unit in line.split() for line in lines if line.startswith("flags"))
    ]
    return f"{names[0] if names else platform.processor()} ({', '.join(units)})"
