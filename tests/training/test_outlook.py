"""Warnings before a training that can hardly learn: what was seen, what it takes, what to give."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from data.making import write
from prenas import pipeline
from prenas.data import ImageData, load_data, with_data
from prenas.recipe import EvolutionRecipe, Recipe, with_overrides
from prenas.recipe.catalogue import get_recipe, recipe_for_pictures
from prenas.steps.training import warn_of_doubts
from prenas.training.outlook import doubts
from training.runs import own_data, own_recipe


def images_of(*sizes: int) -> ImageData:
    """Training images per class."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    names = tuple(f"class {number}" for number in range(len(sizes)))
    train = TensorDataset(torch.zeros(len(labels), 1, 8, 8), labels)
    return replace(own_data(), train=train, class_names=names)


def recipe_of(*changes: str) -> Recipe:
    """Eight budgets, in batches of 32."""
    budgets = 'search.budgets=["params=150k:950k:100k"]'
    return with_overrides(get_recipe("photos"), [budgets, "training.batch_size=32", *changes])


def found(recipe: Recipe, images: ImageData, **options: Any) -> list[str]:
    assert recipe.training is not None
    return doubts(recipe, recipe.training, images, **options)


ENOUGH = (100, 100, 100)


def test_enough_steps_and_images_raise_no_doubt() -> None:
    assert found(recipe_of("training.steps=800"), images_of(*ENOUGH)) == []


def test_a_short_training_names_its_steps_and_what_it_would_take() -> None:
    """The measured case: 105 steps for 8 subnets of a network trained on 800 pictures."""
    (doubt,) = found(recipe_of("training.steps=105"), images_of(*[160] * 5))
    assert "105 steps for 8 subnets, about 13 for each" in doubt
    for option in ("training.steps=800", "--time", "--budget"):
        assert option in doubt
    (doubt,) = found(recipe_of("training.epochs=4"), images_of(*ENOUGH))
    assert "40 steps for 8 subnets, about 5 for each" in doubt


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ((), 800),
        (("search.k=2",), 1600),
        (("training.sandwich=2",), 200),  # each step trains four of the eight
        (("training.sandwich=20",), 100),
        (('search.budgets=["params=500k"]',), 100),
    ],
)
def test_the_needed_steps_follow_the_subnets(changes: tuple[str, ...], needed: int) -> None:
    images = images_of(*ENOUGH)
    assert found(recipe_of(*changes, f"training.steps={needed}"), images) == []
    (doubt,) = found(recipe_of(*changes, f"training.steps={needed - 1}"), images)
    assert f"training.steps={needed}" in doubt


def test_the_whole_space_is_not_counted_by_subnets() -> None:
    recipe = recipe_of("training.steps=100").model_copy(update={"evolution": EvolutionRecipe()})
    assert found(recipe, images_of(*ENOUGH)) == []


def test_trained_weights_take_a_fifth() -> None:
    recipe, images = recipe_of("training.steps=160"), images_of(10, 10, 10)
    assert found(recipe, images, is_pretrained=True) == []
    assert len(found(recipe, images)) == 2
    fewer = recipe_of("training.steps=159"), images_of(9, 10, 10)
    short, few = found(*fewer, is_pretrained=True)
    assert "training.steps=160" in short
    assert "30 or more" in few
    assert "finetune" not in few


def test_few_images_are_counted_per_class() -> None:
    (doubt,) = found(recipe_of("training.steps=2000"), images_of(16, 16, 16))
    assert "48 to train 3 classes, about 16 for each" in doubt
    assert "150 or more" in doubt
    assert "prenas finetune" in doubt


def test_uneven_classes_are_named() -> None:
    recipe = recipe_of("training.steps=2000")
    (doubt,) = found(recipe, images_of(480, 24, 4))
    assert "480 training images of class 0, but 4 of class 2" in doubt
    assert "training.class_weights=balanced" in doubt
    assert found(recipe, images_of(200, 41, 50)) == []
    balanced = recipe_of("training.steps=2000", "training.class_weights=balanced")
    assert found(balanced, images_of(480, 24, 4)) == []


def test_a_moving_average_that_hardly_moves_is_named() -> None:
    slow = ("training.steps=800", "training.ema_decay=0.999")
    (doubt,) = found(recipe_of(*slow), images_of(*ENOUGH))
    assert "after 800 steps, 45 % of it are the weights before the training" in doubt
    assert "training.ema_decay=0.994 or less" in doubt
    assert 0.994**800 < 0.01 < 0.995**800
    assert found(recipe_of(*slow, "training.final_weights=last"), images_of(*ENOUGH)) == []
    quick = recipe_of("training.steps=800", "training.ema_decay=0.994")
    assert found(quick, images_of(*ENOUGH)) == []


