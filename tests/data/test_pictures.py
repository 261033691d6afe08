"""Pictures of every kind: what the network sees of them, and what is refused, by name."""

import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.making import (
    BYTES,
    GREY_BYTES,
    GREY_SETTINGS,
    SETTINGS,
    everything,
    loaded,
    noise,
    recipe,
    write,
)
from prenas.data import load_data, training_batches
from prenas.data.augmentation import evaluation_transform
from prenas.data.opening import warnings_named
from prenas.data.pictures import (
    ArrayPictures,
    Pictures,
    PictureSet,
    Pixels,
    prepare,
    with_channels,
)
from prenas.families.vit.space import VitSettings
from prenas.models.export import EvaluationTransform
from prenas.recipe.data import Augmentation, Preprocessing
from training.runs import value_error_of

COLOUR, OTHER = (200, 100, 50), (10, 220, 90)


def plain(mode: str = "RGB", colour: object = COLOUR) -> Image.Image:
    return Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]


def palette(path: Path) -> None:
    image = plain().quantize(4)
    image.info["transparency"] = 3
    image.save(path)


def half_transparent_palette(path: Path) -> None:
    """A transparency per entry, as PNG has it."""
    plain().quantize(4).save(path, transparency=bytes([128, 255, 0, 7]))


SAVERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "rgb": ("png", lambda path: plain().save(path)),
    "rgba": ("png", lambda path: plain("RGBA", (*COLOUR, 128)).save(path)),
    "palette": ("png", palette),
    "palette-gif": ("gif", palette),
    "palette-alphas": ("png", half_transparent_palette),
    "jpeg": ("jpg", lambda path: plain().save(path, quality=100, subsampling=0)),
    "cmyk": ("jpg", lambda path: plain("CMYK", (55, 155, 205, 0)).save(path, quality=100)),
    "cmyk-tiff": ("tiff", lambda path: plain("CMYK", (55, 155, 205, 0)).save(path)),
    "webp": ("webp", lambda path: plain().save(path, lossless=True)),
    "bmp": ("bmp", lambda path: plain().save(path)),
    "ycbcr": ("tif", lambda path: plain().convert("YCbCr").save(path)),
}
GREYS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "grey": ("png", lambda path: plain("L", 77).save(path)),
    "grey-alpha": ("png", lambda path: plain("LA", (77, 9)).save(path)),
    "black-and-white": ("png", lambda path: plain("1", 1).save(path)),
}


def set_of(tmp_path: Path, ending: str, save: Callable[[Path], None]) -> Path:
    """Train, validation and test of one such picture and of ordinary ones."""
    places = {"train": "2", "val": "1"}
    root = write(tmp_path / "set", [f"{s}/{k}/{n}.png" for s, n in places.items() for k in "ab"])
    for split, number in places.items():
        (root / f"{split}/a/{number}.png").unlink()
        save(root / f"{split}/a/{number}.{ending}")
    return root


# --- kinds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAVERS)
def test_every_kind_of_picture_is_seen_in_its_colour(kind: str, tmp_path: Path) -> None:
    images, _ = everything(loaded(set_of(tmp_path, *SAVERS[kind])).validation)
    assert (images[0].amax((1, 2)) - images[0].amin((1, 2))).max() <= 1
    assert images[0].mean((1, 2)).tolist() == pytest.approx(COLOUR, abs=3)


@pytest.mark.parametrize(
    ("kind", "value"), [("grey", 77), ("grey-alpha", 77), ("black-and-white", 255)]
)
def test_grey_pictures_are_grey_in_every_channel(kind: str, value: int, tmp_path: Path) -> None:
    images, _ = everything(loaded(set_of(tmp_path, *GREYS[kind])).validation)
    assert torch.allclose(images[0], torch.tensor(float(value)), atol=1e-3)


@pytest.mark.parametrize("kind", [*SAVERS, *GREYS])
def test_a_grey_network_sees_the_luminance(kind: str, tmp_path: Path) -> None:
    """0.299 R + 0.587 G + 0.114 B."""
    root = set_of(tmp_path, *{**SAVERS, **GREYS}[kind])
    found = load_data(recipe(root, preprocessing=GREY_BYTES), GREY_SETTINGS)
    images, _ = everything(found.validation, GREY_SETTINGS)
    greys = {"grey": 77, "grey-alpha": 77, "black-and-white": 255}
    expected = greys.get(kind, 0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert images.shape[1:] == (1, 8, 8)
    assert float(images[0].mean()) == pytest.approx(expected, abs=2)


# --- animated ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "options"), [("gif", {}), ("webp", {"lossless": True}), ("png", {})]
)
def test_of_animated_pictures_the_first_frame_is_used_and_noted(
    ending: str, options: dict[str, bool], tmp_path: Path
) -> None:
    def save(path: Path) -> None:
        frames = [plain(colour=OTHER), plain(colour=(0, 0, 255))]
        plain().save(path, save_all=True, append_images=frames, duration=50, **options)

    found = loaded(set_of(tmp_path, ending, save))
    images, _ = everything(found.validation)
    assert images[0].mean((1, 2)).tolist() == pytest.approx(COLOUR, abs=3)
    assert found.notes == (
        "train: 1 picture is animated: only the first frame is used",
        "validation: 1 picture is animated: only the first frame is used",
    )


