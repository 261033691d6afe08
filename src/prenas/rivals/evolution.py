"""Evolutionary search in a trained supernet: one-shot NAS, the rival of preferred training.

As in AutoFormer (ICCV 2021) and SPOS (arXiv 1904.00420): the best candidates so far are parents,
mutants and crossovers of them the next generation. All candidates are new and within the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prenas.cost import count
from prenas.families.base import Arch, SearchSpace, Stage, StageChoice
from prenas.randomness import numpy_generator
from prenas.recipe import EvolutionRecipe
from prenas.recipe.budgets import Budget
from prenas.rivals.within import Genes, Within
from prenas.selection.evolved import Evolved

_ATTEMPTS = 100  # per wanted candidate; what is then missing, random ones replace

Accuracy = Callable[[Sequence[Arch]], Sequence[float]]
"""Top-1 (0 to 1) of many architectures at once, so that images are read once for all."""


class Generation(NamedTuple):
    """What a generation reports to whoever watches."""

    budget: Budget
    number: int
    """Generations finished, of `num_generations`."""
    num_generations: int
    accuracy: float
    """The best so far."""
    num_evaluated: int


Watcher = Callable[[Generation], None]


class _Rated(NamedTuple):
    genes: Genes
    accuracy: float
    cost: tuple[int, ...]


def evolve(
    space: SearchSpace,
    budget: Budget,
    accuracy: Accuracy,
    recipe: EvolutionRecipe,
    *,
    seed: int,
    watch: Watcher | None = None,
) -> Evolved:
    """The most accurate architecture within a budget that evolution finds; ties: the cheaper.

    The same for equal arguments, whatever other budgets are searched before or after.

    Args:
        accuracy: asked once per generation; for several budgets pass one `remembering` function.

    Raises:
        ValueError: no architecture fits the budget.
    """
    within, breeding = Within(space, budget), _Breeding(space, recipe)
    seen: set[Genes] = set()
    best: list[_Rated] = []
    history: list[float] = []
    for number in range(recipe.generations):
        generator = numpy_generator(seed, f"evolution, {budget}", number)
        found = list(
            _candidates(breeding, [rated.genes for rated in best], within, seen, generator)
        )
        archs = [space.compose(*genes) for genes in found]
        accuracies = accuracy(archs) if archs else ()
        best += [
            _Rated(genes, rating, within.cost(genes))
            for genes, rating in zip(found, accuracies, strict=True)
        ]
        best = sorted(best, key=lambda rated: (-rated.accuracy, rated.cost))[: recipe.num_parents]
        history.append(best[0].accuracy)
        if watch is not None:
            watch(Generation(budget, number + 1, recipe.generations, history[-1], len(seen)))
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
    """The same function, which asks for no architecture twice."""
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
    """The next generation: mutants and crossovers of parents, filled up by random candidates.

    Fewer where the budget holds no more that are new, or they are too hard to find.
    """
    recipe, num_found = breeding.recipe, 0

    def parent() -> Genes:
        return parents[int(generator.integers(len(parents)))]

    def new(num: int, propose: Callable[[], Genes]) -> Iterator[Genes]:
        nonlocal num_found
        aim = num_found + num
        for _ in range(num * _ATTEMPTS):
            if num_found == aim or len(seen) > within.num_archs - 0.5:
                return
            genes = propose()
            if genes not in seen and genes in within:
                seen.add(genes)
                num_found += 1
                yield genes

    if parents:
        yield from new(recipe.num_mutations, lambda: breeding.mutant(parent(), generator))
        yield from new(
            recipe.num_crossovers, lambda: breeding.crossover(parent(), parent(), generator)
        )
    yield from new(recipe.population - num_found, lambda: within.draw(generator))


class _Breeding:
    """Genes from genes of one resolution, legal whatever the parents are; a gene is one choice.

    Of a stage whose layers are tied, the options of all of its layers are one gene per axis.
    """

    def __init__(self, space: SearchSpace, recipe: EvolutionRecipe) -> None:
        self.recipe = recipe
        self._stages = space.chain

    def mutant(self, parent: Genes, generator: np.random.Generator) -> Genes:
        """Every gene of the parent, or with the recipe's probability one drawn anew.

        Layers that the parent does not have are drawn; surplus ones at the end are cut.
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
            if generator.random() < self.recipe.depth_mutation_prob
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
            mutates = generator.random(num_genes) < self.recipe.mutation_prob
            genes = [
                drawn[gene] if gene >= len(inherited) or mutates[gene] else inherited[gene]
                for gene in range(num_genes)
            ]
            chosen.append(_in_layers(genes, depth))
        return StageChoice(width, depth, tuple(chosen))

    def crossover(self, left: Genes, right: Genes, generator: np.random.Generator) -> Genes:
        """Every gene from either parent, by the toss of a coin.

        So is the depth of a stage. A layer that only one parent has is that one's.
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
    """The option of every layer; one gene alone is that of all."""
    return tuple(genes) if len(genes) == depth else tuple(genes) * depth
