"""Random changes to training images: timm's, with a seed for every draw.

Single pictures are changed inside the data set (`training_transform`). Batches of normalised images
are moved and erased (`BatchAugmentation`, with a generator per sample) and mixed. This happens in
place where possible: at 224 pixels, allocating a new batch costs as much as most of the changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from PIL.ImageOps import posterize
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, one_hot, pad

from prenas.families.base import Settings
from prenas.randomness import isolated_global_state, reseed_global_state
from prenas.recipe.data import Augmentation, Preprocessing

PictureTransform = Callable[[Image], Tensor]
"""Picture -> uint8 [C, H, W], or [crops, C, H, W]."""


class StagedTransform:
    """A transform in two parts: one that always gives the same result, and the rest.

    What the first part returns may be kept in memory instead of the whole picture.
    """

    def __init__(self, fixed: Callable[[Image], Image], rest: PictureTransform) -> None:
        self.fixed, self.rest = fixed, rest

    def __call__(self, image: Image) -> Tensor:
        """Both parts, for a picture that is not kept."""
        return self.rest(self.fixed(image))


class _Reduced:
    """Shrinks a picture by a whole factor, if its shorter side stays at least `side` pixels."""

    def __init__(self, side: int) -> None:
        self._side = side

    def __call__(self, image: Image) -> Image:
        factor = min(image.size) // self._side
        return image.reduce(factor) if factor > 1 else image


def needed_side(augmentation: Augmentation, settings: Settings) -> int:
    """The shorter side of a picture whose smallest random crop is as large as the network's input.

    More pixels than that change little: every crop is resized to the input.
    """
    assert augmentation.crop_scale is not None, "without random crops the input size is enough"
    low, high = augmentation.crop_ratio
    elongation = max(high, 1 / low)
    return math.ceil(max(settings.image_size) * math.sqrt(elongation / augmentation.crop_scale[0]))


def training_transform(
    augmentation: Augmentation, preprocessing: Preprocessing, settings: Settings
) -> PictureTransform:
    """The transform of a single training picture; it draws from the global generators.

    Raises:
        ValueError: timm does not understand `auto_augment`.
    """
    from timm.data import create_transform
    from torchvision.transforms import Compose

    whole = evaluation_transform(preprocessing, settings)
    if not augmentation.changes_pictures:
        return whole
    try:
        _check_sections(augmentation.auto_augment or "")
        crop, *changes, to_tensor = create_transform(
            input_size=(settings.in_chans, *settings.image_size),
            is_training=True,
            scale=augmentation.crop_scale or (1.0, 1.0),
            ratio=augmentation.crop_ratio,
            hflip=0.0,  # done in batches
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.auto_augment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            normalize=False,
        ).transforms
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            "data.augmentation.auto_augment: timm does not understand "
            f"{augmentation.auto_augment!r} ({error}): write a policy such as "
            "rand-m9-mstd0.5-inc1, v0r-mstd0.5 or original"
        ) from None
    for change in changes:
        fix_posterize(change)
    if augmentation.crop_scale:
        reduced = _Reduced(needed_side(augmentation, settings))
        return StagedTransform(reduced, Compose([crop, *changes, to_tensor]))
    resized = Compose(whole.transforms[:-1])  # type: ignore[attr-defined]
    return StagedTransform(resized, Compose([*changes, to_tensor]))


def _check_sections(policy: str) -> None:
    """ValueError for a section without a number, such as `m` or `mstdx`, which timm ignores."""
    for section in policy.split("-")[1:]:
        if not section.startswith("t") and not any(letter.isdigit() for letter in section):
            raise ValueError(f"{section!r} should end in a number")


def fix_posterize(change: Any) -> None:
    """Lets timm's policies posterize to 0 bits, which Pillow has refused since version 13."""
    for op in getattr(change, "ops", None) or chain(*getattr(change, "policy", ())):
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterized


def _posterized(image: Image, num_bits: int, **_: object) -> Image:
    """The picture with this many bits per channel; black for 0 bits."""
    if num_bits >= 8:
        return image
    return posterize(image, num_bits) if num_bits > 0 else image.point(lambda _: 0)


def evaluation_transform(
    preprocessing: Preprocessing, settings: Settings, crops: int = 1
) -> PictureTransform:
    """Resizes and crops, without randomness: uint8 [C, H, W], or [crops, C, H, W] for 5 and 10."""
    from timm.data import create_transform

    whole = create_transform(
        input_size=(settings.in_chans, *settings.image_size),
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        normalize=False,
    )
    if crops == 1:
        transform: PictureTransform = whole
        return transform
    return StagedTransform(whole.transforms[0], _SeveralCrops(settings.image_size, crops))


class _SeveralCrops:
    """Resized picture -> uint8 [crops, C, H, W]: corners and centre, then their mirror images."""

    def __init__(self, size: tuple[int, int], crops: int) -> None:
        from torchvision.transforms import FiveCrop, PILToTensor, TenCrop

        self._to_tensor = PILToTensor()
        self._cut = {5: FiveCrop, 10: TenCrop}[crops](size)

    def __call__(self, image: Image) -> Tensor:
        return torch.stack([self._to_tensor(crop) for crop in self._cut(image)])


