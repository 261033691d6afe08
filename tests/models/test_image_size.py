"""Other image sizes: convolutional networks take them, as timm's do, and others say why not."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from typer.testing import CliRunner

from data.making import noise, write
from families.drawing import assert_equal, fill_as_trained, timm_space
from models.handed_over import drawn_model, model_of
from prenas.cli import app
from prenas.cost import count
from prenas.devices.exporting import export
from prenas.devices.prediction import predict
from prenas.families import build, get_space
from prenas.families.base import SearchSpace
from prenas.families.vit.space import VitSpace
from prenas.models.export import load, load_described, load_timm
from prenas.models.image_size import at_image_size
from prenas.models.measurement import measure

SIZE = 64
SPACE = timm_space("test_efficientnet", SIZE)
RESIZING = SPACE.model_copy(update={"resolution": (40, SIZE)})
"""Its smallest network resizes images of 64 x 64 pixels to 40 x 40."""
ROTARY = timm_space("vit_tiny_patch16_dinov3_qkvb", SIZE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_model(SPACE, SPACE.largest, tmp_path_factory.mktemp("whole") / "00")


@pytest.fixture(scope="module")
def resizing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_model(RESIZING, RESIZING.smallest, tmp_path_factory.mktemp("cut") / "00")


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_lite0"])
def test_a_whole_network_computes_what_timms_does_at_any_size(name: str, tmp_path: Path) -> None:
    """In odd sizes too, in which the `tf_` models pad by the size of the image."""
    space = timm_space(name, SIZE)
    model = drawn_model(space, space.largest, tmp_path / "model")
    theirs = timm.create_model(name, num_classes=5).eval()
    theirs.load_state_dict(load(model).network.state_dict())
    for size in (57, (64, 80)):
        network, transform = load(model, image_size=size)
        images = transform(noise(1, 90, 70))[None]
        assert images.shape[2:] == (size if isinstance(size, tuple) else (size, size))
        with torch.inference_mode():
            # In double precision, because random weights of a deep network amplify rounding.
            assert_equal(network.double()(images.double()), theirs.double()(images.double()), 1e-9)


def test_a_cut_computes_what_timms_own_class_does(tmp_path: Path) -> None:
    model = drawn_model(SPACE, SPACE.smallest, tmp_path / "cut")
    ours, theirs = (one(model, image_size=96) for one in (load, load_timm))
    images = ours.transform(noise(2, 120, 100))[None]
    assert torch.equal(images, theirs.transform(noise(2, 120, 100))[None])
    with torch.inference_mode():
        assert_equal(theirs.network(images), ours.network(images), 1e-5)
        with pytest.raises(ValueError, match=r"expects \(batch, 3 channels, 64, 64\)"):
            load(model).network(images)  # never by accident


@pytest.mark.parametrize("size", [40, SIZE, 96])
def test_a_network_that_resized_its_images_computes_at_the_given_size(
    size: int, resizing: Path
) -> None:
    (network, transform), description = load_described(resizing, image_size=size)
    plain = RESIZING.smallest.model_copy(update={"resolution": None})
    settings = RESIZING.settings.changed(image_size=size)
    assert (description.arch, description.settings) == (plain, settings)
    expected = build(plain, settings).eval()
    expected.load_state_dict(load(resizing).network.state_dict())
    images = transform(noise(3, 110, 90))[None]
    with torch.inference_mode():
        assert images.shape[2:] == (size, size)
        assert torch.equal(network(images), expected(images))


def test_our_convolutional_networks_compute_what_timms_do(tmp_path: Path) -> None:
    space = get_space("mobilenet-micro").with_settings(shortcut="identity")
    model = drawn_model(space, space.largest, tmp_path / "model")
    side = space.settings.image_size[0]
    for size in (side // 2 + 1, 2 * side):
        images = torch.randn(2, space.settings.in_chans, size, size)
        with torch.inference_mode():
            expected = load_timm(model, image_size=size).network(images)
            assert_equal(load(model, image_size=size).network(images), expected, 1e-5)


def test_pictures_are_cropped_in_the_same_proportions(model: Path) -> None:
    description = load_described(model, image_size=96).description
    preprocessing = description.preprocessing
    assert preprocessing == load_described(model).description.preprocessing
    expected = create_transform(
        (3, 96, 96),
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    picture = noise(4, 130, 170)
    found = load(model, image_size=96).transform(picture)
    assert torch.allclose(found, expected(picture), atol=1e-6)


# --- refusals ------------------------------------------------------------------------------------


def _vit(image_size: Any) -> VitSpace:
    return get_space("digits").with_settings(image_size=image_size, patch_size=4)


@pytest.mark.parametrize(
    ("space", "size", "reason"),
    [
        pytest.param(_vit(16), 32, "its tensor pos_embed was trained", id="vit"),
        pytest.param(_vit((4, 16)), 8, "its tensor pos_embed was trained", id="as many patches"),
        pytest.param(timm_space("test_vit", 64), 96, "its tensor pos_embed", id="timm's vit"),
        pytest.param(timm_space("mixer_s32_224", 64), 96, "blocks.0.mlp_tokens", id="mixer"),
        pytest.param(SPACE, 0, "height and width must be positive", id="nothing"),
        pytest.param(SPACE, 5000, "at most 4,096 pixels", id="too large"),
        pytest.param(ROTARY, 57, "57 x 57 pixels .*patch", id="odd"),
    ],
)
def test_an_impossible_size_is_refused_with_the_reason(
    space: SearchSpace, size: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        at_image_size(space.largest, space.settings, size)
    own = space.settings.image_size
    assert at_image_size(space.largest, space.settings, own) == (space.largest, space.settings)


def test_rotary_positions_suit_any_grid() -> None:
    """timm's class, which was made for 64 pixels and is given more, computes the same."""
    arch, settings = at_image_size(ROTARY.largest, ROTARY.settings, 96)
    ours = fill_as_trained(build(arch, settings)).double()
    trained = build(ROTARY.largest, ROTARY.settings)
    trained.load_state_dict(ours.state_dict())
    trained.settings = settings  # only what our check of the images reads
    images = torch.randn(1, 3, 96, 96).double()
    with torch.inference_mode():
        assert_equal(ours(images), trained.double().eval()(images), 1e-9)


