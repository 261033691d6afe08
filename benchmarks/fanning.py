"""Independent parts of an experiment, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import Any, NamedTuple, TypeVar

from prenas.training.stopping import stop_requests

T = TypeVar("T")
R = TypeVar("R")

_BETWEEN_LOOKS = 0.5  # seconds; whether a stop was asked for


class Failure(NamedTuple):
    """Why a part has no result."""

    reason: str
    """One line."""
    trace: str
    """The traceback, empty if the process died."""


def fan_out(
    work: Callable[[T], R], parts: Sequence[T], workers: int
) -> Iterator[tuple[T, R | Failure]]:
    """(part, result) of every part, as they end; a part that fails leaves the others alone.

    On Ctrl-C or SIGTERM no further part is started, and those that run are asked to stop; a
    training saves itself then. A process whose parent has died ends at once.

    Args:
        work: with one worker called here, else in new processes, to which it and the parts are
            pickled.
        workers: number of processes at a time.

    Raises:
        KeyboardInterrupt: a stop was asked for; all processes have ended.
    """
    if workers == 1:
        for part in parts:
            yield part, _attempt(work, part)
        return
    with stop_requests() as request, ThreadPoolExecutor(workers) as slots:
        running = {slots.submit(_in_process, work, part): part for part in parts}
        try:
            while running:
                if request:
                    _ask_to_stop(running)
                for future in wait(running, _BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
                    part, is_left_out = running.pop(future), future.cancelled()
                    found = None if is_left_out else future.result()
                    if found is not None and not (request and isinstance(found, Failure)):
                        yield part, found
        finally:  # the caller may have given up
            while running and not all(future.done() for future in running):
                _ask_to_stop(running)
                wait(running, _BETWEEN_LOOKS)
        if request:
            raise KeyboardInterrupt


def _ask_to_stop(running: Iterable[Future[Any]]) -> None:
    for future in running:
        future.cancel()
    for child in active_children():
        child.terminate()  # SIGTERM, which a training takes as a request


def _attempt(work: Callable[[T], R], part: T) -> R | Failure:
    try:
        return work(part)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _in_process(work: Callable[[T], R], part: T) -> R | Failure:
    """The result from a process that is used only once, so that its death is that of this part."""
    with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as process:
        try:
            return process.submit(_stoppable, work, part).result()
        except BrokenProcessPool:
            return Failure("its process died, perhaps for lack of memory", "")


def _stoppable(work: Callable[[T], R], part: T) -> R | Failure:
    try:
        return _attempt(work, part)
    except KeyboardInterrupt:
        return Failure("it was asked to stop", "")


def _end_with_parent() -> None:
    """Ends this process when its parent has died: it would wait for more work for ever."""
    parent = parent_process()
    assert parent is not None, "only started processes call this"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
