"""Rows of results in a JSON file, to which several commands may add at the same time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prenas import artifacts

Row = dict[str, Any]


def stored_rows(file: Path) -> list[Row]:
    """The rows of a file, none if it is missing."""
    return json.loads(file.read_text())["rows"] if file.exists() else []


def add_row(file: Path, row: Row, key: Collection[str], **others: Any) -> list[Row]:
    """Adds a row, in place of those with the same values of `key`, and returns all rows.

    Args:
        others: what else the file holds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(file.parent):
        kept = [
            one
            for one in stored_rows(file)
            if any(one.get(name) != row.get(name) for name in key)
        ]  # fmt: skip
        rows = [*kept, row]
        text = json.dumps({**others, "rows": rows}, indent=1) + "\n"
        artifacts.write_bytes(file, text.encode())
    return rows


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other command adds to a file of this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
