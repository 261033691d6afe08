"""The log of a run: what survives a cut, what is read back, and what is refused."""

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenas.runs.log import (
    EpochRecord,
    MetricsLog,
    Position,
    ValidationRecord,
    read_log,
)

EVENTS = ("step", "epoch", "validation", "skipped")
VALIDATES = '{"event": "validation", "epoch": 0, "step": 4, "subnet": 0, %s}'
VALIDATION: dict[str, Any] = {
    **{
        "subnet": 1,
        "costs": {"params": 900},
        "weights": "ema",
        "top1": 0.75,
        "top5": None,
        "loss": 0.5,
    },
    "num_images": 40,
}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Every line, as strict JSON: NaN and Infinity are no numbers there."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# --- cut off and continued -----------------------------------------------------------------------


@given(
    records=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), max_size=12),
    step=st.integers(0, 10),
    lost=st.integers(0, 80),
)
def test_what_is_kept_and_handed_on(
    records: list[tuple[str, int]], step: int, lost: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever a run was cut off, exactly the whole lines up to the step stay."""
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    seen: list[Any] = []
    log = MetricsLog(path, step=0, sinks=[seen.append])
    for number, (event, at) in enumerate(sorted(records, key=lambda record: record[1])):
        log.append(event, epoch=at // 5, step=at, number=number)
    text = path.read_text() if records else ""
    assert [json.loads(line) for line in text.splitlines()] == seen
    path.write_text(text[: max(len(text) - lost, 0)])
    num_whole = path.read_text().count("\n")
    kept = [
        record
        for record in seen[:num_whole]
        if record["step"] < step or (record["step"] == step and record["event"] != "validation")
    ]
    again: list[Any] = []
    log = MetricsLog(path, step=step, sinks=[again.append])
    assert lines_of(path) == kept
    assert again == [record for record in kept if record["step"] == step]
    log.append("epoch", epoch=9, step=99)
    assert lines_of(path) == [*kept, {"event": "epoch", "epoch": 9, "step": 99}]


def test_without_a_path_only_the_sinks_hear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    log = MetricsLog(None, step=3, sinks=[seen.append, seen.append])
    log.append("step", epoch=0, step=4, loss=1.0)
    log.sync()
    assert seen == [{"event": "step", "epoch": 0, "step": 4, "loss": 1.0}] * 2
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", []
    log = MetricsLog(path, step=0, sinks=[seen.append])
    log.append("skipped", epoch=0, step=1, loss=math.nan, reason="the loss is nan", arch="a")
    log.append("step", epoch=0, step=2, loss=1.0, lr=0.1, grad_norm=math.inf)
    assert lines_of(path) == seen
    assert [record["loss"] for record in seen] == [None, 1.0]
    assert seen[1]["grad_norm"] is None


def test_sync_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "metrics.jsonl", []
    log = MetricsLog(path, step=0)
    log.sync()  # nothing there yet
    log.append("epoch", epoch=0, step=1)
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    log.sync()
    assert synced == [path.stat().st_ino]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", []
    log = MetricsLog(path, step=0, sinks=[seen.append])
    log.append("epoch", epoch=0, step=1, loss=1.0, lr=0.1)
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        log.append("epoch", epoch=1, step=2, loss=1.0, lr=0.1)
    assert str(path) in str(raised.value)
    assert len(seen) == 1
    # What a real disk takes of the line is dropped when the run goes on.
    path.unlink()
    path.write_bytes(content + b'{"event": "epoch", "epoch": 1, "st')
    assert [record.epoch for record in read_log(path).epochs] == [0]
    MetricsLog(path, step=1).append("epoch", epoch=1, step=2, loss=0.5, lr=0.1)
    assert [record.loss for record in read_log(path).epochs] == [1.0, 0.5]


def test_a_log_of_the_older_form(tmp_path: Path) -> None:
    """Its lines count no steps: they stay, and the line of an epoch that is redone counts."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"epoch": 0, "loss": 2.0, "lr": 0.1, "images_per_second": 9.0}\n'
        '{"epoch": 1, "loss": 9.0, "lr": 0.1, "images_per_second": 9.0}\n'
    )
    assert read_log(path).position == Position(1, None, 9.0, 0.1, 9.0, 0, None)
    log = MetricsLog(path, step=7)
    log.append("epoch", epoch=1, step=14, loss=1.5, lr=0.05, images_per_second=8.0, skipped=2)
    assert read_log(path).epochs == [
        EpochRecord(0, 2.0, 0.1, 9.0),
        EpochRecord(1, 1.5, 0.05, 8.0, 2),
    ]
    position = read_log(path).position
    assert position is not None
    assert (position.step, position.steps_per_epoch) == (14, 7)
    MetricsLog(path, step=0)  # a training from the initial weights
    assert path.read_text() == ""


