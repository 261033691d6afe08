"""Turns command-line arguments into recipes, runs and architectures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prenas import artifacts
from prenas.cli.output import console
from prenas.cli.tables import print_time

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Evaluation
    from prenas.families.base import Arch, SearchSpace
    from prenas.recipe import Recipe
    from prenas.runs.run import Run


_BUDGETS = "search.budgets"


def set_threads(threads: int | None) -> None:
    """Sets the number of CPU threads; None leaves it as it is."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def default_folder(recipe: Recipe) -> Path | None:
    """The folder in which a recipe looks for pictures if none is named; None if it has none."""
    from prenas.recipe.data import FOLDER

    if recipe.data is None or recipe.data.name != FOLDER or recipe.data.root is None:
        return None
    folder = Path(recipe.data.root)
    return None if folder.is_absolute() else folder


def require_pictures(recipe: Recipe) -> None:
    """Raises ValueError if no pictures were named and the recipe's default folder is missing."""
    default = default_folder(recipe)
    if default is not None and not default.exists():
        raise ValueError(
            f"the recipe {recipe.name} needs pictures: add --data FOLDER, with one folder per "
            f"class (its default, ./{default}, does not exist)"
        )


def chosen_recipe(
    name: str | None,
    space: str | None,
    data: Sequence[str] | None,
    overrides: Sequence[str] | None,
    budgets: Sequence[str] | None,
    further_seeds: int | None,
    *,
    recorded_in: Path | None = None,
    trains: bool = False,
) -> Recipe:
    """The named recipe, with the changes of the command line: space, data, then single fields.

    Args:
        recorded_in: a run folder, whose recipe is taken if neither a recipe nor a space is named.
        trains: whether a recipe that only searches is of no use.
    """
    from prenas.data import with_data
    from prenas.recipe import searching_recipe, with_overrides, with_space
    from prenas.recipe.catalogue import RECIPES, get_recipe
    from prenas.recipe.space_file import find_space

    found = find_space(space) if space is not None else None
    changes = list(overrides or ())
    if name is not None:
        recipe = get_recipe(name)
        if found is not None:
            recipe = with_space(recipe, found)
        default = default_folder(recipe)
        if not data and default is not None and default.exists():
            data = [str(default)]  # as if typed, so that the network has an output per class
    elif found is not None and trains:
        given = data[0] if data else "FOLDER"
        raise ValueError(_which_recipe(found, f"--space {space} --data {given}"))
    elif found is not None and budgets:
        recipe = searching_recipe(found, budgets)
    elif found is None and recorded_in is not None and (recorded_in / artifacts.RECIPE).exists():
        recipe = recorded_recipe(recorded_in)
    elif found is None and recorded_in is not None and not (data or budgets or changes):
        raise ValueError(
            f"{recorded_in} holds no run to continue: give the folder of a run, or name a recipe "
            f"({', '.join(RECIPES)}) to start one there"
        )
    else:
        raise ValueError(
            f"name a recipe ({', '.join(RECIPES)}), or give --space and --budget to search "
            "without training"
        )
    if data:
        recipe = with_data(recipe, data)
    if found is not None and not budgets and not any(c.startswith(_BUDGETS) for c in changes):
        recipe = _within_reach(recipe)
    if budgets:
        changes.append(f"{_BUDGETS}={json.dumps(list(budgets))}")
    if further_seeds is not None:
        changes.append(f"search.further_seeds={further_seeds}")
    return with_overrides(recipe, changes)


def as_started(
    recipe: Recipe, out: Path | None, time: str | None, overrides: Sequence[str] | None
) -> tuple[Recipe, float | None]:
    """The recipe, and the seconds of `--time` into which its training is yet to be fitted.

    A run that was started with `--time` keeps its number of steps.

    Args:
        out: where it is started or continued; None if nothing is written.

    Raises:
        ValueError: the time cannot be read; the overrides also give a length; or the folder holds
            another run or other files.
    """
    from prenas.recipe import with_overrides
    from prenas.runs.run import Run

    seconds = None if time is None else seconds_alone(time, overrides)
    if out is None:
        return recipe, seconds
    if seconds is not None and (steps := recorded_steps(out)) is not None:
        recipe, seconds = with_overrides(recipe, [f"training.steps={steps}"]), None
    Run(out, recipe, device="cpu").files.require_run_folder()
    return recipe, seconds


