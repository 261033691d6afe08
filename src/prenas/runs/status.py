"""How far a run is, according to its folder; reads no weights, changes nothing, loads no torch.

Works at every stage, also while another process writes, and reports damaged files as problems.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from prenas import artifacts
from prenas.files import exists
from prenas.length import length_of
from prenas.runs.contests import Contest, Result, contests
from prenas.runs.lock import is_held
from prenas.runs.log import Position, read_log
from prenas.values import MOST_AMOUNT, Value

T = TypeVar("T")

Stage = Literal["missing", "running", "begun", "done", "imported", "none"]
"""`begun`: interrupted; `none`: not part of this run; `imported`: replaced by released weights."""


class LastValidation(Value):
    """One subnet in the last validation during the training."""

    epoch: int
    """From 0."""
    subnet: int
    costs: dict[str, int]
    """Costs by the name of their axis (`prenas.cost`)."""
    weights: str
    top1: float


class TrainingStatus(Value):
    """How far a training is; None where a value is not known (yet)."""

    epoch: int | None = None
    """The running epoch, or the last one, from 0."""
    num_epochs: int | None = None
    step: int | None = None
    """Number of finished steps."""
    num_steps: int | None = None
    loss: float | None = None
    lr: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    """The remaining time at this speed, without validations."""
    skipped: int = 0
    """Number of steps skipped because of a non-finite loss or gradient."""
    checkpoint: str | None = None
    """The newest checkpoint, as a path inside the folder."""
    best: str | None = None
    """The best weights so far, as a path inside the folder."""
    validations: tuple[LastValidation, ...] = ()


class RivalStatus(Value):
    """How far a stock model is, with which a run is compared."""

    name: str
    """As it was given, such as `timm/resnet18`."""
    folder: str
    """Its run, as a path inside the folder."""
    stage: Stage


class Status(Value):
    """The state of a run folder."""

    folder: str
    recipe: str | None
    """None before the search."""
    num_subnets: int | None
    adaptation: Stage = "none"
    """Of the whole network, in a run that cuts one."""
    adapting: TrainingStatus | None = None
    """The training of the whole network; None if there is none, or nothing is known."""
    search: Stage
    training: Stage
    evolution: Stage
    """Part of one-shot NAS only."""
    calibration_images: int | None
    """Number of images for the calibration of BatchNorm; None if it was not calibrated (yet)."""
    evaluation: Stage
    hand_over: Stage
    num_models: int
    """Number of subnets handed over inside the folder."""
    rivals: tuple[RivalStatus, ...] = ()
    """The stock models that the run is compared with."""
    contests: tuple[Contest, ...] = ()
    """The subnets of each budget on validation; empty before the evaluation."""
    is_busy: bool
    """Whether a process is working on the run now."""
    progress: TrainingStatus | None
    """None if there is nothing to train, or nothing is known."""
    next_command: str | None
    """The next step. None if everything is done, or if a problem must be fixed first."""
    finish_command: str | None
    """All the remaining steps as one command; None where `next_command` is, and for a run that
    is not trained here."""
    problems: tuple[str, ...]
    """What is damaged or does not belong to a run, and what to do."""


def read_status(out: str | Path) -> Status:
    """How far a run is.

    Raises:
        ValueError: there is no such folder.
    """
    out = Path(out)
    if not out.is_dir():
        problem = "is a file" if exists(out) else "does not exist"
        raise ValueError(f"{out} {problem}: give a run folder")
    problems: list[str] = []
    recipe = _read(out / artifacts.RECIPE, _parse_recipe, problems)
    search = _read(out / artifacts.PREFERRED, partial(_parse_search, recipe), problems)
    if recipe is None and not problems and (text := _without_recipe(out, search)):
        problems.append(text)
    progress = None
    if search is not None and recipe is not None and recipe.training is not None:
        progress = _progress(out, recipe.training, problems)
    evolved = _read(out / artifacts.EVOLUTION, _parse_evolution, problems)
    is_evolved = search is not None and evolved is not None and len(evolved) >= search.num_evolved
    if search is not None and evolved is not None and is_evolved:  # the later steps are about these
        search = search._replace(sizes=list(dict(evolved).values()))
    calibrated = _read(out / artifacts.CALIBRATION, lambda d: int(d["num_images"]), problems)
    models = [path.parent for path in out.glob(f"{artifacts.SUBNETS}/*/{artifacts.MODEL_ARCH}")]
    num_models = sum((model / artifacts.MODEL).exists() for model in models)
    rivals = tuple(_rival(out, name) for name in (recipe.rivals if recipe else ()))
    inner = (artifacts.SOURCE, *(rival.folder for rival in rivals))
    is_busy = is_held(out) or any(is_held(out / folder) for folder in inner)
    stages = _stages(out, recipe, search, is_evolved, num_models, is_held(out))
    adaptation, adapting = _adaptation(out, recipe)
    if adaptation not in ("none", "done") and search is None:
        stages[0] = "missing"
    whole = _containing(out)
    if whole is not None:
        is_busy = is_busy or is_held(whole)
    following = finish = None
    if not problems and not is_busy:
        if whole is not None:
            above = read_status(whole)
            following, finish = above.next_command, above.finish_command
        else:
            following = _next(out, recipe, search, stages, rivals)
            finish = _finish(out, recipe, search) if following else None
    return Status(
        folder=str(out),
        recipe=recipe.name if recipe else None,
        num_subnets=len(search.sizes) if search else None,
        adaptation=adaptation,
        adapting=adapting,
        search=stages[0],
        training=stages[1],
        evolution=stages[2],
        calibration_images=calibrated,
        evaluation=stages[3],
        hand_over=stages[4],
        num_models=num_models,
        rivals=rivals,
        contests=_contests(out, search, problems),
        is_busy=is_busy,
        progress=progress,
        next_command=following,
        finish_command=finish,
        problems=tuple(problems),
    )


def _containing(out: Path) -> Path | None:
    """The run that cuts a trained network of which this run is a part, and which continues it."""
    folder = out.resolve()
    if folder.name == artifacts.SOURCE:
        above = folder.parent
    elif folder.parent.name == artifacts.RIVALS:
        above = folder.parent.parent
    else:
        return None
    recipe = None
    if (above / artifacts.RECIPE).exists():
        recipe = _read(above / artifacts.RECIPE, _parse_recipe, [])
    return above if recipe is not None and recipe.source is not None else None


def _without_recipe(out: Path, search: _Search | None) -> str | None:
    """What is wrong with a folder that has no recipe; None if it is empty."""
    if search is not None:
        return f"{out / artifacts.RECIPE} is missing: restore it from a copy"
    if (out / artifacts.MODEL_ARCH).is_file():
        return (
            f"{out} is a handed-over model, not a run: load it with prenas.load, or measure it "
            f"with `prenas evaluate {out} --data PICTURES`"
        )
    if any(not path.name.startswith(".") for path in out.iterdir()):
        return f"{out} is not a run folder of prenas: {artifacts.RECIPE} is missing"
    return None


class _Training(NamedTuple):
    """The length of a training, and its batch size."""

    epochs: int | None
    steps: int | None
    min_steps: int
    batch_size: int


class _Recipe(NamedTuple):
    """The part of a `Recipe` that status needs; reading all of it would load torch."""

    name: str
    training: _Training | None
    has_evolution: bool
    source: str | None
    """The pretrained network that is cut, if there is one."""
    rivals: tuple[str, ...]
    """The stock models that its cuts are compared with."""
    fine_tunes: str | None
    """The source whose weights the run starts from, if it does not search."""


def _parse_recipe(document: dict[str, Any]) -> _Recipe:
    recipe = document["recipe"]
    training, source = recipe["training"], recipe.get("source")
    fine_tunes = document.get("fine_tunes")
    return _Recipe(
        name=str(recipe["name"]),
        training=training and _parse_training(training),
        has_evolution=bool(recipe.get("evolution")),
        source=str(source["name"]) if source else None,
        rivals=tuple(str(one["name"]) for one in source.get("rivals", ())) if source else (),
        fine_tunes=None if fine_tunes is None else str(fine_tunes),
    )


def _parse_training(fields: dict[str, Any]) -> _Training:
    """Recipes of release 0.1.0 have neither steps nor min_steps."""
    epochs, steps = fields["epochs"], fields.get("steps")
    found = _Training(
        epochs=None if epochs is None else int(epochs),
        steps=None if steps is None else int(steps),
        min_steps=int(fields.get("min_steps", 0)),
        batch_size=int(fields["batch_size"]),
    )
    if (found.epochs is None) == (found.steps is None):
        raise ValueError("exactly one of epochs and steps must be given")
    if min(found.epochs or found.steps or 0, found.batch_size) < 1:
        raise ValueError("epochs, steps and batch_size must be positive")
    return found


class _Search(NamedTuple):
    """The part of a `PreferredSet` that status needs."""

    is_imported: bool
    sizes: list[int]
    """Parameters per subnet."""
    num_evolved: int
    """Number of budgets that evolution searches; 0 without evolution."""
    budgets: list[str]
    choices: list[tuple[int, int]]
    """(number of the budget, number of the subnet)"""


def _parse_search(recipe: _Recipe | None, document: dict[str, Any]) -> _Search:
    empty = {document["budgets"][number] for number in document["empty_budgets"]}
    num_budgets = len({*document["budgets"]} - empty)  # one may be given twice
    sizes = [int(subnet["costs"]["params"]) for subnet in document["subnets"]]
    if not sizes:
        raise ValueError("subnets must name at least one subnet")
    return _Search(
        is_imported=document.get("imported") is not None,
        sizes=sizes,
        num_evolved=num_budgets if recipe and recipe.has_evolution else 0,
        budgets=[str(budget) for budget in document["budgets"]],
        choices=[(int(one["budget"]), int(one["subnet"])) for one in document["choices"]],
    )


def _contests(out: Path, search: _Search | None, problems: list[str]) -> tuple[Contest, ...]:
    """The contests of a run; none of one-shot NAS, which hands over one subnet per budget."""
    results = _read(out / artifacts.EVALUATION, _parse_results, problems)
    if search is None or search.num_evolved or not results or len(results) != len(search.sizes):
        return ()
    return contests(search.budgets, search.choices, results)


def _parse_results(document: dict[str, Any]) -> list[Result]:
    return [
        Result(
            {name: int(amount) for name, amount in subnet["costs"].items()},
            {split: float(found["top1"]) for split, found in subnet["splits"].items()},
        )
        for subnet in document["subnets"]
    ]


def _parse_num_images(document: dict[str, Any]) -> int:
    """Number of training images."""
    num_images = int(document["num_images"]["train"])
    if not 0 < num_images <= MOST_AMOUNT:
        raise ValueError(f"num_images.train is {num_images}: it must be positive")
    return num_images


def _parse_evolution(document: dict[str, Any]) -> list[tuple[str, int]]:
    """(architecture as text, parameters) of every finished budget."""
    return [
        (json.dumps(found["arch"]), int(found["costs"]["params"])) for found in document["budgets"]
    ]


def _read(path: Path, parse: Callable[[dict[str, Any]], T], problems: list[str]) -> T | None:
    """The content of a JSON file; None if it is missing or damaged, which adds a problem."""
    try:
        return artifacts.parse_json(path, parse) if path.exists() else None
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return None


def _stages(
    out: Path,
    recipe: _Recipe | None,
    search: _Search | None,
    is_evolved: bool,
    num_models: int,
    is_busy: bool,
) -> list[Stage]:
    """The stages of search, training, evolution, evaluation and hand-over."""
    has = {path.name for path in out.iterdir()}
    is_done = [
        search is not None,
        artifacts.SUPERNET in has,
        is_evolved or not (search and search.num_evolved),
        artifacts.EVALUATION in has,
        search is not None and num_models >= len(search.sizes),
    ]
    is_begun = [
        artifacts.RECIPE in has,
        bool({artifacts.METRICS, artifacts.CHECKPOINTS} & has),
        artifacts.EVOLUTION in has,
        False,
        num_models > 0,
    ]
    stages: list[Stage] = []
    for done, begun in zip(is_done, is_begun, strict=True):
        is_next = not done and all(stage == "done" for stage in stages)
        unfinished: Stage = "begun" if begun else "missing"
        stages.append("done" if done else "running" if is_next and is_busy else unfinished)
    if search is None or not search.num_evolved:
        stages[2] = "none"
    if search is not None and search.is_imported:
        stages[0] = "imported"
    elif search is not None and recipe is not None and recipe.training is None:
        stages[1:] = ["none"] * 4
    return stages


def _progress(out: Path, training: _Training, problems: list[str]) -> TrainingStatus:
    num_images = _read(out / artifacts.DATA, _parse_num_images, problems)
    position, validations = None, []
    try:
        log = read_log(out / artifacts.METRICS)
        position, validations = log.position, log.validations
    except (ValueError, OSError) as error:
        problems.append(str(error))
    fields: dict[str, Any] = {}
    steps_per_epoch = math.ceil(num_images / training.batch_size) if num_images else None
    if position is not None:
        steps_per_epoch = position.steps_per_epoch or steps_per_epoch
        fields = {
            "loss": None if math.isnan(position.loss) else position.loss,
            "lr": position.lr,
            "images_per_second": position.images_per_second,
            "skipped": position.skipped,
        }
    length = length_of(training, steps_per_epoch) if steps_per_epoch else None
    epoch, step = _reached(out, position, steps_per_epoch)
    speed = fields.get("images_per_second")
    steps_left = length.num_steps - step if step and length else 0
    if steps_left > 0 and length and num_images and speed:
        fields["seconds_left"] = steps_left / length.steps_per_epoch * num_images / speed
    return TrainingStatus(
        epoch=epoch,
        step=step,
        num_epochs=length.num_epochs if length else training.epochs,
        num_steps=length.num_steps if length else training.steps,
        **_checkpoints(out),
        validations=tuple(
            LastValidation(
                epoch=v.epoch, subnet=v.subnet, costs=v.costs, weights=v.weights, top1=v.top1
            )
            for v in validations
            if v.step == validations[-1].step
        ),
        **fields,
    )


def _reached(
    out: Path, position: Position | None, steps_per_epoch: int | None
) -> tuple[int | None, int | None]:
    """(epoch, number of finished steps): by the log, or by a checkpoint that is further.

    A training that is asked to stop saves a checkpoint, but the log has a record only every
    `log_steps` steps.
    """
    epoch, step = (None, None) if position is None else (position.epoch, position.step)
    if position is not None and step is None and steps_per_epoch is not None:
        step = (position.epoch + 1) * steps_per_epoch
    saved = artifacts.find_checkpoints(out / artifacts.CHECKPOINTS)
    if saved and steps_per_epoch is not None and saved[0][0] > (step or 0):
        step = saved[0][0]
        epoch = (step - 1) // steps_per_epoch
    return epoch, step


def _checkpoints(out: Path) -> dict[str, str]:
    """The newest and the best checkpoint, as paths inside the folder."""
    folder = out / artifacts.CHECKPOINTS
    found = artifacts.find_checkpoints(folder)
    paths = {"checkpoint": found[0][1]} if found else {}
    if (folder / artifacts.BEST).exists():
        paths["best"] = folder / artifacts.BEST
    return {what: str(path.relative_to(out)) for what, path in paths.items()}


def _adaptation(out: Path, recipe: _Recipe | None) -> tuple[Stage, TrainingStatus | None]:
    """How far the run is in which the whole network is fine-tuned, and its training."""
    if recipe is None or recipe.source is None:
        return "none", None
    folder = out / artifacts.SOURCE
    inside = _read(folder / artifacts.RECIPE, _parse_recipe, [])
    progress = None
    if inside is not None and inside.training is not None:
        progress = _progress(folder, inside.training, [])
    return _stage_of(folder, out / artifacts.ADAPTED / artifacts.MODEL_ARCH), progress


def _rival(out: Path, name: str) -> RivalStatus:
    folder = artifacts.rival_folder(name)
    stage = _stage_of(out / folder, out / folder / artifacts.EVALUATION)
    return RivalStatus(name=name, folder=folder, stage=stage)


def _stage_of(inside: Path, last: Path) -> Stage:
    """How far a run inside a run is, whose last file is given."""
    if last.exists():
        return "done"
    if is_held(inside):
        return "running"
    return "begun" if (inside / artifacts.RECIPE).exists() else "missing"


def _next(
    out: Path,
    recipe: _Recipe | None,
    search: _Search | None,
    stages: Sequence[Stage],
    rivals: Sequence[RivalStatus],
) -> str | None:
    """The command for the next step of the run."""
    folder = shlex.quote(str(out))
    if search is None and recipe is not None and recipe.fine_tunes is not None:
        return f"prenas finetune {shlex.quote(recipe.fine_tunes)} --data PATH --out {folder}"
    if search is None and recipe is not None and recipe.source is not None:
        if _can_continue(out):
            return f"prenas run --out {folder}"
        command = f"prenas run --from {shlex.quote(recipe.source)} --data PATH --out {folder}"
        return f"{command} (and the options that it was started with)"
    if search is None:
        return f"prenas search {'' if recipe else 'RECIPE '}--out {folder}"
    start, where = f"train {folder}", ""
    if search.is_imported:  # the folder names neither the file nor the images
        start, where = f"import FILE --out {folder}", " --data PATH"
    best = f" --max-params {max(search.sizes)}"  # the best of all by validation
    evolve = f"evolve {folder}"
    commands = (start, evolve, f"evaluate {folder}{where}", f"specialize {folder}{best}")
    for stage, command in zip(stages[1:], commands, strict=True):
        if stage == "missing" or (stage == "begun" and command in (start, evolve)):
            return f"prenas {command}"
    if any(rival.stage != "done" for rival in rivals):
        return f"prenas run --out {folder}"
    return None


def _can_continue(out: Path) -> bool:
    """Whether the run inside a run that cuts a source has all that its adaptation needs."""
    return (out / artifacts.SOURCE / artifacts.PREFERRED).exists()


def _finish(out: Path, recipe: _Recipe | None, search: _Search | None) -> str | None:
    """The command that does all the remaining steps of a run that is trained here."""
    if recipe is None or recipe.training is None or (search and search.is_imported):
        return None
    if search is None and recipe.fine_tunes is not None:
        return None
    if search is None and recipe.source is not None and not _can_continue(out):
        return None  # only the command that began it knows all of its options
    return f"prenas run --out {shlex.quote(str(out))}"
