"""Where the command line writes: its two consoles and its log, which print text and nothing else.

Names of files, classes and tensors can contain anything, so everything that is written passes
through `prenas.values.printable`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prenas.values import printable

if TYPE_CHECKING:
    from rich.text import Text

# If a run has several processes, as torchrun numbers them, only the first one prints.
IS_QUIET = os.environ.get("RANK", "0") != "0"


class PlainConsole(Console):
    """Prints text as it is: no markup, and control characters escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Lines, titles and cells of tables all pass through here."""
        return super().render_str(printable(text), **options)


console = PlainConsole(quiet=IS_QUIET)
errors = PlainConsole(stderr=True)


class PlainFormatter(logging.Formatter):
    """Formats log messages, control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return printable(super().format(record))


def set_up_output(who: str) -> None:
    """Prepares the streams and the log of this process.

    Args:
        who: what log messages start with, to tell several processes apart.
    """
    for stream in (sys.stdout, sys.stderr):  # also for a terminal that cannot show every letter
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(f"{who}%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
