"""The length of a training: epochs and steps are turned into each other in one place."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenas.length import Length, length_of, read_seconds, steps_to_read
from prenas.recipe import TrainingRecipe

COUNTS = st.integers(1, 3000)


@given(COUNTS, COUNTS)
def test_epochs_are_whole(epochs: int, steps_per_epoch: int) -> None:
    length = length_of(TrainingRecipe(epochs=epochs), steps_per_epoch)
    assert length == Length(steps_per_epoch, epochs * steps_per_epoch, is_in_steps=False)
    assert length.num_epochs == epochs


@given(COUNTS, COUNTS)
def test_steps_may_end_within_an_epoch(steps: int, steps_per_epoch: int) -> None:
    length = length_of(TrainingRecipe(steps=steps), steps_per_epoch)
    assert (length.num_steps, length.is_in_steps) == (steps, True)
    assert length.num_epochs == math.ceil(steps / steps_per_epoch)


@given(COUNTS, COUNTS, COUNTS)
def test_min_steps_repeat_the_epochs(epochs: int, min_steps: int, steps_per_epoch: int) -> None:
    training = TrainingRecipe(epochs=epochs, min_steps=min_steps)
    length, whole = length_of(training, steps_per_epoch), epochs * steps_per_epoch
    assert length.num_steps == max(whole, min_steps)
    assert length.is_in_steps == (min_steps > whole)


@given(COUNTS, COUNTS, st.integers(1, 100))
def test_the_fewest_steps_that_read_so_many_images(
    num_images: int, images: int, batch_size: int
) -> None:
    steps_per_epoch = math.ceil(images / batch_size)

    def read(steps: int) -> int:
        return Length(steps_per_epoch, steps, is_in_steps=True).num_images(images, batch_size)

    steps = steps_to_read(num_images, images, batch_size)
    assert read(steps) >= num_images > read(steps - 1)
    assert read(steps_per_epoch) == images


@given(COUNTS, COUNTS)
def test_every_step_belongs_to_one_epoch(steps: int, steps_per_epoch: int) -> None:
    """An epoch ends exactly where the number of ended epochs grows."""
    length = Length(steps_per_epoch, steps, is_in_steps=True)
    assert length.epochs_done(0) == 0
    for step in range(1, steps + 1):
        grows = length.epochs_done(step) == length.epochs_done(step - 1) + 1
        assert length.ends_epoch(step) == grows
    assert length.epochs_done(steps) == length.num_epochs


@given(COUNTS, COUNTS, st.integers(1, 50), st.integers(1, 50))
def test_events_between_epochs_have_a_limit(
    steps: int, steps_per_epoch: int, period: int, most: int
) -> None:
    length = Length(steps_per_epoch, steps, is_in_steps=True)
    between = length.epochs_between(period, most)
    assert between >= period
    assert length.num_epochs // between <= most
    assert length.epochs_between(0, most) == 0
    assert length._replace(is_in_steps=False).epochs_between(period, most) == period


def test_a_training_has_exactly_one_length() -> None:
    for fields, message in (
        ({}, "epochs and training.steps are both None: give one of them, e.g. steps=2000"),
        ({"epochs": 3, "steps": 4}, "epochs is 3 and steps is 4.*leave out the other"),
        ({"steps": 4, "min_steps": 2}, "min_steps 2 only extends epochs.*leave out min_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingRecipe.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epochs": 1}, "1 epoch"),
        ({"epochs": 1200}, "1,200 epochs"),
        ({"steps": 1}, "1 step"),
        ({"steps": 2000}, "2,000 steps"),
        ({"epochs": 60, "min_steps": 1500}, "60 epochs, at least 1,500 steps"),
    ],
)
def test_a_length_is_said_in_words(fields: dict[str, int], words: str) -> None:
    assert TrainingRecipe.model_validate(fields).length_in_words == words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("20 min", 1200), ("1.5h", 5400), ("2d", 172_800), (" 1H ", 3600)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert read_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "-1h", "0s", "1e3s", "1:30", "nan s", "1,5h"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"cannot read {text!r} as a time: .*90s, 20m, 1.5h or 2d"):
        read_seconds(text)
