"""The `prenas` command line. It only parses; the other modules of this package print.

Heavy imports happen late, so that `prenas --help` stays fast.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from prenas import __version__, artifacts
from prenas.cli.options import (
    ArchTexts,
    BudgetTexts,
    Compare,
    Crops,
    DataTexts,
    Device,
    Latency,
    LatencyElsewhere,
    Limits,
    MaxMacs,
    MaxParams,
    ModelImageSize,
    Out,
    Overrides,
    RecipeName,
    RunFolder,
    RunFolders,
    RunOrModel,
    Seeds,
    SpaceText,
    StartFrom,
    Threads,
    Time,
    Trackers,
    joined_limits,
)
from prenas.cli.output import IS_QUIET, console, errors, set_up_output
from prenas.cli.parsing import (
    as_started,
    chosen_recipe,
    is_model,
    opened,
    read_arch,
    require_no_empty_path,
    require_out,
    require_pictures,
    set_threads,
    trained_on,
    within_time,
)
from prenas.cli.status import print_status
from prenas.cli.tables import (
    print_contests,
    print_evaluations,
    print_lists,
    print_plan,
    print_preferred,
    print_pretrained_start,
    print_space,
    print_table,
)
from prenas.imports import frozen, import_within, leave_quietly
from prenas.memory import keep_freed_memory

app = typer.Typer(
    help="PreNAS: choose a few promising subnets without training, train one supernet on them, and "
    "get each as a network of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        console.print(f"prenas {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def load_extensions(
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Run a Python file that registers families, scores or cost axes before the "
            "command; may be given several times.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """PreNAS: one trained network for each size that you need, from a single training."""
    if files:
        from prenas.recipe.space_file import execute

        for file in files:
            execute(file)


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Ctrl-C ends a command with a message that says how to continue."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as stopped:
            # A training that saved before it stopped says so, and names the signal.
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
    out: Annotated[
        Path | None, typer.Option(help="Run folder; created if it does not exist.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Choose the subnets, measure a few training steps, and write nothing.",
        ),
    ] = False,
    data: DataTexts = None,
    start_from: StartFrom = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Image size in pixels, with --from; default: that of the source."),
    ] = None,
    space: SpaceText = None,
    overrides: Overrides = None,
    budget: BudgetTexts = None,
    latency: Latency = None,
    latency_elsewhere: LatencyElsewhere = False,
    further_seeds: Seeds = None,
    time: Time = None,
    compare: Compare = None,
    track: Trackers = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Run the whole method: search, train, evaluate and hand over.

    With `evolution` in the recipe, train on the whole space and choose the subnets by evolution
    afterwards. Without a recipe, continue the run in the folder --out with its own.
    """
    from prenas import pipeline
    from prenas.cli.cutting import continue_cuts, run_from
    from prenas.cli.measuring import use_latency
    from prenas.cli.terminal import Terminal
    from prenas.selection.trained import scores_units
    from prenas.training.tracking import check_trackers

    require_out(out, dry_run)
    set_threads(threads)
    check_trackers(track or ())
    use_latency(latency, out, elsewhere=latency_elsewhere)
    if start_from is not None:
        if space is not None or further_seeds is not None:
            option = "--space" if space is not None else "--further-seeds"
            raise ValueError(
                f"{option} cannot be combined with --from: the search space is made from the "
                "source, and its trained weights are scored"
            )
        run_from(
            start_from,
            out,
            dry_run=dry_run,
            data=data or (),
            budgets=budget or (),
            recipe=recipe or "pretrained",
            image_size=image_size,
            overrides=overrides or (),
            time=time,
            compare=compare or (),
            device=device,
            track=track or (),
        )
        return
    if compare:
        raise ValueError(
            f"--compare {compare[0]} needs --from: cuts are compared with stock models"
        )
    if image_size is not None:
        raise ValueError(
            "--image-size needs --from; without it, set space.settings.image_size "
            f"(--set space.settings.image_size={image_size})"
        )
    chosen = chosen_recipe(
        recipe,
        space,
        data,
        overrides,
        budget,
        further_seeds,
        recorded_in=out,
        trains=True,
    )
    require_pictures(chosen)
    if out is None or not (out / artifacts.RECIPE).exists():
        print_pretrained_start(chosen, data or ())
    chosen, seconds = as_started(chosen, out, time, overrides)
    if out is None or dry_run:
        with console.status("Choosing subnets and measuring training steps ..."):
            plan = pipeline.dry_run(chosen, device=device, seconds=seconds)
        print_plan(plan)
        return
    if time is not None and seconds is not None:
        chosen = within_time(chosen, time, seconds, device=device)
    if scores_units(chosen):
        continue_cuts(chosen, out, device=device, track=track or ())
        return
    with Terminal() as terminal:
        pipeline.run(chosen, out, device=device, observer=terminal, track=track or ())


