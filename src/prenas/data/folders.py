"""Image folders, and tars of them: one folder per class, perhaps below one folder per split.

    photos/cat/1.jpg            photos/train/cat/1.jpg        photos.tar with either inside
    photos/dog/2.png            photos/val/dog/2.png

Class names are the folder names, in sorted order; pictures may lie deeper below them. Hidden files,
the folders in which systems keep thumbnails and deleted files, and run folders of this package are
skipped. A tar is read where it is, never unpacked.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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

T = TypeVar("T")

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called."""

_OF_SYSTEMS = frozenset(
    (
        "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
        "system volume information", "lost+found",
    )
)  # fmt: skip
"""Folders, in lower case, that file servers and operating systems put among a user's own."""

_MOST_LINKS = 8  # in a row, inside a tar
_MOST_LINKED_FOLDERS = 100_000  # links to folders of links multiply without end


class Listing(NamedTuple):
    """The pictures below a folder or in a tar."""

    where: Path
    sizes: Mapping[str, int]
    """Relative name with forward slashes -> bytes, in sorted order."""
    open: Callable[[str], Image.Image]
    others: tuple[str, ...]
    """Names of the other files."""
    all_folders: frozenset[str]
    """Relative names of all folders, also of those without any picture."""
    runs: tuple[str, ...] = ()
    """Relative names of run folders, of which nothing is listed."""

    @property
    def folders(self) -> list[str]:
        """Folders at the top, sorted."""
        return sorted({name.split("/", 1)[0] for name in self.sizes if "/" in name})

    @property
    def without_pictures(self) -> dict[str, Counter[str]]:
        """Folders at the top that hold no picture -> how many files of which ending they hold."""
        top = {name.split("/", 1)[0] for name in self.all_folders}
        return {folder: self.below(folder).endings for folder in sorted(top - {*self.folders})}

    @property
    def endings(self) -> Counter[str]:
        """How many other files there are of each ending."""
        return Counter(posixpath.splitext(name)[1].lower() for name in self.others)

    def below(self, folder: str) -> Listing:
        """The pictures below one folder, named from there."""
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
    """Opens pictures that are named from a folder further down."""

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
    """Where the content of a tar's member stands in the tar."""

    size: int = 0
    parts: tuple[tuple[int, int, int], ...] = ()
    """(place in the content, place in the tar, bytes); between them, in a sparse file, zeros."""


class _TarPictures:
    """Reads members where they stand in the file: any thread, any process, nothing unpacked."""

    def __init__(self, path: Path, members: Mapping[str, _Member]) -> None:
        self._path, self._members = path, members

    def __call__(self, name: str) -> Image.Image:
        member = self._members[name]
        check_size(member.size)
        content = bytearray(member.size)
        with self._path.open("rb") as file:
            for start, offset, size in member.parts:
                file.seek(offset)
                read = file.read(size)
                if len(read) < size:
                    raise OSError(f"{self._path} ends within it: the tar is cut short")
                content[start : start + size] = read
        return open_picture(bytes(content))


def list_pictures(path: Path) -> Listing:
    """Lists a folder of pictures, or a tar of one.

    Raises:
        ValueError: nothing there, a file that is no plain tar, or no pictures in it.
    """
    if not path.exists():  # true of links that lead nowhere, or in circles
        near = get_close_matches(path.name, _neighbours(path), n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"there is no folder or tar {path}{hint}: say where the pictures are with --data PLACE"
        )
    if not path.is_dir() and not path.is_file():
        raise ValueError(
            f"{path} is neither a folder nor a regular file: say where the pictures are with "
            "--data PLACE"
        )
    listing = _list_folder(path) if path.is_dir() else _list_tar(path)
    if not listing.sizes:
        there = counted(listing.endings, 3)
        raise ValueError(
            f"there are no pictures in {path}"
            + (f" (other files: {there})" if there else "")
            + f": prenas reads {', '.join(PICTURE_ENDINGS)}, one folder per class"
        )
    return listing


def counted(endings: Counter[str], most: int) -> str:
    """`5 .txt, 1 without ending`, the most frequent first; empty where there is nothing."""
    return ", ".join(
        f"{count} {ending or 'without ending'}" for ending, count in endings.most_common(most)
    )


