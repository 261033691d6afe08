"""Whole runs on folders of pictures: trained, stopped, moved, and evaluated on others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from prenas import pipeline
from prenas.cli import app
from prenas.data import ImageData, labelled_sample, load_data, open_data, with_data
from prenas.data.pictures import Pictures, Pixels
from prenas.models.export import load as load_model
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.data import Augmentation, DataRecipe, Preprocessing
from prenas.runs import images as run_data
from training.runs import (
    MINI,
    StoppedError,
    assert_same_training,
    contents,
    global_state_untouched,
    hearing,
    metrics_of,
    mini_recipe,
    other_data,
    stop_at,
    value_error_of,
)

CHANGES = Augmentation(
    flip=0.5, crop_padding=1, erasing=0.2, mixup=0.2, cutmix=0.5, mixing_mode="elem", repeats=2
)
IN_MEMORY = Augmentation(crop_scale=(0.6, 1.0), auto_augment="rand-m3-inc1", mixup=0.2)
"""Keeps pictures decoded, and draws from global generators."""


def draw_pictures(root: Path, number: int, first: int = 0) -> Path:
    """Noise about a bright and a dark grey, a folder each."""
    for kind, level in (("bright", 190), ("dark", 60)):
        folder = root / kind
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(first, first + number):
            pixels = np.random.default_rng((level, n)).normal(level, 40, (9, 11))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{n:03d}.png")
    return root


def recipe_on(root: Path, augmentation: Augmentation = CHANGES, **fields: object) -> Recipe:
    recipe = mini_recipe(
        data=DataRecipe(
            name="folder",
            root="elsewhere",
            preprocessing=Preprocessing(mean=(0.5,), std=(0.25,), crop_pct=1.0),
            augmentation=augmentation,
            num_workers=0,
        ),
        training={"epochs": 4, "batch_size": 16, "drop_path": 0.1},
        space=MINI.with_settings(num_classes=9),
        **fields,
    )
    return with_data(recipe, str(root))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 pictures without splits. Copy them, do not change them."""
    return draw_pictures(tmp_path_factory.mktemp("photos") / "photos", 40)


@pytest.fixture(scope="module")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything done on them. Copy it, do not change it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with global_state_untouched():
        pipeline.run(recipe_on(photos), out)
    return out


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "finished")


def test_bright_and_dark_are_learned(finished_run: Path) -> None:
    """From mixed, erased, repeated pictures; guessing is one half."""
    for row in pipeline.evaluate(finished_run):
        assert row.splits["validation"].num_images == 8
        assert row.splits["test"].num_images == 8
        assert row.splits["test"].top1 > 0.8
        assert row.splits["validation"].loss < 0.68  # ln 2 = 0.693 is guessing
    losses = [line["loss"] for line in metrics_of(finished_run)]
    assert losses[-1] < losses[0]


def test_the_run_says_what_it_was_trained_on(finished_run: Path) -> None:
    data = json.loads((finished_run / "data.json").read_text())
    assert data["class_names"] == ["bright", "dark"]
    assert data["num_images"] == {"train": 64, "validation": 8, "test": 8}
    assert data["notes"] == []
    assert len(data["fingerprint"]) == 64
    description = json.loads((finished_run / "subnets/00/arch.json").read_text())
    assert description["class_names"] == ["bright", "dark"]
    assert description["settings"]["num_classes"] == 2


@pytest.mark.parametrize("changes", [CHANGES, IN_MEMORY])
def test_a_stopped_training_ends_as_if_it_had_not_been(
    changes: Augmentation, photos: Path, tmp_path: Path
) -> None:
    """To the bit, mixing and global draws included; and held in memory or not."""
    recipe = recipe_on(photos, changes)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for out in (whole, stopped):
        pipeline.search(recipe, out)
    pipeline.train(whole)
    for step in (3, 10):
        with pytest.raises(StoppedError):
            pipeline.train(stopped, observer=hearing(steps=stop_at(step)))
        torch.rand(3)
    pipeline.train(stopped)
    assert_same_training(whole, stopped)
    lean = recipe.model_copy(update={"data": recipe.data.model_copy(update={"memory_gib": 0.0})})  # type: ignore[union-attr]
    on_disk = tmp_path / "on disk"
    pipeline.search(lean, on_disk)
    pipeline.train(on_disk)
    assert_same_training(whole, on_disk)


# --- changed images ------------------------------------------------------------------------------


def add(root: Path) -> None:
    draw_pictures(root, 1, first=99)


def remove(root: Path) -> None:
    (root / "dark/007.png").unlink()


