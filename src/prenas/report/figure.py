"""Draws every picture in one style, without a display, and writes it atomically."""

from __future__ import annotations

from collections.abc import Callable
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


def render(draw: Callable[[Figure], None], *paths: Path) -> None:
    """Draws a new figure and writes it to every path, in the format of the suffix."""
    forms = [path.suffix.removeprefix(".") for path in paths]
    for path, picture in zip(paths, drawn(draw, *forms), strict=True):
        artifacts.write_bytes(path, picture)


def drawn(draw: Callable[[Figure], None], *forms: str) -> list[bytes]:
    """Draws a new figure; returns it in every format, such as `png`."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE]):  # independent of what the caller has set
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
