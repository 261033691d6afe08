"""Folders and tars: what is found, under which class, in which split, and what is refused."""

import gzip
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.making import everything, labelled_names, loaded, noise, opened, tar_of, write
from prenas.data import folders
from prenas.data.folders import list_pictures
from prenas.recipe.data import Augmentation
from training.runs import value_error_of

FLAT = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)]
SPLIT = [
    *(f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(4)),
    *(f"val/{name}/v{number}.png" for name in ("cat", "dog") for number in range(2)),
    *(f"test/{name}/t{number}.png" for name in ("cat", "dog") for number in range(3)),
]
LAYOUTS: dict[str, list[str]] = {
    "flat": FLAT,
    "split": SPLIT,
    "train-only": [f"train/{name}" for name in FLAT],
    "wrapped": [f"photos/{name}" for name in FLAT],
    "wrapped-split": [f"photos/{name}" for name in SPLIT],
    "wrapped-twice": [f"a/b/{name}" for name in SPLIT],
    "nested": [f"{name}/more/deep/{n}.png" for name in ("cat", "dog") for n in range(10)],
    "some-nested": [*FLAT, *(f"cat/more/{n}.png" for n in range(5))],
    "wrapped-inside": [name.replace("train/", "train/all/") for name in SPLIT],
}


def sizes(root: Path, **fields: object) -> dict[str, int]:
    return {name: len(split) for name, split in opened(root, **fields).splits.items()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Train, val and test below one folder."""
    return write(tmp_path / "photos", SPLIT)


# --- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_two_classes_and_all_pictures(layout: str, tmp_path: Path) -> None:
    found = opened(write(tmp_path / "set", LAYOUTS[layout]))
    assert found.class_names == ("cat", "dog")
    assert list(found.splits) == ["train", "validation", "test"]
    assert sum(map(len, found.splits.values())) == len(LAYOUTS[layout])
    for split in found.splits.values():
        for name, label in labelled_names(split):
            assert name.split("/")[0] == found.class_names[label]
            assert split.open(name).size == (12, 10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inside", ["", "./", "outer/", "./outer/"])
def test_a_tar_is_the_folder_to_the_byte(layout: str, inside: str, tmp_path: Path) -> None:
    """Fingerprints agree: a run may go on with a tar of its folder."""
    folder = write(tmp_path / "set", LAYOUTS[layout])
    ours, theirs = opened(folder), opened(tar_of(folder, tmp_path / "set.tar", inside=inside))
    assert ours.class_names == theirs.class_names
    assert ours.fingerprint == theirs.fingerprint
    assert ours.notes == theirs.notes
    assert ours.splits.keys() == theirs.splits.keys()
    for name, split in ours.splits.items():
        assert labelled_names(split) == labelled_names(theirs.splits[name])
        for picture in split.names:
            one, other = split.open(picture), theirs.splits[name].open(picture)
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_pictures_of_a_tar_are_those_of_the_folder(memory_gib: float, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", SPLIT)
    tar = tar_of(folder, tmp_path / "set.tar")
    ours, theirs = loaded(folder), loaded(tar, memory_gib=memory_gib)
    for name, split in ours.splits.items():
        for left, right in zip(everything(split), everything(theirs.splits[name]), strict=True):
            assert torch.equal(left, right)


def test_a_class_folder_named_train_is_a_class(tmp_path: Path) -> None:
    """Of vehicles; CIFAR-100 has one."""
    names = [f"{name}/{n}.png" for name in ("bus", "train") for n in range(10)]
    assert opened(write(tmp_path / "set", names)).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("validation", "val"),
        ("validation", "valid"),
        ("validation", "validation"),
        ("validation", "dev"),
        ("test", "test"),
        ("test", "testing"),
        ("train", "train"),
        ("train", "training"),
    ],
)
def test_usual_names_of_splits_are_known(split: str, folder: str, tmp_path: Path) -> None:
    usual = {"train": "train", "validation": "val", "test": "test", split: folder}
    names = [
        f"{usual[name]}/{kind}/{name}{n}.png"
        for name in usual
        for kind in ("cat", "dog")
        for n in range(2)
    ]
    found = opened(write(tmp_path / "set", names)).splits
    assert {name: len(pictures) for name, pictures in found.items()} == dict.fromkeys(usual, 4)
    assert all(split in name for name in found[split].names)


def test_splits_that_are_named_are_taken(photos: Path) -> None:
    assert sizes(photos) == {"train": 8, "validation": 4, "test": 6}
    assert sizes(photos, validation="test", test="val") == {"train": 8, "validation": 6, "test": 4}
    assert sizes(photos, test="none") == {"train": 8, "validation": 4}
    assert sizes(photos, validation=0.5) == {"train": 4, "validation": 4, "test": 6}
    with pytest.raises(
        ValueError, match=r"data\.test is 'tst', which is neither a folder .*test, train"
    ):
        opened(photos, test="tst")


def test_splits_may_lie_apart(photos: Path, tmp_path: Path) -> None:
    """Each a folder or a tar, with or without folders around the classes."""
    train = tar_of(photos / "train", tmp_path / "a.tar", inside="x/y/")
    test = shutil.move(photos / "test", tmp_path / "elsewhere")
    fields = {"train": str(train), "test": str(test)}
    assert sizes(photos, **fields) == {"train": 8, "validation": 4, "test": 6}
    apart = opened(None, validation=str(photos / "val"), **fields)
    assert apart.fingerprint == opened(photos, **fields).fingerprint
    assert list(opened(None, train=str(train)).splits) == ["train", "validation", "test"]


def test_a_split_of_one_class_is_not_taken_apart(tmp_path: Path) -> None:
    """`val/cat/more/` is the class cat, not the class more."""
    names = [
        *(f"train/{k}/{n}.png" for k in ("cat", "dog") for n in range(3)),
        "val/cat/more/x.png",
    ]
    found = opened(write(tmp_path / "set", names))
    assert labelled_names(found.validation) == [("cat/more/x.png", 0)]
    (note,) = found.notes
    assert "validation has no pictures of 1 classes: dog" in note


def test_folders_beside_the_splits_are_noted(photos: Path) -> None:
    write(photos, ["holdout/cat/1.png"])
    (note,) = opened(photos).notes
    assert note == "skipped folders that are not splits: holdout"
    assert opened(photos, test="holdout").notes[0].startswith("test has no pictures of 1 classes")


# --- other files ---------------------------------------------------------------------------------


def test_hidden_files_are_passed_over_and_others_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    for name in (
        ".DS_Store", "cat/._0.png", ".hidden/cat/1.png", "cat/.cache/1.png", "__MACOSX/._1.jpg",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "cat/0.png", root / name)
    plain = opened(root)
    assert sum(map(len, plain.splits.values())) == 20
    assert plain.notes == ()
    for name in ("notes.txt", "cat/a.TXT", "cat/Thumbs.db", "README"):
        (root / name).write_text("no picture")
    for source in (root, tar_of(root, tmp_path / "set.tar")):
        found = opened(source)
        assert sum(map(len, found.splits.values())) == 20
        (note,) = found.notes
        for words in ("2 .txt", "1 .db", "1 without a suffix"):
            assert words in note
        assert found.fingerprint == plain.fingerprint


def test_endings_may_be_upper_case(tmp_path: Path) -> None:
    names = [f"{k}/{n}.{e}" for k in "ab" for n, e in enumerate(("PNG", "Jpg", "JPEG", "WebP"))]
    assert sum(sizes(write(tmp_path / "set", names)).values()) == 8


def test_links_are_followed_in_folders_and_tars(tmp_path: Path) -> None:
    """Symbolic ones, hard ones, links to links, and folders that are links."""
    store = write(tmp_path / "store", ["1.png", "2.png"])
    root = write(tmp_path / "set", [f"{k}/{n}.png" for k in ("cat", "dog") for n in range(3)])
    (root / "cat/soft.png").symlink_to("0.png")
    (root / "cat/twice.png").symlink_to("soft.png")
    (root / "cat/across.png").symlink_to("../dog/1.png")
    os.link(root / "dog/0.png", root / "dog/hard.png")
    ours, theirs = opened(root), opened(tar_of(root, tmp_path / "set.tar"))
    assert sum(map(len, ours.splits.values())) == 10
    assert ours.fingerprint == theirs.fingerprint
    for name, split in theirs.splits.items():
        for picture in split.names:
            assert split.open(picture).tobytes() == ours.splits[name].open(picture).tobytes()
    (root / "owl").symlink_to(store)
    assert opened(root).class_names == ("cat", "dog", "owl")


def test_a_link_that_leads_back_is_not_walked_for_ever(tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    (root / "cat/self").symlink_to(".")
    (root / "dog/up").symlink_to(root)
    assert sum(sizes(root).values()) == 20


def test_a_link_to_nowhere_is_an_unreadable_picture(tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    (root / "cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    for source in (root, tar_of(root, tmp_path / "set.tar")):
        with pytest.raises(ValueError, match=r"1 of \d+ pictures cannot be read: cat/gone\.png"):
            loaded(source)
        kept = loaded(source, unreadable="skip")
        assert sum(len(everything(s)[1]) for s in (kept.train, *kept.splits.values())) == 20


def test_the_later_of_two_members_of_one_name_counts(tmp_path: Path) -> None:
    """As tar itself has it when files are appended."""
    root = write(tmp_path / "set", FLAT)
    tar = tar_of(root, tmp_path / "set.tar")
    noise(99, 5, 5).save(root / "cat/0.png")
    with tarfile.open(tar, "a") as file:
        file.add(root / "cat/0.png", arcname="cat/0.png")
    assert opened(tar).fingerprint == opened(root).fingerprint


# --- classes neither vanish nor appear -----------------------------------------------------------


def test_a_class_of_other_formats_is_refused(tmp_path: Path) -> None:
    """It would be missing from the classes, and nobody would see it."""
    root = write(tmp_path / "set", FLAT)
    (root / "owl").mkdir()
    (root / "owl/1.heic").write_bytes(b"not read")
    (root / "owl/2.HEIC").write_bytes(b"not read")
    for source in (root, tar_of(root, tmp_path / "set.tar")):
        with pytest.raises(ValueError, match=r"class folder .*owl contains no picture .*2 \.heic"):
            opened(source)


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", SPLIT)
    (root / "train/owl/deeper").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"class folder .*train/owl contains no picture .*it is empty"
    ):
        opened(root)
    tar = tmp_path / "set.tar"
    with tarfile.open(tar, "w") as file:
        file.add(root, arcname=".")
    with pytest.raises(
        ValueError, match=r"class folder .*train/owl contains no picture .*it is empty"
    ):
        opened(tar)


def test_a_folder_of_other_files_is_noted(tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    (root / "labels").mkdir()
    (root / "labels/all.csv").write_text("name,class")
    found = opened(root)
    assert found.class_names == ("cat", "dog")
    assert "skipped folders without pictures: labels" in found.notes


def test_classes_that_lie_inside_a_folder_are_noted(tmp_path: Path) -> None:
    """They are one class, which is seldom what is meant if no picture lies beside them."""
    root = write(tmp_path / "set", FLAT)
    assert not [note for note in opened(root).notes if "inside a class" in note]
    for name in ("ant", "bee"):
        shutil.copytree(root / "cat", root / "insect" / name)
    found = opened(root)
    assert found.class_names == ("cat", "dog", "insect")
    (note,) = [note for note in found.notes if "inside a class" in note]
    assert "such as insect/ant and insect/bee, are not classes of their own" in note
    shutil.copy(next((root / "cat").iterdir()), root / "insect" / "other.png")
    assert not [note for note in opened(root).notes if "inside a class" in note]


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
@pytest.mark.parametrize("augmentation", [{}, {"crop_scale": (0.5, 1.0)}])
def test_skipping_pictures_never_skips_a_class(
    memory_gib: float, augmentation: dict[str, Any], tmp_path: Path
) -> None:
    root = write(tmp_path / "set", SPLIT)
    fields = {"unreadable": "skip", "memory_gib": memory_gib}
    fields["augmentation"] = Augmentation(**augmentation)
    broken = sorted((root / "train/dog").iterdir())
    for path in broken[1:]:
        path.write_bytes(b"broken")
    loaded(root, **fields)
    broken[0].write_bytes(b"broken")
    with pytest.raises(ValueError, match="no training picture of dog can be read"):
        loaded(root, **fields)


@pytest.mark.parametrize(
    "folder", ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
)
def test_folders_of_systems_are_not_classes(folder: str, tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    plain = opened(root).fingerprint
    write(root, [f"{folder}/1.png", f"cat/{folder}/2.png"])
    for source in (root, tar_of(root, tmp_path / "set.tar")):
        assert opened(source).class_names == ("cat", "dog")
        assert opened(source).fingerprint == plain


def test_run_folders_among_the_pictures_are_skipped(tmp_path: Path) -> None:
    """The pictures of a run's report would be a class of the next run."""
    root = write(tmp_path / "set", FLAT)
    plain = opened(root)
    for run in ("runs/first", "mine"):
        write(root, [f"{run}/accuracy.png", f"{run}/report/training.png"])
        for name in ("recipe.json", "preferred.json"):
            (root / run / name).write_text("{}")
    for source in (root, tar_of(root, tmp_path / "set.tar")):
        found = opened(source)
        assert found.class_names == ("cat", "dog")
        assert found.fingerprint == plain.fingerprint
        assert "skipped run folders among the pictures: mine, runs/first" in found.notes


def test_every_common_ending_of_jpeg_is_read(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number, ending in enumerate(("jpg", "jpeg", "jpe", "jfif")):
        for kind in "ab":
            (root / kind).mkdir(parents=True, exist_ok=True)
            noise(number).save(root / kind / f"{number}.{ending}", format="JPEG")
    assert sum(sizes(root).values()) == 8


# --- tars that are not plain ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/cat/9.png", "../cat/9.png", "cat/../../9.png"])
def test_a_tar_that_names_files_outside_itself_is_refused(name: str, tmp_path: Path) -> None:
    tar = tar_of(write(tmp_path / "set", FLAT), tmp_path / "set.tar")
    with tarfile.open(tar, "a") as file:
        file.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=r"'[/.]+(cat/)?9.png', outside the tar"):
        opened(tar)


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_sparse_tar_is_read_right(form: str, tmp_path: Path) -> None:
    """`tar -S` leaves out blocks of zeros, here a black band."""
    root = write(tmp_path / "set", FLAT)
    pixels = np.full((300, 300, 3), 255, dtype=np.uint8)
    pixels[100:200] = 0
    picture = root / "cat/band.bmp"
    Image.fromarray(pixels).save(picture)
    content = picture.read_bytes()
    with picture.open("wb") as file:  # with holes, where the disk can have them
        for start in range(0, len(content), 4096):
            block = content[start : start + 4096]
            if block.strip(b"\0"):
                file.seek(start)
                file.write(block)
        file.truncate(len(content))
    tar = tmp_path / "set.tar"
    command = [
        "tar",
        "-S",
        f"--format={form}",
        "--sort=name",
        "-C",
        str(root),
        "-cf",
        str(tar),
        ".",
    ]
    subprocess.run(command, check=True)
    if tar.stat().st_size > len(content):
        pytest.skip("this disk has no holes in files")
    listing = list_pictures(tar)
    assert listing.sizes["cat/band.bmp"] == len(content)
    assert np.array_equal(np.asarray(listing.open("cat/band.bmp").convert("RGB")), pixels)
    assert opened(tar).fingerprint == opened(root).fingerprint


def test_a_sparse_member_without_end_is_an_unreadable_picture(tmp_path: Path) -> None:
    tar = tar_of(write(tmp_path / "set", FLAT), tmp_path / "set.tar")
    with tarfile.open(tar, "a", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("cat/huge.png")
        member.pax_headers = {
            "GNU.sparse.map": "0,0",
            "GNU.sparse.size": str(2**62),
            "GNU.sparse.numblocks": "1",
        }
        file.addfile(member)
    with pytest.raises(ValueError, match=r"cat/huge\.png \(it is 4,611,686,018,427,387,904 bytes"):
        loaded(tar)


def test_a_link_that_leaves_a_tar_is_named(tmp_path: Path) -> None:
    tar = tar_of(write(tmp_path / "set", FLAT), tmp_path / "set.tar")
    with tarfile.open(tar, "a") as file:
        member = tarfile.TarInfo("cat/far.png")
        member.type, member.linkname = tarfile.SYMTYPE, "../../elsewhere.png"
        file.addfile(member)
    words = r"cat/far\.png \(it is a link to \.\./\.\./elsewhere\.png, which is not in the tar\)"
    with pytest.raises(ValueError, match=words):
        loaded(tar)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.csv", b"file,label\n1.png,cat\n", r"is a table or text \(\.csv\), not an uncom"),
        ("photos.zip", b"PK\x03\x04" + bytes(600), "is a zip, not an uncompressed tar"),
        (
            "photos.tar.gz",
            gzip.compress(bytes(10_240), mtime=0),
            "is compressed with gzip, not an unc",
        ),
        ("one.JPG", b"\xff\xd8\xff" + bytes(600), "is a single picture, not an uncompressed"),
        ("photos.tar", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("photos.tar", b"hello" * 300, "is not an uncompressed tar, or it is truncated"),
    ],
)
def test_a_file_that_is_not_a_tar_is_called_what_it_is(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list_pictures(tmp_path / name)


def test_a_picture_that_is_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    (root / "cat/0.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"cat/0\.png \(it is a Git LFS pointer.*git lfs pull"):
        loaded(root)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [2**60, 2**70])
def test_a_header_that_promises_too_much_is_refused(kind: bytes, size: int, tmp_path: Path) -> None:
    tar = tar_of(write(tmp_path / "set", FLAT), tmp_path / "set.tar")
    member = tarfile.TarInfo("more")
    member.type, member.size = kind, size
    tar.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + tar.read_bytes())
    message = value_error_of(lambda: opened(tar))
    assert message is not None
    assert f"{tar} is not an uncompressed tar" in message


def test_headers_that_extend_headers_without_end_are_refused(tmp_path: Path) -> None:
    tar = tar_of(write(tmp_path / "set", FLAT), tmp_path / "set.tar")
    member = tarfile.TarInfo("more")
    member.type = tarfile.XHDTYPE
    tar.write_bytes(member.tobuf(tarfile.GNU_FORMAT) * 5_000 + tar.read_bytes())
    message = value_error_of(lambda: opened(tar))
    assert message is not None
    assert f"{tar} is not an uncompressed tar" in message


# --- files that never end ------------------------------------------------------------------------


def test_what_is_not_a_regular_file_is_an_unreadable_picture(tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    os.mkfifo(root / "cat/fifo.png")
    (root / "dog/zero.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"2 of \d+ pictures cannot be read") as caught:
        loaded(root)
    assert "cat/fifo.png (not a regular file)" in str(caught.value)
    assert "dog/zero.png (not a regular file)" in str(caught.value)
    with pytest.raises(ValueError, match=r"2 of \d+ pictures cannot be read") as caught:
        loaded(tar_of(root, tmp_path / "set.tar"))
    assert "cat/fifo.png" in str(caught.value)
    assert "dog/zero.png" in str(caught.value)


def test_a_fifo_is_neither_folder_nor_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.tar")
    with pytest.raises(ValueError, match="neither a folder nor a regular file"):
        opened(tmp_path / "set.tar")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = write(tmp_path / "set", FLAT)
    (root / "cat/to_dog").symlink_to("../dog")
    (root / "dog/to_cat").symlink_to("../cat")
    # Each class also holds the other's pictures once, by way of the link.
    assert sum(sizes(root).values()) == 40


def test_links_that_multiply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_MOST_LINKED_FOLDERS", 1000)
    root = write(tmp_path / "set", FLAT)
    for depth in range(12):
        (root / f"cat/d{depth}").mkdir()
        for name in "ab":
            (root / f"cat/d{depth}" / name).symlink_to(f"../d{depth + 1}")
    (root / "cat/d12").mkdir()
    with pytest.raises(ValueError, match="more than 1,000 links to folders"):
        opened(root)


# --- what is refused -----------------------------------------------------------------------------


def empty(path: Path) -> Path:
    path.mkdir()
    return path


def text(path: Path) -> Path:
    path.write_text("no tar at all, by far")
    return path


def nothing(path: Path) -> Path:
    path.touch()
    return path


def compressed(path: Path) -> Path:
    return tar_of(write(path.with_suffix(".d"), FLAT), path.with_suffix(".tar.gz"), mode="w:gz")


def cut(path: Path) -> Path:
    tar = tar_of(write(path.with_suffix(".d"), FLAT), path)
    tar.write_bytes(tar.read_bytes()[: 512 * 7 + 100])
    return tar


def no_members(path: Path) -> Path:
    tarfile.open(path, "w").close()
    return path


def words_only(path: Path) -> Path:
    (empty(path) / "readme.md").write_text("soon")
    return path


def loose(path: Path) -> Path:
    return write(path, ["1.png", "2.png"])


def loose_beside(path: Path) -> Path:
    return write(path, [*FLAT, "stray.png"])


def loose_in_split(path: Path) -> Path:
    return write(path, [*SPLIT, "train/stray.png"])


def loose_in_val(path: Path) -> Path:
    return write(path, [*SPLIT, "val/stray.png"])


def one_class(path: Path) -> Path:
    return write(path, [f"cat/{n}.png" for n in range(5)])


def one_class_deep(path: Path) -> Path:
    return write(path, [f"train/cat/{n}.png" for n in range(5)])


def more_in_val(path: Path) -> Path:
    return write(path, [*SPLIT, "val/owl/1.png", "val/eel/1.png"])


def more_in_test(path: Path) -> Path:
    return write(path, [*SPLIT, "test/owl/1.png"])


def other_case_in_val(path: Path) -> Path:
    return write(path, [*SPLIT, "val/Dog/1.png"])


def other_letters_in_test(path: Path) -> Path:
    """An é that is one letter, and one that is an e with an accent, as macOS wrote names."""
    return write(
        path, [*SPLIT, "train/caf\u00e9/1.png", "train/caf\u00e9/2.png", "test/cafe\u0301/1.png"]
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, ["no pictures found in", "one folder per class"]),
        (text, ["not an uncompressed tar", "give a folder"]),
        (nothing, ["not an uncompressed tar", "give a folder"]),
        (compressed, ["not an uncompressed tar", "give a folder"]),
        (cut, ["truncated"]),
        (no_members, ["no pictures found in"]),
        (words_only, ["no pictures found in", "1 .md"]),
        (loose, ["2 pictures in", "not in a class folder", "1.png"]),
        (loose_beside, ["1 pictures in", "not in a class folder", "stray.png"]),
        (loose_in_split, ["1 pictures in", "not in a class folder", "stray.png"]),
        (loose_in_val, ["validation split", "outside any class folder", "stray.png"]),
        (one_class, ["only one class", "cat"]),
        (one_class_deep, ["only one class", "cat"]),
        (
            more_in_val,
            ["validation split", "do not occur in the training images: eel, owl", "cat, dog"],
        ),
        (more_in_test, ["test split", "do not occur in the training images: owl"]),
        (other_case_in_val, ["'Dog' and 'dog' look alike, but are different names"]),
        (
            other_letters_in_test,
            [r"'cafe\u0301' and 'caf\xe9' look alike, but are different names"],
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    make: Callable[[Path], Path], words: list[str], tmp_path: Path
) -> None:
    path = make(tmp_path / "set.tar")
    message = value_error_of(lambda: opened(path))
    assert message is not None
    assert str(tmp_path) in message
    for word in words:
        assert word in message


def test_a_missing_folder_offers_the_nearest(photos: Path, tmp_path: Path) -> None:
    message = value_error_of(lambda: opened(tmp_path / "potos"))
    assert message is not None
    assert f"{tmp_path / 'potos'} does not exist" in message
    assert "did you mean photos?" in message
    assert "x/y/z does not exist" in (value_error_of(lambda: opened(tmp_path / "x/y/z")) or "")


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Also between two members, or within a header: never fewer pictures, unnoticed."""
    root = write(tmp_path / "set", FLAT)
    tar = tar_of(root, tmp_path / "set.tar")
    whole = tar.read_bytes()
    with tarfile.open(tar) as file:
        members = file.getmembers()
    end = max(member.offset_data + member.size for member in members)
    for length in (*range(512, end, 1024), *range(700, end, 777), end - 1, end, end + 300):
        tar.write_bytes(whole[:length])
        assert "truncated" in (value_error_of(lambda: opened(tar)) or "read"), length
    third = members[2].offset
    tar.write_bytes(whole[:third] + b"?" * 512 + whole[third + 512 :])
    assert "truncated" in (value_error_of(lambda: opened(tar)) or "read")


def test_a_class_that_a_split_lacks_is_noted(tmp_path: Path) -> None:
    names = [name for name in SPLIT if not name.startswith("test/dog")]
    (note,) = opened(write(tmp_path / "set", names)).notes
    assert "test has no pictures of 1 classes: dog" in note


def test_a_listing_decodes_nothing(tmp_path: Path) -> None:
    (write(tmp_path / "set", FLAT) / "cat/broken.png").write_bytes(b"no picture")
    assert len(list_pictures(tmp_path / "set").sizes) == 21


def test_split_folders_in_any_case(tmp_path: Path) -> None:
    write(
        tmp_path / "photos",
        [
            f"{split}/{kind}/{n}.png"
            for split in ("Train", "TEST")
            for kind in ("cat", "dog")
            for n in range(4)
        ],
    )
    found = opened(tmp_path / "photos")
    assert found.class_names == ("cat", "dog")
    assert found.test is not None
    assert len(found.test) == 8


def test_splits_without_training_images_are_refused(tmp_path: Path) -> None:
    write(
        tmp_path / "photos",
        [
            f"{split}/{kind}/{n}.png"
            for split in ("val", "test")
            for kind in ("cat", "dog")
            for n in range(4)
        ],
    )
    with pytest.raises(
        ValueError, match="contains test and val but no training images: name their"
    ):
        opened(tmp_path / "photos")


def test_training_images_are_not_evaluated_on(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", [f"{kind}/{n}.png" for kind in "ab" for n in range(4)])
    with pytest.raises(ValueError, match="train and validation are the same pictures"):
        opened(train=str(photos), validation=str(photos))
    other = write(tmp_path / "other", [f"{kind}/{n}.png" for kind in "ab" for n in range(4)])
    found = opened(train=str(photos), validation=str(other), test=str(other))
    assert {name: len(split) for name, split in found.splits.items()} == {
        "train": 8,
        "validation": 8,
        "test": 8,
    }


def test_a_test_split_that_is_also_validation_is_noted(tmp_path: Path) -> None:
    splits = ("train", "test")
    names = [f"{split}/{kind}/{n}.png" for split in splits for kind in "ab" for n in "12"]
    photos = write(tmp_path / "photos", names)
    for where in ("test", str(photos / "test")):
        (note,) = opened(photos, validation=where).notes
        assert "validation and test are the same pictures, so accuracy on test is as" in note
    assert not opened(photos, validation=0.5).notes


def test_splits_inside_a_training_folder_are_no_classes(tmp_path: Path) -> None:
    splits = ("train", "test", "other")
    names = [f"{split}/{kind}/{n}.png" for split in splits for kind in "ab" for n in "123"]
    photos = write(tmp_path / "photos", names)
    with pytest.raises(ValueError, match="contains the splits test, train and not classes: give"):
        opened(train=str(photos))
    assert opened(train=str(photos / "train"), test=str(photos / "test")).class_names == ("a", "b")


def test_links_to_folders_in_a_tar_are_named(tmp_path: Path) -> None:
    """Folders of pictures would be classes; a tar has only where they are."""
    root = write(tmp_path / "set", [f"{kind}/{n}.png" for kind in "ab" for n in range(4)])
    (root / "notes.txt").write_text("mine")
    (root / "NOTES").symlink_to("notes.txt")
    (root / "c").symlink_to(write(tmp_path / "elsewhere", ["1.png"]))
    (root / "d").symlink_to("a")
    assert opened(root).class_names == ("a", "b", "c", "d")
    found = opened(tar_of(root, tmp_path / "set.tar"))
    assert found.class_names == ("a", "b")
    (note,) = [note for note in found.notes if "links" in note]
    assert "skipped 2 links in" in note
    assert "(c; d): if they lead to folders of pictures, pack the set again with tar" in note


def test_splits_inside_classes_are_named(tmp_path: Path) -> None:
    names = [f"{kind}/{split}/{n}.png" for kind in "ab" for split in ("train", "val") for n in "12"]
    (note,) = opened(write(tmp_path / "set", names)).notes
    assert "such as a/train, are not taken for splits: put the classes into" in note
    by_camera = [f"{kind}/{camera}/{n}.png" for kind in "ab" for camera in "xy" for n in "12"]
    assert not opened(write(tmp_path / "other", by_camera)).notes
