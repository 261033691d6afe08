"""Computes scores of all architectures of a table at random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from prenas.bench.table import AccuracyTable
from prenas.families import build, build_structure, family_of
from prenas.families.base import Arch, Settings
from prenas.precision import float32_products
from prenas.proxy.importance import Importance, measure_importance, noise_images
from prenas.proxy.network_scores import NETWORK_SCORES, Batch
from prenas.proxy.scores import WEIGHT_SCORES, Floats
from prenas.proxy.tables import SpaceTables, cost_tables, stage_scores
from prenas.randomness import torch_generator
from prenas.supernet import Supernet
from prenas.values import Value, unknown_name

Values = dict[str, list[list[float | None]]]
"""Score -> for each seed, the value of every row of the table; None where it is not computed yet.
A score that does not depend on weights has a single seed."""

_MOST_SEEDS, _MOST_IMAGES = 1000, 4096
_NUM_BATCHES = max(score.num_batches for score in NETWORK_SCORES.values())


class Conditions(Value):
    """What the values of scores depend on; those of equal conditions can be used again."""

    table: str
    """Digest of the architectures and of their space."""
    image_size: tuple[int, int]
    """Of the images that networks of their own get: (height, width)."""
    batch_size: int
    device: str


def score_names(table: AccuracyTable) -> list[str]:
    """All scores of the table's networks: counts, those of this package, those of others."""
    ours = family_of(table.space).arch_scores
    return [*table.costs, *WEIGHT_SCORES, *ours, *NETWORK_SCORES]


def is_random(score: str) -> bool:
    """Whether a score depends on the weights, and so on the seed."""
    return score in WEIGHT_SCORES or (score in NETWORK_SCORES and NETWORK_SCORES[score].is_random)


