"""How certain an accuracy is, and which subnets an evaluation cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import scipy

from prenas.models.choice import pick

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Evaluation, Metrics


def wilson_interval(metrics: Metrics) -> tuple[float, float]:
    """95 % Wilson score interval of top-1 (two shares): its uncertainty on a split of this size."""
    hits = round(metrics.top1 * metrics.num_images)
    interval = scipy.stats.binomtest(hits, metrics.num_images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def tied_with_best(rows: Sequence[Evaluation]) -> list[int]:
    """Numbers of the other subnets whose interval on validation overlaps that of the best.

    The images are the same for all subnets, so a difference may still be real.
    """
    best = pick(rows, {})
    low, _ = wilson_interval(rows[best].splits["validation"])
    return [
        number
        for number, row in enumerate(rows)
        if number != best and wilson_interval(row.splits["validation"])[1] >= low
    ]


def tied_in_words(rows: Sequence[Evaluation]) -> list[str]:
    """A sentence about subnets that tie with the best on validation; empty if there are none."""
    if not rows or "validation" not in rows[0].splits:
        return []
    tied = tied_with_best(rows)
    if not tied:
        return []
    num_images = rows[0].splits["validation"].num_images
    images = "1 image" if num_images == 1 else f"{num_images:,} images"
    many = len(tied) > 1
    named = ", ".join(map(str, tied[:-1])) + " and " * many + str(tied[-1])
    which = f"subnets {named} tie" if many else f"subnet {named} ties"
    return [
        f"{which[0].upper()}{which[1:]} with the best, subnet {pick(rows, {})}: on {images} their "
        "95 % intervals overlap."
    ]
