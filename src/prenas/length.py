"""The length of a training: epochs and steps are turned into each other here; times are read.

It loads nothing, because `prenas status` needs it without torch.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


class Length(NamedTuple):
    """How long a training on a given set is. Its last epoch may be a part of one."""

    steps_per_epoch: int
    num_steps: int
    is_in_steps: bool
    """Whether a number of steps decided the length. Then epochs may be very short and very many,
    so what happens between epochs does not happen after each of them; see `epochs_between`."""

    @property
    def num_epochs(self) -> int:
        """Number of epochs, including one that is not finished."""
        return -(-self.num_steps // self.steps_per_epoch)

    def num_images(self, images: int, batch_size: int) -> int:
        """How many images a training reads from a set of so many, repeated ones included."""
        epochs, rest = divmod(self.num_steps, self.steps_per_epoch)
        return epochs * images + rest * batch_size

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the training, ends after this many steps."""
        return step % self.steps_per_epoch == 0 or step >= self.num_steps

    def epochs_done(self, step: int) -> int:
        """Number of epochs that have ended after this many steps."""
        return self.num_epochs if step >= self.num_steps else step // self.steps_per_epoch

    def epochs_between(self, period: int, most: int) -> int:
        """Epochs from one event to the next: `period`, or more so that at most `most` happen.

        If epochs decided the length, `period` is kept as it is; 0 means never.
        """
        if not self.is_in_steps or period == 0:
            return period
        return max(period, -(-self.num_epochs // most))


class Lasting(Protocol):
    """The fields of a recipe's training that decide its length; epochs or steps are None."""

    @property
    def epochs(self) -> int | None:
        """Passes over the training images."""

    @property
    def steps(self) -> int | None:
        """Number of steps, whatever the number of images."""

    @property
    def min_steps(self) -> int:
        """The epochs are repeated until so many steps are done."""


def length_of(training: Lasting, steps_per_epoch: int) -> Length:
    """How long a training is on a set with this many steps per epoch."""
    if training.steps is not None:
        return Length(steps_per_epoch, training.steps, is_in_steps=True)
    assert training.epochs is not None, "a recipe has epochs or steps"
    whole = training.epochs * steps_per_epoch
    least = training.min_steps
    return Length(steps_per_epoch, max(whole, least), is_in_steps=least > whole)


def steps_to_read(num_images: int, images: int, batch_size: int) -> int:
    """The fewest steps that read at least `num_images` from a set of `images`, again and again."""
    epochs, rest = divmod(num_images, images)
    return epochs * -(-images // batch_size) + -(-rest // batch_size)


def proportional_steps(steps: int, number: int, of: int) -> int:
    """The length of a training of `number` steps if one of `of` steps is to have `steps`."""
    return max(1, round(steps * number / of))


def read_seconds(text: str) -> float:
    """The seconds that a text such as `90s`, `20m`, `1.5h` or `2d` means.

    Raises:
        ValueError: it is not a positive number with a unit.
    """
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|min|h|d)\s*", text.lower())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ValueError(
            f"cannot read {text!r} as a time: write a positive number with a unit, such as 90s, "
            "20m, 1.5h or 2d"
        )
    return seconds
