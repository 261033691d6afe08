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
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from prenas import artifacts
from prenas.data.names import Integers, Names, Sizes, SortedNames
from prenas.data.opening import OTHER_PICTURE_ENDINGS, PICTURE_ENDINGS, open_picture, read_file
from prenas.data.pictures import PictureSet
from prenas.data.tars import TarFiles, TarPictures
from prenas.data.unchanged import Unchanged
from prenas.files import Stamp, exists, stamp_of

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

_MOST_LINKED_FOLDERS = 100_000  # links to folders of links can multiply endlessly


class Listing(NamedTuple):
    """The pictures in a folder, at any depth, or in a tar."""

    where: Path
    sizes: Sizes
    """Relative name with forward slashes -> bytes, in sorted order."""
    open: Callable[[str], Image.Image]
    others: SortedNames
    """Names of the other files."""
    all_folders: frozenset[str]
    """Relative names of all folders, including those without pictures."""
    runs: tuple[str, ...] = ()
    """Relative names of run folders, whose contents are not listed."""
    links: tuple[str, ...] = ()
    """Relative names of links in a tar that lead to no file in it, perhaps to a folder."""

    @property
    def folders(self) -> list[str]:
        """Top-level folders with pictures, sorted."""
        return sorted(self.sizes.names.folders)

    @property
    def loose(self) -> Names:
        """Names of the pictures outside all folders."""
        return self.sizes.names.take(np.asarray(self.sizes.names.loose))

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
            sizes=self.sizes.inside(folder),
            open=_Below(self.open, prefix),
            others=self.others.inside(folder),
            all_folders=frozenset(inside(self.all_folders)),
            runs=tuple(inside(self.runs)),
            links=tuple(inside(self.links)),
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


def list_pictures(path: Path) -> Listing:
    """Lists a folder of pictures, or a tar of one.

    Raises:
        ValueError: the path does not exist, is not an uncompressed tar, or has no pictures in it.
    """
    if not exists(path):  # also for links that are broken or form a loop
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


