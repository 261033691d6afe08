"""WebDataset's shards: what is read from them, as from folders, and what is refused."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.making import (
    SETTINGS,
    Part,
    everything,
    loaded,
    noise,
    opened,
    png,
    sample,
    shards,
    write_shard,
)
from prenas.data import open_data, training_batches, with_data
from prenas.data import shards as module
from prenas.processes import Processes
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import Augmentation
from training.runs import value_error_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRENAS_DATA", str(tmp_path_factory.mktemp("cache")))


def numbers_of(split: Any) -> list[int]:
    return [int(Path(name).stem) for name in split.names]


# --- what is read --------------------------------------------------------------------------------


def test_every_picture_has_its_label(tmp_path: Path) -> None:
    found = opened(shards(tmp_path / "set"), validation=0.2, test=0.2)
    assert found.class_names == ("0", "1", "2")
    for split in found.splits.values():
        for name, label in zip(split.names, split.labels, strict=True):
            number = int(Path(name).stem)
            assert name == f"train-{number // 7:03d}.tar/{number:04d}.png"
            assert label == number // 10
            assert np.array_equal(np.asarray(split.open(name)), np.asarray(noise(number)))
    assert sorted(n for split in found.splits.values() for n in numbers_of(split)) == [*range(30)]


@pytest.mark.parametrize("memory_gib", [0, 4])
def test_shards_are_divided_and_trained_on_as_folders_are(
    memory_gib: float, tmp_path: Path
) -> None:
    """The same batches to the bit: augmented twice, from the middle of an epoch, in any process."""
    folder = tmp_path / "folders"
    for number in range(30):
        path = folder / str(number // 10) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    fields: dict[str, Any] = {
        "augmentation": Augmentation(crop_scale=(0.3, 1.0), flip=0.5, repeats=2),
        "memory_gib": memory_gib,
    }
    found = [loaded(root, **fields) for root in (shards(tmp_path / "set"), folder)]
    assert found[0].class_names == found[1].class_names
    for start, processes in ((0, Processes(0, 1)), (2, Processes(0, 1)), (1, Processes(1, 3))):
        left, right = (
            [*training_batches(data, SETTINGS, 4, 0, 1, start=start, processes=processes)]
            for data in found
        )
        assert len(left) == len(right) == 6 - start
        for ours, theirs in zip(left, right, strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.labels, theirs.labels)
    for split in ("validation", "test"):
        both = [everything(getattr(data, split)) for data in found]
        assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@given(
    st.lists(st.sampled_from(["ant", "bee", "a cat"]), min_size=4, max_size=12).filter(
        lambda labels: len(set(labels)) > 1
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_any_order_of_samples_and_shards_gives_the_same_set(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str], dice: Any, is_json: bool
) -> None:
    root = tmp_path_factory.mktemp("set")
    parts: dict[int, list[list[Part]]] = {0: [], 1: []}
    for number, label in enumerate(labels):
        picture, text = sample(number, label)
        if is_json:
            text = (f"{number:04d}.json", json.dumps({"width": 3, "label": label}).encode())
        parts[number % 2].append(dice.sample([picture, text, (f"{number:04d}.txt", b"?")], 3))
    for shard, there in parts.items():
        dice.shuffle(there)
        write_shard(root / f"{shard}.tar", [part for each in there for part in each])
    train = opened(root, validation=0.1, test="none").splits
    found = {
        number: names
        for split in train.values()
        for number, names in zip(numbers_of(split), split.labels, strict=True)
    }
    kinds = sorted(set(labels))
    assert found == {number: kinds.index(label) for number, label in enumerate(labels)}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(form: int, tmp_path: Path) -> None:
    """With long names too, for which two of them have headers of their own."""
    far = "in a folder/" * 9
    parts = [(f"./{far}{name}", content) for n in (3, 15) for name, content in sample(n)]
    root = write_shard(tmp_path / "0.tar", parts, format=form)
    other = write_shard(tmp_path / "other/0.tar", sample(4))
    found = opened(root.parent / "*.tar", validation=str(other)).train
    assert numbers_of(found) == [3, 15]
    for name, number in zip(found.names, (3, 15), strict=True):
        assert np.array_equal(np.asarray(found.open(name)), np.asarray(noise(number)))


def test_splits_by_the_names_of_shards_and_by_patterns(tmp_path: Path) -> None:
    root = tmp_path / "set"
    train = shards(root, range(30), "some-train")
    val = shards(root, range(0, 30, 4), "some-val")
    test = shards(root, range(1, 30, 9), "some-test")
    by_folder, by_pattern = opened(root), opened(train, validation=str(val), test=str(test))
    for found in (by_folder, by_pattern):
        assert numbers_of(found.train) == [*range(30)]
        assert numbers_of(found.validation) == [*range(0, 30, 4)]
        assert found.test is not None
        assert numbers_of(found.test) == [*range(1, 30, 9)]
    assert by_folder.fingerprint == by_pattern.fingerprint
    assert opened(root, validation=0.2).test is not None
    assert sorted(numbers_of(opened(root, validation=0.2, test="none").train)) != [*range(30)]


def test_shards_of_a_test_are_not_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Though none is called `train`; of those that have the name of no split, all are."""
    root = tmp_path / "set"
    shards(root, range(30), "photos")
    shards(root, range(1, 30, 4), "photos-test")
    found = opened(root)
    assert found.test is not None
    assert numbers_of(found.test) == [*range(1, 30, 4)]
    assert sorted(numbers_of(found.train) + numbers_of(found.validation)) == [*range(30)]
    shards(root, range(30), "photos-train")
    assert "skipped shards of no split: photos-000.tar" in opened(root).notes[0]
    others = tmp_path / "others"
    shards(others, range(0, 30, 3), "val")
    assert len(opened(others).splits) == 3
    shards(others, range(30), "test")
    with pytest.raises(ValueError, match="are all for test and validation, and none is for train"):
        opened(others)
    with pytest.raises(ValueError, match=r"of which data\.train cannot name a part \('trian'\)"):
        opened(root, train="trian")