@app.command("finetune")
@_interruptible
def finetune_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A trained run, the folder of a handed-over model, timm/NAME, or a released "
            "checkpoint.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the new run.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Adapt the weights, measure a few training steps, and write nothing.",
        ),
    ] = False,
    recipe: Annotated[
        str, typer.Option(help="Fine-tuning recipe; `prenas info` lists them.")
    ] = "transfer",
    data: DataTexts = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Image size in pixels; default: that of the source."),
    ] = None,
    extend_distances: Annotated[
        bool,
        typer.Option(
            "--extend-distances",
            help="Add relative positions for the new distances in a larger image.",
        ),
    ] = False,
    subnet: Annotated[int | None, typer.Option(help="Use only this subnet of the source.")] = None,
    limits: Limits = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    head: Annotated[
        str,
        typer.Option(
            help="Classifier: keep, fresh, or auto (keep it if the classes are the same).",
        ),
    ] = "auto",
    overrides: Overrides = None,
    time: Time = None,
    track: Trackers = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train a result further on other images.

    All its subnets or one, with other classes or another image size.
    """
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
    chosen, seconds = as_started(chosen, out, time, overrides)
    if out is None or dry_run:
        with console.status("Measuring training steps ..."):
            plan = pipeline.dry_run(
                chosen, source=origin, device=device, head=head, seconds=seconds
            )
        print_plan(plan)
        return
    if time is not None and seconds is not None:
        chosen = within_time(chosen, time, seconds, source=origin, device=device, head=head)
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
    latency: Latency = None,
    latency_elsewhere: LatencyElsewhere = False,
    further_seeds: Seeds = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Choose the preferred subnets without any training.

    This is the first step of `run`.
    """
    from prenas import pipeline
    from prenas.cli.measuring import use_latency
    from prenas.cli.terminal import Terminal

    set_threads(threads)
    use_latency(latency, out, elsewhere=latency_elsewhere)
    chosen = chosen_recipe(recipe, space, data, overrides, budget, further_seeds, recorded_in=out)
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
    """Train the supernet, or continue an interrupted training."""
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
    """Find the best subnet of every budget by evolution.

    This is one-shot NAS: it searches the trained supernet. Needs a recipe with evolution
    (--set evolution={}). If interrupted, it starts again with the unfinished budget.
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
    """Measure the BatchNorm statistics of every subnet.

    `evaluate` does this itself if needed; networks without BatchNorm do not need it.
    """
    from prenas.cli.terminal import Terminal
    from prenas.steps import measuring

    set_threads(threads)
    this = opened(run, device, data)
    with Terminal() as terminal:
        measuring.calibrate(this, terminal)
    if not this.needs_calibration:
        family = this.recipe.space.family
        console.print(
            f"Nothing to calibrate: networks of the family {family} have no BatchNorm statistics"
        )


@app.command("evaluate")
@_interruptible
def evaluate_command(
    run: RunOrModel,
    arch: ArchTexts = None,
    data: DataTexts = None,
    crops: Crops = None,
    image_size: ModelImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Measure the accuracy of the subnets of a run, or of a model.

    With --arch, measure other architectures in its supernet. With --arch, --data or --crops,
    results are printed but not saved, except the first ones of an imported run. A model needs
    --data.
    """
    from prenas.steps import measuring

    set_threads(threads)
    if is_model(run):
        from prenas.models.export import read_description
        from prenas.models.measurement import measure

        if arch:
            raise ValueError(f"{run} is one model: --arch needs the run that it was cut from")
        found = measure(run, data or (), crops=crops, image_size=image_size, device=device)
        print_evaluations([found], str(run), read_description(run).class_names)
        if (trained := trained_on(run, found, data or ())) is not None:
            console.print(
                f"These are the images of {trained}, and the model was trained on most of them: "
                f"this says little about others. `prenas evaluate {trained}` measures on those "
                "that were held out.",
                soft_wrap=True,
            )
        return
    if image_size is not None:
        raise ValueError(
            f"--image-size needs a handed-over model, such as {run / artifacts.SUBNETS / '00'}"
        )
    this = opened(run, device, data, crops)
    archs = [read_arch(text, this.preferred.recipe.space.family) for text in arch] if arch else None
    had_results = this.is_evaluated
    rows = measuring.evaluate(this, archs)
    what = "the given architectures" if archs else f"{this.subnets.kind} subnets"
    print_evaluations(rows, f"{run}: {what}", this.class_names)
    if not archs:
        from prenas.models.choice import contests_of

        print_contests(contests_of(this.subnets, rows))
    if archs or data or crops:
        where = f" on {', '.join(data)}" if data else ""
        each = f" with {crops} {'crop' if crops == 1 else 'crops'} per image" if crops else ""
        measured = f"Measured{where}{each}. " if where or each else ""
        are_new = this.is_evaluated and not had_results
        told = "are saved, as the run's first" if are_new else "in the run folder are unchanged"
        console.print(f"{measured}The results {told}.", soft_wrap=True)


