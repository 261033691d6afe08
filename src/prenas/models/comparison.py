"""Cuts of a trained network next to stock models: which of them is better at a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prenas import artifacts
from prenas.cost import count
from prenas.evaluation.accuracy import Evaluation
from prenas.length import length_of
from prenas.models.choice import pick
from prenas.recipe import Recipe
from prenas.recipe.budgets import Budget, parse_budgets
from prenas.runs.run import Run
from prenas.selection.trained import standard_error

Kind = Literal["cut", "whole", "stock"]


class Compared(NamedTuple):
    """A network in a comparison."""

    kind: Kind
    """A cut, the whole network that the cuts come from, or a stock model."""
    name: str
    """Such as `timm/resnet18`; for a cut, the folder of its model."""
    folder: str
    """Its model, as a path inside the run."""
    row: Evaluation
    image_size: tuple[int, int]
    """What it takes; a cut with a resolution of its own resizes it."""
    num_images: int
    """How many images its training read, repeated ones included; for a cut, with those that the
    whole network was adapted with."""


class Verdict(NamedTuple):
    """The best subnet within a budget against the best stock model within it, on validation."""

    budget: Budget
    named: str
    """The budget for people."""
    stock: Compared
    cut: Compared | None
    """None if no subnet is within the budget."""

    @property
    def better(self) -> Literal["stock", "cut", "neither"]:
        """Which is better by more than a standard error of the difference."""
        if self.cut is None:
            return "stock"
        theirs, ours = (one.row.splits["validation"] for one in (self.stock, self.cut))
        errors = (standard_error(one.top1, one.num_images) for one in (theirs, ours))
        difference = theirs.top1 - ours.top1
        if abs(difference) <= math.hypot(*errors):
            return "neither"
        return "stock" if difference > 0 else "cut"

    @property
    def in_words(self) -> str:
        """A sentence for tables and reports."""
        theirs = _percent(self.stock)
        if self.cut is None:
            return (
                f"{self.stock.name} is the only choice at {self.named}: {theirs}; no subnet is "
                "within it"
            )
        ours, subnet = _percent(self.cut), f"subnet {int(self.cut.folder.rpartition('/')[2])}"
        if self.better == "stock":
            return (
                f"{self.stock.name} is better at {self.named}: {theirs} against {ours} of "
                f"{subnet}. Take {self.stock.folder}"
            )
        if self.better == "neither":
            return (
                f"{self.stock.name} and {subnet} are level at {self.named}: {theirs} and {ours}, "
                "within one standard error"
            )
        return f"{subnet} is better at {self.named}: {ours} against {theirs} of {self.stock.name}"


class Comparison(NamedTuple):
    """The cuts of a run, the whole network, and the stock models that are evaluated so far."""

    networks: tuple[Compared, ...]
    """The cuts, the whole network, then the stock models in the order in which they were asked."""
    budgets: tuple[Budget, ...]
    whole: Mapping[str, int]
    """Costs of the whole network; budgets are named as shares of them."""

    def of_kind(self, kind: Kind) -> list[Compared]:
        """The networks of a kind."""
        return [one for one in self.networks if one.kind == kind]

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each budget that at least one stock model meets."""
        found = []
        for budget in self.budgets:
            stock = _best(self.of_kind("stock"), budget)
            if stock is not None:
                cut = _best(self.of_kind("cut"), budget)
                found.append(Verdict(budget, budget.beside(self.whole), stock, cut))
        return found

    @property
    def in_words(self) -> list[str]:
        """Sentences about the stock models: how long they were trained, and every verdict."""
        stock, cuts = self.of_kind("stock"), self.of_kind("cut")
        if not stock or not cuts:
            return []
        numbers = sorted({one.num_images for one in stock})
        sentences = [
            f"Stock models were fine-tuned on {' to '.join(f'{n:,}' for n in numbers)} images "
            f"each, the cuts on {cuts[0].num_images:,} (with the adaptation of the whole network).",
        ]
        judged = [verdict.budget for verdict in self.verdicts]
        left = [budget for budget in self.budgets if budget not in judged]
        if missed := [budget.beside(self.whole) for budget in left]:
            sentences.append(f"No stock model is within {'; '.join(missed)}.")
        return sentences + [f"{verdict.in_words}." for verdict in self.verdicts]

    @property
    def document(self) -> dict[str, Any]:
        """What `comparison.json` contains."""
        return {
            "networks": [
                {
                    "kind": one.kind,
                    "name": one.name,
                    "folder": one.folder,
                    "image_size": one.image_size,
                    "resized_to": one.row.arch.resized_to,
                    "num_images": one.num_images,
                    "costs": one.row.costs,
                    "splits": {name: split.summary for name, split in one.row.splits.items()},
                }
                for one in self.networks
            ],
            "verdicts": [
                {
                    "budget": str(one.budget),
                    "stock": one.stock.name,
                    "cut": one.cut.folder if one.cut else None,
                    "better": one.better,
                    "in_words": one.in_words,
                }
                for one in self.verdicts
            ],
        }


