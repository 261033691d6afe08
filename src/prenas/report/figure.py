"""Draws every picture in one style, without a display, and writes it atomically."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prenas import artifacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue and vermilion from Okabe and Ito's palette: distinct for every kind of colour vision, and one
# is darker than the other in print.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#555555"

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.hashsalt": "prenas",  # equal pictures give equal files
}
_DPI = 150
_FALLBACKS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari",
    "WenQuanYi Micro Hei", "Arial Unicode MS", "Hiragino Sans",
)  # fmt: skip
"""Fonts for letters that DejaVu lacks; used if they are installed."""


def render(draw: Callable[[Figure], None], *paths: Path) -> None:
    """Draws a new figure and writes it to every path, in the format of the suffix."""
    forms = [path.suffix.removeprefix(".") for path in paths]
    for path, picture in zip(paths, drawn(draw, *forms), strict=True):
        artifacts.write_bytes(path, picture)


@cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import get_font_names

    installed = {*get_font_names()}
    return [*_STYLE["font.sans-serif"], *(name for name in _FALLBACKS if name in installed)]


def can_draw(text: str) -> bool:
    """Whether some font has all letters of a text; boxes would be drawn for the others."""
    from matplotlib.font_manager import findfont, get_font

    fonts = [get_font(findfont(name)) for name in _fonts()]
    return all(any(font.get_char_index(ord(letter)) for font in fonts) for letter in text)


def drawn(draw: Callable[[Figure], None], *forms: str) -> list[bytes]:
    """Draws a new figure; returns it in every format, such as `png`."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    own = {**_STYLE, "font.sans-serif": _fonts()}
    with style.context(["default", own]), warnings.catch_warnings():  # whatever the caller has set
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # see can_draw
        figure = Figure(dpi=_DPI)
        FigureCanvasAgg(figure)
        draw(figure)
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)  # once: every file would do it again, and draw twice for it
            figure.set_layout_engine(None)
        pictures = []
        for form in forms:
            buffer = BytesIO()
            metadata = {"Date": None} if form == "svg" else None
            figure.savefig(buffer, format=form, dpi=_DPI, metadata=metadata)
            pictures.append(buffer.getvalue())
    return pictures
