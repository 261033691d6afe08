"""One-shot NAS in a run: searches the trained supernet by evolution, budget by budget."""

from __future__ import annotations

from collections.abc import Sequence

from prenas.data import ImageData, ImageSource, drawn_subset
from prenas.evaluation.accuracy import top1_of_archs
from prenas.evaluation.calibration import calibrate_on, first_new_epoch
from prenas.families.base import Arch
from prenas.recipe import Recipe
from prenas.rivals.evolution import Accuracy, Watcher, evolve, remembering
from prenas.runs.run import Run
from prenas.selection.placing import placed_budgets
from prenas.supernet import Supernet


def evolve_budgets(
    run: Run, supernet: Supernet, data: ImageData, watch: Watcher | None = None
) -> None:
    """Searches all budgets that have not been searched yet; writes `evolution.json` after each.

    Budgets for which the zero-cost search has no subnet are skipped.

    Args:
        watch: called after every generation.
    """
    preferred, recipe = run.preferred, run.preferred.recipe
    assert recipe.evolution is not None, "the recipe has no evolution"
    known = remembering(_accuracy_on(supernet, recipe, data))
    finished = {evolved.budget: evolved for evolved in run.results.evolved}
    search = recipe.search
    budgets = placed_budgets(
        recipe.space,
        search.budgets,
        keep_partial=search.keep_partial,
        enumeration=search.enumeration,
    ).kept
    for number, budget in enumerate(budgets):
        if number in preferred.empty_budgets or str(budget) in finished:
            continue
        finished[str(budget)] = evolve(
            recipe.space, budget, known, recipe.evolution, seed=recipe.seed, watch=watch
        )
        run.results.record_evolved(list(finished.values()))


def _accuracy_on(supernet: Supernet, recipe: Recipe, data: ImageData) -> Accuracy:
    """Measures the top-1 of subnets of the trained supernet, calibrated if they need it."""
    source = comparison_images(recipe, data)

    def accuracy(archs: Sequence[Arch]) -> list[float]:
        workers, crops = data.num_workers, data.num_crops
        statistics = calibrate_on(
            supernet,
            archs,
            data,
            recipe.calibration,
            recipe.calibration.while_evolving,
            seed=recipe.seed,
            first_epoch=first_new_epoch(data, recipe.training),
        )
        return top1_of_archs(
            supernet, archs, source, statistics, num_workers=workers, num_crops=crops
        )

    return accuracy


def comparison_images(recipe: Recipe, data: ImageData) -> ImageSource:
    """The validation images that candidates are compared on: all, or the same subset for all.

    Raises:
        ValueError: the recipe asks for more images than there are, or the split is a loader, which
            cannot be sampled.
    """
    assert recipe.evolution is not None, "the recipe has no evolution"
    if (num_images := recipe.evolution.num_images) is None:
        return data.validation
    try:
        return drawn_subset(data.validation, num_images, recipe.seed, "evolution images")
    except ValueError as error:
        raise ValueError(
            f"evolution.num_images is {num_images}, but the validation split {error}: lower it, or "
            "set it to none to use all images"
        ) from None
