"""The `prenas` command: parsing, progress and tables only; everything heavy is imported late."""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from prenas.data import ImageData
    from prenas.evaluation import Evaluation
    from prenas.families.base import Arch, SearchSpace
    from prenas.pipeline import DryRun
    from prenas.recipe import Recipe
    from prenas.selection.preferred import PreferredSet
    from prenas.training.loop import Progress

app = typer.Typer(
    help="PreNAS: pick the few subnets worth having, train one supernet on them, take them home.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_out = Console(highlight=False, markup=False, emoji=False)
_errors = Console(stderr=True, highlight=False, markup=False, emoji=False)

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
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
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
Seeds = Annotated[
    int | None,
    typer.Option("--further-seeds", help="Initialisations scored beside, to report agreement."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")]
Crops = Annotated[
    int | None, typer.Option(help="1, 5 or 10 crops per image, logits averaged.", min=1, max=10)
]
ArchTexts = Annotated[
    list[str] | None,
    typer.Option("--arch", metavar="JSON|FILE", help="Evaluate these instead; repeatable."),
]


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Ctrl-C ends a command with a word on how to go on."""

    @wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            _errors.print("stopped: give the same command again to continue", soft_wrap=True)
            raise typer.Exit(130) from None

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
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """The whole method: search, train, evaluate, hand over every preferred subnet."""
    from prenas import artifacts, pipeline

    if out is None and not dry_run:
        raise ValueError("say where the run goes: --out FOLDER (or --dry-run to write nothing)")
    _set_threads(threads)
    chosen = _recipe(recipe, space, data, overrides, budget, further_seeds)
    with _out.status("Reading images ..."):
        _, images = pipeline.ready_to_train(chosen, out=out)
    _print_data(images)
    if dry_run:
        with _out.status("Choosing subnets and measuring training steps ..."):
            plan = pipeline.dry_run(chosen, data=images, device=device)
        _print_preferred(plan.preferred)
        _print_estimate(plan, chosen)
        return
    assert out is not None, "checked above"
    _search(chosen, out, device, images)
    _train(out, device, images)
    rows = pipeline.evaluate(out, data=images, device=device)
    _print_evaluations(rows, f"{chosen.name}: preferred subnets, trained together")
    for number in range(len(rows)):
        pipeline.specialize(out, number, data=images, device=device)
    page = pipeline.report(out, again=False)
    _out.print(
        f"\nReport    {page}\nPlot      {out / artifacts.PLOT}\n"
        f"Table     {out / artifacts.EVALUATION_CSV}\n"
        f"Models    {out / artifacts.SUBNETS}/00 ... {len(rows) - 1:02d}, "
        "each ready for prenas.load(folder)",
        soft_wrap=True,
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
    _set_threads(threads)
    _search(_recipe(recipe, space, data, overrides, budget, further_seeds), out, device)


@app.command("train")
@_interruptible
def train_command(
    run: RunFolder,
    data: DataTexts = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train the supernet of a searched run, or continue where it was interrupted."""
    _set_threads(threads)
    _train(run, device, _other_data(run, data))


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
    """Accuracy of every preferred subnet of a trained run, or of given architectures.

    With --arch, --data or --crops the results are printed only.
    """
    from prenas import pipeline

    _set_threads(threads)
    family = pipeline.read_preferred(run).recipe.space.family
    archs = [_read_arch(text, family) for text in arch] if arch else None
    images = _other_data(run, data, crops)
    rows = pipeline.evaluate(run, archs, data=images, device=device)
    _print_evaluations(rows, f"{run}: " + ("given architectures" if archs else "preferred subnets"))


@app.command("report")
@_interruptible
def report_command(run: RunFolder) -> None:
    """Write report.md, with pictures: what a run found, from what its folder holds so far."""
    from prenas import pipeline

    _out.print(f"Report    {pipeline.report(run)}", soft_wrap=True)


@app.command("specialize")
@_interruptible
def specialize_command(
    run: RunFolder,
    index: Annotated[int | None, typer.Option(help="Number of the subnet in the table.")] = None,
    max_params: Annotated[str | None, typer.Option(help="Best within, e.g. 100k, 6M.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Best within, e.g. 1.4G.")] = None,
    to: Annotated[Path | None, typer.Option(help="Empty folder; default: in the run.")] = None,
    data: DataTexts = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Cut one subnet out, check that it equals the supernet's, write model and description."""
    from prenas import artifacts, pipeline

    _set_threads(threads)
    folder = pipeline.specialize(
        run,
        index,
        max_params=max_params,
        max_macs=max_macs,
        to=to,
        data=_other_data(run, data),
        device=device,
    )
    provenance = artifacts.read_json(folder / artifacts.MODEL_ARCH)["provenance"]
    results = "".join(
        f", {split} top-1 {100 * metrics['top1']:.2f} %"
        for split, metrics in provenance["evaluation"].items()
    )
    _out.print(
        f"Subnet {provenance['subnet']}: {provenance['params']:,} parameters, "
        f"{provenance['macs']:,} MACs{results}\n"
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
    from prenas.released import load_released_checkpoint

    archs = []
    if arch:
        family = load_released_checkpoint(file).family.name
        archs = [_read_arch(text, family) for text in arch]
    preferred = pipeline.import_released(file, out, archs, space=space)
    _print_preferred(preferred)
    _out.print(f"Supernet  {out / artifacts.SUPERNET}", soft_wrap=True)


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
    """Classify pictures with a model that `specialize` handed over."""
    from prenas.prediction import predict

    _set_threads(threads)
    rows = []
    for prediction in predict(model, images, top=top, device=device):
        if as_json:
            _out.print(json.dumps(prediction.as_dict()), soft_wrap=True)
        elif prediction.error:
            rows.append((str(prediction.path), f"cannot be read: {prediction.error}", ""))
        else:
            rows += [
                (str(prediction.path) if rank == 0 else "", name, f"{100 * probability:.2f} %")
                for rank, (name, probability) in enumerate(prediction.classes)
            ]
    if rows:
        _print_table(str(model), ["picture", "class", "probability"], rows)


@app.command("info")
def info_command(
    name: Annotated[
        str | None, typer.Argument(help="A recipe, a space, a space file or a run folder.")
    ] = None,
) -> None:
    """List recipes and spaces, or describe one of them, a space file or a run folder."""
    from prenas.families import all_spaces, unknown_name
    from prenas.recipe import flat_fields
    from prenas.recipes import RECIPES, get_recipe
    from prenas.space_file import find_space, names_a_space_file

    spaces = all_spaces()
    if name is None:
        _print_lists()
    elif name in RECIPES:
        recipe = get_recipe(name)
        _out.print(f"{inspect.getdoc(RECIPES[name])}\n", soft_wrap=True)
        _print_space(recipe.space)
        _print_table(
            f"Recipe {name}: the fields, as --set FIELD=VALUE takes them",
            ["field", "value"],
            [
                (field, json.dumps(value))
                for field, value in flat_fields(recipe)
                if not field.startswith("space.")
            ],
        )
    elif name in spaces or names_a_space_file(name):
        _print_space(find_space(name))
    elif Path(name).is_dir():
        from prenas import pipeline

        preferred = pipeline.read_preferred(name)
        _print_space(preferred.recipe.space)
        _print_preferred(preferred)
    else:
        raise unknown_name("recipe, space, space file or run folder", name, {*RECIPES, *spaces})


def main() -> None:
    """Runs the command line; mistakes of the user end in one readable message and status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except (ValueError, OSError) as error:
        _errors.print(f"error: {error}", style="red", soft_wrap=True)
        sys.exit(2)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _recipe(
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
    from prenas.recipes import RECIPES, get_recipe
    from prenas.space_file import find_space

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


def _other_data(
    run: Path, texts: Sequence[str] | None, crops: int | None = None
) -> ImageData | None:
    """Images from elsewhere for a run, or with other crops; None for what its recipe says."""
    from prenas import pipeline

    if not texts and crops is None:
        return None
    with _out.status("Reading images ..."):
        return pipeline.other_data(run, texts or (), crops=crops)


def _print_data(data: ImageData) -> None:
    from prenas.data import num_samples

    sizes = ", ".join(
        f"{name} {num_samples(source):,}"
        for name, source in {"train": data.train, **data.splits}.items()
    )
    _out.print(f"Images: {sizes}; {len(data.class_names)} classes", soft_wrap=True)
    for note in data.notes:
        _out.print(f"Note: {note}", soft_wrap=True)


def _search(recipe: Recipe, out: Path, device: str, data: ImageData | None = None) -> None:
    from prenas import artifacts, pipeline

    was_done = (out / artifacts.PREFERRED).exists()
    started = time.perf_counter()
    with _out.status("Scoring every subnet at initialisation ..."):
        preferred = pipeline.search(recipe, out, data=data, device=device)
    seconds = time.perf_counter() - started
    _print_preferred(preferred)
    done = "found done" if was_done else f"done in {seconds:.1f} s"
    _out.print(f"Search {done}: {out / artifacts.PREFERRED}", soft_wrap=True)


def _train(out: Path, device: str, data: ImageData | None) -> None:
    from prenas import artifacts, pipeline

    was_done = (out / artifacts.SUPERNET).exists()
    started = time.perf_counter()
    with _progress() as watch:
        pipeline.train(out, data=data, device=device, watch=watch)
    seconds = time.perf_counter() - started
    done = "found done" if was_done else f"done in {seconds:.0f} s"
    _out.print(f"Training {done}: {out / artifacts.SUPERNET}", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line for every tenth of the training."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("Training"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("lr {task.fields[lr]:.2e}"),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=_out,
        disable=not _out.is_terminal,
    )
    task = bar.add_task("", total=None, epoch=0, loss=0.0, lr=0.0, rate=0.0)
    mean_loss, num_images, started, next_tenth = 0.0, 0, time.perf_counter(), 0

    def watch(progress: Progress) -> None:
        nonlocal mean_loss, num_images, next_tenth
        mean_loss = 0.95 * mean_loss + 0.05 * progress.loss if num_images else progress.loss
        num_images += progress.num_images
        seconds = time.perf_counter() - started
        rate = num_images / seconds
        bar.update(
            task,
            total=progress.num_steps,
            completed=progress.step,
            epoch=progress.epoch + 1,
            loss=mean_loss,
            lr=progress.lr,
            rate=rate,
        )
        tenth = 10 * progress.step // progress.num_steps
        if not _out.is_terminal and tenth > next_tenth:
            next_tenth = tenth
            _out.print(
                f"Training {10 * tenth} %: epoch {progress.epoch + 1}, loss {mean_loss:.3f}, "
                f"lr {progress.lr:.2e}, {rate:.0f} images/s"
            )

    with bar:
        yield watch


def _read_arch(text: str, family: str) -> Arch:
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


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Numbers to the right, words to the left, every row on one line however wide."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        is_text = any(any(c.isalpha() or c == "[" for c in str(row[number])) for row in rows)
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    _out.print(title, style="bold", soft_wrap=True)
    width = Console(width=10_000).measure(table).maximum
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def _print_preferred(preferred: PreferredSet) -> None:
    leads = {
        choice.subnet: "-" if choice.margin is None else f"{100 * choice.margin:.2g} %"
        for choice in reversed(preferred.choices)
    }
    origin = f"{preferred.num_classes_of_isomers:,} isomer classes scored"
    if preferred.imported is not None:
        origin = preferred.imported.summary
    _print_table(
        f"{preferred.recipe.name}: {len(preferred.subnets)} preferred subnets of "
        f"{preferred.num_archs:.3g} ({origin})",
        ["#", "params", "MACs, M", "architecture", "score", "lead", "best of"],
        [
            (
                number,
                f"{subnet.params:,}",
                _millions(subnet.macs),
                subnet.arch.summary,
                "-" if subnet.score is None else f"{subnet.score:,.1f}",
                leads[number],
                "; ".join(preferred.budgets_of(number)),
            )
            for number, subnet in enumerate(preferred.subnets)
        ],
    )
    for number in preferred.empty_budgets:
        _out.print(f"No subnet in budget {preferred.budgets[number]}", soft_wrap=True)
    for budget in preferred.partial_budgets:
        _out.print(
            f"Left out, no whole step: {budget} (search.keep_partial=true keeps it)",
            soft_wrap=True,
        )
    for seed in preferred.agreement:
        changed = ", ".join("-" if n is None else str(n) for n in seed.changed_options)
        taus = ", ".join(f"{axis} {tau:.2f}" for axis, tau in seed.block_score_tau.items())
        _out.print(
            f"Seed {seed.seed}: tau of scores {seed.score_tau:.3f}, of block scores {taus}; "
            f"same width, depth and option counts in {seed.same_class.count(True)} of "
            f"{len(seed.same_class) - seed.same_class.count(None)} budgets; "
            f"per-layer options changed: {changed}",
            soft_wrap=True,
        )


def _millions(macs: int) -> str:
    return f"{macs / 1e6:.4g}"


def _print_evaluations(rows: Sequence[Evaluation], title: str) -> None:
    splits = list(rows[0].splits)
    with_top5 = rows[0].splits[splits[0]].top5 is not None
    columns = ["#", "params", "MACs, M", "architecture"]
    for split in splits:
        heads = ["top-1", *(["top-5"] if with_top5 else []), "loss"]
        columns += [f"{split[:4].removesuffix('i')}\n{head}" for head in heads]
    table = []
    for number, row in enumerate(rows):
        cells = [number, f"{row.params:,}", _millions(row.macs), row.arch.summary]
        for metrics in row.splits.values():
            cells.append(f"{100 * metrics.top1:.2f}")
            if metrics.top5 is not None:
                cells.append(f"{100 * metrics.top5:.2f}")
            cells.append(f"{metrics.loss:.3f}")
        table.append(cells)
    _print_table(title, columns, table)
    sizes = ", ".join(f"{split} {m.num_images} images" for split, m in rows[0].splits.items())
    _out.print(
        f"Accuracies in %, over {sizes}. Choose by validation; test is for the report.",
        soft_wrap=True,
    )


def _print_estimate(plan: DryRun, recipe: Recipe) -> None:
    """Time and memory of a training that was not begun."""
    from prenas.cost import count

    estimate, training = plan.estimate, recipe.training
    assert training is not None, "a dry run trains"
    _print_table(
        f"Measured training steps of {estimate.images_per_step} images",
        ["params", "architecture", "images/s", "kept per image, MB"],
        [
            (
                f"{count(cost.arch, recipe.space.settings).params:,}",
                cost.arch.summary,
                f"{1 / cost.seconds:,.0f}",
                f"{cost.activation_bytes / 1e6:,.1f}",
            )
            for cost in estimate.costs
        ],
    )
    memory = estimate.state_bytes + estimate.activation_bytes
    _print_table(
        "Estimate",
        ["what", "value"],
        [
            (
                "steps",
                f"{estimate.num_steps:,} of {training.batch_size} images, "
                f"{estimate.steps_per_epoch:,} per epoch, {training.epochs} epochs",
            ),
            ("reading and augmenting", f"{1e3 * estimate.loading_seconds:.2f} ms per image"),
            ("training", _duration(estimate.training_seconds)),
            ("evaluation of all subnets", _duration(estimate.evaluation_seconds)),
            (
                "memory of a step",
                f"{_size(memory)}: weights, gradients and moments {_size(estimate.state_bytes)}, "
                f"kept by the largest subnet {_size(estimate.activation_bytes)}",
            ),
        ],
    )
    if memory > estimate.machine_bytes:
        _out.print(
            f"That is more than the {_size(estimate.machine_bytes)} of this machine: lower "
            "training.batch_size",
            soft_wrap=True,
        )
    _out.print("Dry run: nothing was written.", soft_wrap=True)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    """For people: 41 s, 12 min, 3.4 h, 5.1 days."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{0 if unit != 'h' else 1}f} {unit}"
    return f"{seconds / 86400:,.1f} days"


def _print_space(space: SearchSpace) -> None:
    from prenas.cost import count
    from prenas.recipe import flat_fields
    from prenas.selection.isomers import num_isomer_classes

    per_layer = {axis.name for axis in space.layer_axes}
    rows: dict[str, list[tuple[str, str, str]]] = {"per network": [], "per layer": [], "fixed": []}
    for name, value in flat_fields(space):
        if name not in ("family", "name") and value is not None:
            is_axis = isinstance(value, list) and not name.startswith("settings.")
            once = "per network" if is_axis else "fixed"
            chosen = "per layer" if name in per_layer else once
            rows[chosen].append((name, json.dumps(value), chosen))
    _print_table(
        f"Space {space.name} ({space.family}): {_quantity(space.num_archs)} architectures in "
        f"{_quantity(num_isomer_classes(space))} isomer classes",
        ["field", "value", "chosen"],
        [row for group in rows.values() for row in group],
    )
    archs = {
        "smallest": space.smallest,
        "largest": space.largest,
        "scored supernet": space.supernet,
    }
    costs = {word: count(arch, space.settings) for word, arch in archs.items()}
    _print_table(
        "Its networks",
        ["what", "params", "MACs, M", "architecture"],
        [
            (word, f"{costs[word].params:,}", _millions(costs[word].macs), arch.summary)
            for word, arch in archs.items()
        ],
    )
    low, high = costs["smallest"], costs["largest"]
    _out.print(
        f"Budgets reach from params={_rounded(low.params)} to {_rounded(high.params)}, "
        f"from macs={_rounded(low.macs)} to {_rounded(high.macs)}.\n",
        soft_wrap=True,
    )


def _quantity(number: int) -> str:
    """Whole below a million, else four digits; also of numbers too large for a float."""
    return f"{number:,}" if number < 10**6 else f"{Decimal(number):.4g}".replace("e+", "e")


def _rounded(amount: int) -> str:
    """As budgets write it, up to the next of three digits, so that the amount fits: 5.37M."""
    from prenas.selection.budgets import format_amount

    step = 10 ** max(len(str(amount)) - 3, 0)
    return format_amount(-(-amount // step) * step)


def _print_lists() -> None:
    from prenas.families import all_spaces
    from prenas.recipes import RECIPES, get_recipe

    recipes = [(name, get_recipe(name)) for name in RECIPES]
    _print_table(
        "Recipes",
        ["name", "what"],
        [
            (
                name,
                f"space {recipe.space.name}; {', '.join(recipe.search.budgets)}; "
                + (
                    f"trains {recipe.training.epochs} epochs on {recipe.data.name}"
                    if recipe.training and recipe.data
                    else "searches only"
                ),
            )
            for name, recipe in recipes
        ],
    )
    _print_table(
        "Spaces",
        ["name", "what"],
        [
            (name, f"{space.family}, {space.num_archs:.3g} architectures")
            for name, space in all_spaces().items()
        ],
    )
