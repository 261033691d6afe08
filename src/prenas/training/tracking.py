"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, each through its own library.

A tracker only receives numbers. It has no influence on the training and cannot stop it by failing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from prenas import artifacts
from prenas.runs.log import Sink
from prenas.values import unknown_name

_logger = logging.getLogger(__name__)
_PROJECT = "prenas"  # the project of the run in trackers that serve many projects


class _Run(NamedTuple):
    """What a tracker receives when it starts."""

    folder: Path
    name: str
    config: Mapping[str, bool | int | float | str]
    first_step: int


_Log = Callable[[Mapping[str, float], int], object]
"""Receives (numbers by name, step)."""


@contextmanager
def _tensorboard(run: _Run) -> Iterator[_Log]:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    folder = run.folder / artifacts.TENSORBOARD
    with SummaryWriter(folder, purge_step=run.first_step) as writer:
        # `add_hparams` would create another folder, named after the time, at every start.
        for summary in hparams(run.config, {}):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)

        def log(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield log


@contextmanager
def _wandb(run: _Run) -> Iterator[_Log]:
    import wandb

    with wandb.init(
        project=_PROJECT, name=run.name, dir=str(run.folder), config=dict(run.config)
    ) as started:
        yield lambda values, step: started.log(dict(values), step=step)


@contextmanager
def _mlflow(run: _Run) -> Iterator[_Log]:
    import mlflow

    mlflow.set_experiment(_PROJECT)
    with mlflow.start_run(run_name=run.name):
        fields = list(run.config.items())
        for start in range(0, len(fields), 100):  # the most that MLflow accepts in one call
            mlflow.log_params(dict(fields[start : start + 100]))
        yield lambda values, step: mlflow.log_metrics(dict(values), step=step)


_TRACKERS: dict[str, Callable[[_Run], AbstractContextManager[_Log]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
"""Name of a tracker and of the package to install -> what starts and finishes it."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError unless every tracker is known and installed."""
    for name in names:
        if name not in _TRACKERS:
            raise unknown_name("tracker", name, _TRACKERS)
        if find_spec(name) is None:
            raise ValueError(f"tracker {name!r} is not installed: pip install {name}")


@contextmanager
def open_trackers(
    names: Sequence[str],
    folder: Path,
    run_name: str,
    config: Mapping[str, Any],
    first_step: int,
) -> Iterator[list[Sink]]:
    """Starts trackers, yields a sink for each, and finishes the trackers at the end.

    Only the main process of a training calls this.

    Args:
        names: `tensorboard` (writes to `FOLDER/tensorboard`), `wandb` or `mlflow`.
        config: the recipe's fields by dotted name.
        first_step: number of steps already finished; TensorBoard discards what an earlier call
            wrote from this step on.

    Raises:
        ValueError: a tracker is unknown, not installed, or does not start.
    """
    check_trackers(names)
    plain = {
        field: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for field, value in config.items()
    }
    run = _Run(folder, run_name, plain, first_step)
    with ExitStack() as stack:
        sinks = []
        for name in dict.fromkeys(names):
            tracker = ExitStack()
            try:
                log = tracker.enter_context(_TRACKERS[name](run))
            except Exception as error:  # each library raises its own errors
                raise ValueError(
                    f"tracker {name!r} does not start ({type(error).__name__}: {error}): fix "
                    "that, or train without it"
                ) from error
            stack.callback(_finish, name, tracker)
            sinks.append(_sink(name, log))
        yield sinks


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log record, under the names that trackers show: `train/loss`, ..."""
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


def _sink(name: str, log: _Log) -> Sink:
    has_failed = False

    def sink(record: Mapping[str, Any]) -> None:
        nonlocal has_failed
        values = scalars(record)
        if has_failed or not values:
            return
        try:
            log(values, record["step"])
        except Exception as error:  # a training must survive a network failure
            has_failed = True  # and not wait for another attempt at every record
            _logger.warning(
                "tracker %s failed (%s: %s) and is switched off for the rest of this training, "
                "which continues; all numbers are in %s",
                name,
                type(error).__name__,
                error,
                artifacts.METRICS,
            )

    return sink


def _finish(name: str, tracker: ExitStack) -> None:
    try:
        tracker.close()
    except Exception as error:
        _logger.warning("tracker %s did not finish (%s: %s)", name, type(error).__name__, error)
