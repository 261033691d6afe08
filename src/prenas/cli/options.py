"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _no_recipe(run: Path) -> Path:
    """Says what to do where a recipe is named instead of a run."""
    if not run.exists():
        from prenas.recipe.catalogue import RECIPES

        if str(run) in RECIPES:
            raise ValueError(
                f"{run} is a recipe, no folder of a run: `prenas run {run} --out RUN` does all "
                f"steps, `prenas search {run} --out RUN` the first one"
            )
    return run


RecipeName = Annotated[
    str | None, typer.Argument(metavar="[RECIPE]", help="See `prenas info`.", show_default=False)
]
SpaceText = Annotated[
    str | None,
    typer.Option("--space", metavar="FILE|NAME", help="Another search space: YAML, Python, name."),
]
DataTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="SOURCE|SPLIT=PLACE",
        help="photos/ | photos.tar | cifar10 | hfds/NAME | train=a.tar | validation=0.1 | "
        "test=none; repeatable.",
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run.", callback=_no_recipe)
]
Out = Annotated[Path, typer.Option(help="Folder of the run; made if missing.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a recipe field; repeatable."),
]
BudgetTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="AXIS=AMOUNT",
        help="params=6M | macs=1.4G | params=5M:6M | params=5M:12M:1M | params=6M,macs=1.4G; "
        "repeatable, replaces the recipe's.",
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--max",
        metavar="COST=AMOUNT",
        help="The best subnet within these limits: params=6M,macs=1.4G; repeatable.",
    ),
]
MaxParams = Annotated[
    str | None, typer.Option(metavar="AMOUNT", help="Short for --max params=AMOUNT, e.g. 100k.")
]
MaxMacs = Annotated[
    str | None, typer.Option(metavar="AMOUNT", help="Short for --max macs=AMOUNT, e.g. 1.4G.")
]
Seeds = Annotated[
    int | None,
    typer.Option("--further-seeds", help="Initialisations scored beside, to report agreement."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")]
Crops = Annotated[
    int | None, typer.Option(help="1, 5 or 10 crops per image, logits averaged.", min=1, max=10)
]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME", help="tensorboard, wandb, mlflow, ...; repeatable."),
]
ArchTexts = Annotated[
    list[str] | None,
    typer.Option("--arch", metavar="JSON|FILE", help="Evaluate these instead; repeatable."),
]


def joined_limits(
    limits: list[str] | None, max_params: str | None, max_macs: str | None
) -> str | None:
    """Limits and their short forms as one text; None if there is none."""
    given = [*(limits or ())]
    given += [f"params={max_params}"] if max_params is not None else []
    given += [f"macs={max_macs}"] if max_macs is not None else []
    return ",".join(given) if given else None