@pytest.mark.parametrize(("ending", "kind"), [("jpg", "MPO"), ("tiff", "TIFF")])
def test_previews_and_pages_are_no_animation(ending: str, kind: str, tmp_path: Path) -> None:
    """As in the JPEGs of many telephones."""

    def save(path: Path) -> None:
        plain().save(path, kind, save_all=True, append_images=[plain(colour=OTHER)])

    found = loaded(set_of(tmp_path, ending, save))
    images, _ = everything(found.validation)
    assert images[0].mean((1, 2)).tolist() == pytest.approx(COLOUR, abs=3)
    assert found.notes == ()


# --- unreadable ----------------------------------------------------------------------------------


def deep(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)


def floating(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(path)


def cut(path: Path) -> None:
    noise(3, 64, 64).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def bomb(path: Path) -> None:
    """A PNG that says it is 30,000 x 30,000."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"0" * 100)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


BAD: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "16-bit": ("png", deep, "more than 8 bits"),
    "16-bit-tiff": ("tif", deep, "more than 8 bits"),
    "float": ("tiff", floating, "more than 8 bits"),
    "truncated": ("jpg", cut, "truncated"),
    "truncated-png": ("png", cut, "truncated"),
    "text": (
        "jpg",
        lambda path: path.write_text("no picture") and None,
        "not a supported picture format",
    ),
    "empty": ("png", Path.touch, "not a supported picture format"),
    "bomb": ("png", bomb, "decompression bomb"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
@pytest.mark.filterwarnings("ignore:Image size")
def test_unreadable_pictures_are_refused_by_name(
    kind: str, memory_gib: float, tmp_path: Path
) -> None:
    """In memory at once, with all that there are; on disk when their turn comes."""
    ending, save, reason = BAD[kind]
    root = set_of(tmp_path, ending, save)
    message = value_error_of(lambda: everything(loaded(root, memory_gib=memory_gib).validation))
    assert message is not None
    for words in (f"a/1.{ending}", reason, "data.unreadable=skip"):
        assert words in message
    if memory_gib:
        assert "2 of 4 pictures cannot be read" in message  # validation and test are the same


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """13 unreadable pictures among 20 of a class in validation; every second one first."""
    root = write(
        tmp_path / "set",
        [
            f"{split}/{kind}/{n:02d}.png"
            for split in ("train", "val")
            for kind in "ab"
            for n in range(20)
        ],
    )
    for number in range(20):
        for kind in "ab":
            noise(1000 + number).save(root / f"val/{kind}/{number:02d}.png")  # not as in training
    for number in (*range(0, 20, 2), 15, 17, 19):
        (root / f"val/a/{number:02d}.png").write_text("broken")
    return root


def test_a_message_counts_all_and_names_ten(broken: Path) -> None:
    message = value_error_of(lambda: loaded(broken))
    assert message is not None
    assert "13 of 80 pictures cannot be read" in message
    assert message.count("not a supported picture format") == 10
    assert "a/00.png" in message
    assert "and 3 more" in message
    assert len(message) < 2000


WAYS = {
    "resized in memory": {},
    "on disk": {"memory_gib": 0.0},
    "decoded in memory": {"crops": 5},
    "crops on disk": {"crops": 5, "memory_gib": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_skipping_leaves_exactly_the_unreadable_out(way: str, broken: Path) -> None:
    """However an evaluated split is held: no picture counts twice in an accuracy."""
    found = loaded(broken, unreadable="skip", **WAYS[way])
    images, labels = everything(found.validation)
    whole = write(broken.parent / "whole", ["train/a/1.png", "train/b/1.png"])
    (whole / "val").mkdir()
    for kind in "ab":
        (whole / "val" / kind).mkdir()
        for path in (broken / "val" / kind).iterdir():
            if path.stat().st_size > 10:
                (whole / "val" / kind / path.name).write_bytes(path.read_bytes())
    expected, expected_labels = everything(loaded(whole, **WAYS[way]).validation)
    assert len(labels) == 27
    assert torch.equal(labels, expected_labels)
    assert torch.equal(images, expected)
    (note,) = found.notes
    assert "validation: 13 of 40 pictures cannot be read" in note
    assert "They are skipped" in note


def test_a_training_picture_on_disk_is_replaced_by_the_next(
    broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (broken / "train/b/19.png").write_text("broken")
    (broken / "train/a/03.png").write_text("broken")
    found = loaded(broken, unreadable="skip", memory_gib=0.0)
    assert isinstance(found.train, Pictures)
    batches = list(training_batches(found, SETTINGS, 7, 0, 0))
    assert sum(len(batch.labels) for batch in batches) == 40
    for index, stands in ((39, 0), (3, 4), (5, 5)):
        image, label = found.train[index]
        other, other_label = found.train[stands]
        assert torch.equal(image, other)
        assert label == other_label
    assert "cannot read picture a/03.png" in caplog.text
    assert "using the next one instead" in caplog.text


def test_a_set_without_any_readable_picture_on_disk_says_so(tmp_path: Path) -> None:
    root = write(tmp_path / "set", [f"{s}/{k}/1.png" for s in ("train", "val") for k in "ab"])
    found = loaded(root, unreadable="skip", memory_gib=0)
    for path in (root / "train").rglob("*.png"):
        path.write_text("broken")
    with pytest.raises(ValueError, match="none of the 2 pictures can be read"):
        list(training_batches(found, SETTINGS, 2, 0, 0))


# --- three ways of holding -----------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures of many sizes, shapes and kinds."""
    root = tmp_path / "mixed"
    sizes = [(8, 8), (1, 1), (3, 40), (40, 3), (17, 9), (100, 80), (7, 7)]
    for split in ("train", "val", "test"):
        for label, kind in enumerate("ab"):
            (root / split / kind).mkdir(parents=True)
            for number, (width, height) in enumerate(sizes):
                image = noise(number + 100 * label + len(split), width, height)
                ending = ("png", "jpg", "webp")[number % 3]
                mode = ("RGB", "L", "RGB", "RGBA" if ending == "png" else "RGB")[number % 4]
                image.convert(mode).save(root / split / kind / f"{number}.{ending}")
    return root


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 4)])
@pytest.mark.parametrize(
    "preprocessing",
    [
        BYTES,
        Preprocessing(),
        Preprocessing(crop_pct=0.5, interpolation="bilinear"),
        Preprocessing(interpolation="nearest"),
    ],
)
def test_three_ways_of_holding_give_the_same_images(
    grey: bool, size: tuple[int, int], preprocessing: Preprocessing, mixed: Path
) -> None:
    """To the bit; and the same as the transform of a handed-over model, picture by picture."""
    if grey:
        preprocessing = preprocessing.model_copy(update={"mean": (0.4,), "std": (0.3,)})
    settings = VitSettings(image_size=size, in_chans=1 if grey else 3, num_classes=2, patch_size=4)
    fields = {"preprocessing": preprocessing, "num_workers": 0}
    resized = load_data(recipe(mixed, **fields), settings)
    on_disk = load_data(recipe(mixed, memory_gib=0, **fields), settings)
    assert isinstance(resized.validation, Pixels)
    assert isinstance(on_disk.validation, Pictures)
    transform = EvaluationTransform(settings, preprocessing)
    paths = sorted((mixed / "val").rglob("*.*"))
    by_hand = torch.stack([transform(Image.open(path)) for path in paths])
    for found in (resized, on_disk):
        images, labels = everything(found.validation, settings)
        assert torch.equal(images, by_hand)
        assert labels.tolist() == [0] * 7 + [1] * 7
    crops = load_data(recipe(mixed, crops=5, **fields), settings)
    decoded, _ = everything(crops.validation, settings)
    assert torch.equal(decoded[:, 4], by_hand)  # the fifth is the centre