@app.command("report")
@_interruptible
def report_command(
    runs: RunFolders,
    html: Annotated[
        bool,
        typer.Option("--html", help="Write one HTML file in which a subnet can be chosen."),
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --html: the file; default: report.html in the folder of the only run.",
        ),
    ] = None,
    no_pictures: Annotated[
        bool,
        typer.Option(
            "--no-pictures", help="With --html: leave out images that are classified wrongly."
        ),
    ] = False,
) -> None:
    """Write report.md: the run so far on one page, with pictures.

    With --html, write a page on which a subnet can be chosen, for one or several runs. It is one
    file and needs no network.
    """
    from prenas import pipeline

    if html:
        with console.status("Writing the page ..."):
            path = pipeline.page(runs, to, with_pictures=not no_pictures)
        console.print(f"Page      {path}", soft_wrap=True)
        return
    for option, is_given in {"--to": to is not None, "--no-pictures": no_pictures}.items():
        if is_given:
            raise ValueError(f"{option} needs --html")
    if len(runs) > 1:
        raise ValueError(f"report.md is of one run, but {len(runs)} are given: add --html")
    console.print(f"Report    {pipeline.report(runs[0])}", soft_wrap=True)


@app.command("watch")
@_interruptible
def watch_command(
    run: RunFolder,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any free one.")
    ] = 0,
) -> None:
    """Show a run in a browser while it trains.

    It serves the HTML page of the run on this machine, and the page follows the training. Nothing
    is written; Ctrl-C ends it.
    """
    from prenas.cli.watching import watch

    watch(run, port)


