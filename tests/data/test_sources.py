"""Sources: shares of a set that has no splits, and what a loaded set says about itself."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.making import BYTES, GREY_BYTES, SETTINGS, loaded, opened, recipe, tar_of, write
from prenas.data import load_data, undivided
from prenas.data.cores import num_readers
from prenas.data.pictures import ArrayPictures, PictureSet, Pixels
from prenas.data.sources import Opened, open_data
from prenas.families.vit.space import VitSettings
from prenas.recipe.data import Augmentation, DataRecipe
from training.runs import global_state_untouched, value_error_of

PINNED = ["c0/25.png", "c0/4.png", "c0/7.png", "c1/5.png", "c1/6.png"]


def flat(root: Path, sizes: Sequence[int]) -> Path:
    """Empty files are enough for a listing."""
    for label, size in enumerate(sizes):
        (root / f"c{label}").mkdir(parents=True)
        for number in range(size):
            (root / f"c{label}/{number}.png").touch()
    return root


def names_of(found: Opened) -> dict[str, set[str]]:
    return {split: set(pictures.names) for split, pictures in found.splits.items()}


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.sampled_from([0.02, 0.1, 0.25, 0.5, 0.9]),
    st.sampled_from([0.05, 0.2, 0.5, "none"]),
)
def test_shares_are_disjoint_complete_and_of_every_class(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    validation: float,
    test: float | str,
) -> None:
    sizes = [*sizes, 40]  # enough for every split
    root = flat(tmp_path_factory.mktemp("set") / "flat", sizes)
    found = opened(root, validation=validation, test=test)
    splits = names_of(found)
    together = sorted(name for split in splits.values() for name in split)
    assert together == sorted(f"c{k}/{n}.png" for k, s in enumerate(sizes) for n in range(s))
    assert list(splits) == ["train", "validation", *(["test"] if test != "none" else [])]
    counts = {name: Counter(split.labels) for name, split in found.splits.items()}
    for label, size in enumerate(sizes):
        assert counts["train"][label] >= 1
        rest = size
        for name, share in (("validation", validation), ("test", test)):
            if isinstance(share, float):
                taken = counts[name][label]
                assert taken == min(rest - 1, max(1, round(share * size)))
                rest -= taken
        assert counts["train"][label] == rest


def test_named_splits_of_the_same_images_are_refused_or_said() -> None:
    with pytest.raises(ValueError, match=r"train and validation are the same pictures \(train\)"):
        open_data(DataRecipe(name="digits", validation="train"))
    with pytest.raises(ValueError, match="train and test are the same pictures"):
        open_data(DataRecipe(name="digits", train="test"))
    found = open_data(DataRecipe(name="digits", validation="test"))
    assert list(found.splits) == ["train", "validation", "test"]
    assert "validation and test are the same pictures" in found.notes[0]


def test_all_pictures_of_an_undivided_set_are_read_by_several_processes(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [f"{kind}/{n}.png" for kind in "ab" for n in range(4)])
    for given_number, expected in ((3, 3), (None, num_readers())):
        found = undivided(recipe(root, num_workers=given_number), SETTINGS)
        assert found is not None
        assert found.num_workers == expected


def test_without_word_a_tenth_each_is_validation_and_test(tmp_path: Path) -> None:
    found = opened(flat(tmp_path / "set", [50, 50]))
    sizes = {name: len(split) for name, split in found.splits.items()}
    assert sizes == {"train": 80, "validation": 10, "test": 10}
    assert list(opened(tmp_path / "set", test="none").splits) == ["train", "validation"]


def test_shares_are_fixed_once_for_all(tmp_path: Path) -> None:
    """By the names alone: not by global generators, nor by how files lie on the disk."""
    root = flat(tmp_path / "set", [30, 20])
    before = names_of(opened(root))
    np.random.seed(5)
    random.seed(5)
    torch.manual_seed(5)
    with global_state_untouched():
        assert names_of(opened(root)) == before
    other = tmp_path / "other"
    for name in sorted(name for split in before.values() for name in split)[::-1]:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).touch()
    assert names_of(opened(other)) == before
    assert names_of(opened(tar_of(root, tmp_path / "set.tar"))) == before
    # Stated, so that a later version does not silently take others.
    assert sorted(before["test"]) == PINNED


def test_validation_stays_what_it_is_whatever_is_tested(tmp_path: Path) -> None:
    """Else an evaluation on another test set would validate on pictures that were trained on."""
    root, other = flat(tmp_path / "set", [40, 40]), flat(tmp_path / "other", [3, 3])
    before = names_of(opened(root))
    for test in ("none", 0.4, str(other)):
        assert names_of(opened(root, test=test))["validation"] == before["validation"]
    assert before["validation"] < names_of(opened(root, validation=0.4))["validation"]


def test_classes_of_one_picture_stay_in_training(tmp_path: Path) -> None:
    found = opened(flat(tmp_path / "set", [10, 1]), validation=0.5, test="none")
    assert "c1/0.png" in found.train.names
    assert "c1" in found.notes[0]
    assert "validation has no pictures of 1 classes" in found.notes[0]


def test_a_share_that_would_leave_nothing_is_refused(tmp_path: Path) -> None:
    message = value_error_of(lambda: opened(flat(tmp_path / "set", [1, 1])))
    assert message is not None
    assert "too few" in message
    assert "data." in message


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, 0.0])
def test_shares_lie_between_nothing_and_everything(split: str, share: float) -> None:
    with pytest.raises(ValueError, match=split):
        DataRecipe(name="folder", root="x", **{split: share})  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_only_test_may_be_left_out(split: str) -> None:
    with pytest.raises(ValueError, match=f"{split} cannot be 'none'"):
        DataRecipe(name="folder", root="x", **{split: "none"})  # type: ignore[arg-type]


# --- the fingerprint -----------------------------------------------------------------------------

NAMES = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(10)]


def test_equal_images_have_equal_fingerprints(tmp_path: Path) -> None:
    """Wherever they lie, however they are prepared, augmented and held."""
    root = write(tmp_path / "set", NAMES)
    before = opened(root).fingerprint
    moved = write(tmp_path / "moved" / "photos", NAMES).parent
    assert opened(moved).fingerprint == before
    ways = [
        {"memory_gib": 0.0},
        {"augmentation": Augmentation(crop_scale=(0.5, 1))},
        {"crops": 5},
    ]
    assert {loaded(root, **way).fingerprint for way in ways} == {before}


def test_any_change_of_the_pictures_changes_the_fingerprint(tmp_path: Path) -> None:
    root = write(tmp_path / "set", NAMES)
    seen = {opened(root).fingerprint}

    def is_new() -> bool:
        fingerprint = opened(root).fingerprint
        is_new = fingerprint not in seen
        seen.add(fingerprint)
        return is_new

    write(root, ["cat/more.png"])
    assert is_new()
    (root / "cat/more.png").rename(root / "dog/more.png")
    assert is_new()
    (root / "dog/more.png").rename(root / "dog/other.png")
    assert is_new()
    with (root / "dog/other.png").open("ab") as file:
        file.write(b"more")
    assert is_new()
    (root / "dog").rename(root / "wolf")
    assert is_new()
    (root / "notes.txt").write_text("nothing")
    assert not is_new()
    assert opened(root, validation=0.3).fingerprint not in seen


def test_other_labels_change_the_fingerprint() -> None:
    """Where names and sizes of the pictures are the same, as in a set of arrays."""
    pictures = PictureSet(("0", "1"), (0, 1), ArrayPictures(np.zeros((2, 4, 4), np.uint8)), (7, 7))
    found = Opened(("cat", "dog"), pictures, pictures, None, ())
    others = [
        found._replace(train=replace(pictures, labels=(1, 0))),
        found._replace(validation=replace(pictures, labels=(1, 0))),
        found._replace(class_names=("dog", "cat")),
        found._replace(test=pictures),
    ]
    assert len({each.fingerprint for each in (found, *others)}) == 5


# --- loaded --------------------------------------------------------------------------------------


def test_what_is_held_in_memory_needs_no_workers(tmp_path: Path) -> None:
    root = write(tmp_path / "set", NAMES)
    held = loaded(root, num_workers=None)
    assert all(isinstance(s, Pixels) for s in (held.train, *held.splits.values()))
    assert held.num_workers == 0
    assert loaded(root, num_workers=None, memory_gib=0).num_workers >= 1
    assert loaded(root, num_workers=3).num_workers == 3


def test_pictures_need_one_or_three_channels(tmp_path: Path) -> None:
    settings = VitSettings(image_size=(8, 8), in_chans=4, num_classes=4, patch_size=4)
    four = BYTES.model_copy(update={"mean": (0.0,) * 4, "std": (1.0,) * 4})
    with pytest.raises(ValueError, match="1 or 3 channels, but this model takes 4"):
        load_data(recipe(write(tmp_path / "set", NAMES), preprocessing=four), settings)


def test_labels_follow_the_sorted_names_of_classes(tmp_path: Path) -> None:
    names = [f"{kind}/{n}.png" for kind in ("b", "B", "10", "9", "a b") for n in range(3)]
    found = opened(write(tmp_path / "set", names))
    assert found.class_names == ("10", "9", "B", "a b", "b")


def test_a_folder_recipe_needs_a_place() -> None:
    with pytest.raises(ValueError, match="no images given"):
        DataRecipe(name="folder")


def test_a_set_of_unreadable_pictures_is_refused(tmp_path: Path) -> None:
    root = flat(tmp_path / "set", [5, 5])
    with pytest.raises(ValueError, match="no training picture of c0, c1 can be read"):
        loaded(root, unreadable="skip")


def test_unknown_names_list_the_choices() -> None:
    message = value_error_of(lambda: open_data(DataRecipe(name="cifar")))
    assert message is not None
    for word in ("cifar10", "cifar100", "folder", "wds/", "hfds/"):
        assert word in message


def test_a_named_split_that_a_set_lacks_offers_its_own() -> None:
    with pytest.raises(ValueError, match=r"unknown split of digits for data.test 'tset'.*'test'"):
        open_data(DataRecipe(name="digits", test="tset"))


def test_shares_of_a_set_with_splits_come_out_of_training() -> None:
    whole, shared = (
        load_data(
            DataRecipe(name="digits", validation=validation, preprocessing=GREY_BYTES),
            VitSettings(image_size=(8, 8), in_chans=1, num_classes=10, patch_size=4),
        )
        for validation in (None, 0.25)
    )
    sizes = [{k: len(v) for k, v in d.splits.items()} for d in (whole, shared)]  # type: ignore[arg-type]
    assert sizes[0] == {"validation": 360, "test": 360}
    assert sizes[1]["test"] == 360
    assert sizes[1]["validation"] == pytest.approx(1077 / 4, abs=5)


def test_few_pictures_in_memory_need_no_processes_either(tmp_path: Path) -> None:
    root = write(tmp_path / "set", NAMES)
    changes = Augmentation(auto_augment="rand-m3")
    assert loaded(root, num_workers=None, augmentation=changes).num_workers == 0
    assert loaded(root, num_workers=None, augmentation=changes, memory_gib=0).num_workers >= 1
