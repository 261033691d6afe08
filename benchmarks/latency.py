"""Latency tables: how well they predict networks, and whether budgets in milliseconds are kept.

    python -m benchmarks latency                                     tiny and mobilenet, two engines
    python -m benchmarks latency --spaces tiny --engines torch --budgets 20
    python -m benchmarks latency --spaces mobilenet --engines onnxruntime --precisions int8

For every space and engine, the table is made as `prenas measure` makes it. Then random networks
that it has not seen are timed as wholes, and so are the networks that a search chooses for budgets
between the smallest and the largest. One thread, batch 1. On a machine whose pace changes with the
minutes, all predictions are off by one factor (`actual_to_predicted`); errors are also given
without it. Results are merged into results/latency.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.paired import ROOT, Options, environment
from prenas.cost import count
from prenas.devices.measuring import Engine, get_engine, measurement, time_networks
from prenas.families import get_space
from prenas.families.base import Arch, SearchSpace
from prenas.latency import LatencyTable, use_table, write_table
from prenas.randomness import numpy_generator
from prenas.recipe import searching_recipe, with_overrides
from prenas.selection.search import zero_cost_search

_KEPT_WITHIN = 0.05


def main(words: Sequence[str] | None = None) -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--spaces", nargs="+", default=["tiny", "mobilenet"])
    parser.add_argument("--engines", nargs="+", default=["torch", "onnxruntime"])
    parser.add_argument("--precisions", nargs="+", default=["float32"], help="float32, int8")
    parser.add_argument("--networks", type=int, default=30, help="random networks")
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "latency.json")
    parser.add_argument("--tables", type=Path, help="folder in which to keep the tables")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    if given.tables is not None:
        given.tables.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    rows: dict[str, Any] = document.get("rows", {})
    for name in given.spaces:
        for engine, precision in product(given.engines, given.precisions):
            runs = get_engine(engine, precision=precision)
            row = measured(get_space(name), runs, given.networks, given.budgets, given.tables)
            measured_here = environment(Options(threads=1, rounds=1))
            rows[f"{name}, {runs.conditions.engine_in_words}"] = row | {
                key: measured_here[key] for key in ("commit", "date")
            }
            document = {**measured_here, "rows": rows}
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(document, indent=1) + "\n")
    print_rows(rows)


def measured(
    space: SearchSpace, runs: Engine, num_networks: int, num_budgets: int, tables: Path | None
) -> dict[str, Any]:
    """One space in one engine."""
    plan = measurement(space, runs)
    table = plan.measure()
    if tables is not None:
        engine = runs.conditions.engine_in_words.replace(" ", "-")
        write_table(tables / f"{space.name}-{engine}.json", table)
    random = {
        space.sample(numpy_generator(1, "benchmark of latencies", number)): None
        for number in range(num_networks)
    }
    chosen = chosen_for(space, table, num_budgets)
    archs = [*random, *chosen.values()]
    times_of_networks = time_networks(space, list(dict.fromkeys(archs)), runs)
    seconds = dict(
        zip(dict.fromkeys(archs), (one.median for one in times_of_networks), strict=True)
    )
    predicted = np.array([1e-9 * table.predict(arch, space.settings) for arch in random])
    actual = np.array([seconds[arch] for arch in random])
    macs = np.array([count(arch, space)["macs"] for arch in random])
    errors = np.abs(predicted / actual - 1)
    ratio = float(np.median(actual / predicted))
    at_equal_pace = np.abs(ratio * predicted / actual - 1)
    kept = [seconds[arch] <= 1e-9 * most * (1 + _KEPT_WITHIN) for most, arch in chosen.items()]
    return {
        "kinds_of_layers": len(plan.layers),
        "minutes": round(table.seconds / 60, 1),
        "fit": table.fit.model_dump(mode="json"),
        "networks": len(random),
        "median_error": round(float(np.median(errors)), 4),
        "worst_error": round(float(errors.max()), 4),
        "actual_to_predicted": round(ratio, 4),
        "median_error_at_equal_pace": round(float(np.median(at_equal_pace)), 4),
        "worst_error_at_equal_pace": round(float(at_equal_pace.max()), 4),
        "pace_meanwhile": round(max(one.pace for one in times_of_networks), 4),
        "rank_correlation": round(float(spearmanr(predicted, actual).statistic), 4),
        "rank_correlation_of_macs": round(float(spearmanr(macs, actual).statistic), 4),
        "milliseconds": [round(1e3 * float(actual.min()), 2), round(1e3 * float(actual.max()), 2)],
        "budgets": len(kept),
        "budgets_kept": sum(kept),
        "worst_beyond_budget": round(
            max(seconds[arch] / (1e-9 * most) for most, arch in chosen.items()) - 1, 4
        ),
    }


def chosen_for(space: SearchSpace, table: LatencyTable, number: int) -> dict[int, Arch]:
    """Budget in nanoseconds -> the network that a search chooses for it."""
    sides = [space.scored_resolution]
    ends = [
        table.predict(space.compose(space.extreme(end), side), space.settings)
        for side in sides
        for end in (0, -1)
    ]
    most = [int(one) for one in np.linspace(*ends, number + 1)[1:]]
    use_table(table)
    try:
        recipe = searching_recipe(space, [f"latency={one}ns" for one in most])
        found = zero_cost_search(with_overrides(recipe, ["search.num_images=4"])).preferred
    finally:
        use_table(None)
    return {most[choice.budget]: found.subnets[choice.subnet].arch for choice in found.choices}


def print_rows(rows: dict[str, Any]) -> None:
    """Prints every space and engine."""
    heads = ("space, engine", "minutes", "median error, %", "worst, %", "rank", "rank of MACs")
    table = Table(*heads, "noise, %", "budgets kept")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['minutes']:.1f}",
            f"{100 * row['median_error']:.1f}",
            f"{100 * row['worst_error']:.1f}",
            f"{row['rank_correlation']:.3f}",
            f"{row['rank_correlation_of_macs']:.3f}",
            f"{100 * row['fit']['noise_floor']:.1f}",
            f"{row['budgets_kept']} of {row['budgets']}",
        )
    Console().print(table)
