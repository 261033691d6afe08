"""Preferred subnets and preferred training, each compared with a control at equal steps.

    python benchmarks/controls.py --recipe mobilenet-micro --seeds 0 1 2

For every seed, three trainings start from the same weights (those that were scored) and take the
same number of steps with one subnet each. They train the preferred subnets; random subnets, one
from the budget of each preferred subnet, all its architectures being equally likely; and the whole
space, in whose supernet the subnets of the other two are evaluated. Trainings are stored in
`runs/controls/` and continued there; rows are printed and merged into `results/controls.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from itertools import count as count_up
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from prenas.cost import bounded_names, count
from prenas.data import ImageData, load_data
from prenas.evaluation.accuracy import evaluate_archs
from prenas.evaluation.calibration import calibrate_on
from prenas.families.base import Arch, SearchSpace, envelope
from prenas.randomness import numpy_generator
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.catalogue import get_recipe
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import PreferredSet
from prenas.selection.search import zero_cost_search
from prenas.selection.within import Within
from prenas.supernet import Supernet
from prenas.training.loop import train_supernet

RESULTS = Path(__file__).parent.parent / "results" / "controls.json"


def random_archs(space: SearchSpace, preferred: PreferredSet, seed: int) -> list[Arch]:
    """A random architecture from the budget of every choice, uniformly; all of them different."""
    budgets = placed_budgets(space, preferred.recipe.search.budgets).kept
    generator = numpy_generator(seed, "controls")
    found: list[Arch] = []
    for choice in preferred.choices:
        within = Within(space, budgets[choice.budget], "archs")
        draws = (within.draw(generator) for _ in count_up())
        archs = (space.compose(draw.choices, draw.resolution) for draw in draws)
        found.append(next(arch for arch in archs if arch not in found))
    return found


def trained(
    initial: Supernet,
    archs: Sequence[Arch],
    recipe: Recipe,
    data: ImageData,
    folder: Path,
    space: SearchSpace | None = None,
) -> Supernet:
    """A copy of the initial weights, trained on the subnets, or on the whole space."""
    training = recipe.training
    assert training is not None, "recipes that only search are rejected earlier"
    arch = initial.arch if space else envelope(archs)
    supernet = initial.trimmed(arch, drop_path=training.drop_path, dropout=training.dropout)
    folder.mkdir(parents=True, exist_ok=True)
    train_supernet(supernet, archs, data, training, seed=recipe.seed, space=space, folder=folder)
    return supernet


def row(
    name: str, supernet: Supernet, archs: Sequence[Arch], recipe: Recipe, data: ImageData
) -> dict[str, Any]:
    """Accuracies of the subnets in a trained supernet, the cheapest budget first."""
    assert recipe.training is not None, "recipes that only search are rejected earlier"
    epochs = recipe.training.epochs
    statistics = calibrate_on(
        supernet, archs, data, recipe.calibration, seed=recipe.seed, first_epoch=epochs
    )
    found = evaluate_archs(supernet, archs, data.splits, statistics)
    return {
        "recipe": recipe.name,
        "variant": name,
        "seed": recipe.seed,
        "epochs": epochs,
        **{name: [one.costs[name] for one in found] for name in bounded_names()},
        **{
            split: [round(100 * one.splits[split].top1, 2) for one in found]
            for split in data.splits
        },
    }


def measure(recipe: Recipe, home: Path) -> list[dict[str, Any]]:
    """The rows of one seed."""
    assert recipe.data is not None, "recipes that only search are rejected earlier"
    space = recipe.space
    data = load_data(recipe.data, space.settings)
    preferred, initial = zero_cost_search(recipe, data)
    chosen = list(preferred.archs)
    drawn = sorted(
        random_archs(space, preferred, recipe.seed),
        key=lambda arch: count(arch, space)["macs"],
    )
    folder = home / f"{recipe.name}-{recipe.seed}"
    rows = []
    for name, archs in (("preferred", chosen), ("random", drawn)):
        supernet = trained(initial, archs, recipe, data, folder / name)
        rows.append(row(f"{name}, trained together", supernet, archs, recipe, data))
    whole = trained(initial, chosen, recipe, data, folder / "whole", space)
    for name, archs in (("preferred", chosen), ("random", drawn)):
        rows.append(row(f"{name}, of the whole space", whole, archs, recipe, data))
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints means over subnets, with the standard deviation of these means over the seeds."""
    print(f"{'variant':34} {'seeds':>5} {'val, %':>16} {'test, %':>16}")
    for variant in dict.fromkeys(one["variant"] for one in rows):
        cells = []
        for split in ("validation", "test"):
            means = [fmean(one[split]) for one in rows if one["variant"] == variant]
            spread = f" +- {stdev(means):.2f}" if len(means) > 1 else ""
            cells.append(f"{fmean(means):.2f}{spread}")
        print(f"{variant:34} {len(means):5} {cells[0]:>16} {cells[1]:>16}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="mobilenet-micro", help="name of a recipe that trains")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path("runs/controls"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    quiet = ["training.validate_epochs=0", "training.validate_all_epochs=0"]
    for seed in options.seeds:
        recipe = with_overrides(get_recipe(options.recipe), [f"seed={seed}", *quiet, *options.set])
        if recipe.training is None or recipe.data is None:
            parser.error(f"recipe {recipe.name} only searches: choose one that trains")
        found = measure(recipe, options.home)
        rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
        rows = [one for one in rows if (one["recipe"], one["seed"]) != (recipe.name, seed)]
        rows += [{**one, "commit": commit, "date": date.today().isoformat()} for one in found]
        document = {
            "hardware": f"{platform.machine()}, {options.threads} thread(s)",
            "torch": torch.__version__,
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print_table([one for one in rows if one["recipe"] == options.recipe])


if __name__ == "__main__":
    main()
