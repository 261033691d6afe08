"""How long one call takes: variants in turn, medians, and how far the turns differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

WARM_UPS = 5
ROUNDS = 30


class Latency(NamedTuple):
    """Seconds of one call."""

    median: float
    spread: float
    """Half the distance between the quartiles, relative to the median."""


def latencies(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS
) -> dict[str, Latency]:
    """Times several calls in turn, so that a busy moment touches all of them alike."""
    for call in calls.values():
        for _ in range(WARM_UPS):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: _latency(sorted(found)) for name, found in seconds.items()}


def _latency(ordered: list[float]) -> Latency:
    quarter = len(ordered) // 4
    middle = median(ordered)
    return Latency(middle, (ordered[-1 - quarter] - ordered[quarter]) / 2 / middle)
