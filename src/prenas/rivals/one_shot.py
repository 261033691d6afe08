"""One-shot NAS in a run folder: its trained supernet searched by evolution, budget after budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prenas import artifacts
from prenas.data import ImageData, ImageSource, drawn_subset
from prenas.evaluation.accuracy import top1_of_archs
from prenas.evaluation.calibration import calibrate_on
from prenas.families import get_family
from prenas.families.base import Arch
from prenas.recipe import Recipe
from prenas.rivals.evolution import Evolved, EvolvedSet, Watcher, evolve, evolved_set, remembering
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import PreferredSet
from prenas.supernet import Supernet


def evolve_budgets(
    out: Path,
    preferred: PreferredSet,
    supernet: Supernet,
    data: ImageData,
    watch: Watcher | None = None,
) -> None:
    """Searches every budget that was not searched yet; writes `evolution.json` after each.

    Budgets that the zero-cost search found empty are left out.
    """
    recipe = preferred.recipe
    assert recipe.evolution is not None, "a recipe without evolution"
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
            first_epoch=recipe.training.epochs if recipe.training else 0,
        )
        return top1_of_archs(
            supernet, archs, source, statistics, num_workers=workers, num_crops=crops
        )

    known = remembering(accuracy)
    finished = {found.budget: found for found in finished_budgets(out, recipe)}
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
        document = {
            "family": recipe.space.family,
            "supernet_sha256": artifacts.sha256(out / artifacts.SUPERNET),
            "budgets": [found.model_dump(mode="json") for found in finished.values()],
        }
        artifacts.write_json(out / artifacts.EVOLUTION, document)


def comparison_images(recipe: Recipe, data: ImageData) -> ImageSource:
    """The validation images that candidates are compared on: all, or the same few for all.

    Raises:
        ValueError: more images than there are, or a loader, which cannot be drawn from.
    """
    assert recipe.evolution is not None, "a recipe without evolution"
    if (num_images := recipe.evolution.num_images) is None:
        return data.validation
    try:
        return drawn_subset(data.validation, num_images, recipe.seed, "evolution images")
    except ValueError as error:
        raise ValueError(
            f"evolution.num_images is {num_images}, but the validation split {error}: lower it, or "
            "set it to none for all images"
        ) from None


def finished_budgets(out: Path, recipe: Recipe) -> tuple[Evolved, ...]:
    """What evolution found so far; ValueError if it is damaged or belongs to other weights."""
    path, supernet = out / artifacts.EVOLUTION, out / artifacts.SUPERNET
    if recipe.evolution is None or not path.exists():
        return ()
    finished, digest = artifacts.parse_json(path, _parse)
    if supernet.exists() and artifacts.sha256(supernet) != digest:
        raise ValueError(
            f"{path} belongs to other weights than {supernet}: remove it, and "
            f"{artifacts.EVALUATION} and {artifacts.SUBNETS}/ beside it, to evolve anew"
        )
    return finished


def _parse(document: dict[str, Any]) -> tuple[tuple[Evolved, ...], str]:
    """The finished budgets, and the digest of the supernet that they were searched in."""
    arch_type = get_family(document["family"]).arch_type
    finished = tuple(
        Evolved.model_validate({**found, "arch": arch_type.model_validate(found["arch"])})
        for found in document["budgets"]
    )
    return finished, document["supernet_sha256"]


def evolved_subnets(out: Path, preferred: PreferredSet) -> EvolvedSet | None:
    """The evolved subnets of a run; None until every budget is searched."""
    finished = finished_budgets(out, preferred.recipe)
    missing = {
        budget
        for number, budget in enumerate(preferred.budgets)
        if number not in preferred.empty_budgets
    } - {found.budget for found in finished}
    return None if missing or not finished else evolved_set(preferred, finished)


def handed_over(out: Path, preferred: PreferredSet) -> PreferredSet:
    """The subnets that a run evaluates and hands over: preferred, or of one-shot NAS evolved.

    Raises:
        ValueError: evolution is not finished; names the command.
    """
    if preferred.recipe.evolution is None:
        return preferred
    if (found := evolved_subnets(out, preferred)) is None:
        raise ValueError(
            f"{out} holds no finished evolution, by which its recipe chooses subnets: "
            f"run `prenas evolve {out}` first"
        )
    return found
