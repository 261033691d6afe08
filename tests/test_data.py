"""Data: a fixed split, randomness that is named, and mistakes that are named too."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from prenas.data import (
    Batch,
    ImageData,
    ImageSource,
    as_batch,
    evaluation_batches,
    labelled_sample,
    load_data,
    num_batches,
    training_batches,
)
from prenas.data.augmentation import BatchAffine
from prenas.data.pictures import Pixels
from prenas.families.vit.space import VitSettings
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import Augmentation, DataRecipe
from training.runs import global_state_untouched, value_error_of

SETTINGS = VitSettings(image_size=(4, 4), in_chans=1, num_classes=40, patch_size=2)
NAMES = tuple(map(str, range(40)))


DIGITS = get_recipe("digits").data or DataRecipe(name="missing")
DIGITS_SETTINGS = get_recipe("digits").space.settings
(MEAN,), (STD,) = DIGITS.preprocessing.mean, DIGITS.preprocessing.std


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DIGITS, DIGITS_SETTINGS)


def grey(images: Tensor) -> Tensor:
    """Normalised digits as pixels of 0 to 255 again."""
    return (images * STD + MEAN) * 255


def tensors(source: ImageSource) -> tuple[Tensor, Tensor]:
    assert isinstance(source, Pixels)
    images, labels = source[list(range(len(source)))]
    return images, labels


class Noisy(Dataset[Any]):
    """A data set whose transforms draw from every global generator; the label is the index."""

    def __init__(self, length: int = 23) -> None:
        self.length = length
        self.calls: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.calls.append(index)
        image = torch.rand(1, 4, 4)
        image[0, 0, 0] += np.random.rand()
        image[0, 1, 1] += random.random()
        return image, index


def data_of(train: ImageSource, **fields: Any) -> ImageData:
    return ImageData(train, train, None, NAMES, **fields)


def by_label(batches: Iterator[Batch]) -> dict[int, Tensor]:
    """Label -> image; every label once."""
    found: dict[int, Tensor] = {}
    for batch in batches:
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            assert label not in found
            found[label] = image
    return found


# --- the digits ----------------------------------------------------------------------------------


def test_digits_are_split_60_20_20_and_stratified(digits: ImageData) -> None:
    splits = {"train": digits.train, "validation": digits.validation, "test": digits.test}
    total = torch.from_numpy(np.bincount(load_digits().target))
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        source = splits[name]
        assert source is not None
        images, labels = tensors(source)
        assert len(images) == pytest.approx(1797 * share, abs=1.5)
        assert images.shape[1:] == (1, 8, 8)
        counts = torch.bincount(labels, minlength=10)
        assert (counts - total * share).abs().max() <= 1
    assert digits.class_names == tuple("0123456789")


def test_digits_splits_are_disjoint_and_complete(digits: ImageData) -> None:
    """Together they are the whole set, every picture with its own label."""
    together = []
    for source in (digits.train, *digits.splits.values()):
        images, labels = tensors(source)
        rows = grey(images).round().to(torch.int64).flatten(1).tolist()
        together += [(*row, label) for row, label in zip(rows, labels.tolist(), strict=True)]
    bunch = load_digits()
    pixels = np.round(bunch.data * 255 / 16).astype(int).tolist()
    assert sorted(together) == sorted(
        (*row, int(label)) for row, label in zip(pixels, bunch.target, strict=True)
    )
    assert len(set(together)) == len(together)


def test_digits_split_is_fixed(digits: ImageData) -> None:
    """Whatever the global generators stand at."""
    np.random.seed(77)
    random.seed(77)
    again = load_data(DIGITS, DIGITS_SETTINGS)
    for ours, theirs in zip(
        (digits.train, *digits.splits.values()), (again.train, *again.splits.values()), strict=True
    ):
        for left, right in zip(tensors(ours), tensors(theirs), strict=True):
            assert torch.equal(left, right)


def test_recipe_states_mean_and_deviation_of_the_training_split(digits: ImageData) -> None:
    """As given, to three digits, so the normalised split has mean 0 and deviation 1."""
    images, _ = tensors(digits.train)
    assert float(images.mean()) == pytest.approx(0.0, abs=0.002)
    assert float(images.std()) == pytest.approx(1.0, abs=0.002)


def test_digits_are_eight_bit_grey(digits: ImageData) -> None:
    images, _ = tensors(digits.train)
    pixels = grey(images)
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    assert 0 <= float(pixels.min().round()) < float(pixels.max().round()) == 255


def test_digits_augmentation_fills_with_black(digits: ImageData) -> None:
    """Black is pixel 0, which normalisation does not leave at 0."""
    images, _ = tensors(digits.train)
    black = -MEAN / STD
    assert float(images.min()) == pytest.approx(black)
    far = load_data(
        DIGITS.model_copy(update={"augmentation": Augmentation(shift_pixels=100.0)}),
        DIGITS_SETTINGS,
    )
    assert far.augmentation is not None
    gone = far.augmentation(images[:1], [Fixed(0, 0, 1, 0)])  # type: ignore[list-item]
    assert torch.allclose(gone, torch.tensor(black), atol=1e-5)


def test_an_unknown_data_set_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown data set 'digit': did you mean 'digits'"):
        load_data(DataRecipe(name="digit"), DIGITS_SETTINGS)
    with pytest.raises(ValueError, match=r"passed from Python: pass data=prenas\.ImageData"):
        load_data(DataRecipe(name="own"), DIGITS_SETTINGS)


def test_only_splits_that_exist_are_evaluated(digits: ImageData) -> None:
    assert list(digits.splits) == ["validation", "test"]
    assert list(data_of(Noisy()).splits) == ["validation"]


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 23, 100])
def test_a_sample_is_a_function_of_seed_epoch_and_index(batch_size: int) -> None:
    """Even where transforms only know global randomness: not of batches, nor of what ran before."""
    data = data_of(Noisy())
    expected = by_label(training_batches(data, SETTINGS, 5, seed=3, epoch=2))
    torch.rand(batch_size)  # leaves the global generator elsewhere
    random.random()
    found = by_label(training_batches(data, SETTINGS, batch_size, seed=3, epoch=2))
    assert found.keys() == expected.keys() == set(range(23))
    assert all(torch.equal(found[label], expected[label]) for label in expected)


def test_samples_change_with_seed_epoch_and_index() -> None:
    data = data_of(Noisy())
    base = by_label(training_batches(data, SETTINGS, 5, seed=3, epoch=2))
    for seed, epoch in ((4, 2), (3, 1)):
        other = by_label(training_batches(data, SETTINGS, 5, seed=seed, epoch=epoch))
        assert not any(torch.equal(other[label], base[label]) for label in base)
    assert len({tuple(image.flatten().tolist()) for image in base.values()}) == 23


@pytest.mark.parametrize(
    "source", [Noisy(), TensorDataset(torch.rand(23, 1, 4, 4), torch.arange(23))]
)
def test_order_is_drawn_from_seed_and_epoch(source: Dataset[Any]) -> None:
    def order(batch_size: int, seed: int, epoch: int) -> list[int]:
        batches = training_batches(data_of(source), SETTINGS, batch_size, seed, epoch)
        return torch.cat([batch.labels for batch in batches]).tolist()

    base = order(5, 0, 0)
    assert sorted(base) == list(range(23)) != base
    assert order(4, 0, 0) == base
    assert order(5, 0, 1) != base != order(5, 1, 0)


def test_sizes_of_batches_and_the_odd_last_one() -> None:
    source = Noisy()
    sizes = [len(b.labels) for b in training_batches(data_of(source), SETTINGS, 5, 0, 0)]
    assert sizes == [5, 5, 5, 5, 3]
    assert num_batches(source, 5) == 5
    assert [len(labels) for _, labels in evaluation_batches(source, SETTINGS, 10)] == [10, 10, 3]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(Noisy(), id="own"),
        pytest.param(TensorDataset(torch.rand(9, 1, 4, 4), torch.arange(9)), id="tensors"),
        pytest.param(Subset(Noisy(), range(8)), id="subset"),
    ],
)
@pytest.mark.parametrize("use", ["train", "evaluate", "sample"])
def test_global_generators_are_left_alone(source: Dataset[Any], use: str) -> None:
    """Neither drawn from nor reseeded: what a notebook draws next does not change."""
    with global_state_untouched():
        if use == "train":
            assert list(training_batches(data_of(source), SETTINGS, 4, 0, 0))
        elif use == "evaluate":
            assert list(evaluation_batches(source, SETTINGS, 4))
        else:
            labelled_sample(source, SETTINGS, 4, 0)


def test_global_generators_are_restored_after_a_failing_transform() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            super().__getitem__(index)
            raise OSError("file 7 is missing")

    state = random.getstate()
    with pytest.raises(OSError, match="file 7 is missing"):
        next(training_batches(data_of(Broken()), SETTINGS, 4, 0, 0))
    assert random.getstate() == state


@pytest.mark.parametrize("batch_size", [1, 6, 23])
def test_each_sample_has_a_generator_of_its_own(batch_size: int) -> None:
    """The same numbers for the same (seed, epoch, index), whatever else is in the batch."""

    def draws(batch_size: int, epoch: int = 1) -> dict[int, float]:
        source = TensorDataset(torch.rand(23, 1, 4, 4), torch.arange(23))
        return {
            label: generator.random()
            for batch in training_batches(data_of(source), SETTINGS, batch_size, 0, epoch)
            for label, generator in zip(batch.labels.tolist(), batch.generators, strict=True)
        }

    expected = draws(5)
    assert draws(batch_size) == expected
    assert len(set(expected.values())) == 23
    assert not set(draws(5, epoch=2).values()) & set(expected.values())


def test_augmentation_is_applied_with_the_samples_generators() -> None:
    def add_draws(images: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        return images + torch.tensor([g.random() for g in generators])[:, None, None, None]

    source = TensorDataset(torch.zeros(23, 1, 4, 4), torch.arange(23))
    plain = data_of(source)
    augmented = by_label(
        training_batches(data_of(source, augmentation=add_draws), SETTINGS, 4, 0, 0)
    )
    for batch in training_batches(plain, SETTINGS, 9, 0, 0):
        for label, generator in zip(batch.labels.tolist(), batch.generators, strict=True):
            assert float(augmented[label].mean()) == pytest.approx(generator.random(), abs=1e-6)


def test_evaluation_is_in_order_and_never_augmented() -> None:
    images = torch.rand(11, 1, 4, 4)
    found = list(evaluation_batches(TensorDataset(images, torch.arange(11)), SETTINGS, 4))
    assert torch.equal(torch.cat([batch for batch, _ in found]), images)
    assert torch.cat([labels for _, labels in found]).tolist() == list(range(11))


# --- own loaders ---------------------------------------------------------------------------------


def test_an_own_loader_is_iterated_as_it_is() -> None:
    images = torch.rand(14, 1, 4, 4)
    source = TensorDataset(images, torch.arange(14))
    order = [5, 3, 9, 9, 0, 1, 2]
    loader = DataLoader(source, batch_size=3, sampler=order, drop_last=True)
    for batches in (
        list(training_batches(data_of(loader), SETTINGS, 64, seed=0, epoch=4)),
        list(evaluation_batches(loader, SETTINGS, 64)),
    ):
        assert [batch[1].tolist() for batch in batches] == [[5, 3, 9], [9, 0, 1]]
        assert torch.equal(batches[1][0], images[[9, 0, 1]])
    assert num_batches(loader, 64) == 2


def test_samples_of_an_own_loader_are_numbered_by_position() -> None:
    source = TensorDataset(torch.rand(8, 1, 4, 4), torch.arange(8))

    def draws(batch_size: int, epoch: int) -> list[float]:
        loader = DataLoader(source, batch_size=batch_size)
        return [
            generator.random()
            for batch in training_batches(data_of(loader), SETTINGS, 64, 0, epoch)
            for generator in batch.generators
        ]

    assert draws(3, 0) == draws(8, 0) != draws(8, 1)
    assert len(set(draws(3, 0))) == 8


# --- mistakes ------------------------------------------------------------------------------------

GOOD = torch.rand(4, 1, 4, 4)
LABELS = torch.tensor([0, 1, 2, 39])


def test_good_batches_pass() -> None:
    as_batch((GOOD, LABELS), SETTINGS)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (
            GOOD,
            torch.tensor([0, 1, 2, 40]),
            ["label 40", "classes 0 to 39", "0 to 39", "num_classes"],
        ),
        (GOOD, torch.tensor([0, -1, 2, 3]), ["label -1", "classes 0 to 39", "fix the labels"]),
        (torch.rand(4, 1, 5, 4), LABELS, ["(4, 1, 5, 4)", "(batch, 1, 4, 4)", "image_size"]),
        (torch.rand(4, 3, 4, 4), LABELS, ["(4, 3, 4, 4)", "(batch, 1, 4, 4)", "in_chans"]),
        (torch.rand(4, 4, 4), LABELS, ["(4, 4, 4)", "(batch, 1, 4, 4)"]),
        (GOOD.mul(255).to(torch.uint8), LABELS, ["torch.uint8", "floats", "convert"]),
        (GOOD.long(), LABELS, ["torch.int64", "floats"]),
        (GOOD, LABELS.float(), ["torch.float32", "one integer per image"]),
        (GOOD, torch.eye(4, dtype=torch.long), ["labels of shape (4, 4)", "one integer"]),
        (GOOD, LABELS[:3], ["labels of shape (3,)", "one integer per image"]),
        (GOOD, LABELS[:, None], ["labels of shape (4, 1)", "one integer per image"]),
    ],
)
@pytest.mark.parametrize("use", ["check", "train", "evaluate", "sample"])
def test_unsuitable_batches_are_refused(
    images: Tensor, labels: Tensor, words: list[str], use: str
) -> None:
    """Every message names what was given, what is needed and a way out."""
    # A loader of whole batches, as a foreign collate function could make them.
    loader: DataLoader[Any] = DataLoader([(images, labels)], batch_size=None)  # type: ignore[arg-type]
    ways = {
        "check": lambda: as_batch((images, labels), SETTINGS),
        "train": lambda: list(training_batches(data_of(loader), SETTINGS, 4, 0, 0)),
        "evaluate": lambda: list(evaluation_batches(loader, SETTINGS, 4)),
        "sample": lambda: labelled_sample(loader, SETTINGS, 1, 0),
    }
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ways[use]()
    for word in words:
        assert word in str(caught.value)


def as_numpy(items: list[tuple[Tensor, int]]) -> tuple[np.ndarray[Any, Any], ...]:
    """A collate function of somebody who does not use tensors."""
    return np.stack([image.numpy() for image, _ in items]), np.array([label for _, label in items])


IMAGE = torch.rand(1, 4, 4)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param([{"image": IMAGE, "label": 1}] * 4, id="dictionaries"),
        pytest.param([(IMAGE, 1, "name")] * 4, id="triples"),
        pytest.param([IMAGE] * 4, id="images-alone"),
        pytest.param([(IMAGE, "cat")] * 4, id="words-as-labels"),
        pytest.param(DataLoader([(IMAGE, 1)] * 4, batch_size=2, collate_fn=as_numpy), id="numpy"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("use", ["train", "evaluate"])
def test_items_of_another_form_are_taken_or_refused_in_words(source: Any, use: str) -> None:
    """Data sets of other libraries give dictionaries, or more than a pair."""
    ways = {
        "train": lambda: list(training_batches(data_of(source), SETTINGS, 2, 0, 0)),
        "evaluate": lambda: list(evaluation_batches(source, SETTINGS, 2)),
    }
    message = value_error_of(ways[use])
    assert message is None or "image" in message or "label" in message


class Endless(IterableDataset[Any]):
    """A stream: no length, no indices."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            yield torch.rand(1, 4, 4), 0


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(
            lambda: next(training_batches(data_of(Endless()), SETTINGS, 4, 0, 0)), id="train"
        ),
        pytest.param(lambda: next(evaluation_batches(Endless(), SETTINGS, 4)), id="evaluate"),
        pytest.param(lambda: num_batches(Endless(), 4), id="count"),
        pytest.param(
            lambda: num_batches(DataLoader(Endless(), batch_size=4), 4), id="count-of-loader"
        ),
        pytest.param(lambda: labelled_sample(Endless(), SETTINGS, 4, 0), id="sample"),
    ],
)
def test_a_data_set_without_length_is_refused(use: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="Endless has no length"):
        use()