@app.command("status")
def status_command(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how far a run is and what comes next.

    Works at any stage, also while another process works on the run.
    """
    from prenas.runs.status import read_status

    status = read_status(run)
    if as_json:
        console.print(json.dumps(status.model_dump()), soft_wrap=True)
    else:
        print_status(status)


@app.command("specialize")
@_interruptible
def specialize_command(
    run: RunFolder,
    index: Annotated[
        int | None, typer.Option(help="Number of the subnet, as in the table.")
    ] = None,
    limits: Limits = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    of_budget: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The best by validation of the subnets chosen for budget N, counted from 0.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the model: an empty or new folder; default: in the run folder.",
        ),
    ] = None,
    data: DataTexts = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Hand over one subnet as a model of its own.

    Cut it out of the supernet, check that its outputs are the same, and write it to a folder.
    """
    from prenas.cost import shown_axes
    from prenas.steps import delivering

    set_threads(threads)
    limited = joined_limits(limits, max_params, max_macs)
    this = opened(run, device, data)
    folder, number, row = delivering.specialize(this, index, limited, of_budget=of_budget, to=to)
    costs = [axis.in_words(row.costs[axis.name]) for axis in shown_axes([row.costs])]
    results = "".join(
        f", {split} top-1 {100 * metrics.top1:.2f} %" for split, metrics in row.splits.items()
    )
    console.print(
        f"Subnet {number}: {', '.join(costs)}{results}\n"
        f"Model     {folder}\nUse       network, transform = prenas.load({str(folder)!r})",
        soft_wrap=True,
    )


@app.command("measure")
@_interruptible
def measure_command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|SPACE|RUN]",
            help="Whose networks to measure; for a run, its chosen subnets.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="torch|onnxruntime|openvino",
            help="What runs the networks; may be given several times. Default: torch.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="float32|int8",
            help="What the engine computes in; may be given several times. Default: float32.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of the engine.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images per call.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="File of the table; default: latency-SPACE-ENGINE.json.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Replace the table that the file holds.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how long it would take.")
    ] = False,
    space: SpaceText = None,
    data: DataTexts = None,
    start_from: StartFrom = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Image size in pixels, with --from; default: that of the source."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure how long networks take on this machine.

    For a space, every kind of layer is timed, which makes a table for budgets in milliseconds. For
    a run, each chosen subnet is timed as a whole, in every engine and precision.
    """
    from prenas.cli.measuring import measure_space, measure_subnets, space_to_measure
    from prenas.devices.measuring import get_engine

    set_threads(threads)
    engines = [
        get_engine(name, threads=threads, batch=batch, precision=form)
        for name in engine or ["torch"]
        for form in precision or ["float32"]
    ]
    if target is not None and (Path(target) / artifacts.RECIPE).is_file():
        given = {
            "--out": out,
            "--again": again,
            "--space": space,
            "--data": data,
            "--from": start_from,
            "--image-size": image_size,
            "--set": overrides,
        }
        if unsuited := [name for name, value in given.items() if value]:
            raise ValueError(
                f"{target} is a run, whose subnets are measured as they are: leave out "
                f"{', '.join(unsuited)}, or name a recipe or a space"
            )
        measure_subnets(Path(target), engines, dry_run=dry_run)
        return
    found = space_to_measure(
        target, space, data or (), overrides or (), start_from=start_from, image_size=image_size
    )
    measure_space(found, engines, out, again=again, dry_run=dry_run)


@app.command("export")
@_interruptible
def export_command(
    target: RunOrModel,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="onnx|openvino|executorch|torch",
            help="Format of the file; may be given several times. Default: onnx.",
        ),
    ] = None,
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="dynamic|static|weight",
            help="Store the weights as int8, and with static or dynamic compute with them as well. "
            "The accuracy is measured, and a file that loses too much is refused.",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="dynamic|N", help="Images per call; dynamic: any number.")
    ] = "dynamic",
    opset: Annotated[
        int | None, typer.Option(help="Version of ONNX's operators; default: the exporter's.")
    ] = None,
    image_size: ModelImageSize = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Where to write the files: a new folder; default: in the model's."),
    ] = None,
    data: DataTexts = None,
    most_drop: Annotated[
        float,
        typer.Option(
            min=0.0, max=100.0, help="Percentage points of accuracy that an int8 file may lose."
        ),
    ] = 1.0,
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="CPU threads that run and time the files.")
    ] = 1,
) -> None:
    """Write models as files for ONNX Runtime, OpenVINO and others.

    Every file is run and compared with its model before it is kept. For a run, all handed-over
    subnets are exported.
    """
    from prenas.cli.exporting import export_all

    set_threads(threads)
    export_all(
        target,
        formats or ["onnx"],
        int8=int8,
        batch=batch,
        opset=opset,
        image_size=image_size,
        to=to,
        data=data or (),
        most_drop=most_drop / 100,
        threads=threads,
    )


@app.command("push")
@_interruptible
def push_command(
    target: RunOrModel,
    repo: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Name of the model on the Hugging Face Hub.")
    ],
    index: Annotated[
        int | None, typer.Option(help="Number of the subnet, as in the table.")
    ] = None,
    limits: Limits = None,
    max_params: MaxParams = None,
    max_macs: MaxMacs = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Write this folder instead of sending it: a new or empty one."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace the files of an earlier push; others are never touched."
        ),
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Publish a model with its card on the Hugging Face Hub.

    timm finds it there. From a run, the best subnet by validation is taken, unless you choose one.
    """
    from huggingface_hub.utils import logging as hub_log

    from prenas import pipeline

    set_threads(threads)
    hub_log.set_verbosity_error()  # type: ignore[no-untyped-call]  # it reports each of its attempts, twice
    limited = joined_limits(limits, max_params, max_macs)
    with console.status(f"Preparing {repo} ..."):
        done = pipeline.push(
            target, repo, index=index, limits=limited, to=to, replace=replace, private=private
        )
    name = f"hf-hub:{repo}" if to is None else f"local-dir:{done.place}"
    console.print(
        f"Model     {done.model}\n{'Written' if to is not None else 'Sent':10}{done.place}\n"
        f"Use       import prenas, timm; timm.create_model({name!r}, pretrained=True)",
        soft_wrap=True,
    )
    for note in done.notes:
        console.print(f"Note      {note}", soft_wrap=True)


