"""The lock of a run folder, so that one process writes there at a time. Needs no torch."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from prenas import artifacts

_SECONDS_TO_NOTICE = 15
_SECONDS_OF_STATUS = 0.5


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder that exists.

    Raises:
        ValueError: another process holds it, or the lock file is a link.
    """
    with _opened(folder / artifacts.LOCK) as lock:
        _take(lock, folder)
        try:
            yield
        finally:  # forked processes hold the file open too: closing it here would not be enough
            fcntl.flock(lock, fcntl.LOCK_UN)


def _opened(path: Path) -> TextIO:
    """The lock file, created if needed.

    A link is not followed: what it leads to would be overwritten.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise ValueError(
                f"{path} is a symbolic link, which would be overwritten: remove it"
            ) from None
        raise ValueError(f"cannot open {path} ({error.strerror}): remove it") from None
    return os.fdopen(descriptor, "a+")


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock; tries a shared one, so that callers do not collide."""
    try:
        with (folder / artifacts.LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:  # missing, or not readable for this user
        return False
    return False


def _take(lock: TextIO, folder: Path) -> None:
    """Locks the file for this process, and writes into it who holds the lock.

    Waits briefly for another process, because `prenas status` shares the lock for an instant. Waits
    longer if the other process was killed: the workers that read images for a training keep its
    lock until they notice, seconds later, that the training is gone.
    """
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            patience = _SECONDS_OF_STATUS if _is_alive(lock) else _SECONDS_TO_NOTICE
            if time.monotonic() - started > patience:
                raise ValueError(
                    f"another process is working on {folder}: wait for it to finish, or choose "
                    "another folder"
                ) from None
            time.sleep(0.1)
        else:
            lock.truncate(0)
            lock.write(f"{os.getpid()} {socket.gethostname()}")
            lock.flush()
            return


def _is_alive(lock: TextIO) -> bool:
    """Whether the process that took the lock still runs; True if that cannot be known."""
    lock.seek(0)
    number, _, host = lock.read().partition(" ")
    if host != socket.gethostname() or not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
