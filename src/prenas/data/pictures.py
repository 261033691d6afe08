"""Pictures: opened with checks, and kept in memory if the data set is small.

The rules are the same for training, evaluation and prediction. Only the first frame of an animated
picture is used. Grey, palette, CMYK and transparent pictures are converted to the network's
channels. Pictures with more than 8 bits per channel are refused, because their range is unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from prenas.data.augmentation import PictureTransform, StagedTransform, normalized
from prenas.data.names import Integers, Names
from prenas.data.opening import UNSUPPORTED, warnings_named
from prenas.randomness import numpy_generator
from prenas.recipe.data import Preprocessing

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_MODES = {1: "L", 3: "RGB"}
_STILL = ("MPO", "TIFF")  # their further frames are previews or pages, not an animation
_NUM_NAMED = 10  # unreadable pictures that a message names
_NUM_MEASURED = 64  # pictures from whose sizes the memory for all is estimated


def check_picture_channels(in_chans: int) -> None:
    """Raises ValueError for a network with other than 1 or 3 input channels."""
    if in_chans not in _MODES:
        raise ValueError(
            f"pictures have 1 or 3 channels, but this model takes {in_chans}: pass tensors to the "
            "network instead"
        )


def with_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """The picture in 8-bit grey (1 channel) or RGB (3).

    Raises:
        ValueError: the picture has more than 8 bits per channel, or the network has other than 1
            or 3 input channels.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"pictures of mode {image.mode!r} have more than 8 bits per channel and an unknown "
            "range: convert them to 8 bits first"
        )
    check_picture_channels(in_chans)
    if image.mode == _MODES[in_chans]:
        image.load()
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(_MODES[in_chans])


@dataclass(frozen=True)
class PictureSet:
    """Labelled pictures of one split, opened on demand; names and numbers are kept compactly."""

    names: Sequence[str]
    labels: Sequence[int]
    open: Callable[[str], Image.Image]
    """Name -> picture, possibly not decoded yet."""
    versions: Sequence[int] = ()
    """A number per picture that changes with its content, such as its size in bytes, if known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", Names.of(self.names))
        object.__setattr__(self, "labels", Integers.of(self.labels))
        object.__setattr__(self, "versions", Integers.of(self.versions))

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> PictureSet:
        """Some of the pictures, in the given order."""
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            names=Names.of(self.names).take(chosen),
            labels=Integers.of(self.labels).take(chosen),
            versions=Integers.of(self.versions).take(chosen) if self.versions else (),
        )


class ArrayPictures:
    """Opens pictures from arrays, uint8 [H, W] or [H, W, 3], by their index."""

    def __init__(self, arrays: Sequence[np.ndarray[Any, Any]] | np.ndarray[Any, Any]) -> None:
        self._arrays = arrays

    def __call__(self, name: str) -> Image.Image:
        """The picture with that index."""
        return Image.fromarray(self._arrays[int(name)])

    def stacked(self, names: Sequence[str], size: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """[N, *size] the pictures together; None if they are not one array of this size."""
        if not isinstance(self._arrays, np.ndarray):
            return None
        if self._arrays.shape[1:] != size or self._arrays.dtype != np.uint8:
            return None
        found: NDArray[np.uint8] = self._arrays[np.fromiter(map(int, names), np.int64, len(names))]
        return found


class PictureError(ValueError):
    """A picture that cannot be read during training or evaluation."""

    def __init__(self, message: str) -> None:
        # Worker processes put their full traceback in front of an error's own message.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class UnreadableError(ValueError):
    """Pictures that cannot be read; the message names the first of them, and what to do."""

    def __init__(self, problems: Sequence[Problem], num_pictures: int) -> None:
        super().__init__(
            f"{explain_problems(problems, num_pictures)}. Repair or remove them, or skip them with "
            "--set data.unreadable=skip at `prenas run` or `prenas search`"
        )
        self.problems = tuple(problems)


def reason_of(error: Exception) -> str:
    """Why a picture cannot be read; the same text each time (Pillow's contains an address)."""
    if isinstance(error, UnidentifiedImageError):
        return UNSUPPORTED
    return str(error) or type(error).__name__


class Problem(NamedTuple):
    """A picture that cannot be read, and why."""

    name: str
    reason: str


class _Read(NamedTuple, Generic[T]):
    """Results of the readable pictures, in order, and the problems with the others."""

    pictures: PictureSet
    values: list[T]
    problems: list[Problem]
    num_animated: int


def _read_all(pictures: PictureSet, in_chans: int, make: Callable[[Image.Image], T]) -> _Read[T]:
    """Decodes every picture once, on as many threads as torch uses."""

    def read(name: str) -> tuple[T, bool] | Problem:
        try:
            with warnings_named(name):
                image = pictures.open(name)
                is_animated = getattr(image, "is_animated", False) and image.format not in _STILL
                return make(with_channels(image, in_chans)), is_animated
        except MemoryError:
            raise
        except Exception as error:  # decoders fail in many ways on broken files
            return Problem(name, reason_of(error))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(read, pictures.names))
    good = [(i, result) for i, result in enumerate(found) if not isinstance(result, Problem)]
    return _Read(
        pictures.subset([i for i, _ in good]),
        [value for _, (value, _) in good],
        [result for result in found if isinstance(result, Problem)],
        sum(is_animated for _, (_, is_animated) in good),
    )