# --- commands ------------------------------------------------------------------------------------


def test_predictions_and_accuracies_are_those_at_the_given_size(
    model: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path, [f"{name}/{name}{n}.png" for name in "abcde" for n in range(3)])
    network, transform = load(model, image_size=96)
    found = list(predict(model, [folder], top=1, image_size=96, batch_size=4))
    right = 0
    for one in found:
        with Image.open(one.path) as picture, torch.inference_mode():
            shares = network(transform(picture)[None])[0].softmax(0)
        name = "abcde"[int(shares.argmax())]
        assert one.classes[0] == (name, pytest.approx(float(shares.max()), rel=1e-4))
        right += name == one.path.parent.name
    evaluated = measure(model, [str(folder)], image_size=96)
    assert evaluated.splits["all"].top1 == pytest.approx(right / len(found))
    assert evaluated.costs == count(SPACE.largest, SPACE.settings.changed(image_size=96))
    assert evaluated.splits["all"].loss != measure(model, [str(folder)]).splits["all"].loss

    printed = run("predict", model, folder, "--image-size", 96, "--format", "csv", "--top", 1)
    assert printed.stdout.count(".png") == len(found)
    share = found[0].classes[0][1]
    assert float(printed.stdout.splitlines()[1].split(",")[2]) == pytest.approx(share, rel=1e-4)
    shown = run("evaluate", model, "--data", folder, "--image-size", 96)
    assert f"{100 * right / len(found):.2f}" in shown.output


def test_what_has_one_size_only_says_so(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "a.png")
    folder, _ = export(model_of(tmp_path / "model"), "torch")
    with pytest.raises(ValueError, match="an exported file, which takes images of 8 x 8 pixels"):
        predict(folder, [tmp_path / "a.png"], image_size=96)
    assert next(predict(folder, [tmp_path / "a.png"])).error is None
    (tmp_path / "run").mkdir()
    result = run("evaluate", tmp_path / "run", "--image-size", 96)
    assert "--image-size needs a handed-over model" in str(result.exception)
