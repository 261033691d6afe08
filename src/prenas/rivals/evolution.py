"""Evolutionary search in a trained supernet: one-shot NAS, for comparison with PreNAS.

As in AutoFormer (ICCV 2021) and SPOS (arXiv 1904.00420), the best candidates so far are the
parents, and mutants and crossovers of them are the next generation. Every candidate is new and
within the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prenas.cost import bounded_names, count
from prenas.families.base import Arch, SearchSpace, Stage, StageChoice
from prenas.randomness import numpy_generator
from prenas.recipe import EvolutionRecipe
from prenas.recipe.budgets import Budget
from prenas.selection.evolved import Evolved
from prenas.selection.within import Genes, Within

_ATTEMPTS = 100  # per candidate; random ones make up for those that are still missing

Accuracy = Callable[[Sequence[Arch]], Sequence[float]]
"""Architectures -> their top-1 (0 to 1); many at once, so that the images are read only once."""


class Generation(NamedTuple):
    """What a generation reports to a watcher."""

    budget: Budget
    number: int
    """Number of finished generations, out of `num_generations`."""
    num_generations: int
    accuracy: float
    """The best top-1 (0 to 1) so far."""
    num_evaluated: int


Watcher = Callable[[Generation], None]


class _Rated(NamedTuple):
    genes: Genes
    accuracy: float
    expense: tuple[int, ...]


def _expense(budget: Budget, cost: Sequence[int]) -> tuple[int, ...]:
    return budget.expense(dict(zip(bounded_names(), cost, strict=True)))


def evolve(
    space: SearchSpace,
    budget: Budget,
    accuracy: Accuracy,
    evolution: EvolutionRecipe,
    *,
    seed: int,
    watch: Watcher | None = None,
) -> Evolved:
    """Searches for the most accurate architecture within a budget; if tied, the cheaper one.

    Equal arguments give the same result, whichever other budgets are searched before or after.

    Args:
        accuracy: called once per generation; for several budgets, pass one `remembering` function.
        watch: called after every generation.

    Raises:
        ValueError: no architecture fits the budget.
    """
    within, breeding = Within(space, budget), _Breeding(space, evolution)
    seen: set[Genes] = set()
    best: list[_Rated] = []
    history: list[float] = []
    for number in range(evolution.generations):
        generator = numpy_generator(seed, f"evolution, {budget}", number)
        candidates = list(
            _candidates(breeding, [rated.genes for rated in best], within, seen, generator)
        )
        archs = [space.compose(*genes) for genes in candidates]
        accuracies = accuracy(archs) if archs else ()
        best += [
            _Rated(genes, rating, _expense(budget, within.cost(genes)))
            for genes, rating in zip(candidates, accuracies, strict=True)
        ]
        best = sorted(best, key=lambda rated: (-rated.accuracy, rated.expense))[
            : evolution.num_parents
        ]
        history.append(best[0].accuracy)
        if watch is not None:
            watch(Generation(budget, number + 1, evolution.generations, history[-1], len(seen)))
    arch = space.compose(*best[0].genes)
    return Evolved(
        budget=str(budget),
        arch=arch,
        costs=count(arch, space.settings),
        accuracy=best[0].accuracy,
        history=tuple(history),
        num_evaluated=len(seen),
    )


def remembering(accuracy: Accuracy) -> Accuracy:
    """The same function with a memory: it never evaluates an architecture twice."""
    known: dict[Arch, float] = {}

    def remembered(archs: Sequence[Arch]) -> list[float]:
        new = [arch for arch in dict.fromkeys(archs) if arch not in known]
        if new:
            known.update(zip(new, accuracy(new), strict=True))
        return [known[arch] for arch in archs]

    return remembered


def _candidates(
    breeding: _Breeding,
    parents: Sequence[Genes],
    within: Within,
    seen: set[Genes],
    generator: np.random.Generator,
) -> Iterator[Genes]:
    """The next generation: mutants and crossovers of parents, and random candidates for the rest.

    There are fewer if the budget has no more new architectures, or if they are too hard to find.
    """
    evolution, num_new = breeding.evolution, 0

    def parent() -> Genes:
        return parents[int(generator.integers(len(parents)))]

    def new(num: int, propose: Callable[[], Genes]) -> Iterator[Genes]:
        nonlocal num_new
        aim = num_new + num
        for _ in range(num * _ATTEMPTS):
            if num_new == aim or len(seen) > within.num_archs - 0.5:
                return
            genes = propose()
            if genes not in seen and genes in within:
                seen.add(genes)
                num_new += 1
                yield genes

    if parents:
        yield from new(evolution.num_mutations, lambda: breeding.mutant(parent(), generator))
        yield from new(
            evolution.num_crossovers, lambda: breeding.crossover(parent(), parent(), generator)
        )
    yield from new(evolution.population - num_new, lambda: within.draw(generator))


class _Breeding:
    """Makes genes from parents of the same resolution; a gene is one choice of the space.

    The result is an architecture of the space, whatever the parents are. If the layers of a stage
    are tied, their options are one gene per axis.
    """

    def __init__(self, space: SearchSpace, evolution: EvolutionRecipe) -> None:
        self.evolution = evolution
        self._stages = space.chain

    def mutant(self, parent: Genes, generator: np.random.Generator) -> Genes:
        """A copy of the parent in which each gene is redrawn with the recipe's probability.

        Layers that the parent does not have are drawn; surplus layers at the end are dropped.
        """
        choices = (
            self._mutated(stage, choice, generator)
            for stage, choice in zip(self._stages, parent.choices, strict=True)
        )
        return parent._replace(choices=tuple(choices))

    def _mutated(
        self, stage: Stage, choice: StageChoice, generator: np.random.Generator
    ) -> StageChoice:
        width, depth = (
            int(options[generator.integers(len(options))])
            if generator.random() < self.evolution.depth_mutation_prob
            else gene
            for gene, options in (
                (choice.width, range(len(stage.widths))),
                (choice.depth, stage.depths),
            )
        )
        num_genes = min(depth, 1) if stage.tied else depth
        chosen = []
        for inherited, axis in zip(choice.options, stage.axes, strict=True):
            drawn = generator.integers(len(axis.options), size=num_genes).tolist()
            mutates = generator.random(num_genes) < self.evolution.mutation_prob
            genes = [
                drawn[gene] if gene >= len(inherited) or mutates[gene] else inherited[gene]
                for gene in range(num_genes)
            ]
            chosen.append(_in_layers(genes, depth))
        return StageChoice(width, depth, tuple(chosen))

    def crossover(self, left: Genes, right: Genes, generator: np.random.Generator) -> Genes:
        """A mixture in which each gene comes from either parent with equal probability.

        The same holds for the depth of a stage. A layer that only one parent has comes from it.
        """
        choices = (
            self._crossed(stage, pair, generator)
            for stage, *pair in zip(self._stages, left.choices, right.choices, strict=True)
        )
        return left._replace(choices=tuple(choices))

    def _crossed(
        self, stage: Stage, parents: Sequence[StageChoice], generator: np.random.Generator
    ) -> StageChoice:
        width, depth = (
            pair[generator.integers(2)]
            for pair in zip(*((one.width, one.depth) for one in parents), strict=True)
        )
        num_genes = min(depth, 1) if stage.tied else depth
        chosen = []
        for offers in zip(*(one.options for one in parents), strict=True):
            coins = generator.integers(2, size=num_genes).tolist()
            genes = []
            for gene in range(num_genes):
                offered = [options[gene] for options in offers if gene < len(options)]
                genes.append(offered[coins[gene] % len(offered)])
            chosen.append(_in_layers(genes, depth))
        return StageChoice(width, depth, tuple(chosen))


def _in_layers(genes: Sequence[int], depth: int) -> tuple[int, ...]:
    """The option of every layer; a single gene applies to all layers."""
    return tuple(genes) if len(genes) == depth else tuple(genes) * depth
