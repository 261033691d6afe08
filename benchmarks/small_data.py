"""Few pictures: the best preferred subnet against plain training of the same network.

    python -m benchmarks.small_data TRAIN.tar TEST.tar [--seconds 112] [--seeds 0 1 2]

The tars hold CIFAR-10 as class folders. The first classes and pictures of them are the user's set,
which the recipe trains on with its defaults, for as many steps as fit into the CPU time (of this
process, in one thread, without validations). Then the subnet that validation prefers is trained
alone, in a space that contains nothing else, with the same recipe for the same CPU time. Both are
measured on test pictures that neither has seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import prenas
from benchmarks.paired import Options, environment
from prenas.families import get_family
from prenas.families.base import Arch
from prenas.models.choice import pick
from prenas.selection.preferred import exact_budgets

_PROBE_STEPS = 24
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer")


def main() -> None:
    """Measures both arms for every seed and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--recipe", default="photos-mobilenet")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE"
    )
    parser.add_argument("--pictures", type=int, default=200, help="per class, for training")
    parser.add_argument("--test-pictures", type=int, default=400, help="per class")
    parser.add_argument("--seconds", type=float, default=112.0, help="CPU time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("results/small-data.json"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        unpack(given.train, home / "train", given.pictures, _CLASSES)
        unpack(given.test, home / "test", given.test_pictures, _CLASSES)
        pairs = []
        for seed in given.seeds:
            overrides = [*given.overrides, f"seed={seed}"]
            pairs.append(compare(given.recipe, home, overrides, given.seconds))
            logging.info("seed %d: %s", seed, json.dumps(pairs[-1]))
    command = [
        *("python -m benchmarks.small_data", given.train.name, given.test.name),
        *("--recipe", given.recipe, *(f"--set {change}" for change in given.overrides)),
        *(f"--seconds {given.seconds:g} --seeds", *map(str, given.seeds)),
    ]
    document = {
        **environment(Options(threads=1, rounds=1)),
        "command": " ".join(command),
        "data": f"CIFAR-10, {len(_CLASSES)} classes ({', '.join(_CLASSES)}) of {given.pictures} "
        f"pictures, a tenth of them for validation; {given.test_pictures} test pictures per class",
        "cpu_seconds": given.seconds,
        "mean_difference_points": round(fmean(pair["difference_points"] for pair in pairs), 2),
        "pairs": dict(zip(map(str, given.seeds), pairs, strict=True)),
    }
    given.out.write_text(json.dumps(document, indent=1) + "\n")


def unpack(tar: Path, folder: Path, number: int, classes: Sequence[str] = ()) -> None:
    """Writes the first pictures of each class, or of these classes, in the order of the tar."""
    written: Counter[str] = Counter()
    with tarfile.open(tar) as archive:
        for member in archive:
            name = Path(member.name).parent.name
            is_wanted = not classes or name in classes
            if member.isfile() and is_wanted and written[name] < number:
                content = archive.extractfile(member)
                assert content is not None, "a regular file"
                target = folder / name / Path(member.name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                written[name] += 1


def compare(name: str, home: Path, overrides: Sequence[str], seconds: float) -> dict[str, Any]:
    """Trains the preferred subnets together, then the best of them alone."""
    texts = [f"train={home / 'train'}", f"test={home / 'test'}"]
    never = ["training.validate_epochs=0", "training.validate_all_epochs=0"]
    recipe = prenas.with_overrides(
        prenas.with_data(prenas.get_recipe(name), texts), [*never, *overrides]
    )
    steps, used, rows = trained(recipe, seconds)
    best = pick(rows, {})
    alone_steps, alone_used, (alone,) = trained(only(recipe, rows[best].arch), seconds)
    together, plain = (row.splits["test"].top1 for row in (rows[best], alone))
    return {
        "subnet": best,
        "arch": rows[best].arch.summary,
        "difference_points": round(100 * (together - plain), 2),
        "preferred": {
            "steps": steps,
            "cpu_seconds": round(used, 1),
            "test_top1_best": round(100 * together, 2),
            "test_top1_all": [round(100 * row.splits["test"].top1, 2) for row in rows],
            "validation_top1_all": [round(100 * row.splits["validation"].top1, 2) for row in rows],
        },
        "plain": {
            "steps": alone_steps,
            "cpu_seconds": round(alone_used, 1),
            "test_top1": round(100 * plain, 2),
        },
    }


def only(recipe: prenas.Recipe, arch: Arch) -> prenas.Recipe:
    """The recipe for a space that contains this network and nothing else."""
    settings = recipe.space.settings
    space = get_family(recipe.space.family).space_type.spanning(
        (arch,), name="alone", settings=settings
    )
    search = recipe.search.model_copy(update={"budgets": exact_budgets((arch,), settings)})
    return recipe.model_copy(update={"name": "alone", "space": space, "search": search})


def trained(recipe: prenas.Recipe, seconds: float) -> tuple[int, float, list[prenas.Evaluation]]:
    """(steps, CPU seconds, evaluations) of a training that takes this much CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        probe = timed(recipe, Path(folder) / "probe", _PROBE_STEPS)
        steps = max(1, round(seconds / probe * _PROBE_STEPS))
        used = timed(recipe, Path(folder) / "run", steps)
        return steps, used, prenas.evaluate(Path(folder) / "run", device="cpu")


def timed(recipe: prenas.Recipe, out: Path, steps: int) -> float:
    """CPU seconds of a training of so many steps."""
    prenas.search(prenas.with_overrides(recipe, [f"training.steps={steps}"]), out, device="cpu")
    started = time.process_time()
    prenas.train(out, device="cpu")
    return time.process_time() - started


if __name__ == "__main__":
    main()
