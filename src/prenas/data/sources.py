"""Where images come from: built-in data sets, folders, tars, and timm's dataset factory.

A source is first opened (`Opened`: the pictures are listed, but not decoded), then split, then
prepared for training and evaluation (`load_data`).
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from torch.utils.data import Dataset

from prenas.data.augmentation import (
    BatchAugmentation,
    Mixing,
    evaluation_transform,
    training_transform,
)
from prenas.data.copies import notes_on_copies
from prenas.data.cores import num_readers
from prenas.data.folders import (
    SPLIT_NAMES,
    Listing,
    class_names,
    counted,
    labelled,
    list_pictures,
    split_folders,
    unwrapped,
    unwrapped_splits,
)
from prenas.data.images import ImageData, num_samples
from prenas.data.named import NAMED
from prenas.data.opening import UNSUPPORTED
from prenas.data.pictures import (
    Pictures,
    PictureSet,
    Pixels,
    Problem,
    UnreadableError,
    check_picture_channels,
    classes_without_pictures,
    prepare,
)
from prenas.data.shards import open_shards, shards_at, shards_of_splits
from prenas.data.timm_sets import TIMM_PREFIXES, is_timm_name, open_timm
from prenas.families.base import Settings
from prenas.randomness import numpy_generator
from prenas.recipe.data import FOLDER, OWN_DATA, DataRecipe
from prenas.values import few_of, unknown_name

_logger = logging.getLogger(__name__)
NO_SPLIT = "none"
_SHARE = 0.1
_AT_ONCE = 100_000  # names or numbers that are made into text together
_FEW = 2000  # with fewer training images, starting processes costs more than it saves
_NUM_LOOKED_INTO = 10  # classes whose folders are looked into


class Opened(NamedTuple):
    """The listed pictures of every split; nothing is decoded yet."""

    class_names: tuple[str, ...]
    train: PictureSet
    validation: PictureSet
    test: PictureSet | None
    notes: tuple[str, ...]

    @property
    def splits(self) -> dict[str, PictureSet]:
        """All splits by name."""
        found = {"train": self.train, "validation": self.validation}
        return found if self.test is None else {**found, "test": self.test}

    @property
    def fingerprint(self) -> str:
        """Equal for equal classes, splits, names, labels and sizes of all pictures."""
        return _fingerprint(self.class_names, self.splits)


def _fingerprint(class_names: tuple[str, ...], splits: Mapping[str, PictureSet]) -> str:
    """The digest of the text of nested tuples, which is never in memory as a whole."""
    digest = hashlib.sha256(repr(class_names).encode())
    for name, split in splits.items():
        digest.update(f"({name!r}".encode())
        for values in (split.names, split.labels, split.versions):
            digest.update(b", ")
            for text in _as_tuple(values):
                digest.update(text.encode())
        digest.update(b")")
    return digest.hexdigest()


def _as_tuple(values: Sequence[str] | Sequence[int]) -> Iterator[str]:
    """The text of a tuple, in parts."""
    yield "("
    for start in range(0, len(values), _AT_ONCE):
        yield (", " if start else "") + ", ".join(map(repr, values[start : start + _AT_ONCE]))
    yield ",)" if len(values) == 1 else ")"


def load_data(
    data_recipe: DataRecipe,
    settings: Settings,
    *,
    hold: Collection[str] = ("train", "validation", "test"),
) -> ImageData:
    """Lists, splits and checks the recipe's images, and keeps them in memory if they are few.

    Args:
        hold: splits that may be kept in memory; the others are read when they are needed.

    Raises:
        ValueError: the data set is unknown, or images are missing, unreadable or wrongly laid out;
            the message says what was found and what to do.
    """
    check_picture_channels(settings.in_chans)
    for_training = training_transform(data_recipe.augmentation, data_recipe.preprocessing, settings)
    for_evaluation = evaluation_transform(data_recipe.preprocessing, settings, data_recipe.crops)
    opened = open_data(data_recipe)
    notes = list(opened.notes)

    problems: list[Problem] = []

    def ready(name: str, pictures: PictureSet) -> Dataset[Any] | None:
        is_training = name == "train"
        try:
            prepared = prepare(
                pictures,
                for_training if is_training else for_evaluation,
                (settings.in_chans, *settings.image_size),
                data_recipe.preprocessing,
                is_fixed=(
                    not data_recipe.augmentation.changes_pictures
                    if is_training
                    else data_recipe.crops == 1
                ),
                memory_bytes=data_recipe.memory_gib * 2**30 if name in hold else 0,
                skip=data_recipe.unreadable == "skip",
                may_replace=is_training,
            )
        except UnreadableError as error:  # also check the other splits, to name all at once
            problems.extend(error.problems)
            return None
        if is_training and data_recipe.unreadable == "skip":
            _require_all_classes(opened, prepared.dataset)
        notes.extend(f"{name}: {note}" for note in prepared.notes)
        return prepared.dataset

    found = {name: ready(name, pictures) for name, pictures in opened.splits.items()}
    if problems:
        raise UnreadableError(problems, sum(map(len, opened.splits.values())))
    notes += [
        note
        for name, pictures in opened.splits.items()
        if name != "train"
        for note in notes_on_copies(name, pictures, opened.train)
    ]
    splits = {name: dataset for name, dataset in found.items() if dataset is not None}
    for note in notes:
        _logger.warning("%s", note)
    augmentation = data_recipe.augmentation
    train = splits["train"]
    is_resized = all(isinstance(split, Pixels) for split in splits.values())
    is_held = isinstance(train, Pixels) or (isinstance(train, Pictures) and train.is_held)
    is_small = is_resized or (is_held and num_samples(train) < _FEW)
    automatic = 0 if is_small else num_readers()
    return ImageData(
        train=splits["train"],
        unchanged=(
            Pictures(
                opened.train,
                evaluation_transform(data_recipe.preprocessing, settings),
                settings.in_chans,
                data_recipe.preprocessing,
                skip=data_recipe.unreadable == "skip",
            )
            if augmentation.changes_pictures
            else None
        ),
        validation=splits["validation"],
        test=splits.get("test"),
        class_names=opened.class_names,
        augmentation=BatchAugmentation(augmentation, data_recipe.preprocessing),
        mixing=(
            Mixing(augmentation, settings.num_classes)
            if augmentation.mixup or augmentation.cutmix
            else None
        ),
        repeats=augmentation.repeats,
        num_workers=automatic if data_recipe.num_workers is None else data_recipe.num_workers,
        num_crops=data_recipe.crops,
        notes=tuple(notes),
        fingerprint=opened.fingerprint,
    )


def _require_all_classes(opened: Opened, prepared: Dataset[Any]) -> None:
    """Raises ValueError if skipping unreadable pictures leaves a class without any."""
    if lost := classes_without_pictures(opened.train, prepared):
        names = ", ".join(opened.class_names[label] for label in lost[:10])
        raise ValueError(
            f"no training picture of {names} can be read: repair the pictures, or remove the class "
            "folder (data.unreadable=skip skips single pictures, never a whole class)"
        )


def undivided(data_recipe: DataRecipe, settings: Settings) -> ImageData | None:
    """All pictures of a folder without splits, to evaluate on; None if it has splits."""
    names, pools, _ = _pools(data_recipe)
    if not _has_no_splits(data_recipe, pools):
        return None
    pool = pools["train"]
    prepared = prepare(
        pool,
        evaluation_transform(data_recipe.preprocessing, settings, data_recipe.crops),
        (settings.in_chans, *settings.image_size),
        data_recipe.preprocessing,
        is_fixed=data_recipe.crops == 1,
        memory_bytes=data_recipe.memory_gib * 2**30,
        skip=data_recipe.unreadable == "skip",
    )
    return ImageData(
        train=prepared.dataset,
        validation=prepared.dataset,
        test=None,
        class_names=names,
        num_workers=num_readers() if data_recipe.num_workers is None else data_recipe.num_workers,
        num_crops=data_recipe.crops,
        notes=tuple(prepared.notes),
        fingerprint=_fingerprint(names, {"undivided": pool}),  # no divided set has this one
        is_undivided=True,
    )


def open_data(data_recipe: DataRecipe) -> Opened:
    """Lists the recipe's images and splits them, without decoding any.

    Raises:
        ValueError: as `load_data`.
    """
    return _divided(data_recipe, *_pools(data_recipe))


def open_class_names(data_recipe: DataRecipe) -> tuple[str, ...]:
    """The classes of the recipe's images; ValueError as `load_data`."""
    return _pools(data_recipe)[0]


