"""The Markdown that a report needs, valid on GitHub, in editors and for pandoc."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prenas.values import printable

_SPECIAL = re.compile(r"[\\`*|<\]&~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escape(text: str) -> str:
    """Escapes text, so that it is shown literally and on one line."""
    return _SPECIAL.sub(r"\\\g<0>", printable(" ".join(text.split())))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] = ()) -> str:
    """A table of Markdown cells; columns are right-aligned, except those in `left`."""
    lines = [heads, [":--" if head in left else "--:" for head in heads], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def link(text: str, target: str) -> str:
    """A link to a file near the document; `text` is already Markdown."""
    return f"[{text}]({target})"


def picture(name: str, text: str) -> str:
    """A PNG picture, which every reader shows, linked to its SVG; `text` is its alternative."""
    return link(f"![{escape(text)}]({name}.png)", f"{name}.svg")


def code(text: str, language: str = "") -> str:
    """A block of code; its fence is longer than any fence in the text."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def folded(summary: str, content: str) -> str:
    """Markdown that opens with a click; it is always open in readers that ignore HTML."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"
