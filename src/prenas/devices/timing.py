"""How long one call takes: variants in turn, medians, and how far the turns differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from prenas.proxy.scores import Floats

WARM_UPS = 5
ROUNDS = 30
MOST_SPREAD = 0.1
"""Beyond this spread, times are called unsteady: the machine did something else as well."""
MOST_PACE = 0.25
"""The same for the machine's pace, which all calls have in common."""

_NEIGHBOURS = 8
"""Calls before and after one that show the machine's pace at that moment."""
_TURNS = 3
"""Estimates of the typical times and of the pace, each from the other."""
_SHORT = 5e-4  # seconds
_LARGE_BLOCK = 31 * 2**20  # bytes: just below the largest that glibc keeps for the next request


class Latency(NamedTuple):
    """Seconds of one call."""

    median: float
    """At the typical pace of the machine."""
    spread: float
    """Half the distance between the quartiles, relative to the median, at equal pace."""
    halves: tuple[float, float]
    """The medians of every other round, which differ by the noise of the measurement."""
    pace: float = 0.0
    """How much the pace of the machine varied meanwhile, which all calls have in common: half the
    distance between the quartiles, relative to the typical pace."""


def latencies(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    threads: int = 1,
    least_seconds: float = 0.0,
) -> dict[str, Latency]:
    """Times several calls in turn, so that a busy moment touches all of them alike.

    PyTorch uses so many threads meanwhile; other engines have their own.

    On many machines, virtual ones above all, the pace changes within tenths of a second, because
    others share the processor's caches, memory and clock. Calls that follow each other are slower
    together then. So the pace at every moment is estimated from the calls around it, and taken out.

    Each is called once more at the beginning of its turn, because the others took the caches: those
    of the processor, and those in which engines keep prepared operations.

    With one thread, the time is what the processor spends on the process, which does not grow when
    another program has its turn; with more, it is what a clock on the wall shows. So it is if the
    processor's time moves in ticks only, as it does under some profilers.

    Memory is as in a process that has been running for a while: what a call frees is kept for the
    next one. Otherwise PyTorch's times would depend on what the process did before, by up to 15 %.

    Args:
        threads: that the calls use.
        least_seconds: a call that takes less is repeated within each round.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _timed(calls, rounds, threads, least_seconds)
    finally:
        torch.set_num_threads(before)


def _timed(
    calls: Mapping[str, Callable[[], object]], rounds: int, threads: int, least_seconds: float
) -> dict[str, Latency]:
    clock = time.process_time if threads == 1 and _is_fine() else time.perf_counter
    _free_a_large_block()
    repeats = {}
    for name, call in calls.items():
        for _ in range(WARM_UPS):
            call()
        started = clock()
        call()
        repeats[name] = 1 + int(least_seconds / max(clock() - started, 1e-7))
    seconds = np.empty((rounds, len(calls)))
    for turn in seconds:
        for place, (name, call) in enumerate(calls.items()):
            call()
            started = clock()
            for _ in range(repeats[name]):
                call()
            turn[place] = (clock() - started) / repeats[name]
    even, pace = at_equal_pace(seconds)
    return {name: _latency(found, pace) for name, found in zip(calls, even.T.tolist(), strict=True)}


def at_equal_pace(seconds: Floats) -> tuple[Floats, float]:
    """Times as they would be at the typical pace of the machine, and how much the pace varied.

    The logarithm of a time is that of the call, plus that of the pace at this moment. The first is
    the median over all rounds, the second the median over the calls just before and after, without
    the call itself: otherwise its own noise would be taken for pace.

    Args:
        seconds: [rounds, calls], in the order in which they were timed.
    """
    logs = np.log(np.maximum(seconds, np.finfo(np.float64).tiny))
    pace = np.zeros_like(logs)
    for _ in range(_TURNS):
        typical = np.median(logs - pace, axis=0)
        pace = _around((logs - typical).ravel()).reshape(logs.shape)
        pace -= np.median(pace)
    low, high = np.quantile(pace, (0.25, 0.75))
    return np.exp(logs - pace), float(np.exp(high) - np.exp(low)) / 2


def _around(values: Floats) -> Floats:
    """The median of the neighbours of each value, without itself; 0 if there are none."""
    if len(values) < 2:
        return np.zeros_like(values)
    padded = np.pad(values, _NEIGHBOURS, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1)
    found: Floats = np.nanmedian(np.delete(windows, _NEIGHBOURS, axis=1), axis=1)
    return found


def _is_fine() -> bool:
    """Whether the time of the process moves in each of twenty half milliseconds of work."""

    def passed() -> float:
        started, begun = time.process_time(), time.perf_counter()
        while time.perf_counter() - begun < _SHORT:
            pass
        return time.process_time() - started

    return all(passed() > 0 for _ in range(20))


def _free_a_large_block() -> None:
    """Makes glibc keep freed blocks of up to this size, as each process does sooner or later.

    Until then every call gets its activations anew from the system, filled with zeros; then calls
    are suddenly faster. This only brings that moment forward: `prenas.memory`, with which the
    commands keep more, is for programs to call, and the timing may run in a user's own.
    """
    bytearray(_LARGE_BLOCK)


def _latency(seconds: list[float], pace: float) -> Latency:
    ordered, quarter, middle = sorted(seconds), len(seconds) // 4, median(seconds)
    spread = (ordered[-1 - quarter] - ordered[quarter]) / 2 / middle
    return Latency(middle, spread, (median(seconds[::2]), median(seconds[1::2])), pace)
