"""Training pictures among those of a split that accuracies are measured on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from prenas.data.pictures import PictureSet
from prenas.values import plural

_MOST_NAMES, _MOST_COMPARED = 1000, 16


def notes_on_copies(split: str, evaluated: PictureSet, train: PictureSet) -> Iterator[str]:
    """A note if pictures of an evaluated split are training pictures too.

    Those with the name of a training picture are compared with it, a few of many. Names of training
    pictures ascend, if they are those of files.
    """
    names = [evaluated.names[place] for place in _some(len(evaluated), _MOST_NAMES)]
    of_both = [name for name in names if _has(train.names, name)]
    compared = [of_both[place] for place in _some(len(of_both), _MOST_COMPARED)]
    equal = [name for name in compared if _are_equal(evaluated.open, train.open, name)]
    if equal:
        yield (
            f"{split}: of {plural(len(compared), 'picture')} that have the name of a training "
            f"picture, {len(equal)} are copies of it, such as {equal[0]}: accuracy there would be "
            "too good, so give pictures that are not trained on"
        )


def _some(number: int, most: int) -> list[int]:
    """At most so many places out of a number of them, evenly spread."""
    return sorted({*np.linspace(0, number - 1, min(number, most)).astype(int).tolist()})


def _has(names: Sequence[str], name: str) -> bool:
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name


def _are_equal(
    one: Callable[[str], Image.Image], other: Callable[[str], Image.Image], name: str
) -> bool:
    """Whether two pictures have the same pixels; unreadable ones are reported elsewhere."""
    try:
        return np.array_equal(np.asarray(one(name)), np.asarray(other(name)))
    except MemoryError:
        raise
    except Exception:  # decoders fail in many ways on broken files
        return False
