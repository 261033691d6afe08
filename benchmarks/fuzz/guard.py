"""Watches a case: which files it writes, which programs and connections it starts.

Python reports every such event to audit hooks, and a hook stays for the life of the process: this
one is installed once and is silent except inside `watched`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

_CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.symlink", "os.link"}
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CACHE = f"{gettempdir()}/torchinductor_"  # that of PyTorch's compiler, which importing it makes
_HARMLESS = ("/dev/null", "/dev/shm/", "/proc/", _CACHE)

_READERS = ("git",)  # asked for the commit of this package, with its optional locks off

_events: list[str] | None = None
_allowed = ""


class NoNetworkError(OSError):
    """A case tried to reach another machine."""


def _hook(event: str, values: tuple[Any, ...]) -> None:
    if _events is None:
        return
    if event == "socket.connect" and not isinstance(values[1], (str, bytes)):
        raise NoNetworkError("no network here")  # sockets with a path are those of data loaders
    if event in _STARTS and values[0] not in _READERS:
        _events.append(f"started {values[0]!r}")
    elif event == "open":
        path, _, flags = values
        is_refused = flags & os.O_NOFOLLOW and os.path.islink(path)  # the system opens nothing
        if isinstance(path, (str, bytes, os.PathLike)) and flags & _WRITING and not is_refused:
            _require_inside(_events, "opened for writing", path)
    elif event in ("os.rename", "os.replace"):
        _require_inside(_events, "renamed", values[0], values[2])
        _require_inside(_events, "renamed", values[1], values[3])
    elif event in _CHANGES:
        is_link = event in ("os.symlink", "os.link")
        folder = values[-1] if isinstance(values[-1], int) and event != "os.chmod" else -1
        _require_inside(_events, event, values[1 if is_link else 0], folder)


def _require_inside(events: list[str], what: str, path: Any, folder: int = -1) -> None:
    """Records a change of a file outside the allowed folder, links followed."""
    if isinstance(path, int):
        return
    name = os.fsdecode(path)
    if folder not in (-1, None):
        name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
    parent, last = os.path.split(os.path.abspath(name))
    real = os.path.join(os.path.realpath(parent), last)
    if what == "opened for writing":  # the other calls change a link itself
        real = os.path.realpath(name)
    if not real.startswith((_allowed, *_HARMLESS)):
        events.append(f"{what} {real}")


def install() -> None:
    """Installs the hook; once per process."""
    sys.addaudithook(_hook)


@contextmanager
def watched(allowed: Path) -> Iterator[list[str]]:
    """A list to which events inside the block are added that leave the allowed folder."""
    global _events, _allowed
    found: list[str] = []
    _allowed, _events = f"{allowed.resolve()}/", found
    try:
        yield found
    finally:
        _events = None