def _pools(data_recipe: DataRecipe) -> tuple[tuple[str, ...], dict[str, PictureSet], list[str]]:
    """(class names, the splits that the data have, notes)."""
    check_data_name(data_recipe)
    if data_recipe.name == OWN_DATA:
        raise ValueError(
            "this run uses data passed from Python: pass data=prenas.ImageData(...) to "
            "prenas.train, prenas.evaluate or prenas.specialize"
        )
    if data_recipe.name == FOLDER:
        shards = _shard_splits(data_recipe)
        if shards is None:
            return _open_folder(data_recipe)
        splits, notes = shards
        opened_shards = open_shards(splits)
        return opened_shards.class_names, dict(opened_shards.pools), notes
    if data_recipe.name in NAMED:
        names, found = NAMED[data_recipe.name](data_recipe.root)
        chosen = _chosen_names(data_recipe, list(found))
        notes = _overlaps(chosen)
        return names, {split: found[name] for split, name in chosen.items()}, notes
    wanted = {"train": data_recipe.train or "train"}
    wanted |= {
        split: name
        for split, name in (("validation", data_recipe.validation), ("test", data_recipe.test))
        if _is_name(name)
    }
    notes = _overlaps(wanted)
    memory_bytes = data_recipe.memory_gib * 2**30
    opened = open_timm(data_recipe.name, data_recipe.root, list(wanted.values()), memory_bytes)
    return opened.class_names, {split: opened.pools[name] for split, name in wanted.items()}, notes


