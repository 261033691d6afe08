"""A run folder on disk: reads each file once, and lets one process write at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prenas import artifacts
from prenas.files import Stamp, exists, stamp_of
from prenas.processes import join
from prenas.runs.lock import held

T = TypeVar("T")

_FOLDERS = (
    artifacts.CHECKPOINTS, artifacts.SUBNETS, artifacts.REPORT_PICTURES, artifacts.TENSORBOARD,
)  # fmt: skip
"""The folders inside a run that every run may have."""


class RunFolder:
    """The files of a run: each is read once, and again only after it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[tuple[str, str], tuple[Stamp, Any]] = {}
        self._is_locked = False

    def has(self, name: str) -> bool:
        """Whether the folder has this file."""
        return exists(self.path / name)

    def read(self, name: str, read: Callable[[Path], T], kind: str = "content") -> T | None:
        """The result of `read` for a file; None if the file is missing.

        Args:
            kind: distinguishes the results of several functions for one file.
        """
        stamp = self._stamp(name)
        if stamp is None:
            return None
        kept, value = self._kept.get((name, kind), (None, None))
        if kept != stamp:
            value = read(self.path / name)
            self._kept[name, kind] = stamp, value
        return value

    def keep(self, name: str, value: object) -> None:
        """Remembers the content of a file that this process has just written."""
        stamp = self._stamp(name)
        if stamp is not None:
            self._kept[name, "content"] = stamp, value

    def sha256(self, name: str) -> str | None:
        """The digest of a file; None if it is missing."""
        return self.read(name, artifacts.sha256, "sha256")

    def write_json(self, name: str, document: Mapping[str, Any], value: object) -> None:
        """Writes a JSON file; `value` is what reading it would return."""
        artifacts.write_json(self.path / name, document)
        self.keep(name, value)

    @contextmanager
    def locked(self, check: Callable[[], None]) -> Iterator[None]:
        """Locks the folder for this process, and creates it if needed; may be nested.

        If a run has several processes, the first one takes the lock for all of them.

        Args:
            check: called with the lock held, before anything is changed; raises to refuse.

        Raises:
            ValueError: the folder is not writable or has other files, or another process works on
                it.
        """
        if self._is_locked or not join().is_main:
            yield
            return
        self.require_run_folder()
        for name in _FOLDERS:
            artifacts.require_own_folder(self.path / name)
        artifacts.require_writable(self.path)
        with held(self.path):
            check()
            for folder in (self.path, *self._inner_folders()):
                artifacts.remove_leftovers(folder, keeps_running_folders=True)  # exports: no lock
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def _inner_folders(self) -> Iterator[Path]:
        """The folders inside the run in which single files are written."""
        yield self.path / artifacts.REPORT_PICTURES
        yield from (path for path in self.path.glob(f"{artifacts.SUBNETS}/*") if path.is_dir())

    def require_run_folder(self) -> None:
        """Raises ValueError if the path is a file, or a folder with other files or a bad name."""
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of {self.path} is not UTF-8, so files of weights in it could not be "
                "read: choose another --out folder"
            ) from None
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: give a folder")
        if self.has(artifacts.RECIPE) or not self.path.exists():
            return
        before = (artifacts.LATENCY,)  # is written before the recipe
        if any(not p.name.startswith(".") and p.name not in before for p in self.path.iterdir()):
            raise ValueError(
                f"{self.path} is neither empty nor a run folder of prenas: choose an empty or a "
                "new folder"
            )

    def _stamp(self, name: str) -> Stamp | None:
        try:
            return stamp_of(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
