"""Random changes of training images: each alone does its work, and nothing else."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.nn.functional import cross_entropy

from data.making import BYTES, GREY_BYTES, GREY_SETTINGS, SETTINGS, noise
from prenas.data.augmentation import (
    BatchAugmentation,
    Mixing,
    StagedTransform,
    evaluation_transform,
    needed_side,
    normalized,
    training_transform,
)
from prenas.families.vit.space import VitSettings
from prenas.randomness import isolated_global_state, numpy_generator
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import Augmentation, Preprocessing
from training.runs import global_state_untouched, value_error_of

PLAIN = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
BLACK = torch.tensor([-mean / std for mean, std in zip(PLAIN.mean, PLAIN.std, strict=True)])


def generators(number: int, epoch: int = 0) -> list[np.random.Generator]:
    return [numpy_generator(0, "sample", epoch, n) for n in range(number)]


def images(number: int, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(7))


def augmented(batch: Tensor, epoch: int = 0, **fields: Any) -> Tensor:
    augment = BatchAugmentation(Augmentation(**fields), PLAIN)
    with global_state_untouched():
        return augment(batch.clone(), generators(len(batch), epoch))


# --- pictures ------------------------------------------------------------------------------------


def draw(key: int, augmentation: Augmentation, image: Image.Image, grey: bool = False) -> Tensor:
    settings, preprocessing = (GREY_SETTINGS, GREY_BYTES) if grey else (SETTINGS, BYTES)
    transform = training_transform(augmentation, preprocessing, settings)
    with isolated_global_state(key, "test"):
        return transform(image)


def test_nothing_is_changed_by_default() -> None:
    image = noise(1, 30, 20)
    assert torch.equal(draw(0, Augmentation(), image), evaluation_transform(BYTES, SETTINGS)(image))
    batch = images(5)
    assert torch.equal(augmented(batch), batch)
    assert not Augmentation().changes_pictures


@pytest.mark.parametrize(("width", "height"), [(12, 8), (8, 12), (30, 30), (5, 40)])
@pytest.mark.parametrize("fields", [{"auto_augment": "rand-n0"}, {"color_jitter": 1e-9}])
def test_without_a_crop_scale_the_crop_is_that_of_evaluation(
    fields: dict[str, Any], width: int, height: int
) -> None:
    """Colours may change; what is cut out, and its shape, do not."""
    image = noise(3, width, height)
    expected = evaluation_transform(BYTES, SETTINGS)(image).int()
    found = draw(0, Augmentation(**fields), image).int()
    assert (found - expected).abs().max() <= 1


@given(
    sides=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    lowest=st.floats(0.05, 1),
    elongation=st.floats(1, 3),
)
def test_a_reduced_picture_still_has_the_pixels_of_every_crop(
    sides: tuple[int, int], lowest: float, elongation: float
) -> None:
    """The smallest crop is at least as large as the input, unless the picture was too small."""
    changes = Augmentation(crop_scale=(lowest, 1), crop_ratio=(1 / elongation, elongation))
    transform = training_transform(changes, BYTES, SETTINGS)
    assert isinstance(transform, StagedTransform)
    picture = Image.new("RGB", sides)
    kept = transform.fixed(picture)
    if kept is picture:
        assert min(sides) < 2 * needed_side(changes, SETTINGS)
    else:
        shorter = (kept.width * kept.height * lowest / elongation) ** 0.5
        assert shorter >= max(SETTINGS.image_size) * 0.999
        assert min(kept.size) < 2 * needed_side(changes, SETTINGS)


def test_a_picture_that_is_not_much_larger_than_needed_is_left_as_it_is() -> None:
    changes = Augmentation(crop_scale=(0.25, 1))
    side = needed_side(changes, SETTINGS)
    assert side == 19  # 8 pixels, times 2 for a quarter of the area, times 1.155 for 4:3
    transform = training_transform(changes, BYTES, SETTINGS)
    assert isinstance(transform, StagedTransform)
    for width, factor in ((2 * side - 1, 1), (2 * side, 2), (4 * side + 3, 4)):
        picture = noise(1, width, width)
        kept = transform.fixed(picture)
        expected = picture if factor == 1 else picture.reduce(factor)
        assert np.array_equal(np.asarray(kept), np.asarray(expected))


def test_a_random_crop_has_the_area_and_the_shape_asked_for() -> None:
    """On a picture that tells where each pixel comes from: red grows right, green downwards."""
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None], np.arange(200)[:, None]
    settings = VitSettings(image_size=(32, 32), num_classes=2, patch_size=4)
    recipe = Augmentation(crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2.0))
    nearest = BYTES.model_copy(update={"interpolation": "nearest"})
    transform = training_transform(recipe, nearest, settings)
    areas, ratios, corners = [], [], []
    for key in range(200):
        with isolated_global_state(key, "crop"):
            cut = transform(Image.fromarray(ramp)).float()
        width, height = (
            float(cut[channel].max() - cut[channel].min()) * 32 / 31 for channel in (0, 1)
        )
        areas.append(width * height / 200**2)
        ratios.append(width / height)
        corners.append(float(cut[0].min()))
    assert 0.17 < min(areas) < 0.25 < 0.42 < max(areas) < 0.55
    assert 0.45 < min(ratios) < 0.65 < 1.5 < max(ratios) < 2.2
    assert max(corners) - min(corners) > 50


def test_color_jitter_changes_colours_and_moves_nothing() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = (200, 100, 50)
    found = [
        draw(key, Augmentation(color_jitter=0.4), Image.fromarray(pixels)) for key in range(20)
    ]
    assert len({tuple(one.flatten().tolist()) for one in found}) == 20
    for one in found:
        for half in (one[:, :, :4], one[:, :, 4:]):
            assert (half.flatten(1).amax(1) == half.flatten(1).amin(1)).all()


def test_auto_augment_takes_the_place_of_color_jitter() -> None:
    both = Augmentation(auto_augment="rand-n0", color_jitter=0.4)
    image = noise(1, 8, 8)
    assert torch.equal(draw(0, both, image), draw(0, Augmentation(), image))


POLICIES = [
    "rand-n3-m10-mstd0.5-inc1",
    "rand-m9-mstd0.5-inc1",
    "rand-m6-mstd0.5-inc1",
    "rand-m9",
    "v0",
    "v0r-mstd0.5",
    "original",
    "originalr",
    "original-mstd0.5",
    "3a",
    "augmix-m3-w3",
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("grey", [False, True])
def test_policies_change_pictures(policy: str, grey: bool) -> None:
    """The published ones too, at every strength that they may draw: none ever fails."""
    image = noise(1, 12, 10).convert("L" if grey else "RGB")
    augmentation = Augmentation(auto_augment=policy)
    found = [draw(key, augmentation, image, grey) for key in range(100)]
    assert {tuple(one.shape) for one in found} == {(1 if grey else 3, 8, 8)}
    assert {one.dtype for one in found} == {torch.uint8}
    assert len({tuple(one.flatten().tolist()) for one in found}) > 10
    assert torch.equal(draw(5, augmentation, image, grey), found[5])


@pytest.mark.parametrize("recipe", ["imagenet-tiny", "imagenet-small", "imagenet-base", "photos"])
def test_policies_of_recipes_are_readable(recipe: str) -> None:
    data = get_recipe(recipe).data
    assert data is not None
    assert data.augmentation.auto_augment
    draw(0, data.augmentation, noise(1, 30, 20))


@pytest.mark.parametrize(
    "policy",
    ["rnd-m9", "rand-q9", "rand-m9-x3", "rand-m", "rand-m9-mstdx", "v1", "v0r-foo2", "original-m"],
)
def test_unreadable_policies_are_refused_in_words(policy: str) -> None:
    message = value_error_of(lambda: draw(0, Augmentation(auto_augment=policy), noise(1)))
    assert message is not None
    for words in ("data.augmentation.auto_augment", repr(policy), "rand-m9-mstd0.5-inc1"):
        assert words in message


# --- moved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (9, 5), (224, 224)])
def test_a_flip_mirrors_left_to_right(height: int, width: int) -> None:
    batch = images(2, height, width)
    assert torch.allclose(augmented(batch, flip=1.0), batch.flip(-1), atol=1e-3)


def test_half_of_the_images_are_flipped() -> None:
    batch = images(400)
    found = augmented(batch, flip=0.5)
    mirrored = (found - batch.flip(-1)).abs().amax((1, 2, 3)) < 1e-3
    same = (found - batch).abs().amax((1, 2, 3)) < 1e-3
    assert (mirrored ^ same).all()
    assert 160 < int(mirrored.sum()) < 240


def shifts(found: Tensor, batch: Tensor, most: int) -> list[tuple[int, int]]:
    """(right, down) of every image, by comparing with the crops of the padded ones."""
    padded = BLACK[None, :, None, None].expand(
        len(batch), 3, batch.shape[2] + 2 * most, batch.shape[3] + 2 * most
    )
    padded = padded.clone()
    padded[:, :, most:-most, most:-most] = batch
    result = []
    for image, whole in zip(found, padded, strict=True):
        matches = [
            (right, down)
            for right, down in product(range(-most, most + 1), repeat=2)
            if torch.allclose(
                image,
                whole[
                    :,
                    most - down : most - down + batch.shape[2],
                    most - right : most - right + batch.shape[3],
                ],
                atol=1e-3,
            )
        ]
        assert len(matches) == 1
        result += matches
    return result


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10)])
def test_crop_padding_is_the_random_crop_of_a_padded_image(height: int, width: int) -> None:
    """Whole pixels, black from outside, every shift equally likely."""
    batch = images(1000, height, width)
    found = shifts(augmented(batch, crop_padding=2), batch, 2)
    counts = [found.count(shift) for shift in product(range(-2, 3), repeat=2)]
    assert chisquare(counts).pvalue > 1e-3
    joint = augmented(batch[:50], crop_padding=2, flip=1.0)
    assert len(set(shifts(joint, batch[:50].flip(-1), 2))) > 10


def test_half_of_the_shifted_images_are_flipped() -> None:
    """Flips are drawn after the shifts, which are therefore the same without them."""
    batch = images(400)
    shifted = augmented(batch, crop_padding=2)
    found = augmented(batch, crop_padding=2, flip=0.5)
    mirrored = (found == shifted.flip(-1)).all(3).all(2).all(1)
    assert (mirrored ^ (found == shifted).all(3).all(2).all(1)).all()
    assert 160 < int(mirrored.sum()) < 240


def test_draws_belong_to_the_sample() -> None:
    """Not to its place in the batch, nor to what else is there."""
    fields = {"flip": 0.5, "crop_padding": 2, "rotation_degrees": 10.0, "erasing": 0.5}
    augment = BatchAugmentation(Augmentation(**fields), PLAIN)  # type: ignore[arg-type]
    batch = images(12)
    together = augment(batch.clone(), generators(12))
    for index in (0, 5, 11):
        alone = augment(batch[[index]], [generators(12)[index]])
        assert torch.allclose(alone[0], together[index], atol=1e-5)
    assert not torch.allclose(augment(batch.clone(), generators(12, epoch=1)), together)


# --- erased --------------------------------------------------------------------------------------


def erased(mode: str = "const", count: int = 1, probability: float = 1.0) -> tuple[Tensor, Tensor]:
    """(images, which pixels changed) of ones of 32 x 32."""
    batch = torch.full((400, 3, 32, 32), 5.0)
    found = augmented(batch, erasing=probability, erasing_mode=mode, erasing_count=count)
    return found, (found != 5).any(1)


def test_erasing_fills_one_rectangle_with_the_mean() -> None:
    found, changed = erased()
    areas = changed.sum((1, 2)) / 32**2
    for image, mask in zip(found, changed, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert (image[:, mask] == 0).all()  # the mean, after normalisation
    assert 0.01 < float(areas.min()) < float(areas.max()) < 0.36  # 2 % to a third
    assert 0.12 < float(areas.mean()) < 0.22


def test_erasing_with_numbers_per_pixel_or_rectangle() -> None:
    found, changed = erased("pixel")
    values = torch.cat(
        [image[:, mask].flatten() for image, mask in zip(found, changed, strict=True)]
    )
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02
    found, changed = erased("rand")
    for image, mask in zip(found, changed, strict=True):
        fill = image[:, mask]
        assert (fill == fill[:, :1]).all()
        assert len(fill[:, 0].unique()) == 3


@pytest.mark.parametrize(
    ("probability", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 70, 130)]
)
def test_erasing_happens_with_its_probability(probability: float, low: int, high: int) -> None:
    assert low <= int(erased(probability=probability)[1].any((1, 2)).sum()) <= high


def test_several_rectangles_share_the_area() -> None:
    """One to three, equally likely; together as large as one."""
    found, changed = erased("rand", count=3)
    kinds = [len(image[0][mask].unique()) for image, mask in zip(found, changed, strict=True)]
    counts = [kinds.count(number) for number in (1, 2, 3)]
    assert sum(counts) == 400
    assert min(counts) > 80
    assert 0.1 < float((changed.sum((1, 2)) / 32**2).mean()) < 0.22


# --- mixed ---------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])


def mixed(
    batch: Tensor, labels: Tensor = LABELS, key: int = 0, **fields: Any
) -> tuple[Tensor, Tensor]:
    mixing = Mixing(Augmentation(**fields), num_classes=9)
    with isolated_global_state(key, "test"):
        return mixing(batch.clone(), labels)


MODES = ("batch", "pair", "elem")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fields", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_is_timms(mode: str, fields: dict[str, float]) -> None:
    """With the same global state, to the bit."""
    batch = images(8)
    for key in range(10):
        found, shares = mixed(batch, key=key, mixing_mode=mode, **fields)
        theirs = Mixup(
            mixup_alpha=fields.get("mixup", 0.0),
            cutmix_alpha=fields.get("cutmix", 0.0),
            mode=mode,
            label_smoothing=0.0,
            num_classes=9,
        )
        with isolated_global_state(key, "test"):
            expected, expected_shares = theirs(batch.clone(), LABELS)
        assert torch.equal(found, expected)
        assert torch.equal(shares, expected_shares)


@pytest.mark.parametrize("mode", MODES)
def test_mixup_averages_with_the_image_from_the_other_end(mode: str) -> None:
    """x_i * a + x_(B-1-i) * (1 - a), and labels alike."""
    batch = images(8)
    weights = set()
    for key in range(20):
        found, shares = mixed(batch, key=key, mixing_mode=mode, mixup=0.8)
        assert torch.allclose(shares.sum(1), torch.ones(8), atol=1e-6)
        for i in range(8):
            weight = shares[i, LABELS[i]]
            weights.add(round(float(weight), 4))
            assert shares[i, LABELS[7 - i]] == pytest.approx(1 - float(weight), abs=1e-6)
            expected = batch[i] * weight + batch[7 - i] * (1 - weight)
            assert torch.allclose(found[i], expected, atol=1e-5)
    assert len(weights) > {"batch": 19, "pair": 70, "elem": 140}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_cutmix_labels_are_the_shares_of_the_area(mode: str) -> None:
    batch = images(8, 16, 16)
    for key in range(20):
        found, shares = mixed(batch, key=key, mixing_mode=mode, cutmix=1.0)
        for i in range(8):
            own = (found[i] == batch[i]).all(0)
            other = (found[i] == batch[7 - i]).all(0)
            assert (own | other).all()
            assert float(shares[i, LABELS[i]]) == pytest.approx(float(own.float().mean()), abs=1e-4)
            assert float(shares[i].sum()) == pytest.approx(1)


@pytest.mark.parametrize("number", [1, 3, 7])
@pytest.mark.parametrize("mode", MODES)
def test_the_last_image_of_an_odd_batch_stays(number: int, mode: str) -> None:
    batch, labels = images(number), LABELS[:number]
    found, shares = mixed(batch, labels, mixing_mode=mode, mixup=1.0)
    assert torch.equal(found[-1], batch[-1])
    assert shares[-1].tolist() == [float(n == labels[-1]) for n in range(9)]
    assert shares.shape == (number, 9)
    if number > 1:
        assert not torch.equal(found[0], batch[0])


@pytest.mark.parametrize("mode", MODES)
def test_without_probability_labels_are_one_hot(mode: str) -> None:
    batch = images(8)
    found, shares = mixed(batch, mixing_mode=mode, mixup=1.0, cutmix=1.0, mixing_prob=0.0)
    assert torch.equal(found, batch)
    assert torch.equal(shares, torch.eye(9)[:8])


@pytest.mark.parametrize(("switch", "is_cut"), [(0.0, False), (1.0, True)])
def test_the_switch_chooses_between_the_two(switch: float, is_cut: bool) -> None:
    batch = images(8, 16, 16)
    fields = {"mixup": 1.0, "cutmix": 1.0, "mixing_switch": switch, "mixing_mode": "elem"}
    found, _ = mixed(batch, **fields)
    taken = (found == batch) | (found == batch.flip(0))
    assert bool(taken.all()) == is_cut


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothing_mixed_labels_is_timms_formula(smoothing: float) -> None:
    """Shares here, smoothing in the loss: the same loss as timm's smoothed targets give."""
    logits = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    _, shares = mixed(images(8), mixup=0.8)
    weight = float(shares[0, 0])
    targets = mixup_target(LABELS, 9, weight, smoothing)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    found = cross_entropy(logits, shares, label_smoothing=smoothing)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


