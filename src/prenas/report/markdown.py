"""The few forms of Markdown that a report needs, valid on GitHub, in editors and for pandoc."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"[\\`*|<\]&~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escape(text: str) -> str:
    """Text that is shown as it is, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] = ()) -> str:
    """A table of cells that are Markdown already; numbers to the right, the `left` heads' not."""
    lines = [heads, [":--" if head in left else "--:" for head in heads], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def link(text: str, target: str) -> str:
    """A link to a file beside the document; `text` is Markdown already."""
    return f"[{text}]({target})"


def picture(name: str, text: str) -> str:
    """A picture as PNG, which every reader shows, that leads to its SVG; `text` is said for it."""
    return link(f"![{escape(text)}]({name}.png)", f"{name}.svg")


def code(text: str, language: str = "") -> str:
    """A block of code; its fence is longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def folded(summary: str, content: str) -> str:
    """Markdown behind a line to click on, where raw HTML is shown; open elsewhere."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"