def _neighbours(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    return [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix == ".tar"]


def _is_hidden(name: str) -> bool:
    """Whether a file is hidden, or lies in a folder that is, or that a system made for itself."""
    *folders, file = name.split("/")
    return any(_is_of_a_system(folder) for folder in folders) or file.startswith(".")


def _is_of_a_system(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in _OF_SYSTEMS


def _list_folder(path: Path) -> Listing:
    found = []  # of plain strings: paths as objects take most of the time of a million files
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
                f"{path} holds more than {_MOST_LINKED_FOLDERS:,} links to folders, counted along "
                "every way to them: remove links that lead to folders of links"
            )
        all_folders += [prefix + name for name in subfolders]
        found += [(prefix + file, os.path.join(folder, file)) for file in files]
    sorted_out = _sorted_out(found)
    sizes = {
        name: os.path.getsize(file) if os.path.exists(file) else 0  # a link that leads nowhere
        for name, file in sorted_out.pictures
    }
    return sorted_out.listing(path, sizes, _FolderPictures(path), all_folders)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed would be a class that is missing."""
    raise ValueError(
        f"the folder {error.filename} cannot be read ({error.strerror}): change its permissions"
    )


def _leads_back(root: Path, name: str) -> bool:
    """Whether a folder is a link to one on the way to it, which would be walked without end."""
    if not (root / name).is_symlink():
        return False
    parts = name.split("/")
    way = {os.path.realpath(root.joinpath(*parts[:depth])) for depth in range(len(parts))}
    target = os.path.realpath(root / name)
    return any(Path(folder).is_relative_to(target) for folder in way)


def _list_tar(path: Path) -> Listing:
    try:
        with tarfile.open(path, mode="r:") as tar:
            members = tar.getmembers()
            _check_end(path, tar)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{path} is not a plain tar, or is cut short ({error}): give a folder, or an "
            "uncompressed .tar of one"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    there = {posixpath.normpath(member.name): member for member in members}
    for name in there:
        if name.startswith("/") or name.split("/")[0] == "..":
            raise ValueError(
                f"{path} holds a file named {name!r}, which lies outside the tar: pack the folder "
                "with relative names (tar -C FOLDER -cf photos.tar .)"
            )
    files = [
        (posixpath.normpath(member.name), member)
        for member in members
        if member.isfile() or member.islnk() or member.issym()
    ]
    all_folders = [name for name, member in there.items() if member.isdir() and name != "."]
    sorted_out = _sorted_out(files)
    contents = {name: _content(member, there) for name, member in sorted_out.pictures}
    sizes = {name: content.size for name, content in contents.items()}
    return sorted_out.listing(path, sizes, _TarPictures(path, contents), all_folders)


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """Raises TarError where the members end without the block of zeros that ends a tar.

    The reader of the standard library takes a cut or damaged header for the end.
    """
    with path.open("rb") as file:
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark after {len(tar.getmembers())} members")


def _content(member: tarfile.TarInfo, there: Mapping[str, tarfile.TarInfo]) -> _Member:
    """Of a file, or of the one that a link leads to; nothing where it leads out of the tar."""
    for _ in range(_MOST_LINKS):
        if member.isfile():
            return _Member(member.size, tuple(_parts(member)))
        base = posixpath.dirname(member.name) if member.issym() else ""
        target = there.get(posixpath.normpath(posixpath.join(base, member.linkname)))
        if target is None:
            break
        member = target
    return _Member()


def _parts(member: tarfile.TarInfo) -> Iterator[tuple[int, int, int]]:
    """The parts of a file that the tar stores: all of it, or of a sparse one what is not zero."""
    sparse: list[tuple[int, int]] = getattr(member, "sparse", None) or [(0, member.size)]
    offset = member.offset_data
    for start, size in sparse:
        if size:
            yield start, offset, size
        offset += size


class _SortedOut(NamedTuple, Generic[T]):
    """Files by what they are."""

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
        """Of these files, among these folders."""
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
    """Pictures in the order of their names; hidden files and those of run folders are left out."""
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
    """Split -> the folder at the top that holds it, in any case; empty if they are classes.

    A folder `train` of pictures alone, without `val` or `test` beside it, is a class: of vehicles.

    Raises:
        ValueError: other splits than training alone.
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
                f"{listing.where} holds {' and '.join(folders)}, but no training images: name "
                "their folder train, or say where they are (--data train=PLACE)"
            )
        return {}
    is_class = len(found) == 1 and not listing.below(found["train"]).folders
    return {} if is_class and len(folders) > 1 else found


def unwrapped(listing: Listing) -> Listing:
    """The listing below single folders that only hold further folders, such as `train/`."""
    while len(folders := listing.folders) == 1 and all("/" in name for name in listing.sizes):
        inner = listing.below(folders[0])
        if not all("/" in name for name in inner.sizes):
            break
        listing = inner
    return listing


def unwrapped_splits(listing: Listing) -> Listing:
    """The listing below single folders, until the folders of splits or classes show."""
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
    """The classes below a listing.

    Raises:
        ValueError: pictures that lie in no class folder, or fewer than two classes.
    """
    loose = [name for name in listing.sizes if "/" not in name]
    if loose:
        raise ValueError(
            f"{len(loose)} pictures in {listing.where} lie in no class folder, the first is "
            f"{loose[0]}: put every picture into a folder named after its class"
        )
    for folder, endings in listing.without_pictures.items():
        if not endings or OTHER_PICTURE_ENDINGS & set(endings):
            what = counted(endings, 3)
            raise ValueError(
                f"the class folder {listing.where / folder} holds no picture that prenas reads "
                f"({f'it holds {what}' if what else 'it is empty'}): convert its pictures to one "
                f"of {', '.join(PICTURE_ENDINGS)}, or remove the folder"
            )
    names = listing.folders
    if len(names) < 2:
        raise ValueError(
            f"{listing.where} holds one class only ({names[0]}): two at least are needed, each a "
            "folder of pictures"
        )
    return tuple(names)


def labelled(listing: Listing, names: tuple[str, ...], split: str) -> PictureSet:
    """The pictures of a split with the numbers of their classes.

    Raises:
        ValueError: a class folder that the training images do not have.
    """
    unknown = sorted(set(listing.folders) - set(names))
    loose = [name for name in listing.sizes if "/" not in name]
    if unknown or loose:
        what = (
            f"classes that the training images lack: {', '.join(unknown[:10])}"
            if unknown
            else f"pictures in no class folder, such as {loose[0]}"
        )
        raise ValueError(
            f"the {split} split in {listing.where} has {what} (training has {len(names)}: "
            f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}): rename or remove them"
        )
    number = {name: place for place, name in enumerate(names)}
    pictures = tuple(listing.sizes)
    return PictureSet(
        names=pictures,
        labels=tuple(number[name.split("/", 1)[0]] for name in pictures),
        open=listing.open,
        versions=tuple(listing.sizes.values()),
    )