# --- numbers -------------------------------------------------------------------------------------


def test_normalising_is_scaling_minus_mean_over_deviation() -> None:
    pixels = torch.tensor([[[0, 255]], [[51, 102]], [[204, 1]]], dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(PLAIN.mean).double()[:, None, None]) / (
        torch.tensor(PLAIN.std).double()[:, None, None]
    )
    assert torch.allclose(normalized(pixels, PLAIN).double(), expected, atol=1e-6)
    assert pixels.dtype == torch.uint8
    crops = torch.stack([pixels, pixels])
    assert torch.equal(normalized(crops, PLAIN)[1], normalized(pixels, PLAIN))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"crop_scale": (0.5, 1.5)}, "at most 1"),
        ({"crop_scale": (0.5, 0.1)}, "smaller one first"),
        ({"crop_scale": (0.0, 1.0)}, "positive"),
        ({"crop_ratio": (2.0, 1.0)}, "smaller one first"),
        ({"flip": 1.1}, "flip"),
        ({"erasing": -0.1}, "erasing"),
        ({"erasing_count": 0}, "erasing_count"),
        ({"erasing_mode": "mean"}, "erasing_mode"),
        ({"mixing_mode": "half"}, "mixing_mode"),
        ({"repeats": 0}, "repeats"),
        ({"crop_padding": 0.5}, "crop_padding"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Augmentation(**fields)


@pytest.mark.parametrize("crops", [1, 5, 10])
def test_transforms_can_be_sent_to_other_processes(crops: int) -> None:
    """As processes that are not forked need it."""
    import pickle

    transform = evaluation_transform(Preprocessing(), VitSettings(image_size=(32, 32)), crops)
    picture = noise(1, 50, 40)
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again(picture), transform(picture))
