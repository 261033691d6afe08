"""What brings images to the device: copies, processes that read, sets in memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.clock import Times, Work
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes, Subject
from benchmarks.gpu.steps import new_batch, next_step, our_step
from benchmarks.paired import Section
from prenas.data import Batch, ImageData, load_data, training_batches
from prenas.data.augmentation import BatchAugmentation
from prenas.data.pictures import Pixels
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe

# --- copies --------------------------------------------------------------------------------------


def copies(sizes: Sizes, device: torch.device) -> Section:
    """Images that lie on the device, that come from pageable memory, and from pinned, ahead."""
    found = Findings("Copies to the device", device, sizes)
    for size in sizes.batches:
        there = new_batch(sizes.vit, size, device)
        here = there._replace(images=there.images.cpu(), labels=there.labels.cpu())
        sources: dict[str, Callable[[], Batch]] = {
            "no copy": partial(_same, there),
            "pageable": partial(_same, here),
        }
        if device.type == "cuda":
            sources["pinned, ahead"] = _Ahead(here)
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
    """A step on whatever the source gives next."""
    return lambda: step(source())


class _Ahead:
    """Gives a batch on the device, and starts to copy the next one on a stream of its own."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._images, self._labels = batch.images.pin_memory(), batch.labels.pin_memory()
        self._stream = torch.cuda.Stream()
        self._next = self._copied()

    def __call__(self) -> Batch:
        now = torch.cuda.current_stream()
        now.wait_stream(self._stream)
        images, labels = self._next
        for tensor in (images, labels):
            tensor.record_stream(now)
        self._next = self._copied()
        return self._batch._replace(images=images, labels=labels)

    def _copied(self) -> tuple[Tensor, Tensor]:
        with torch.cuda.stream(self._stream):
            images, labels = (
                tensor.to("cuda", non_blocking=True) for tensor in (self._images, self._labels)
            )
        return images, labels


# --- processes that read -------------------------------------------------------------------------

_CLASSES = ("even", "odd")  # so the number of photographs is even


def loader(sizes: Sizes, device: torch.device) -> Section:
    """Images per second of processes that read photographs, beside those of the training step."""
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
    place = Path("/dev/shm")
    if not place.exists():
        return 0.0
    found = os.statvfs(place)
    return round(found.f_frsize * found.f_blocks / 1e9, 1)


def _photographs(home: Path, num_photos: int, num_read: int) -> Path:
    """JPEG files of about the size and detail of ImageNet's, each there several times."""
    generator = np.random.default_rng(0)
    for split, number in (("train", num_read), ("val", len(_CLASSES))):
        for name in _CLASSES:
            (home / split / name).mkdir(parents=True)
        for place in range(number):
            path = home / split / _CLASSES[place % len(_CLASSES)] / f"{place}.JPEG"
            if place < num_photos:
                _photograph(generator).save(path, quality=90)
            else:
                path.hardlink_to(path.with_stem(str(place % num_photos)))
    return home


def _photograph(generator: np.random.Generator) -> Image.Image:
    """Noise of every scale, 500 x 375: about 110 kB as a JPEG."""
    total = np.full((375, 500, 3), 128.0)
    for cell in (125, 25, 5, 1):
        coarse = generator.normal(0, 14 + cell / 4, (375 // cell, 500 // cell, 3))
        total += coarse.repeat(cell, axis=0).repeat(cell, axis=1)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def _epoch(home: Path, num_workers: int, sizes: Sizes) -> tuple[float, float]:
    """Seconds until the first batch; milliseconds per image once every reader has given one."""
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
    """A set of CIFAR's size: batches made and trained on, beside steps on a batch that is there."""
    found = Findings("Set in memory, end to end", device, sizes)
    subject = sizes.small_set
    recipe = get_recipe("cifar10").data
    assert recipe is not None
    data = _noise_in_memory(subject, recipe, sizes.num_in_memory)
    for size in sizes.batches:
        batches = _endless(data, subject, size)
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


def _noise_in_memory(subject: Subject, recipe: DataRecipe, number: int) -> ImageData:
    settings = subject.settings
    shape = (number, settings.in_chans, *settings.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    channels = slice(settings.in_chans)
    preprocessing = recipe.preprocessing.model_copy(
        update={
            "mean": recipe.preprocessing.mean[channels],
            "std": recipe.preprocessing.std[channels],
        }
    )
    labels = [place % settings.num_classes for place in range(number)]
    split = Pixels(pixels, labels, preprocessing)
    names = tuple(map(str, range(settings.num_classes)))
    augmentation = BatchAugmentation(recipe.augmentation, preprocessing)
    return ImageData(split, split, None, names, augmentation=augmentation)


def _endless(data: ImageData, subject: Subject, size: int) -> Iterator[Batch]:
    """Epoch after epoch, whole batches only."""
    for epoch in count():
        for batch in training_batches(data, subject.settings, size, seed=0, epoch=epoch):
            if len(batch.labels) == size:
                yield batch
