"""The part of a recipe that says which images, how they are split, prepared and augmented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from prenas.values import Value

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

OWN_DATA = "own"
"""The name of data that are passed from Python instead of read by name."""

FOLDER = "folder"
"""The name of data that are image folders, or tars of them, at `DataRecipe.root`."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Preprocessing(Value):
    """How a picture becomes the network's input; evaluation, and every handed-over model, use it.

    Resize so that the shorter side is `image_size / crop_pct`, centre crop, scale to [0, 1],
    subtract `mean`, divide by `std` (one number per channel).
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = Field(0.875, gt=0, le=1)
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if min(std, default=0) <= 0:
            raise ValueError(f"deviations {list(std)} must be positive")
        return std

    def check_channels(self, in_chans: int) -> None:
        """Raises ValueError unless mean and deviation have one number per channel."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != in_chans:
                raise ValueError(
                    f"data.preprocessing.{name} has {len(values)} numbers for images of {in_chans} "
                    "channels: give one per channel"
                )


class Augmentation(Value):
    """Random changes of training images; the defaults change nothing.

    The first four act on pictures, one by one, and are timm's; the others act on batches of
    normalised images. Every draw belongs to (seed, epoch, sample), that of mixing to the batch.
    """

    crop_scale: tuple[float, float] | None = None
    """Random resized crop: least and largest share of the picture's area. None: the centre crop
    of evaluation."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Of a random resized crop: least and largest width / height."""
    auto_augment: str | None = None
    """A policy in timm's words: `rand-m9-mstd0.5-inc1`, `v0r-mstd0.5`, `original`, `3a`, ..."""
    color_jitter: float = Field(0.0, ge=0)
    """Brightness, contrast and saturation within 1 -+ this. As in timm (and in the published
    recipes) it gives way to `auto_augment`."""

    flip: Probability = 0.0
    """Probability of a mirror image, left to right."""
    crop_padding: int = Field(0, ge=0)
    """Shifts by whole pixels, up to this many: the random crop of a padded picture."""
    shift_pixels: float = Field(0.0, ge=0)
    rotation_degrees: float = Field(0.0, ge=0, lt=180)
    scale: float = Field(0.0, ge=0, lt=1)
    """Shift, rotation and scale are uniform within these limits; 0 switches one off."""
    erasing: Probability = 0.0
    """Probability that rectangles of an image are erased."""
    erasing_count: int = Field(1, ge=1)
    """Most rectangles per image, each number equally likely."""
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    """Fill: a normal number per pixel, one per rectangle and channel, or the mean."""

    mixup: float = Field(0.0, ge=0)
    """Two images are averaged with a weight drawn from Beta(mixup, mixup)."""
    cutmix: float = Field(0.0, ge=0)
    """A rectangle of another image is pasted, its area drawn from Beta(cutmix, cutmix)."""
    mixing_prob: Probability = 1.0
    mixing_switch: Probability = 0.5
    """Probability of cutmix where both are on."""
    mixing_mode: Literal["batch", "pair", "elem"] = "batch"
    """One draw for the batch, per pair of images, or per image."""

    repeats: int = Field(1, ge=1)
    """Repeated augmentation: copies of an image that follow each other, each changed anew; an
    epoch keeps its length and holds fewer different images."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _an_interval(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"{list(bounds)} must be positive, the smaller number first")
        return bounds

    @field_validator("crop_scale")
    @classmethod
    def _a_share(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and scale[1] > 1:
            raise ValueError(f"{list(scale)} are shares of the picture's area: at most 1")
        return scale

    @property
    def changes_pictures(self) -> bool:
        """Whether pictures are changed one by one, so that no resized copy can stand for them."""
        return bool(self.crop_scale or self.auto_augment or self.color_jitter)


class DataRecipe(Value):
    """Which images, how they are split, and how they are prepared.

    `name` is a built-in set (`digits`, `cifar10`, `cifar100`, `fashion-mnist`), `folder` (image
    folders, or tars of them, at `root`), a name of timm's dataset factory (`hfds/...`, `wds/...`,
    `tfds/...`, `torch/...`), or `own` (passed from Python).
    """

    name: str
    root: str | None = None
    """Where the files are: the folder or tar of `folder`, the download folder of named sets."""
    train: str | None = None
    """A split of the data, or a folder or tar of its own; None takes what is there."""
    validation: str | Fraction | None = None
    """The same, or a share of the training images. None: the split of that name, else a tenth."""
    test: str | Fraction | Literal["none"] | None = None
    """The same. None: the split of that name; a tenth if the data have no splits at all."""
    preprocessing: Preprocessing = Preprocessing()
    augmentation: Augmentation = Augmentation()
    crops: Literal[1, 5, 10] = 1
    """Crops per evaluated image, whose logits are averaged: the centre; and the corners; and
    their mirror images."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """What to do about pictures that cannot be read: stop and name them, or leave them out (for a
    training picture that is read from disk, the next one stands)."""
    memory_gib: float = Field(4.0, ge=0)
    """Sets that need at most this much memory, decoded, are read once and held there."""
    num_workers: int | None = Field(None, ge=0)
    """Processes that read images which are not held in memory; None: one per core, at most 8."""

    @model_validator(mode="after")
    def _needs_training_and_validation(self) -> DataRecipe:
        for split in ("train", "validation"):
            if getattr(self, split) == "none":
                raise ValueError(
                    f"{split} cannot be 'none': training images are learned from, validation "
                    "images choose; only test may be left out"
                )
        return self

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _a_share_of_the_training(cls, place: object) -> object:
        if isinstance(place, (int, float)) and not 0 < place < 1:
            raise ValueError(f"a share must lie between 0 and 1, both left out (given: {place:g})")
        return place

    @model_validator(mode="after")
    def _own_data_bring_their_own(self) -> DataRecipe:
        if self.name == OWN_DATA and self.augmentation != Augmentation():
            raise ValueError(
                "data passed from Python bring their own augmentation: give it to ImageData, and "
                "leave data.augmentation out"
            )
        if self.name == FOLDER and self.root is None and self.train is None:
            raise ValueError(
                "no images are named: give the folder or tar of them (--data PATH, or data.root)"
            )
        return self
