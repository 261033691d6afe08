"""Image folders, and tars of them: one folder per class, possibly inside one folder per split.

    photos/cat/1.jpg            photos/train/cat/1.jpg        photos.tar with either inside
    photos/dog/2.png            photos/val/dog/2.png

Class names are the folder names, in sorted order; pictures may be nested deeper inside them. Hidden
files, system folders for thumbnails or deleted files, and run folders of this package are skipped.
A tar is read without unpacking it.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from PIL import Image

from prenas import artifacts
from prenas.data.opening import (
    OTHER_PICTURE_ENDINGS,
    PICTURE_ENDINGS,
    check_size,
    open_picture,
    read_file,
)
from prenas.data.pictures import PictureSet
from prenas.files import mistaken_for

T = TypeVar("T")

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""Accepted folder names of each split."""

_OF_SYSTEMS = frozenset(
    (
        "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
        "system volume information", "lost+found",
    )
)  # fmt: skip
"""Folders, in lower case, that file servers and operating systems add to a user's folders."""

_MOST_LINKS = 8  # in a row, inside a tar
_MOST_LINKED_FOLDERS = 100_000  # links to folders of links can multiply endlessly


class Listing(NamedTuple):
    """The pictures in a folder, at any depth, or in a tar."""

    where: Path
    sizes: Mapping[str, int]
    """Relative name with forward slashes -> bytes, in sorted order."""
    open: Callable[[str], Image.Image]
    others: tuple[str, ...]
    """Names of the other files."""
    all_folders: frozenset[str]
    """Relative names of all folders, including those without pictures."""
    runs: tuple[str, ...] = ()
    """Relative names of run folders, whose contents are not listed."""

    @property
    def folders(self) -> list[str]:
        """Top-level folders with pictures, sorted."""
        return sorted({name.split("/", 1)[0] for name in self.sizes if "/" in name})

    @property
    def without_pictures(self) -> dict[str, Counter[str]]:
        """Top-level folder without pictures -> number of its files with each suffix."""
        top = {name.split("/", 1)[0] for name in self.all_folders}
        return {folder: self.below(folder).endings for folder in sorted(top - {*self.folders})}

    @property
    def endings(self) -> Counter[str]:
        """Number of other files with each suffix."""
        return Counter(posixpath.splitext(name)[1].lower() for name in self.others)

    def below(self, folder: str) -> Listing:
        """The pictures in one folder, with names relative to it."""
        prefix = f"{folder}/"

        def inside(names: Iterable[str]) -> Iterator[str]:
            return (name.removeprefix(prefix) for name in names if name.startswith(prefix))

        return Listing(
            where=self.where / folder,
            sizes={name: self.sizes[prefix + name] for name in inside(self.sizes)},
            open=_Below(self.open, prefix),
            others=tuple(inside(self.others)),
            all_folders=frozenset(inside(self.all_folders)),
            runs=tuple(inside(self.runs)),
        )


class _Below:
    """Opens pictures by names relative to a folder inside the listing."""

    def __init__(self, open_: Callable[[str], Image.Image], prefix: str) -> None:
        self._open, self._prefix = open_, prefix

    def __call__(self, name: str) -> Image.Image:
        return self._open(self._prefix + name)


class _FolderPictures:
    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str) -> Image.Image:
        return open_picture(read_file(self._root / name))


class _Member(NamedTuple):
    """Where the content of a member is stored in a tar."""

    size: int = 0
    parts: tuple[tuple[int, int, int], ...] = ()
    """(offset in the content, offset in the tar, bytes); a sparse file has zeros in between."""
    missing: str | None = None
    """What a link leads to that is not in the tar."""


class _TarPictures:
    """Reads members directly from the tar, without unpacking; safe in any thread or process."""

    def __init__(self, path: Path, members: Mapping[str, _Member]) -> None:
        self._path, self._members = path, members

    def __call__(self, name: str) -> Image.Image:
        member = self._members[name]
        if member.missing is not None:
            raise OSError(f"it is a link to {member.missing}, which is not in the tar")
        check_size(member.size)
        content = bytearray(member.size)
        with self._path.open("rb") as file:
            for start, offset, size in member.parts:
                file.seek(offset)
                read = file.read(size)
                if len(read) < size:
                    raise OSError(f"{self._path} ends in the middle of it: the tar is truncated")
                content[start : start + size] = read
        return open_picture(bytes(content))