def test_hidden_files_of_macos_and_marks_of_an_encoding_are_no_part_of_samples(
    tmp_path: Path,
) -> None:
    mark = "\N{BYTE ORDER MARK}"
    parts = [
        part
        for number in range(4)
        for name, content in sample(number, f"{mark}{('ant', 'bee')[number % 2]}")
        for part in ((f"./._{name}", b"?"), (f"./{name}", content))
    ]
    write_shard(tmp_path / "set/0.tar", parts)
    (tmp_path / "set/classes.txt").write_text("ant\nbee\n", encoding="utf-8-sig")
    found = opened(tmp_path / "set", validation=0.4, test="none")
    assert found.class_names == ("ant", "bee")
    assert sorted(n for split in found.splits.values() for n in numbers_of(split)) == [0, 1, 2, 3]


def test_names_of_classes_stand_beside_the_shards(tmp_path: Path) -> None:
    where = shards(tmp_path / "set")
    (tmp_path / "set/classes.txt").write_text("ant\nbee\ncat\nowl\n")
    found = opened(where)
    assert found.class_names == ("ant", "bee", "cat", "owl")
    (tmp_path / "set/classes.txt").write_text("ant\n\nbee\n")
    with pytest.raises(ValueError, match=r"classes\.txt must name at least two classes"):
        opened(where)


def test_the_command_line_takes_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, val = shards(tmp_path / "set"), shards(tmp_path / "set", range(0, 30, 5), "val")
    monkeypatch.chdir(tmp_path)
    recipe = with_data(get_recipe("photos"), [f"set/{where.name}", f"val=set/{val.name}"])
    assert recipe.data is not None
    assert (recipe.data.root, recipe.data.validation) == (str(where), str(val))
    assert recipe.space.settings.num_classes == 3
    assert numbers_of(open_data(recipe.data).validation) == [*range(0, 30, 5)]


def test_a_single_shard_is_told_from_a_tar_of_folders(tmp_path: Path) -> None:
    shards(tmp_path, range(7, 14))
    assert opened(tmp_path / "train-000.tar").class_names == ("0", "1")
    parts = [(f"{kind}/{n}.{end}", png(n)) for kind in "ab" for n in range(3) for end in ("png",)]
    write_shard(tmp_path / "folders.tar", [*parts, ("a/0.json", b'{"label": 3}')])
    assert opened(tmp_path / "folders.tar").class_names == ("a", "b")


# --- the index -----------------------------------------------------------------------------------