def within_time(recipe: Recipe, time: str, seconds: float, **measured: Any) -> Recipe:
    """The recipe with the number of training steps that fit into `--time`.

    Args:
        time: as it was given.
        seconds: the same in seconds.
        measured: what else the run is started with; see `prenas.pipeline.dry_run`.

    Raises:
        ValueError: the time is too short.
    """
    from prenas import pipeline

    with console.status("Choosing subnets and measuring training steps ..."):
        plan = pipeline.dry_run(recipe, seconds=seconds, **measured)
    print_time(time, plan.estimate)
    return plan.recipe


def seconds_alone(
    time: str, overrides: Sequence[str] | None, trainings: Sequence[str] = ("training",)
) -> float:
    """The seconds of `--time`; ValueError if the overrides also give a training's length."""
    from prenas.length import read_seconds

    seconds = read_seconds(time)
    lengths = [f"{one}.{name}" for one in trainings for name in ("epochs", "steps", "min_steps")]
    if given := [o for o in overrides or () if o.partition("=")[0].strip() in lengths]:
        raise ValueError(f"--time {time} and --set {given[0]} both give a length: leave out one")
    return seconds


def recorded_steps(out: Path) -> int | None:
    """The steps that a run was started with, which are printed; None if it was not started yet.

    Raises:
        ValueError: it was started without `--time`.
    """
    from prenas.runs.run import Run

    run = Run(out, device="cpu")
    if not run.files.has(artifacts.RECIPE):
        return None
    training = run.recipe.training
    if training is None or training.steps is None:
        raise ValueError(
            f"{out} was started without --time: leave it out to continue, or choose another "
            "--out folder"
        )
    console.print(
        f"Time      {training.length_in_words}, as when {out} was started", soft_wrap=True
    )
    return training.steps


def recorded_recipe(folder: Path) -> Recipe:
    """The recipe that the run in a folder was started with."""
    from prenas.runs.run import Run

    return Run(folder, device="cpu").recipe


def _which_recipe(space: SearchSpace, given: str) -> str:
    """What to do about a space without a recipe that says how to train it."""
    from prenas.recipe.catalogue import RECIPES, get_recipe
    from prenas.recipe.data import FOLDER

    recipes = {name: get_recipe(name) for name in RECIPES}
    serving = [
        name
        for name, recipe in recipes.items()
        if recipe.training is not None
        and recipe.space.family == space.family
        and recipe.space.settings.in_chans == space.settings.in_chans
    ]
    own = [name for name in serving if (d := recipes[name].data) is not None and d.name == FOLDER]
    best = [*own, *serving]
    advice = (
        f"such as `prenas run {best[0]} {given} --out RUN` "
        f"(recipes for such networks: {', '.join(serving)})"
        if best
        else "with its mean and deviation (`prenas info` lists recipes)"
    )
    return f"a space alone says nothing about training: name a recipe with it, {advice}"


def _within_reach(recipe: Recipe) -> Recipe:
    """The recipe, with budgets of its space if its own hold no network there; says so."""
    from prenas.recipe import with_overrides
    from prenas.recipe.reach import following

    budgets = following(recipe.search.budgets, recipe.space)
    if budgets is None:
        return recipe
    console.print(
        f"Budgets   {', '.join(budgets)}, because those of the recipe {recipe.name} "
        f"({', '.join(recipe.search.budgets)}) hold no network of the space {recipe.space.name}; "
        "--budget chooses others",
        soft_wrap=True,
    )
    return with_overrides(recipe, [f"{_BUDGETS}={json.dumps(budgets)}"])


