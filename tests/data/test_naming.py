"""`--data` texts: every form, every mistake, and a head that fits."""

from pathlib import Path

import pytest

from data.making import tar_of, write
from prenas.data import open_data, with_data
from prenas.data.naming import default_class_names
from prenas.recipe import Recipe, differences, recipe_from_dict
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe
from training.runs import own_recipe, value_error_of

KINDS = ("cat", "dog", "owl")


def split(root: Path, name: str, number: int) -> Path:
    return write(root, [f"{name}/{kind}/{name}{n}.png" for kind in KINDS for n in range(number)])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of splits, and the same as tars, in the working folder."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photos"
    for name, number in (("train", 5), ("val", 2), ("test", 3)):
        split(root, name, number)
        tar_of(root / name, tmp_path / f"{name}.tar")
    tar_of(root, tmp_path / "photos.tar")
    return root


def test_a_name_that_is_a_folder_of_pictures_too_is_refused(photos: Path) -> None:
    """The data set would be trained on although the folder was meant."""
    write(Path("digits"), [f"{kind}/{number}.png" for kind in KINDS for number in range(9)])
    recipe = get_recipe("photos")
    message = value_error_of(lambda: with_data(recipe, ["digits"]))
    assert message is not None
    assert "'digits' is the name of a data set and of a folder with pictures" in message
    assert "./digits for the folder, or digits: for the data set" in message
    for text, name, classes in (("./digits", "folder", 3), ("digits:", "digits", 10)):
        given = with_data(recipe, [text])
        assert (given.data and given.data.name, given.space.settings.num_classes) == (name, classes)


@pytest.mark.parametrize("file", ["notes.txt", "recipe.json"])
def test_a_folder_without_pictures_or_a_run_may_have_the_name_of_a_data_set(
    file: str, photos: Path
) -> None:
    Path("digits/report").mkdir(parents=True)
    if file == "recipe.json":
        Path("digits/report/accuracy.png").touch()
    Path("digits", file).touch()
    assert changed("digits").name == "digits"


def changed(*texts: str, recipe: Recipe | None = None) -> DataRecipe:
    found = with_data(recipe or get_recipe("photos"), texts).data
    assert found is not None
    return found


def sizes(*texts: str, recipe: Recipe | None = None) -> dict[str, int]:
    opened = open_data(changed(*texts, recipe=recipe))
    return {name: len(pictures) for name, pictures in opened.splits.items()}


ALL = {"train": 15, "validation": 6, "test": 9}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["photos"], ALL),
        (["photos/"], ALL),
        (["./photos"], ALL),
        (["photos.tar"], ALL),
        (["photos/train"], {"train": 9, "validation": 3, "test": 3}),
        (["train.tar"], {"train": 9, "validation": 3, "test": 3}),
        (["photos", "test=none"], {"train": 15, "validation": 6}),
        (["photos", "validation=0.4"], {"train": 9, "validation": 6, "test": 9}),
        (["photos", "val=0.4", "test = none"], {"train": 9, "validation": 6}),
        (["photos", "val=test", "test=val"], {"train": 15, "validation": 9, "test": 6}),
        (["photos.tar", "val=test"], {"train": 15, "validation": 9, "test": 9}),
        (["test=test.tar", "train=train.tar", "validation=val.tar"], ALL),
        (["train=train.tar", "val=photos/val"], {"train": 15, "validation": 6}),
        (["train=photos/train", "val=0.2", "test=0.2"], {"train": 9, "validation": 3, "test": 3}),
        (["photos", "test=photos/val"], {"train": 15, "validation": 6, "test": 6}),
    ],
)
def test_every_form_names_its_pictures(
    texts: list[str], expected: dict[str, int], photos: Path
) -> None:
    assert sizes(*texts) == expected


def test_only_the_images_change(photos: Path) -> None:
    """How they are prepared, augmented and trained on stays; the head follows the classes."""
    recipe = get_recipe("photos")
    other = with_data(recipe, "photos")
    changes = {line.partition(":")[0] for line in differences(recipe, other)}
    assert changes == {"data.root", "space.settings.num_classes"}
    assert other.space.settings.num_classes == 3
    grey = with_data(get_recipe("fashion-mnist"), ["photos"])
    assert grey.data is not None
    assert grey.data.preprocessing == get_recipe("fashion-mnist").data.preprocessing  # type: ignore[union-attr]
    assert recipe_from_dict(other.model_dump(mode="json")) == other


def test_nothing_of_the_old_splits_remains(photos: Path) -> None:
    """But that the recipe wants no test: its data may hold one without labels."""
    recipe = get_recipe("imagenet-tiny")  # validation=val, test=none
    found = changed("photos", recipe=recipe)
    assert (found.train, found.validation, found.test) == (None, None, "none")
    assert sizes("photos", recipe=recipe) == {name: ALL[name] for name in ("train", "validation")}
    found = changed("train=train.tar", recipe=recipe)
    assert (found.root, found.validation, found.test) == (None, None, None)


