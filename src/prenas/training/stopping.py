"""Requests to stop: the first Ctrl-C or SIGTERM lets the running step finish and be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


class Stopped(KeyboardInterrupt):
    """A training ended early, as asked, with everything saved."""

    def __init__(self, step: int, request: StopRequest) -> None:
        super().__init__(f"stopped after training step {step}, saved")
        self.step = step
        """Steps finished."""
        self.signal_number = request.signal_number or signal.SIGTERM
        """What asked for it; SIGTERM where another process was asked."""


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Takes SIGINT and SIGTERM as requests inside the block; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python lets nobody handle signals, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number

    before: dict[int, Callable[..., object] | int | None] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
