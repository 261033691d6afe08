"""Calibration: what BatchNorm knows of the images, gathered for every subnet after training.

Subnets share weights, but each sees other numbers flow through it, so training keeps no statistics
at all. Afterwards every subnet looks at some augmented training images (BigNAS, ECCV 2020; Yu and
Huang, ICCV 2019). Families without BatchNorm have nothing to calibrate, and get nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count as count_up
from itertools import islice

import torch
from torch import Tensor

from prenas.data import Batch, ImageData, num_samples, readers_watched, training_batches
from prenas.families.base import Arch, Settings
from prenas.processes import ALONE, Processes
from prenas.recipe import CalibrationRecipe
from prenas.supernet import Statistics, Supernet


def calibrate(
    supernet: Supernet,
    archs: Sequence[Arch],
    batches: Iterable[Tensor],
    *,
    processes: Processes = ALONE,
) -> list[Statistics]:
    """The statistics of every subnet over batches of images [B, C, H, W].

    Plain averages over the batches, which should be of one size. The supernet stays as it is.

    Args:
        processes: they share the subnets among them; all get all statistics, the same to the bit
            as one process alone.
    """
    found = [supernet.fresh_statistics(arch) for arch in archs]
    if not supernet.has_statistics:
        return list(found)
    device = next(supernet.parameters()).device
    own = list(processes.share(range(len(archs))))
    for images in batches:
        for number in own:
            supernet.observe(images.to(device), archs[number], found[number])
    for number, statistics in enumerate(found):
        for tensor in statistics.values():
            if number not in own:
                tensor.zero_()
            processes.add_up(tensor)
    return list(found)


def calibration_batches(
    data: ImageData,
    settings: Settings,
    recipe: CalibrationRecipe,
    num_images: int,
    *,
    seed: int,
    first_epoch: int,
) -> Iterator[Tensor]:
    """Augmented training images in whole batches: the same in every process and at every call.

    They are those of the epochs that would follow the training, whose draws it never made. They are
    not mixed with each other, as evaluated images never are. What an epoch has beyond whole batches
    is left out.

    Raises:
        ValueError: a loader that gives fewer images than one batch.
    """
    unmixed = replace(data, mixing=None, repeats=1)
    size = min(recipe.batch_size, num_images, num_samples(data.train))
    batches = (
        images
        for epoch in count_up(first_epoch)
        for images in _whole(training_batches(unmixed, settings, size, seed, epoch), size)
    )
    return islice(batches, num_images // size)


def _whole(batches: Iterable[Batch], size: int) -> Iterator[Tensor]:
    """Images in batches of that size, of whatever size a loader's batches are."""
    num_found, held = 0, list[Tensor]()
    for batch in batches:
        held.append(batch.images)
        while sum(map(len, held)) >= size:
            images = torch.cat(held)
            held = [images[size:]]
            num_found += 1
            yield images[:size]
    if num_found == 0:
        raise ValueError(
            f"the training loader gives {sum(map(len, held))} images, fewer than the {size} of a "
            "batch that statistics are gathered on: lower calibration.batch_size, or check "
            "drop_last and its sampler"
        )


@readers_watched()
def calibrate_on(
    supernet: Supernet,
    archs: Sequence[Arch],
    data: ImageData,
    recipe: CalibrationRecipe,
    num_images: int | None = None,
    *,
    seed: int,
    first_epoch: int,
    processes: Processes = ALONE,
) -> list[Statistics]:
    """Calibrates subnets on training images, by default as many as the recipe says for the end.

    Raises:
        ValueError: data that do not suit the network, or statistics that are not finite.
        ChildProcessError: a process that reads images has died.
    """
    batches: Iterable[Tensor] = ()
    if supernet.has_statistics:
        batches = calibration_batches(
            data,
            supernet.settings,
            recipe,
            recipe.num_images if num_images is None else num_images,
            seed=seed,
            first_epoch=first_epoch,
        )
    found = calibrate(supernet, archs, batches, processes=processes)
    for arch, statistics in zip(archs, found, strict=True):
        if not all(torch.isfinite(tensor).all() for tensor in statistics.values()):
            raise ValueError(
                f"the statistics of subnet {arch.id} are not finite: its weights or the images are "
                "not. Train again with a lower training.lr_per_512_images, or mend the data"
            )
    return found