# --- a sample for the search ---------------------------------------------------------------------


def test_a_labelled_sample_is_drawn_from_the_seed() -> None:
    source = TensorDataset(
        torch.arange(30.0).repeat(1, 1).T[:, :, None, None].expand(-1, 1, 4, 4), torch.arange(30)
    )
    images, labels = labelled_sample(source, SETTINGS, 12, seed=5)
    assert images.shape == (12, 1, 4, 4)
    assert images[:, 0, 0, 0].tolist() == labels.tolist()  # each image with its own label
    assert len(set(labels.tolist())) == 12
    assert torch.equal(labelled_sample(source, SETTINGS, 12, seed=5)[1], labels)
    assert not torch.equal(labelled_sample(source, SETTINGS, 12, seed=6)[1], labels)


def test_a_sample_of_everything_is_everything() -> None:
    _, labels = labelled_sample(Noisy(), SETTINGS, 23, seed=0)
    assert sorted(labels.tolist()) == list(range(23))


def test_a_sample_of_a_loader_is_its_beginning() -> None:
    source = TensorDataset(torch.rand(30, 1, 4, 4), torch.arange(30))
    images, labels = labelled_sample(DataLoader(source, batch_size=4), SETTINGS, 10, seed=5)
    assert labels.tolist() == list(range(10))
    assert torch.equal(images, source.tensors[0][:10])


