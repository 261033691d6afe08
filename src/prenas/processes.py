"""The processes of one run and their devices, as torchrun or `accelerate launch` starts them.

Every process draws the same architectures and takes its share of every batch; one message per step
sums what they must agree on. The network needs no wrapper: gradients of subnets have full size
(`training/gradients.py`), so data parallelism only needs the sum of one vector, whichever layers a
step left out.
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_TIMEOUT = timedelta(days=1)  # the others wait while the first one searches, evolves or downloads


class Processes(NamedTuple):
    """This process, as one of those of the run."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch; neighbours, such as copies of an image, are separated."""
        return items[self.rank :: self.world_size]

    def add_up(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all processes, which is bitwise equal in each of them.

        Raises:
            ConnectionError: another process has ended.
        """
        if self.world_size > 1:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise ConnectionError(
                    f"another process of this run has ended ({_first_sentence(error)}); its own "
                    "message says why. Give the same command to continue from the last "
                    "checkpoint"
                ) from error

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; returns when every process has called this."""
        votes = torch.tensor([float(flag)])
        self.add_up(votes)
        return bool(votes.item() > 0)

    def main_says(self, flag: bool) -> bool:
        """The flag of the main process, in every process; returns when all have called this.

        On a shared disk the others may see a file late, but all processes must decide alike.
        """
        return self.any(self.is_main and flag)

    def gathered(self, number: float) -> list[float]:
        """The numbers that all processes called this with, by rank, in every process."""
        numbers = torch.zeros(self.world_size, dtype=torch.float64)
        numbers[self.rank] = number
        self.add_up(numbers)
        return numbers.tolist()

    def wait(self) -> None:
        """Returns when every process has called this."""
        self.any(False)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block before the others do, e.g. to download once."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


ALONE = Processes()


def join() -> Processes:
    """This process among those that were launched together; joins them at the first call.

    Raises:
        ValueError: the variables of the launcher are set, but are not numbers.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if _number("WORLD_SIZE", 1) == 1:
            return ALONE
        has_cuda = torch.cuda.is_available()
        if has_cuda:
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=_TIMEOUT)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_cuda else "gloo",
            store=_fresh(store, rank, world_size),
            rank=rank,
            world_size=world_size,
            timeout=_TIMEOUT,
        )
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size())


def local_rank() -> int:
    """Number of this process on its machine; 0 without a launcher."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Number of processes of the run on this machine; 1 without a launcher."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1))


def resolve_device(name: str) -> torch.device:
    """A device by name; `auto` takes an accelerator if there is one.

    If a machine has several processes, each takes its own accelerator unless a number is given.
    An accelerator with a number becomes the current one of this process.

    Raises:
        ValueError: the device is unknown or not on this machine; the message lists those that are.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    available = ["cpu", *([accelerator.type] if accelerator else [])]
    if name == "auto":
        name = available[-1]
    reason = ""
    try:
        device = torch.device(name)
        if accelerator and local_rank() and device == torch.device(accelerator.type):
            if local_rank() >= (count := torch.accelerator.device_count()):
                raise ValueError(
                    f"process {local_rank()} of this machine has no {name} device, because there "
                    f"are only {count}: start at most {count} processes, or use --device cpu"
                )
            device = torch.device(device.type, local_rank())
        if device.type in available:
            torch.empty(0, device=device)
            if device.type != "cpu" and device.index is not None:
                # Graphs, compiled code and libraries use the current one.
                torch.accelerator.set_device_index(device.index)
            return device
    except RuntimeError as error:
        if name.partition(":")[0] in available:  # it is there, and fails
            reason = f". PyTorch says: {str(error).strip().partition(chr(10))[0]}"
    choices = ["auto", *available]
    near = get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"device {name!r} does not exist on this machine: choose {', '.join(choices)}{hint}{reason}"
    )


def _fresh(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A fresh part of the launcher's store, in which no process has written before.

    torchrun keeps one store across all restarts of a run, so a restarted process could read the
    address of one that was killed. No variable counts the restarts equally on all machines.
    Therefore the processes agree on a new prefix: each announces a random word, which no earlier
    process can have answered.

    Raises:
        TimeoutError: a process did not start.
    """
    word = uuid.uuid4().hex
    if rank == 0:
        missing = set(range(1, world_size))
        deadline = time.monotonic() + _TIMEOUT.total_seconds()
        while missing:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"processes {sorted(missing)} of {world_size} did not start: look for their "
                    "messages, and start all of them again"
                )
            for other in list(missing):
                if store.check([f"prenas/{word}/{other}"]):
                    missing.remove(other)
                elif store.check([f"prenas/hello/{other}"]):  # from this start or an earlier one
                    store.set(f"prenas/{store.get(f'prenas/hello/{other}').decode()}", word)
            time.sleep(0.02)
        return dist.PrefixStore(word, store)
    store.set(f"prenas/hello/{rank}", word)
    chosen = store.get(f"prenas/{word}").decode()
    store.set(f"prenas/{chosen}/{rank}", "here")
    return dist.PrefixStore(chosen, store)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(
            f"the environment variable {variable} is {text!r}, but torchrun sets a number there: "
            "unset it, or start the command with torchrun or accelerate launch"
        )
    return int(text)


def _first_sentence(error: Exception) -> str:
    """The first sentence of an error; PyTorch adds guesses after it."""
    return str(error).partition("\n")[0].partition(". ")[0]


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
