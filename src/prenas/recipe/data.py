"""The data part of a recipe: which images, and how they are split, prepared and augmented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from prenas.values import Value

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

OWN_DATA = "own"
"""The name of data passed from Python."""

FOLDER = "folder"
"""The name of data read from image folders, or tars of them, at `DataRecipe.root`."""

PLACES = ("root", "train", "validation", "test")
"""The fields of `DataRecipe` that say where images are."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Preprocessing(Value):
    """How a picture becomes the network's input, in evaluation and in every handed-over model.

    Resize so that the shorter side is `image_size / crop_pct`, crop the centre, scale to [0, 1],
    subtract `mean` and divide by `std` (both with one number per channel).
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = Field(0.875, gt=0, le=1)
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if min(std, default=0) <= 0:
            raise ValueError(f"standard deviations must be positive (got {list(std)})")
        return std

    def check_channels(self, in_chans: int) -> None:
        """Raises ValueError unless mean and deviation have one number per channel."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != in_chans:
                raise ValueError(
                    f"data.preprocessing.{name} has {len(values)} values, but the images have "
                    f"{in_chans} channels: give one value per channel"
                )


class Augmentation(Value):
    """Random changes to training images; the defaults change nothing.

    The first four fields act on single pictures, with timm's transforms; the others act on batches
    of normalised images. Random numbers are drawn per (seed, epoch, sample), those for mixing per
    batch.
    """

    crop_scale: tuple[float, float] | None = None
    """Smallest and largest fraction of the picture's area in a random resized crop. None: use the
    centre crop, as in evaluation."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width / height of a random resized crop."""
    auto_augment: str | None = None
    """A policy in timm's notation: `rand-m9-mstd0.5-inc1`, `v0r-mstd0.5`, `original`, `3a`, ..."""
    color_jitter: float = Field(0.0, ge=0)
    """Multiply brightness, contrast and saturation by factors within 1 +- this. As in timm, and in
    the published recipes, it has no effect if `auto_augment` is set."""

    flip: Probability = 0.0
    """Probability of flipping an image horizontally."""
    crop_padding: int = Field(0, ge=0, le=1_000)
    """Shift by up to this many whole pixels, which is a random crop of the padded picture."""
    shift_pixels: float = Field(0.0, ge=0)
    rotation_degrees: float = Field(0.0, ge=0, lt=180)
    scale: float = Field(0.0, ge=0, lt=1)
    """Shift, rotation and scale are drawn uniformly within these limits; 0 switches one off."""
    erasing: Probability = 0.0
    """Probability that rectangles of an image are erased."""
    erasing_count: int = Field(1, ge=1, le=1_000)
    """Largest number of rectangles per image; every number from 1 on is equally likely."""
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    """What fills an erased rectangle: a normal random number per pixel, one normal random number
    per rectangle and channel, or the mean."""

    mixup: float = Field(0.0, ge=0)
    """Average pairs of images with a weight drawn from Beta(mixup, mixup); 0 switches it off."""
    cutmix: float = Field(0.0, ge=0)
    """Paste a rectangle of another image, its area drawn from Beta(cutmix, cutmix); 0 switches it
    off."""
    mixing_prob: Probability = 1.0
    mixing_switch: Probability = 0.5
    """Probability of cutmix when both mixup and cutmix are on."""
    mixing_mode: Literal["batch", "pair", "elem"] = "batch"
    """Draw the mixing weight once per batch, per pair of images, or per image."""

    repeats: int = Field(1, ge=1, le=1_000)
    """Repeated augmentation: number of consecutive copies of an image, each changed differently. An
    epoch keeps its length and so contains fewer different images."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _an_interval(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and not 0 < bounds[0] <= bounds[1]:
            raise ValueError(f"{list(bounds)} must be two positive numbers, the smaller one first")
        return bounds

    @field_validator("crop_scale")
    @classmethod
    def _a_share(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and scale[1] > 1:
            raise ValueError(
                f"{list(scale)} are fractions of the picture's area, so they may be at most 1"
            )
        return scale

    @property
    def changes_pictures(self) -> bool:
        """Whether single pictures are changed, so that resized copies cannot replace them."""
        return bool(self.crop_scale or self.auto_augment or self.color_jitter)

    @property
    def only_mirrors(self) -> bool:
        """Whether nothing but flips may happen to an image after its picture was changed."""
        moves = self.crop_padding or self.shift_pixels or self.rotation_degrees or self.scale
        return not (moves or self.erasing or self.mixup or self.cutmix)


class DataRecipe(Value):
    """Which images, how they are split, and how they are prepared.

    `name` is a built-in data set (`digits`, `cifar10`, `cifar100`, `fashion-mnist`), `folder`
    (image folders, tars of them, or WebDataset's shards, at `root`), a name for timm's dataset
    factory (`hfds/...`, `wds/...`, `tfds/...`, `torch/...`), or `own` (passed from Python).
    """

    name: str
    root: str | None = None
    """Where the files are: the image folder, tar or pattern of shards, or the download folder of a
    named data set."""
    train: str | None = None
    """Name of a split of the data, or path of a separate folder or tar. None: the training split,
    or all images if the data are not split."""
    validation: str | Fraction | None = None
    """The same, or a fraction of the training images. None: the validation split if there is one,
    else a tenth of the training images."""
    test: str | Fraction | Literal["none"] | None = None
    """The same, or `none` to go without. None: the test split if there is one, or a tenth of the
    training images if the data are not split at all."""
    preprocessing: Preprocessing = Preprocessing()
    augmentation: Augmentation = Augmentation()
    crops: Literal[1, 5, 10] = 1
    """Crops per evaluated image, whose logits are averaged. 1: the centre; 5: the centre and the
    corners; 10: those five and their mirror images."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """What to do about unreadable pictures: stop and name them, or skip them (an unreadable
    training picture that is read from disk is replaced by the next one)."""
    memory_gib: float = Field(4.0, ge=0)
    """Splits that fit into this much memory, decoded, are read once and kept there."""
    num_workers: int | None = Field(None, ge=0, le=1_000)
    """Processes that read images which are not kept in memory, for each process that trains. None:
    one per core that this machine grants, shared among the processes of the run; at most 32."""

    @model_validator(mode="after")
    def _needs_training_and_validation(self) -> DataRecipe:
        for split in ("train", "validation"):
            if getattr(self, split) == "none":
                raise ValueError(
                    f"{split} cannot be 'none': training and validation images are always needed; "
                    "only test may be left out"
                )
        return self

    @field_validator("root", "train", "validation", "test")
    @classmethod
    def _names_something(cls, where: object) -> object:
        if where == "":
            raise ValueError(
                "an empty text is not a path: name a folder or a split, or leave it out"
            )
        return where

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _a_share_of_the_training(cls, split: object) -> object:
        if isinstance(split, (int, float)) and not 0 < split < 1:
            raise ValueError(f"a share must be greater than 0 and less than 1 (got {split:g})")
        return split

    @model_validator(mode="after")
    def _own_data_bring_their_own(self) -> DataRecipe:
        if self.name == OWN_DATA and self.augmentation != Augmentation():
            raise ValueError(
                "data passed from Python have their own augmentation: give it to ImageData, and "
                "leave out data.augmentation"
            )
        if self.name == FOLDER and self.root is None and self.train is None:
            raise ValueError("no images given: name a folder or tar (--data PATH, or data.root)")
        return self
