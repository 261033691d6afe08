"""WebDataset's shards: tars of samples, each a picture and its label, read at any position.

    train-000.tar    00001.jpg  00001.cls        `.cls` holds the label,
                     00002.jpg  00002.json       `.json` holds it under "label" or "cls"

The members of a sample follow each other and have one name up to its first dot. Labels are numbers
from 0, whose names may stand in `classes.txt` beside the shards, one a line; or they are the names.

The headers of a shard are read once. Its index, in the user's cache, says where each picture
begins, so that training draws from all shards at random, as it does from folders.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from braceexpand import braceexpand
from PIL import Image

from prenas import artifacts
from prenas.data.folders import SPLIT_NAMES
from prenas.data.named import NamedSet, download_folder
from prenas.data.names import Integers, Names, Positions, SortedNames
from prenas.data.opening import PICTURE_ENDINGS, check_size, open_picture
from prenas.data.pictures import PictureSet
from prenas.data.tars import is_plain, members_of
from prenas.data.unchanged import Unchanged
from prenas.files import Stamp, load_json, read_bytes, require_regular, stamp_of
from prenas.values import few_of, shortened

CLASSES = "classes.txt"
"""The file beside shards that names their classes, one a line."""

_logger = logging.getLogger(__name__)
_FORMAT = 1  # of the files that hold an index
_LABELS = ("cls", "json")
_MOST_LABEL_BYTES = 2**20
_LONGEST_LABEL = 1000  # characters
_MOST_CLASSES_BYTES = 2**24
_MOST_SHARDS = 1_000_000
_NUM_TRIED = 16  # members of a tar from which it can be told what it is
_MANY = 50  # shards whose headers take so long to read that it is said
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_LONGEST_PATTERN = 4096  # characters
_NUMBER = re.compile(r"[+-]?\d{1,18}")


# --- which files ---------------------------------------------------------------------------------


def is_pattern(text: str) -> bool:
    """Whether a text stands for several shards: `train-{000..099}.tar`, `train-*.tar`."""
    return text.endswith(".tar") and any(c in text for c in "{*?") and not os.path.exists(text)


def shards_at(text: str) -> list[Path] | None:
    """The shards that a pattern or a folder of tars stands for, or a single shard, sorted.

    None if it is something else, such as a folder of pictures.

    Raises:
        ValueError: a pattern stands for no file, or for one that is missing.
    """
    if is_pattern(text):
        return _matching(text)
    path = Path(text)
    if path.is_dir():
        return _tars_in(path)
    return [path] if path.is_file() and _is_shard(path) else None


def _matching(pattern: str) -> list[Path]:
    too_many = ValueError(f"{pattern} stands for more than {_MOST_SHARDS:,} files: give fewer")
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(
            f"the pattern {pattern[:60]}... has {len(pattern):,} characters: give at most "
            f"{_LONGEST_PATTERN:,}"
        )
    if any(abs(int(last) - int(first)) >= _MOST_SHARDS for first, last in _RANGE.findall(pattern)):
        raise too_many
    try:
        texts = [*islice(braceexpand(pattern), _MOST_SHARDS + 1)]
    except (ValueError, RecursionError):
        raise ValueError(
            f"{pattern}: a brace is not closed; write train-{{000..099}}.tar"
        ) from None
    if len(texts) > _MOST_SHARDS:
        raise too_many
    found: set[Path] = set()
    for text in texts:
        path = Path(text)
        if any(c in path.name for c in "*?"):
            there = {each for each in path.parent.glob(path.name) if not each.is_dir()}
            if not there:
                raise ValueError(f"no file is called {text}: check the pattern of the shards")
            found |= there
        else:
            found.add(path)
    missing = sorted(str(path) for path in found if not os.path.lexists(path))
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(found)} shards of {pattern} do not exist: "
            f"{few_of(missing, 3)}. Restore them, or give a pattern without them"
        )
    return _in_order(found)


def _tars_in(folder: Path) -> list[Path] | None:
    """The tars in a folder that holds neither folders nor pictures."""
    found = []
    try:
        entries = [*os.scandir(folder)]
    except OSError:  # listing it says what is wrong
        return None
    for entry in entries:
        path = Path(entry.path)
        ending = path.suffix.lower()
        if not entry.name.startswith(".") and (entry.is_dir() or ending in PICTURE_ENDINGS):
            return None
        if ending == ".tar" and not entry.name.startswith("."):
            found.append(path)
    return _in_order(found) or None


def shards_of_splits(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Split -> the shards with its name, as in `photos-val-000.tar`.

    If none is called `train`, those without the name of a split are; if all have the same name, or
    none has any, all are.

    Raises:
        ValueError: all are for validation and test.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = {*re.split(r"[^a-z]+", path.stem.lower())}
        for split, names in SPLIT_NAMES.items():
            if words & {*names}:
                found.setdefault(split, []).append(path)
    if "train" in found:
        return found
    named = {path for split in found.values() for path in split}
    unnamed = [path for path in paths if path not in named]
    if not unnamed and len(found) > 1:
        raise ValueError(
            f"the shards in {paths[0].parent} are all for {' and '.join(sorted(found))}, and none "
            "is for training: call some train, or name those to train on with --data train=PATTERN"
        )
    return {"train": unnamed, **found} if unnamed else {"train": list(paths)}


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted as the names of the members are, which begin with those of the shards."""
    return sorted(paths, key=lambda path: f"{path}/")


