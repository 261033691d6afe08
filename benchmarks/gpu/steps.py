"""The training steps that are compared, and work captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from benchmarks.gpu.clock import Work
from benchmarks.gpu.sizes import Subject
from benchmarks.networks import some_images
from prenas.data import Batch
from prenas.families.base import Arch
from prenas.randomness import numpy_generator, torch_generator
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.gradients import GradientBuffer
from prenas.training.graphs import STEPS_BEFORE
from prenas.training.loop import MOST_UNREAD
from prenas.training.objective import label_loss
from prenas.training.optim import make_optimizer, trained_parameters
from prenas.training.step import Begun, TrainingStep, read
from prenas.training.subnets import BoundSubnets

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def new_supernet(subject: Subject, device: torch.device) -> Supernet:
    """The supernet of a subject, ready for training."""
    rates = {"drop_path": subject.training.drop_path, "dropout": subject.training.dropout}
    supernet = Supernet(subject.supernet, subject.settings, **rates)
    return supernet.initialize(torch_generator(0, "weights")).to(device).train()


def new_batch(subject: Subject, size: int, device: torch.device) -> Batch:
    """Noise images with labels, on the device."""
    images, labels = some_images(size, subject.settings)
    generators = [numpy_generator(0, "benchmark", number) for number in range(size)]
    return Batch(images.to(device), labels.to(device), generators, size)


def our_step(
    subject: Subject,
    archs: Sequence[Arch],
    batch: Batch,
    device: torch.device,
    *,
    compiled: bool = False,
    together: bool = False,
    late: bool = False,
    graphs: bool = False,
) -> Work:
    """The complete training step of prenas; the subnets take turns, or all are trained in one step.

    Args:
        together: train all subnets in every step.
        late: read the results of ten steps at once.
        graphs: the same, and every subnet is recorded as a CUDA graph.

    Raises:
        RuntimeError: graphs are asked for, and there is no CUDA device, or nothing is recorded.
    """
    if graphs:
        _require_cuda()
    step = next_step(
        subject,
        archs,
        len(batch.labels),
        device,
        compiled=compiled,
        together=together,
        late=late or graphs,
        graphs=graphs,
    )
    for _ in range((STEPS_BEFORE + 1) * len(archs) * graphs):
        step(batch)
    return lambda: step(batch)


def next_step(
    subject: Subject,
    archs: Sequence[Arch],
    size: int,
    device: torch.device,
    *,
    compiled: bool = False,
    together: bool = False,
    late: bool = False,
    graphs: bool = False,
) -> Callable[[Batch], object]:
    """The same for batches that the caller passes to every step."""
    changes = {"compile": compiled, "cuda_graphs": graphs, "sandwich": 2 if together else None}
    training = subject.training.model_copy(update={"batch_size": size, **changes})
    number, unread = 0, list[Begun]()

    def drawn(step: int) -> tuple[Arch, ...]:
        return tuple(archs) if together else (archs[number % len(archs)],)

    step = TrainingStep(new_supernet(subject, device), drawn, training, steps_per_epoch=1000)

    def take(batch: Batch) -> None:
        nonlocal number
        # The low learning rate of step 0, so that the weights hardly change.
        if late:
            unread.append(step.begin(0, batch, stop=False, late=True))
            if len(unread) == MOST_UNREAD:
                read(unread)
                unread.clear()
        else:
            step(0, batch)
        number += 1
        if graphs and number == (STEPS_BEFORE + 1) * len(archs) and not step.num_replayed:
            raise RuntimeError("the step was not recorded: the log says why")

    return take


class PlainStep:
    """The step of a plain PyTorch script, with the recipe's loss, clipping and optimiser."""

    def __init__(self, network: nn.Module, batch: Batch, training: TrainingRecipe) -> None:
        self._network, self._batch, self._training = network.train(), batch, training
        self._parameters = list(network.parameters())
        self.optimizer = make_optimizer(network, training)
        for group in self.optimizer.param_groups:
            group["lr"] = training.warmup_lr

    def compile(self, backend: str) -> PlainStep:
        """Compiles the network; returns self."""
        self._network = torch.compile(self._network, dynamic=False, backend=backend)  # type: ignore[assignment]
        return self

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        dtype = _DTYPES[self._training.precision]
        images, labels = self._batch.images, self._batch.labels
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = self._network(images)
        label_loss(logits.float(), labels, self._training).backward()  # type: ignore[no-untyped-call]
        if self._training.clip_grad_norm is not None:
            clip_grad_norm_(self._parameters, self._training.clip_grad_norm)
        if self._training.clip_grad_value is not None:
            clip_grad_value_(self._parameters, self._training.clip_grad_value)
        self.optimizer.step()


class BareStep:
    """The part of the prenas step that runs on the device, without reading anything back."""

    def __init__(
        self,
        supernet: Supernet,
        arch: Arch,
        batch: Batch,
        training: TrainingRecipe,
        *,
        compiled: bool = False,
    ) -> None:
        self._supernet, self._batch, self._training = supernet, batch, training
        parameters = trained_parameters(supernet.network, training)
        self.optimizer = make_optimizer(supernet.network, training)
        for group in self.optimizer.param_groups:
            group["lr"] = training.warmup_lr
        self._gradients = GradientBuffer(parameters)
        size = len(batch.labels)
        self._network = BoundSubnets(supernet, compiled_for=size if compiled else None)(arch)
        self._noise = batch.images.new_zeros(size, supernet.num_draws)

    def draw(self) -> None:
        """Draws noise for stochastic depth, as in prenas, where the graph reads it."""
        num_draws = self._supernet.num_draws
        draws = np.stack([one.random(num_draws) for one in self._batch.generators])
        self._noise.copy_(torch.from_numpy(draws), non_blocking=True)

    def work(self) -> None:
        """Forward and backward pass, norm, clipping and update."""
        training, gradients = self._training, self._gradients
        gradients.zero()
        dtype = _DTYPES[training.precision]
        images, labels = self._batch.images, self._batch.labels
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = self._network(images, self._noise)
        label_loss(logits.float(), labels, training).backward()  # type: ignore[no-untyped-call]
        norm = gradients.norm()
        if training.clip_grad_norm is not None:
            gradients.clip(norm, training.clip_grad_norm)
        if training.clip_grad_value is not None:
            gradients.clip_values(training.clip_grad_value)
        self.optimizer.step()

    def __call__(self) -> None:
        self.draw()
        self.work()

    def captured(self) -> Work:
        """The same step as one CUDA graph, with the noise copied into it.

        The learning rate is a constant of the graph; with a schedule it would have to be a tensor.
        """
        replay = captured(self.work, self.optimizer)

        def step() -> None:
            self.draw()
            replay()

        return step


def captured(work: Work, optimizer: torch.optim.Optimizer | None = None, warm_ups: int = 3) -> Work:
    """Captures work on static tensors as one CUDA graph, with the step counts of its optimiser.

    Raises:
        RuntimeError: something in it cannot be captured, or there is no CUDA device.
    """
    _require_cuda()
    for group in [] if optimizer is None else optimizer.param_groups:
        group["capturable"] = True
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(warm_ups):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _require_cuda() -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a CUDA device")
