"""Finds groups of a table whose accuracies are off as a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prenas.bench.statistics import spearman
from prenas.proxy.scores import Floats

_FEWEST_MEMBERS = 5
_DEVIATIONS = 3.0
"""A group is off if its mean is further than so many deviations within groups from any other's."""
_NORMAL = 1.4826
"""Turns a median absolute deviation into the standard deviation of a normal distribution."""


class Block(NamedTuple):
    """A group whose accuracy contradicts its size: larger, yet worse than every smaller group by
    far, or smaller, yet better than every larger one."""

    option: str
    value: float
    num_members: int
    gap: float
    """Mean accuracy of the group less that of the group nearest in accuracy."""
    deviation: float
    """Standard deviation of the accuracy within groups, by medians."""
    correlation: float
    """Spearman's correlation of accuracy with size over the whole table."""
    correlation_elsewhere: float
    """The same without the group."""


def blocks_that_are_off(
    options: Mapping[str, Sequence[float]], size: Floats, accuracy: Floats
) -> list[Block]:
    """The blocks of a column, at most one per option.

    A group that is too good in the direction of its size looks like a strong effect, and is not
    found.

    Args:
        options: name -> the option of each architecture, such as its width; options with groups of
            fewer than five architectures are left out.
        size: [n], for instance parameters.
        accuracy: [n].
    """
    found = []
    for option, chosen in options.items():
        values, members, numbers = np.unique(chosen, return_inverse=True, return_counts=True)
        if len(values) < 2 or numbers.min() < _FEWEST_MEMBERS:
            continue
        blocks = list(_blocks(option, values, members, size, accuracy))
        found += sorted(blocks, key=lambda block: -abs(block.gap))[:1]
    return found


def _blocks(
    option: str,
    values: npt.NDArray[np.float64],
    members: npt.NDArray[np.int64],
    size: Floats,
    accuracy: Floats,
) -> Iterator[Block]:
    numbers = range(len(values))
    sizes = np.array([size[members == one].mean() for one in numbers])
    # Medians, so that a single wrong row neither hides a block nor makes one.
    middles = np.array([np.median(accuracy[members == one]) for one in numbers])
    deviation = _NORMAL * float(np.median(np.abs(accuracy - middles[members])))
    for one in numbers:
        others = [other for other in numbers if other != one]
        smaller = [middles[one] - middles[other] for other in others if sizes[other] < sizes[one]]
        larger = [middles[one] - middles[other] for other in others if sizes[other] > sizes[one]]
        contradicts = (bool(smaller) and max(smaller) < 0) or (bool(larger) and min(larger) > 0)
        gap = min((*smaller, *larger), key=abs)
        if not contradicts or abs(gap) <= _DEVIATIONS * deviation:
            continue
        rest = members != one
        yield Block(
            option,
            float(values[one]),
            int((~rest).sum()),
            float(gap),
            deviation,
            _spearman(size, accuracy),
            _spearman(size[rest], accuracy[rest]),
        )


def _spearman(one: Floats, other: Floats) -> float:
    return float(spearman(one, other, np.ones((1, len(one))))[0])
