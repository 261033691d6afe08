"""Writes predictions: as a table, as CSV or as JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from prenas import artifacts
from prenas.cli.output import IS_QUIET, console, errors
from prenas.cli.tables import print_table
from prenas.values import printable, unknown_name

if TYPE_CHECKING:
    from prenas.devices.prediction import Prediction

_TABLE = "table"


def chosen_format(form: str | None, as_json: bool, out: Path | None) -> str:
    """The format of the options `--format`, `--json` and `--out`.

    Raises:
        ValueError: they contradict each other, there is no such format, or the file cannot be
            written.
    """
    if as_json and form not in (None, "json"):
        raise ValueError(f"--json and --format {form} both give a format: leave out one")
    chosen = "json" if as_json else form or _TABLE
    if chosen not in (choices := (_TABLE, *_WRITERS)):
        raise unknown_name("format", chosen, choices)
    if out is None:
        return chosen
    if chosen == _TABLE:
        raise ValueError(f"--out {out} needs a format: add --format {' or '.join(_WRITERS)}")
    if out.exists() and not out.is_file():
        raise ValueError(f"--out {out} is not a regular file: name another one")
    return chosen


def require_free(out: Path | None, model: Path, pictures: Iterable[Path]) -> None:
    """Raises ValueError if `--out` cannot be written, or would replace a picture, or a file of the
    model or of a run."""
    if out is None:
        return
    if not out.exists():
        artifacts.require_writable(out.parent)  # makes the folder, once there is something to write
        return
    inputs = (*pictures, *(path for path in model.rglob("*") if path.is_file()))
    if any(path.samefile(out) for path in inputs if path.exists()):
        raise ValueError(f"--out {out} is what is read: name another file. Nothing was written")
    if artifacts.is_of_run_or_model(out):
        raise ValueError(
            f"--out {out} is a file of a run or model: name another file. Nothing was written"
        )


def print_predictions(title: str, predictions: Iterable[Prediction], total: int) -> int:
    """Prints a table, then the unreadable pictures, of which it returns the number."""
    from prenas.data.opening import FORMATS, UNSUPPORTED

    rows, problems = [], []
    for prediction in _watched(predictions, total, shown=True):
        if prediction.error:
            problems.append(f"{prediction.path} cannot be read: {prediction.error}")
        rows += [
            (str(prediction.path) if rank == 0 else "", name, f"{100 * probability:.2f} %")
            for rank, (name, probability) in enumerate(prediction.classes)
        ]
    if rows:
        print_table(title, ["picture", "class", "probability"], rows)
    for problem in problems:
        console.print(problem, soft_wrap=True)
    if any(problem.endswith(UNSUPPORTED) for problem in problems):
        console.print(f"Formats that can be read: {', '.join(FORMATS)}", soft_wrap=True)
    return len(problems)


def write_predictions(
    predictions: Iterable[Prediction], total: int, form: str, num_classes: int, out: Path | None
) -> int:
    """Writes CSV or JSON lines, each as soon as it is known.

    Args:
        total: number of predictions.
        form: the name of the format.
        num_classes: classes per picture.
        out: a file, which appears when everything is written; None for the standard output.

    Returns:
        The number of unreadable pictures.
    """
    num_failed, on_terminal = 0, out is None and console.is_terminal
    with _stream(out) as stream:
        write = _WRITERS[form](stream, num_classes, on_terminal)
        # A bar would appear among predictions on the same terminal.
        for prediction in _watched(predictions, total, shown=not on_terminal):
            num_failed += prediction.error is not None
            write(prediction)
    if out is not None:
        failed = f", of which {num_failed:,} cannot be read" if num_failed else ""
        console.print(f"Written   {out}: {total:,} pictures{failed}", soft_wrap=True)
    return num_failed


def _watched(predictions: Iterable[Prediction], total: int, *, shown: bool) -> Iterator[Prediction]:
    """The same predictions, with a bar if the standard error is a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("Predicting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures, left"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not shown or not errors.is_terminal or IS_QUIET,
    )
    with bar:
        yield from bar.track(predictions, total=total)


@contextmanager
def _stream(out: Path | None) -> Iterator[IO[str]]:
    """What predictions are written to."""
    if out is None:
        yield io.StringIO() if IS_QUIET else console.file
        return
    with artifacts.writing(out) as file:
        # A byte of a file name that is not UTF-8 is written as on the standard output.
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        yield text
        text.detach()  # writes what is left; the file is closed by whoever opened it


class _Lines:
    r"""Takes the rows of a CSV writer and ends them with `\n`.

    With `\n` as its own line terminator, Python 3.11's writer would not quote a cell with `\r`.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, row: str) -> None:
        self._stream.write(row.removesuffix("\r\n") + "\n")


Writer = Callable[["Prediction"], object]


def _csv_writer(stream: IO[str], num_classes: int, on_terminal: bool) -> Writer:
    """One row per picture, below the names of the columns, which depend on the model alone."""
    table = csv.writer(_Lines(stream))
    numbers = ["", *(f"_{rank}" for rank in range(2, num_classes + 1))]
    columns = [f"{name}{number}" for number in numbers for name in ("class", "probability")]
    table.writerow(["path", *columns, "error"])

    def write(prediction: Prediction) -> None:
        cells: list[object] = [cell for pair in prediction.classes for cell in pair]
        cells += [""] * (len(columns) - len(cells))
        row: Sequence[object] = [prediction.path, *cells, prediction.error or ""]
        if on_terminal:  # which names must not steer
            row = [printable(str(cell), keeps="") for cell in row]
        table.writerow(row)

    return write


def _json_writer(stream: IO[str], num_classes: int, on_terminal: bool) -> Writer:
    """One object per line, in ASCII, so that a terminal needs no care."""

    def write(prediction: Prediction) -> None:
        stream.write(json.dumps(prediction.as_dict(), allow_nan=False) + "\n")

    return write


_WRITERS = {"csv": _csv_writer, "json": _json_writer}
