"""A run folder on disk: what was read of its files, and who may write there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from prenas import artifacts
from prenas.processes import join
from prenas.runs.lock import held

T = TypeVar("T")


class _State(NamedTuple):
    """What tells a file from the one that was there before."""

    inode: int
    size: int
    mtime_ns: int


class RunFolder:
    """Reads each file once, and again only after it has changed; writes under its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[tuple[str, str], tuple[_State, Any]] = {}
        self._is_locked = False

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).exists()

    def read(self, name: str, read: Callable[[Path], T], kind: str = "content") -> T | None:
        """What `read` makes of a file; None where it is missing.

        Args:
            kind: tells apart what several functions make of one file.
        """
        state = self._state(name)
        if state is None:
            return None
        kept, value = self._kept.get((name, kind), (None, None))
        if kept != state:
            value = read(self.path / name)
            self._kept[name, kind] = state, value
        return value

    def keep(self, name: str, value: object) -> None:
        """Remembers what a file says that this process has just written."""
        state = self._state(name)
        if state is not None:
            self._kept[name, "content"] = state, value

    def sha256(self, name: str) -> str | None:
        """The digest of a file; None where it is missing."""
        return self.read(name, artifacts.sha256, "sha256")

    def write_json(self, name: str, document: Mapping[str, Any], value: object) -> None:
        """Writes a JSON file; `value` is what reading it would give."""
        artifacts.write_json(self.path / name, document)
        self.keep(name, value)

    @contextmanager
    def locked(self, check: Callable[[], None]) -> Iterator[None]:
        """Holds the folder, which is made if missing, for this process alone; may be nested.

        Of several processes of one run the first one holds the lock for all.

        Args:
            check: called once the lock is held, before anything is changed; may refuse.

        Raises:
            ValueError: no right to write, other files there, or another process.
        """
        if self._is_locked or not join().is_main:
            yield
            return
        self._require_run_folder()
        artifacts.require_writable(self.path)
        with held(self.path):
            check()
            for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                leftover.unlink()
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def _require_run_folder(self) -> None:
        """Raises ValueError if there is something else than a run, or nothing, at the path."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: give a folder")
        if self.has(artifacts.RECIPE) or not self.path.exists():
            return
        if any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise ValueError(
                f"{self.path} is not empty and no run folder of prenas: choose an empty or a new "
                "folder"
            )

    def _state(self, name: str) -> _State | None:
        try:
            found = (self.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _State(found.st_ino, found.st_size, found.st_mtime_ns)
