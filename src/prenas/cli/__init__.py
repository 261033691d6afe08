"""The `prenas` command: parsing only; what it shows is beside, everything heavy imported late."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from prenas.cli.options import (
    ArchTexts,
    BudgetTexts,
    Crops,
    DataTexts,
    Device,
    Limits,
    MaxMacs,
    MaxParams,
    Out,
    Overrides,
    RecipeName,
    RunFolder,
    Seeds,
    SpaceText,
    Threads,
    Trackers,
    joined_limits,
)
from prenas.cli.parsing import chosen_recipe, opened, read_arch, require_out, set_threads
from prenas.cli.status import print_status
from prenas.cli.tables import (
    IS_QUIET,
    console,
    errors,
    print_evaluations,
    print_lists,
    print_plan,
    print_preferred,
    print_space,
    print_table,
)

app = typer.Typer(
    help="PreNAS: pick the few subnets worth having, train one supernet on them, take them home.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Ctrl-C ends a command with a word on how to go on."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as stopped:
            # A training that could still save says so, and by which signal it was asked to stop.
            words = str(stopped) or "stopped"
            if not IS_QUIET:
                errors.print(f"{words}: give the same command again to continue", soft_wrap=True)
            number: int = getattr(stopped, "signal_number", signal.SIGINT)
            raise typer.Exit(128 + number) from None

    return wrapped


@app.command("run")
@_interruptible
def run_command(
    recipe: RecipeName = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; made if missing.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Choose, measure a few steps, write nothing.")
    ] = False,
    data: DataTexts = None,
    space: SpaceText = None,
    overrides: Overrides = None,
    budget: BudgetTexts = None,
    further_seeds: Seeds = None,
    track: Trackers = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """The whole method: search, train, evaluate, hand over every preferred subnet.

    A recipe with evolution trains on the whole space, and evolves before it evaluates.
    """
    from prenas import pipeline
    from prenas.cli.terminal import Terminal
    from prenas.training.tracking import check_trackers

    require_out(out, dry_run)
    set_threads(threads)
    check_trackers(track or ())
    chosen = chosen_recipe(recipe, space, data, overrides, budget, further_seeds)
    if out is None or dry_run:
        with console.status("Choosing subnets and measuring training steps ..."):
            plan = pipeline.dry_run(chosen, device=device)
        print_plan(plan, chosen)
        return
    with Terminal() as terminal:
        pipeline.run(chosen, out, device=device, observer=terminal, track=track or ())


@app.command("finetune")
@_interruptible
def finetune_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A trained run, a model folder, a checkpoint."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the new run.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Adapt, measure a few steps, write nothing.")
    ] = False,
    recipe: Annotated[str, typer.Option(help="A recipe of fine-tuning: `prenas info`.")] = (
        "transfer"
    ),
    data: DataTexts = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels; default: the source's.")
    ] = None,
    extend_distances: Annotated[
        bool,
        typer.Option("--extend-distances", help="Weights for the new distances of a larger image."),
    ] = False,
    subnet: Annotated[int | None, typer.Option(help="This subnet of the source alone.")] = None,
    limits: Limits = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    head: Annotated[
        str, typer.Option(help="auto (kept where classes are the same), keep, fresh.")
    ] = "auto",
    overrides: Overrides = None,
    track: Trackers = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train what is trained further, on other images: classes, image size, one subnet or all."""
    from prenas import pipeline
    from prenas.cli.terminal import Terminal
    from prenas.sources.transfer import finetuning_recipe, read_source
    from prenas.training.tracking import check_trackers

    require_out(out, dry_run)
    set_threads(threads)
    check_trackers(track or ())
    limited = joined_limits(limits, max_params, max_macs)
    origin = read_source(source, subnet, limits=limited)
    chosen = finetuning_recipe(
        origin,
        recipe,
        data or (),
        image_size=image_size,
        extend_distances=extend_distances,
        overrides=overrides or (),
    )
    if out is None or dry_run:
        with console.status("Measuring training steps ..."):
            plan = pipeline.dry_run(chosen, source=origin, device=device, head=head)
        print_plan(plan, chosen)
        return
    with Terminal() as terminal:
        pipeline.run(
            chosen,
            out,
            source=origin,
            head=head,
            device=device,
            observer=terminal,
            track=track or (),
        )


