"""The results of a section, collected row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.gpu.clock import Plan, Times, Work, kernel_work, milliseconds, take_turns
from benchmarks.gpu.sizes import Sizes
from benchmarks.paired import Ratio, Section, ratio


class Findings:
    """Rows and facts of one section.

    Args:
        device: the device to measure on.
        sizes: the size of the work, and how often it is repeated.
    """

    def __init__(self, title: str, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self._title = title
        self._ratios: list[Ratio] = []
        self._facts: dict[str, Any] = {}

    def times(
        self, what: str, variants: Mapping[str, Work], plan: Plan | None = None
    ) -> dict[str, Times]:
        """Times the variants, and records their times as facts."""
        found = take_turns(variants, plan or self.sizes.plan, self.device)
        for name, one in found.items():
            self._facts[f"{what}, {name}"] = {
                "ms": milliseconds(one.device),
                "ms of the process": milliseconds(one.host),
            }
        return found

    def compare(
        self,
        what: str,
        over: Times,
        under: Times,
        *,
        target: float | None = None,
        limit: str = "",
    ) -> None:
        """Adds a row: the ratio of one variant to another."""
        found = ratio(what, over.device, under.device, target=target, limit=limit)
        self._ratios.append(found)

    def exactly(self, what: str, value: float, *, target: float | None = None) -> None:
        """Adds a row for a ratio of counts, which is the same in every turn."""
        self._ratios.append(Ratio(what, value, (value, value), target))

    def fact(self, what: str, value: Any) -> None:
        """Adds a number or text that is not a ratio."""
        self._facts[what] = value

    def kernels(self, what: str, work: Work) -> None:
        """Records how many kernels a call starts and how long they take; does nothing on a CPU."""
        if self.device.type != "cuda":
            return
        found = kernel_work(work)
        self._facts[f"{what}, kernels"] = found.num_kernels
        self._facts[f"{what}, ms of kernels"] = round(found.busy_ms, 3)
        self._facts[f"{what}, where the device's time goes"] = found.shares

    def attempt(self, what: str, make: Callable[[], Work]) -> Work | None:
        """Makes and runs work that may be impossible on this machine; records why if it fails."""
        try:
            work = make()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:  # any failure is a result
            self.missing(what, f"{type(error).__name__}: {str(error).strip()[:400]}")
            return None
        return work

    def missing(self, what: str, reason: str) -> None:
        """Records that a row could not be measured, and why."""
        self._facts[f"not measured: {what}"] = reason

    def section(self) -> Section:
        """All results so far."""
        return Section(self._title, tuple(self._ratios), self._facts)
