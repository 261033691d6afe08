"""Image folders, and tars of them: one folder per class, perhaps below one folder per split.

    photos/cat/1.jpg            photos/train/cat/1.jpg        photos.tar with either inside
    photos/dog/2.png            photos/val/dog/2.png

Class names are the folder names, in sorted order; pictures may lie deeper below them. Hidden files
are passed over. A tar is read where it is, never unpacked.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from prenas.data.pictures import PictureSet

T = TypeVar("T")

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called."""

PICTURE_ENDINGS = (*IMG_EXTENSIONS, ".gif")
_MOST_LINKS = 8  # in a row, inside a tar


class Listing(NamedTuple):
    """The pictures below a folder or in a tar."""

    where: Path
    sizes: Mapping[str, int]
    """Relative name with forward slashes -> bytes, in sorted order."""
    open: Callable[[str], Image.Image]
    others: Counter[str]
    """Endings of files that are no pictures -> how many."""

    @property
    def folders(self) -> list[str]:
        """Folders at the top, sorted."""
        return sorted({name.split("/", 1)[0] for name in self.sizes if "/" in name})

    def below(self, folder: str) -> Listing:
        """The pictures below one folder, named from there."""
        prefix = f"{folder}/"
        sizes = {
            name.removeprefix(prefix): size
            for name, size in self.sizes.items()
            if name.startswith(prefix)
        }
        return self._replace(where=self.where / folder, sizes=sizes, open=_Below(self.open, prefix))


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
        return Image.open(io.BytesIO((self._root / name).read_bytes()))


class _TarPictures:
    """Reads members by their place in the file: any thread, any process, nothing unpacked."""

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]]) -> None:
        self._path, self._places = path, places

    def __call__(self, name: str) -> Image.Image:
        offset, size = self._places[name]
        with self._path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{self._path} ends within it: the tar is cut short")
        return Image.open(io.BytesIO(content))


def list_pictures(path: Path) -> Listing:
    """Lists a folder of pictures, or a tar of one.

    Raises:
        ValueError: nothing there, a file that is no plain tar, or no pictures in it.
    """
    if not path.exists():
        near = get_close_matches(path.name, _neighbours(path), n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"there is no folder or tar {path}{hint}: say where the pictures are with --data PLACE"
        )
    listing = _list_folder(path) if path.is_dir() else _list_tar(path)
    if not listing.sizes:
        there = ", ".join(
            f"{count} {ending or 'without ending'}"
            for ending, count in listing.others.most_common(3)
        )
        raise ValueError(
            f"there are no pictures in {path}"
            + (f" (other files: {there})" if there else "")
            + f": prenas reads {', '.join(PICTURE_ENDINGS)}, one folder per class"
        )
    return listing


def _neighbours(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    return [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix == ".tar"]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _list_folder(path: Path) -> Listing:
    found = []  # of plain strings: paths as objects take most of the time of a million files
    for folder, subfolders, files in os.walk(path, onerror=_refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not _leads_back(Path(folder, name))]
        base = Path(folder).relative_to(path).as_posix()
        prefix = "" if base == "." else f"{base}/"
        found += [(prefix + file, os.path.join(folder, file)) for file in files]
    pictures, others = _sorted_out(found)
    sizes = {
        name: os.path.getsize(file) if os.path.exists(file) else 0  # a link that leads nowhere
        for name, file in pictures
    }
    return Listing(path, sizes, _FolderPictures(path), others)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed would be a class that is missing."""
    raise ValueError(
        f"the folder {error.filename} cannot be read ({error.strerror}): change its permissions"
    )


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in, which would be walked for ever."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _list_tar(path: Path) -> Listing:
    try:
        with tarfile.open(path, mode="r:") as tar:
            members = tar.getmembers()
            _check_end(path, tar)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{path} is no plain tar, or is cut short ({error}): give a folder, or an uncompressed "
            ".tar of one"
        ) from None
    there = {posixpath.normpath(member.name): member for member in members}
    files = [member for member in members if member.isfile() or member.islnk() or member.issym()]
    pictures, others = _sorted_out((file.name.removeprefix("./"), file) for file in files)
    places = {name: _place(member, there) for name, member in pictures}
    sizes = {name: size for name, (_, size) in places.items()}
    return Listing(path, sizes, _TarPictures(path, places), others)


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """Raises TarError where the members end without the block of zeros that ends a tar.

    The reader of the standard library takes a cut or damaged header for the end.
    """
    with path.open("rb") as file:
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark after {len(tar.getmembers())} members")


def _place(member: tarfile.TarInfo, there: Mapping[str, tarfile.TarInfo]) -> tuple[int, int]:
    """(offset, size) of a file, or of the one that a link leads to; nothing where it leads away."""
    for _ in range(_MOST_LINKS):
        if member.isfile():
            return member.offset_data, member.size
        base = posixpath.dirname(member.name) if member.issym() else ""
        target = there.get(posixpath.normpath(posixpath.join(base, member.linkname)))
        if target is None:
            break
        member = target
    return 0, 0


def _sorted_out(files: Iterable[tuple[str, T]]) -> tuple[list[tuple[str, T]], Counter[str]]:
    """(the pictures by name, what else there is by ending); hidden files are passed over."""
    pictures, others = [], Counter[str]()
    for name, file in files:
        ending = posixpath.splitext(name)[1].lower()
        if _is_hidden(name):
            continue
        if ending in PICTURE_ENDINGS:
            pictures.append((name, file))
        else:
            others[ending] += 1
    return sorted(pictures, key=lambda item: item[0]), others


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