def check_data_name(data_recipe: DataRecipe) -> None:
    """Raises ValueError, with the choices, for an unknown name of data."""
    choices = [*NAMED, FOLDER, OWN_DATA]
    if data_recipe.name not in choices and not is_timm_name(data_recipe.name):
        prefixes = [f"{prefix}..." for prefix in TIMM_PREFIXES]
        raise unknown_name("data set", data_recipe.name, [*choices, *prefixes])


def _is_name(value: str | float | None) -> TypeGuard[str]:
    """Whether a split is given by name or path, neither as a fraction nor as `none`."""
    return isinstance(value, str) and value != NO_SPLIT


def _chosen_names(data_recipe: DataRecipe, there: Sequence[str]) -> dict[str, str]:
    """Split -> its name in the data, given by the recipe or one of the usual names."""
    chosen = {}
    for split, usual in SPLIT_NAMES.items():
        wanted = getattr(data_recipe, split)
        if _is_name(wanted):
            if wanted not in there:
                raise unknown_name(f"split of {data_recipe.name} for data.{split}", wanted, there)
            chosen[split] = wanted
        elif wanted is None:
            own_name = next((name for name in usual if name in there), None)
            if own_name is not None:
                chosen[split] = own_name
    return chosen


def _overlaps(places: Mapping[str, object]) -> list[str]:
    """Notes about evaluated splits of the same images.

    Args:
        places: split -> its name or path.

    Raises:
        ValueError: an evaluated split is the training split.
    """
    for split, place in places.items():
        if split != "train" and place == places["train"]:
            raise ValueError(
                f"train and {split} are the same pictures ({place}), so accuracy there would mean "
                f"nothing: give another one for data.{split}, or a share such as 0.1"
            )
    if "test" in places and places["test"] == places.get("validation"):
        return [
            "validation and test are the same pictures, so accuracy on test is as optimistic: give "
            "others for data.test, or none"
        ]
    return []


