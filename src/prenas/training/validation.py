"""Validation while training goes on: three subnets often, all of them less often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prenas.data import ImageData
from prenas.evaluation.accuracy import evaluate_archs
from prenas.families.base import Arch
from prenas.processes import Processes
from prenas.recipe import TrainingRecipe
from prenas.supernet import Statistics, Supernet


def subnets_due(archs: Sequence[Arch], recipe: TrainingRecipe, epochs_done: int) -> list[int]:
    """Numbers of the subnets to evaluate after so many epochs: all, the smallest, middle and
    largest, or none. All of them too after the last epoch, where anything is evaluated at all,
    and wherever the best weights are to be found.
    """

    def is_due(period: int) -> bool:
        return period > 0 and epochs_done % period == 0

    is_last = epochs_done == recipe.epochs and recipe.validate_epochs + recipe.validate_all_epochs
    if is_due(recipe.validate_all_epochs) or is_last:
        return list(range(len(archs)))
    if is_due(recipe.validate_epochs):
        if recipe.final_weights == "best":
            return list(range(len(archs)))
        return sorted({0, len(archs) // 2, len(archs) - 1})
    return []


def validate(
    supernet: Supernet,
    archs: Sequence[Arch],
    numbers: Sequence[int],
    data: ImageData,
    statistics: Sequence[Statistics],
    processes: Processes,
) -> list[dict[str, Any]]:
    """Results on the validation split of some subnets, by number: one record each.

    Args:
        statistics: of these subnets.
    """
    rows = evaluate_archs(
        supernet,
        [archs[number] for number in numbers],
        {"validation": data.validation},
        statistics,
        num_workers=data.num_workers,
        num_crops=data.num_crops,
        processes=processes,
    )
    return [
        {"subnet": number, "costs": row.costs, **row.splits["validation"].model_dump()}
        for number, row in zip(numbers, rows, strict=True)
    ]