def _is_shard(path: Path) -> bool:
    """Whether the first members of a tar are those of samples, and not those of class folders."""
    try:
        names = [member.name for member in islice(members_of(path), _NUM_TRIED)]
    except (ValueError, OSError):  # listing it says what is wrong
        return False
    parts = [_taken_apart(name) for name in names if "/" not in name.removeprefix("./")]
    labelled = {key for key, field in parts if field in _LABELS}
    return any(key in labelled for key, field in parts if f".{field}" in PICTURE_ENDINGS)


# --- the index of a shard ------------------------------------------------------------------------


class Index(NamedTuple):
    """The pictures of one shard."""

    names: SortedNames
    starts: Positions
    """Where the content of each begins in the shard."""
    sizes: Positions
    """Bytes of each."""
    checks: Positions
    """The checksum in the header of each."""
    labels: Positions
    words: Names
    """The names of the classes that the labels count, if these are not numbers already."""


def _index_of(path: Path) -> Index:
    """The index of a shard: from the user's cache if the shard was not changed since, else new."""
    require_regular(path)
    kept, stamp = index_file(path), stamp_of(path)
    index = _read_index(kept, stamp)
    if index is None:
        index = _made_index(path)
        if stamp_of(path) != stamp:
            raise ValueError(f"{path} was changed while it was read: wait until it is complete")
        _keep_index(kept, stamp, index)
    return index