@app.command("search")
@_interruptible
def search_command(
    out: Out,
    recipe: RecipeName = None,
    space: SpaceText = None,
    data: DataTexts = None,
    overrides: Overrides = None,
    budget: BudgetTexts = None,
    further_seeds: Seeds = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Zero-cost search only: which subnets are worth having, before any training."""
    from prenas import pipeline
    from prenas.cli.terminal import Terminal

    set_threads(threads)
    chosen = chosen_recipe(recipe, space, data, overrides, budget, further_seeds)
    with Terminal() as terminal:
        pipeline.search(chosen, out, device=device, observer=terminal)


@app.command("train")
@_interruptible
def train_command(
    run: RunFolder,
    data: DataTexts = None,
    track: Trackers = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train the supernet of a searched run, or continue where it was interrupted."""
    from prenas.cli.terminal import Terminal
    from prenas.steps import training

    set_threads(threads)
    with Terminal() as terminal:
        training.train(opened(run, device, data), terminal, track=track or ())


@app.command("evolve")
@_interruptible
def evolve_command(
    run: RunFolder,
    data: DataTexts = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """One-shot NAS: search the trained supernet by evolution, the best subnet of every budget.

    For a recipe with evolution (--set evolution={}); goes on with the budget where it was cut off.
    """
    from prenas.cli.terminal import Terminal
    from prenas.steps import measuring

    set_threads(threads)
    with Terminal() as terminal:
        measuring.evolve(opened(run, device, data), terminal)


@app.command("calibrate")
@_interruptible
def calibrate_command(
    run: RunFolder,
    data: DataTexts = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Gather the statistics of BatchNorm for every subnet of a trained run.

    `evaluate` does so by itself where it is missing; families without BatchNorm need none.
    """
    from prenas.cli.terminal import Terminal
    from prenas.steps import measuring

    set_threads(threads)
    this = opened(run, device, data)
    with Terminal() as terminal:
        measuring.calibrate(this, terminal)
    if not this.needs_calibration:
        family = this.recipe.space.family
        console.print(f"Nothing to calibrate: networks of the family {family} keep no statistics")


@app.command("evaluate")
@_interruptible
def evaluate_command(
    run: RunFolder,
    arch: ArchTexts = None,
    data: DataTexts = None,
    crops: Crops = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Accuracy of every preferred (or evolved) subnet of a trained run, or of given architectures.

    With --arch, --data or --crops the results are printed only.
    """
    from prenas.steps import measuring

    set_threads(threads)
    this = opened(run, device, data, crops)
    archs = [read_arch(text, this.preferred.recipe.space.family) for text in arch] if arch else None
    rows = measuring.evaluate(this, archs)
    what = "given architectures" if archs else f"{this.subnets.kind} subnets"
    print_evaluations(rows, f"{run}: {what}")
    if archs or data or crops:
        where = f"On {', '.join(data)}. " if data else ""
        each = f"{crops} crops of each image. " if crops else ""
        console.print(f"{where}{each}The run's own results stay as they are.", soft_wrap=True)


@app.command("report")
@_interruptible
def report_command(run: RunFolder) -> None:
    """Write report.md, with pictures: what a run found, from what its folder holds so far."""
    from prenas import pipeline

    console.print(f"Report    {pipeline.report(run)}", soft_wrap=True)


@app.command("status")
def status_command(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """How far a run is, at any stage, also while another process works there."""
    from prenas.runs.status import read_status

    status = read_status(run)
    if as_json:
        console.print(status.model_dump_json(), soft_wrap=True)
    else:
        print_status(status)


@app.command("specialize")
@_interruptible
def specialize_command(
    run: RunFolder,
    index: Annotated[int | None, typer.Option(help="Number of the subnet in the table.")] = None,
    limits: Limits = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    to: Annotated[Path | None, typer.Option(help="Empty folder; default: in the run.")] = None,
    data: DataTexts = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Cut one subnet out, check that it equals the supernet's, write model and description."""
    from prenas.cost import shown_axes
    from prenas.steps import delivering

    set_threads(threads)
    limited = joined_limits(limits, max_params, max_macs)
    folder, number, row = delivering.specialize(opened(run, device, data), index, limited, to=to)
    costs = [axis.in_words(row.costs[axis.name]) for axis in shown_axes([row.costs])]
    results = "".join(
        f", {split} top-1 {100 * metrics.top1:.2f} %" for split, metrics in row.splits.items()
    )
    console.print(
        f"Subnet {number}: {', '.join(costs)}{results}\n"
        f"Model     {folder}\nUse       network, transform = prenas.load({str(folder)!r})",
        soft_wrap=True,
    )


@app.command("import")
@_interruptible
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The authors' .pth checkpoint.")],
    out: Out,
    arch: Annotated[
        list[str] | None,
        typer.Option("--arch", metavar="JSON|FILE", help="A subnet to keep; repeatable."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Keep its published subnets; default: seen by the sizes.")
    ] = None,
) -> None:
    """Make a run folder of a checkpoint that the authors of PreNAS or AutoFormer released."""
    from prenas import artifacts, pipeline
    from prenas.sources.released import load_released_checkpoint

    archs = []
    if arch:
        family = load_released_checkpoint(file).family.name
        archs = [read_arch(text, family) for text in arch]
    preferred = pipeline.import_released(file, out, archs, space=space)
    print_preferred(preferred)
    console.print(f"Supernet  {out / artifacts.SUPERNET}", soft_wrap=True)


@app.command("predict")
@_interruptible
def predict_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a handed-over model.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures to classify.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show per picture.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture.")] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Classify pictures with a model that `specialize` handed over.

    The exit status is 1 if a picture could not be read.
    """
    from prenas.models.prediction import predict

    set_threads(threads)
    rows, has_failed = [], False
    for prediction in predict(model, images, top=top, device=device):
        has_failed |= prediction.error is not None
        if as_json:
            console.print(json.dumps(prediction.as_dict()), soft_wrap=True)
        elif prediction.error:
            rows.append((str(prediction.path), f"cannot be read: {prediction.error}", ""))
        else:
            rows += [
                (str(prediction.path) if rank == 0 else "", name, f"{100 * probability:.2f} %")
                for rank, (name, probability) in enumerate(prediction.classes)
            ]
    if rows:
        print_table(str(model), ["picture", "class", "probability"], rows)
    if has_failed:
        raise typer.Exit(1)


@app.command("info")
def info_command(
    name: Annotated[
        str | None, typer.Argument(help="A recipe, a space, a space file or a run folder.")
    ] = None,
) -> None:
    """List recipes and spaces, or describe one of them, a space file or a run folder."""
    from prenas.families import all_spaces
    from prenas.recipe import flat_fields
    from prenas.recipe.catalogue import RECIPES, TRANSFER_RECIPES, get_recipe, get_transfer_recipe
    from prenas.recipe.space_file import find_space, names_a_space_file
    from prenas.values import unknown_name

    spaces = all_spaces()
    if name is None:
        print_lists()
    elif name in RECIPES:
        recipe = get_recipe(name)
        console.print(f"{inspect.getdoc(RECIPES[name])}\n", soft_wrap=True)
        print_space(recipe.space)
        print_table(
            f"Recipe {name}: the fields, as --set FIELD=VALUE takes them",
            ["field", "value"],
            [
                (field, json.dumps(value))
                for field, value in flat_fields(recipe)
                if not field.startswith("space.")
            ],
        )
    elif name in TRANSFER_RECIPES:
        console.print(f"{inspect.getdoc(TRANSFER_RECIPES[name])}\n", soft_wrap=True)
        print_table(
            f"Recipe of fine-tuning {name}: training.FIELD=VALUE and data.FIELD=VALUE for --set",
            ["field", "value"],
            [(f, json.dumps(value)) for f, value in flat_fields(get_transfer_recipe(name))],
        )
    elif name in spaces or names_a_space_file(name):
        print_space(find_space(name))
    elif Path(name).is_dir():
        from prenas.runs.run import read_preferred

        preferred = read_preferred(name)
        print_space(preferred.recipe.space)
        print_preferred(preferred)
    else:
        choices = {*RECIPES, *TRANSFER_RECIPES, *spaces}
        raise unknown_name("recipe, space, space file or run folder", name, choices)


def main() -> None:
    """Runs the command line; mistakes of the user end in one readable message and status 2."""
    who = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""
    logging.basicConfig(level=logging.WARNING, format=f"{who}%(levelname)s: %(message)s")
    try:
        app()
    except (ValueError, OSError) as error:
        errors.print(f"{who}error: {error}", style="red", soft_wrap=True)
        sys.exit(2)
