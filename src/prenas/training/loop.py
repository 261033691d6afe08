"""The training loop: steps, log records, checkpoints, validation, and handling of failures."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch.utils.data import DataLoader

from prenas import artifacts
from prenas.data import (
    Batch,
    ImageData,
    label_counts,
    num_batches,
    num_samples,
    readers_watched,
    training_epochs,
)
from prenas.evaluation.calibration import calibrate_on
from prenas.families.base import Arch, SearchSpace
from prenas.length import Length, length_of
from prenas.precision import Precision
from prenas.processes import ALONE, Processes
from prenas.recipe import CalibrationRecipe, TrainingRecipe
from prenas.runs.log import MetricsLog, Sink
from prenas.supernet import Statistics, Supernet
from prenas.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint, tidy
from prenas.training.objective import balanced_weights
from prenas.training.sampler import make_sampler
from prenas.training.single_images import require_normalisable
from prenas.training.step import Begun, Outcome, TrainingStep, read
from prenas.training.stopping import Stopped, StopRequest
from prenas.training.subnets import num_kept
from prenas.training.teacher import Teacher
from prenas.training.validation import subnets_due, validate

_logger = logging.getLogger(__name__)
MOST_UNREAD = 10
"""Steps whose results may wait on an accelerator: so late are a request to stop of several
processes, the watcher, and the end after too many skipped steps."""
_MOST_CHECKPOINTS = 100  # between epochs, if steps decide the length: epochs may be a single step


class Progress(NamedTuple):
    """What a step reports to a watcher."""

    step: int
    """Number of finished steps, out of `num_steps`."""
    num_steps: int
    epoch: int
    """The current epoch, from 0."""
    loss: float
    lr: float
    num_images: int
    """Images of this step in all processes."""


Watcher = Callable[[Progress], None]


@dataclass
class _Mean:
    """A running mean; saving and continuing it does not change a bit of the result."""

    total: float = 0.0
    number: int = 0

    def add(self, value: float) -> None:
        self.total, self.number = self.total + value, self.number + 1

    def taken(self) -> float | None:
        """Returns the mean so far (None if there are no values) and starts again."""
        mean = self.total / self.number if self.number else None
        self.total, self.number = 0.0, 0
        return mean


@dataclass
class _Position:
    """How far a training is; saved in every checkpoint."""

    step: int = 0
    """Number of finished steps."""
    epoch_loss: _Mean = field(default_factory=_Mean)
    window_loss: _Mean = field(default_factory=_Mean)
    window_norm: _Mean = field(default_factory=_Mean)
    skipped: int = 0
    """Number of skipped steps in the current epoch."""
    skipped_in_a_row: int = 0
    best_top1: float = -1.0
    """Mean validation top-1 over all subnets of the weights in `best.safetensors`."""


class _Unread(NamedTuple):
    """A step of the current epoch whose results were not read yet."""

    begun: Begun
    step: int
    """Number of steps when it is finished."""
    num_images: int


def train_supernet(
    supernet: Supernet,
    archs: Sequence[Arch],
    data: ImageData,
    training: TrainingRecipe,
    *,
    seed: int = 0,
    space: SearchSpace | None = None,
    teacher: Teacher | None = None,
    calibration: CalibrationRecipe | None = None,
    folder: Path | None = None,
    processes: Processes = ALONE,
    stop: StopRequest | None = None,
    watch: Watcher | None = None,
    follow: Callable[[int], Sequence[Sink]] | None = None,
) -> None:
    """Trains the supernet on the given subnets, in place.

    Args:
        supernet: on the device to train on, with equal weights in every process; its largest
            network contains all `archs`.
        archs: the preferred subnets, the cheapest first; these are also validated.
        space: train on this whole space instead, for comparison (one-shot NAS).
        calibration: how subnets with BatchNorm are calibrated before validation; None: the
            default.
        folder: where checkpoints and metrics are written; an unfinished training there is
            continued, and ends with the same weights as one that was never interrupted.
        stop: checked after every step; once it is set, the training is saved and stopped.
        watch: called after every step.
        follow: called once, in the main process, with the number of finished steps; returns the
            sinks that receive every log record from there on.

    Raises:
        ValueError: the data do not fit the network, the batch size leaves BatchNorm a single value,
            the classes are to be balanced but their sizes are unknown, the folder is not
            writable, or too many steps in a row were not finite.
        OSError: a checkpoint or the log cannot be written.
        ChildProcessError: a process that reads images has died.
        Stopped: the training was asked to stop; everything is saved.
    """
    if training.final_weights == "best" and folder is None:
        raise ValueError(
            "training.final_weights is 'best', and the best weights are kept on disk: give a folder"
        )
    steps_per_epoch = num_batches(data.train, training.batch_size)
    if steps_per_epoch == 0:
        raise ValueError("the training split is empty: give at least one image")
    if not isinstance(data.train, DataLoader):  # a loader of the user makes its own batches
        require_normalisable(supernet, archs, num_samples(data.train), training, processes)
    sampler = make_sampler(archs, training, seed, space)
    step = TrainingStep(
        supernet,
        sampler,
        training,
        steps_per_epoch,
        teacher=teacher,
        class_weights=_class_weights(data, training, supernet.settings.num_classes),
        processes=processes,
        most_kept=num_kept(len(archs) if space is None else None),
    )
    loop = _Training(
        step,
        archs,
        data,
        training,
        calibration or CalibrationRecipe(),
        length_of(training, steps_per_epoch),
        seed,
        folder,
        processes,
    )
    loop.resume(follow)
    supernet.train()
    request = StopRequest() if stop is None else stop
    with readers_watched():
        for epoch, batches in loop.epochs_left():
            for batch in batches:
                is_asked = bool(request)
                if step.may_be_late:
                    must_stop = loop.take_late(batch, epoch, watch, stop=is_asked)
                else:
                    outcome = step(loop.position.step, batch, stop=is_asked)
                    must_stop = loop.take(outcome, batch, epoch, watch)
                if loop.is_between_epochs:
                    break
                if must_stop or _is_due(loop.position.step, training.checkpoint_steps):
                    loop.save()
                if must_stop:
                    loop.stop(request)
            else:
                raise loop.ended_early(epoch)
            loop.end_epoch(epoch, must_stop=must_stop)
            if must_stop:
                loop.stop(request)
            loop.validate(epoch + 1)
    loop.take_final_weights()
    supernet.eval()


def _class_weights(
    data: ImageData, training: TrainingRecipe, num_classes: int
) -> torch.Tensor | None:
    if training.class_weights == "none":
        return None
    counts = label_counts(data.train)
    if counts is None:
        raise ValueError(
            "training.class_weights is 'balanced', but the labels of this data set are only known "
            "once its images are read: give it an attribute `targets` with all labels, or set "
            "training.class_weights=none"
        )
    return balanced_weights(counts, num_classes)


class _Training:
    """The state of a training: its position, log, checkpoints, validations and best weights."""

    def __init__(
        self,
        step: TrainingStep,
        archs: Sequence[Arch],
        data: ImageData,
        training: TrainingRecipe,
        calibration: CalibrationRecipe,
        length: Length,
        seed: int,
        folder: Path | None,
        processes: Processes,
    ) -> None:
        self._step, self._archs, self._data, self._training = step, archs, data, training
        self._calibration, self._seed = calibration, seed
        self._length, self._processes = length, processes
        self._folder = folder
        self.position = _Position()
        self._unread: list[_Unread] = []
        self._lr = 0.0
        """Of the last step."""
        self._networks = {artifacts.SUPERNET: step.supernet.network}
        if step.ema is not None:
            self._networks[artifacts.EMA] = step.ema.module

    def resume(self, follow: Callable[[int], Sequence[Sink]] | None) -> None:
        """Restores the newest readable checkpoint, and opens the log at its step."""
        if self._folder is not None:
            load_checkpoint(self._folder / artifacts.CHECKPOINTS, self._networks, self._restore)
            self._require_best(self._folder / artifacts.CHECKPOINTS / artifacts.BEST)
        step, path = self.position.step, None
        self._require_same(step)
        sinks: Sequence[Sink] = ()
        if self._processes.is_main:
            if self._folder is not None:
                artifacts.require_writable(self._folder)
            path = self._folder and self._folder / artifacts.METRICS
            sinks = follow(step) if follow is not None else ()
        self._log = MetricsLog(path, step=step, sinks=sinks)
        if self._processes.is_main and self._folder is not None:
            num_kept = self._training.keep_checkpoints
            tidy(self._folder / artifacts.CHECKPOINTS, step, num_kept=num_kept)

    def epochs_left(self) -> Iterator[tuple[int, Iterator[Batch]]]:
        """The remaining epochs with their remaining batches.

        A validation that may have been interrupted is repeated before.
        """
        epochs_done = self._length.epochs_done(self.position.step)
        if epochs_done and self.is_between_epochs:  # killed before, during or after validating
            self.validate(epochs_done)
        epochs = range(epochs_done, self._length.num_epochs)
        read = training_epochs(
            self._data,
            self._step.supernet.settings,
            self._training.batch_size,
            self._seed,
            epochs,
            start=self.position.step % self._length.steps_per_epoch,
            most=self._length.num_steps - self.position.step,
            processes=self._processes,
            device=self._step.device,
        )
        for epoch, batches in zip(epochs, read, strict=True):
            self._clock = _Clock()
            yield epoch, batches

    @property
    def is_between_epochs(self) -> bool:
        """Whether the last step was the last one of its epoch, or of the training."""
        return self._length.ends_epoch(self.position.step)

    def take(self, outcome: Outcome, batch: Batch, epoch: int, watch: Watcher | None) -> bool:
        """Logs the step that was done, and reports it to the watcher; whether to stop after it."""
        self._pass(batch)
        self._end_step(outcome, self.position.step, epoch, batch.total, watch)
        return outcome.must_stop

    def take_late(self, batch: Batch, epoch: int, watch: Watcher | None, *, stop: bool) -> bool:
        """Begins a step, and perhaps logs and reports what was begun; whether to stop after it.

        On an accelerator, results are read several at once, because each time the device has to
        finish all its work: by `log_steps`, and whenever what follows needs them.
        """
        begun = self._step.begin(self.position.step, batch, stop=stop, late=True)
        self._pass(batch)
        self._unread.append(_Unread(begun, self.position.step, batch.total))
        if not self._must_read(stop=stop):
            return False
        taken, self._unread = self._unread, []
        outcomes = read([one.begun for one in taken])
        for one, outcome in zip(taken, outcomes, strict=True):
            self._end_step(outcome, one.step, epoch, one.num_images, watch)
        return any(outcome.must_stop for outcome in outcomes)

    def _pass(self, batch: Batch) -> None:
        self.position.step += 1
        self._clock.count(batch.total)

    def _must_read(self, *, stop: bool) -> bool:
        """Whether to read the results now; the same in every process."""
        step, training = self.position.step, self._training
        return (
            self.is_between_epochs
            or len(self._unread) == MOST_UNREAD
            or _is_due(step, training.log_steps)
            or _is_due(step, training.checkpoint_steps)
            or (stop and self._processes.world_size == 1)
        )

    def _end_step(
        self, outcome: Outcome, step: int, epoch: int, num_images: int, watch: Watcher | None
    ) -> None:
        """Logs a finished step, and reports it to the watcher."""
        self._lr = outcome.lr
        self._note(outcome, step, epoch)
        if watch is not None:
            num_steps = self._length.num_steps
            watch(Progress(step, num_steps, epoch, outcome.loss, outcome.lr, num_images))

    def ended_early(self, epoch: int) -> ValueError:
        """The error for a loader that yields fewer batches than its length."""
        steps_per_epoch = self._length.steps_per_epoch
        return ValueError(
            f"the training loader ended after {self.position.step % steps_per_epoch} batches of "
            f"epoch {epoch}, but its length is {steps_per_epoch}: fix the length of the loader"
        )

    def end_epoch(self, epoch: int, *, must_stop: bool) -> None:
        """Logs an epoch, and saves a checkpoint if one is due."""
        position = self.position
        self._log.append(
            "epoch",
            epoch=epoch,
            step=position.step,
            loss=position.epoch_loss.taken(),
            lr=self._lr,
            skipped=position.skipped,
            images_per_second=self._clock.images_per_second(),
        )
        position.skipped = 0
        due = self._length.epochs_between(1, _MOST_CHECKPOINTS)
        is_last = epoch + 1 == self._length.num_epochs
        if (epoch + 1) % due == 0 or is_last or must_stop or self._subnets_due(epoch + 1):
            self.save()

    def _subnets_due(self, epochs_done: int) -> list[int]:
        return subnets_due(self._archs, self._training, self._length, epochs_done)

    def take_final_weights(self) -> None:
        """Loads the weights that will be handed over into the supernet."""
        network, ema = self._step.supernet.network, self._step.ema
        chosen = self._training.handed_over_weights
        if chosen == "ema" and ema is not None:
            network.load_state_dict(ema.module.state_dict())
        elif chosen == "best" and self._folder is not None:
            self._processes.wait()  # for the process that writes them
            best = self._folder / artifacts.CHECKPOINTS / artifacts.BEST
            artifacts.load_weights(network, best)

    def _note(self, outcome: Outcome, step: int, epoch: int) -> None:
        """Records the numbers of a step; raises after too many skipped steps in a row."""
        position = self.position
        reason = "loss" if not math.isfinite(outcome.loss) else "gradient"
        if outcome.is_skipped:
            position.skipped += 1
            position.skipped_in_a_row += 1
            self._log.append(
                "skipped",
                epoch=epoch,
                step=step,
                loss=outcome.loss,
                reason=f"the {reason} is not finite",
                archs=[arch.id for arch in outcome.archs],
            )
        else:
            position.skipped_in_a_row = 0
            position.epoch_loss.add(outcome.loss)
            position.window_loss.add(outcome.loss)
            position.window_norm.add(outcome.grad_norm)
        if position.skipped_in_a_row >= self._training.skipped_steps_limit:
            raise ValueError(self._too_many_skipped(outcome, step, reason))
        if _is_due(step, self._training.log_steps):
            self._log.append(
                "step",
                epoch=epoch,
                step=step,
                loss=position.window_loss.taken(),
                grad_norm=position.window_norm.taken(),
                lr=outcome.lr,
                images_per_second=self._clock.images_per_second(),
            )

    def _too_many_skipped(self, outcome: Outcome, step: int, reason: str) -> str:
        found = checkpoints(self._folder / artifacts.CHECKPOINTS) if self._folder else []
        subnets = "; ".join(f"{arch.id}: {arch}" for arch in outcome.archs)
        kept = f"{found[0].folder} is the last checkpoint" if found else "no checkpoint was written"
        return (
            f"the {reason} was not finite in {self.position.skipped_in_a_row} steps in a row, the "
            f"last of them step {step} (subnet {subnets}). None of these steps "
            f"changed the weights; {kept}. Start a run in a new folder with a lower "
            "training.lr_per_512_images, with training.clip_grad_norm, or with "
            "training.precision=fp32, and look for images or labels that are not finite"
        )

    def validate(self, epochs_done: int) -> None:
        """Evaluates the subnets that are due, and keeps the best weights.

        Weights count as the best only if all subnets were evaluated. If there is a moving average,
        it is evaluated as well as the trained weights, and decides which are the best.
        """
        numbers = self._subnets_due(epochs_done)
        if not numbers:
            return
        supernet, ema = self._step.supernet, self._step.ema
        supernets = {"trained": supernet}
        if ema is not None:
            supernets["ema"] = supernet.with_network(ema.module)
        for weights, each in supernets.items():
            statistics = self._calibrated(each, [self._archs[number] for number in numbers])
            rows = validate(
                each,
                self._archs,
                numbers,
                self._data,
                statistics,
                self._processes,
                self._precision,
            )
            for row in rows:
                self._log.append(
                    "validation",
                    epoch=epochs_done - 1,
                    step=self.position.step,
                    weights=weights,
                    **row,
                )
        top1 = sum(row["top1"] for row in rows) / len(rows)
        if len(numbers) == len(self._archs) and top1 > self.position.best_top1:
            self.position.best_top1 = top1
            if self._folder is not None and self._processes.is_main:
                path = self._folder / artifacts.CHECKPOINTS / artifacts.BEST
                artifacts.write_tensors(path, each.network.state_dict())

    @property
    def _precision(self) -> Precision:
        """Of validations: the training's on an accelerator, which is several times faster there.

        On a processor they are exact; there the time is in the training.
        """
        return "fp32" if self._step.device.type == "cpu" else self._training.precision

    def _calibrated(self, supernet: Supernet, archs: Sequence[Arch]) -> list[Statistics]:
        return calibrate_on(
            supernet,
            archs,
            self._data,
            self._calibration,
            self._calibration.while_training,
            seed=self._seed,
            first_epoch=self._length.num_epochs,
            processes=self._processes,
            precision=self._precision,
        )

    def save(self) -> None:
        """Writes a checkpoint, in the main process only."""
        if self._folder is None or not self._processes.is_main:
            return
        self._log.sync()
        state = {
            **self._step.state_dict(),
            "position": asdict(self.position),
            "world_size": self._processes.world_size,
            "num_threads": torch.get_num_threads(),
        }
        save_checkpoint(
            self._folder / artifacts.CHECKPOINTS,
            self.position.step,
            self._networks,
            state,
            num_kept=self._training.keep_checkpoints,
        )

    def _restore(self, state: dict[str, Any]) -> int:
        scaler = self._step.state_dict()["scaler"]
        _require_like(
            {"position": asdict(_Position()), "scaler": scaler, "world_size": 1, "num_threads": 1},
            {name: value for name, value in state.items() if name != "optimizer"},
            "the state",
        )
        self._step.load_state_dict(state)
        position = dict(state["position"])
        for name in ("epoch_loss", "window_loss", "window_norm"):
            position[name] = _Mean(**position[name])
        self.position = _Position(**position)
        for name, before, now in (
            ("processes", state["world_size"], self._processes.world_size),
            ("threads", state["num_threads"], torch.get_num_threads()),
        ):
            if before != now and self._processes.is_main:
                _logger.warning(
                    "the training was started with %d %s and continues with %d: the result will "
                    "differ in the rounding of float sums%s",
                    before,
                    name,
                    now,
                    " and in which images are mixed"
                    if name == "processes" and self._data.mixing is not None
                    else "",
                )
        return self.position.step

    def _require_best(self, path: Path) -> None:
        """Raises ValueError, before the training starts, if the weights to hand over are lost."""
        if self._training.final_weights != "best" or self.position.best_top1 < 0:
            return
        try:
            artifacts.read_tensors(path)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"cannot read the best weights so far ({error}): restore {path} from a copy, or "
                f"move {path.parent} away to train from the start"
            ) from None

    def _require_same(self, step: int) -> None:
        """Raises ValueError if the processes would continue from different steps."""
        steps = self._processes.gathered(step)
        if len({*steps}) > 1:
            raise ValueError(
                f"the processes of this run see checkpoints of different steps "
                f"({', '.join(f'{one:.0f}' for one in steps)}): give all of them the same "
                "run folder, on a shared disk"
            )

    def stop(self, stop: StopRequest) -> NoReturn:
        """Ends the training, which has been saved."""
        self._processes.wait()  # a process that leaves during a save would end the others
        raise Stopped(self.position.step, stop)


def _require_like(expected: Any, found: Any, name: str) -> None:
    """Raises ValueError unless a value has the fields of another, of the same types."""
    if type(found) is not type(expected):
        wanted = type(expected).__name__
        raise ValueError(f"{name} is {found!r:.80}, but should be of the type {wanted}")
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            raise ValueError(f"{name} has the fields {', '.join(map(str, found))}")
        for field_name, value in expected.items():
            _require_like(value, found[field_name], field_name)
    elif not math.isfinite(found):
        raise ValueError(f"{name} is {found}, which is not finite")


class _Clock:
    """Images per second since the start of the epoch, or since the training was resumed in it."""

    def __init__(self) -> None:
        self._started, self._num_images = time.perf_counter(), 0

    def count(self, num_images: int) -> None:
        self._num_images += num_images

    def images_per_second(self) -> float:
        return self._num_images / (time.perf_counter() - self._started)


def _is_due(step: int, period: int | None) -> bool:
    return period is not None and step % period == 0