def index_file(path: Path) -> Path:
    """Where the index of a shard is kept."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return download_folder() / "shards" / f"{digest[:32]}.npz"


def _identity(stamp: Stamp) -> Positions:
    return np.array([_FORMAT, stamp.num_bytes, stamp.changed_ns])


def _keep_index(kept: Path, stamp: Stamp, index: Index) -> None:
    """Writes an index; goes without if that is impossible."""
    names, name_bounds = index.names.packed()
    words, word_bounds = index.words.packed()
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with artifacts.writing(kept) as file:
            np.savez(
                file,
                identity=_identity(stamp),
                names=names,
                name_bounds=name_bounds,
                starts=index.starts,
                sizes=index.sizes,
                checks=index.checks,
                labels=index.labels,
                words=words,
                word_bounds=word_bounds,
            )
    except OSError as error:
        _say_once(
            f"the index of shards cannot be kept in {kept.parent} ({error.strerror or error}): "
            "they are listed again at every start. Set PRENAS_DATA to a folder that can be written"
        )


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _logger.warning("%s", text)


def _read_index(kept: Path, stamp: Stamp) -> Index | None:
    """A kept index; None if there is none, it is damaged, or the shard was changed since."""
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            if not np.array_equal(arrays["identity"], _identity(stamp)):
                return None
            return Index(
                SortedNames.unpacked(arrays["names"], arrays["name_bounds"]),
                arrays["starts"],
                arrays["sizes"],
                arrays["checks"],
                arrays["labels"],
                Names.unpacked(arrays["words"], arrays["word_bounds"]),
            )
    except Exception:  # NumPy and its zips fail in many ways
        return None


class _Label(NamedTuple):
    where: tarfile.TarInfo
    is_json: bool


def _made_index(path: Path) -> Index:
    """The index of a shard, from its headers and labels.

    Raises:
        ValueError: it is not a tar, is truncated, or a sample has no picture, no label, two
            pictures, a label that cannot be read or the name of another one.
    """
    found: dict[str, tuple[int, int, int]] = {}
    labels: list[int | str] = []
    keys: set[str] = set()
    with path.open("rb") as file:
        for key, parts in groupby(_parts_of(path), key=lambda part: part[0]):
            picture, label = _sample(path, key, [(field, member) for _, field, member in parts])
            if picture is None:
                continue
            if key in keys:
                raise ValueError(
                    f"the sample {shortened(key)} occurs twice in {path}: the members of a "
                    "sample must follow each other, and every sample needs a name of its own"
                )
            keys.add(key)
            file.seek(label.where.offset_data)
            labels.append(_label_in(path, key, file.read(label.where.size), label.is_json))
            found[picture.name] = picture.offset_data, picture.size, picture.chksum
    return _sorted_index(path, found, labels)


def _sorted_index(
    path: Path, found: Mapping[str, tuple[int, int, int]], labels: Sequence[int | str]
) -> Index:
    if not found:
        raise ValueError(
            f"{path} contains no samples: it needs a picture and a label of each, such as 1.jpg "
            f"and 1.cls (pictures: {', '.join(PICTURE_ENDINGS)})"
        )
    names = list(found)
    order = sorted(range(len(names)), key=names.__getitem__)
    starts, sizes, checks = np.array([found[names[i]] for i in order], np.int64).T.copy()
    words = sorted({label for label in labels if isinstance(label, str)})
    if words and len(words) < len(set(labels)):
        raise ValueError(
            f"the labels in {path} are numbers and names ({few_of(words, 3)}): use one kind"
        )
    number = {word: index for index, word in enumerate(words)}
    counted = [number[x] if isinstance(x, str) else x for x in (labels[i] for i in order)]
    sorted_names = SortedNames.of_sorted(names[i] for i in order)
    numbers = np.array(counted, np.int64)
    return Index(sorted_names, starts, sizes, checks, numbers, Names.of(words))


def _parts_of(path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(sample, field, member) of all files of a shard except hidden ones and WebDataset's own."""
    for member in members_of(path):
        is_hidden = member.name.rpartition("/")[2].startswith((".", "__"))
        if not member.isdir() and not is_hidden:
            yield *_taken_apart(member.name), member