def classes_without_pictures(pictures: PictureSet, prepared: Dataset[Any]) -> list[int]:
    """The classes of a split that have no readable picture, and so would disappear.

    If the split is read from disk while it is used, pictures of every class are decoded until one
    is readable.
    """
    if isinstance(prepared, Pixels):
        left = set(prepared.labels.tolist())
    elif isinstance(prepared, Pictures) and prepared.is_held:
        left = set(prepared.pictures.labels)
    else:
        left = set()
        for name, label in zip(pictures.names, pictures.labels, strict=True):
            if label not in left and _can_be_read(pictures, name):
                left.add(label)
    return sorted(set(pictures.labels) - left)


def _can_be_read(pictures: PictureSet, name: str) -> bool:
    try:
        with warnings_named(name):
            pictures.open(name).load()
    except MemoryError:
        raise
    except Exception:  # decoders fail in many ways on broken files
        return False
    return True


def explain_problems(problems: Sequence[Problem], num_pictures: int) -> str:
    """Says how many pictures cannot be read, and names the first of them, with reasons."""
    named = "; ".join(f"{name} ({reason})" for name, reason in problems[:_NUM_NAMED])
    more = f"; and {len(problems) - _NUM_NAMED} more" if len(problems) > _NUM_NAMED else ""
    return f"{len(problems)} of {num_pictures} pictures cannot be read: {named}{more}"


def _handle_problems(read: _Read[Any], num_pictures: int, skip: bool) -> list[str]:
    """Notes about skipped and animated pictures; UnreadableError if none may be skipped."""
    notes = []
    if read.problems:
        if not skip:
            raise UnreadableError(read.problems, num_pictures)
        notes.append(f"{explain_problems(read.problems, num_pictures)}. They are skipped")
    if read.num_animated:
        are = "picture is" if read.num_animated == 1 else "pictures are"
        notes.append(f"{read.num_animated} {are} animated: only the first frame is used")
    return notes


class Pixels(Dataset[Any]):
    """Resized pictures in memory, uint8 [N, C, H, W]; yields normalised floats, also in batches."""

    def __init__(self, pixels: Tensor, labels: Sequence[int], preprocessing: Preprocessing) -> None:
        self.pixels, self.labels = pixels, torch.tensor(np.asarray(labels), dtype=torch.int64)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        return normalized(self.pixels[index], self._preprocessing), self.labels[index]


