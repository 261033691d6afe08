"""Images per second of the loader alone on photographs, compared with timm's; stages, decoders.

Every photograph is used twice, so that an epoch has batches for all readers. Our readers are forked
again for every epoch, timm's stay alive. The files are read from memory, the cache of the system.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from benchmarks.paired import Options, Ratio, Section, ratio, take_turns
from prenas.data import ImageData, load_data, training_batches
from prenas.data.augmentation import (
    BatchAugmentation,
    Mixing,
    fix_posterize,
    normalized,
    training_transform,
)
from prenas.data.pictures import with_channels
from prenas.randomness import isolated_global_state, numpy_generator
from prenas.recipe import Recipe
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe

T = TypeVar("T")
TITLE = "Loader alone: photographs, the augmentation of imagenet-tiny, 224 px"
TAR = "imagenet-250.tar"
NUM_IMAGES = 500
BATCH_SIZE = 50  # even, as timm's mixing requires
WORKERS = (0, 2)


def measure(options: Options) -> Section:
    """Epochs of both loaders in turns, with one thread per process."""
    tar = Path(os.environ.get("PRENAS_DATA", "")) / TAR
    if not tar.exists():
        return Section(
            TITLE, (), {"not measured": f"{tar} does not exist: set PRENAS_DATA to its folder"}
        )
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            home = _unpacked(tar, Path(folder))
            ratios, facts = _loaders(home, options.rounds)
            contents = [path.read_bytes() for path in sorted((home / "train").rglob("*.JPEG"))]
            contents = contents[::2]
            stages = _stages(contents)
            decoder_ratios, decoder_facts = _decoders(contents, options.rounds)
    finally:
        torch.set_num_threads(options.threads)
    return Section(TITLE, (*ratios, *decoder_ratios), facts | stages | decoder_facts)


def _ms(seconds: Sequence[float], num_images: int) -> float:
    return 1000 * median(seconds) / num_images


def _unpacked(tar: Path, home: Path) -> Path:
    """Unpacks the photographs twice as `train/`, and one class of them as `val/`."""
    with tarfile.open(tar) as file:
        file.extractall(home, filter="data")
    (home / "val").rename(home / "train")
    for path in list((home / "train").rglob("*.JPEG")):
        path.with_stem(f"{path.stem}-again").hardlink_to(path)
    first = min((home / "train").iterdir())
    shutil.copytree(first, home / "val" / first.name)
    return home


# --- loaders -------------------------------------------------------------------------------------


def _loaders(home: Path, rounds: int) -> tuple[list[Ratio], dict[str, Any]]:
    recipe = get_recipe("imagenet-tiny")
    variants: dict[str, Callable[[], object]] = {}
    own_seconds = defaultdict[str, list[float]](list)

    def add(name: str, epoch: Callable[[], int]) -> None:
        def timed() -> None:
            started = time.process_time()
            num_images = epoch()
            own_seconds[name].append(time.process_time() - started)
            assert num_images == NUM_IMAGES, f"{name}: an epoch of {num_images} images"

        variants[name] = timed

    for num_workers in WORKERS:
        ours = _recipe_on(home, recipe, num_workers)
        add(f"prenas, {num_workers} workers", _epochs(load_data(ours, recipe.space.settings)))
        add(f"timm, {num_workers} workers", _timm_epochs(home, ours))
    thrice = _recipe_on(home, recipe, 0, repeats=3)
    add("prenas, 0 workers, 3 repeats", _epochs(load_data(thrice, recipe.space.settings)))
    seconds = take_turns(variants, rounds)
    ratios = [
        ratio(
            f"seconds of an epoch, prenas / timm, {number} workers",
            seconds[f"prenas, {number} workers"],
            seconds[f"timm, {number} workers"],
        )
        for number in WORKERS
    ]
    facts = {f"images/s, {name}": NUM_IMAGES / median(found) for name, found in seconds.items()}
    facts |= {
        f"own ms per image of the process that trains, {name}": _ms(found, NUM_IMAGES)
        for name, found in own_seconds.items()
    }
    return ratios, facts


def _recipe_on(home: Path, recipe: Recipe, num_workers: int, repeats: int = 1) -> DataRecipe:
    assert recipe.data is not None
    augmentation = recipe.data.augmentation.model_copy(update={"repeats": repeats})
    return recipe.data.model_copy(
        update={
            "root": str(home),
            "memory_gib": 0.0,
            "num_workers": num_workers,
            "augmentation": augmentation,
        }
    )


def _epochs(data: ImageData) -> Callable[[], int]:
    settings = get_recipe("imagenet-tiny").space.settings
    epochs = count()

    def epoch() -> int:
        batches = training_batches(data, settings, BATCH_SIZE, seed=0, epoch=next(epochs))
        return sum(len(batch.labels) for batch in batches)

    return epoch


def _timm_epochs(home: Path, data_recipe: DataRecipe) -> Callable[[], int]:
    """As in timm's training script: mixed while collating, then normalised and erased."""
    from timm.data import FastCollateMixup, create_dataset, create_loader

    augmentation = data_recipe.augmentation
    dataset = create_dataset("", root=str(home / "train"))
    loader = create_loader(
        dataset,
        input_size=(3, 224, 224),
        batch_size=BATCH_SIZE,
        is_training=True,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.flip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.auto_augment,
        interpolation=data_recipe.preprocessing.interpolation,
        re_prob=augmentation.erasing,
        re_mode=augmentation.erasing_mode,
        re_count=augmentation.erasing_count,
        collate_fn=FastCollateMixup(
            mixup_alpha=augmentation.mixup,
            cutmix_alpha=augmentation.cutmix,
            prob=augmentation.mixing_prob,
            switch_prob=augmentation.mixing_switch,
            mode=augmentation.mixing_mode,
        ),
        num_workers=data_recipe.num_workers,
        device=torch.device("cpu"),
    )
    for change in dataset.transform.transforms:
        fix_posterize(change)  # otherwise Pillow 13 rejects some of the policy's draws
    return lambda: sum(len(labels) for _, labels in loader)


