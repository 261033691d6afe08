"""Feeding the device: copies of batches, reader processes, and data sets in memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.clock import Times, Work
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes, Subject
from benchmarks.gpu.steps import new_batch, next_step, our_step
from benchmarks.paired import Section
from prenas.data import (
    Batch,
    ImageData,
    load_data,
    sent,
    training_batches,
    training_epochs,
)
from prenas.data.ahead import sent_ahead
from prenas.data.augmentation import BatchAugmentation
from prenas.data.pictures import Pixels
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe

# --- copies --------------------------------------------------------------------------------------


def copies(sizes: Sizes, device: torch.device) -> Section:
    """Training steps on images on the device, in pageable memory, and in pinned memory."""
    found = Findings("Copies to the device", device, sizes)
    for size in sizes.batches:
        there = new_batch(sizes.vit, size, device)
        here = there._replace(images=there.images.cpu(), labels=there.labels.cpu())
        sources: dict[str, Callable[[], Batch]] = {
            "no copy": partial(_same, there),
            "pageable": partial(_same, here),
        }
        if device.type == "cuda":
            sources["pinned, ahead"] = partial(next, _ahead(here, device))
        else:
            found.missing(f"pinned, one batch ahead, batch {size}", "needs an accelerator")
        works = {
            name: _fed(next_step(sizes.vit, sizes.vit.archs[:1], size, device), source)
            for name, source in sources.items()
        }
        what = f"training step, batch {size}"
        times = found.times(what, works, sizes.plan.fewer(3))
        found.compare(f"{what}: pageable / no copy", times["pageable"], times["no copy"])
        if "pinned, ahead" in times:
            found.compare(
                f"{what}: pinned, ahead / no copy",
                times["pinned, ahead"],
                times["no copy"],
                target=1.03,
                limit="1.0",
            )
        found.fact(f"bytes of a batch of {size}, MB", here.images.nbytes / 1e6)
    return found.section()


def _same(batch: Batch) -> Batch:
    return batch


def _fed(step: Callable[[Batch], object], source: Callable[[], Batch]) -> Work:
    """A step on the next batch of the source."""
    return lambda: step(source())


def _ahead(batch: Batch, device: torch.device) -> Iterator[Batch]:
    """The batch again and again, as a training gets it: from pinned memory, one ahead."""
    pinned = batch._replace(images=batch.images.pin_memory(), labels=batch.labels.pin_memory())

    def send(one: Batch) -> Batch:
        return one._replace(images=sent(one.images, device), labels=sent(one.labels, device))

    return sent_ahead(repeat(pinned), device, send)


# --- reader processes ----------------------------------------------------------------------------

_CLASSES = ("even", "odd")  # two, so that the number of photographs is even


def loader(sizes: Sizes, device: torch.device) -> Section:
    """Images per second of reader processes, compared with those of the training step."""
    found = Findings("Loader, 224 px, augmentation of imagenet-tiny", device, sizes)
    batch = new_batch(sizes.vit, sizes.batches[0], device)
    step = our_step(sizes.vit, sizes.vit.archs[:1], batch, device)
    what, plan = f"training step, batch {sizes.batches[0]}", sizes.plan.fewer(4)
    step_ms = found.times(what, {"ours": step}, plan)["ours"]
    found.fact("processor cores", os.cpu_count())
    found.fact("GB of /dev/shm", _shared_memory())
    with tempfile.TemporaryDirectory() as folder:
        home = _photographs(Path(folder), sizes.num_photos, sizes.num_read)
        for number in sizes.readers:
            try:
                first, per_image = _epoch(home, number, sizes)
            except (ChildProcessError, OSError, RuntimeError) as error:
                found.missing(f"{number} readers", str(error)[:400])
                continue
            found.fact(f"{number} readers, images/s", round(1000 / per_image))
            found.fact(f"{number} readers, seconds until the first batch", round(first, 2))
            found.compare(
                f"images/s, training step / {number} readers",
                Times([per_image * sizes.batches[0]] * len(step_ms.device)),
                step_ms,
                target=1.0,
            )
    return found.section()


def _shared_memory() -> float:
    path = Path("/dev/shm")
    if not path.exists():
        return 0.0
    system = os.statvfs(path)
    return round(system.f_frsize * system.f_blocks / 1e9, 1)


def _photographs(home: Path, num_photos: int, num_read: int) -> Path:
    """JPEG files with about the size and detail of ImageNet's, several copies of each."""
    generator = np.random.default_rng(0)
    for split, number in (("train", num_read), ("val", len(_CLASSES))):
        for name in _CLASSES:
            (home / split / name).mkdir(parents=True)
        for index in range(number):
            path = home / split / _CLASSES[index % len(_CLASSES)] / f"{index}.JPEG"
            if index < num_photos:
                _photograph(generator).save(path, quality=90)
            else:
                path.hardlink_to(path.with_stem(str(index % num_photos)))
    return home


