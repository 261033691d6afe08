"""Zero-cost selection by tables against the per-candidate form, side by side, in one run.

Both select from the same importances of the published `tiny` space: the product by cumulative
sums and array operations, the reference (tests/reference) by slicing every tensor for every
candidate. The answers must be equal, or the script fails. Prints a table and writes a JSON file.

Usage: python benchmarks/search.py [--threads 2] [--repeats 5] [--out results/search.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from prenas.proxy.importance import Importance, measure_importance, noise_images  # noqa: E402
from prenas.proxy.tables import block_scores, space_tables  # noqa: E402
from prenas.recipe import Recipe  # noqa: E402
from prenas.recipes import get_recipe  # noqa: E402
from prenas.selection.budgets import parse_budgets  # noqa: E402
from prenas.selection.isomers import isomer_gains  # noqa: E402
from prenas.selection.select import Candidates, select  # noqa: E402
from prenas.zero_cost_search import new_supernet  # noqa: E402
from reference.scores import select_literal  # noqa: E402


def importances(recipe: Recipe) -> Importance:
    space = recipe.space
    images = noise_images(
        recipe.search.num_images,
        space.settings.in_chans,
        space.settings.image_size,
        recipe.preprocessing.mean,
        recipe.preprocessing.std,
        recipe.seed,
    )
    return measure_importance(new_supernet(recipe, recipe.seed), space.largest, images)


def by_tables(recipe: Recipe, importance: Importance) -> tuple[int, list[tuple[Any, ...]]]:
    space, search = recipe.space, recipe.search
    gains = isomer_gains(search.isomers, block_scores(space, importance), recipe.seed)
    candidates = Candidates(space_tables(space, importance, gains, score=search.score))
    picks = select(candidates, parse_budgets(search.budgets).kept, search.k)
    chosen = []
    for pick in picks:
        skeleton = space.skeletons[pick.candidate.skeleton]
        arch = space.compose(skeleton, pick.candidate.choices)
        chosen.append((arch.embed_dim, arch.num_heads, arch.mlp_ratio))
    return len(candidates), chosen


def per_candidate(recipe: Recipe, importance: Importance) -> list[tuple[Any, ...]]:
    space = recipe.space
    selected = select_literal(
        importance.weights,
        importance.gradients,
        embed_dim_options=space.embed_dim,
        depth_options=space.depth,
        num_heads_options=space.num_heads,
        mlp_ratio_options=space.mlp_ratio,
        min_params=5_000_000,
        max_params=12_000_000,
        interval=1_000_000,
        top_k=recipe.search.k,
        published=False,
        head_bias_quirk=False,
    )
    return [
        (best.embed_dim, best.num_heads, best.mlp_ratio)
        for _, found in sorted(selected.items())
        for best in found
    ]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "search.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    result: dict[str, Any] = {"threads": arguments.threads}
    small = get_recipe("small")
    result["small_backward_s"], importance = timed(lambda: importances(small))
    result["small_first_s"], (num_candidates, _) = timed(lambda: by_tables(small, importance))
    result["small_again_s"], _ = timed(lambda: by_tables(small, importance))
    result["small_candidates"] = num_candidates
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    del importance

    tiny = get_recipe("tiny")
    result["tiny_backward_s"], importance = timed(lambda: importances(tiny))
    by_tables(tiny, importance)  # builds the structures, which later searches reuse
    table_times, literal_times = [], []
    for _ in range(arguments.repeats):  # interleaved, so that both see the same machine
        seconds, (num_candidates, fast) = timed(lambda: by_tables(tiny, importance))
        table_times.append(seconds)
        if len(literal_times) < max(1, arguments.repeats // 3):
            seconds, slow = timed(lambda: per_candidate(tiny, importance))
            literal_times.append(seconds)
            assert fast == slow, f"the two forms chose differently:\n{fast}\n{slow}"
    result["tiny_candidates"] = num_candidates
    result["tiny_tables_s"] = statistics.median(table_times)
    result["tiny_tables_s_range"] = [min(table_times), max(table_times)]
    result["tiny_per_candidate_s"] = statistics.median(literal_times)
    result["tiny_per_candidate_s_range"] = [min(literal_times), max(literal_times)]
    result["tiny_ratio"] = result["tiny_per_candidate_s"] / result["tiny_tables_s"]

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    result |= {
        "command": "python benchmarks/search.py " + " ".join(sys.argv[1:]),
        "commit": commit,
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {_cpu_model()}, {arguments.threads} threads",
        "torch": torch.__version__,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("tables", "per_candidate"):
        seconds = result[f"tiny_{name}_s"]
        rate = result["tiny_candidates"] / seconds
        print(f"tiny   {name:15s} {seconds:9.4f} s   {rate:12,.0f} candidates/s")
    print(f"tiny   same subnets chosen; tables are {result['tiny_ratio']:.0f} times faster")
    print(
        f"small  {result['small_candidates']:,} candidates scored and selected: "
        f"{result['small_first_s']:.2f} s the first time, {result['small_again_s']:.2f} s again; "
        f"peak memory of the process {result['peak_memory_gb']:.2f} GB"
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