# --- stages ---------------------------------------------------------------------------------------


def _stages(contents: Sequence[bytes]) -> dict[str, float]:
    """Where the time of one image goes, stage by stage in the order of the reader."""
    recipe = get_recipe("imagenet-tiny")
    assert recipe.data is not None
    augmentation, preprocessing = recipe.data.augmentation, recipe.data.preprocessing
    settings = recipe.space.settings
    staged = training_transform(augmentation, preprocessing, settings)
    crop, policy, to_tensor = staged.rest.transforms  # type: ignore[attr-defined]
    mirror = BatchAugmentation(augmentation.model_copy(update={"erasing": 0.0}), preprocessing)
    erase = BatchAugmentation(augmentation.model_copy(update={"flip": 0.0}), preprocessing)
    mix = Mixing(augmentation, settings.num_classes)
    seconds = defaultdict[str, float](float)

    def timed(stage: str, work: Callable[..., T], *inputs: Any) -> T:
        started = time.perf_counter()
        result = work(*inputs)
        seconds[stage] += time.perf_counter() - started
        return result

    for start in range(0, len(contents), BATCH_SIZE):
        rows = []
        part = contents[start : start + BATCH_SIZE]
        with isolated_global_state(0, "stages", start):
            for content in part:
                image = timed("open", lambda content=content: Image.open(io.BytesIO(content)))
                image = timed("decode", with_channels, image, 3)
                image = timed("crop and resize", crop, image)
                image = timed("RandAugment", policy, image)
                rows.append(timed("to tensor", to_tensor, image))
            images = torch.empty(len(rows), *rows[0].shape)
            for pixels, row in zip(rows, images, strict=True):
                timed("normalise", lambda p=pixels, r=row: normalized(p, preprocessing, out=r))
            generators = [numpy_generator(0, "stages", index) for index in range(len(rows))]
            timed("mirror", mirror, images, generators)
            timed("erase", erase, images, generators)
            timed("mix", mix, images, torch.arange(len(rows)))
    return {
        f"stage, ms per image, {stage}": 1000 * total / len(contents)
        for stage, total in seconds.items()
    }


# --- decoders ------------------------------------------------------------------------------------


def _decoders(contents: Sequence[bytes], rounds: int) -> tuple[list[Ratio], dict[str, Any]]:
    """Compares the installed decoders, all of them to RGB."""
    found = dict(_installed_decoders())
    seconds = take_turns(
        {
            name: lambda decode=decode: [decode(c) for c in contents]
            for name, decode in found.items()
        },
        rounds,
    )
    ratios = [
        ratio(f"decoding, {name} / Pillow", seconds[name], seconds["Pillow"])
        for name in found
        if name != "Pillow"
    ]
    return ratios, {
        f"decoding, ms per image, {name}": _ms(found, len(contents))
        for name, found in seconds.items()
    }


def _installed_decoders() -> Iterator[tuple[str, Callable[[bytes], Any]]]:
    from torchvision.io import ImageReadMode, decode_jpeg

    yield "Pillow", lambda content: Image.open(io.BytesIO(content)).convert("RGB")

    def with_torchvision(content: bytes) -> Any:
        tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(tensor, mode=ImageReadMode.RGB)

    yield "torchvision", with_torchvision
    try:
        import simplejpeg  # type: ignore[import-not-found]

        yield "simplejpeg", simplejpeg.decode_jpeg
    except ImportError:
        pass
    try:
        import cv2  # type: ignore[import-not-found]

        def with_opencv(content: bytes) -> Any:
            return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)

        yield "OpenCV", with_opencv
    except ImportError:
        pass
