"""Calibration: measures the BatchNorm statistics of every subnet after training.

Subnets share weights, but their activations differ, so no statistics are kept during training.
Afterwards the statistics of each subnet are measured on augmented training images (BigNAS, ECCV
2020; Yu and Huang, ICCV 2019). Families without BatchNorm have nothing to calibrate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count as count_up
from itertools import islice

import torch
from torch import Tensor

from prenas.data import (
    Batch,
    ImageData,
    num_batches,
    num_samples,
    readers_watched,
    training_batches,
)
from prenas.families.base import Arch, Settings
from prenas.length import length_of
from prenas.precision import Precision, computing
from prenas.processes import ALONE, Processes
from prenas.recipe import CalibrationRecipe, TrainingRecipe
from prenas.supernet import Statistics, Supernet


def calibrate(
    supernet: Supernet,
    archs: Sequence[Arch],
    batches: Iterable[Tensor],
    *,
    processes: Processes = ALONE,
    precision: Precision = "fp32",
    watch: Callable[[int], None] | None = None,
) -> list[Statistics]:
    """Measures the statistics of every subnet on batches of images [B, C, H, W].

    They are plain averages over the batches, which should all have the same size. The supernet is
    not changed.

    Args:
        processes: each calibrates some of the subnets; every process gets the statistics of all
            subnets, bit for bit as a single process would compute them.
        precision: of the networks; the statistics are float32.
        watch: called after every batch, with its number of images.
    """
    found = [supernet.fresh_statistics(arch) for arch in archs]
    if not supernet.has_statistics:
        return list(found)
    device = next(supernet.parameters()).device
    own = list(processes.share(range(len(archs))))
    for images in batches:
        moved = images.to(device)
        with computing(precision, device):
            for number in own:
                supernet.observe(moved, archs[number], found[number])
        if watch is not None:
            watch(len(images))
    for number, statistics in enumerate(found):
        for tensor in statistics.values():
            if number not in own:
                tensor.zero_()
            processes.add_up(tensor)
    return list(found)


def calibration_batches(
    data: ImageData,
    settings: Settings,
    calibration: CalibrationRecipe,
    num_images: int,
    *,
    seed: int,
    first_epoch: int,
) -> Iterator[Tensor]:
    """Augmented training images in full batches: the same in every process and at every call.

    They come from the epochs that would follow the training, so their augmentation is new. They are
    not mixed (mixup, CutMix), as evaluated images are not mixed either. Images of an epoch that do
    not fill a batch are dropped.

    Raises:
        ValueError: a loader yields fewer images than one batch.
    """
    size, number = calibration_size(data, calibration, num_images)
    unmixed = replace(data, mixing=None, repeats=1)
    batches = (
        images
        for epoch in count_up(first_epoch)
        for images in _whole(training_batches(unmixed, settings, size, seed, epoch), size)
    )
    return islice(batches, number)


def calibration_size(
    data: ImageData, calibration: CalibrationRecipe, num_images: int | None = None
) -> tuple[int, int]:
    """(images of a batch, number of batches); arguments as for `num_calibrated`."""
    number = num_calibrated(data, calibration, num_images)
    size = min(calibration.batch_size, number, num_samples(data.train))
    return size, number // size


def num_calibrated(
    data: ImageData, calibration: CalibrationRecipe, num_images: int | None = None
) -> int:
    """Number of images, fewer than asked for if the set is small; None: as after the training."""
    asked = calibration.num_images if num_images is None else num_images
    return min(asked, calibration.max_passes * num_samples(data.train))


def first_new_epoch(data: ImageData, training: TrainingRecipe | None) -> int:
    """The epoch after those of the training, so that its augmentation is new."""
    if training is None:
        return 0
    return length_of(training, num_batches(data.train, training.batch_size)).num_epochs


def _whole(batches: Iterable[Batch], size: int) -> Iterator[Tensor]:
    """Regroups the images into batches of `size`, whatever the size of the given batches."""
    num_batches, held = 0, list[Tensor]()
    for batch in batches:
        held.append(batch.images)
        while sum(map(len, held)) >= size:
            images = torch.cat(held)
            held = [images[size:]]
            num_batches += 1
            yield images[:size]
    if num_batches == 0:
        raise ValueError(
            f"the training loader yields {sum(map(len, held))} images, fewer than the {size} of a "
            "calibration batch: lower calibration.batch_size, or check drop_last and the sampler"
        )


@readers_watched()
def calibrate_on(
    supernet: Supernet,
    archs: Sequence[Arch],
    data: ImageData,
    calibration: CalibrationRecipe,
    num_images: int | None = None,
    *,
    seed: int,
    first_epoch: int,
    processes: Processes = ALONE,
    precision: Precision = "fp32",
    watch: Callable[[int], None] | None = None,
) -> list[Statistics]:
    """Calibrates subnets on training images.

    Args:
        num_images: how many; None: `calibration.num_images`, as after the training.
        first_epoch: the epoch to take images from, and to continue from as needed.
        watch: called after every batch, with its number of images.

    Raises:
        ValueError: the data do not fit the network, or the statistics are not finite.
        ChildProcessError: a process that reads images has died.
    """
    batches: Iterable[Tensor] = ()
    if supernet.has_statistics:
        batches = calibration_batches(
            data,
            supernet.settings,
            calibration,
            calibration.num_images if num_images is None else num_images,
            seed=seed,
            first_epoch=first_epoch,
        )
    found = calibrate(
        supernet, archs, batches, processes=processes, precision=precision, watch=watch
    )
    for arch, statistics in zip(archs, found, strict=True):
        if not all(torch.isfinite(tensor).all() for tensor in statistics.values()):
            raise ValueError(
                f"the statistics of subnet {arch.id} are not finite, so its weights or the images "
                "contain non-finite values: train again with a lower training.lr_per_512_images, "
                "or fix the images"
            )
    return found
