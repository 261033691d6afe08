"""Made-up tables of small networks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prenas.families import all_spaces
from prenas.families.base import Arch, SearchSpace

SPACE = all_spaces()["digits"]


def archs(num: int = 30, space: SearchSpace = SPACE, seed: int = 0) -> list[Arch]:
    """Distinct architectures of a space."""
    generator = np.random.default_rng(seed)
    found: dict[Arch, None] = {}
    while len(found) < num:
        found[space.sample(generator)] = None
    return list(found)


def rows(
    chosen: Sequence[Arch], accuracy: Callable[[Arch], float | dict[str, float]]
) -> list[dict[str, Any]]:
    """Rows with the fields of the architecture beside the accuracy."""
    return [arch.model_dump(mode="json") | {"accuracy": accuracy(arch)} for arch in chosen]


def some_rows(num: int = 12) -> list[dict[str, Any]]:
    """Rows with two columns of accuracies that differ from row to row."""
    chosen = archs(num)
    numbers = {arch: 50 + number for number, arch in enumerate(chosen)}
    return rows(chosen, lambda arch: {"first": numbers[arch], "second": 100.5 - numbers[arch]})


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
