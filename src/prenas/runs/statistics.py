"""The statistics of a run's subnets on disk: whose they are, and from how many images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prenas import artifacts
from prenas.families.base import Arch
from prenas.recipe import CalibrationRecipe
from prenas.supernet import Statistics


def write_statistics(
    out: Path, archs: Sequence[Arch], statistics: Sequence[Statistics], recipe: CalibrationRecipe
) -> None:
    """Writes `calibration.safetensors` and then, which marks it as whole, `calibration.json`."""
    tensors = {
        f"{arch.id}/{name}": tensor
        for arch, own in zip(archs, statistics, strict=True)
        for name, tensor in own.items()
    }
    artifacts.write_tensors(out / artifacts.STATISTICS, tensors)
    artifacts.write_json(
        out / artifacts.CALIBRATION,
        {
            "supernet_sha256": artifacts.sha256(out / artifacts.SUPERNET),
            "statistics_sha256": artifacts.sha256(out / artifacts.STATISTICS),
            "num_images": recipe.num_images,
            "batch_size": recipe.batch_size,
            "subnets": [arch.id for arch in archs],
        },
    )


def stored_statistics(out: Path, archs: Sequence[Arch]) -> list[Statistics] | None:
    """The statistics of these subnets of a run; None if it is not calibrated yet.

    Raises:
        ValueError: they are missing or damaged, or of other weights or subnets.
    """
    path, supernet = out / artifacts.CALIBRATION, out / artifacts.SUPERNET
    statistics = out / artifacts.STATISTICS
    if not path.exists():
        return None
    weights, digest, subnets = artifacts.parse_json(path, _parse)
    is_old = supernet.exists() and artifacts.sha256(supernet) != weights
    is_other = not statistics.exists() or artifacts.sha256(statistics) != digest
    if is_old or is_other or not {arch.id for arch in archs} <= subnets:
        raise ValueError(
            f"{path} belongs to other weights, subnets or statistics than those of {out}: remove "
            f"it, and {artifacts.EVALUATION} and {artifacts.SUBNETS}/ beside it, to calibrate anew"
        )
    tensors = artifacts.read_tensors(statistics)
    return [
        {
            name.removeprefix(f"{arch.id}/"): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{arch.id}/")
        }
        for arch in archs
    ]


def _parse(document: dict[str, Any]) -> tuple[str, str, set[str]]:
    """Digests of supernet and statistics, and the subnets."""
    digests = str(document["supernet_sha256"]), str(document["statistics_sha256"])
    return (*digests, set(map(str, document["subnets"])))
