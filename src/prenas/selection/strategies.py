"""How the subnets of a budget are chosen: by score, by score among different shapes, or at random.

The strategies are described in docs/method.md, section 3. A recipe names one (`search.strategy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prenas.cost import bounded_names
from prenas.randomness import numpy_generator
from prenas.recipe import Recipe
from prenas.recipe.budgets import Budget
from prenas.selection.graph import Candidate
from prenas.selection.select import Candidates, Pick, Watch, nothing_fits, select, unwatched
from prenas.selection.within import NothingWithinError, Within


def picks_of(
    recipe: Recipe,
    candidates: Mapping[int | None, Candidates],
    budgets: Sequence[Budget],
    watch: Watch = unwatched,
) -> list[Pick]:
    """The subnets that the recipe's strategy chooses for every budget.

    Args:
        candidates: resolution -> candidates, for every resolution of the budgets.
        watch: as for `select`.

    Raises:
        ValueError: nothing fits any budget; the message gives the range of the space.
    """
    search = recipe.search
    if search.strategy == "random":
        return _random_picks(recipe, candidates, budgets, watch)
    distance = search.shape_distance if search.strategy == "skeletons" else None
    return select(candidates, budgets, search.k, distance, watch)


def _random_picks(
    recipe: Recipe,
    candidates: Mapping[int | None, Candidates],
    budgets: Sequence[Budget],
    watch: Watch,
) -> list[Pick]:
    """For every budget, `search.k` different architectures within it, all equally likely."""
    picks = list[Pick]()
    for number, budget in enumerate(budgets):
        generator = numpy_generator(recipe.seed, "random choice", number)
        try:
            within = Within(recipe.space, budget, "archs")
        except NothingWithinError:
            continue
        tables = candidates[budget.resolution].tables
        for rank, genes in enumerate(within.draw_distinct(recipe.search.k, generator)):
            cost = dict(zip(bounded_names(), within.cost(genes), strict=True))
            score = tables.score(genes.choices)
            candidate = Candidate(genes.choices, genes.resolution, cost, score)
            picks.append(Pick(candidate, number, rank, margin=None))
        watch()
    if not picks:
        raise nothing_fits(candidates, budgets)
    return picks
