"""Reading files: regular ones of bounded size, JSON of bounded depth, and what tells of changes."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from io import BufferedReader, FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

MOST_JSON_BYTES = 2**26
"""The largest JSON file of a run: that of a search with ten thousand budgets is a tenth of it."""
MOST_DIGITS = 4000
"""Digits of an integer in JSON; Python writes and reads at most 4,300."""

_MOST_DEPTH = 100
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class Stamp(NamedTuple):
    """What changes when a file's content or a folder's entries do."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a file or folder; OSError if there is none."""
    found = os.stat(path)
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def exists(path: str | Path) -> bool:
    """Whether a file or folder is there.

    Since Python 3.14, `Path.exists` says no as well where looking is not allowed.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a zero byte
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # links that lead to each other
            return False
        raise
    return True


class _NamedFile(FileIO):
    """Names itself when it cannot be read; a bad sector or a lost network disk shows only then."""

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise _unreadable(self.name, error) from None

    def readall(self) -> bytes | None:  # type: ignore[override]
        try:
            return super().readall()
        except OSError as error:
            raise _unreadable(self.name, error) from None


def _unreadable(path: object, error: OSError) -> OSError:
    return OSError(f"{path} cannot be read: {error.strerror or error}")


def open_file(path: Path) -> BufferedReader:
    """Opens a regular file to read its bytes; raises as `require_regular`, or if it is secret.

    What cannot be read later raises OSError, too, which names the file.
    """
    require_regular(path)
    try:
        return BufferedReader(_NamedFile(path))
    except OSError as error:
        raise _unreadable(path, error) from None


def require_regular(path: Path) -> None:
    """Refuses what is no regular file, without opening it.

    Raises:
        FileNotFoundError: the file is missing.
        OSError: it cannot be looked at; the message names it.
        ValueError: it is a folder, a pipe or a device, which may never end.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is {_KINDS.get(kind, 'a special file')}, not a regular file")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: the file is missing.
        OSError: it cannot be read; the message names it.
        ValueError: it is not a regular file, or longer than `most_bytes`.
    """
    with open_file(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(
            f"{path} is longer than {most_bytes:,} bytes, the most that prenas reads of such a "
            "file: check the path"
        )
    return content


def mistaken_for(start: bytes) -> str | None:
    """What a file is that should contain weights, and what to do, by its first bytes.

    None if it is not one of the things that people often download by mistake.
    """
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, which only names the file: run `git lfs pull` in its repository"
        )
    if text.startswith((b"<!doctype html", b"<html")):
        return (
            "is an HTML page: use the link of the file itself, not that of the page that shows it, "
            "and log in if the page asks for it"
        )
    return None


def load_json(
    content: str | bytes,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a JSON text, in UTF-8 if it is given as bytes.

    Raises:
        ValueError: it is not JSON, nested too deeply, or contains an integer with too many digits;
            the message says which.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        value = json.loads(text, parse_int=_integer, object_pairs_hook=object_pairs_hook)
    except RecursionError:  # at a depth that depends on the version of Python
        raise _too_deep() from None
    except json.JSONDecodeError:
        if _depth_of(text) > _MOST_DEPTH:
            raise _too_deep() from None
        raise
    check_depth(value)
    return value


def _depth_of(text: str) -> int:
    """How deeply lists and objects are nested in a text, which need not be whole."""
    outside_texts = "".join(re.sub(r"\\.", "", text, flags=re.DOTALL).split('"')[::2])
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", outside_texts))
    return max(accumulate(steps), default=0)


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(
            f"an integer has {len(digits):,} digits: at most {MOST_DIGITS:,} are allowed"
        )
    return int(digits)


def check_depth(value: object) -> None:
    """Raises ValueError for lists and objects inside each other that no file of ours needs."""
    level = [value]
    for _ in range(_MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more deeply than {_MOST_DEPTH} levels")