# --- reading -------------------------------------------------------------------------------------


def test_reading_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, step=0)
    assert (read_log(path).epochs, read_log(path).validations, read_log(path).position) == (
        [],
        [],
        None,
    )
    log.append("step", epoch=0, step=3, loss=3.0, lr=0.1, grad_norm=None, images_per_second=10.0)
    assert read_log(path).position == Position(0, 3, 3.0, 0.1, 10.0, 0, None)
    log.append("skipped", epoch=0, step=4, loss=math.inf, reason="the loss is inf", arch="a")
    log.append("epoch", epoch=0, step=5, loss=2.0, lr=0.2, images_per_second=30.0, skipped=1)
    log.append("validation", epoch=0, step=5, **VALIDATION)
    assert read_log(path).epochs == [EpochRecord(0, 2.0, 0.2, 30.0, 1)]
    costs = {"params": 900}
    (found,) = read_log(path).validations
    assert found == ValidationRecord(0, 5, 1, costs, "ema", 0.75, None, 0.5, 40)
    assert read_log(path).position == Position(0, 5, 2.0, 0.2, 20.0, 1, 5)
    log.append("step", epoch=1, step=8, loss=math.nan, lr=0.2, images_per_second=30.0)
    position = read_log(path).position
    assert position is not None
    assert math.isnan(position.loss)
    assert (position.step, position.steps_per_epoch) == (8, 5)


def test_an_epoch_of_skipped_steps_has_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, step=0).append("epoch", epoch=0, step=5, loss=math.nan, lr=0.1, skipped=5)
    (epoch,) = read_log(path).epochs
    assert math.isnan(epoch.loss)
    assert epoch.skipped == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "is not a training record"),
        ("", "is not a training record"),
        ("[1]", "is not a training record"),
        ('{"loss": 1.0}', "is not a training record"),
        ('{"epoch": -1}', "is not a training record"),
        ('{"epoch": 0.5}', "is not a training record"),
        ('{"event": "epoch", "epoch": 0}', "is not a training record"),
        ('{"event": "epoch", "epoch": 0, "step": "4"}', "is not a training record"),
        ('{"event": "epoch", "epoch": 0, "step": 4, "lr": 0.1}', "has loss = None"),
        ('{"event": "epoch", "epoch": 0, "step": 4, "loss": true, "lr": 0.1}', "has loss = True"),
        ('{"event": "validation", "epoch": 0, "step": 4, "subnet": "x"}', "has subnet = 'x'"),
        (VALIDATES % '"costs": 3', "has costs = 3, which are not amounts by name"),
        (VALIDATES % '"costs": {"macs": "x"}', "has macs = 'x', which is not a finite number"),
        (VALIDATES % '"costs": {"macs": 3}', "has params = None, which is not a finite number"),
        (VALIDATES % '"params": null', "has params = None, which is not a finite number"),
    ],
)
def test_a_damaged_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = f'{{"epoch": 0, "loss": 1.0, "lr": 0.1}}\n{line}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^line 2 of {path} {message}.*fix or remove"):
        read_log(path).validations if "validation" in line else read_log(path).epochs
    if message == "is not a training record":
        with pytest.raises(ValueError, match="line 2 of"):
            MetricsLog(path, step=5)
    assert path.read_text() == text