def compared(run: Run) -> Comparison:
    """What is evaluated so far of a run that cuts a trained network.

    Raises:
        ValueError: a file of one of the runs is damaged, or belongs to other weights.
    """
    recipe = run.recipe
    assert recipe.source is not None, "asked only for runs that cut a network"
    whole = Run(run.folder / artifacts.SOURCE, device="cpu")
    adapted = _networks(whole, "whole", _short(recipe.source.name), artifacts.SOURCE, 0)
    before = adapted[0].num_images if adapted else 0
    networks = _networks(run, "cut", None, "", before) + adapted
    for rival in recipe.source.rivals:
        folder = artifacts.rival_folder(rival.name)
        theirs = Run(run.folder / folder, device="cpu")
        networks += _networks(theirs, "stock", _short(rival.name), folder, 0)
    search = recipe.search
    budgets = parse_budgets(search.budgets, keep_partial=search.keep_partial).kept
    return Comparison(tuple(networks), budgets, count(recipe.space.largest, recipe.space))


def _short(name: str) -> str:
    """A network's name without its file of weights."""
    return name.partition("=")[0]


def _networks(run: Run, kind: Kind, name: str | None, inside: str, before: int) -> list[Compared]:
    """The subnets of a run; none before its evaluation."""
    if not run.is_evaluated:
        return []
    images = run.images.recorded
    assert images is not None, "an evaluation records them"
    num_images = before + num_trained(run.recipe, images.num_images["train"])
    size = run.recipe.space.settings.image_size
    folders = [
        "/".join(filter(None, [inside, artifacts.SUBNETS, f"{number:02d}"]))
        for number in range(len(run.evaluations))
    ]
    return [
        Compared(kind, name or folder, folder, row, size, num_images)
        for folder, row in zip(folders, run.evaluations, strict=True)
    ]


def num_trained(recipe: Recipe, num_images: int) -> int:
    """How many images, repeated ones included, a training reads from a set of `num_images`."""
    assert recipe.training is not None, "it trains"
    batch_size = recipe.training.batch_size
    length = length_of(recipe.training, -(-num_images // batch_size))
    return length.num_images(num_images, batch_size)


def _best(networks: Iterable[Compared], budget: Budget) -> Compared | None:
    """The best network that costs no more than a budget allows; None if there is none.

    A network whose cost nobody knows, such as the latency of a stock model, does not count.
    """
    fitting: Sequence[Compared] = [
        one
        for one in networks
        if all(
            axis in one.row.costs and one.row.costs[axis] < high
            for axis, (_, high) in budget.intervals.items()
        )
    ]
    return fitting[pick([one.row for one in fitting], {})] if fitting else None


def _percent(one: Compared) -> str:
    return f"{100 * one.row.splits['validation'].top1:.1f} %"