@app.command("import")
@_interruptible
def import_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Checkpoint (.pth or .safetensors) that the authors released.",
        ),
    ],
    out: Out,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            metavar="JSON|FILE",
            help="Keep this subnet; may be given several times.",
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="Keep the published subnets of this space; default: recognised from the sizes.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Take these weights of a file that has several: model, model_ema, ...",
        ),
    ] = None,
) -> None:
    """Turn a released checkpoint into a run folder.

    Reads the checkpoints that the authors of PreNAS and AutoFormer released.
    """
    from prenas import artifacts, pipeline
    from prenas.sources.released import load_released_checkpoint

    archs = []
    if arch:
        family = load_released_checkpoint(file, weights).family.name
        archs = [read_arch(text, family) for text in arch]
    preferred = pipeline.import_released(file, out, archs, space=space, weights=weights)
    print_preferred(preferred)
    console.print(f"Supernet  {out / artifacts.SUPERNET}", soft_wrap=True)


@app.command("predict")
@_interruptible
def predict_command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Folder of a handed-over model, or of an export."),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures to classify: files, or folders of them."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show per picture.")] = 3,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures that the network gets at once; default: one, or what an exported file "
            "takes.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="table|csv|json",
            help="What to print: a table, CSV, or one JSON object per line. Default: table.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write CSV or JSON to this file instead of printing it."),
    ] = None,
    image_size: ModelImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Classify pictures with a model or an exported file.

    The exit status is 1 if a picture could not be read.
    """
    import torch

    from prenas.cli.predicting import (
        chosen_format,
        print_predictions,
        require_free,
        write_predictions,
    )
    from prenas.devices.prediction import classify, find_pictures, open_classifier

    set_threads(threads)
    chosen = chosen_format(form, as_json, out)
    classifier = open_classifier(
        model, image_size=image_size, device=device, threads=torch.get_num_threads()
    )
    paths = find_pictures(images)
    require_free(out, model, paths)
    found = classify(classifier, paths, top=top, batch_size=batch_size)
    if chosen == "table":
        num_failed = print_predictions(str(model), found, len(paths))
    else:
        num_classes = min(top, len(classifier.class_names))
        num_failed = write_predictions(found, len(paths), chosen, num_classes, out)
    if num_failed:
        raise typer.Exit(1)


@app.command("bench")
@_interruptible
def bench_command(
    what: Annotated[str, typer.Argument(metavar="proxies", help="What to compare: proxies.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Table of architectures with accuracies, as JSON or CSV."
        ),
    ],
    space: Annotated[
        str | None,
        typer.Option(
            "--space",
            metavar="FILE|NAME",
            help="Search space of the architectures; default: as the table says.",
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Only these scores; default: all."),
    ] = None,
    accuracy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Only this column of accuracies; may be given several times."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Random initialisations per score, numbered from 0.")
    ] = 1,
    window: Annotated[
        float, typer.Option(metavar="PERCENT", help="Width of a window of sizes, in per cent.")
    ] = 10,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side in pixels of the noise images for scores of single networks; small ones are "
            "faster. Default: that of the space.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Noise images per batch.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write everything to this JSON file; it is continued if it exists."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Replace the file instead of continuing it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the table and say how long it takes.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Compare zero-cost scores with accuracies that you know.

    `prenas bench proxies FILE` says which scores order the architectures of your table, what they
    know beyond parameters and MACs, and how sure that is.
    """
    from prenas.cli.benching import bench_proxies, require_bench

    require_bench(what)
    set_threads(threads)
    bench_proxies(
        file,
        space=space,
        scores=scores,
        columns=accuracy or (),
        seeds=seeds,
        window=window,
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        out=out,
        again=again,
        dry_run=dry_run,
    )


