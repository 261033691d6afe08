"""`prenas export`: files of handed-over models, and a table of what was measured of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prenas import artifacts
from prenas.cli.output import console
from prenas.cli.tables import print_table

if TYPE_CHECKING:
    from prenas.devices.exporting import Exported

_ANY = "dynamic"


def export_all(
    target: Path,
    formats: Sequence[str],
    *,
    int8: str | None,
    batch: str,
    opset: int | None,
    image_size: int | None,
    to: Path | None,
    data: Sequence[str],
    most_drop: float,
    threads: int,
) -> None:
    """Exports a model, or all handed-over models of a run, in every format.

    Raises:
        ValueError: an option is unusable, or a file does not compute what its model does. Files
            that were exported before are kept.
    """
    from prenas.devices.exporting import export
    from prenas.devices.formats import get_format

    models, size = _models(target), _batch(batch)
    for name in formats:
        get_format(name)  # what is missing is named before anything is written
    if to is not None and len(models) * len(formats) > 1:
        raise ValueError(
            f"{to} is one folder, but {len(models) * len(formats)} files would be written: leave "
            "out --to, or export one model in one format"
        )
    done = []
    for model in models:
        for name in formats:
            with console.status(f"Writing {model} as {name} ..."):
                found = export(
                    model,
                    name,
                    int8=int8,
                    batch=size,
                    opset=opset,
                    image_size=image_size,
                    out=to,
                    data=data,
                    most_drop=most_drop,
                    threads=threads,
                )
            done.append(found)
            console.print(f"Written   {found.folder / found.card.file}", soft_wrap=True)
    _print(target, done)


def _models(target: Path) -> list[Path]:
    """The model folder, or those of a run."""
    if (target / artifacts.MODEL_ARCH).exists() or not target.is_dir():
        return [target]
    found = sorted(path.parent for path in target.glob(f"{artifacts.SUBNETS}/*/arch.json"))
    if not found and (target / artifacts.RECIPE).exists():
        from prenas.runs.status import read_status

        following = read_status(target).next_command or f"prenas specialize {target}"
        raise ValueError(f"no subnet of {target} is handed over yet: run {following} first")
    return found or [target]


def _batch(text: str) -> int | None:
    if text == _ANY:
        return None
    from prenas.devices.card import MOST_IMAGES

    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_IMAGES:
        raise ValueError(f"--batch is {text!r}: write dynamic, or a number from 1 to {MOST_IMAGES}")
    return int(text)


def _print(target: Path, done: Sequence[Exported]) -> None:
    from prenas.data import UNDIVIDED

    first = done[0].card
    of_split = "" if first.compared_on == UNDIVIDED else f"{first.compared_on} "
    on = "images" if first.agreement.top1 is None else f"{of_split}images"
    images = first.batch or 1
    print_table(
        f"{target}: files compared with their models on {first.agreement.num_images:,} {on}; times "
        f"of {images} {'image' if images == 1 else 'images'}, {first.threads} "
        f"{'thread' if first.threads == 1 else 'threads'}",
        [
            "file",
            "MB",
            "logits differ by",
            "same class, %",
            "top-1, %",
            "of the model",
            "ms",
            "torch, ms",
        ],
        [
            (
                str(one.folder / one.card.file),
                f"{one.card.size_bytes / 1e6:.2f}",
                f"{one.card.agreement.difference:.1e}",
                f"{100 * one.card.agreement.same_class:.2f}",
                _percent(one.card.agreement.top1),
                _percent(one.card.agreement.top1_of_network),
                f"{one.card.milliseconds['int8' if one.card.int8 else 'float32']:.4g}",
                f"{one.card.milliseconds['torch']:.4g}",
            )
            for one in done
        ],
    )
    for one in done:
        for note in one.card.notes:
            console.print(f"{one.folder}: {note}", soft_wrap=True)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
