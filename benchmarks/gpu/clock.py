"""Timing on an accelerator: variants take turns of several calls, timed on device and host."""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import paired

Work = Callable[[], object]

_NUM_SHARES = 12


class Plan(NamedTuple):
    """How often each variant is called."""

    warm_ups: int
    turns: int
    calls: int
    """Calls per turn, without waiting for the device between them."""

    def fewer(self, factor: int) -> Plan:
        """A plan for calls that take `factor` times as long."""
        return Plan(max(1, self.warm_ups // factor), max(2, self.turns // factor), self.calls)


@dataclass
class Times:
    """Milliseconds per call of one variant, one number per turn."""

    device: list[float] = field(default_factory=list)
    """Between the first and last event of a turn on the device; wall-clock time on a CPU."""
    host: list[float] = field(default_factory=list)
    """Until the calls have returned: the time that the training process is busy or waits."""


def take_turns(variants: Mapping[str, Work], plan: Plan, device: torch.device) -> dict[str, Times]:
    """Times all variants in turns; each round starts with a different variant.

    The device is idle when a turn starts. Within a turn, calls follow each other as in a training:
    the device may still work on one while the next is prepared.
    """
    names = list(variants)
    for name in names:
        for _ in range(plan.warm_ups):
            variants[name]()
    times = {name: Times() for name in names}
    turn = _device_turn if device.type == "cuda" else _processor_turn
    for number in range(plan.turns):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            whole, host = turn(variants[name], plan.calls)
            times[name].device.append(whole / plan.calls)
            times[name].host.append(host / plan.calls)
    return times


def _device_turn(work: Work, calls: int) -> tuple[float, float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started = time.perf_counter()
    begin.record()  # type: ignore[no-untyped-call]
    for _ in range(calls):
        work()
    host = 1000 * (time.perf_counter() - started)
    end.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return begin.elapsed_time(end), host  # type: ignore[no-untyped-call]


def _processor_turn(work: Work, calls: int) -> tuple[float, float]:
    started = time.perf_counter()
    for _ in range(calls):
        work()
    passed = 1000 * (time.perf_counter() - started)
    return passed, passed


class KernelWork(NamedTuple):
    """The work of one call on the device."""

    num_kernels: int
    """Including copies and fills."""
    busy_ms: float
    shares: dict[str, float]
    """Kernel -> its share of the busy time, for the most expensive kernels."""


def kernel_work(work: Work) -> KernelWork:
    """Counts the kernels of a call and adds up their times.

    If the sum is less than the time of the call, the device was waiting.
    """
    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    kernels = [
        event
        for event in found.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    micros = Counter[str]()
    for event in kernels:
        micros[event.name[:90]] += event.time_range.elapsed_us()
    total = sum(micros.values())
    shares = {name: round(one / total, 3) for name, one in micros.most_common(_NUM_SHARES)}
    return KernelWork(len(kernels), total / 1000, shares)


def peak_bytes(build: Callable[[], Work], device: torch.device) -> int:
    """Peak memory of building a step and running it twice, including its state."""
    if device.type != "cuda":
        return paired.peak_bytes(lambda: build()())
    clean_up()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = build()
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def clean_up() -> None:
    """Frees the memory of earlier work, including compiled graphs."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def milliseconds(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, high = (values[0], values[0])
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    median = statistics.median(values)
    return {name: round(one, 4) for name, one in zip(_SPREAD, (median, low, high), strict=True)}


_SPREAD = ("median", "lower quartile", "upper quartile")