@app.command("info")
def info_command(
    name: Annotated[
        str | None, typer.Argument(help="A recipe, a search space, a space file or a run folder.")
    ] = None,
) -> None:
    """List recipes and search spaces, or describe one of them.

    Also describes a space file or a run folder.
    """
    from prenas.families import all_spaces
    from prenas.recipe import cut_fields, flat_fields
    from prenas.recipe.catalogue import (
        CUT_RECIPES,
        RECIPES,
        TRANSFER_RECIPES,
        get_cut_recipe,
        get_recipe,
        get_transfer_recipe,
    )
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
            f"Recipe {name}: fields, to be changed with --set FIELD=VALUE",
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
            f"Fine-tuning recipe {name}: change training.* and data.* with --set FIELD=VALUE",
            ["field", "value"],
            [(f, json.dumps(value)) for f, value in flat_fields(get_transfer_recipe(name))],
        )
    elif name in CUT_RECIPES:
        plan = get_cut_recipe(name)
        console.print(f"{inspect.getdoc(CUT_RECIPES[name])}\n", soft_wrap=True)
        console.print(f"Budgets: {', '.join(plan.budgets)}; others with --budget\n", soft_wrap=True)
        print_table(
            f"Recipe {name} for prenas run --from: fields, to be changed with --set FIELD=VALUE",
            ["field", "value"],
            [(field, json.dumps(value)) for field, value in cut_fields(plan)],
        )
    elif name in spaces or names_a_space_file(name):
        print_space(find_space(name))
    elif Path(name).is_dir():
        from prenas.runs.run import read_preferred

        preferred = read_preferred(name)
        print_space(preferred.recipe.space)
        print_preferred(preferred)
    else:
        choices = {*RECIPES, *TRANSFER_RECIPES, *CUT_RECIPES, *spaces}
        raise unknown_name("recipe, search space, space file or run folder", name, choices)


def main() -> None:
    """Runs the command line; a mistake of the user ends in one readable message and status 2."""
    who = f"process {os.environ['RANK']}: " if "RANK" in os.environ else ""
    set_up_output(who)
    keep_freed_memory()
    import_within("timm", frozen)
    atexit.register(leave_quietly)
    try:
        require_no_empty_path(sys.argv[1:])
        app()
    except (ValueError, OSError) as error:
        problem = str(error)
        if isinstance(error, OSError) and error.filename is not None:  # without the bare number
            problem = f"{error.filename}: {error.strerror}"
        errors.print(f"{who}error: {problem}", style="red", soft_wrap=True)
        sys.exit(2)
