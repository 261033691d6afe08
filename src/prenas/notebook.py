"""Jupyter notebooks: runs that show themselves, and a bar that needs no extension.

Importing this module tells IPython, if one is running, how to show a run and a preferred set.
`import prenas` imports it as soon as IPython is there.
"""

from __future__ import annotations

import sys
import time
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from prenas.report.sections import RunSoFar
    from prenas.runs.run import Run
    from prenas.selection.preferred import PreferredSet

_SECONDS_BETWEEN = 0.2  # between two updates of a bar: each is a message to the browser


def register() -> None:
    """Tells the running IPython, if there is one, how to show our objects."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        formatter = shell.display_formatter.ipython_display_formatter
        formatter.for_type_by_name("prenas.runs.run", "Run", show_run)
        formatter.for_type_by_name("prenas.selection.preferred", "PreferredSet", show_preferred)


def show_run(run: Run) -> None:
    """Shows a run as far as it is: its subnets as a table, their accuracies, what to do next.

    Of a damaged run, it shows what the error says.
    """
    from prenas import artifacts
    from prenas.report.markdown import code, escape
    from prenas.report.page import read_so_far
    from prenas.report.sections import subnets
    from prenas.runs.status import read_status

    if not run.is_searched:
        return _show_text(f"{escape(str(run.folder))}: nothing is chosen yet.", repr(run))
    try:
        so_far, status = read_so_far(run), read_status(run.folder)
    except ValueError as error:
        return _show_text(escape(str(error)), str(error))
    parts = subnets(so_far._replace(models={}))  # its links would start in the run folder
    page = run.folder / artifacts.PAGE
    if so_far.models:
        parts.append(f"Models in {escape(str(run.folder / artifacts.SUBNETS))}.")
    if page.exists():
        parts.append(f"To choose one by eye, open {escape(str(page))} in a browser.")
    if status.next_command is not None:
        parts += ["Next:", code(status.next_command)]
    _show_text("\n\n".join(parts), repr(run))
    if so_far.rows:
        _show_accuracies(so_far)


def show_preferred(preferred: PreferredSet) -> None:
    """Shows the subnets of a preferred set as a table."""
    from prenas.report.sections import RunSoFar, subnets

    so_far = RunSoFar(
        folder="",
        preferred=preferred,
        epochs=(),
        num_epochs=None,
        validations=(),
        rows=(),
        best=None,
        models={},
        images=None,
        calibration=None,
    )
    plain = "\n".join(subnet.arch.summary for subnet in preferred.subnets)
    _show_text("\n\n".join(subnets(so_far)), plain)


def _show_text(markdown: str, plain: str) -> None:
    from IPython.display import display

    display({"text/markdown": markdown, "text/plain": plain}, raw=True)  # type: ignore[no-untyped-call]


def _show_accuracies(run: RunSoFar) -> None:
    from IPython.display import Image, display

    from prenas.report.page import accuracy_picture

    picture = accuracy_picture(run)
    display(Image(picture, width=640, alt="Accuracy of every subnet over its costs"))  # type: ignore[no-untyped-call]


class NotebookBar:
    """A bar in the output of a cell, with the methods of rich's bars that are used here.

    rich needs the extension ipywidgets for this, and shows nothing without it. A bar of HTML works
    in every notebook, and stays in the saved file.
    """

    def __init__(self) -> None:
        from IPython.display import display

        content = self._content("", 0, None)
        self._handle = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._shown = 0.0

    def add_task(self, description: str, total: float | None) -> TaskID:
        """Begins the only task; returns its number."""
        from rich.progress import TaskID

        return TaskID(0)

    def update(self, task: TaskID, *, total: float, completed: float, description: str) -> None:
        """Moves the bar, at most five times a second."""
        now = time.monotonic()
        if completed < total and now - self._shown < _SECONDS_BETWEEN:
            return
        self._shown = now
        self._handle.update(self._content(description, completed, total), raw=True)

    @staticmethod
    def _content(text: str, completed: float, total: float | None) -> dict[str, str]:
        share = f'value="{completed:g}" max="{total:g}"' if total is not None else ""
        percent = f"{100 * completed / total:.0f} %: " if total else ""
        return {
            "text/html": f"Training <progress {share}></progress> {percent}{escape(text)}",
            "text/plain": f"Training {percent}{text}",
        }


register()