def _photograph(generator: np.random.Generator) -> Image.Image:
    """Noise at several scales, 500 x 375 pixels: about 110 kB as a JPEG."""
    total = np.full((375, 500, 3), 128.0)
    for cell in (125, 25, 5, 1):
        coarse = generator.normal(0, 14 + cell / 4, (375 // cell, 500 // cell, 3))
        total += coarse.repeat(cell, axis=0).repeat(cell, axis=1)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def _epoch(home: Path, num_workers: int, sizes: Sizes) -> tuple[float, float]:
    """Seconds until the first batch, and milliseconds per image after each reader's first batch."""
    recipe = get_recipe("imagenet-tiny")
    assert recipe.data is not None
    own = recipe.data.model_copy(
        update={"root": str(home), "memory_gib": 0.0, "num_workers": num_workers}
    )
    settings = recipe.space.settings
    batches = training_batches(load_data(own, settings), settings, sizes.reading_batch, 0, 0)
    started = time.perf_counter()
    moments, numbers = [], []
    for batch in batches:
        moments.append(time.perf_counter() - started)
        numbers.append(len(batch.labels))
    skipped = min(max(1, num_workers), len(moments) - 1)
    passed = moments[-1] - moments[skipped - 1]
    return moments[0], 1000 * passed / sum(numbers[skipped:])


# --- sets in memory ------------------------------------------------------------------------------


def in_memory(sizes: Sizes, device: torch.device) -> Section:
    """A data set of CIFAR's size: training with its batches, compared with steps on one batch."""
    found = Findings("Set in memory, end to end", device, sizes)
    subject = sizes.small_set
    data_recipe = get_recipe("cifar10").data
    assert data_recipe is not None
    data = _noise_in_memory(subject, data_recipe, sizes.num_in_memory)
    for size in sizes.batches:
        batches = _endless(data, subject, size, device)
        step = next_step(subject, subject.archs[:1], size, device)
        works: dict[str, Work] = {
            "alone": our_step(subject, subject.archs[:1], new_batch(subject, size, device), device),
            "end to end": _fed(step, partial(next, batches)),
            "batches only": partial(next, batches),
        }
        what = f"set in memory, batch {size}"
        times = found.times(what, works, sizes.plan.fewer(2))
        found.compare(
            f"{what}: end to end / step alone", times["end to end"], times["alone"], target=1.1
        )
        found.kernels(f"{what}, step", works["alone"])
    return found.section()


def _noise_in_memory(subject: Subject, data_recipe: DataRecipe, number: int) -> ImageData:
    settings = subject.settings
    shape = (number, settings.in_chans, *settings.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    channels = slice(settings.in_chans)
    preprocessing = data_recipe.preprocessing.model_copy(
        update={
            "mean": data_recipe.preprocessing.mean[channels],
            "std": data_recipe.preprocessing.std[channels],
        }
    )
    labels = [index % settings.num_classes for index in range(number)]
    split = Pixels(pixels, labels, preprocessing)
    names = tuple(map(str, range(settings.num_classes)))
    augmentation = BatchAugmentation(data_recipe.augmentation, preprocessing)
    return ImageData(split, split, None, names, augmentation=augmentation)


def _endless(data: ImageData, subject: Subject, size: int, device: torch.device) -> Iterator[Batch]:
    """Full batches on the device, epoch after epoch, as a training gets them."""
    epochs = range(1_000_000)
    for batches in training_epochs(data, subject.settings, size, 0, epochs, device=device):
        for batch in batches:
            if len(batch.labels) == size:
                yield batch
