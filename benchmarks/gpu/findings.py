"""What a section finds, collected row by row."""

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
        device: where it is measured.
        sizes: how large the works are, and how often they are done.
    """

    def __init__(self, title: str, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self._title = title
        self._ratios: list[Ratio] = []
        self._facts: dict[str, Any] = {}

    def times(
        self, what: str, variants: Mapping[str, Work], plan: Plan | None = None
    ) -> dict[str, Times]:
        """Times of variants, which also become facts under the name of what is timed."""
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
        """A row: one variant over another."""
        found = ratio(what, over.device, under.device, target=target, limit=limit)
        self._ratios.append(found)

    def exactly(self, what: str, value: float, *, target: float | None = None) -> None:
        """A row of counts, the same in every turn."""
        self._ratios.append(Ratio(what, value, (value, value), target))

    def fact(self, what: str, value: Any) -> None:
        """A number, or words, beside the rows."""
        self._facts[what] = value

    def kernels(self, what: str, work: Work) -> None:
        """How many kernels a call starts, and how long they take; nothing on a processor."""
        if self.device.type != "cuda":
            return
        found = kernel_work(work)
        self._facts[f"{what}, kernels"] = found.num_kernels
        self._facts[f"{what}, ms of kernels"] = round(found.busy_ms, 3)
        self._facts[f"{what}, where the device's time goes"] = found.shares

    def attempt(self, what: str, make: Callable[[], Work]) -> Work | None:
        """What may be impossible on this machine: the work, after a call; or None, and why."""
        try:
            work = make()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:  # whatever it is, it is the finding
            self.missing(what, f"{type(error).__name__}: {str(error).strip()[:400]}")
            return None
        return work

    def missing(self, what: str, reason: str) -> None:
        """A row that could not be measured."""
        self._facts[f"not measured: {what}"] = reason

    def section(self) -> Section:
        """Everything that was found."""
        return Section(self._title, tuple(self._ratios), self._facts)
