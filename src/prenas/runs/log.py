"""The log of a training: one JSON object per line in `metrics.jsonl`.

Every record has its `event`, its `epoch` (from 0) and its `step` (number of finished steps):

- `step`: loss and grad_norm, the means over the steps since the previous record without skipped
  ones; lr of the last step; images_per_second since the start of the epoch, or of this call;
- `epoch`: loss, lr and images_per_second of a finished epoch; skipped, its number of skipped steps;
- `validation`: subnet, costs, weights ("trained" or "ema"), top1, top5, loss, num_images; precision
  of the networks unless it is fp32;
- `skipped`: loss, reason and archs (ids) of a skipped step.

Lines without `event` are epochs in an older format, which did not count steps. Validations in it
have `params` instead of `costs`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from prenas import artifacts
from prenas.cost import size_axis
from prenas.files import load_json, read_bytes
from prenas.values import MOST_AMOUNT

Sink = Callable[[Mapping[str, Any]], None]
"""Called with every record that is written."""

_MOST_BYTES = 2**30
_NUM_RECENT = 20  # records from which the present speed is taken


class EpochRecord(NamedTuple):
    """A finished epoch, as the log records it."""

    epoch: int
    """From 0."""
    loss: float
    """Mean over the steps of the epoch; nan if every step was skipped."""
    lr: float
    """Learning rate of the last step."""
    images_per_second: float | None
    """None if it was not measured."""
    skipped: int = 0
    """Number of steps skipped because of a non-finite loss or gradient."""


class ValidationRecord(NamedTuple):
    """The accuracy of one preferred subnet on the validation images, during training."""

    epoch: int
    step: int
    subnet: int
    """Its number in the preferred set."""
    costs: dict[str, int]
    """Costs by the name of their axis (`prenas.cost`)."""
    weights: str
    """`trained`, or `ema` for their moving average."""
    top1: float
    """Share of images, 0 to 1."""
    top5: float | None
    loss: float
    num_images: int


class Position(NamedTuple):
    """How far a training is, according to its log."""

    epoch: int
    """The epoch of the last record, from 0."""
    step: int | None
    """Number of finished steps; None in logs of the older format."""
    loss: float
    """nan if all steps since the record before were skipped."""
    lr: float
    images_per_second: float | None
    """Median of the last records; None if it was not measured."""
    skipped: int
    """Number of steps skipped since the start."""
    steps_per_epoch: int | None
    """None before the end of the first epoch, and in logs of the older format."""


class MetricsLog:
    """Appends records to a file and passes them to sinks; without a path, only to the sinks."""

    def __init__(self, path: Path | None, *, step: int, sinks: Sequence[Sink] = ()) -> None:
        """Opens the log of a training that continues after `step` finished steps, 0 for a new one.

        Records of later steps, from a run that was interrupted, are removed, and so are validations
        at `step`, which will be repeated. The remaining records of `step` are passed to the sinks
        again, so that a tracker which drops everything from `step` on misses nothing.

        Raises:
            ValueError: a line is damaged; the message names the file and the line.
        """
        self._path, self._sinks = path, sinks
        if path is None or not path.exists():
            return
        kept = [record for _, record in _records(path) if _is_kept(record, step)]
        artifacts.write_bytes(path, "".join(map(_as_line, kept)).encode())
        for record in kept:
            if record.get("step") == step:
                self._serve(record)

    def append(self, event: str, *, epoch: int, step: int, **numbers: Any) -> None:
        """Writes one line and passes it to every sink; non-finite numbers become null.

        Raises:
            OSError: the line cannot be written, e.g. on a full disk; the message names the file.
        """
        fields = {"event": event, "epoch": epoch, "step": step, **numbers}
        record = {name: _finite_or_none(value) for name, value in fields.items()}
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(_as_line(record))
            except OSError as error:  # the error of a write does not name the file
                raise artifacts.cannot_write(self._path, error) from error
        self._serve(record)

    def sync(self) -> None:
        """Syncs all lines to the disk, so that no checkpoint is ahead of the log after a crash."""
        if self._path is not None and self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def _serve(self, record: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink(record)


class LogSoFar:
    """The content of a log.

    The properties raise ValueError, with file and line, if a value is not a number.
    """

    def __init__(self, records: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._records = records

    @property
    def epochs(self) -> list[EpochRecord]:
        """The finished epochs in order; empty if there is no log yet."""
        # An older log may contain an epoch twice after an interruption: the last record counts.
        epochs = {}
        for place, record in self._records:
            if _is_epoch(record):
                epochs[record["epoch"]] = EpochRecord(
                    record["epoch"],
                    math.nan if _is_null(record, "loss") else _number(record, "loss", place),
                    _number(record, "lr", place),
                    _optional(record, "images_per_second", place),
                    int(_optional(record, "skipped", place) or 0),
                )
        return list(epochs.values())

    @property
    def validations(self) -> list[ValidationRecord]:
        """The validations during the training, in order; empty if there are none."""
        return [
            ValidationRecord(
                epoch=record["epoch"],
                step=record["step"],
                subnet=int(_number(record, "subnet", place)),
                costs=_costs(record, place),
                weights=str(record.get("weights", "trained")),
                top1=_number(record, "top1", place),
                top5=_optional(record, "top5", place),
                loss=math.nan if _is_null(record, "loss") else _number(record, "loss", place),
                num_images=int(_number(record, "num_images", place)),
            )
            for place, record in self._records
            if record.get("event") == "validation"
        ]

    @property
    def position(self) -> Position | None:
        """How far the training is; None before its first record."""
        trained = [(p, r) for p, r in self._records if r.get("event") == "step" or _is_epoch(r)]
        if not trained:
            return None
        place, last = trained[-1]
        skipped = [r for _, r in self._records if r.get("event") == "skipped"]
        loss = math.nan if _is_null(last, "loss") else _number(last, "loss", place)
        if skipped and skipped[-1]["step"] > last.get("step", math.inf):
            last, loss = {**last, **{n: skipped[-1][n] for n in ("epoch", "step")}}, math.nan
        speeds = [_optional(r, "images_per_second", p) for p, r in trained[-_NUM_RECENT:]]
        known = [speed for speed in speeds if speed]
        ends = [r for _, r in trained if _is_epoch(r) and "step" in r]
        return Position(
            epoch=last["epoch"],
            step=last.get("step"),
            loss=loss,
            lr=_number(last, "lr", place),
            images_per_second=median(known) if known else None,
            skipped=len(skipped),
            # The first one: the last epoch of a training may be a part of one.
            steps_per_epoch=ends[0]["step"] // (ends[0]["epoch"] + 1) if ends else None,
        )


def read_log(path: Path) -> LogSoFar:
    """Reads a log; a missing one is empty.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """
    return LogSoFar(list(_records(path)))


def _is_kept(record: Mapping[str, Any], step: int) -> bool:
    if "event" not in record:
        return step > 0
    is_repeated = record["event"] == "validation" and record["step"] == step
    return bool(record["step"] <= step) and not is_repeated


def _is_epoch(record: Mapping[str, Any]) -> bool:
    """Whether a record is an epoch; the older format has other records without `event` too."""
    if "event" in record:
        return bool(record["event"] == "epoch")
    return {"loss", "lr"} <= record.keys()


def _as_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _finite_or_none(value: Any) -> Any:
    """None for non-finite numbers, which JSON cannot express."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_null(record: Mapping[str, Any], name: str) -> bool:
    return name in record and record[name] is None