def rename(root: Path) -> None:
    (root / "dark/007.png").rename(root / "dark/777.png")


def swap(root: Path) -> None:
    """A picture goes to the other class."""
    (root / "dark/007.png").rename(root / "bright/777.png")


def change(root: Path) -> None:
    Image.new("L", (50, 50), 3).save(root / "bright/001.png")


def add_class(root: Path) -> None:
    shutil.copytree(root / "dark", root / "grey")


@pytest.mark.parametrize("action", [add, remove, rename, swap, change, add_class])
def test_a_run_does_not_go_on_with_other_images(
    action: Callable[[Path], None], photos: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    out, recipe = tmp_path / "run", recipe_on(root)
    pipeline.search(recipe, out)
    with pytest.raises(StoppedError):
        pipeline.train(out, observer=hearing(steps=stop_at(6)))
    before = contents(out)
    action(root)
    for go_on in (lambda: pipeline.train(out), lambda: pipeline.run(recipe, out)):
        message = value_error_of(go_on)
        assert message is not None
        assert "classes" in message if action is add_class else "not the images that" in message
    assert contents(out) == before


def test_images_that_moved_are_known_again(photos: Path, tmp_path: Path) -> None:
    """As a folder elsewhere, or as a tar: the run ends with the same weights, and remembers."""
    from data.making import tar_of

    root = shutil.copytree(photos, tmp_path / "photos")
    outs = [tmp_path / name for name in ("whole", "moved", "packed")]
    for out in outs:
        pipeline.search(recipe_on(root), out)
        if out.name != "whole":
            with pytest.raises(StoppedError):
                pipeline.train(out, observer=hearing(steps=stop_at(6)))
    expected = pipeline.run(recipe_on(root), outs[0])
    tar_of(root, tmp_path / "photos.tar")
    elsewhere = Path(shutil.move(root, tmp_path / "moved photos"))
    message = value_error_of(lambda: pipeline.train(outs[1]))
    assert message is not None
    assert f"{root} does not exist" in message
    assert pipeline.run(recipe_on(elsewhere), outs[1]) == expected
    assert pipeline.evaluate(outs[1]) == expected  # where they are now
    result = CliRunner().invoke(app, ["train", str(outs[2]), "--data", f"{tmp_path}/photos.tar"])
    assert result.exit_code == 0, result.output
    assert_same_training(outs[0], outs[1])
    assert_same_training(outs[0], outs[2])
    words = ["run", "--out", str(outs[2]), "--data", f"{tmp_path}/photos.tar"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert pipeline.evaluate(outs[2]) == expected


def test_other_images_elsewhere_are_not_taken_for_those_that_moved(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    others = shutil.copytree(photos, tmp_path / "others")
    next((others / "bright").iterdir()).unlink()
    before = contents(finished)
    message = value_error_of(lambda: pipeline.run(recipe_on(others), finished)) or ""
    assert "data.root: " in message
    assert "These are not its images: if they moved, a file, class or split was also" in message
    assert contents(finished) == before


def test_before_images_are_recorded_a_new_place_is_named_to_each_step(
    photos: Path, tmp_path: Path
) -> None:
    """They were only counted so far: nobody can tell whether these are the same."""
    out = tmp_path / "run"
    pipeline.search(recipe_on(photos), out)
    moved = shutil.copytree(photos, tmp_path / "moved")
    message = value_error_of(lambda: pipeline.run(recipe_on(moved), out)) or ""
    assert f"only moved are named to each step: prenas train {out} --data PATH" in message


# --- evaluated on others -------------------------------------------------------------------------


def test_another_test_set_is_only_reported(finished: Path, tmp_path: Path) -> None:
    """Whatever it gives, the run's own results stay."""
    before = contents(finished)
    other = draw_pictures(tmp_path / "other", 10, first=200)
    data = other_data(finished, [f"test={other}"])
    rows, own = pipeline.evaluate(finished, data=data), pipeline.evaluate(finished)
    for row, ours in zip(rows, own, strict=True):
        assert row.splits["test"].num_images == 20
        assert row.splits["validation"] == ours.splits["validation"]
    assert contents(finished) == before
    result = CliRunner().invoke(app, ["evaluate", str(finished), "--data", f"test={other}"])
    assert result.exit_code == 0
    assert "test 20 images" in result.output
    assert contents(finished) == before
    assert pipeline.evaluate(finished) == own


def test_first_results_on_the_runs_own_images_are_told_to_be_saved(
    finished: Path, photos: Path
) -> None:
    words = ["evaluate", str(finished), "--data", str(photos)]
    assert "results in the run folder are unchanged" in CliRunner().invoke(app, words).output
    (finished / "evaluation.json").unlink()
    output = CliRunner().invoke(app, words).output
    assert (finished / "evaluation.json").exists()
    assert "are saved, as the run's first" in output
    assert "unchanged" not in output


def test_the_same_images_are_not_evaluated_again(finished: Path, photos: Path) -> None:
    before = contents(finished)
    data = other_data(finished, [str(photos)])
    assert pipeline.evaluate(finished, data=data) == pipeline.evaluate(finished)
    assert contents(finished) == before


def test_other_data_never_become_the_runs_first_results(finished: Path, tmp_path: Path) -> None:
    (finished / "evaluation.json").unlink()
    other = draw_pictures(tmp_path / "other", 10, first=200)
    pipeline.evaluate(finished, data=other_data(finished, [f"test={other}"]))
    pipeline.evaluate(finished, data=other_data(finished, crops=5))
    assert not (finished / "evaluation.json").exists()
    pipeline.evaluate(finished)
    assert (finished / "evaluation.json").exists()


def test_a_model_is_not_handed_over_with_results_of_other_images(
    photos: Path, tmp_path: Path
) -> None:
    root, out = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "run"
    pipeline.search(recipe_on(root), out)
    pipeline.train(out)
    change(root)
    before = contents(out)
    with pytest.raises(ValueError, match="these are not the images that"):
        pipeline.specialize(out, 0)
    assert contents(out) == before


def test_a_training_goes_on_with_as_many_images_only(tmp_path: Path) -> None:
    """Held in memory, unreadable pictures are left out; read from disk, they are replaced."""
    photos, out = draw_pictures(tmp_path / "photos", 20), tmp_path / "run"
    recipe = with_overrides(recipe_on(photos), ["data.unreadable=skip"])
    assert recipe.data is not None
    name = open_data(recipe.data).train.names[0]
    (photos / name).write_bytes(b"no picture")
    with pytest.raises(StoppedError):
        pipeline.run(recipe, out, observer=hearing(steps=stop_at(3)))
    before = contents(out)
    with pytest.raises(
        ValueError, match=r"was started with 31 train images, and these are 32: give"
    ):
        pipeline.run(with_overrides(recipe, ["data.memory_gib=0"]), out)
    assert contents(out) == before
    pipeline.run(recipe, out)


def test_an_unreadable_picture_among_others_is_named(finished: Path, tmp_path: Path) -> None:
    """In a folder without splits too, which is evaluated as a whole."""
    other = draw_pictures(tmp_path / "other", 10, first=200)
    next(other.glob("*/*.png")).with_name("odd.png").write_text("no picture")
    message = value_error_of(lambda: other_data(finished, [str(other)]))
    assert message is not None
    assert "1 of 21 pictures cannot be read" in message
    assert "odd.png (not a supported picture format)" in message
    assert "data.unreadable=skip" in message


def test_images_of_other_classes_are_refused(finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    for kinds in (("bright", "night"), ("bright", "dark", "grey"), ("cat", "dog")):
        root = tmp_path / "-".join(kinds)
        for kind in kinds:
            draw_pictures(tmp_path / "made", 10)
            shutil.copytree(tmp_path / "made/dark", root / kind)
        message = value_error_of(lambda root=root: other_data(finished, [str(root)]))  # type: ignore[misc]
        assert message is not None
        assert "these images have other classes than those of" in message
        assert sorted(set(kinds) ^ {"bright", "dark"})[0] in message
    test = tmp_path / "cat-dog"
    message = value_error_of(lambda: other_data(finished, [f"test={test}"]))
    assert message is not None
    assert "do not occur in the training images: cat, dog" in message
    assert contents(finished) == before


@pytest.mark.parametrize("crops", [5, 10])
def test_logits_of_several_crops_are_averaged(crops: int, finished: Path, photos: Path) -> None:
    """By hand, from the handed-over model and torchvision's crops."""
    from torchvision.transforms import FiveCrop, Resize, TenCrop
    from torchvision.transforms.functional import pil_to_tensor

    data = other_data(finished, crops=crops)
    rows = pipeline.evaluate(finished, data=data)
    network = load_model(finished / "subnets/00").network
    cut = Resize(8, interpolation=3), (FiveCrop if crops == 5 else TenCrop)(8)
    total, hits, count = 0.0, 0, 0
    for name in sorted(validation_names(finished, photos)):
        image = Image.open(photos / name)
        pixels = torch.stack([pil_to_tensor(crop) for crop in cut[1](cut[0](image))])
        with torch.inference_mode():
            logits = network((pixels.float() / 255 - 0.5) / 0.25).mean(0)
        label = int(name.startswith("dark"))
        total -= float(logits.log_softmax(0)[label])
        hits += int(logits.argmax()) == label
        count += 1
    assert count == rows[0].splits["validation"].num_images == 8
    assert rows[0].splits["validation"].loss == pytest.approx(total / count, rel=1e-4)
    assert rows[0].splits["validation"].top1 == pytest.approx(hits / count)
    assert rows != pipeline.evaluate(finished)


def validation_names(run: Path, root: Path) -> tuple[str, ...]:
    from prenas.data import open_data

    data = pipeline.read_preferred(run).recipe.data
    assert data is not None
    return open_data(data).validation.names


def test_a_recipe_may_ask_for_crops(photos: Path, tmp_path: Path) -> None:
    """Then its own results are of crops, and models are handed over as ever."""
    recipe = recipe_on(photos)
    assert recipe.data is not None
    data = recipe.data.model_copy(update={"crops": 5})
    recipe = recipe.model_copy(update={"data": data})
    rows = pipeline.run(recipe, tmp_path / "run")
    assert (tmp_path / "run/evaluation.json").exists()
    assert len(list((tmp_path / "run/subnets").iterdir())) == len(rows)


@pytest.mark.parametrize("crops", ["0", "2", "11"])
def test_other_numbers_of_crops_are_refused(crops: str, finished_run: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(finished_run), "--crops", crops])
    assert result.exit_code != 0
    if crops == "2":
        assert isinstance(result.exception, ValueError)
        assert "data.crops" in str(result.exception)


def test_images_of_another_run_are_refused_before_anything_is_written(
    finished: Path, tmp_path: Path
) -> None:
    (finished / "supernet.safetensors").unlink()
    before = contents(finished)
    other = draw_pictures(tmp_path / "other", 12, first=300)
    message = value_error_of(
        lambda: pipeline.train(finished, data=other_data(finished, [str(other)]))
    )
    assert message is not None
    assert "not the images that" in message
    assert contents(finished) == before


# --- what a run was trained on decides what it hands over ----------------------------------------


def test_a_renamed_class_is_noticed_when_cutting_and_evaluating(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    """Outputs keep the meaning that they were trained with; names are not taken from the disk."""
    moved = Path(shutil.copytree(photos, tmp_path / "photos"))
    (moved / "bright").rename(moved / "zbright")
    for name in ("evaluation.json", "subnets"):
        path = finished / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(finished)
    renamed = with_data(recipe_on(photos), str(moved))
    for action in (
        lambda: other_data(finished, [str(moved)]),
        lambda: pipeline.evaluate(finished, data=load(renamed)),
    ):
        assert "these images have other classes than those of" in (value_error_of(action) or "")
    cut = value_error_of(lambda: pipeline.specialize(finished, 0, data=load(renamed)))
    assert "these are not its images" in (cut or "")
    assert contents(finished) == before
    model = pipeline.specialize(finished, 0)
    assert json.loads((model / "arch.json").read_text())["class_names"] == ["bright", "dark"]


def load(recipe: Recipe) -> ImageData:
    assert recipe.data is not None
    return load_data(recipe.data, recipe.space.settings)


def test_an_unreadable_picture_on_disk_can_be_skipped_and_the_run_goes_on(tmp_path: Path) -> None:
    """What the message says works, and nothing of the training so far is lost."""
    photos = draw_pictures(tmp_path / "photos", 20)
    recipe = recipe_on(photos)
    assert recipe.data is not None
    lazily = recipe.data.model_copy(update={"memory_gib": 0.0})
    recipe = recipe.model_copy(update={"data": lazily})
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        pipeline.run(recipe, out, observer=hearing(steps=stop_at(5)))
    opened = open_data(lazily)
    (photos / opened.train.names[0]).write_bytes(
        bytes(opened.train.versions[0])  # the same size, so that the images count as the same
    )
    problem = value_error_of(lambda: pipeline.run(recipe, out)) or ""
    assert f"cannot read picture {opened.train.names[0]}" in problem
    assert "--set data.unreadable=skip" in problem
    skipping = lazily.model_copy(update={"unreadable": "skip"})
    rows = pipeline.run(recipe.model_copy(update={"data": skipping}), out)
    assert len(metrics_of(out, "epoch")) == 4
    assert rows[0].splits["test"].num_images == 4


def test_a_report_made_on_the_way_is_written_anew(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipeline.search(recipe_on(photos), out)
    assert "not evaluated yet" in pipeline.report(out).read_text()
    pipeline.run(recipe_on(photos), out)
    text = (out / "report.md").read_text()
    assert "not evaluated yet" not in text
    assert "best by validation" in text


def test_a_folder_without_splits_is_evaluated_whole(finished: Path, tmp_path: Path) -> None:
    others = draw_pictures(tmp_path / "others", 15, first=100)
    (row, *_) = pipeline.evaluate(finished, data=other_data(finished, [str(others)]))
    assert list(row.splits) == ["all"]
    assert row.splits["all"].num_images == 30


def test_a_model_on_the_pictures_of_its_run_is_said_to_know_most_of_them(
    finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(photos, tmp_path / "moved"))
    others = draw_pictures(tmp_path / "others", 15, first=100)
    model = finished_run / "subnets" / "00"
    for folder, is_known in ((photos, True), (moved, True), (others, False)):
        result = CliRunner().invoke(app, ["evaluate", str(model), "--data", str(folder)])
        assert result.exit_code == 0, result.output
        said = f"These are the images of {finished_run}, and the model was trained on most of them"
        assert (said in result.output) == is_known


def test_a_model_is_evaluated_though_its_run_is_damaged(finished: Path, photos: Path) -> None:
    (finished / "recipe.json").unlink()
    model = finished / "subnets" / "00"
    result = CliRunner().invoke(app, ["evaluate", str(model), "--data", str(photos)])
    assert result.exit_code == 0, result.output
    assert "on all 80 images" in result.output


def test_other_images_do_not_choose_a_subnet(finished: Path, tmp_path: Path) -> None:
    (finished / "evaluation.json").unlink()
    shutil.rmtree(finished / "subnets")
    others = draw_pictures(tmp_path / "others", 15, first=100)
    data = other_data(finished, [str(others)])
    before = contents(finished)
    problem = value_error_of(lambda: pipeline.specialize(finished, limits="params=1M", data=data))
    assert "has not been evaluated yet, and these are not its images" in (problem or "")
    assert contents(finished) == before


def test_a_search_on_data_sees_pictures_unchanged(photos: Path) -> None:
    plain, changed = (
        load(recipe_on(photos, changes))
        for changes in (Augmentation(), Augmentation(crop_scale=(0.2, 0.5), auto_augment="rand-m9"))
    )
    settings = recipe_on(photos).space.settings
    assert plain.unchanged is None
    assert changed.unchanged is not None
    ours = labelled_sample(changed.unchanged, settings, 12, seed=3)
    theirs = labelled_sample(plain.train, settings, 12, seed=3)
    for left, right in zip(ours, theirs, strict=True):
        assert torch.equal(left, right)


def test_three_pictures_are_enough_to_evaluate_on(finished: Path, tmp_path: Path) -> None:
    """A folder of other images is not divided, however small."""
    others = draw_pictures(tmp_path / "others", 1, first=300)
    (row, *_) = pipeline.evaluate(finished, data=other_data(finished, [str(others)]))
    assert row.splits["all"].num_images == 2


def test_the_search_on_data_does_not_depend_on_the_augmentation(
    photos: Path, tmp_path: Path
) -> None:
    """Scores come from the pictures as evaluation sees them."""
    scores = []
    for number, changes in enumerate((Augmentation(), IN_MEMORY)):
        recipe = recipe_on(photos, changes, search={"images": "data", "num_images": 8})
        preferred = pipeline.search(recipe, tmp_path / f"run {number}")
        scores.append([subnet.score for subnet in preferred.subnets])
    assert scores[0] == scores[1]


def test_what_was_left_out_is_said_by_every_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = draw_pictures(tmp_path / "photos", 20)
    (photos / "dark" / "bad.png").write_text("no picture")
    recipe = recipe_on(photos)
    assert recipe.data is not None
    skipping = recipe.data.model_copy(update={"unreadable": "skip"})
    recipe = recipe.model_copy(update={"data": skipping})
    pipeline.search(recipe, tmp_path / "run")
    pipeline.train(tmp_path / "run")
    assert "dark/bad.png" in caplog.text
    assert "They are skipped" in caplog.text
    assert "dark/bad.png" in (tmp_path / "run/data.json").read_text()


def test_an_evaluation_does_not_hold_the_training_images(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the splits that it reads are decoded before."""
    for name in ("evaluation.json", "evaluation.csv"):
        (finished / name).unlink()
    held = []

    def watched(*args: Any, **options: Any) -> ImageData:
        held.append(load_data(*args, **options))
        return held[-1]

    monkeypatch.setattr(run_data, "load_data", watched)
    pipeline.evaluate(finished)
    (data,) = held
    assert isinstance(data.validation, Pixels)
    assert isinstance(data.train, Pictures)
    assert not data.train.is_held
