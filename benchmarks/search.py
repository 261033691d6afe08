"""Zero-cost search: the backward pass, scoring and selecting, and the exact optimum.

Tables are compared with a literal implementation that slices every tensor for every candidate
(tests/reference). The section fails if the two do not choose the same subnets.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch

from benchmarks.paired import ROOT, Options, Ratio, Section, medians, peak_bytes, ratio, take_turns
from prenas.families import build_shared, get_space
from prenas.families.base import SearchSpace
from prenas.proxy.gains import block_scores
from prenas.proxy.importance import Importance, measure_importance, noise_images
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.proxy.tables import SpaceTables, cost_tables, space_tables, stage_scores
from prenas.randomness import torch_generator
from prenas.recipe import Recipe
from prenas.recipe.budgets import Budget, parse_budgets
from prenas.recipe.catalogue import get_recipe
from prenas.selection.exact import optimum
from prenas.selection.isomers import isomer_gains, num_isomer_classes
from prenas.selection.placing import placed_budgets
from prenas.selection.search import new_supernet
from prenas.selection.select import Candidates, Pick, select

_TARGET_SECONDS = 0.2
_LONG_CHAIN_BUDGETS = "macs=200M:700M:25M"
_BATCH_SIZES = (1, 4, 16)
_SEEDS = {"digits": range(5), "tiny": range(2)}
"""Recipe -> seeds for which the choices of all variants are compared."""


def measure(options: Options) -> Section:
    rounds = min(options.rounds, 3)  # each takes seconds
    ratios, facts = [], {}
    for part in (_against_literal, _first_and_again, _long_chain, _backward_passes):
        found_ratios, found_facts = part(options._replace(rounds=rounds))
        ratios += found_ratios
        facts |= found_facts
    return Section("Zero-cost search", tuple(ratios), facts)


def _against_literal(options: Options) -> tuple[list[Ratio], dict[str, Any]]:
    sys.path.insert(0, str(ROOT / "tests"))
    from reference.scores import select_literal

    recipe = get_recipe("tiny")
    space, importance = recipe.space, _importance(recipe)

    def per_candidate() -> list[tuple[Any, ...]]:
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

    def by_tables() -> list[tuple[Any, ...]]:
        picks = _pick(recipe, _tables(recipe, importance))
        archs = [space.compose(pick.candidate.choices) for pick in picks]
        return [(arch.embed_dim, arch.num_heads, arch.mlp_ratio) for arch in archs]

    fast, slow = by_tables(), per_candidate()
    assert fast == slow, f"the two forms chose differently:\n{fast}\n{slow}"
    seconds = take_turns(
        {"tiny, tables": by_tables, "tiny, per candidate": per_candidate},
        options.rounds,
        warm_ups=0,
    )
    tables, literal = seconds.values()
    return [ratio("tiny: tables / per candidate", tables, literal)], medians(seconds)


def _first_and_again(options: Options) -> tuple[list[Ratio], dict[str, Any]]:
    """Searches of `small`, each round in a new process, so that nothing is cached."""
    code = f"from benchmarks.search import one_search; one_search({options.threads})"
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout
        )
        for _ in range(options.rounds)
    ]
    facts = {
        f"small, {name}": value
        if isinstance(value, list | str)
        else statistics.median(one[name] for one in found)
        for name, value in found[0].items()
    }
    first = [one["first time, s"] for one in found]
    facts["small, candidates per second"] = facts["small, candidates"] / statistics.median(first)
    what = f"small: scoring and selecting, first time / {_TARGET_SECONDS} s"
    return [ratio(what, first, [_TARGET_SECONDS] * len(first), target=1.0)], facts


def one_search(threads: int) -> None:
    """Times the parts of one search of `small`; prints JSON.

    Another network is built first, because PyTorch loads parts of itself with the first network.
    """
    torch.set_num_threads(threads)
    recipe = get_recipe("small")
    new_supernet(get_recipe("digits"), 0)
    facts: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        facts[f"{name}, s"] = time.perf_counter() - started
        return result

    timed("costs, before the backward pass", lambda: Candidates(cost_tables(recipe.space)))
    importance = timed("backward pass", lambda: _importance(recipe))
    facts["peak memory of the process by then, GB"] = _resident_gb()
    picks = timed("first time", lambda: _pick(recipe, _tables(recipe, importance)))
    facts["peak memory of the process after it, GB"] = _resident_gb()
    timed("again", lambda: _pick(recipe, _tables(recipe, importance)))
    tables = _tables(recipe, importance)
    facts["candidates"] = num_isomer_classes(recipe.space)
    budgets = parse_budgets(recipe.search.budgets).kept
    optima = timed("exact optimum of all budgets", lambda: [optimum(tables, b) for b in budgets])
    facts["gaps to the exact optimum, %"] = [
        round(100 * (1 - pick.candidate.score / optima[pick.budget].candidate.score), 3)
        for pick in picks
    ]
    sys.stdout.write(json.dumps(facts))


def _resident_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _long_chain(options: Options) -> tuple[list[Ratio], dict[str, Any]]:
    """Scoring and selecting for all budgets of `mobilenet`, with random importances."""
    space = get_space("mobilenet")
    budgets = placed_budgets(space, [_LONG_CHAIN_BUDGETS]).kept
    network = build_shared(space.supernet, space.settings)
    generator = torch_generator(0, "importances")
    weights, gradients = (
        {n: torch.randn(p.shape, generator=generator) for n, p in network.named_parameters()}
        for _ in range(2)
    )
    importance = Importance(weights, gradients)
    resolutions = dict.fromkeys(budget.resolution for budget in budgets)

    def score_and_select() -> list[Pick]:
        tables = _tables_at(resolutions, space, importance)
        return _select(tables, budgets)

    tables = _tables_at(resolutions, space, importance)
    works = {
        "mobilenet, scoring and selecting": score_and_select,
        "mobilenet, selecting": partial(_select, tables, budgets),
    }
    seconds = take_turns(works, options.rounds, warm_ups=1)
    both = seconds["mobilenet, scoring and selecting"]
    what = "mobilenet: scoring and selecting for all budgets / 1 s"
    facts = {**medians(seconds), "mobilenet, budgets": len(budgets)}
    return [ratio(what, both, [1.0] * len(both), target=1.0)], facts


def _select(tables: dict[int | None, SpaceTables], budgets: Sequence[Budget]) -> list[Pick]:
    return select({side: Candidates(found) for side, found in tables.items()}, budgets)


def _backward_passes(options: Options) -> tuple[list[Ratio], dict[str, Any]]:
    """Other batch sizes and bf16: time, memory, and whether the choice stays the same."""
    usual = "fp32, batches of 4"
    variants = {f"fp32, batches of {size}": (size, False) for size in _BATCH_SIZES}
    variants["bf16, batches of 4"] = (4, True)
    tiny = get_recipe("tiny")
    works = {name: partial(_importance, tiny, *how) for name, how in variants.items()}
    seconds = take_turns(works, options.rounds, warm_ups=0)
    facts = {f"tiny, {name}": value for name, value in medians(seconds).items()}
    for name, work in works.items():
        facts[f"tiny, {name}, peak MB"] = peak_bytes(work) / 1e6
    for name in sorted(variants.keys() - {usual}):
        same = (
            f"{recipe} {sum(map(partial(_is_same, recipe, variants[name]), seeds))} of {len(seeds)}"
            for recipe, seeds in _SEEDS.items()
        )
        facts[f"same choice, {name}"] = ", ".join(same)
    return [
        ratio(f"tiny: backward pass, {name} / {usual}", seconds[name], seconds[usual])
        for name in variants
        if name != usual
    ], facts


def _is_same(name: str, how: tuple[int, bool], seed: int) -> bool:
    return _choice(name, how, seed) == _choice(name, (4, False), seed)


@cache
def _choice(name: str, how: tuple[int, bool], seed: int) -> list[tuple[Any, ...]]:
    recipe = get_recipe(name).model_copy(update={"seed": seed})
    picks = _pick(recipe, _tables(recipe, _importance(recipe, *how)))
    return [pick.candidate.choices for pick in picks]


def _importance(recipe: Recipe, batch_size: int = 4, is_bf16: bool = False) -> Importance:
    space = recipe.space
    images = noise_images(
        recipe.search.num_images,
        space.settings.in_chans,
        space.settings.image_size,
        recipe.preprocessing.mean,
        recipe.preprocessing.std,
        recipe.seed,
    )
    supernet = new_supernet(recipe, recipe.seed)
    with torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext():
        return measure_importance(supernet, space.scored, images, batch_size=batch_size)


def _tables(recipe: Recipe, importance: Importance) -> SpaceTables:
    return _tables_at([None], recipe.space, importance)[None]


def _tables_at(
    resolutions: Iterable[int | None], space: SearchSpace, importance: Importance
) -> dict[int | None, SpaceTables]:
    gains = isomer_gains("published", block_scores(space, importance), 0)
    scores = stage_scores(space, importance, score=PUBLISHED_SCORE)
    return {
        side: space_tables(space, scores, gains, score=PUBLISHED_SCORE, resolution=side)
        for side in resolutions
    }


def _pick(recipe: Recipe, tables: SpaceTables) -> list[Pick]:
    budgets = parse_budgets(recipe.search.budgets).kept
    candidates = Candidates(tables, recipe.search.enumeration)
    return select({None: candidates}, budgets, recipe.search.k)
