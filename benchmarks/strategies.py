"""Training strategies compared at equal steps, and at equal numbers of images through subnets.

    python benchmarks/strategies.py --data digits --epochs 120 --seeds 0 1 2
    python benchmarks/strategies.py --data fashion-mnist --epochs 4 --seeds 0 1

For each seed, all variants start from the same scored weights and the same preferred subnets. Runs
are stored in `runs/strategies/` and continued there; results are printed as a table and merged into
`results/strategies.json`. A sandwich of three subnets sends every image of a step through three
subnets: with "equal images" it trains for a third of the epochs, with "equal steps" for all.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from prenas import artifacts, pipeline
from prenas.data import load_data
from prenas.evaluation.accuracy import Evaluation, evaluate_archs
from prenas.evaluation.calibration import calibrate_on
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.catalogue import get_recipe
from prenas.supernet import Supernet
from prenas.training.checkpoint import checkpoints

RESULTS = Path(__file__).parent.parent / "results" / "strategies.json"
SANDWICH = ("training.sandwich=1",)
DISTILLED = (*SANDWICH, "training.inplace_distillation=true")
EMA = ("training.ema_decay=0.995", "training.final_weights=last")
VARIANTS: dict[str, tuple[tuple[str, ...], int]] = {
    "preferred": (EMA, 1),
    "masked AdamW": (("training.optimizer=masked_adamw",), 1),
    "sandwich, equal images": (SANDWICH, 3),
    "sandwich + distillation, equal images": (DISTILLED, 3),
    "sandwich, equal steps": (SANDWICH, 1),
    "sandwich + distillation, equal steps": (DISTILLED, 1),
    "uniform over the space": (("evolution={}",), 1),
}
"""Name -> (changes of the recipe, divisor of its epochs)."""


def quiet_recipe(data: str, epochs: int | None, seed: int, changes: Sequence[str]) -> Recipe:
    """A recipe without validation during training.

    Args:
        epochs: None keeps the recipe's.
    """
    quiet = [f"training.{name}=0" for name in ("validate_epochs", "validate_all_epochs")]
    length = [] if epochs is None else [f"training.epochs={epochs}"]
    return with_overrides(
        get_recipe(data), [f"seed={seed}", *length, *quiet, "data.num_workers=0", *changes]
    )


def recipe_of(data: str, variant: str, epochs: int, seed: int) -> Recipe:
    """The recipe of one run."""
    changes, divisor = VARIANTS[variant]
    return quiet_recipe(data, epochs // divisor, seed, changes)


def row(data: str, variant: str, recipe: Recipe, rows: Sequence[Evaluation]) -> dict[str, Any]:
    """One row of the results: accuracies of the subnets, the cheapest first."""
    assert recipe.training is not None
    accuracies = {
        split: [round(100 * one.splits[split].top1, 2) for one in rows]
        for split in ("validation", "test")
    }
    passes = 1 if recipe.training.sandwich is None else 2 + recipe.training.sandwich
    return {
        "data": data,
        "variant": variant,
        "seed": recipe.seed,
        "epochs": recipe.training.epochs,
        "subnets_per_step": passes,
        "params": [one.costs["params"] for one in rows],
        **accuracies,
    }


def averaged(out: Path, recipe: Recipe) -> list[Evaluation]:
    """Evaluates the preferred subnets with the moving average of the weights."""
    preferred = pipeline.read_preferred(out)
    supernet = Supernet(preferred.envelope, recipe.space.settings).eval()
    newest = checkpoints(out / artifacts.CHECKPOINTS)[0].folder
    artifacts.load_weights(supernet.network, newest / artifacts.EMA)
    assert recipe.data is not None
    assert recipe.training is not None
    data, epochs = load_data(recipe.data, recipe.space.settings), recipe.training.epochs
    statistics = calibrate_on(
        supernet, preferred.archs, data, recipe.calibration, seed=recipe.seed, first_epoch=epochs
    )
    return evaluate_archs(supernet, preferred.archs, data.splits, statistics)


def measure(data: str, variant: str, epochs: int, seed: int, home: Path) -> list[dict[str, Any]]:
    """Trains one variant, unless it is already trained, and evaluates it."""
    recipe = recipe_of(data, variant, epochs, seed)
    out = home / data / f"{variant.replace(' ', '-').replace(',', '')}-{epochs}-{seed}"
    pipeline.search(recipe, out)
    pipeline.train(out)
    if recipe.evolution is None:
        found = [row(data, variant, recipe, pipeline.evaluate(out))]
    else:
        archs = pipeline.read_preferred(out).archs
        pipeline.evolve(out)
        found = [
            row(data, f"{variant}: preferred subnets", recipe, pipeline.evaluate(out, archs)),
            row(data, f"{variant}: evolved subnets", recipe, pipeline.evaluate(out)),
        ]
    if variant == "preferred":
        found.append(row(data, "preferred, moving average", recipe, averaged(out, recipe)))
    return found


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints means over seeds, with the standard deviation of the subnets' mean over the seeds."""
    print(f"{'data':14} {'variant':44} {'seeds':>5} {'val, %':>8} {'test, %':>14}")
    for data, variant in dict.fromkeys((one["data"], one["variant"]) for one in rows):
        chosen = [one for one in rows if (one["data"], one["variant"]) == (data, variant)]
        validation = [fmean(one["validation"]) for one in chosen]
        test = [fmean(one["test"]) for one in chosen]
        spread = f" +- {stdev(test):.2f}" if len(test) > 1 else ""
        cells = f"{fmean(validation):8.2f} {fmean(test):7.2f}{spread}"
        print(f"{data:14} {variant:44} {len(chosen):5} {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="name of a recipe that trains")
    parser.add_argument(
        "--epochs", type=int, default=120, help="number of epochs, divisible by three"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path("runs/strategies"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for seed in options.seeds:
        for variant in options.variants:
            for found in measure(options.data, variant, options.epochs, seed, options.home):
                key = ("data", "variant", "seed")
                rows = [one for one in rows if any(one[name] != found[name] for name in key)]
                found |= {"commit": commit, "date": date.today().isoformat()}
                rows.append(found)
                print(found["variant"], seed, f"test {fmean(found['test']):.2f} %", flush=True)
            document = {
                "hardware": f"{platform.machine()}, {options.threads} thread(s)",
                "torch": torch.__version__,
                "rows": rows,
            }
            RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print_table([one for one in rows if one["data"] == options.data])


if __name__ == "__main__":
    main()