class Pictures(Dataset[Any]):
    """Pictures that are opened and transformed one by one; yields normalised floats."""

    def __init__(
        self,
        pictures: PictureSet,
        transform: PictureTransform,
        in_chans: int,
        preprocessing: Preprocessing,
        *,
        skip: bool,
    ) -> None:
        """`skip`: an unreadable picture is replaced by the next one, with a warning."""
        self.pictures = pictures
        self.transform, self._in_chans = transform, in_chans
        self._preprocessing, self._skip = preprocessing, skip

    @property
    def labels(self) -> Sequence[int]:
        """The label of every picture."""
        return self.pictures.labels

    @property
    def is_held(self) -> bool:
        """Whether the pictures are in memory, decoded."""
        return isinstance(self.pictures.open, ArrayPictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = self.read(index)
        return normalized(self.transform(picture), self._preprocessing), label

    def normalized(self, pixels: Sequence[Tensor], out: Tensor) -> Tensor:
        """Normalises transformed pictures into the batch `out`."""
        for one, image in zip(pixels, out, strict=True):  # one image at a time fits the cache
            normalized(one, self._preprocessing, out=image)
        return out

    def as_floats(self, images: Tensor) -> Tensor:
        """A batch of transformed pictures, normalised on its device."""
        if images.device.type == "cpu":
            return self.normalized([*images], out=torch.empty(images.shape))
        return normalized(images, self._preprocessing)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The decoded picture and its label.

        Raises:
            PictureError: it cannot be read, and unreadable pictures are not skipped.
            ValueError: none of the pictures can be read.
        """
        for offset in range(len(self)):
            position = (index + offset) % len(self)
            name = self.pictures.names[position]
            try:
                with warnings_named(name):
                    picture = with_channels(self.pictures.open(name), self._in_chans)
            except MemoryError:
                raise
            except Exception as error:  # decoders fail in many ways on broken files
                if not self._skip:
                    raise PictureError(
                        f"cannot read picture {name} ({reason_of(error)}): repair it, or give the "
                        "`prenas run` command again with --set data.unreadable=skip, which uses "
                        "the next picture instead"
                    ) from None
                reason = reason_of(error)
                _logger.warning(
                    "cannot read picture %s (%s): using the next one instead", name, reason
                )
                continue
            return picture, self.pictures.labels[position]
        raise ValueError(f"none of the {len(self)} pictures can be read")


class Prepared(NamedTuple):
    """A split that is ready to be read, and notes about it for the user."""

    dataset: Dataset[Any]
    notes: list[str]


def prepare(
    pictures: PictureSet,
    transform: PictureTransform,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    *,
    is_fixed: bool,
    memory_bytes: float,
    skip: bool,
    may_replace: bool = False,
) -> Prepared:
    """Chooses how a split is stored: resized in memory, decoded in memory, or on disk.

    Decoded pictures are kept only as large as the transform needs them.

    Args:
        transform: returns uint8 of `shape` [C, H, W], unless it cuts several crops.
        is_fixed: whether the transform returns one result per picture, always the same.
        memory_bytes: the most memory that the pictures may take.
        skip: skip unreadable pictures instead of refusing them.
        may_replace: whether, on disk, the next picture may replace one that is skipped; if not,
            all pictures are read once to find the unreadable ones.

    Raises:
        UnreadableError: some pictures cannot be read; it names all of those that were tried.
    """
    in_chans, total = shape[0], len(pictures)
    if is_fixed and total * np.prod(shape) <= memory_bytes:
        if (pixels := _unchanged_pixels(pictures, transform, shape)) is not None:
            return Prepared(Pixels(pixels, pictures.labels, preprocessing), [])
        fixed = _read_all(pictures, in_chans, transform)
        notes = _handle_problems(fixed, total, skip)
        pixels = torch.stack(fixed.values) if fixed.values else torch.empty(0, *shape).byte()
        return Prepared(Pixels(pixels, fixed.pictures.labels, preprocessing), notes)
    notes = []
    first, rest = (
        (transform.fixed, transform.rest)
        if isinstance(transform, StagedTransform)
        else (_unchanged, transform)
    )
    if not is_fixed and _held_bytes(pictures, in_chans, first) <= memory_bytes:
        decoded = _read_all(pictures, in_chans, lambda picture: np.asarray(first(picture)))
        transform = rest
        notes = _handle_problems(decoded, total, skip)
        held = ArrayPictures(decoded.values)
        numbers = Names.of(map(str, range(len(decoded.values))))
        pictures = PictureSet(numbers, decoded.pictures.labels, held)
    elif skip and not may_replace:
        readable = _read_all(pictures, in_chans, lambda _: None)
        notes = _handle_problems(readable, total, skip)
        pictures = readable.pictures
    return Prepared(Pictures(pictures, transform, in_chans, preprocessing, skip=skip), notes)


def _unchanged_pixels(
    pictures: PictureSet, transform: PictureTransform, shape: tuple[int, int, int]
) -> Tensor | None:
    """The pixels [N, C, H, W] of an array that the transform leaves as it is; None otherwise.

    One by one, the 70,000 pictures of Fashion-MNIST take seconds.
    """
    if not isinstance(pictures.open, ArrayPictures):
        return None
    channels, height, width = shape
    size = (height, width) if channels == 1 else (height, width, channels)
    # A fixed transform resizes and crops, whatever a picture shows: noise tells whether it does.
    noise = numpy_generator(0, "whether pictures change").integers(0, 256, size, dtype=np.uint8)
    if not torch.equal(transform(Image.fromarray(noise)), _planes(noise[None])[0]):
        return None
    stacked = pictures.open.stacked(pictures.names, size)
    return None if stacked is None else _planes(stacked)


def _planes(pictures: NDArray[np.uint8]) -> Tensor:
    """[N, C, H, W] of pictures [N, H, W] or [N, H, W, C]."""
    planes = pictures[:, None] if pictures.ndim == 3 else np.moveaxis(pictures, 3, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))


def _unchanged(picture: Image.Image) -> Image.Image:
    return picture


def _held_bytes(
    pictures: PictureSet, in_chans: int, first: Callable[[Image.Image], Image.Image]
) -> float:
    """Memory for all pictures after the first part of a transform, estimated from some."""
    step = max(1, len(pictures) // _NUM_MEASURED)
    sizes = []
    for name in pictures.names[::step]:
        try:
            with warnings_named(name):
                width, height = first(Image.new("L", pictures.open(name).size)).size
        except Exception:  # reported when it is read
            continue
        sizes.append(width * height * in_chans)
    return len(pictures) * float(np.mean(sizes)) if sizes else 0.0
