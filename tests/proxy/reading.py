"""Scores and costs of one architecture, read from the tables entry by entry."""

from collections.abc import Iterator

from prenas.families.base import Choices
from prenas.proxy.tables import SpaceTables, StageTable


def entries(
    tables: SpaceTables, choices: Choices
) -> Iterator[tuple[StageTable, tuple[int, int], tuple[int, int] | None]]:
    """(table, width before and width, layer and its option, or None outside layers)."""
    before = 0
    for table, (width, depth, options) in zip(tables.stages, choices, strict=True):
        yield table, (before, width), None
        for layer in range(depth):
            number = 0
            for of_axis, size in zip(options, table.num_options, strict=True):
                number = number * size + of_axis[layer]
            yield table, (before, width), (layer, number)
        before = width


def sum_from_tables(tables: SpaceTables, choices: Choices) -> float:
    """Sum of scores, before `finish`."""
    total = 0.0
    for table, ends, layer in entries(tables, choices):
        scores = table.fixed_scores if layer is None else table.scores
        total += float(scores[(*ends, *(layer or ()))])
    return total


def cost_from_tables(tables: SpaceTables, choices: Choices) -> list[int]:
    """Cost on each axis."""
    total = [0, 0]
    for table, ends, layer in entries(tables, choices):
        costs = table.fixed_costs if layer is None else table.costs
        found = costs[(*ends, *(layer or ()))]
        total = [have + int(more) for have, more in zip(total, found, strict=True)]
    return total
