"""How the best subnet does on each class: a table, and a picture of its confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prenas import artifacts
from prenas.report.figure import can_draw
from prenas.report.forms import NONE, percent
from prenas.report.markdown import escape, picture, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prenas.evaluation.accuracy import Evaluation, Metrics
    from prenas.report.sections import RunSoFar
from prenas.values import plural, printable

MOST_ROWS = 30
"""Classes in a table, at most."""
_MOST_NAMED = 40  # classes whose names fit along the sides of the picture
_MOST_COUNTED = 25  # classes whose numbers fit into the cells


class ClassResult(NamedTuple):
    """The results on one class."""

    name: str
    num_right: int
    num_images: int
    taken_for: str | None
    """The class that its images are most often mistaken for; None if there is none, or unknown."""

    @property
    def accuracy(self) -> float:
        """Share of its images that are classified correctly."""
        return self.num_right / self.num_images


def class_results(metrics: Metrics, names: Sequence[str] | None) -> list[ClassResult]:
    """The classes that have images, the weakest first; empty if their results are not known.

    Args:
        names: of the classes; None for their numbers.
    """
    known = list(names or ())
    found = []
    for label, (right, number) in enumerate(metrics.per_class or ()):
        if number:
            row = metrics.confusion[label] if metrics.confusion is not None else ()
            other = max((n for n in range(len(row)) if n != label), key=row.__getitem__, default=0)
            taken = _name(known, other) if row and row[other] and other != label else None
            found.append(ClassResult(_name(known, label), right, number, taken))
    return sorted(found, key=lambda one: (one.accuracy, -one.num_images))


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def shown_split(row: Evaluation) -> str:
    """The split whose classes are shown: test if there is one, because it chose nothing."""
    return "test" if "test" in row.splits else next(iter(row.splits))


def classes(run: RunSoFar) -> list[str]:
    """The section of the report."""
    if run.best is None or not run.rows[run.best].splits:
        return []
    split = shown_split(run.rows[run.best])
    metrics = run.rows[run.best].splits[split]
    names = None if run.images is None else run.images.class_names
    found = class_results(metrics, names)
    if not found or metrics.balanced_accuracy is None:
        return []
    rows = [
        [
            escape(one.name),
            f"{one.num_images:,}",
            percent(one.accuracy),
            escape(one.taken_for) if one.taken_for else NONE,
        ]
        for one in found[:MOST_ROWS]
    ]
    left_out = len(found) - len(rows)
    parts = [
        "## Classes",
        f"Subnet {run.best}, the best by validation, on {split}: top-1 {percent(metrics.top1)} %, "
        f"balanced accuracy {percent(metrics.balanced_accuracy)} %. The balanced accuracy is the "
        "mean over the classes, so a class with few images counts as much as one with many."
        + (f" The {plural(left_out, 'best class', 'best classes')} not shown." if left_out else ""),
    ]
    if metrics.confusion is not None:
        parts.append(
            picture(f"{artifacts.REPORT_PICTURES}/confusion", "Which class is taken for which")
        )
    heads = ["class", "images", "right, %", "most often taken for"]
    parts.append(table(heads, rows, left=["class", "most often taken for"]))
    return parts


def draw_confusion(figure: Figure, metrics: Metrics, names: Sequence[str] | None) -> None:
    """Draws the confusion matrix: a row per class, in % of its images; darker means more."""
    import numpy as np

    assert metrics.confusion is not None, "drawn only where there is one"
    counts = np.array(metrics.confusion, dtype=float)
    number = len(counts)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.2, 0.34 * number + 1.6), 11.0)
    figure.set_size_inches(side, side)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.grid(visible=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    figure.suptitle("% of the images of each class")  # may be wider than the matrix
    ticks: dict[str, Any] = {}
    if number <= _MOST_NAMED:
        named = [_shortened(_name(list(names or ()), label)) for label in range(number)]
        labels = [name if can_draw(name) else str(label) for label, name in enumerate(named)]
        ticks = {"ticks": range(number), "labels": labels}
    axes.set_xticks(**ticks, rotation=90) if ticks else None
    axes.set_yticks(**ticks) if ticks else None
    if number <= _MOST_COUNTED:
        for row, column in np.argwhere(counts > 0):
            share = shares[row, column]
            colour = "white" if share > 55 else "black"
            text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(column, row, f"{share:.0f}", **text)


def _shortened(name: str) -> str:
    """A class name that fits next to the picture; matplotlib would read $ as mathematics."""
    shown = printable(name, keeps="")
    short = shown if len(shown) <= 16 else f"{shown[:15]}…"
    return short.replace("$", r"\$")
