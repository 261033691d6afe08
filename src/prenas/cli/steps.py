"""What several commands do: read what was typed, run a step of the method, show its result."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prenas.cli.progress import print_generation, training_progress
from prenas.cli.tables import console, print_evaluations, print_evolved, print_preferred

if TYPE_CHECKING:
    from prenas.data import ImageData
    from prenas.families.base import Arch
    from prenas.recipe import Recipe


def set_threads(threads: int | None) -> None:
    """Takes so many CPU threads."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def chosen_recipe(
    name: str | None,
    space: str | None,
    data: Sequence[str] | None,
    overrides: Sequence[str] | None,
    budgets: Sequence[str] | None,
    further_seeds: int | None,
) -> Recipe:
    """The named recipe, with the changes of the command line: space, data, then single fields."""
    from prenas.data import with_data
    from prenas.recipe import searching_recipe, with_overrides, with_space
    from prenas.recipe.catalogue import RECIPES, get_recipe
    from prenas.recipe.space_file import find_space

    if name is not None:
        recipe = get_recipe(name)
        if space is not None:
            recipe = with_space(recipe, find_space(space))
    elif space is not None and budgets:
        recipe = searching_recipe(find_space(space), budgets)
    else:
        raise ValueError(
            f"name a recipe ({', '.join(RECIPES)}), or give --space and --budget to search only"
        )
    if data:
        recipe = with_data(recipe, data)
    changes = list(overrides or ())
    if budgets:
        changes.append(f"search.budgets={json.dumps(list(budgets))}")
    if further_seeds is not None:
        changes.append(f"search.further_seeds={further_seeds}")
    return with_overrides(recipe, changes)


def other_data(
    run: Path, texts: Sequence[str] | None, crops: int | None = None
) -> ImageData | None:
    """Images from elsewhere for a run, or with other crops; None for what its recipe says."""
    from prenas.runs import images as run_data

    if not texts and crops is None:
        return None
    with console.status("Reading images ..."):
        return run_data.other_data(run, texts or (), crops=crops)


def run_search(recipe: Recipe, out: Path, device: str, data: ImageData | None = None) -> None:
    """Searches and shows the preferred subnets."""
    from prenas import artifacts, pipeline

    was_done = (out / artifacts.PREFERRED).exists()
    started = time.perf_counter()
    with console.status("Scoring every subnet at initialisation ..."):
        preferred = pipeline.search(recipe, out, data=data, device=device)
    seconds = time.perf_counter() - started
    print_preferred(preferred)
    done = "found done" if was_done else f"done in {seconds:.1f} s"
    console.print(f"Search {done}: {out / artifacts.PREFERRED}", soft_wrap=True)


def run_training(
    out: Path, device: str, data: ImageData | None, track: Sequence[str] | None
) -> None:
    """Trains, and shows how it goes."""
    from prenas import artifacts, pipeline
    from prenas.runs.folder import read_preferred

    was_done = (out / artifacts.SUPERNET).exists()
    preferred = read_preferred(out)
    training = preferred.recipe.training
    if training is not None and training.compile and not was_done:
        console.print(
            f"Each of the {len(preferred.subnets)} subnets is compiled at its first step, which "
            "takes a minute or two"
        )
    started = time.perf_counter()
    with training_progress() as progress:
        pipeline.train(
            out,
            data=data,
            device=device,
            watch=progress.watch,
            sinks=[progress.sink],
            track=track or (),
        )
    seconds = time.perf_counter() - started
    done = "found done" if was_done else f"done in {seconds:.0f} s"
    console.print(f"Training {done}: {out / artifacts.SUPERNET}", soft_wrap=True)


def run_calibration(out: Path, device: str, data: ImageData | None) -> None:
    """Calibrates, where the family has anything to calibrate, and says so."""
    from prenas import artifacts, pipeline
    from prenas.runs.folder import read_preferred

    was_done = (out / artifacts.CALIBRATION).exists()
    started = time.perf_counter()
    with console.status("Calibrating BatchNorm in every subnet ..."):
        found = pipeline.calibrate(out, data=data, device=device)
    seconds = time.perf_counter() - started
    recipe = read_preferred(out).recipe
    if not any(found):
        console.print(
            f"Nothing to calibrate: networks of the family {recipe.space.family} keep no statistics"
        )
        return
    done = "found done" if was_done else f"done in {seconds:.0f} s"
    console.print(
        f"Calibration of {len(found)} subnets on {recipe.calibration.num_images:,} images {done}: "
        f"{out / artifacts.CALIBRATION}",
        soft_wrap=True,
    )


def run_evolution(out: Path, device: str, data: ImageData | None) -> None:
    """Evolves and shows what was found."""
    from prenas import artifacts, pipeline

    started = time.perf_counter()
    found = pipeline.evolve(out, data=data, device=device, watch=print_generation)
    seconds = time.perf_counter() - started
    print_evolved(found, f"{out}: evolved subnets")
    console.print(f"Evolution done in {seconds:.0f} s: {out / artifacts.EVOLUTION}", soft_wrap=True)


def require_out(out: Path | None, dry_run: bool) -> None:
    """Raises ValueError unless it is said where a run goes."""
    if out is None and not dry_run:
        raise ValueError("say where the run goes: --out FOLDER (or --dry-run to write nothing)")


def train_and_hand_over(
    recipe: Recipe, out: Path, device: str, images: ImageData, track: Sequence[str] | None
) -> None:
    """All that follows the choice of subnets, and where it is."""
    from prenas import artifacts, pipeline

    run_training(out, device, images, track)
    if recipe.evolution is not None:
        run_evolution(out, device, images)
    if pipeline.needs_calibration(out):
        run_calibration(out, device, images)
    rows = pipeline.evaluate(out, data=images, device=device)
    kind = pipeline.subnets_of(out).kind
    print_evaluations(rows, f"{recipe.name}: {kind} subnets, trained together")
    for number in range(len(rows)):
        pipeline.specialize(out, number, data=images, device=device)
    page = pipeline.report(out)
    models = "00" if len(rows) == 1 else f"00 ... {len(rows) - 1:02d}"
    console.print(
        f"\nReport    {page}\nPlot      {out / artifacts.PLOT}\n"
        f"Table     {out / artifacts.EVALUATION_CSV}\n"
        f"Models    {out / artifacts.SUBNETS}/{models}, each ready for prenas.load(folder)",
        soft_wrap=True,
    )


def read_arch(text: str, family: str) -> Arch:
    """An architecture from JSON text, or from a file that holds it (an `arch.json` included)."""
    from pydantic import ValidationError

    from prenas import artifacts
    from prenas.families import get_family
    from prenas.values import explain

    path = Path(text) / artifacts.MODEL_ARCH if Path(text).is_dir() else Path(text)
    is_json = text.lstrip().startswith("{")
    if not is_json and not path.is_file():
        raise ValueError(
            f"--arch {text!r} is neither JSON text nor a file: give "
            "an object of its fields, an arch.json, or a model folder"
        )
    content = text if is_json else path.read_text(encoding="utf-8")
    try:
        fields = json.loads(content)
        return get_family(family).arch_type.model_validate(fields.get("arch", fields))
    except ValidationError as error:
        raise ValueError(f"{text} is no {family} architecture: {explain(error)}") from None
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{text} is no JSON object of an architecture: {error}") from None
