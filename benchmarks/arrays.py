"""Seconds until a set in memory is ready: taken as one array, and picture by picture.

Pictures that must be resized, or that are no array, are read one by one, as all were before.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.paired import Options, Section, ratio, take_turns
from prenas.data.augmentation import evaluation_transform
from prenas.data.pictures import ArrayPictures, PictureSet, prepare
from prenas.families.vit.space import VitSettings
from prenas.recipe.data import Preprocessing

TITLE = "Sets in memory: 20,000 grey pictures of 28 x 28, like those of Fashion-MNIST"
NUM_IMAGES = 20_000


def measure(options: Options) -> Section:
    """Both ways in turns, on one thread."""
    shape = (1, 28, 28)
    settings = VitSettings(image_size=28, in_chans=1, num_classes=10, patch_size=4)
    preprocessing = Preprocessing(crop_pct=1.0)
    transform = evaluation_transform(preprocessing, settings)
    arrays = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, *shape[1:]), dtype=np.uint8)
    names = [*map(str, range(NUM_IMAGES))]

    def reading(given: ArrayPictures) -> None:
        prepare(
            PictureSet(names, [0] * NUM_IMAGES, given),
            transform,
            shape,
            preprocessing,
            is_fixed=True,
            memory_bytes=2**30,
            skip=False,
        )

    torch.set_num_threads(1)
    try:
        seconds = take_turns(
            {
                "at once": lambda: reading(ArrayPictures(arrays)),
                "one by one": lambda: reading(ArrayPictures([*arrays])),
            },
            options.rounds,
        )
    finally:
        torch.set_num_threads(options.threads)
    found = ratio("at once / one by one", seconds["at once"], seconds["one by one"])
    return Section(TITLE, (found,), {})
