"""Requests to stop: on the first Ctrl-C or SIGTERM, the current step is finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


class Stopped(KeyboardInterrupt):
    """The training was stopped early on request; everything is saved."""

    def __init__(self, step: int, request: StopRequest) -> None:
        super().__init__(f"stopped and saved after training step {step}")
        self.step = step
        """Number of finished steps."""
        self.signal_number = request.signal_number or signal.SIGTERM
        """The signal that asked for it; SIGTERM if another process received the signal."""


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Treats SIGINT and SIGTERM in the block as requests; a second Ctrl-C interrupts at once.

    Does nothing outside the main thread, where Python does not allow signal handlers.
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
