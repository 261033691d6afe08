"""`prenas bench proxies`: how well zero-cost scores predict accuracies that are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from rich.progress import Progress as Bar

from prenas import artifacts
from prenas.cli.output import console
from prenas.cli.tables import duration, print_table
from prenas.values import unknown_name

if TYPE_CHECKING:
    from prenas.bench.agreement import Column, Estimate
    from prenas.bench.groups import Block
    from prenas.bench.record import Record
    from prenas.bench.scoring import Scoring
    from prenas.bench.table import AccuracyTable

_SAVE_SECONDS = 10
_BENCHES = ("proxies",)


def require_bench(what: str) -> None:
    """Raises ValueError, with the benches that there are, for any other word."""
    if what not in _BENCHES:
        raise unknown_name("bench", what, _BENCHES)


def bench_proxies(
    file: Path,
    *,
    space: str | None,
    scores: str | None,
    columns: Sequence[str],
    seeds: int,
    window: float,
    image_size: int | None,
    batch_size: int,
    device: str,
    out: Path | None,
    again: bool,
    dry_run: bool,
) -> None:
    """Scores the architectures of a table, compares with their accuracies, and prints the result.

    Args:
        scores: names with commas between them; None takes all.
        window: of sizes, in per cent.

    Raises:
        ValueError: the table or an option cannot be used; nothing is written.
    """
    from prenas.bench.agreement import NUM_RESAMPLES, compare
    from prenas.bench.scoring import Scoring, complete, score_names
    from prenas.bench.table import read_accuracies
    from prenas.processes import resolve_device
    from prenas.recipe.space_file import find_space

    if not window > 0:
        raise ValueError(f"--window {window:g} must be a positive share of the size, in per cent")
    table = read_accuracies(file, None if space is None else find_space(space), columns)
    names = score_names(table) if scores is None else [one.strip() for one in scores.split(",")]
    where = resolve_device(device)
    scoring = Scoring(
        table, names, num_seeds=seeds, image_size=image_size, batch_size=batch_size, device=where
    )
    kept = _kept(out, scoring, again=again)
    if kept is not None:
        scoring.reuse(kept.values)
    if out is not None and not dry_run:
        artifacts.require_writable(out.parent)
    with console.status("Estimating how long this takes ..."):
        seconds = scoring.seconds()
    height, width = scoring.settings.image_size
    console.print(
        f"{len(table.archs)} architectures of the space {table.space.name}, "
        f"{len(scoring.scores)} scores, {seeds} seed{'s' if seeds > 1 else ''}; networks of their "
        f"own get {batch_size} noise images of {width} x {height} pixels: about "
        f"{duration(seconds)}",
        soft_wrap=True,
    )
    if dry_run:
        return
    _measure(scoring, out, kept, window)
    with console.status(f"Comparing, {NUM_RESAMPLES:,} resamples ..."):
        values = complete({name: scoring.values[name] for name in scoring.scores})
        found = compare(table, values, window=window / 100)
    if out is not None:
        _save(out, scoring, kept, window, found)
    _print(table, found, window)
    if out is not None:
        console.print(f"Written   {out}", soft_wrap=True)


def _kept(out: Path | None, scoring: Scoring, *, again: bool) -> Record | None:
    """The record that is continued; None if there is none yet, or it is replaced.

    Raises:
        ValueError: the file holds something else.
    """
    from prenas.bench.record import read_record

    if out is None or not out.exists():
        return None
    record = read_record(out)
    if again:
        return None
    if record.conditions == scoring.conditions:
        return record
    theirs, ours = record.conditions, scoring.conditions
    differing = [
        f"{name} {getattr(theirs, name)}, now {getattr(ours, name)}"
        for name in type(ours).model_fields
        if getattr(theirs, name) != getattr(ours, name)
    ]
    raise ValueError(
        f"{out} holds scores under other conditions ({'; '.join(differing)}): choose another "
        "--out, or replace it with --again. Nothing was written"
    )


def _measure(scoring: Scoring, out: Path | None, kept: Record | None, window: float) -> None:
    saved = monotonic()

    def save() -> None:
        nonlocal saved
        if out is not None and monotonic() - saved > _SAVE_SECONDS:
            _save(out, scoring, kept, window, ())
            saved = monotonic()

    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("networks", total=None)
        scoring.measure(lambda at, of: bar.update(task, completed=at, total=of), save)


def _save(
    out: Path, scoring: Scoring, kept: Record | None, window: float, columns: Sequence[Column]
) -> None:
    """Writes what there is, together with values of an earlier call that this one did not need."""
    from prenas.bench.record import Record, write_record
    from prenas.selection.preferred import versions_in_use

    values = dict(kept.values) if kept else {}
    for name, found in scoring.values.items():
        more = values.get(name, ())[len(found) :]  # of seeds that this call did not ask for
        values[name] = (*map(tuple, found), *more)
    table = scoring.table
    record = Record(
        conditions=scoring.conditions,
        versions=versions_in_use(),
        space=table.space.name,
        rows=tuple(arch.summary for arch in table.archs),
        window=window / 100,
        values=values,
        columns=tuple(columns),
    )
    write_record(out, record)


# --- tables --------------------------------------------------------------------------------------


def _print(table: AccuracyTable, columns: Sequence[Column], window: float) -> None:
    options = list(table.network_options)
    for column in columns:
        print_table(
            f"{column.name}: {len(table.archs)} accuracies, and how well scores predict them",
            [
                "score",
                "Spearman",
                "Kendall",
                "given counts",
                "given shape",
                f"gain in {window:g} %",
            ],
            [
                (
                    one.score,
                    _cell(one.spearman),
                    _cell(one.kendall),
                    _cell(one.given_counts),
                    _cell(one.given_shape),
                    _cell(one.gain),
                )
                for one in column.agreements
            ],
        )
        for block in column.blocks:
            console.print(f"Warning: {_warning(column.name, block)}", soft_wrap=True)
        if column.blocks:
            console.print()
    counts = " and ".join(table.counts)
    shape = f"the same {', '.join(options)}" if options else "one shape, as all are"
    for line in (
        "mean over seeds [95 % of bootstrap resamples]; - stands where a statistic is undefined",
        f"given counts: rank correlation once the ranks of {counts} are taken away",
        f"given shape: rank correlation among networks of {shape}",
        f"gain: accuracy of the pick less the mean, in windows of {window:g} % of the parameters",
    ):
        console.print(line, soft_wrap=True)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _warning(column: str, block: Block) -> str:
    side = "below" if block.gap < 0 else "above"
    against = "although they are larger" if block.gap < 0 else "although they are smaller"
    return (
        f"in {column}, the {block.num_members} architectures with {block.option} {block.value:g} "
        f"are off as a block: {abs(block.gap):.2f} {side} the nearest other group, {against}. "
        f"Groups vary by {block.deviation:.2f}. The rank correlation with size is "
        f"{block.correlation:+.2f} over all and {block.correlation_elsewhere:+.2f} without them. "
        "Do not use the column over all groups"
    )