def test_a_split_alone_replaces_that_split(photos: Path) -> None:
    """As for another test set of a finished run."""
    recipe = with_data(get_recipe("photos"), ["photos"])
    assert sizes("test=test.tar", recipe=recipe) == ALL
    assert sizes("test=photos/val", recipe=recipe) == {**ALL, "test": 6}
    assert sizes("test=none", recipe=recipe) == {"train": 15, "validation": 6}


def test_places_are_absolute(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run goes on from whatever folder."""
    found = [changed("photos"), changed("train=train.tar", "val=photos/val")]
    assert found[0].root == str(photos)
    assert found[1].train == str(tmp_path / "train.tar")
    assert found[1].validation == str(photos / "val")
    monkeypatch.setenv("HOME", str(tmp_path))
    tilde = changed("~/photos", "test=~/test.tar")
    assert (tilde.root, tilde.test) == (str(photos), str(tmp_path / "test.tar"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert len(open_data(tilde).train) == 15


def test_a_name_inside_the_source_comes_before_a_place(photos: Path, tmp_path: Path) -> None:
    """A folder `val` that happens to be where the command is given is not meant."""
    split(tmp_path, "val", 7)
    split(tmp_path, "extra", 4)
    for source in ("photos", "photos.tar"):
        assert sizes(source, "test=val") == {**ALL, "test": 6}
        assert sizes(source, "test=extra") == {**ALL, "test": 12}
    assert changed("digits", "validation=test", recipe=get_recipe("digits")).validation == "test"


def test_sets_by_name(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()  # is not what `test=test` means
    grey = get_recipe("fashion-mnist")
    found = with_data(grey, ["digits", "validation=0.1", "test=test"])
    assert found.space.settings.num_classes == 10
    assert (found.data and found.data.name, found.data and found.data.root) == ("digits", None)
    assert sizes("digits", "test=test", recipe=grey) == {
        "train": 1077, "validation": 360, "test": 360,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"digits are part of scikit-learn.*{tmp_path}"):
        changed("digits:photos", recipe=grey)
    torch = changed(f"torch/folder:{photos}", "val=val", "test=test")
    assert torch.root == str(photos)
    assert changed("torch/folder:photos", "val=val", "test=test") == torch
    assert sizes("torch/folder:photos", "val=val", "test=test") == ALL


def test_a_recipe_of_own_data_or_none_takes_pictures_too(photos: Path) -> None:
    for recipe in (own_recipe(in_chans=3), get_recipe("tiny")):
        assert sizes("photos", recipe=recipe) == ALL
        message = value_error_of(lambda r=recipe: with_data(r, ["test=test.tar"]))  # type: ignore[misc]
        assert message is not None
        assert "--data gives no images" in message


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["photos", "test=none", "test=0.1"], ["test is given twice"]),
        (["photos", "val=0.1", "validation=0.1"], ["validation is given twice"]),
        (["photos", "photos.tar"], ["'photos.tar'", "already given (", "photos)"]),
        (["photos", "digits"], ["'digits'", "already given (", "photos)"]),
        (["digits", "photos"], ["'photos'", "already given (digits)"]),
        (["photos", "test="], ["'test='", "gives no path"]),
        (["train="], ["'train='", "gives no path"]),
        (
            ["phots"],
            ["'phots'", "neither an existing folder or tar", "digits, cifar10", "photos.tar"],
        ),
        (["trian=train.tar"], ["'trian=train.tar'", "train, validation or test"]),
        ([""], ["''", "neither"]),
        (["photos", "test=tst"], ["'tst'", "neither a folder in", "test, train, val"]),
        (["photos", "test=1.5"], ["data.test", "1.5"]),
        (["photos", "test=0"], ["data.test", "0"]),
        (["photos", "test=nan"], ["data.test"]),
        (["photos", "validation=none"], ["validation cannot be 'none'"]),
        (["photos", "train=0.5"], ["data.train"]),
        (["photos", "train=none"], ["train cannot be 'none'"]),
        (["train=none"], ["train cannot be 'none'"]),
        (["train=nowhere.tar"], ["nowhere.tar does not exist"]),
        (["digits", "test=tset"], ["'tset'", "did you mean 'test'"]),
        (["torch/folder:photos", "val=nowhere"], ["'nowhere'", "classes test, train, val, but"]),
        (["torch/bogus"], ["torch/bogus", "Unknown torchvision dataset"]),
    ],
)
def test_every_mistake_is_named(texts: list[str], words: list[str], photos: Path) -> None:
    recipe = get_recipe("digits" if "digits" in texts[0] else "photos")
    message = value_error_of(lambda: with_data(recipe, texts))
    assert message is not None
    for word in words:
        assert word in message


def test_one_text_needs_no_list(photos: Path) -> None:
    assert with_data(get_recipe("photos"), "photos") == with_data(get_recipe("photos"), ["photos"])


def test_default_class_names() -> None:
    assert default_class_names(3) == ("0", "1", "2")
    assert len(default_class_names(1000)) == 1000
    assert default_class_names(1000)[0].startswith("tench")