def _shard_splits(data_recipe: DataRecipe) -> tuple[dict[str, list[Path]], list[str]] | None:
    """(the shards of every split that is not a share, notes); None if the images are no shards."""
    root, train = data_recipe.root, data_recipe.train
    has_own_path = train is not None and (root is None or Path(train).is_absolute())
    main = train if has_own_path else root
    whole = shards_at(main) if main else None
    if whole is None:
        return None
    if train is not None and not has_own_path:
        raise ValueError(
            f"the images in {root} are shards, of which data.train cannot name a part "
            f"({train!r}): give the pattern of the training shards instead of the folder, such as "
            "train-{00..09}.tar"
        )
    found = {"train": whole} if has_own_path else shards_of_splits(whole)
    unused = sorted({*whole} - {path for split in found.values() for path in split})
    notes = []
    if unused:
        notes.append(f"skipped shards of no split: {few_of([one.name for one in unused], 5)}")
    for split in ("validation", "test"):
        wanted = getattr(data_recipe, split)
        if wanted is None:
            continue
        found.pop(split, None)
        if _is_name(wanted):
            given = shards_at(wanted)
            if given is None:
                raise ValueError(
                    f"the training images are shards, but data.{split} is {wanted!r}, which is "
                    "not: give a pattern such as val-{00..09}.tar, a folder of shards, or a share "
                    "such as 0.1"
                )
            found[split] = given
    return found, notes


def _open_folder(
    data_recipe: DataRecipe,
) -> tuple[tuple[str, ...], dict[str, PictureSet], list[str]]:
    """(class names, splits that are given by name, notes) of image folders or tars."""
    root = unwrapped_splits(list_pictures(Path(data_recipe.root))) if data_recipe.root else None
    found = split_folders(root) if root else {}
    listings = {}
    for split in SPLIT_NAMES:
        wanted = getattr(data_recipe, split)
        if _is_name(wanted):
            listings[split] = _named_listing(root, wanted, split)
        elif wanted is None and root and split in found:
            listings[split] = root.below(found[split])
    if "train" not in listings:
        assert root is not None, "a recipe of folders names a root or a training folder"
        listings["train"] = root
    listings["train"] = unwrapped(listings["train"])
    _require_classes_inside(data_recipe, listings["train"])
    places = {split: unwrapped(each).where.resolve() for split, each in listings.items()}
    overlaps = _overlaps(places)
    names = class_names(listings["train"])
    pools = {
        split: labelled(
            listing if set(listing.folders) <= set(names) else unwrapped(listing), names, split
        )
        for split, listing in listings.items()
    }
    train = listings["train"]
    there = counted(train.endings, 5)
    notes = overlaps + ([f"skipped {there} files ({UNSUPPORTED})"] if there else [])
    if skipped := [*train.without_pictures]:
        notes.append(f"skipped folders without pictures: {', '.join(skipped[:5])}")
    first = train.below(names[0]).folders
    splits = [name for name in first if name.lower() in SPLIT_NAMES["train"]]
    if splits and len(first) > 1:
        notes.append(
            f"folders inside the classes, such as {names[0]}/{splits[0]}, are not taken for "
            "splits: put the classes into folders of the splits (train/cat, test/cat)"
        )
    elif nested := _first_nested(train, names):
        inside = train.below(nested).folders
        notes.append(
            f"folders inside a class, such as {nested}/{inside[0]} and {nested}/{inside[1]}, are "
            "not classes of their own: if they should be, put them beside the other classes"
        )
    if train.links:
        notes.append(
            f"skipped {len(train.links)} links in {train.where} ({few_of(train.links, 3)}): "
            "if they lead to folders of pictures, pack the set again with tar --dereference"
        )
    if train.runs:
        notes.append(f"skipped run folders among the pictures: {', '.join(train.runs[:5])}")
    wanted = {getattr(data_recipe, split) for split in SPLIT_NAMES}
    if root and found and (unused := set(root.folders) - {*found.values(), *wanted}):
        notes.append(f"skipped folders that are not splits: {', '.join(sorted(unused)[:5])}")
    return names, pools, notes