def _taken_apart(name: str) -> tuple[str, str]:
    """(sample, field): `a/0.5.JPG` -> (`a/0`, `5.jpg`); as WebDataset has it."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, field = file.partition(".")
    return f"{folder}{slash}{key}", field.lower()


def _sample(
    path: Path, key: str, parts: Sequence[tuple[str, tarfile.TarInfo]]
) -> tuple[tarfile.TarInfo | None, _Label]:
    """The picture and the label of a sample; no picture if it has no label either."""
    pictures = [member for field, member in parts if f".{field}" in PICTURE_ENDINGS]
    labels = {field: member for field, member in parts if field in _LABELS}
    shown = shortened(key)
    where = f"the sample {shown} in {path}"
    if not pictures and not labels:
        return None, _Label(tarfile.TarInfo(), False)
    if not pictures:
        there = shortened(", ".join(field or "no ending" for field, _ in parts))
        raise ValueError(
            f"{where} has no picture (it has: {there}): it needs {shown}.jpg or the like, without "
            "another dot in the name"
        )
    if len(pictures) > 1:
        names = shortened(", ".join(member.name for member in pictures))
        raise ValueError(f"{where} has {len(pictures)} pictures ({names}): keep one")
    if not labels:
        raise ValueError(
            f"{where} has no label: it needs {shown}.cls with a number or the name of its class, "
            f'or {shown}.json with {{"label": ...}}'
            + (
                ". If the folders in this tar are classes, it is not a shard: name every tar, "
                "such as --data train=train.tar --data test=test.tar"
                if "/" in key
                else ""
            )
        )
    field = next(field for field in _LABELS if field in labels)
    for member in (pictures[0], labels[field]):
        if not is_plain(member):
            raise ValueError(
                f"{shortened(member.name)} in {path} is a link or a sparse file: write the shard "
                "with ordinary files (tar --dereference, without -S)"
            )
    if labels[field].size > _MOST_LABEL_BYTES:
        raise ValueError(
            f"the label {shortened(labels[field].name)} in {path} has {labels[field].size:,} "
            f"bytes: at most {_MOST_LABEL_BYTES:,} are read"
        )
    return pictures[0], _Label(labels[field], field == "json")


def _label_in(path: Path, key: str, content: bytes, is_json: bool) -> int | str:
    """A label: a number from 0, or the name of a class."""
    where = f"the label of the sample {shortened(key)} in {path}"
    try:
        label: Any = content.decode("utf-8-sig").strip()
        if is_json:
            value = load_json(content)
            fields = value if isinstance(value, dict) else {}
            label = fields.get("label", fields.get("cls"))
    except ValueError as error:
        raise ValueError(f"{where} cannot be read ({error}): repair it") from None
    if isinstance(label, str) and _NUMBER.fullmatch(label):
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError(
            f"{where} is {label!r}: it must be a number from 0, or the name of a class"
            + (', under "label" or "cls"' if is_json else "")
        )
    if isinstance(label, str) and len(label) > _LONGEST_LABEL:
        raise ValueError(
            f"{where} has {len(label):,} characters: at most {_LONGEST_LABEL} are allowed"
        )
    if isinstance(label, int) and label < 0:
        raise ValueError(f"{where} is {label}: labels count from 0; leave out what has no class")
    return label


# --- all shards of a split -----------------------------------------------------------------------


class ShardPictures:
    """Reads pictures directly from the shards; safe in any thread or process."""

    def __init__(
        self,
        paths: Sequence[Path],
        bounds: Positions,
        names: SortedNames,
        where: tuple[Positions, Positions, Positions],
    ) -> None:
        """Shard number s holds the pictures `bounds[s]` to `bounds[s + 1]`.

        `where`: beginnings, sizes and checksums, as in `Index`.
        """
        self._paths, self._bounds, self._names = paths, bounds, names
        self._starts, self._sizes, self._checks = where

    def __call__(self, name: str) -> Image.Image:
        """The picture of that name; OSError if it cannot be read."""
        index = self._names.position(name)
        path = self._paths[int(np.searchsorted(self._bounds, index, side="right")) - 1]
        size = int(self._sizes[index])
        check_size(size)
        with path.open("rb") as file:
            file.seek(int(self._starts[index]) - tarfile.BLOCKSIZE)
            header, content = file.read(tarfile.BLOCKSIZE), file.read(size)
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").chksum
        except tarfile.HeaderError:
            found = None
        if found != self._checks[index] or len(content) < size:
            raise OSError(
                f"{path} was changed or cut off after it was listed: give the command again, "
                "which lists it anew"
            )
        return open_picture(content)


class _Split(NamedTuple):
    """The pictures of all shards of a split; their labels are those of the files."""

    names: SortedNames
    sizes: Integers
    open: ShardPictures
    labels: Positions
    words: tuple[str, ...]


_SPLITS: Unchanged[_Split] = Unchanged()
_NONE = SortedNames.of_sorted(())


def _split(paths: Sequence[Path]) -> _Split:
    def read(stamps: dict[str, Stamp]) -> _Split:
        stamps.update({str(path): stamp_of(path) for path in paths})
        num_new = sum(not index_file(path).exists() for path in paths)
        if num_new >= _MANY:
            _logger.warning("reading the headers of %d shards; this is done once", num_new)
        return _joined(paths, map(_index_of, paths))

    try:
        return _SPLITS.get(tuple(map(str, paths)), read)
    except OSError as error:
        raise ValueError(f"a shard cannot be read ({error}): change its permissions") from None


def _joined(paths: Sequence[Path], indices: Iterable[Index]) -> _Split:
    folder = os.path.commonpath([path.parent for path in paths])
    found: list[Index] = []

    def every_name() -> Iterator[str]:
        for path, index in zip(paths, indices, strict=True):
            found.append(index._replace(names=_NONE))  # they are in memory once
            shard = os.path.relpath(path, folder)
            yield from (f"{shard}/{name}" for name in index.names)

    names = SortedNames.of_sorted(every_name())
    words = sorted({word for index in found for word in index.words})
    if words and not all(index.words for index in found):
        path = next(path for path, index in zip(paths, found, strict=True) if not index.words)
        raise ValueError(
            f"labels are numbers in {path} and names in other shards ({few_of(words, 3)}): use one "
            "kind"
        )
    number = {word: i for i, word in enumerate(words)}
    labels = [
        np.array([number[word] for word in index.words])[index.labels] if words else index.labels
        for index in found
    ]
    bounds = np.concatenate([[0], np.cumsum([len(each.starts) for each in found])])
    parts = [[each.starts for each in found], [each.sizes for each in found]]
    parts.append([each.checks for each in found])
    found.clear()  # only the column that is joined is in memory twice
    starts, sizes, checks = (np.concatenate(parts.pop(0)) for _ in range(3))
    bytes_each = Integers.of(sizes)
    pictures = ShardPictures(paths, bounds, names, (starts, np.asarray(bytes_each), checks))
    return _Split(names, bytes_each, pictures, np.concatenate(labels), tuple(words))


def open_shards(splits: Mapping[str, Sequence[Path]]) -> NamedSet:
    """The splits of shards, without decoding any picture.

    Args:
        splits: with `train`; the shards of each.

    Raises:
        ValueError: a shard is no tar or truncated, a sample is incomplete or occurs twice, a label
            is out of range, or a shard belongs to two splits.
    """
    owner: dict[str, str] = {}
    for split, paths in splits.items():
        for path in paths:
            real = os.path.realpath(path)  # unlike Path.resolve, it takes a link to itself as it is
            if owner.setdefault(real, split) != split:
                raise ValueError(
                    f"{path} is a shard of {owner[real]} and of {split}, so accuracy "
                    "there would mean nothing: give other shards, or a share such as 0.1"
                )
    found = {split: _split(paths) for split, paths in splits.items()}
    train = found["train"]
    names = _class_names(splits["train"], train)
    pools = {}
    for split, each in found.items():
        labels = _labels(each, names, split, has_words=bool(train.words))
        pools[split] = PictureSet(each.names, Integers.of(labels), each.open, each.sizes)
    return NamedSet(names, pools)


def _class_names(paths: Sequence[Path], train: _Split) -> tuple[str, ...]:
    if train.words:
        if len(train.words) < 2:
            raise ValueError(
                f"the shards contain only one class ({train.words[0]}): two are needed"
            )
        return train.words
    file = paths[0].parent / CLASSES
    if file.exists():
        return _listed_classes(file)
    counts = np.unique(train.labels)
    gaps = np.setdiff1d(np.arange(len(counts)), counts)
    if len(gaps):
        raise ValueError(
            f"no training picture has the label {gaps[0]}, but labels go up to {counts[-1]}: "
            f"number the classes from 0 without gaps, or name all of them in {file}, one a line"
        )
    if len(counts) < 2:
        raise ValueError(f"the shards in {paths[0].parent} contain only one class: two are needed")
    return tuple(map(str, range(len(counts))))


def _listed_classes(file: Path) -> tuple[str, ...]:
    try:
        lines = read_bytes(file, _MOST_CLASSES_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(
            f"{file} is not text in UTF-8: write the name of a class per line"
        ) from None
    names = tuple(line.strip() for line in lines)
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise ValueError(
            f"{file} must name at least two classes, one a line, each once and without empty lines"
        )
    return names


def _labels(split: _Split, names: tuple[str, ...], what: str, *, has_words: bool) -> Positions:
    """Indices of classes.

    Args:
        has_words: whether the labels of the training shards are names.
    """
    labels = split.labels
    if bool(split.words) != has_words:
        kinds = ("numbers", "names of classes")
        raise ValueError(
            f"labels are {kinds[has_words]} in the training shards, but {kinds[not has_words]} in "
            f"those of {what}: use one kind"
        )
    if split.words:
        number = {name: index for index, name in enumerate(names)}
        unknown = [word for word in split.words if word not in number]
        if unknown:
            raise ValueError(
                f"the {what} split contains classes that do not occur in the training images: "
                f"{few_of(unknown, 10)} (those are: {few_of(names, 10)})"
            )
        return np.array([number[word] for word in split.words], np.int64)[labels]
    too_large = np.flatnonzero(labels >= len(names))
    if len(too_large):
        index = int(too_large[0])
        raise ValueError(
            f"{split.names[index]} has the label {labels[index]}, but there are {len(names)} "
            f"classes, 0 to {len(names) - 1} ({few_of(names, 5)}): repair it, or name all classes "
            f"in {CLASSES} beside the training shards"
        )
    return labels