@pytest.mark.parametrize("crops", [5, 10])
def test_crops_are_corners_centre_and_mirror_images(crops: int, tmp_path: Path) -> None:
    """Of a picture of 16 x 12, resized to 16 x 12: nothing is interpolated."""
    names = [f"{split}/{kind}/1.png" for split in ("train", "val") for kind in "ab"]
    root = tmp_path / "set"
    for key, name in enumerate(names):
        (root / name).parent.mkdir(parents=True)
        noise(key, 16, 12).save(root / name)
    found = loaded(root, crops=crops, preprocessing=BYTES.model_copy(update={"crop_pct": 8 / 12}))
    assert found.num_crops == crops
    images, _ = everything(found.validation)
    whole = torch.from_numpy(np.array(noise(2, 16, 12))).permute(2, 0, 1).float()

    def cut_at(top: int, left: int) -> Tensor:
        return whole[:, top : top + 8, left : left + 8]

    expected = [cut_at(0, 0), cut_at(0, 8), cut_at(4, 0), cut_at(4, 8), cut_at(2, 4)]
    if crops == 10:
        expected += [
            crop.flip(-1)
            for crop in (cut_at(0, 8), cut_at(0, 0), cut_at(4, 8), cut_at(4, 0), cut_at(2, 4))
        ]
    assert images.shape == (2, crops, 3, 8, 8)
    assert torch.allclose(images[0], torch.stack(expected), atol=1e-3)


