"""The preferred set: which subnets were chosen, why, and what is needed to choose them again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from prenas.cost import Costs, count, size_axis
from prenas.families import get_family
from prenas.families.base import Arch, Settings, envelope
from prenas.proxy.scores import COUNT_SCORE
from prenas.recipe import Recipe, recipe_from_dict
from prenas.recipe.budgets import parse_budgets
from prenas.values import Amount, Value, parse_within


class PreferredSubnet(Value):
    """One preferred subnet: its architecture, costs and score."""

    arch: SerializeAsAny[Arch]
    costs: Costs
    """Name of the cost axis (`prenas.cost`) -> amount."""
    score: float | None
    """None if nothing was scored, as in an imported run. If several scores were tried for a trained
    network, that of the first."""
    score_of_blocks: float | None = None
    """The score without tensors outside layers; None if the score has no such part."""


class Choice(Value):
    """States that a subnet is the best, or one of the k best, of a budget."""

    budget: Amount
    rank: Amount
    """0 for the best of the budget, or for the first that was drawn at random."""
    subnet: Amount
    margin: float | None
    """Relative lead in score over the best subnet of the budget that was not chosen; among
    skeletons, over the best of the next shape. None if there was no other, or scores did not
    choose."""
    proven: bool = True
    """False if the search was stopped before it was certain that no other subnet is better."""


class ExactOptimum(Value):
    """The highest score of a budget over the whole space, without the isomer rule; for reports."""

    budget: Amount
    arch: SerializeAsAny[Arch]
    costs: Costs
    """Name of the cost axis (`prenas.cost`) -> amount."""
    score: float
    gap: float | None
    """How far the best chosen subnet is behind, relative to `score`; None if none was chosen."""
    unproven: float
    """How much higher any score could be at most, relative to `score`; 0 if it is proven."""


class SeedAgreement(Value):
    """How well another initialisation agrees with the one that was used (Kendall's tau, -1..1)."""

    seed: int
    score_tau: float
    """Over all isomer classes, or over 2,000 subnets if there are too many classes; near 1."""
    block_score_tau: dict[str, float]
    """Per axis, over interchangeable layers and their options, as the mean over their classes; near
    0 at random initialisation (method.md, section 2)."""
    same_class: tuple[bool | None, ...]
    """Per budget, whether widths, depths and option counts agree; None if the budget is empty."""
    changed_options: tuple[int | None, ...]
    """Per budget, how many per-layer options differ; None if widths or depths differ."""
    scores: tuple[float | None, ...]
    """Per budget, the score of this seed's best subnet; None if the budget is empty."""


class Imported(Value):
    """Where the weights and the subnets of an imported run came from."""

    file: str
    sha256: str
    """Digest of that file."""
    weights: str | None = None
    """Which of its weights, such as `model_ema`, if the file has several."""
    subnets: Literal["given", "published", "largest"]
    """Given by the user, published by the authors, or the largest network if there are neither."""

    @property
    def summary(self) -> str:
        """A description for tables and reports: the file, and which subnets."""
        which = {
            "given": "with the given subnets",
            "published": "with the subnets published for its space",
            "largest": "with the largest network, because its sizes match no published space",
        }[self.subnets]
        weights = f" ({self.weights})" if self.weights else ""
        return f"imported from {self.file}{weights}, {which}"


class Adapted(Value):
    """Where the first weights and the subnets of a fine-tuning run came from."""

    source: str
    """The run folder, model folder or checkpoint, as the user gave it."""
    sha256: str
    """Digest of its weights file."""
    subnets: Literal["all", "one"]
    """All subnets of the source, or one: the subnet asked for, or the only one that it had."""
    image_size: tuple[int, int]
    """Height and width of the images that the source was trained on."""
    head: Literal["kept", "fresh"]
    licence: str | None = None
    """The licence of the source's weights, if known."""
    origin: str | None = None
    """Where the weights were published, if known."""

    @property
    def summary(self) -> str:
        """A description for tables and reports: the source, its subnets, and the classifier."""
        which = {"all": "all its subnets", "one": "one subnet"}[self.subnets]
        height, width = self.image_size
        return (
            f"fine-tuned from {self.source} ({which}; trained at {height} x {width} pixels; "
            f"classifier {self.head})"
        )


class HalvesAgreement(Value):
    """How well two halves of the scored images agree."""

    rank_correlation: float | None
    """Spearman's rank correlation of the units of a layer, as the mean over all layers; None if no
    layer has units of different scores."""
    kept_in_common: tuple[float | None, ...]
    """Per budget, the share of units (0 to 1) that the best subnets of either half have in common;
    None if the budget is empty."""

    @property
    def summary(self) -> str:
        """A sentence for tables and reports."""
        shares = [f"{100 * share:.0f}" for share in self.kept_in_common if share is not None]
        correlation = (
            ""
            if self.rank_correlation is None
            else f"mean rank correlation of the units of a layer {self.rank_correlation:.2f}; "
        )
        return (
            f"Two halves of the scored images, each alone: {correlation}units that both would "
            f"keep, per budget: {', '.join(shares)} %."
        )


class Tried(Value):
    """The best subnet of a budget at one resolution and by one score, before training."""

    budget: Amount
    """Number of the budget."""
    resolution: int
    """0 if the space has only one."""
    score: str | None = None
    """The score that chose it, or `gate and fisher` if both did; None if only one was tried."""
    top1: float = Field(ge=0, le=1)
    """Fraction of validation images that it classifies correctly, with BatchNorm calibrated."""

    @property
    def name(self) -> str:
        """Its resolution and its score, as far as there are several."""
        side = f"{self.resolution} px" if self.resolution else None
        return " by ".join(part for part in (side, self.score) if part is not None)


class Trained(Value):
    """The trained network in which a search scored units."""

    source: str
    """The model folder or the name of the network, as it was given."""
    sha256: str
    """Digest of its weights."""
    units: dict[str, tuple[int, ...]]
    """Layer that takes the units -> the network's own number of each unit, in the new order."""
    halves: HalvesAgreement | None = None
    """None if the score needs no images, and in files of earlier versions."""
    top1_untrained: tuple[float, ...] | None = None
    """Per subnet, the fraction of validation images (0 to 1) that it classifies correctly before it
    is trained, with BatchNorm calibrated; None if it was not measured."""
    tried: tuple[Tried, ...] = ()
    """What resolutions and scores of the budgets were chosen by; empty if there was no choice."""
    chosen_by: tuple[str | None, ...] = ()
    """Per budget, the score that chose, None if the budget is empty; no budgets if one score chose
    for all."""

    @property
    def tried_in_words(self) -> dict[int, str]:
        """Number of a budget -> what was tried for it, and the untrained accuracies.

        At every resolution the best of several scores, which is the one that would be taken there;
        with one resolution, all of them.
        """
        found: dict[int, str] = {}
        for number in dict.fromkeys(one.budget for one in self.tried):
            tried = [one for one in self.tried if one.budget == number]
            sides = dict.fromkeys(one.resolution for one in tried)
            shown = tried
            if len(sides) > 1:
                by_side = ([one for one in tried if one.resolution == side] for side in sides)
                shown = [max(here, key=lambda one: one.top1) for here in by_side]
            what = "untrained validation top-1, %"
            if len(tried) > len(shown):
                what += ", by the better score at each size"
            parts = ", ".join(f"{one.name}: {100 * one.top1:.1f}" for one in shown)
            found[number] = f"{parts} ({what})"
            if len(shown) > len(sides) and self.chosen_by:
                found[number] += f"; taken: {self.chosen_by[number]}"
        return found

    @property
    def summary(self) -> str:
        """A description for tables and reports."""
        return f"cut out of {self.source}"


def _is_of_one_stage(gains: Any) -> bool:
    """Whether these are gains [layers, options], without stages around them."""
    for _ in range(2):
        if not isinstance(gains, (list, tuple)) or not gains:
            return False
        gains = gains[0]
    return isinstance(gains, float)


class PreferredSet(Value):
    """The result of a search, an import or an adaptation; stored as `preferred.json`."""

    kind: ClassVar[str] = "preferred"
    """The word for its subnets in tables and messages."""

    recipe: Recipe
    subnets: tuple[PreferredSubnet, ...] = Field(min_length=1)
    """All different, cheapest first; after a search, by the cost that its first budget bounds."""
    choices: tuple[Choice, ...]
    budgets: tuple[str, ...]
    empty_budgets: tuple[Amount, ...]
    """Numbers of the budgets that no subnet fits."""
    partial_budgets: tuple[str, ...]
    """Intervals that a grid left out because they are smaller than its step."""
    reachable: str
    num_archs: int
    num_classes_of_isomers: int
    block_scores: dict[str, tuple[tuple[tuple[float, ...], ...], ...]]
    """Per axis and stage, the gains [layers, options] by which the isomer rule ranked layers; empty
    for stages without a choice or with tied layers."""
    agreement: tuple[SeedAgreement, ...]
    optima: tuple[ExactOptimum, ...] = ()
    """One for each budget that any subnet fits, if the recipe asks for them."""
    device: str
    num_threads: int
    versions: dict[str, str]
    imported: Imported | None = None
    """Where the weights came from, in an imported run."""
    adapted: Adapted | None = None
    """Where the weights came from, in a fine-tuning run."""
    trained: Trained | None = None
    """The network that was searched, if it was trained before the search."""

    @field_validator("block_scores", mode="before")
    @classmethod
    def _per_stage(cls, block_scores: Any) -> Any:
        """Reads files of older versions, which had only one stage and did not list it."""
        if not isinstance(block_scores, dict):
            return block_scores
        return {
            axis: [gains] if _is_of_one_stage(gains) else gains
            for axis, gains in block_scores.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _archs_of_the_family(cls, fields: Any) -> Any:
        """Reads plain JSON; the recipe says which family the architectures belong to."""
        recipe = fields.get("recipe") if isinstance(fields, dict) else None
        if isinstance(recipe, dict):
            recipe = recipe_from_dict(recipe)
        if not isinstance(recipe, Recipe):
            return fields
        arch_type = get_family(recipe.space.family).arch_type

        def parsed(entry: Any, where: str) -> Any:
            if not (isinstance(entry, dict) and isinstance(entry["arch"], dict)):
                return entry
            return {**entry, "arch": parse_within(arch_type, entry["arch"], f"{where}.arch")}

        return {**fields, "recipe": recipe} | {
            name: [parsed(entry, f"{name}.{number}") for number, entry in enumerate(fields[name])]
            for name in ("subnets", "optima")
            if isinstance(fields.get(name), (list, tuple))
        }

    @model_validator(mode="after")
    def _numbers_exist(self) -> Self:
        """Choices and empty budgets name budgets and subnets by their number."""
        numbers = [choice.budget for choice in self.choices]
        numbers += [optimum.budget for optimum in self.optima]
        if max((*numbers, *self.empty_budgets), default=0) >= len(self.budgets):
            raise ValueError(f"there are {len(self.budgets)} budgets, but a higher number is used")
        if {choice.subnet for choice in self.choices} != {*range(len(self.subnets))}:
            raise ValueError(f"choices must use each of the {len(self.subnets)} subnets, from 0 on")
        return self

    @property
    def origin(self) -> Imported | Adapted | None:
        """Where the weights and the subnets came from; None for the result of a search."""
        return self.imported or self.adapted

    @property
    def has_leads(self) -> bool:
        """Whether the score decided; not if the cuts of several were tried."""
        return self.trained is None or not self.trained.chosen_by

    @property
    def counts_parameters(self) -> bool:
        """Whether scores are nothing but numbers of parameters."""
        search = self.recipe.search
        is_count = (search.score, search.power, search.scope) == (COUNT_SCORE, 1, "all")
        return is_count and self.origin is None and self.trained is None

    @property
    def archs(self) -> tuple[Arch, ...]:
        """The preferred architectures, cheapest first."""
        return tuple(subnet.arch for subnet in self.subnets)

    @property
    def envelope(self) -> Arch:
        """The network to train: the smallest one that contains all preferred subnets.

        One-shot NAS trains on the whole space, so its envelope is the largest network of the space.
        """
        if self.recipe.evolution is not None:
            return self.recipe.space.largest
        return envelope(self.archs)

    def gaps_of(self, subnet: int) -> list[tuple[float, float]]:
        """(gap, unproven) of `ExactOptimum` for each budget whose best choice is this subnet."""
        chosen = {(choice.budget, choice.subnet) for choice in self.choices if choice.rank == 0}
        return [
            (found.gap, found.unproven)
            for found in self.optima
            if (found.budget, subnet) in chosen and found.gap is not None
        ]

    @property
    def unproven_budgets(self) -> list[str]:
        """The budgets for which a better subnet than the chosen one may exist."""
        numbers = dict.fromkeys(choice.budget for choice in self.choices if not choice.proven)
        return [self.budgets[number] for number in numbers]

    def budgets_of(self, subnet: int) -> list[str]:
        """The budgets that this subnet was chosen for."""
        return [self.budgets[choice.budget] for choice in self.choices if choice.subnet == subnet]


def unscored_set(
    recipe: Recipe,
    archs: Sequence[Arch],
    *,
    imported: Imported | None = None,
    adapted: Adapted | None = None,
) -> PreferredSet:
    """A preferred set of the given architectures, without a search and without scores.

    Args:
        recipe: its budgets must be those of `exact_budgets(archs, ...)`.
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
    """One budget per architecture, equal to its size; smallest first."""
    size = size_axis().name
    amounts = sorted(count(arch, settings)[size] for arch in set(archs))
    return tuple(f"{size}={amount}" for amount in amounts)


def versions_in_use() -> dict[str, str]:
    """Versions of the software that a result may depend on, by name."""
    packages = ("prenas", "torch", "timm", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