def normalized(pixels: Tensor, preprocessing: Preprocessing, out: Tensor | None = None) -> Tensor:
    """uint8 [..., C, H, W] -> float32, into `out`: scaled to [0, 1], minus mean, over deviation."""
    mean, std = _moments(preprocessing, pixels.device)
    result = pixels.float() if out is None else out.copy_(pixels)
    return result.div_(255).sub_(mean).div_(std)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # whoever asks first, they serve everywhere
def _moments(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C, 1, 1]; kept, because an accelerator waits for a copy from the host."""
    mean, std = (
        torch.tensor(numbers, device=device).view(-1, 1, 1)
        for numbers in (preprocessing.mean, preprocessing.std)
    )
    return mean, std


class BatchAffine:
    """Mirror images, random shifts, rotations and scales of a batch, one draw per sample."""

    def __init__(self, augmentation: Augmentation, fill: Sequence[float]) -> None:
        """`fill`: the value of a normalised black pixel, per channel."""
        self._augmentation = augmentation
        self._fill = torch.tensor(fill).view(1, -1, 1, 1)
        self._is_free = bool(
            augmentation.shift_pixels or augmentation.rotation_degrees or augmentation.scale
        )

    def __call__(self, images: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        """Moves images [B, C, H, W] about their centre; what enters from outside is black."""
        changes = self._augmentation
        if not self._is_free:
            return self._moved_whole(images, generators)
        height, width = images.shape[2:]
        draws = np.stack([generator.uniform(-1.0, 1.0, 4) for generator in generators])
        angle = np.deg2rad(changes.rotation_degrees) * draws[:, 0]
        scale = 1.0 + changes.scale * draws[:, 1]
        shift = changes.shift_pixels * draws[:, 2:]
        if changes.crop_padding:
            most = changes.crop_padding
            shift = shift + [generator.integers(-most, most + 1, 2) for generator in generators]
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        aspect = height / width  # normalised coordinates stretch with the sides
        matrix = np.stack(
            [
                np.stack([cos, -sin * aspect, 2.0 / width * shift[:, 0]], axis=1),
                np.stack([sin / aspect, cos, 2.0 / height * shift[:, 1]], axis=1),
            ],
            axis=1,
        )
        if changes.flip:
            mirrored = [generator.random() < changes.flip for generator in generators]
            matrix[mirrored, :, 0] *= -1
        theta = torch.from_numpy(matrix).to(images.dtype)
        grid = affine_grid(theta, list(images.shape), align_corners=False)
        moved = grid_sample(images - self._fill, grid, padding_mode="zeros", align_corners=False)
        return moved + self._fill

    def _moved_whole(self, images: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        """Flips images in place, and shifts by whole pixels without interpolation."""
        flip, most = self._augmentation.flip, self._augmentation.crop_padding
        if not most:
            for image, generator in zip(images, generators, strict=True):
                if flip and generator.random() < flip:
                    image.copy_(image.flip(-1))
            return images
        height, width = images.shape[2:]
        padded = pad(images - self._fill, (most,) * 4) + self._fill
        moved = torch.empty_like(images)
        for image, result, generator in zip(padded, moved, generators, strict=True):
            left, top = most + generator.integers(-most, most + 1, 2)
            part = image[:, top : top + height, left : left + width]
            is_mirrored = flip and generator.random() < flip
            result.copy_(part.flip(-1) if is_mirrored else part)
        return moved


class BatchAugmentation:
    """Changes the normalised images of a batch, each with its own generator."""

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        from timm.data.random_erasing import RandomErasing

        black = [
            -mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
        ]
        self._move = BatchAffine(augmentation, black)
        self.only_mirrors = augmentation.only_mirrors
        """Whether images may also be changed before they are normalised, with the same result."""
        self._erase = (
            RandomErasing(  # type: ignore[no-untyped-call]
                augmentation.erasing,
                mode=augmentation.erasing_mode,
                max_count=augmentation.erasing_count,
                device="cpu",
            )
            if augmentation.erasing
            else None
        )

    def __call__(self, images: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        """Moves and erases images [B, C, H, W], possibly in place."""
        images = self._move(images, generators)
        if self._erase is not None:
            with isolated_global_state(0, "erasing"):
                for image, generator in zip(images, generators, strict=True):
                    reseed_global_state(int(generator.integers(2**62)), "erasing")
                    self._erase(image)
        return images


class Mixing:
    """Mixup and cutmix (timm's): image i of a batch is mixed with image B - 1 - i."""

    def __init__(self, augmentation: Augmentation, num_classes: int) -> None:
        from timm.data import Mixup

        self._num_classes = num_classes
        self._mix = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=augmentation.mixup,
            cutmix_alpha=augmentation.cutmix,
            prob=augmentation.mixing_prob,
            switch_prob=augmentation.mixing_switch,
            mode=augmentation.mixing_mode,
            label_smoothing=0.0,  # the loss does the smoothing
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W], labels [B] -> mixed images, and shares of the classes [B, classes].

        Mixes in place and draws from the global generators. The last image of an odd batch has no
        partner and stays as it is.
        """
        paired = len(labels) // 2 * 2
        shares = one_hot(labels, self._num_classes).float()
        if paired:
            _, shares[:paired] = self._mix(images[:paired], labels[:paired])
        return images, shares