def test_training_pictures_are_held_decoded_where_they_are_augmented(tmp_path: Path) -> None:
    """The file may go: nothing is read again."""
    root = write(tmp_path / "set", [f"{s}/{k}/1.png" for s in ("train", "val") for k in "ab"])
    changes = Augmentation(crop_scale=(0.5, 1))
    held = loaded(root, augmentation=changes)
    on_disk = loaded(root, augmentation=changes, memory_gib=0)
    left, right = (
        torch.cat([b.images for b in training_batches(data, SETTINGS, 2, 1, 0)])
        for data in (held, on_disk)
    )
    assert torch.equal(left, right)
    for path in root.rglob("*.png"):
        path.unlink()
    again = torch.cat([b.images for b in training_batches(held, SETTINGS, 2, 1, 0)])
    assert torch.equal(again, left)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        (Augmentation(crop_scale=(0.25, 1)), (30, 20)),
        (Augmentation(color_jitter=0.4), (8, 8)),
    ],
)
def test_large_photographs_are_held_as_large_as_training_needs(
    changes: Augmentation, size: tuple[int, int], tmp_path: Path
) -> None:
    """As if they were read anew for every epoch, and in a hundredth of the memory."""
    root = write(tmp_path / "set", [f"{s}/{k}/1.png" for s in ("train", "val") for k in "ab"])
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        noise(number, 300, 200).save(path)
    held = loaded(root, memory_gib=2 * 3 * 30 * 20 * 1.001 / 2**30, augmentation=changes)
    on_disk = loaded(root, memory_gib=0, augmentation=changes)
    assert isinstance(held.train, Pictures)
    assert held.train.is_held
    pictures = held.train.pictures
    assert [pictures.open(name).size for name in pictures.names] == [size] * 2
    for epoch in (0, 1):
        left, right = (
            torch.cat([b.images for b in training_batches(data, SETTINGS, 2, 1, epoch)])
            for data in (held, on_disk)
        )
        assert torch.equal(left, right)


@pytest.mark.parametrize("crops", [5, 10])
def test_pictures_for_several_crops_are_held_resized(crops: int, tmp_path: Path) -> None:
    root = write(tmp_path / "set", [f"{s}/{k}/1.png" for s in ("train", "val") for k in "ab"])
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        noise(number, 300, 200).save(path)
    held, on_disk = (loaded(root, crops=crops, memory_gib=m) for m in (4, 0))
    assert isinstance(held.validation, Pictures)
    assert held.validation.is_held
    assert held.validation.pictures.open("0").size == (12, 8)
    assert torch.equal(everything(held.validation)[0], everything(on_disk.validation)[0])


def test_memory_decides_how_a_split_is_held(tmp_path: Path) -> None:
    names = [f"{s}/{k}/{n}.png" for s in ("train", "val") for k in "ab" for n in range(10)]
    root = write(tmp_path / "set", names)
    needed = 20 * 3 * 8 * 8 / 2**30
    for factor, kind in ((1.001, Pixels), (0.999, Pictures)):
        found = loaded(root, memory_gib=needed * factor)
        assert isinstance(found.train, kind)
        assert isinstance(found.validation, kind)


