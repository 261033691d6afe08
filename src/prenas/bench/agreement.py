"""Compares scores with accuracies, column by column, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from prenas.bench import statistics
from prenas.bench.groups import Block, blocks_that_are_off
from prenas.bench.statistics import Weights
from prenas.bench.table import AccuracyTable
from prenas.cost import size_axis
from prenas.proxy.scores import Floats
from prenas.values import Value

NUM_RESAMPLES = 1000
_COVERAGE = 95
"""Per cent of the resamples that an interval holds."""


class Estimate(Value):
    """A statistic: its mean over seeds, and an interval that holds 95 % of its resamples.

    The interval says how much depends on which architectures are in the table; how much depends on
    the seed is in `seeds`.
    """

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    """The statistic of each seed."""


class Agreement(Value):
    """How well one score predicts one column; None where a statistic is undefined."""

    score: str
    spearman: Estimate | None
    kendall: Estimate | None
    given_counts: Estimate | None
    """Spearman's partial correlation, given the ranks of parameters and MACs."""
    given_shape: Estimate | None
    """Rank correlation among networks of the same width, depth and so on."""
    gain: Estimate | None
    """Accuracy of the top pick less the mean of its window of sizes, mean over windows."""


class Column(Value):
    """All scores on one column of accuracies."""

    name: str
    agreements: tuple[Agreement, ...]
    blocks: tuple[Block, ...]
    """Groups that are off; over all groups, such a column says little."""


def compare(table: AccuracyTable, values: Mapping[str, Floats], *, window: float) -> list[Column]:
    """Compares every score with every column of accuracies.

    Args:
        values: score -> values [seeds, n].
        window: width of the windows of sizes in which picks are compared, such as 0.1.
    """
    num = len(table.archs)
    # The table itself comes first, then its resamples.
    weights = np.vstack([np.ones(num), statistics.resamples(num, NUM_RESAMPLES, seed=0)])
    size = table.costs[size_axis().name]
    return [
        Column(
            name=name,
            agreements=tuple(
                _agreement(table, score, found, accuracy, weights, window)
                for score, found in values.items()
            ),
            blocks=tuple(blocks_that_are_off(table.network_options, size, accuracy)),
        )
        for name, accuracy in table.accuracies.items()
    ]


def _agreement(
    table: AccuracyTable,
    score: str,
    values: Floats,
    accuracy: Floats,
    weights: Weights,
    window: float,
) -> Agreement:
    costs = table.costs
    counts = np.stack(list(table.counts.values()), axis=1)
    groups, size = shape_groups(table), costs[size_axis().name]

    def over_seeds(statistic: Callable[[Floats], Floats]) -> Estimate | None:
        return _estimate([statistic(one) for one in values])

    return Agreement(
        score=score,
        spearman=over_seeds(lambda one: statistics.spearman(one, accuracy, weights)),
        kendall=over_seeds(lambda one: statistics.kendall(one, accuracy, weights)),
        given_counts=over_seeds(
            lambda one: statistics.spearman_given_counts(one, accuracy, counts, weights)
        ),
        given_shape=over_seeds(
            lambda one: statistics.spearman_given_groups(one, accuracy, groups, weights)
        ),
        gain=over_seeds(
            lambda one: statistics.window_gain(one, accuracy, size, weights, width=window)
        ),
    )


def shape_groups(table: AccuracyTable) -> npt.NDArray[np.int64]:
    """For every row, the number [n] of its group: rows that share all choices of the network."""
    options = list(table.network_options.values())
    shapes = list(zip(*options, strict=True)) if options else [()] * len(table.archs)
    numbers = {shape: number for number, shape in enumerate(dict.fromkeys(shapes))}
    return np.array([numbers[shape] for shape in shapes])


def _estimate(found: Sequence[Floats]) -> Estimate | None:
    """From the statistic of the table and of its resamples [1 + B], for each seed."""
    own = [float(one[0]) for one in found]
    resampled = np.mean([one[1:] for one in found], axis=0)
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(own).all() or not len(resampled):
        return None
    outside = (100 - _COVERAGE) / 2
    low, high = np.percentile(resampled, [outside, 100 - outside])
    return Estimate(value=float(np.mean(own)), low=float(low), high=float(high), seeds=tuple(own))
