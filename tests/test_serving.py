"""The serving examples: without this package, they answer what `prenas predict` says."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from PIL import Image

from classify import FORMATS as OURS
from classify import Classifier, prepared, with_channels
from data.making import noise
from models.handed_over import NAMES, model_of
from prenas.data.opening import FORMATS
from prenas.devices.exporting import export
from prenas.devices.prediction import predict
from prenas.families.base import Settings
from prenas.models.export import EvaluationTransform
from prenas.recipe.data import Preprocessing
from service import body_of, create_app

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "serving" / "classify.py"
MODES = ("RGB", "L", "1", "LA", "P", "RGBA", "CMYK")


@pytest.fixture(
    scope="module",
    params=[("onnx", None), ("onnx", 2), ("openvino", None)],
    ids=["any number", "two per call", "openvino"],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose network has more outputs than classes."""
    name, batch = request.param
    model = model_of(tmp_path_factory.mktemp("serving") / "00", num_classes=6)
    return export(model, name, batch=batch).folder


def picture_of(mode: str, seed: int = 0) -> Image.Image:
    """A picture with noise, larger than the network's images in one of the two directions."""
    wide = noise(seed, 61 + seed, 40 + 2 * seed)
    return wide.convert(mode) if mode != "P" else wide.quantize(8)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """One of every mode; that with a palette is transparent in places."""
    paths = []
    for number, mode in enumerate(MODES):
        options = {"transparency": 3} if mode == "P" else {}
        paths.append(tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}")
        picture_of(mode, number).save(paths[-1], **options)
    return paths


def bytes_of(image: Image.Image, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


# --- the script ----------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(
    ("image_size", "crop_pct", "in_chans"),
    [((32, 32), 0.875, 3), ((31, 31), 0.9, 1), ((24, 40), 0.875, 3), ((33, 20), 1.0, 3)],
)
def test_pictures_are_prepared_as_for_the_model(
    image_size: tuple[int, int], crop_pct: float, in_chans: int, interpolation: Any
) -> None:
    """To the last bit, for pictures larger and smaller than the network's images."""
    numbers = {"mean": (0.485, 0.456, 0.406)[:in_chans], "std": (0.229, 0.224, 0.225)[:in_chans]}
    chosen = Preprocessing(**numbers, crop_pct=crop_pct, interpolation=interpolation)
    transform = EvaluationTransform(Settings(image_size=image_size, in_chans=in_chans), chosen)
    for number, (width, height) in enumerate([(61, 40), (40, 61), (33, 33), (9, 14), (301, 7)]):
        picture = with_channels(noise(number, width, height), in_chans)
        found = prepared(picture, image_size, chosen.model_dump(mode="json"))
        expected = transform(picture).numpy()
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        assert np.array_equal(found, expected)


def test_the_script_answers_what_predict_does_without_torch_and_prenas(
    exported: Path, pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    alone = (
        "import runpy, sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'prenas'): sys.modules[name] = None\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    told = subprocess.run(
        [sys.executable, "-c", alone, exported, *pictures, broken, tmp_path / "missing.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1, told.stderr
    *lines, unreadable, missing = map(json.loads, told.stdout.splitlines())
    assert unreadable == predicted(exported, [broken])[0]
    assert missing["error"] == "No such file or directory"
    assert_alike(lines, predicted(exported, pictures))


def predicted(folder: Path, paths: list[Path]) -> list[dict[str, Any]]:
    return [one.as_dict() for one in predict(folder, paths)]


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["picture"] == theirs["picture"]
        for one, other in zip(ours["classes"], theirs["classes"], strict=True):
            assert one["name"] == other["name"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-5)


def test_the_script_knows_the_formats_of_the_package() -> None:
    assert {*FORMATS} <= {*OURS} <= {*FORMATS, "AVIF"}


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps({"format": "executorch"}))
    with pytest.raises(ValueError, match="a file of the format executorch, not onnx or openvino"):
        Classifier(tmp_path)


def test_pictures_may_be_classified_at_the_same_time(exported: Path) -> None:
    """As the service does, whose requests run in threads of one process."""
    classifier = Classifier(exported)
    contents = [bytes_of(picture_of("RGB", number)) for number in range(16)]
    one_by_one = [classifier.classify(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            assert list(pool.map(classifier.classify, contents)) == one_by_one


# --- the service ---------------------------------------------------------------------------------


@pytest.fixture
def client(exported: Path) -> TestClient:
    return TestClient(create_app(exported, most_bytes=20_000))


def test_the_service_answers_what_predict_does(
    client: TestClient, exported: Path, pictures: list[Path]
) -> None:
    assert client.get("/health").json() == {"status": "ok", "classes": [*NAMES]}
    for path in pictures:
        answer = client.post("/predict", content=path.read_bytes())
        assert answer.status_code == 200
        assert_alike([{"picture": str(path), **answer.json()}], predicted(exported, [path]))
    for top, number in ((1, 1), (99, 4)):
        answer = client.post(f"/predict?top={top}", content=pictures[0].read_bytes())
        assert len(answer.json()["classes"]) == number


def deep() -> bytes:
    return bytes_of(Image.fromarray(np.full((8, 8), 40_000, np.uint16)))


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "send the bytes of one picture"),
        (b"no picture", 400, "not a supported picture format"),
        (bytes_of(noise(1))[:200], 400, "the picture cannot be read"),
        (deep(), 400, "more than 8 bits per channel"),
        (bytes_of(Image.new("1", (10_000, 8_001))), 400, "at most 80,000,000 pixels"),
        (bytes_of(Image.new("L", (1, 200))), 400, "at most 100 times the shorter"),
        (bytes_of(noise(1), "EPS"), 400, "not a supported picture format"),
        (bytes(20_001), 413, "longer than 20,000 bytes"),
    ],
    ids=["nothing", "text", "cut off", "deep", "huge", "elongated", "program", "long"],
)
def test_a_bad_picture_is_refused_with_the_reason(
    content: bytes, status: int, words: str, client: TestClient
) -> None:
    answer = client.post("/predict", content=content)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_an_upload_is_not_read_beyond_its_limit() -> None:
    """The length that a client announces is not believed: the parts are counted."""
    sent = []

    class Upload:
        async def stream(self) -> AsyncIterator[bytes]:
            for number in range(100):
                sent.append(number)
                yield bytes(1000)

    with pytest.raises(HTTPException, match="longer than 2,000 bytes"):
        asyncio.run(body_of(Upload(), 2000))  # type: ignore[arg-type]
    assert sent == [0, 1, 2]