def _number(record: Mapping[str, Any], name: str, place: str) -> float:
    value = record.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not abs(value) <= MOST_AMOUNT  # also for nan
    ):
        raise ValueError(
            f"{place} has {name} = {value!r}, which is not a finite number: fix or remove the file"
        )
    return value


def _costs(record: Mapping[str, Any], place: str) -> dict[str, int]:
    costs = record.get("costs", {"params": record.get("params")})
    if not isinstance(costs, dict):
        raise ValueError(
            f"{place} has costs = {costs!r}, which are not amounts by name: fix or remove the file"
        )
    return {
        name: int(_number(costs, name, place)) for name in dict.fromkeys([*costs, size_axis().name])
    }


def _optional(record: Mapping[str, Any], name: str, place: str) -> float | None:
    return None if record.get(name) is None else _number(record, name, place)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line and file, record) of every line, except an incomplete last one.

    Raises:
        ValueError: a line is not a training record; the message names it.
    """
    if not path.exists():
        return
    content = read_bytes(path, _MOST_BYTES)
    text = content.decode("utf-8", errors="replace")  # invalid text is refused as JSON below
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        place = f"line {number} of {path}"
        try:
            record = load_json(line)
        except ValueError:
            record = None
        counts = ("epoch", "step") if isinstance(record, dict) and "event" in record else ("epoch",)
        if not isinstance(record, dict) or any(
            type(record.get(name)) is not int or not 0 <= record[name] <= MOST_AMOUNT
            for name in counts
        ):
            raise ValueError(f"{place} is not a training record: fix or remove the file")
        yield place, record
