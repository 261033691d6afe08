"""What the files of results say, and of which weights; `Run` judges whether those are current."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from prenas.evaluation.accuracy import Evaluation
from prenas.families import get_family
from prenas.families.base import Arch
from prenas.recipe import CalibrationRecipe
from prenas.selection.evolved import Evolved
from prenas.supernet import Statistics

T = TypeVar("T")


class Stored(NamedTuple, Generic[T]):
    """A result, and the digest of the supernet that it is about."""

    result: T
    supernet_sha256: str


class Calibration(NamedTuple):
    """What `calibration.json` says of the statistics in `calibration.safetensors`."""

    statistics_sha256: str
    num_images: int
    batch_size: int
    subnets: tuple[str, ...]
    """Ids of the architectures."""


def parse_evaluations(document: dict[str, Any]) -> Stored[tuple[Evaluation, ...]]:
    """Reads `evaluation.json`: one row per subnet."""
    rows = (Evaluation.model_validate(fields) for fields in _with_archs(document, "subnets"))
    return Stored(tuple(rows), document["supernet_sha256"])


def evaluations_document(stored: Stored[tuple[Evaluation, ...]], family: str) -> dict[str, Any]:
    """What `parse_evaluations` reads."""
    rows = [row.model_dump(mode="json") for row in stored.result]
    return {"family": family, "supernet_sha256": stored.supernet_sha256, "subnets": rows}


def parse_evolution(document: dict[str, Any]) -> Stored[tuple[Evolved, ...]]:
    """Reads `evolution.json`: the budgets that are finished."""
    found = (Evolved.model_validate(fields) for fields in _with_archs(document, "budgets"))
    return Stored(tuple(found), document["supernet_sha256"])


def evolution_document(stored: Stored[tuple[Evolved, ...]], family: str) -> dict[str, Any]:
    """What `parse_evolution` reads."""
    budgets = [found.model_dump(mode="json") for found in stored.result]
    return {"family": family, "supernet_sha256": stored.supernet_sha256, "budgets": budgets}


def parse_calibration(document: dict[str, Any]) -> Stored[Calibration]:
    """Reads `calibration.json`."""
    calibration = Calibration(
        str(document["statistics_sha256"]),
        int(document["num_images"]),
        int(document["batch_size"]),
        tuple(map(str, document["subnets"])),
    )
    return Stored(calibration, str(document["supernet_sha256"]))


def calibration_of(
    recipe: CalibrationRecipe, archs: Sequence[Arch], statistics_sha256: str
) -> Calibration:
    """How statistics were gathered, and for which subnets."""
    subnets = tuple(arch.id for arch in archs)
    return Calibration(statistics_sha256, recipe.num_images, recipe.batch_size, subnets)


def calibration_document(stored: Stored[Calibration]) -> dict[str, Any]:
    """What `parse_calibration` reads."""
    return {"supernet_sha256": stored.supernet_sha256, **stored.result._asdict()}


def statistics_tensors(
    archs: Sequence[Arch], statistics: Sequence[Statistics]
) -> dict[str, Tensor]:
    """The statistics of subnets under the names of `calibration.safetensors`."""
    return {
        f"{arch.id}/{name}": tensor
        for arch, own in zip(archs, statistics, strict=True)
        for name, tensor in own.items()
    }


def statistics_of(arch: Arch, tensors: Mapping[str, Tensor]) -> Statistics:
    """The statistics of a subnet among those of `calibration.safetensors`."""
    prefix = f"{arch.id}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _with_archs(document: dict[str, Any], entries: str) -> list[dict[str, Any]]:
    """The entries of a document, their architectures read as those of its family."""
    arch_type = get_family(document["family"]).arch_type
    return [
        {**fields, "arch": arch_type.model_validate(fields["arch"])} for fields in document[entries]
    ]
