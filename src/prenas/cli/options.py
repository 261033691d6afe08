"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _no_recipe(run: Path) -> Path:
    """Raises ValueError, with what to do, if a recipe is named instead of a run."""
    if not run.exists():
        from prenas.recipe.catalogue import RECIPES

        if str(run) in RECIPES:
            raise ValueError(
                f"{run} is a recipe, not a run folder: `prenas run {run} --out FOLDER` runs all "
                f"steps, `prenas search {run} --out FOLDER` only the first"
            )
    return run


RecipeName = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="Name of a recipe; `prenas info` lists them.",
        show_default=False,
    ),
]
SpaceText = Annotated[
    str | None,
    typer.Option(
        "--space",
        metavar="FILE|NAME",
        help="Search space instead of the recipe's: a YAML, JSON or Python file, or a name.",
    ),
]
DataTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="SOURCE|SPLIT=PATH",
        help="Images: photos/ | photos.tar | cifar10 | hfds/NAME | train=a.tar | validation=0.1 | "
        "test=none. May be given several times.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", callback=_no_recipe)]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Run folder; several with --html.",
        callback=lambda runs: [_no_recipe(run) for run in runs],
    ),
]
RunOrModel = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|MODEL",
        help="Run folder, or the folder of a handed-over model.",
        callback=_no_recipe,
    ),
]
Out = Annotated[Path, typer.Option(help="Run folder; created if it does not exist.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the recipe. May be given several times.",
    ),
]
BudgetTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="AXIS=AMOUNT",
        help="Budget: params=6M | macs=1.4G | params=5M:6M | params=5M:12M:1M | "
        "params=6M,macs=1.4G. Replaces the recipe's budgets; may be given several times.",
    ),
]
StartFrom = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="SOURCE",
        help="Start from a trained network: timm/NAME | timm/NAME=FILE | the folder of a model. "
        "Budgets may then be shares of it, such as macs=50%.",
    ),
]
Compare = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL",
        help="With --from: also fine-tune this stock model, timm/NAME or timm/NAME=FILE, and say "
        "at which budgets it is better. May be given several times.",
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--max",
        metavar="COST=AMOUNT",
        help="The best subnet within these limits, e.g. params=6M,macs=1.4G. May be given several "
        "times.",
    ),
]
MaxParams = Annotated[
    str | None, typer.Option(metavar="AMOUNT", help="Short for --max params=AMOUNT, e.g. 100k.")
]
MaxMacs = Annotated[
    str | None, typer.Option(metavar="AMOUNT", help="Short for --max macs=AMOUNT, e.g. 1.4G.")
]
Latency = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Table of `prenas measure`, for budgets such as latency=10ms.",
    ),
]
LatencyElsewhere = Annotated[
    bool,
    typer.Option(
        "--latency-elsewhere",
        help="Also take a table that was measured on another machine or with other versions.",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--further-seeds",
        metavar="N",
        help="Score N extra seeds and report how well they agree.",
    ),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1, mps, ...")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Number of CPU threads; default: one per core.")
]
Crops = Annotated[
    int | None,
    typer.Option(help="Average the logits over 1, 5 or 10 crops per image.", min=1, max=10),
]
ModelImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="N",
        min=1,
        help="Give a model images of N x N pixels instead of the size that it was trained with.",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Choose the length of the training so that training, calibration and evaluation take "
        "this time: 90s, 20m, 1.5h. Measures a few steps first. Searches are not included.",
    ),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Also log to tensorboard, wandb, mlflow, ...; may be given several times.",
    ),
]
ArchTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--arch",
        metavar="JSON|FILE",
        help="Evaluate this architecture instead; may be given several times.",
    ),
]


def joined_limits(
    limits: list[str] | None, max_params: str | None, max_macs: str | None
) -> str | None:
    """Limits and their short forms as one text; None if none is given."""
    given = [*(limits or ())]
    given += [f"params={max_params}"] if max_params is not None else []
    given += [f"macs={max_macs}"] if max_macs is not None else []
    return ",".join(given) if given else None
