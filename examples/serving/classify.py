"""Classifies pictures with an exported file, without PyTorch and without prenas.

Needs Python, a folder that `prenas export --format onnx` (or `openvino`) wrote, and three packages:

    pip install onnxruntime numpy pillow
    python classify.py runs/photos/subnets/00/onnx a.jpg b.png

    pip install openvino numpy pillow
    python classify.py runs/photos/subnets/00/openvino a.jpg b.png

Prints one JSON object per picture, as `prenas predict --json` does. The exit status is 1 if a
picture could not be read.
"""

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Pillow would also open others, some of them by starting other programs."""
MOST_PIXELS = 80_000_000
MOST_RATIO = 100
"""Of the longer to the shorter side."""


Run = Callable[[np.ndarray], np.ndarray]
"""Float32 images [batch, channels, height, width] -> logits [batch, classes]."""


class PictureError(ValueError):
    """A picture that cannot be read; the message says why."""


class Classifier:
    """An exported file with what its card, `export.json`, says about it."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        card = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        if card["format"] not in ENGINES:
            allowed = " or ".join(ENGINES)
            raise ValueError(f"{folder} holds a file of the format {card['format']}, not {allowed}")
        self.class_names: list[str] = card["model"]["class_names"]
        self.preprocessing: dict[str, Any] = card["model"]["preprocessing"]
        batch, self.channels, *size = card["input_shape"]
        self.image_size: tuple[int, int] = (size[0], size[1])
        self.batch: int = batch or 1  # a file for a fixed number of pictures takes no other
        self.run = ENGINES[card["format"]](folder / card["file"], threads)

    def classify(self, content: bytes, top: int = 3) -> list[dict[str, Any]]:
        """The likeliest classes of a picture, given as the content of its file.

        Raises:
            PictureError: the picture cannot be read.
        """
        try:
            picture = with_channels(opened(content), self.channels)
        except UnidentifiedImageError:
            raise PictureError("not a supported picture format") from None
        except Exception as error:  # decoders fail in many ways on broken files
            raise PictureError(str(error) or type(error).__name__) from error
        pixels = prepared(picture, self.image_size, self.preprocessing)
        images = np.repeat(pixels[None], self.batch, axis=0)
        logits = self.run(images)[0]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        named = shares[: len(self.class_names)]  # there may be spare outputs
        best = np.argsort(-named, kind="stable")[:top]
        return [{"name": self.class_names[i], "probability": float(named[i])} for i in best]


def in_onnxruntime(path: Path, threads: int) -> Run:
    """A file of the format onnx."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    return lambda images: session.run(None, {name: images})[0]


def in_openvino(path: Path, threads: int) -> Run:
    """A file of the format openvino, computed in float32 as it was compared."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    return lambda images: model.create_infer_request().infer([images])[0]  # one per thread


ENGINES = {"onnx": in_onnxruntime, "openvino": in_openvino}
"""Format of a file -> what runs it."""


def opened(content: bytes) -> Image.Image:
    """A picture whose size is known and bounded, not decoded yet."""
    known = [form for form in FORMATS if form != "AVIF" or features.check("avif")]
    picture = Image.open(io.BytesIO(content), formats=known)
    short, long = sorted(picture.size)
    if short * long > MOST_PIXELS or long > MOST_RATIO * short:
        raise ValueError(
            f"it is {picture.width} x {picture.height} pixels: at most {MOST_PIXELS:,} pixels are "
            f"allowed, and sides of which the longer is at most {MOST_RATIO} times the shorter"
        )
    return picture


def with_channels(picture: Image.Image, channels: int) -> Image.Image:
    """The picture in 8-bit grey (1 channel) or RGB (3)."""
    if picture.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits per channel: convert it to 8 bits first")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert({1: "L", 3: "RGB"}[channels])


def prepared(
    picture: Image.Image, image_size: tuple[int, int], preprocessing: dict[str, Any]
) -> np.ndarray:
    """What the network takes of a picture: float32 [channels, height, width].

    Resizes and crops as timm does in evaluation, then normalises. Every rounding is timm's and
    torchvision's, so the result is the same to the last bit.
    """
    height, width = image_size
    to_height, to_width = (math.floor(side / preprocessing["crop_pct"]) for side in image_size)
    if to_height == to_width:  # the shorter side gets this length
        short = min(picture.size)
        size = [int(to_width * side / short) for side in picture.size]
    else:  # the picture is just large enough
        ratio = min(picture.height / to_height, picture.width / to_width)
        size = [round(side / ratio) for side in picture.size]
    resampling = Image.Resampling[preprocessing["interpolation"].upper()]
    picture = picture.resize((size[0], size[1]), resampling)
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.float32).reshape(height, width, -1)
    mean, std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1))


def main(folder: str, *pictures: str) -> int:
    """Prints the classes of every picture; returns the exit status."""
    classifier = Classifier(Path(folder))
    status = 0
    for name in pictures:
        try:
            print(json.dumps({"picture": name, "classes": classifier.classify(read(name))}))
        except PictureError as error:
            print(json.dumps({"picture": name, "error": str(error)}))
            status = 1
    return status


def read(name: str) -> bytes:
    """The content of a file."""
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise PictureError(error.strerror) from None


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python classify.py FOLDER PICTURE...")
    sys.exit(main(*sys.argv[1:]))