def is_model(folder: Path) -> bool:
    """Whether a folder is a handed-over model instead of a run."""
    return (folder / artifacts.MODEL_ARCH).is_file() and not (folder / artifacts.RECIPE).exists()


def opened(
    folder: Path, device: str, texts: Sequence[str] | None = None, crops: int | None = None
) -> Run:
    """Opens a run, with other images or another number of crops if the options ask for that.

    Raises:
        ValueError: there is no such folder, but one of nearly that name.
    """
    from prenas.files import exists
    from prenas.runs.run import Run

    if not exists(folder):
        parent = folder.parent if folder.parent.is_dir() else Path()
        names = [path.name for path in parent.iterdir() if path.is_dir()]
        if near := [str(parent / name) for name in get_close_matches(folder.name, names, n=2)]:
            raise ValueError(f"{folder} does not exist: did you mean {' or '.join(near)}?")
    run = Run(folder, device=device)
    if not texts and crops is None:
        return run
    with console.status("Reading images ..."):
        return run.on(run.images.read_from(texts or (), crops=crops))


def trained_on(model: Path, found: Evaluation, texts: Sequence[str]) -> Path | None:
    """The run that a handed-over model lies in, if the model was evaluated on all its images."""
    from prenas.data import UNDIVIDED
    from prenas.runs.run import Run

    folder = model.absolute().parent
    if UNDIVIDED not in found.splits or folder.name != artifacts.SUBNETS:
        return None
    if not (folder.parent / artifacts.PREFERRED).is_file():
        return None
    try:
        run = Run(folder.parent, device="cpu")
        return run.folder if run.images.are_named_by(texts) else None
    except ValueError:  # a run that is damaged, or no longer whole; the model is
        return None


def require_out(out: Path | None, dry_run: bool) -> None:
    """Raises ValueError if --out is missing, except in a dry run."""
    if out is None and not dry_run:
        raise ValueError("say where to write the run: --out FOLDER (or --dry-run to write nothing)")


def require_no_empty_path(arguments: Sequence[str]) -> None:
    """Raises ValueError for an empty path, which would be read as the current folder."""
    paths = ("--out", "--to", "--import")
    for before, argument in zip(["", *arguments], arguments, strict=False):
        may_be_path = before in paths or not before.startswith("-")
        if (not argument and may_be_path) or argument in [f"{option}=" for option in paths]:
            where = argument or (f"after {before}" if before else "at the start")
            raise ValueError(
                f"a path is empty ({where}): name a file or folder. Perhaps a variable of the "
                "shell is not set"
            )


def read_arch(text: str, family: str) -> Arch:
    """Reads an architecture from JSON text, from a file, or from the folder of a model."""
    from pydantic import ValidationError

    from prenas.families import get_family
    from prenas.files import MOST_JSON_BYTES, load_json, read_bytes
    from prenas.values import explain

    shown, is_json = text, text.lstrip().startswith("{")
    if is_json:
        content: str | bytes = text
        shown = text if len(text) <= 80 else f"{text[:77]}..."
    else:
        path = _existing(text)
        if path is None:
            raise ValueError(
                f"--arch {shown!r} is neither JSON nor a file: give a JSON object with the "
                "architecture's fields, an arch.json, or a model folder"
            )
        path = path / artifacts.MODEL_ARCH if path.is_dir() else path
        content = read_bytes(path, MOST_JSON_BYTES)
    try:
        fields = load_json(content)
        theirs = fields.get("family", family)
        if theirs != family:
            raise ValueError(f"it describes a network of the family {theirs!r}")
        arch: Arch = get_family(family).arch_type.model_validate(fields.get("arch", fields))
        return arch
    except ValidationError as error:
        raise ValueError(f"{shown} is not a {family} architecture: {explain(error)}") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{shown} is not a JSON object that describes an architecture of the family {family}: "
            f"{error}"
        ) from None


def _existing(text: str) -> Path | None:
    """The path that a text names; None if there is none."""
    try:
        return Path(text) if Path(text).exists() else None
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return None
