"""Uncompressed tars: their members, read one by one, and pictures read by their offset."""

from __future__ import annotations

import posixpath
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from prenas.data.names import SortedNames
from prenas.data.opening import PICTURE_ENDINGS, check_size, open_picture
from prenas.files import mistaken_for, require_regular

_MOST_LINKS = 8  # in a row
_MOST_PADDING = 2**24  # bytes; tar fills its last record, of 10 KiB, with zeros
_MOST_SIZE = 2**63 - 1  # a sparse file may claim more
_ARCHIVES = {
    b"PK": "a zip",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
}
_TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xlsx")


def members_of(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, none of which is kept.

    The standard library's reader believes every size in a header, and calls itself for each header
    that extends the next one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an uncompressed tar, it is truncated, or it cannot be read.
    """
    require_regular(path)
    num_members = 0
    try:
        with tarfile.open(path, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # each takes a kilobyte
                num_members += 1
                yield member
            _check_end(path, tar.offset, num_members)
    except (tarfile.TarError, EOFError) as error:
        raise _refusal(path, str(error)) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    except (ValueError, OverflowError, MemoryError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise _refusal(path, f"its headers cannot be read: {reason}") from None


def _refusal(path: Path, reason: str) -> ValueError:
    what = _kind_of(path)
    return ValueError(
        f"{path} is {f'{what}, ' if what else ''}not an uncompressed tar"
        + ("" if what else f", or it is truncated ({reason})")
        + ": give a folder, or an uncompressed tar of one"
    )


def _kind_of(path: Path) -> str | None:
    """What a file is that is not a tar; None if it is none of the usual mistakes."""
    with path.open("rb") as file:
        start = file.read(100)
    if path.suffix.lower() in PICTURE_ENDINGS:
        return "a single picture"
    if path.suffix.lower() in _TABLES:
        return f"a table or text ({path.suffix})"
    if mistaken := mistaken_for(start):
        return mistaken.removeprefix("is ").partition(":")[0]
    return next((kind for magic, kind in _ARCHIVES.items() if start.startswith(magic)), None)


def _check_end(path: Path, offset: int, num_members: int) -> None:
    """Raises TarError if anything but the zeros that end a tar follows the members.

    The standard library's reader takes a truncated or damaged header for the end, and one block of
    zeros among the members, such as a bad sector, as well.
    """
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(_MOST_PADDING + 1)
    if rest[: tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end mark after {num_members} members")
    if len(rest) > _MOST_PADDING or rest.strip(b"\0"):
        raise tarfile.ReadError(
            f"more follows after the end mark behind {num_members} members: it is damaged, or "
            "several tars were joined other than by tar -A"
        )


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether the content of a member stands in the tar as it is, in one piece."""
    return member.isfile() and getattr(member, "sparse", None) is None


class _Content(NamedTuple):
    """Where the content of a member is that is not plain."""

    size: int = 0
    parts: tuple[tuple[int, int, int], ...] = ()
    """(offset in the content, offset in the tar, bytes); a sparse file has zeros in between."""
    missing: str | None = None
    """What a link leads to that is not in the tar."""


class TarFiles:
    """The files in a tar: their names, and where the content of each is."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if it is not a tar, or contains names that lead out of it."""
        self.path = path
        self._plain: dict[str, int] = {}
        self._starts, self._sizes = array("q"), array("q")
        self._others: dict[str, tarfile.TarInfo] = {}
        for member in members_of(path):
            name = posixpath.normpath(member.name)
            if name.startswith("/") or name.split("/")[0] == "..":
                raise ValueError(
                    f"{path} contains a file named {name!r}, outside the tar: pack the folder with "
                    "relative names (tar -C FOLDER -cf photos.tar .)"
                )
            self._plain.pop(name, None)  # of two members with one name, the last is unpacked
            self._others.pop(name, None)
            if is_plain(member):
                self._plain[name] = len(self._starts)
                self._starts.append(member.offset_data)
                self._sizes.append(member.size)
            else:
                self._others[name] = member

    @property
    def names(self) -> list[str]:
        """All files, sorted; pipes and devices too, which are unreadable, as in a folder."""
        others = (name for name, member in self._others.items() if not member.isdir())
        return sorted([*self._plain, *others])

    @property
    def links(self) -> tuple[str, ...]:
        """Links without the ending of a picture that lead to no file of the tar, sorted."""
        return tuple(
            sorted(
                name
                for name, member in self._others.items()
                if (member.issym() or member.islnk())
                and posixpath.splitext(name)[1].lower() not in PICTURE_ENDINGS
                and self._content(member).missing is not None
            )
        )

    @property
    def folders(self) -> list[str]:
        """All folders that are members."""
        return [name for name, each in self._others.items() if each.isdir() and name != "."]

    def pictures(self, names: SortedNames) -> TarPictures:
        """Opens some of the files as pictures."""
        starts, sizes, others = array("q"), array("q"), {}
        for name in names:
            if (index := self._plain.get(name)) is not None:
                starts.append(self._starts[index])
                sizes.append(self._sizes[index])
            else:
                others[name] = content = self._content(self._others[name])
                starts.append(0)
                sizes.append(min(content.size, _MOST_SIZE))
        return TarPictures(self.path, names, starts, sizes, others)

    def _content(self, member: tarfile.TarInfo) -> _Content:
        """The content of a sparse file, or of a link's target."""
        for _ in range(_MOST_LINKS):
            if member.isfile():
                return _Content(member.size, tuple(_parts(member)))
            base = posixpath.dirname(member.name) if member.issym() else ""
            target = posixpath.normpath(posixpath.join(base, member.linkname))
            if (index := self._plain.get(target)) is not None:
                size = self._sizes[index]
                return _Content(size, ((0, self._starts[index], size),))
            if target not in self._others:
                break
            member = self._others[target]
        return _Content(missing=member.linkname)


def _parts(member: tarfile.TarInfo) -> Iterator[tuple[int, int, int]]:
    """The stored parts of a sparse file, those that are not zero."""
    sparse: list[tuple[int, int]] = getattr(member, "sparse", None) or [(0, member.size)]
    offset = member.offset_data
    for start, size in sparse:
        if size:
            yield start, offset, size
        offset += size


class TarPictures:
    """Reads members directly from the tar, without unpacking; safe in any thread or process."""

    def __init__(
        self,
        path: Path,
        names: SortedNames,
        starts: array[int],
        sizes: array[int],
        others: Mapping[str, _Content],
    ) -> None:
        self._path, self._names, self._others = path, names, others
        self._starts, self.sizes = starts, sizes

    def __call__(self, name: str) -> Image.Image:
        """The picture of that name; OSError if it cannot be read."""
        index = self._names.position(name)
        size, other = self.sizes[index], self._others.get(name)
        if other is not None and other.missing is not None:
            raise OSError(f"it is a link to {other.missing}, which is not in the tar")
        check_size(size)
        parts = ((0, self._starts[index], size),) if other is None else other.parts
        content = bytearray(size)
        with self._path.open("rb") as file:
            for start, offset, length in parts:
                file.seek(offset)
                read = file.read(length)
                if len(read) < length:
                    raise OSError(f"{self._path} ends in the middle of it: the tar is truncated")
                content[start : start + length] = read
        return open_picture(bytes(content))
