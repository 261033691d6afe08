"""Scores and costs of one architecture, read off the tables entry by entry."""

from collections.abc import Sequence

from prenas.proxy.tables import SpaceTables


def sum_from_tables(tables: SpaceTables, skeleton: int, choices: Sequence[Sequence[int]]) -> float:
    """Score before `finish`: the base, plus one entry per axis and layer."""
    table = tables.skeletons[skeleton]
    total = table.base_score
    for axis, options in zip(table.axes, choices, strict=True):
        assert len(options) == table.num_layers
        for layer, option in enumerate(options):
            total += axis.scores[layer, option]
    return float(total)


def cost_from_tables(
    tables: SpaceTables, skeleton: int, choices: Sequence[Sequence[int]]
) -> list[int]:
    """Cost per cost axis: the base, plus one entry per axis and layer."""
    table = tables.skeletons[skeleton]
    total = table.base_cost.copy()
    for axis, options in zip(table.axes, choices, strict=True):
        for option in options:
            total += axis.costs[option]
    return total.tolist()