def _is_of_a_system(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in _OF_SYSTEMS


def _list_folder(path: Path) -> Listing:
    def walked(stamps: dict[str, Stamp]) -> _Found:
        folders: list[str] = []
        names = _walked(path, folders, stamps)
        return _sorted_out(names, folders)

    found = _FOUND.get(path.resolve(), walked)
    names = found.pictures
    sizes = Integers(len(names), partial(_bytes_of, path, names))
    return found.listing(path, Sizes(names, sizes), _FolderPictures(path))


def _bytes_of(root: Path, names: Names) -> array[int]:
    """The bytes of files; 0 for a link that leads nowhere."""

    def measured() -> Iterator[int]:
        for name in names:
            try:
                yield os.stat(f"{root}/{name}").st_size
            except OSError:
                yield 0

    return array("q", measured())


def _walked(root: Path, folders: list[str], stamps: dict[str, Stamp]) -> Iterator[str]:
    """Names of all files in a folder, in ascending order; adds its folders, and their stamps."""
    num_links = 0
    waiting = [("", iter(_entries(root, "", stamps)))]
    while waiting:
        prefix, entries = waiting[-1]
        for entry, is_link in entries:
            name = prefix + entry
            if not entry.endswith("/"):
                yield name
                continue
            if is_link and _leads_back(root, name[:-1]):
                continue
            num_links += is_link
            if num_links > _MOST_LINKED_FOLDERS:
                raise ValueError(
                    f"{root} contains more than {_MOST_LINKED_FOLDERS:,} links to folders: remove "
                    "links that lead to folders of links"
                )
            folders.append(name[:-1])
            waiting.append((name, iter(_entries(root, name, stamps))))
            break
        else:
            waiting.pop()


def _entries(root: Path, prefix: str, stamps: dict[str, Stamp]) -> list[tuple[str, bool]]:
    """What is in a folder: names, with a slash after those of folders, and whether it is a link.

    Sorted so that folder after folder gives all names in ascending order.
    """
    where = os.path.join(root, prefix.removesuffix("/"))
    found = []
    try:
        stamps[where] = stamp_of(where)
        with os.scandir(where) as there:
            for entry in there:
                if not _is_folder(entry):
                    found.append((entry.name, False))
                elif not _is_of_a_system(entry.name):
                    found.append((f"{entry.name}/", entry.is_symlink()))
    except OSError as error:
        raise _refusal(error) from None
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link that leads to itself
        return False


def _refusal(error: OSError) -> ValueError:
    """An error about an unreadable folder: if it were skipped, a class would be missing."""
    remedy = "change its permissions" if isinstance(error, PermissionError) else "check its disk"
    return ValueError(f"the folder {error.filename} cannot be read ({error.strerror}): {remedy}")


def _leads_back(root: Path, name: str) -> bool:
    """Whether a folder is a link to one of its parents, which would make the walk endless."""
    if not (root / name).is_symlink():
        return False
    parts = name.split("/")
    way = {os.path.realpath(root.joinpath(*parts[:depth])) for depth in range(len(parts))}
    target = os.path.realpath(root / name)
    return any(Path(folder).is_relative_to(target) for folder in way)


def _list_tar(path: Path) -> Listing:
    def scanned(stamps: dict[str, Stamp]) -> tuple[_Found, TarPictures]:
        stamps[str(path)] = stamp_of(path)
        files = TarFiles(path)
        found = _sorted_out(files.names, files.folders)._replace(links=files.links)
        return found, files.pictures(found.pictures)

    found, pictures = _SCANNED.get(path.resolve(), scanned)
    sizes = Integers(len(found.pictures), lambda: pictures.sizes)
    return found.listing(path, Sizes(found.pictures, sizes), pictures)


class _Found(NamedTuple):
    """Names of files, sorted into pictures, other files and run folders."""

    pictures: SortedNames
    others: SortedNames
    folders: frozenset[str]
    runs: tuple[str, ...]
    links: tuple[str, ...] = ()

    def listing(self, where: Path, sizes: Sizes, open_: Callable[[str], Image.Image]) -> Listing:
        """The listing of these files."""
        return Listing(where, sizes, open_, self.others, self.folders, self.runs, self.links)


_FOUND: Unchanged[_Found] = Unchanged()
_SCANNED: Unchanged[tuple[_Found, TarPictures]] = Unchanged()


def _sorted_out(names: Iterable[str], folders: list[str]) -> _Found:
    """Sorts out names that come in ascending order; leaves out hidden files and those of runs.

    Args:
        folders: all folders; filled while the names are taken.
    """
    are_pictures = bytearray()

    def shown() -> Iterator[str]:
        last, is_hidden = "", False
        for name in names:
            folder, _, file = name.rpartition("/")
            if folder != last:
                last, is_hidden = folder, any(map(_is_of_a_system, folder.split("/")))
            if not is_hidden and not file.startswith("."):
                ending = file.rpartition(".")[2] if "." in file else ""
                are_pictures.append(f".{ending}".lower() in PICTURE_ENDINGS)
                yield name

    found = SortedNames.of_sorted(shown())
    mask = np.asarray(are_pictures).astype(bool)
    pictures, others = found.chosen(mask), found.chosen(~mask)
    runs = _run_folders(others)
    pictures, others = pictures.without(runs), others.without(runs)
    outside = (
        folder
        for folder in folders
        if not any(map(_is_of_a_system, folder.split("/")))
        and not _lies_in(f"{folder}/", runs)
        and not any(_lies_in(run, [folder]) for run in runs)
    )
    parents = {name.rpartition("/")[0] for part in (pictures, others) for name in part}
    return _Found(pictures, others, frozenset([*outside, *parents]) - {""}, runs)


def _run_folders(others: SortedNames) -> tuple[str, ...]:
    """The folders that hold the files of a run, except for the outermost one."""
    recipes = {name.rpartition("/")[0] for name in others if name.endswith(f"/{artifacts.RECIPE}")}
    preferred = f"/{artifacts.PREFERRED}"
    there = {name.rpartition("/")[0] for name in others if name.endswith(preferred)}
    return tuple(sorted(recipes & there))


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
    while len(folders := listing.folders) == 1 and not listing.loose:
        inner = listing.below(folders[0])
        if inner.loose:
            break
        listing = inner
    return listing


def unwrapped_splits(listing: Listing) -> Listing:
    """The listing inside single folders, down to the folders of splits or classes."""
    while not split_folders(listing):
        folders = listing.folders
        if len(folders) != 1 or listing.loose:
            break
        inner = listing.below(folders[0])
        if inner.loose:
            break
        listing = inner
    return listing


def class_names(listing: Listing) -> tuple[str, ...]:
    """The classes of a listing: its top-level folders.

    Raises:
        ValueError: a picture is not in a class folder, a class folder has no picture in a supported
            format, or there are fewer than two classes.
    """
    if loose := listing.loose:
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
    loose = listing.loose
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
            + (", or do without the split (--data test=none)" if split == "test" else "")
            + _alike(unknown, names)
        )
    number = {name: index for index, name in enumerate(names)}
    labels = np.empty(len(listing.sizes), np.int64)
    for folder, where in listing.sizes.names.folders.items():
        labels[where.start : where.stop] = number[folder]
    return PictureSet(
        names=listing.sizes.names,
        labels=Integers.of(labels),
        open=listing.open,
        versions=listing.sizes.measured,
    )


def _alike(unknown: Sequence[str], names: Sequence[str]) -> str:
    """A hint if an unknown class differs from a known one in case or in its Unicode form only."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    known = {plain(name): name for name in names}
    pairs = [(name, known[plain(name)]) for name in unknown if plain(name) in known]
    if not pairs:
        return ""
    return f". {pairs[0][0]!a} and {pairs[0][1]!a} look alike, but are different names"