class Scoring:
    """The scores of a table, computed one network after the other.

    Args:
        scores: names out of `score_names`.
        num_seeds: random initialisations, numbered from 0.
        image_size: of the images for scores of single networks; None takes that of the space.
            Counts, and the scores that a search of this package uses, keep the space's.
        batch_size: images per batch.

    Raises:
        ValueError: a score is unknown, or networks of this space cannot take the image size.
    """

    def __init__(
        self,
        table: AccuracyTable,
        scores: Sequence[str],
        *,
        num_seeds: int,
        image_size: int | None = None,
        batch_size: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        names = score_names(table)
        for score in scores:
            if score not in names:
                raise unknown_name("score", score, names)
        if not (1 <= num_seeds <= _MOST_SEEDS and 2 <= batch_size <= _MOST_IMAGES):
            raise ValueError(
                f"{num_seeds} seeds and batches of {batch_size} images are given: use 1 to "
                f"{_MOST_SEEDS:,} seeds and 2 to {_MOST_IMAGES:,} images"
            )
        self.table, self.scores, self.device = table, list(dict.fromkeys(scores)), device
        settings = table.space.settings
        self.settings = settings if image_size is None else settings.changed(image_size=image_size)
        self.batch_size, self.num_seeds = batch_size, num_seeds
        self.values: Values = {
            score: [[None] * len(table.archs) for _ in range(num_seeds if is_random(score) else 1)]
            for score in self.scores
        }
        self._importances: dict[int, Importance] = {}

    @property
    def conditions(self) -> Conditions:
        """What the values depend on."""
        return Conditions(
            table=self.table.digest,
            image_size=self.settings.image_size,
            batch_size=self.batch_size,
            device=torch.device(self.device).type,
        )

    def reuse(self, known: Mapping[str, Sequence[Sequence[float | None]]]) -> None:
        """Takes over values that were computed under equal conditions."""
        for score, seeds in self.values.items():
            for seed, values in enumerate(known.get(score, ())[: len(seeds)]):
                seeds[seed] = list(values)

    def seconds(self) -> float:
        """About how long `measure` takes, from the times of a few networks."""
        seconds = 0.0
        if seeds := self._seeds_of_supernets():
            start = perf_counter()
            self._importance(seeds[0])  # kept for `measure`
            seconds += (perf_counter() - start) * (len(seeds) - 1)
        work = self.table.costs["macs"]
        missing = list(self._missing_networks())
        if missing:
            names = sorted({name for _, _, found in missing for name in found})
            self._network_values(int(work.argmin()), 0, names)  # the first call of all is slow
            start, largest = perf_counter(), int(work.argmax())
            self._network_values(largest, 0, names)
            per_mac = (perf_counter() - start) / work[largest]
            shares = [work[row] * len(found) / len(names) for _, row, found in missing]
            seconds += float(per_mac * np.sum(shares))
        return seconds

    def measure(self, at: Callable[[int, int], None], save: Callable[[], None]) -> Values:
        """Computes what is missing.

        Args:
            at: is told how many networks of how many are done.
            save: is called after every network, when `values` is as complete as it is then.

        Raises:
            ValueError: a score of a network is not finite, or not defined for it.
        """
        self._count()
        for seed in self._seeds_of_supernets():
            self._score_by_importance(seed)
        missing = list(self._missing_networks())
        for number, (seed, row, names) in enumerate(missing):
            at(number, len(missing))
            for name, value in self._network_values(row, seed, names).items():
                self.values[name][seed][row] = value
            save()
        at(len(missing), len(missing))
        return self.values

    # --- scores without weights ------------------------------------------------------------------

    def _count(self) -> None:
        archs, settings = self.table.archs, self.table.space.settings
        functions, costs = family_of(self.table.space).arch_scores, self.table.costs
        for score in self.scores:
            if score in costs:
                self.values[score] = [costs[score].tolist()]
            elif score in functions:
                self.values[score] = [[float(functions[score](one, settings)) for one in archs]]
            elif not is_random(score):
                structures = (build_structure(one, settings) for one in archs)
                function = NETWORK_SCORES[score].function
                self.values[score] = [[function(one, ()) for one in structures]]

    # --- scores of subnets of one supernet, as in a search ---------------------------------------

    def _seeds_of_supernets(self) -> list[int]:
        names = [name for name in self.scores if name in WEIGHT_SCORES]
        return [
            seed
            for seed in range(self.num_seeds)
            if any(None in self.values[name][seed] for name in names)
        ]

    def _importance(self, seed: int) -> Importance:
        if seed not in self._importances:
            space = self.table.space
            supernet = Supernet(space.supernet, space.settings)
            supernet.initialize(torch_generator(seed, "weights")).to(self.device)
            images = _noise(self.batch_size, space.settings, seed).to(self.device)
            self._importances[seed] = measure_importance(supernet, space.scored, images)
        return self._importances[seed]

    def _score_by_importance(self, seed: int) -> None:
        importance = self._importance(seed)
        for score in self.scores:
            if score in WEIGHT_SCORES:
                tables = _tables(self.table, importance, score)
                found = [tables.score(choices) for choices in self.table.choices]
                self.values[score][seed] = list(found)
        del self._importances[seed]  # as large as two networks

    # --- scores of networks of their own ---------------------------------------------------------

    def _missing_networks(self) -> Iterator[tuple[int, int, list[str]]]:
        """(seed, row, scores) of every network that must be built."""
        names = [name for name in self.scores if name in NETWORK_SCORES and is_random(name)]
        for seed in range(self.num_seeds):
            for row in range(len(self.table.archs)):
                missing = [name for name in names if self.values[name][seed][row] is None]
                if missing:
                    yield seed, row, missing

    def _network_values(self, row: int, seed: int, names: Sequence[str]) -> dict[str, float]:
        arch = self.table.archs[row]
        network = self._network(arch, seed, row)
        batches = self._batches(seed)
        found = {}
        for name in names:
            with float32_products("fp32", torch.device(self.device)):
                found[name] = NETWORK_SCORES[name].function(network, batches)
            if not math.isfinite(found[name]):
                raise ValueError(
                    f"the score {name} of row {row + 1} ({arch.summary}) is {found[name]} at seed "
                    f"{seed}: leave this score out, or use larger images or batches"
                )
        return found

    def _network(self, arch: Arch, seed: int, row: int) -> nn.Module:
        family = family_of(arch)
        network = build(arch, self.settings)
        with torch.no_grad():
            family.initialize(network, torch_generator(seed, "weights of a bench", row))
        family.prepare_for_scoring(network)
        return network.to(self.device)

    def _batches(self, seed: int) -> list[Batch]:
        num = self.batch_size * _NUM_BATCHES
        images = _noise(num, self.settings, seed)
        generator = torch_generator(seed, "labels of a bench")
        labels = torch.randint(self.settings.num_classes, (num,), generator=generator)
        return [
            (one.to(self.device), other.to(self.device))
            for one, other in zip(
                images.chunk(_NUM_BATCHES), labels.chunk(_NUM_BATCHES), strict=True
            )
        ]


def _noise(num: int, settings: Settings, seed: int) -> Tensor:
    """Standard normal images [num, C, H, W]."""
    zeros, ones = (0.0,) * settings.in_chans, (1.0,) * settings.in_chans
    return noise_images(num, settings.in_chans, settings.image_size, zeros, ones, seed)


def _tables(table: AccuracyTable, importance: Importance, score: str) -> SpaceTables:
    """Tables of one score, without the gains that rank isomers, which no score needs."""
    tables = cost_tables(table.space)
    scores = stage_scores(table.space, importance, score=score)
    stages = tuple(
        replace(stage, fixed_scores=found.fixed, scores=found.layers)
        for stage, found in zip(tables.stages, scores, strict=True)
    )
    return replace(tables, stages=stages, finish=WEIGHT_SCORES[score].finish)


def complete(values: Mapping[str, Sequence[Sequence[float | None]]]) -> dict[str, Floats]:
    """Score -> values [seeds, n], of scores that are computed for every row."""
    return {
        score: np.array(seeds, dtype=np.float64)
        for score, seeds in values.items()
        if None not in chain.from_iterable(seeds)
    }
