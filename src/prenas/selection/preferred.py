"""The preferred set: which subnets were chosen, why, and everything needed to choose them again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from prenas.cost import count, size_axis
from prenas.families import get_family
from prenas.families.base import Arch, Settings, envelope
from prenas.recipe import Recipe, recipe_from_dict
from prenas.recipe.budgets import parse_budgets
from prenas.values import Value


class PreferredSubnet(Value):
    """One subnet worth having: its architecture, costs and score."""

    arch: SerializeAsAny[Arch]
    costs: dict[str, int]
    """By the name of the axis (`prenas.cost`)."""
    score: float | None
    """None where nothing was scored, as in an imported run."""
    score_of_blocks: float | None = None
    """The same without tensors that belong to no layer; None where the score has no such part."""


class Choice(Value):
    """That a subnet is the best, or one of the k best, of a budget."""

    budget: int
    rank: int
    """0 for the best of the budget."""
    subnet: int
    margin: float | None
    """Lead in score over the best subnet of the budget that was not chosen, relative; None if
    there was no other."""


class ExactOptimum(Value):
    """The highest score of a budget over the whole space, isomer rule or not; only reported."""

    budget: int
    arch: SerializeAsAny[Arch]
    costs: dict[str, int]
    """By the name of the axis (`prenas.cost`)."""
    score: float
    gap: float | None
    """How far the chosen best subnet stays behind, relative to `score`; None if none was chosen."""
    unproven: float
    """How much more any subnet could score at most, relative to `score`; 0 if it is proven."""


class SeedAgreement(Value):
    """How far another initialisation agrees with the one that was used (Kendall's tau, -1..1)."""

    seed: int
    score_tau: float
    """Over all classes of the space, or over 2,000 subnets of one with too many: near 1."""
    block_score_tau: dict[str, float]
    """Per axis, over interchangeable layers and options, the mean of all classes of them: at random
    initialisation near 0 (method.md, section 2)."""
    same_class: tuple[bool | None, ...]
    """Per budget: same widths, depths and counts of options; None where the budget is empty."""
    changed_options: tuple[int | None, ...]
    """Per budget: per-layer options that differ; None where widths or depths do."""
    scores: tuple[float | None, ...]
    """Per budget: score of this seed's best subnet; None where the budget is empty."""


class Imported(Value):
    """Where a run without a search got its weights and its subnets from."""

    file: str
    sha256: str
    """Digest of that file."""
    subnets: Literal["given", "published", "largest"]
    """Named by the user, published by the authors, or the largest network for want of those."""

    @property
    def summary(self) -> str:
        """For people: from where, and whose subnets."""
        whose = {
            "given": "subnets given by the user",
            "published": "subnets published for its space",
            "largest": "the largest network: of no published space",
        }[self.subnets]
        return f"imported from {self.file}, {whose}"


class Adapted(Value):
    """Where a run that fine-tunes got its first weights and its subnets from."""

    source: str
    """The run folder, the model folder or the checkpoint, as it was given."""
    sha256: str
    """Digest of the file of its weights."""
    subnets: Literal["all", "one"]
    """Every subnet of the source, or one: the one that was asked for, or all there was."""
    image_size: tuple[int, int]
    """Height and width that the source was trained at."""
    head: Literal["kept", "fresh"]

    @property
    def summary(self) -> str:
        """For people: from where, which subnets, and what became of the head."""
        which = {"all": "all its subnets", "one": "one subnet"}[self.subnets]
        height, width = self.image_size
        return (
            f"fine-tuned from {self.source}, {which}; trained there at {height} x {width} pixels, "
            f"{self.head} head"
        )


class PreferredSet(Value):
    """The result of a search, an import or an adaptation; kept as `preferred.json`."""

    kind: ClassVar[str] = "preferred"
    """What its subnets are, in a word for people."""

    recipe: Recipe
    subnets: tuple[PreferredSubnet, ...] = Field(min_length=1)
    """Without repetition, from the cheapest on; of a search by what its first budget bounds."""
    choices: tuple[Choice, ...]
    budgets: tuple[str, ...]
    empty_budgets: tuple[int, ...]
    """Budgets, by number, that hold no subnet."""
    partial_budgets: tuple[str, ...]
    """Intervals that a grid left out because they are no whole step."""
    reachable: str
    num_archs: int
    num_classes_of_isomers: int
    block_scores: dict[str, tuple[tuple[tuple[float, ...], ...], ...]]
    """Per axis and stage the gains [layers, options] by which the isomer rule ranked layers; of
    stages without choice, or whose layers are tied, none."""
    agreement: tuple[SeedAgreement, ...]
    optima: tuple[ExactOptimum, ...] = ()
    """Of every budget that holds any subnet, if the recipe asks for them."""
    device: str
    num_threads: int
    versions: dict[str, str]
    imported: Imported | None = None
    """Of a run that is used as it was released."""
    adapted: Adapted | None = None
    """Of a run that trains the weights of another one further."""

    @field_validator("block_scores", mode="before")
    @classmethod
    def _per_stage(cls, block_scores: Any) -> Any:
        """Files of former versions knew one stage only, and left it out."""
        return {
            axis: [gains] if gains and gains[0] and isinstance(gains[0][0], float) else gains
            for axis, gains in block_scores.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _archs_of_the_family(cls, fields: Any) -> Any:
        """Reads plain JSON: the recipe says of which family the architectures are."""
        recipe = fields.get("recipe") if isinstance(fields, dict) else None
        if isinstance(recipe, dict):
            recipe = recipe_from_dict(recipe)
        if not isinstance(recipe, Recipe):
            return fields
        arch_type = get_family(recipe.space.family).arch_type

        def parsed(entry: Any) -> Any:
            is_plain = isinstance(entry, dict) and isinstance(entry["arch"], dict)
            return {**entry, "arch": arch_type.model_validate(entry["arch"])} if is_plain else entry

        return {**fields, "recipe": recipe} | {
            name: [parsed(entry) for entry in fields[name]]
            for name in ("subnets", "optima")
            if name in fields
        }

    @property
    def origin(self) -> Imported | Adapted | None:
        """Where the weights and the subnets come from; None for the result of a search."""
        return self.imported or self.adapted

    @property
    def archs(self) -> tuple[Arch, ...]:
        """The preferred architectures, from the cheapest on."""
        return tuple(subnet.arch for subnet in self.subnets)

    @property
    def envelope(self) -> Arch:
        """The network to train: the smallest per axis that contains all preferred subnets.

        Of one-shot NAS, which trains on the whole space, the largest of the space.
        """
        if self.recipe.evolution is not None:
            return self.recipe.space.largest
        return envelope(self.archs)

    def gaps_of(self, subnet: int) -> list[tuple[float, float]]:
        """(gap, unproven) of `ExactOptimum`, per budget that a subnet is the best of."""
        chosen = {(choice.budget, choice.subnet) for choice in self.choices if choice.rank == 0}
        return [
            (found.gap, found.unproven)
            for found in self.optima
            if (found.budget, subnet) in chosen and found.gap is not None
        ]

    def budgets_of(self, subnet: int) -> list[str]:
        """The budgets that chose a subnet."""
        return [self.budgets[choice.budget] for choice in self.choices if choice.subnet == subnet]


def unscored_set(
    recipe: Recipe,
    archs: Sequence[Arch],
    *,
    imported: Imported | None = None,
    adapted: Adapted | None = None,
) -> PreferredSet:
    """A preferred set without a search: the given architectures, whatever they are worth.

    Args:
        recipe: its budgets are those of `exact_budgets(archs, ...)`.
    """
    costs = {arch: count(arch, recipe.space.settings) for arch in archs}
    ordered = sorted(costs, key=lambda arch: tuple(costs[arch].values()))
    size = size_axis().name
    least, most = (costs[arch][size] for arch in (ordered[0], ordered[-1]))
    return PreferredSet(
        recipe=recipe,
        subnets=tuple(
            PreferredSubnet(arch=arch, costs=costs[arch], score=None) for arch in ordered
        ),
        choices=tuple(
            Choice(budget=number, rank=0, subnet=number, margin=None)
            for number in range(len(ordered))
        ),
        budgets=tuple(map(str, parse_budgets(recipe.search.budgets).kept)),
        empty_budgets=(),
        partial_budgets=(),
        reachable=f"{size} {least:,} to {most:,}",
        num_archs=recipe.space.num_archs,
        num_classes_of_isomers=0,
        block_scores={},
        agreement=(),
        device="cpu",
        num_threads=torch.get_num_threads(),
        versions=versions_in_use(),
        imported=imported,
        adapted=adapted,
    )


def exact_budgets(archs: Sequence[Arch], settings: Settings) -> tuple[str, ...]:
    """A budget for each architecture, the smallest first: exactly its size."""
    size = size_axis().name
    amounts = sorted(count(arch, settings)[size] for arch in set(archs))
    return tuple(f"{size}={amount}" for amount in amounts)


def versions_in_use() -> dict[str, str]:
    """Versions that a result may depend on, by name."""
    packages = ("prenas", "torch", "timm", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
