"""The page as one file: its own styles, scripts and data, and nothing from elsewhere."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from prenas import artifacts
from prenas.report.html.content import content_of
from prenas.report.html.library import plotting_library
from prenas.runs.run import Run

_GENERATOR = "prenas report"
_SCRIPTS = ("choice.js", "plots.js", "page.js")
_START = 2048  # bytes of a page that contain the name of its generator


def write_page(runs: Sequence[Run], path: Path, *, with_pictures: bool = True) -> Path:
    """Writes the page of one or several runs as one HTML file.

    Args:
        path: the file; one that is there already must be such a page.
        with_pictures: whether to show images that the subnets classify wrongly.

    Raises:
        ValueError: the plotting library is not installed, the search of a run is not finished, its
            results are damaged or belong to other weights, or something else is in the way. Nothing
            was written then.
    """
    _require_own(path)
    text = document(content_of(runs, with_pictures=with_pictures))
    artifacts.require_writable(path.parent)  # creates it, so not before there is something to write
    artifacts.write_bytes(path, text.encode())
    return path


def document(content: Mapping[str, Any]) -> str:
    """The page for the result of `content_of`.

    Its Content-Security-Policy allows exactly the scripts and the styles that it contains, and no
    connection unless the content is that of a page that follows a training.

    Raises:
        ValueError: the plotting library is not installed.
    """
    style = _asset("page.css")
    scripts = [plotting_library(), *map(_asset, _SCRIPTS)]
    return Template(_asset("page.html")).substitute(
        policy=policy(scripts, style, connects=content["live"] is not None),
        generator=_GENERATOR,
        title=escape(content["title"]),
        style=style,
        content=json_inside_html(content),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def policy(scripts: Sequence[str], style: str, *, connects: bool) -> str:
    """The Content-Security-Policy: only these scripts and this style sheet, and images as data."""
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        f"connect-src {chr(39)}{'self' if connects else 'none'}{chr(39)}; base-uri 'none'; "
        "form-action 'none'"
    )


def json_inside_html(content: Mapping[str, Any]) -> str:
    """JSON that an HTML parser cannot mistake for anything: it contains no `<`."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{b64encode(digest).decode()}'"


def _asset(name: str) -> str:
    return (files("prenas.report.html") / "assets" / name).read_text(encoding="utf-8")


def _require_own(path: Path) -> None:
    """Raises ValueError if something else than an earlier page has this name."""
    if path.is_dir() or path.is_symlink():
        what = "a symbolic link" if path.is_symlink() else "a folder"
        raise ValueError(f"{path} is {what}: choose another file. Nothing was written")
    if path.exists() and _GENERATOR.encode() not in path.open("rb").read(_START):
        raise ValueError(
            f"{path} exists and is not a page of prenas: remove it, or choose another file. "
            "Nothing was written"
        )
