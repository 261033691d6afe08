"""Zero-cost search in the spaces of the paper (ICML 2023, section 4; released configurations).

Budgets are the parameter intervals of the released search: tiny 5 to 12 M by 1 M, small 13 to
33 M by 5 M, base 30 to 70 M by 12 M (66 to 70 M is no whole step and was never searched).
Expected cost: one backward pass over 64 generated images; tiny about 10 s on two CPU cores.
Command: `prenas search tiny --out runs/tiny`.
"""

from __future__ import annotations

from prenas.families import get_space
from prenas.recipe import Recipe, SearchRecipe


def tiny() -> Recipe:
    """5 to 12 M parameters."""
    return _search_only("tiny", "params=5M:12M:1M")


def small() -> Recipe:
    """13 to 33 M parameters."""
    return _search_only("small", "params=13M:33M:5M")


def base() -> Recipe:
    """30 to 70 M parameters."""
    return _search_only("base", "params=30M:70M:12M")


def _search_only(space: str, budget: str) -> Recipe:
    return Recipe(name=space, space=get_space(space), search=SearchRecipe(budgets=(budget,)))