def list_pictures(path: Path) -> Listing:
    """Lists a folder of pictures, or a tar of one.

    Raises:
        ValueError: the path does not exist, is not an uncompressed tar, or has no pictures in it.
    """
    if not path.exists():  # also for links that are broken or form a loop
        near = get_close_matches(path.name, _neighbours(path), n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"{path} does not exist{hint}: give a folder or a tar of pictures with --data PATH"
        )
    if not path.is_dir() and not path.is_file():
        raise ValueError(
            f"{path} is neither a folder nor a regular file: give a folder or a tar of pictures "
            "with --data PATH"
        )
    listing = _list_folder(path) if path.is_dir() else _list_tar(path)
    if not listing.sizes:
        there = counted(listing.endings, 3)
        raise ValueError(
            f"no pictures found in {path}"
            + (f" (other files: {there})" if there else "")
            + f": prenas reads {', '.join(PICTURE_ENDINGS)}; for training, in one folder per class"
        )
    return listing


def counted(endings: Counter[str], most: int) -> str:
    """`5 .txt, 1 without a suffix`, the most frequent first; empty if there are no files."""
    return ", ".join(
        f"{count} {ending or 'without a suffix'}" for ending, count in endings.most_common(most)
    )


def _neighbours(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    return [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix == ".tar"]


def _is_hidden(name: str) -> bool:
    """Whether a file is hidden, or is in a hidden folder or a system's folder."""
    *folders, file = name.split("/")
    return any(_is_of_a_system(folder) for folder in folders) or file.startswith(".")


def _is_of_a_system(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in _OF_SYSTEMS


def _list_folder(path: Path) -> Listing:
    found = []  # of strings: for a million files, making Path objects would take most of the time
    all_folders, num_links = [], 0
    for folder, subfolders, files in os.walk(path, onerror=_refuse, followlinks=True):
        base = Path(folder).relative_to(path).as_posix()
        prefix = "" if base == "." else f"{base}/"
        subfolders[:] = [
            name
            for name in subfolders
            if not _is_of_a_system(name) and not _leads_back(path, prefix + name)
        ]
        num_links += sum(os.path.islink(os.path.join(folder, name)) for name in subfolders)
        if num_links > _MOST_LINKED_FOLDERS:
            raise ValueError(
                f"{path} contains more than {_MOST_LINKED_FOLDERS:,} links to folders: remove "
                "links that lead to folders of links"
            )
        all_folders += [prefix + name for name in subfolders]
        found += [(prefix + file, os.path.join(folder, file)) for file in files]
    sorted_out = _sorted_out(found)
    sizes = {
        name: os.path.getsize(file) if os.path.exists(file) else 0  # a broken link
        for name, file in sorted_out.pictures
    }
    return sorted_out.listing(path, sizes, _FolderPictures(path), all_folders)


def _refuse(error: OSError) -> None:
    """Raises ValueError: if an unreadable folder were skipped, a class would be missing."""
    raise ValueError(
        f"the folder {error.filename} cannot be read ({error.strerror}): change its permissions"
    )


def _leads_back(root: Path, name: str) -> bool:
    """Whether a folder is a link to one of its parents, which would make the walk endless."""
    if not (root / name).is_symlink():
        return False
    parts = name.split("/")
    way = {os.path.realpath(root.joinpath(*parts[:depth])) for depth in range(len(parts))}
    target = os.path.realpath(root / name)
    return any(Path(folder).is_relative_to(target) for folder in way)


@contextmanager
def _opened_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar whose headers were read; TarError if they cannot be.

    The standard library's reader believes every size in a header, and calls itself for each header
    that extends the next one.
    """
    try:
        with tarfile.open(path, mode="r:") as tar:
            tar.getmembers()
            yield tar
    except (ValueError, OverflowError, MemoryError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise tarfile.ReadError(f"its headers cannot be read: {reason}") from None


def _list_tar(path: Path) -> Listing:
    try:
        with _opened_tar(path) as tar:
            members = tar.getmembers()
            _check_end(path, tar)
    except (tarfile.TarError, EOFError) as error:
        what = _kind_of(path)
        raise ValueError(
            f"{path} is {f'{what}, ' if what else ''}not an uncompressed tar"
            + ("" if what else f", or it is truncated ({error})")
            + ": give a folder, or an uncompressed tar of one"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    there = {posixpath.normpath(member.name): member for member in members}
    for name in there:
        if name.startswith("/") or name.split("/")[0] == "..":
            raise ValueError(
                f"{path} contains a file named {name!r}, outside the tar: pack the folder with "
                "relative names (tar -C FOLDER -cf photos.tar .)"
            )
    files = [
        (posixpath.normpath(member.name), member)
        for member in members
        if not member.isdir()  # a pipe or a device is an unreadable file, as in a folder
    ]
    all_folders = [name for name, member in there.items() if member.isdir() and name != "."]
    sorted_out = _sorted_out(files)
    contents = {name: _content(member, there) for name, member in sorted_out.pictures}
    sizes = {name: content.size for name, content in contents.items()}
    return sorted_out.listing(path, sizes, _TarPictures(path, contents), all_folders)


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


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """Raises TarError if the members are not followed by the block of zeros that ends a tar.

    The standard library's reader takes a truncated or damaged header for the end.
    """
    with path.open("rb") as file:
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark after {len(tar.getmembers())} members")


def _content(member: tarfile.TarInfo, there: Mapping[str, tarfile.TarInfo]) -> _Member:
    """The content of a file, or of a link's target."""
    for _ in range(_MOST_LINKS):
        if member.isfile():
            return _Member(member.size, tuple(_parts(member)))
        base = posixpath.dirname(member.name) if member.issym() else ""
        target = there.get(posixpath.normpath(posixpath.join(base, member.linkname)))
        if target is None:
            break
        member = target
    return _Member(missing=member.linkname)


def _parts(member: tarfile.TarInfo) -> Iterator[tuple[int, int, int]]:
    """The stored parts of a file: all of it, or the parts of a sparse file that are not zero."""
    sparse: list[tuple[int, int]] = getattr(member, "sparse", None) or [(0, member.size)]
    offset = member.offset_data
    for start, size in sparse:
        if size:
            yield start, offset, size
        offset += size


class _SortedOut(NamedTuple, Generic[T]):
    """Files sorted into pictures, other files and run folders."""

    pictures: list[tuple[str, T]]
    others: tuple[str, ...]
    runs: tuple[str, ...]

    def listing(
        self,
        where: Path,
        sizes: Mapping[str, int],
        open_: Callable[[str], Image.Image],
        folders: Iterable[str],
    ) -> Listing:
        """The listing of these files, among these folders."""
        shown = [name for name in folders if not _is_hidden(f"{name}/x")]
        outside = frozenset(
            name
            for name in shown
            if not _lies_in(f"{name}/", self.runs)
            and not any(_lies_in(r, [name]) for r in self.runs)
        )
        parents = (posixpath.dirname(name) for name in (*sizes, *self.others))
        return Listing(
            where, sizes, open_, self.others, outside | {*filter(None, parents)}, self.runs
        )


def _sorted_out(files: Iterable[tuple[str, T]]) -> _SortedOut[T]:
    """Sorts files, pictures by name; leaves out hidden files and those in run folders."""
    shown = [(name, file) for name, file in files if not _is_hidden(name)]
    names = {name for name, _ in shown}
    runs = tuple(
        folder
        for name in sorted(names)
        if posixpath.basename(name) == artifacts.RECIPE
        and posixpath.join(folder := posixpath.dirname(name), artifacts.PREFERRED) in names
        and folder
    )
    pictures, others = [], []
    for name, file in shown:
        if _lies_in(name, runs):
            continue
        if posixpath.splitext(name)[1].lower() in PICTURE_ENDINGS:
            pictures.append((name, file))
        else:
            others.append(name)
    return _SortedOut(sorted(pictures, key=lambda item: item[0]), tuple(sorted(others)), runs)


def _lies_in(name: str, folders: Iterable[str]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)


def split_folders(listing: Listing) -> dict[str, str]:
    """Split -> its top-level folder, in upper or lower case; empty if the folders are classes.

    A folder `train` that contains only pictures, among other folders but without `val` or `test`,
    is a class: that of the vehicles.

    Raises:
        ValueError: there are other splits, but no training split.
    """
    folders = listing.folders
    found = {}
    for split, names in SPLIT_NAMES.items():
        there = [folder for name in names for folder in folders if folder.lower() == name]
        if there:
            found[split] = there[0]
    if "train" not in found:
        if found and len(found) == len(folders) > 1:
            raise ValueError(
                f"{listing.where} contains {' and '.join(folders)} but no training images: name "
                "their folder train, or give their path with --data train=PATH"
            )
        return {}
    is_class = len(found) == 1 and not listing.below(found["train"]).folders
    return {} if is_class and len(folders) > 1 else found


def unwrapped(listing: Listing) -> Listing:
    """The listing inside single folders that contain only folders, such as `train/`."""
    while len(folders := listing.folders) == 1 and all("/" in name for name in listing.sizes):
        inner = listing.below(folders[0])
        if not all("/" in name for name in inner.sizes):
            break
        listing = inner
    return listing


def unwrapped_splits(listing: Listing) -> Listing:
    """The listing inside single folders, down to the folders of splits or classes."""
    while not split_folders(listing):
        folders = listing.folders
        if len(folders) != 1 or any("/" not in name for name in listing.sizes):
            break
        inner = listing.below(folders[0])
        if any("/" not in name for name in inner.sizes):
            break
        listing = inner
    return listing


def class_names(listing: Listing) -> tuple[str, ...]:
    """The classes of a listing: its top-level folders.

    Raises:
        ValueError: a picture is not in a class folder, a class folder has no picture in a supported
            format, or there are fewer than two classes.
    """
    loose = [name for name in listing.sizes if "/" not in name]
    if loose:
        raise ValueError(
            f"{len(loose)} pictures in {listing.where} are not in a class folder, for example "
            f"{loose[0]}: move every picture into a folder named after its class"
        )
    for folder, endings in listing.without_pictures.items():
        if not endings or OTHER_PICTURE_ENDINGS & set(endings):
            what = counted(endings, 3)
            raise ValueError(
                f"the class folder {listing.where / folder} contains no picture in a supported "
                f"format ({f'it contains {what}' if what else 'it is empty'}): convert its "
                f"pictures to one of {', '.join(PICTURE_ENDINGS)}, or remove the folder"
            )
    names = listing.folders
    if len(names) < 2:
        raise ValueError(
            f"{listing.where} contains only one class ({names[0]}): at least two are needed, each "
            "as a folder of pictures"
        )
    return tuple(names)


def labelled(listing: Listing, names: tuple[str, ...], split: str) -> PictureSet:
    """The pictures of a split with the indices of their classes.

    Raises:
        ValueError: a class does not occur in the training images, or a picture is not in a class
            folder.
    """
    unknown = sorted(set(listing.folders) - set(names))
    loose = [name for name in listing.sizes if "/" not in name]
    if unknown or loose:
        what = (
            f"classes that do not occur in the training images: {', '.join(unknown[:10])}"
            if unknown
            else f"pictures outside any class folder, such as {loose[0]}"
        )
        raise ValueError(
            f"the {split} split in {listing.where} contains {what} (the training split has "
            f"{len(names)} classes: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}): "
            "rename or remove them"
        )
    number = {name: index for index, name in enumerate(names)}
    pictures = tuple(listing.sizes)
    return PictureSet(
        names=pictures,
        labels=tuple(number[name.split("/", 1)[0]] for name in pictures),
        open=listing.open,
        versions=tuple(listing.sizes.values()),
    )