@pytest.mark.parametrize(
    ("shape", "in_chans", "crop_pct", "are_at_once"),
    [
        ((8, 8), 1, 1.0, True),
        ((8, 8, 3), 3, 1.0, True),
        ((8, 8), 3, 1.0, False),
        ((8, 8, 3), 1, 1.0, False),
        ((8, 9), 1, 1.0, False),
        ((8, 8, 3), 3, 0.5, False),
    ],
)
@pytest.mark.parametrize("is_stacked", [True, False])
def test_arrays_that_stay_as_they_are_are_taken_at_once(
    shape: tuple[int, ...],
    in_chans: int,
    crop_pct: float,
    are_at_once: bool,
    is_stacked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same pixels as one by one; any part of an array, in any order."""
    arrays = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    preprocessing = Preprocessing(crop_pct=crop_pct)
    settings = VitSettings(image_size=8, patch_size=4, in_chans=in_chans, num_classes=2)
    transform = evaluation_transform(preprocessing, settings)
    chosen = (4, 0, 5, 1)
    expected = [transform(with_channels(Image.fromarray(arrays[n]), in_chans)) for n in chosen]
    num_opened, open_one = 0, ArrayPictures.__call__

    def counted(self: ArrayPictures, name: str) -> Image.Image:
        nonlocal num_opened
        num_opened += 1
        return open_one(self, name)

    monkeypatch.setattr(ArrayPictures, "__call__", counted)
    pictures = PictureSet(
        [*map(str, chosen)], (1, 0, 1, 0), ArrayPictures(arrays if is_stacked else [*arrays])
    )
    prepared, notes = prepare(
        pictures,
        transform,
        (in_chans, 8, 8),
        preprocessing,
        is_fixed=True,
        memory_bytes=1e9,
        skip=False,
    )
    assert isinstance(prepared, Pixels)
    assert torch.equal(prepared.pixels, torch.stack(expected))
    assert prepared.pixels.is_contiguous()
    assert prepared.labels.tolist() == [1, 0, 1, 0]
    assert notes == []
    assert (num_opened == 0) is (are_at_once and is_stacked)


def test_no_warning_is_left_from_ordinary_pictures(mixed: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything(loaded(mixed).validation)
        everything(loaded(mixed, memory_gib=0).validation)


# --- formats and shapes that are refused ---------------------------------------------------------


def test_a_postscript_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow chooses by content, and would start Ghostscript."""

    def started(*args: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    root = write(tmp_path / "set", [f"{s}/{k}/1.png" for s in ("train", "val") for k in "ab"])
    plain().save(root / "train/a/2.eps", format="EPS")
    (root / "train/a/2.eps").rename(root / "train/a/2.jpg")
    with pytest.raises(ValueError, match=r"a/2\.jpg \(not a supported picture format\)"):
        loaded(root)


@pytest.mark.parametrize("size", [(8000, 1), (1, 40_000), (1011, 10)])
def test_elongated_pictures_are_refused_before_they_fill_memory(
    size: tuple[int, int], tmp_path: Path
) -> None:
    root = write(tmp_path / "set", [f"{s}/{k}/1.png" for s in ("train", "val") for k in "ab"])
    Image.new("RGB", size).save(root / "val/a/2.png")
    words = (
        rf"a/2\.png \(it is {size[0]} x {size[1]} pixels: the longer side may be at most 100 times"
    )
    with pytest.raises(ValueError, match=words):
        loaded(root)
    Image.new("RGB", (1000, 10)).save(root / "val/a/2.png")
    assert len(everything(loaded(root).validation)[1]) == 3


# --- warnings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gib", [1.0, 0.0])
def test_every_warning_names_its_picture(
    memory_gib: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """In the threads that read a small set at once, and when pictures are read one by one."""
    root = write(tmp_path, [f"train/{k}/{n}.png" for k in "ab" for n in range(8)])
    write(root, [f"val/{k}/{n}.png" for k in "ab" for n in range(2)])
    for number in range(8):
        noise(number, 30 + number, 30).save(root / "train" / "a" / f"{number}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    before, threads = warnings.showwarning, torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            everything(loaded(root, memory_gib=memory_gib).train)
    finally:
        torch.set_num_threads(threads)
    assert warnings.showwarning is before
    for number in range(8):
        size = 30 * (30 + number)
        told = {m for m in caplog.messages if f"({size} pixels)" in m}
        assert {m.partition(": ")[0] for m in told} == {f"picture a/{number}.png"}


def test_other_warnings_are_shown_as_ever(recwarn: pytest.WarningsRecorder, caplog: Any) -> None:
    """Those of a thread that reads no picture, while another one does."""
    with warnings_named("a.png"):
        thread = threading.Thread(target=warnings.warn, args=("of another",))
        thread.start()
        thread.join()
        warnings.warn("of the picture", stacklevel=1)
    assert caplog.messages == ["picture a.png: of the picture"]
    warnings.warn("after it", stacklevel=1)
    assert caplog.messages == ["picture a.png: of the picture"]
