"""How well a score orders architectures by accuracy, and how sure that is.

Every statistic takes a matrix of weights [B, n]: how often each of the n architectures occurs in
each of B samples. A row of ones is the table itself; rows drawn by `resamples` are its bootstrap
(Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979). A weight of
two counts exactly like the same architecture twice. A statistic that is undefined is NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prenas.proxy.scores import Floats
from prenas.randomness import numpy_generator

Weights = npt.NDArray[np.float64]

FEWEST_IN_WINDOW = 5
"""A window of fewer architectures says nothing about choosing in it."""
_NEGLIGIBLE = 1e-9
"""Share of the variance of ranks below which nothing but rounding is left of it."""
_FEWEST_FREE = 10
"""Degrees of freedom that a correlation within groups must keep."""


def resamples(num_rows: int, num: int, seed: int) -> Weights:
    """Weights [num, num_rows]: how often each row occurs when num_rows are drawn with replacement.

    All scores and columns of a table share them, so that their intervals can be compared.
    """
    generator = numpy_generator(seed, "bootstrap")
    each = np.full(num_rows, 1 / num_rows)
    return generator.multinomial(num_rows, each, size=num).astype(np.float64)


def spearman(score: Floats, accuracy: Floats, weights: Weights) -> Floats:
    """Spearman's rank correlation [B]; ties get their mean rank.

    Args:
        score: [n].
        accuracy: [n].
        weights: [B, n].
    """
    roots = np.sqrt(weights)
    left, right = (_centred(ranks(one, weights), weights) * roots for one in (score, accuracy))
    return _cosine(left, right)


def kendall(score: Floats, accuracy: Floats, weights: Weights) -> Floats:
    """Kendall's tau-b [B] (Kendall, "The treatment of ties in ranking problems", 1945).

    Arguments as for `spearman`.
    """
    orders = [np.sign(one[:, None] - one[None, :]) for one in (score, accuracy)]
    both, *each = (_pairs(one, weights) for one in (orders[0] * orders[1], *map(np.abs, orders)))
    return _ratio(both, np.sqrt(each[0] * each[1]))


def spearman_given_counts(
    score: Floats, accuracy: Floats, counts: Floats, weights: Weights
) -> Floats:
    """Partial rank correlation [B]: what the score knows beyond the ranks of the counts.

    The correlation of what is left of the ranks of score and accuracy once their least-squares fit
    by the ranks of all counts is taken away (Kendall, "Partial rank correlation", Biometrika 1942,
    with Spearman's coefficient). NaN if nothing is left of one of them, as for a count itself.

    Args:
        counts: [n, k], for instance parameters and multiply-accumulates.
    """
    given = np.stack([_centred(ranks(one, weights), weights) for one in counts.T], axis=-1)
    roots = np.sqrt(weights)
    # By singular vectors, because counts may order all rows alike.
    vectors, sizes, _ = np.linalg.svd(given * roots[..., None], full_matrices=False)
    vectors = vectors * (sizes > sizes[:, :1] * _NEGLIGIBLE)[:, None, :]

    def left(values: Floats) -> Floats:
        centred = _centred(ranks(values, weights), weights)
        scaled = centred * roots
        fitted = np.einsum("bnk,bmk,bm->bn", vectors, vectors, scaled, optimize=True)
        return _unless_negligible(scaled - fitted, scaled)

    return _cosine(left(score), left(accuracy))


def spearman_given_groups(
    score: Floats, accuracy: Floats, groups: npt.NDArray[np.int64], weights: Weights
) -> Floats:
    """Rank correlation [B] within groups: the group's mean rank is taken from every rank.

    NaN if nothing varies within groups, or if there are nearly as many groups as rows.

    Args:
        groups: [n], the number of each row's group, from 0 on.
    """
    members = np.eye(groups.max() + 1)[groups]  # [n, groups]
    if len(groups) - members.shape[1] < _FEWEST_FREE:
        return np.full(len(weights), np.nan)
    sizes = weights @ members

    def left(values: Floats) -> Floats:
        ranked = ranks(values, weights)
        means = (weights * ranked) @ members / np.maximum(sizes, 1)
        within = ranked - means @ members.T
        roots = np.sqrt(weights)
        return _unless_negligible(within * roots, _centred(ranked, weights) * roots)

    return _cosine(left(score), left(accuracy))


def window_gain(
    score: Floats, accuracy: Floats, size: Floats, weights: Weights, *, width: float
) -> Floats:
    """By how much the pick with the highest score is better than the mean of its window [B].

    A window begins at the size of one architecture and holds all that are at most `width` larger;
    the result is the mean over the windows of all architectures, in the unit of the accuracy. Of
    equal scores, the mean is taken. Windows with fewer than five architectures are left out; NaN if
    there are no others.

    Args:
        size: [n], for instance parameters.
        width: of a window, relative to its beginning; 0.1 is ten per cent.
    """
    total, number = np.zeros(len(weights)), np.zeros(len(weights))
    for first in range(len(size)):
        inside = np.flatnonzero((size >= size[first]) & (size <= size[first] * (1 + width)))
        if len(inside) < FEWEST_IN_WINDOW:
            continue
        present = weights[:, inside]
        found = np.where(present > 0, score[inside], -np.inf)
        picked = present * (found == found.max(axis=1, keepdims=True))
        gain = _mean(accuracy[inside], picked) - _mean(accuracy[inside], present)
        counted = weights[:, first] * ((present > 0).sum(axis=1) > 1)
        total += np.where(counted > 0, gain * counted, 0.0)
        number += counted
    return _ratio(total, number)


def ranks(values: Floats, weights: Weights) -> Floats:
    """The rank [B, n] that each value has in each sample; equal values share their mean rank."""
    below = weights @ (values[:, None] < values[None, :])
    equal = weights @ (values[:, None] == values[None, :])
    result: Floats = below + (equal + 1) / 2
    return result


def _centred(values: Floats, weights: Weights) -> Floats:
    mean = (values * weights).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    result: Floats = values - mean
    return result


def _cosine(one: Floats, other: Floats) -> Floats:
    lengths = (one**2).sum(axis=1) * (other**2).sum(axis=1)
    return _ratio((one * other).sum(axis=1), np.sqrt(lengths))


def _unless_negligible(left: Floats, whole: Floats) -> Floats:
    """What is left [B, n], or zeros in samples where that is only rounding."""
    share = _ratio((left**2).sum(axis=1), (whole**2).sum(axis=1))
    result: Floats = left * (np.nan_to_num(share) > _NEGLIGIBLE)[:, None]
    return result


def _pairs(matrix: Floats, weights: Weights) -> Floats:
    """The sum of a matrix [n, n] over all pairs of each sample [B]."""
    result: Floats = ((weights @ matrix) * weights).sum(axis=1)
    return result


def _mean(values: Floats, weights: Weights) -> Floats:
    return _ratio(weights @ values, weights.sum(axis=1))


def _ratio(above: Floats, below: Floats) -> Floats:
    """The quotient, NaN instead of a division by zero."""
    result: Floats = np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
    return result