def _first_nested(listing: Listing, names: Sequence[str]) -> str | None:
    """The first class whose pictures lie in several folders only, which no other class has."""
    looked_into = {name: listing.sizes.inside(name).names for name in names[:_NUM_LOOKED_INTO]}
    number = Counter(folder for inside in looked_into.values() for folder in inside.folders)
    for name, inside in looked_into.items():
        is_own = all(number[folder] == 1 for folder in inside.folders)
        if len(inside.folders) > 1 and is_own and not len(inside.loose):
            return name
    return None


def _require_classes_inside(data_recipe: DataRecipe, training: Listing) -> None:
    """Raises ValueError if the folders of a named training split are splits themselves."""
    if _is_name(data_recipe.train) and (inside := split_folders(training)):
        raise ValueError(
            f"data.train is {data_recipe.train!r}, which contains the splits "
            f"{', '.join(sorted(inside.values()))} and not classes: give --data "
            f"{training.where}, or the path of its training folder"
        )


def _named_listing(root: Listing | None, wanted: str, split: str) -> Listing:
    """The pictures of a split: a folder inside the root, or a separate folder or tar."""
    if root and wanted in root.folders:
        return root.below(wanted)
    if root and not Path(wanted).exists():
        raise ValueError(
            f"data.{split} is {wanted!r}, which is neither a folder in {root.where} (those are: "
            f"{', '.join(root.folders[:10])}) nor the path of a folder or tar"
        )
    return list_pictures(Path(wanted))


def _divided(
    data_recipe: DataRecipe,
    names: tuple[str, ...],
    pools: Mapping[str, PictureSet],
    notes: Sequence[str],
) -> Opened:
    """Takes the splits that are given as fractions out of the training pictures.

    By default, a tenth becomes validation, and another tenth test if the data have no splits.
    """
    notes, shares = list(notes), {}
    has_no_splits = _has_no_splits(data_recipe, pools)
    for split in ("validation", "test"):
        share = getattr(data_recipe, split)
        if share is None and split not in pools and (split == "validation" or has_no_splits):
            share = _SHARE
        if isinstance(share, float):
            shares[split] = share
    train, taken = _without_shares(pools["train"], shares)
    found = {**pools, **taken}
    for split in ("validation", "test"):
        if split not in found:
            continue
        if not len(found[split]):
            raise ValueError(
                f"the {split} split would be empty: {len(pools['train'])} training pictures are "
                "too few to set a share aside (every class keeps one for training). Name a split "
                f"for data.{split}, "
                + ("do without it (--data test=none), " if split == "test" else "")
                + "or add pictures"
            )
        missing = np.setdiff1d(train.labels, found[split].labels)
        if len(missing):
            few = ", ".join(names[label] for label in missing[:5])
            more = ", ..." if len(missing) > 5 else ""
            notes.append(f"{split} has no pictures of {len(missing)} classes: {few}{more}")
    return Opened(names, train, found["validation"], found.get("test"), tuple(notes))


def _has_no_splits(data_recipe: DataRecipe, pools: Mapping[str, PictureSet]) -> bool:
    """Whether a folder is not split, and the recipe does not ask for a validation split."""
    return len(pools) == 1 and data_recipe.name == FOLDER and data_recipe.validation is None


def _without_shares(
    pictures: PictureSet, shares: Mapping[str, float]
) -> tuple[PictureSet, dict[str, PictureSet]]:
    """(the rest, split -> its share of every class), drawn independently of a run's seed.

    At least one picture of a class is taken, but never the last. The first split does not depend on
    the others, so validation stays the same when another test set is given.
    """
    labels = np.asarray(pictures.labels)
    by_label = np.argsort(labels, kind="stable")
    members_of = np.split(by_label, np.flatnonzero(np.diff(labels[by_label])) + 1)
    rest, split_of = -1, np.full(len(labels), -1, np.int8)
    for number, split in enumerate(shares):
        generator = numpy_generator(0, f"{split} share")
        for each in members_of if len(labels) else ():
            members = generator.permutation(each)
            free = members[split_of[members] == rest]
            count = min(len(free) - 1, max(1, round(shares[split] * len(members))))
            split_of[free[:count]] = number
    return pictures.subset(np.flatnonzero(split_of == rest)), {
        split: pictures.subset(np.flatnonzero(split_of == number))
        for number, split in enumerate(shares)
    }
