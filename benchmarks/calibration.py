"""Accuracy of a run's subnets after calibration on 0, 256, 1 k, 4 k and 16 k images.

    python benchmarks/calibration.py RUN [--out results/calibration.json]

The batch size is the run's `calibration.batch_size`, or the number of images if that is smaller.
Without images, means are 0 and variances 1. The run is not changed.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from prenas.cost import bounded_names
from prenas.data import ImageData
from prenas.evaluation.accuracy import evaluate_archs
from prenas.evaluation.calibration import calibrate_on
from prenas.runs.run import Run
from prenas.selection.preferred import PreferredSet
from prenas.supernet import Supernet

NUM_IMAGES = (0, 256, 1024, 4096, 16_384)


def main() -> None:
    """Measures the accuracies and writes them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/calibration.json"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    run = Run(given.run)
    preferred, supernet, data = run.preferred, run.supernet, run.images.read()
    tables = {number: accuracies(preferred, supernet, data, number) for number in NUM_IMAGES}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    document = {
        "command": f"python benchmarks/calibration.py {given.run}",
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "recipe": preferred.recipe.name,
        "epochs": preferred.recipe.training.epochs if preferred.recipe.training else None,
        "batch_size": preferred.recipe.calibration.batch_size,
        "subnets": [
            {
                **{name: subnet.costs[name] for name in bounded_names()},
                "arch": subnet.arch.summary,
            }
            for subnet in preferred.subnets
        ],
        "test_top1_by_images": tables,
    }
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def accuracies(
    preferred: PreferredSet, supernet: Supernet, data: ImageData, num_images: int
) -> list[float]:
    """Test top-1 of every subnet in %, rounded to two decimals."""
    recipe, archs = preferred.recipe, preferred.archs
    statistics: list[Any] = [supernet.fresh_statistics(arch) for arch in archs]
    if num_images:
        statistics = calibrate_on(
            supernet,
            archs,
            data,
            recipe.calibration,
            num_images,
            seed=recipe.seed,
            first_epoch=recipe.training.epochs if recipe.training else 0,
        )
    assert data.test is not None, "the run has no test split"
    rows = evaluate_archs(supernet, archs, {"test": data.test}, statistics)
    found = [round(100 * row.splits["test"].top1, 2) for row in rows]
    logging.getLogger(__name__).info("%6d images: %s", num_images, found)
    return found


if __name__ == "__main__":
    main()