def test_headers_are_read_once_until_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = shards(tmp_path / "set")
    made: list[str] = []
    make = module._made_index
    monkeypatch.setattr(module, "_made_index", lambda path: made.append(path.name) or make(path))
    first = opened(where)
    assert len(made) == 5
    assert opened(where).fingerprint == first.fingerprint
    assert len(made) == 5
    shard = tmp_path / "set/train-001.tar"
    write_shard(shard, [part for number in range(7, 13) for part in sample(number)])
    again = opened(where)
    assert made[5:] == ["train-001.tar"]
    assert again.fingerprint != first.fingerprint
    for kept in (Path(os.environ["PRENAS_DATA"]) / "shards").iterdir():
        kept.write_bytes(kept.read_bytes()[:-100])  # damaged: made again
    module._SPLITS._kept.clear()
    assert opened(where).fingerprint == again.fingerprint
    assert len(made) == 11


def test_without_a_place_for_the_index_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("PRENAS_DATA", str(tmp_path / "a file/cache"))
    assert len(opened(shards(tmp_path / "set")).train) == 24
    assert "listed again at every start" in caplog.text


def test_a_shard_that_changes_under_a_training_is_noticed(tmp_path: Path) -> None:
    """Whatever its time says: never the bytes of another picture."""
    where = shards(tmp_path / "set")
    found = opened(where).train
    shard = tmp_path / "set/train-001.tar"
    others = [part for number in range(8, 15) for part in sample(number)]
    write_shard(shard, others)
    for name in found.names:
        if name.startswith("train-001"):
            with pytest.raises(OSError, match="was changed or cut off after it was listed"):
                found.open(name)
    shard.write_bytes(b"")
    with pytest.raises(OSError, match="was changed or cut off after it was listed"):
        found.open("train-001.tar/0010.png")


# --- what is refused -----------------------------------------------------------------------------

GOOD = [part for number in range(8, 12) for part in sample(number)]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([*GOOD, ("x.png", png(1))], ["the sample x in", "has no label", "x.cls"]),
        ([("cat/x.png", png(1))], ["the sample cat/x in", "name every tar, such as --data train="]),
        ([*GOOD, ("x.cls", b"1")], ["the sample x in", "has no picture (it has: cls)"]),
        ([*GOOD, ("x.1.png", png(1)), ("x.cls", b"1")], ["has no picture (it has: 1.png, cls)"]),
        ([*GOOD, *sample(9)], ["the sample 0009 occurs twice"]),
        ([*GOOD, *sample(20, "1"), ("0020.jpg", png(3))], ["has 2 pictures (0020.png, 0020.jpg)"]),
        ([*GOOD, *sample(20, "-1")], ["sample 0020", "is -1", "count from 0"]),
        ([*GOOD, *sample(20, "")], ["sample 0020", "is ''", "must be a number from 0"]),
        ([*GOOD, *sample(20, "ant")], ["numbers and names (ant)"]),
        ([*GOOD, *sample(20, "1000000000")], ["no training picture has the label 2"]),
        ([*GOOD, ("x.png", png(1)), ("x.cls", b"\xff")], ["cannot be read", "utf-8"]),
        ([*GOOD, ("x.png", png(1)), ("x.json", b"{")], ["sample x", "cannot be read"]),
        ([*GOOD, ("x.png", png(1)), ("x.json", b'{"label": true}')], ["is True", '"label" or']),
        ([*GOOD, ("x.png", png(1)), ("x.json", b"[1]")], ["is None", "must be a number"]),
        ([("1.txt", b"a")], ["contains no samples", "1.jpg and 1.cls"]),
        (sample(3) + sample(4), ["only one class"]),
        ([*GOOD, *sample(20, "9" * 2000)], ["sample 0020", "has 2,000 characters: at most 1000"]),
    ],
)
def test_incomplete_samples_are_refused(
    parts: list[Part], words: list[str], tmp_path: Path
) -> None:
    shard = write_shard(tmp_path / "set/0.tar", parts)
    message = value_error_of(lambda: opened(shard.parent / "*.tar"))
    assert message is not None
    for word in [*words, str(tmp_path)]:
        assert word in message


def test_a_link_to_itself_among_shards_is_refused(tmp_path: Path) -> None:
    """Python's own resolving of it ends in a RuntimeError."""
    write_shard(tmp_path / "0.tar", GOOD)
    (tmp_path / "1.tar").symlink_to("1.tar")
    message = value_error_of(lambda: opened(tmp_path / "*.tar"))
    assert message is not None
    assert str(tmp_path / "1.tar") in message