def test_a_class_without_images_is_not_the_smallest() -> None:
    """An earlier warning names it; a ratio to nothing says nothing."""
    for sizes in ((200, 0, 100), (0, 200, 100), (200, 100, 0)):
        assert found(recipe_of("training.steps=2000"), images_of(*sizes)) == []


class Unlabelled(Dataset[Any]):
    """Labels are only known once an image is read."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("images are not read to be counted")


def test_unknown_labels_are_not_read_for_it() -> None:
    images = replace(images_of(*ENOUGH), train=Unlabelled())
    assert found(recipe_of("training.steps=2000"), images) == []
    loader = replace(images_of(*ENOUGH), train=DataLoader(images_of(480, 24, 4).train))
    assert len(found(recipe_of("training.steps=2000"), loader)) == 1


def test_they_are_warnings_of_the_main_process(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_doubts(recipe_of("training.steps=10"), images_of(480, 24, 4), is_pretrained=False)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_dry_run_warns_and_a_finished_run_does_not(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, out = own_recipe(training={"epochs": 1}), tmp_path / "run"
    pipeline.dry_run(recipe, data=own_data())
    assert "this training is short: 1 step for 4 subnets, about 0 for each" in caplog.text
    pipeline.run(recipe, out, data=own_data())
    caplog.clear()
    pipeline.run(recipe, out, data=own_data())
    assert "this training is short" not in caplog.text


def test_guessing_is_said_after_the_evaluation(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Noise cannot be learned, and the output must not look like success."""
    pipeline.run(own_recipe(training={"epochs": 1}), tmp_path / "run", data=own_data())
    (said,) = [r.getMessage() for r in caplog.records if "always naming" in r.getMessage()]
    assert "of the 20 validation images (95 % interval:" in said
    assert "from the 10.0 % of always naming the largest class" in said
    assert said.endswith(
        "train for longer (training.steps, --time), fine-tune trained weights (prenas finetune) or "
        "add images"
    )


# --- a recipe for another set --------------------------------------------------------------------


def on_pictures(name: str, folder: Path, *changes: str) -> list[str]:
    """The doubts about the recipe of a recipe on pictures of 12 x 10 pixels."""
    photos = write(folder, [f"{kind}/{n}.png" for kind in "abc" for n in range(20)])
    recipe = with_overrides(with_data(get_recipe(name), str(photos)), changes)
    images = load_data(recipe.data, recipe.space.settings)  # type: ignore[arg-type]
    return [text for text in found(recipe, images) if "is made for" in text]


def test_own_pictures_with_a_recipe_for_a_named_set(tmp_path: Path) -> None:
    (doubt,) = on_pictures("mobilenet-small", tmp_path / "photos")
    assert "mobilenet-small is made for fashion-mnist" in doubt
    assert "the first has 12 x 10 pixels) become 28 x 28 pixels, with mean 0.286 0.286" in doubt
    assert doubt.endswith("use the recipe photos-mobilenet")
    (doubt,) = on_pictures("cifar10", tmp_path / "photos")
    assert doubt.endswith("use the recipe photos")


def test_recipes_for_own_pictures_are_not_doubted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    assert on_pictures("photos", photos) == on_pictures("photos-mobilenet", photos) == []


def test_a_set_as_files_and_chosen_preprocessing_are_not_doubted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    as_is = "space.settings.image_size=[10, 12]"
    assert on_pictures("mobilenet-small", photos, as_is) == []
    own = [f"data.preprocessing.{name}=[0.5, 0.5, 0.5]" for name in ("mean", "std")]
    assert on_pictures("mobilenet-small", photos, *own, "space.settings.image_size=32") == []
    assert len(on_pictures("mobilenet-small", photos, *own)) == 1
    assert len(on_pictures("mobilenet-small", photos, "space.settings.image_size=32")) == 1


@pytest.mark.parametrize(("side", "is_doubted"), [(21, True), (20, False), (10, False)])
def test_pictures_that_trained_weights_get_much_enlarged(
    side: int, is_doubted: bool, tmp_path: Path
) -> None:
    """Pictures of 12 x 10 pixels: up to twice their shorter side is no doubt."""
    photos = write(tmp_path / "photos", [f"{kind}/{n}.png" for kind in "abc" for n in range(20)])
    size = f"space.settings.image_size={side}"
    recipe = with_overrides(with_data(get_recipe("photos-mobilenet"), str(photos)), [size])
    texts = found(recipe, images_of(*ENOUGH), is_pretrained=True)
    small = [text for text in texts if "the first has 12 x 10 pixels" in text]
    assert len(small) == is_doubted
    assert all(f"gets {side} x {side}" in text and "--image-size" in text for text in small)
    assert not [text for text in found(recipe, images_of(*ENOUGH)) if "are small" in text]


def test_every_family_has_a_recipe_for_own_pictures() -> None:
    assert recipe_for_pictures("vit") == "photos"
    assert recipe_for_pictures("mobilenet") == "photos-mobilenet"
    assert recipe_for_pictures("another") is None
