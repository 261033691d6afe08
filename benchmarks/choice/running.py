"""Runs the arms of a question: each in a folder of its own, and each only once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, combinations
from math import prod
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.choice.questions import QUESTIONS, Arm
from benchmarks.rows import Row
from benchmarks.strategies import quiet_recipe
from prenas import artifacts, pipeline
from prenas.evaluation.accuracy import Evaluation
from prenas.families.base import Arch, Settings, envelope
from prenas.length import length_of
from prenas.models.choice import contests_of
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.budgets import Budget
from prenas.runs.run import Run
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import PreferredSet
from prenas.supernet import Supernet
from prenas.training.sampler import BalancedSampler

KEY = ("question", "data", "arm", "seed", "epochs")
"""The fields of a row that say which training it is."""


class Task(NamedTuple):
    """One arm with one seed."""

    question: str
    arm: Arm
    recipe: Recipe
    """Without the changes of the arm."""
    data: str
    """The recipe's name, with what was changed for all arms."""
    epochs: int

    @property
    def key(self) -> tuple[object, ...]:
        """The values of `KEY`."""
        return self.question, self.data, self.arm.name, self.recipe.seed, self.epochs

    @property
    def num_trainings(self) -> int:
        """As how many trainings of the whole length it counts."""
        return len(_budgets(self.recipe)) if self.arm.trainings == "whole" else 1

    @property
    def named(self) -> str:
        """For messages."""
        return f"{self.data}, seed {self.recipe.seed}, {self.arm.name}"

    @property
    def reads_another(self) -> bool:
        """Whether it needs the finished run of the question's first arm."""
        return self.arm.trainings != "together"

    def folder(self, home: Path) -> Path:
        """Where its runs are stored."""
        data, arm = (
            "".join(one if one.isalnum() else "-" for one in name)
            for name in (self.data, self.arm.name)
        )
        return home / self.question / data / f"{arm}-{self.epochs}-{self.recipe.seed}"

    def siblings(self, home: Path) -> list[Path]:
        """Folders of the other arms of the question, with the same length and seed."""
        own = self.folder(home)
        alike = own.parent.glob(f"*-{self.epochs}-{self.recipe.seed}")
        return [folder for folder in sorted(alike) if folder != own]


def tasks(
    question: str, data: str, recipes: Sequence[Recipe], epochs: int, only: Sequence[str] = ()
) -> list[Task]:
    """All arms of a question for recipes that differ in their seeds.

    Args:
        only: names of arms; all of them if there are none.
    """
    return [
        Task(question, arm, recipe, data, epochs)
        for recipe in recipes
        for arm in QUESTIONS[question].arms
        if not only or arm.name in only
    ]


def base_recipe(data: str, epochs: int, seed: int, changes: Sequence[str]) -> Recipe:
    """The recipe that all arms start from: no validation during the training."""
    return quiet_recipe(data, epochs, seed, changes)


def missing(planned: Sequence[Task], rows: Sequence[Row]) -> list[Task]:
    """The tasks that have no row yet."""
    known = {tuple(row[name] for name in KEY) for row in rows}
    return [task for task in planned if task.key not in known]