def test_too_small_a_split_for_the_sample_is_refused() -> None:
    source = TensorDataset(torch.rand(30, 1, 4, 4), torch.arange(30))
    with pytest.raises(
        ValueError, match=r"num_images is 31, but .* has only 30 images: use 30 or fewer"
    ):
        labelled_sample(source, SETTINGS, 31, seed=0)


def test_too_short_a_loader_for_the_sample_is_refused() -> None:
    """It may give less than its data set holds."""
    source = TensorDataset(torch.rand(30, 1, 4, 4), torch.arange(30))
    short = DataLoader(source, batch_size=4, sampler=range(8))
    with pytest.raises(ValueError, match=r"num_images is 10, but .* only 8 images: use 8 or fewer"):
        labelled_sample(short, SETTINGS, 10, seed=0)


# --- affine changes ------------------------------------------------------------------------------


class Fixed:
    """Stands for a generator whose uniform numbers are given: angle, scale, right, down."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = numbers

    def uniform(self, low: float, high: float, size: int) -> np.ndarray[Any, Any]:
        assert (low, high, size) == (-1.0, 1.0, 4)
        return np.array(self.numbers)


def changed(limits: Augmentation, image: Tensor, *numbers: float) -> Tensor:
    """One image [C, H, W] under given draws, on a black of -1."""
    augment = BatchAffine(limits, fill=[-1.0] * len(image))
    return augment(image[None], [Fixed(*numbers)])[0]  # type: ignore[list-item]


def numbered(height: int, width: int) -> Tensor:
    return torch.arange(1.0, height * width + 1).view(1, height, width)


@given(st.tuples(*[st.floats(-1, 1)] * 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
def test_zero_limits_change_nothing(
    numbers: tuple[float, ...], height: int, width: int, channels: int
) -> None:
    image = numbered(height, width).expand(channels, -1, -1)
    result = changed(Augmentation(), image, *numbers)
    assert torch.allclose(result, image, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 10), (9, 5)])
def test_a_shift_of_one_pixel_moves_one_pixel(height: int, width: int, sign: float) -> None:
    """Which side is positive does not matter, that both signs differ and black enters does."""
    limits, image = Augmentation(shift_pixels=1.0), numbered(height, width)
    black_column, black_row = torch.full((1, height, 1), -1.0), torch.full((1, 1, width), -1.0)
    leftwards = torch.cat([image[:, :, 1:], black_column], dim=2)
    rightwards = torch.cat([black_column, image[:, :, :-1]], dim=2)
    upwards = torch.cat([image[:, 1:], black_row], dim=1)
    downwards = torch.cat([black_row, image[:, :-1]], dim=1)
    horizontal = changed(limits, image, 0, 0, sign, 0)
    vertical = changed(limits, image, 0, 0, 0, sign)
    assert torch.allclose(horizontal, leftwards if sign > 0 else rightwards, atol=1e-3)
    assert torch.allclose(vertical, upwards if sign > 0 else downwards, atol=1e-3)


def test_half_a_draw_moves_half_the_limit() -> None:
    image = numbered(8, 8)
    whole = changed(Augmentation(shift_pixels=1.0), image, 0, 0, 1.0, 0)
    half = changed(Augmentation(shift_pixels=2.0), image, 0, 0, 0.5, 0)
    assert torch.allclose(half, whole, atol=1e-3)
    assert torch.allclose(
        changed(Augmentation(shift_pixels=3.0), image, 1, 1, 0, 0), image, atol=1e-3
    )


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16), (16, 8)])
def test_a_rotation_turns_and_does_not_shear(height: int, width: int) -> None:
    """A quarter turn about the centre, whatever the sides: the middle square turns exactly."""
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = (slice(None), slice(top, top + side), slice(left, left + side))
    image = numbered(height, width)
    result = changed(Augmentation(rotation_degrees=90.0), image, 1, 0, 0, 0)[square]
    turned = [torch.rot90(image[square], quarter, (1, 2)) for quarter in (1, -1)]
    assert any(torch.allclose(result, expected, atol=1e-2) for expected in turned)
    back = changed(Augmentation(rotation_degrees=90.0), image, -1, 0, 0, 0)[square]
    assert torch.allclose(torch.rot90(back, 2, (1, 2)), result, atol=1e-2)


def test_a_scale_of_one_half_keeps_the_area_ratio() -> None:
    """A white square of 4 x 4 in the middle of 16 x 16 gets a side of 6, or of 2."""
    image = torch.full((1, 16, 16), -1.0)
    image[:, 6:10, 6:10] = 1.0
    limits = Augmentation(scale=0.5)
    for sign, side in ((1.0, 6.0), (-1.0, 2.0)):
        area = float((changed(limits, image, 0, sign, 0, 0) + 1).sum() / 2)
        assert area == pytest.approx(side**2, rel=0.1)


def test_black_has_a_value_of_its_own_in_every_channel() -> None:
    augment = BatchAffine(Augmentation(shift_pixels=50.0), fill=[-1.0, -2.0, 3.0])
    gone = augment(torch.rand(1, 3, 8, 8), [Fixed(0, 0, 1, 0)])  # type: ignore[list-item]
    assert torch.allclose(gone[0].mean((1, 2)), torch.tensor([-1.0, -2.0, 3.0]), atol=1e-5)


def test_a_sample_changes_the_same_whatever_its_neighbours() -> None:
    limits = Augmentation(shift_pixels=1.0, rotation_degrees=20.0, scale=0.2)
    augment, images = BatchAffine(limits, fill=[0.0]), torch.rand(6, 1, 8, 8)

    def generators(keys: Sequence[int]) -> list[np.random.Generator]:
        return [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    together = augment(images, generators(range(6)))
    for index in range(6):
        alone = augment(images[[index]], generators([index]))
        assert torch.allclose(alone[0], together[index], atol=1e-6)
        assert not torch.allclose(alone[0], images[index], atol=1e-2)
    backwards = augment(images.flip(0), generators(range(5, -1, -1)))
    assert torch.allclose(backwards.flip(0), together, atol=1e-6)
