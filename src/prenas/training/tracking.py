"""Experiment trackers, through accelerate: TensorBoard, Weights & Biases, MLflow and others.

A tracker only follows: it decides nothing, and what goes wrong with it never stops a training.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prenas import artifacts
from prenas.runs.log import Sink

_logger = logging.getLogger(__name__)
_PROJECT = "prenas"  # under which trackers that serve many projects file the run


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError unless every tracker is known and installed; names those that are."""
    if not names:
        return
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    except ImportError:
        raise ValueError(
            f"tracking by {', '.join(names)} needs accelerate, which is not installed: "
            f"pip install accelerate {' '.join(names)}"
        ) from None
    installed = sorted(map(str, get_available_trackers()))
    for name in names:
        if name in installed:
            continue
        missing = sorted(set(map(str, LOGGER_TYPE_TO_CLASS)) - set(installed))
        remedy = f"pip install {name}" if name in missing else "name one of these"
        raise ValueError(
            f"tracker {name!r} is {'not installed' if name in missing else 'unknown'}: {remedy}. "
            f"Installed: {', '.join(installed) or 'none'}; others: {', '.join(missing)}"
        )


@contextmanager
def open_trackers(
    names: Sequence[str],
    folder: Path,
    run_name: str,
    config: Mapping[str, Any],
    first_step: int,
) -> Iterator[list[Sink]]:
    """Starts trackers, gives one sink for each, and finishes them at the end.

    One process of a training calls it. No process group is made, no device chosen.

    Args:
        names: as accelerate calls them; TensorBoard writes to `FOLDER/tensorboard`.
        config: the recipe's fields by dotted name.
        first_step: steps finished before; TensorBoard drops what an earlier call wrote from this
            step on.

    Raises:
        ValueError: a tracker is unknown, not installed, or does not start.
    """
    check_trackers(names)
    with ExitStack() as stack:
        if names:
            stack.enter_context(_accelerate_without_its_state())
        sinks = []
        for name in dict.fromkeys(names):
            try:
                tracker = _start(name, folder, run_name, first_step)
                stack.callback(_finish, name, tracker)
                _store(name, tracker, config)
            except Exception as error:  # each library has errors of its own
                raise ValueError(
                    f"tracker {name!r} does not start ({type(error).__name__}: {error}): mend "
                    "that, or train without it"
                ) from error
            sinks.append(_sink(name, tracker))
        yield sinks


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log's record, by the names that trackers show: `train/loss`, ..."""
    if record["event"] == "step":
        prefix, names = "train", ["loss", "lr", "grad_norm", "images_per_second"]
    elif record["event"] == "epoch":
        prefix, names = "epoch", ["loss", "lr", "images_per_second", "skipped"]
    elif record["event"] == "validation":
        weights = "" if record["weights"] == "trained" else f"-{record['weights']}"
        prefix, names = f"validation{weights}/{record['subnet']:02d}", ["top1", "top5", "loss"]
    else:
        return {}
    return {f"{prefix}/{n}": record[n] for n in names if record.get(n) is not None}


def _start(name: str, folder: Path, run_name: str, first_step: int) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    tracker_type = LOGGER_TYPE_TO_CLASS[name]
    options: dict[str, Any] = {"run_name": run_name}
    if tracker_type.requires_logging_directory:
        options["logging_dir"] = str(folder)
    # What accelerate calls the run's name is a folder to the first, and a project to the second.
    if name == "tensorboard":
        options |= {"run_name": artifacts.TENSORBOARD, "purge_step": first_step}
    elif name == "wandb":
        options |= {"run_name": _PROJECT, "name": run_name, "dir": str(folder)}
    elif name == "mlflow":
        options["experiment_name"] = _PROJECT
    tracker = tracker_type(**options)
    # Else each call asks accelerate's PartialState for its rank: that would choose a device, set
    # numbers of threads, and join or make a process group.
    tracker.main_process_only = False
    tracker.start()
    return tracker


def _store(name: str, tracker: Any, config: Mapping[str, Any]) -> None:
    """Hands the recipe over, as plain values."""
    plain = {
        field: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for field, value in config.items()
    }
    if name != "tensorboard":
        tracker.store_init_configuration(plain)
        return
    from torch.utils.tensorboard.summary import hparams

    # accelerate's way makes two folders, named by the clock, at every start.
    for document in hparams(plain, {}):  # type: ignore[no-untyped-call]
        tracker.tracker.file_writer.add_summary(document)


def _sink(name: str, tracker: Any) -> Sink:
    has_failed = False

    def sink(record: Mapping[str, Any]) -> None:
        nonlocal has_failed
        values = scalars(record)
        if has_failed or not values:
            return
        try:
            tracker.log(values, step=record["step"])
        except Exception as error:  # a network that is down must not cost a training
            has_failed = True  # nor the time of one more attempt at every record
            _logger.warning(
                "tracker %s failed (%s: %s): it gets nothing more of this training, which goes "
                "on; all numbers are in %s",
                name,
                type(error).__name__,
                error,
                artifacts.METRICS,
            )

    return sink


def _finish(name: str, tracker: Any) -> None:
    try:
        tracker.finish()
    except Exception as error:
        _logger.warning("tracker %s did not finish (%s: %s)", name, type(error).__name__, error)


class _PlainLog(logging.LoggerAdapter[logging.Logger]):
    """What accelerate's trackers ask of a log."""

    def warning_once(self, message: str) -> None:
        self.warning(message)


@contextmanager
def _accelerate_without_its_state() -> Iterator[None]:
    """For a while, accelerate's trackers speak through a plain log.

    Theirs refuses to speak, even to say nothing, before PartialState is there; see `_start`.
    """
    from accelerate import tracking

    theirs = tracking.logger
    tracking.logger = _PlainLog(logging.getLogger(tracking.__name__), {})
    try:
        yield
    finally:
        tracking.logger = theirs