def run(task: Task, home: Path) -> Row:
    """Runs an arm, or continues it, and measures every budget."""
    start, folder = time.perf_counter(), task.folder(home)
    sizes, twins = list[float](), list[str]()
    cells: dict[str, dict[str, float]] = {}
    to_choose, everything = 0.0, list[Evaluation]()
    for name, recipe in _recipes(task, home):
        subnets, rows, seconds, twin = _trained(recipe, folder / name, task.siblings(home))
        to_choose += seconds
        twins += [] if twin is None else [twin]
        everything += rows
        cells |= _cells(subnets, rows)
        sizes.append(len(rows))
    return {
        **dict(zip(KEY, task.key, strict=True)),
        "recipe": task.recipe.name,
        "changes": list(task.arm.changes),
        "num_subnets": int(sum(sizes)),
        **({"trained_as": twins} if twins else {}),
        "overlap": overlap(subnets.archs, subnets.recipe.space.settings),
        "cells": cells,
        "hypervolume": round(front_of(everything, _budgets(task.recipe)), 4),
        "seconds_to_choose": round(to_choose, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _recipes(task: Task, home: Path) -> Iterator[tuple[str, Recipe]]:
    """(folder, recipe) of every run of an arm."""
    epochs = f"training.epochs={task.epochs // task.arm.passes}"
    recipe = with_overrides(task.recipe, [epochs, *task.arm.changes])
    budgets = _budgets(recipe)
    if task.arm.only_middle:
        yield "run", _of_budget(recipe, budgets[len(budgets) // 2])
    elif task.arm.trainings == "together":
        yield "run", recipe
    else:
        together = task._replace(arm=QUESTIONS[task.question].arms[0])
        steps = _steps_of_subnets(Run(together.folder(home) / "run", recipe, device="cpu"))
        for number, budget in enumerate(budgets):
            if number in steps:  # a subnet fits
                own = _of_budget(recipe, budget)
                if task.arm.trainings == "shares":
                    own = with_overrides(own, [f"training.steps={steps[number]}"])
                yield f"budget-{number}", own


def _budgets(recipe: Recipe) -> Sequence[Budget]:
    search = recipe.search
    found = placed_budgets(recipe.space, search.budgets, keep_partial=search.keep_partial)
    return found.kept


def _of_budget(recipe: Recipe, budget: Budget) -> Recipe:
    parts = [f"{axis}={low}:{high}" for axis, (low, high) in budget.intervals.items()]
    parts += [f"resolution={budget.resolution}"] * (budget.resolution is not None)
    search = recipe.search.model_copy(update={"budgets": (",".join(parts),)})
    return recipe.model_copy(update={"search": search})


def _steps_of_subnets(together: Run) -> dict[int, int]:
    """Number of a budget -> the steps in which its best subnet was trained with the others."""
    preferred, images = together.preferred, together.images.recorded
    training = preferred.recipe.training
    assert training is not None, "recipes that only search are refused earlier"
    assert images is not None, "a training records them"
    length = length_of(training, -(-images.num_images["train"] // training.batch_size))
    sampler = BalancedSampler(preferred.archs, preferred.recipe.seed)
    drawn = [sampler(step) for step in range(length.num_steps)]
    return {
        choice.budget: drawn.count(preferred.archs[choice.subnet])
        for choice in preferred.choices
        if choice.rank == 0
    }


class _Trained(NamedTuple):
    """A run with trained subnets."""

    subnets: PreferredSet
    rows: Sequence[Evaluation]
    seconds: float
    """How long choosing them took."""
    twin: str | None = None
    """Name of the folder of another arm whose training was this one's."""


def _trained(recipe: Recipe, out: Path, siblings: Sequence[Path]) -> _Trained:
    """Chooses and trains. Where another arm has chosen the same subnets, its training is taken: it
    would be the same to the bit."""
    start = time.perf_counter()
    pipeline.search(recipe, out)
    seconds = time.perf_counter() - start
    if recipe.evolution is None:
        chosen = Run(out, device="cpu").preferred
        for folder in siblings:
            twin = Run(folder / out.name, device="cpu")
            if _is_finished(twin) and _trains_alike(twin.preferred, chosen):
                return _Trained(chosen, twin.evaluations, seconds, folder.name)
    pipeline.train(out)
    if recipe.evolution is not None:
        start = time.perf_counter()
        pipeline.evolve(out)
        seconds += time.perf_counter() - start
    rows = pipeline.evaluate(out)
    return _Trained(Run(out, device="cpu").subnets, rows, seconds)


def _is_finished(run: Run) -> bool:
    return run.files.has(artifacts.EVALUATION) and run.is_evaluated


def _trains_alike(one: PreferredSet, other: PreferredSet) -> bool:
    """Whether two runs differ in how they chose the same subnets, and in nothing else."""
    without = {"search": other.recipe.search}
    return one.archs == other.archs and one.recipe.model_copy(update=without) == other.recipe


def front_of(rows: Sequence[Evaluation], budgets: Sequence[Budget]) -> float:
    """Hypervolume of accuracy on test over the first cost that the budgets limit, in %.

    The share of the rectangle between no cost and the largest that the budgets allow, and between
    an accuracy of 0 and 100 %, that lies above the cost and below the accuracy of some subnet.
    """
    axis = next(iter(budgets[0].intervals))
    most = max(budget.intervals[axis][1] - 1 for budget in budgets)
    points = sorted((row.costs[axis], 100 * row.splits["test"].top1) for row in rows)
    ends = [cost for cost, _ in points[1:]] + [most]
    tops = accumulate((top1 for _, top1 in points), max)
    areas = (top * (end - cost) for (cost, _), end, top in zip(points, ends, tops, strict=True))
    return sum(areas) / most


def _cells(subnets: PreferredSet, rows: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """Budget -> what is known of its subnets; accuracies are in %."""
    first = {one.budget: one.subnet for one in subnets.choices if one.rank == 0}
    cells = {}
    for contest in contests_of(subnets, rows):
        test = {number: 100 * rows[number].splits["test"].top1 for number in contest.subnets}
        cells[contest.named] = {
            "best": round(test[contest.winner], 4),
            "first": round(test[first[contest.budget]], 4),
            "mean": round(fmean(test.values()), 4),
            "best_on_validation": round(100 * contest.top1[0], 4),
            "spread_on_validation": round(100 * contest.spread, 4),
            "num_subnets": len(contest.subnets),
            "params": rows[contest.winner].costs["params"],
        }
    return cells


def overlap(archs: Sequence[Arch], settings: Settings) -> float | None:
    """How much two subnets share: common weights in shares of the smaller one's, as the mean over
    all pairs; None for a single subnet."""
    if len(archs) < 2:
        return None
    supernet = Supernet(envelope(archs), settings)
    names = {name for name, _ in supernet.network.named_parameters()}
    boxes = [
        {name: box for name, box in supernet.owned_boxes(arch).items() if name in names}
        for arch in archs
    ]
    sizes = [_common(one, one) for one in boxes]
    shares = [
        _common(boxes[one], boxes[other]) / min(sizes[one], sizes[other])
        for one, other in combinations(range(len(archs)), 2)
    ]
    return round(fmean(shares), 4)


def _common(one: Mapping[str, tuple[slice, ...]], other: Mapping[str, tuple[slice, ...]]) -> int:
    """Number of weights that two subnets own both."""
    return sum(
        prod(
            max(0, min(left.stop, right.stop) - max(left.start, right.start))
            for left, right in zip(one[name], other[name], strict=True)
        )
        for name in one.keys() & other.keys()
    )
