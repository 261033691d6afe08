"""What was found out about files, kept in memory as long as the files stay as they are.

One command needs the names of its pictures several times: to count the classes, to warn, to train.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from prenas.files import Stamp, stamp_of

T = TypeVar("T")

_MOST = 4  # results: one for each split that is somewhere else, and one more
_SETTLED_NS = 2 * 10**9  # a change soon after another one may leave the time that a disk notes


class Unchanged(Generic[T]):
    """Results by name, made again if one of the files that they depend on was changed."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[T, dict[str, Stamp]]] = {}

    def get(self, name: Hashable, make: Callable[[dict[str, Stamp]], T]) -> T:
        """The result of that name, such as the path of a folder.

        Args:
            make: makes the result, and adds the stamps of all that it depends on, each taken
                before it is read.
        """
        result, stamps = self._kept.pop(name, (None, {}))
        if result is None or not _are_unchanged(stamps.items()):
            started, stamps = time.time_ns(), {}
            result = make(stamps)
            if max(stamp.changed_ns for stamp in stamps.values()) > started - _SETTLED_NS:
                return result
        self._kept[name] = result, stamps
        while len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
        return result


def _are_unchanged(stamps: Iterable[tuple[str, Stamp]]) -> bool:
    try:
        return all(stamp_of(path) == stamp for path, stamp in stamps)
    except OSError:
        return False
