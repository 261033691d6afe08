"""Many names in little memory: one block of letters, and where each name begins and ends.

A million names of 30 letters take 46 MB here, and 88 MB as a tuple of strings.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

Positions: TypeAlias = NDArray[np.int64]

_CODE = ("utf-8", "surrogatepass")  # bytes of names sort as the names; a file's may be no text
_AT_ONCE = 100_000  # names that are taken apart together
_AFTER_SLASH = chr(ord("/") + 1)


class Names(Sequence[str]):
    """A sequence of texts; 16 bytes each, and their letters, which parts of it share."""

    def __init__(self, letters: bytes | bytearray, starts: Positions, stops: Positions) -> None:
        self._letters, self._starts, self._stops = letters, starts, stops

    @staticmethod
    def of(names: Iterable[str]) -> Names:
        """The same names; one that is compact already is returned as it is."""
        return names if isinstance(names, Names) else Names(*_packed(names))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return Names(self._letters, self._starts[index], self._stops[index])
        return self._letters[self._starts[index] : self._stops[index]].decode(*_CODE)

    def __iter__(self) -> Iterator[str]:
        letters = self._letters
        for first in range(0, len(self), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            bounds = zip(self._starts[part].tolist(), self._stops[part].tolist(), strict=True)
            for start, stop in bounds:
                yield letters[start:stop].decode(*_CODE)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Positions) -> Names:
        """Some of the names, in the given order."""
        return Names(self._letters, self._starts[indices], self._stops[indices])

    def packed(self) -> tuple[NDArray[np.uint8], Positions]:
        """The letters of all names one after another, uint8 [L], and where each ends, [N + 1]."""
        letters, _, stops = _packed(self)
        return np.asarray(letters), np.concatenate([[0], stops])

    @classmethod
    def unpacked(cls, letters: NDArray[np.uint8], bounds: Positions) -> Self:
        """The inverse of `packed`."""
        return cls(letters.tobytes(), bounds[:-1], bounds[1:])


def _packed(names: Iterable[str]) -> tuple[bytearray, Positions, Positions]:
    letters, bounds = bytearray(), array("q", [0])
    for name in names:
        letters += name.encode(*_CODE)
        bounds.append(len(letters))
    ends = np.frombuffer(bounds, np.int64)
    return letters, ends[:-1], ends[1:]


class _Tops(NamedTuple):
    folders: Mapping[str, range]
    loose: Sequence[int]


class SortedNames(Names):
    """Names of files, with forward slashes, in ascending order and each once."""

    @staticmethod
    def of_sorted(names: Iterable[str]) -> SortedNames:
        """The names, which must come in ascending order."""
        return SortedNames(*_packed(names))

    def position(self, name: str) -> int:
        """Where a name is; KeyError if it is not there."""
        index = bisect_left(self, name)
        if index == len(self) or self[index] != name:
            raise KeyError(name)
        return index

    def below(self, folder: str) -> range:
        """Where the names inside a folder are: all next to each other."""
        start = bisect_left(self, f"{folder}/")
        return range(start, bisect_left(self, f"{folder}{_AFTER_SLASH}", start))

    def inside(self, folder: str) -> SortedNames:
        """The names inside a folder, relative to it."""
        where, prefix = self.below(folder), len(f"{folder}/".encode(*_CODE))
        part = slice(where.start, where.stop)
        return SortedNames(self._letters, self._starts[part] + prefix, self._stops[part])

    def without(self, folders: Iterable[str]) -> SortedNames:
        """The names that are in none of these folders."""
        keep = np.ones(len(self), dtype=bool)
        for folder in folders:
            where = self.below(folder)
            keep[where.start : where.stop] = False
        return self.chosen(keep)

    def chosen(self, mask: NDArray[np.bool_]) -> SortedNames:
        """The names where the mask, [N], is true."""
        if mask.all():
            return self
        return SortedNames(self._letters, self._starts[mask], self._stops[mask])

    @property
    def folders(self) -> Mapping[str, range]:
        """Top-level folder -> where the names inside it are."""
        return self._tops.folders

    @property
    def loose(self) -> Sequence[int]:
        """Where the names outside all folders are."""
        return self._tops.loose

    @cached_property
    def _tops(self) -> _Tops:
        folders, loose, index = {}, array("q"), 0
        while index < len(self):
            folder, slash, _ = self[index].partition("/")
            if slash:
                folders[folder] = self.below(folder)
                index = folders[folder].stop
            else:
                loose.append(index)
                index += 1
        return _Tops(folders, loose)


class Integers(Sequence[int]):
    """Integers of 8 bytes each, possibly found out when one of them is first needed."""

    def __init__(self, length: int, measure: Callable[[], array[int]]) -> None:
        """`measure`: finds out all of them."""
        self._length, self._measure = length, measure

    @staticmethod
    def of(values: Iterable[int] | NDArray[np.integer[Any]]) -> Integers:
        """The same integers; those that are compact already are returned as they are."""
        if isinstance(values, Integers):
            return values
        if isinstance(values, np.ndarray):
            found = array("q")
            found.frombytes(np.ascontiguousarray(values, np.int64).view(np.uint8).data)
        else:
            found = values if isinstance(values, array) else array("q", values)
        return Integers(len(found), lambda: found)

    @cached_property
    def numbers(self) -> array[int]:
        """All of them."""
        return self._measure()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Integers: ...
    def __getitem__(self, index: int | slice) -> int | Integers:
        if isinstance(index, slice):
            length = len(range(*index.indices(self._length)))
            return Integers(length, lambda: self.numbers[index])
        return self.numbers[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __array__(self, *_: object, **__: object) -> Positions:
        return np.asarray(self.numbers)

    def __eq__(self, other: object) -> bool:
        return self.numbers == other.numbers if isinstance(other, Integers) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Positions) -> Integers:
        """Some of them, in the given order."""
        return Integers(
            len(indices), lambda: Integers.of(np.asarray(self.numbers)[indices]).numbers
        )


class Sizes(Mapping[str, int]):
    """Name of a file -> its bytes, in ascending order of the names.

    The bytes are `Integers`, because asking for them takes far longer than listing the names.
    """

    def __init__(self, names: SortedNames, measured: Integers) -> None:
        self.names, self.measured = names, measured

    def inside(self, folder: str) -> Sizes:
        """The files inside a folder, with names relative to it."""
        where = self.names.below(folder)
        return Sizes(self.names.inside(folder), self.measured[where.start : where.stop])

    def __getitem__(self, name: str) -> int:
        return self.measured[self.names.position(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