@pytest.mark.parametrize(
    "parts",
    [
        [("n" * 5000 + ".png", png(1))],
        [("n" * 5000 + ".cls", b"1")],
        [("n." + "m" * 5000, b"1"), ("n.cls", b"1")],
        [("n" * 5000 + ".png", png(1)), ("n" * 5000 + ".cls", b"")],
        2 * [("n" * 5000 + ".png", png(1)), *sample(30), ("n" * 5000 + ".cls", b"1")],
    ],
)
def test_long_names_of_samples_make_no_long_messages(parts: list[Part], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", [*GOOD, *parts])
    message = value_error_of(lambda: opened(shard.parent / "*.tar"))
    assert message is not None
    assert "the sample n" in message
    assert len(message) < 500 + len(str(tmp_path))


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    where = shards(tmp_path / "set")
    val = write_shard(tmp_path / "val/0.tar", sample(40, "3"))
    words = r"0\.tar/0040\.png has the label 3, but there are 3 classes, 0 to 2"
    with pytest.raises(ValueError, match=words):
        opened(where, validation=str(val))
    val = write_shard(tmp_path / "val/1.tar", sample(40, "owl"))
    with pytest.raises(ValueError, match=r"numbers in the training shards, but names of classes"):
        opened(where, validation=str(val))


def test_a_shard_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", GOOD)
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in range(512, end, 800):
        shard.write_bytes(whole[:length])
        message = value_error_of(lambda: opened(shard.parent / "*.tar"))
        assert message is not None, length
        assert str(shard) in message
        assert "truncated" in message


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_blank_header_does_not_end_a_shard(place: int, tmp_path: Path) -> None:
    """As a bad sector leaves one: the samples after it were left out without a word."""
    shard = write_shard(tmp_path / "0.tar", GOOD)
    with tarfile.open(shard) as tar:
        start = tar.getmembers()[place].offset
    content = bytearray(shard.read_bytes())
    content[start : start + 512] = bytes(512)
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"more follows after the end mark behind {place} memb"):
        opened(shard.parent / "*.tar")


def test_what_is_no_picture_is_named_before_training(tmp_path: Path) -> None:
    parts = [part for number in range(8, 14) for part in sample(number)]
    shard = write_shard(tmp_path / "0.tar", [*parts, ("x.png", b"no picture"), ("x.cls", b"1")])
    with pytest.raises(ValueError, match=r"0\.tar/x\.png \(not a supported picture format\)"):
        loaded(shard.parent / "*.tar")


def test_a_link_is_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", GOOD)
    with tarfile.open(shard, "a") as tar:
        member = tarfile.TarInfo("x.png")
        member.type, member.linkname = tarfile.SYMTYPE, "0008.png"
        tar.addfile(member)
        member = tarfile.TarInfo("x.cls")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"1"))
    with pytest.raises(ValueError, match=r"x\.png in .* is a link or a sparse file"):
        opened(shard.parent / "*.tar")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train-{000..009}.tar", "5 of the 10 shards of .* do not exist: .*train-005.tar"),
        ("tarin-*.tar", "no file is called .*tarin-"),
        ("train-{000..004.tar", "a brace is not closed"),
        ("train-{0..9999999999}.tar", "stands for more than 1,000,000 files"),
        ("train-{9..-9999999999}.tar", "stands for more than 1,000,000 files"),
        (f"train-{'{' * 300}0..1{'}' * 300}.tar", "not closed|do not exist"),
        (f"train-{{{',' * 5000}}}.tar", r"has 5,\d\d\d characters: give at most 4,096"),
    ],
)
def test_patterns_that_match_nothing_are_refused(name: str, words: str, tmp_path: Path) -> None:
    shards(tmp_path / "set")
    with pytest.raises(ValueError, match=words):
        opened(tmp_path / "set" / name)


@pytest.mark.parametrize("pattern", ["", "train-*.tar", "train-{000..005}.tar", "train-005.tar"])
def test_a_pipe_among_shards_is_named(pattern: str, tmp_path: Path) -> None:
    """It was waited for without end, or left out without a word."""
    shards(tmp_path / "set")
    os.mkfifo(tmp_path / "set/train-005.tar")
    with pytest.raises(ValueError, match=r"train-005\.tar.* regular file"):
        opened(tmp_path / "set" / pattern)


def test_training_shards_are_not_evaluated_on(tmp_path: Path) -> None:
    where = shards(tmp_path / "set")
    with pytest.raises(ValueError, match="is a shard of train and of validation"):
        opened(where, validation=str(tmp_path / "set/train-002.tar"))


def test_shards_are_not_validated_with_folders(tmp_path: Path) -> None:
    where = shards(tmp_path / "set")
    with pytest.raises(ValueError, match=r"the training images are shards, but data\.validation"):
        opened(where, validation=str(tmp_path))
