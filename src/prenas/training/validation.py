"""Validation during training: three subnets often, all of them less often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prenas.data import ImageData
from prenas.evaluation.accuracy import evaluate_archs
from prenas.families.base import Arch
from prenas.length import Length
from prenas.precision import Precision
from prenas.processes import Processes
from prenas.recipe import TrainingRecipe
from prenas.supernet import Statistics, Supernet

_MOST_VALIDATIONS = 10  # if steps decide the length: epochs may be a single step
_MOST_OF_ALL = 2


def _periods(training: TrainingRecipe, length: Length) -> tuple[int, int]:
    """Epochs between validations of some subnets, and of all; 0: never."""
    some = length.epochs_between(training.validate_epochs, _MOST_VALIDATIONS)
    every = length.epochs_between(training.validate_all_epochs, _MOST_OF_ALL)
    if length.is_in_steps and some:  # both at once, so that there are no more validations
        every = -(-every // some) * some
    return some, every


def subnets_due(
    archs: Sequence[Arch], training: TrainingRecipe, length: Length, epochs_done: int
) -> list[int]:
    """The numbers of the subnets to evaluate after this many epochs.

    They are all subnets, the smallest, middle and largest one, or none. After the last epoch they
    are all subnets if the training validates at all. If the best weights are to be handed over,
    every validation evaluates all subnets. If steps decide the length of the training, there are
    at most 10 validations, of which 2 evaluate all subnets.
    """
    some, every = _periods(training, length)

    def is_due(period: int) -> bool:
        return period > 0 and epochs_done % period == 0

    is_last = (
        epochs_done == length.num_epochs and training.validate_epochs + training.validate_all_epochs
    )
    if is_due(every) or is_last:
        return list(range(len(archs)))
    if is_due(some):
        if training.final_weights == "best":
            return list(range(len(archs)))
        return sorted({0, len(archs) // 2, len(archs) - 1})
    return []


def validations_due(
    archs: Sequence[Arch], training: TrainingRecipe, length: Length
) -> list[list[int]]:
    """The subnets of each validation of a training, one after the other."""
    periods = _periods(training, length)
    ends = {end for period in periods if period for end in range(period, length.num_epochs, period)}
    due = (subnets_due(archs, training, length, end) for end in (*sorted(ends), length.num_epochs))
    return [numbers for numbers in due if numbers]


def validate(
    supernet: Supernet,
    archs: Sequence[Arch],
    numbers: Sequence[int],
    data: ImageData,
    statistics: Sequence[Statistics],
    processes: Processes,
    precision: Precision,
) -> list[dict[str, Any]]:
    """Evaluates some of the subnets on the validation split; returns one record for each.

    Args:
        numbers: positions of these subnets in `archs`.
        statistics: those of these subnets.
        precision: recorded unless it is fp32.
    """
    rows = evaluate_archs(
        supernet,
        [archs[number] for number in numbers],
        {"validation": data.validation},
        statistics,
        num_workers=data.num_workers,
        num_crops=data.num_crops,
        processes=processes,
        precision=precision,
    )
    stated = {} if precision == "fp32" else {"precision": precision}
    return [
        {"subnet": number, "costs": row.costs, **row.splits["validation"].summary, **stated}
        for number, row in zip(numbers, rows, strict=True)
    ]
