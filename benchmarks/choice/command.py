"""`python -m benchmarks choice`: the plan, the runs, and what they say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import choice
from benchmarks.choice.answers import document, drawing
from benchmarks.choice.questions import QUESTIONS
from benchmarks.choice.running import KEY, Task, base_recipe, missing, run, tasks
from benchmarks.fanning import Failure, fan_out
from benchmarks.paired import ROOT, Options, environment
from benchmarks.rows import Row, add_row, stored_rows
from prenas import pipeline
from prenas.cli.tables import duration
from prenas.data.cores import usable_cores
from prenas.data.naming import with_data
from prenas.recipe import Recipe
from prenas.report import render


def main(words: Sequence[str]) -> int:
    """Returns the exit status."""
    asked = _parsed(words)
    torch.set_num_threads(asked.threads)
    rows = stored_rows(asked.out)
    planned: list[Task] = []
    for data in asked.data:
        recipes = [_recipe(data, seed, asked) for seed in asked.seeds]
        named = ", ".join([data, *asked.changes, *(Path(one).name for one in asked.images)])
        planned += tasks(asked.question, named, recipes, _epochs(recipes[0]), asked.only)
    left = [] if asked.only_tables else missing(planned, rows)
    if not asked.only_tables:
        _print_plan(planned, left, asked.workers)
    if asked.dry_run:
        return 0
    failed = []
    for task, found in _found(left, asked):
        print(f"{task.named}: {_in_words(found)}", flush=True)
        if isinstance(found, Failure):
            failed.append((task, found))
            continue
        rows = add_row(asked.out, found | _conditions(asked.threads), KEY)
        _write_tables(asked.out, rows, asked.question)
    if any(row["question"] == asked.question for row in rows):
        print(_write_tables(asked.out, rows, asked.question))
    for task, failure in failed:
        print(f"{task.named} failed: {failure.reason}\n{failure.trace}", file=sys.stderr)
    return 1 if failed else 0


def _in_words(found: Row | Failure) -> str:
    if isinstance(found, Failure):
        return found.reason
    twins = found.get("trained_as", ())
    return "done" + (f", with the same subnets as {' and '.join(twins)}" if twins else "")


def _found(left: Sequence[Task], asked: argparse.Namespace) -> Iterator[tuple[Task, Row | Failure]]:
    """The rows of the tasks as they end; those that read another's run come after all others."""
    work = partial(_run, home=asked.home, threads=asked.threads)
    for is_second in (False, True):
        own = [task for task in left if task.reads_another == is_second]
        yield from fan_out(work, own, asked.workers)


def _run(task: Task, home: Path, threads: int) -> Row:
    torch.set_num_threads(threads)  # in a new process, too
    return run(task, home)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks choice",
        description=choice.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--question", choices=[*QUESTIONS], default="choice")
    parser.add_argument("--data", nargs="+", default=["digits"], help="recipes that train")
    parser.add_argument("--images", nargs="+", default=[], help="as `prenas run --data`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: those of the recipe")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="changes")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="names of arms")
    parser.add_argument("--threads", type=int, default=1, help="of each arm")
    parser.add_argument("--workers", type=int, default=1, help="arms at a time, in processes")
    parser.add_argument("--home", type=Path, default=Path("runs/choice"))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "choice.json")
    parser.add_argument("--dry-run", action="store_true", help="only the plan")
    parser.add_argument("--only-tables", action="store_true", help="from the rows that there are")
    asked = parser.parse_args(words)
    for name in ("threads", "workers"):
        if (given := getattr(asked, name)) < 1:
            parser.error(f"--{name} {given}: give at least 1")
    names = [arm.name for arm in QUESTIONS[asked.question].arms]
    if unknown := [name for name in asked.only if name not in names]:
        parser.error(f"unknown arm {unknown[0]!r}: choose from {'; '.join(names)}")
    if asked.images and len(asked.data) > 1:
        parser.error("--images are those of one recipe: give one --data")
    return asked


def _recipe(data: str, seed: int, asked: argparse.Namespace) -> Recipe:
    recipe = base_recipe(data, asked.epochs, seed, asked.changes)
    if recipe.training is None or recipe.data is None:
        raise SystemExit(f"recipe {data} only searches: choose one that trains")
    return with_data(recipe, asked.images) if asked.images else recipe


def _epochs(recipe: Recipe) -> int:
    training = recipe.training
    assert training is not None, "checked by _recipe"
    if training.epochs is None:
        raise SystemExit("arms are compared by epochs: leave out training.steps")
    return training.epochs


def _print_plan(planned: Sequence[Task], left: Sequence[Task], workers: int) -> None:
    """How many runs there are, which are missing, and about how long they take.

    Args:
        workers: arms at a time; the estimate is for enough cores for all of them.
    """
    print(f"{len(planned)} arms with their seeds, {len(planned) - len(left)} of them done.")
    seconds = 0.0
    for data in dict.fromkeys(task.data for task in left):
        own = [task for task in left if task.data == data]
        one = pipeline.dry_run(own[0].recipe).estimate.total_seconds
        number = sum(task.num_trainings for task in own)
        seconds += one * number
        print(f"{data}: {number} trainings of about {duration(one)} each")
        for task in own:
            print(f"  seed {task.recipe.seed}: {task.arm.name}")
    at_once = min(workers, len(left)) or 1
    beside = f", {at_once} at a time on {usable_cores()} cores" if at_once > 1 else ""
    print(f"About {duration(seconds / at_once)} in all{beside}.", flush=True)


def _conditions(threads: int) -> Row:
    found = environment(Options(threads, rounds=1))
    return {name: found[name] for name in ("commit", "date", "hardware", "versions")}


def _write_tables(out: Path, rows: Sequence[Row], question: str) -> str:
    """Writes the tables and the picture beside the rows; returns the tables."""
    text = document(rows, question)
    out.with_name(f"{out.stem}-{question}.md").write_text(text)
    render(drawing(rows, question), out.with_name(f"{out.stem}-{question}.png"))
    return text
