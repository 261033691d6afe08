"""A group that is off as a block is found; effects in the direction of size are not."""

import numpy as np
import pytest

from prenas.bench.groups import blocks_that_are_off

WIDTHS = np.repeat([192, 216, 240], 20)
DEPTHS = np.tile([12, 13, 14, 15], 15)


def table(**off: float) -> tuple[np.ndarray, np.ndarray]:
    """Sizes, and accuracies that grow with them, apart from shifts of widths: `w240=-4`."""
    generator = np.random.default_rng(0)
    size = WIDTHS * DEPTHS * 1000.0 + generator.uniform(0, 5000, size=60)
    accuracy = 70 + size / 1e6 + generator.normal(scale=0.1, size=60)
    for name, shift in off.items():
        accuracy[int(name[1:]) == WIDTHS] += shift
    return size, accuracy


OPTIONS = {"width": WIDTHS.tolist(), "depth": DEPTHS.tolist()}


def test_a_block_that_contradicts_its_size_is_found() -> None:
    size, accuracy = table(w240=-4)
    (block,) = blocks_that_are_off(OPTIONS, size, accuracy)
    assert (block.option, block.value, block.num_members) == ("width", 240, 20)
    assert -4 < block.gap < -3
    assert block.correlation < 0 < 0.6 < block.correlation_elsewhere


def test_a_smallest_group_that_is_too_good_is_found() -> None:
    (block,) = blocks_that_are_off(OPTIONS, *table(w192=4))
    assert (block.option, block.value) == ("width", 192)
    assert block.gap > 3


@pytest.mark.parametrize(
    "off",
    [
        {},
        {"w240": 4.0},  # looks like a strong effect of the width
        {"w192": -4.0},
        {"w240": -0.6},  # only a little worse
    ],
)
def test_an_effect_in_the_direction_of_size_or_a_small_one_is_not_a_block(
    off: dict[str, float],
) -> None:
    assert blocks_that_are_off(OPTIONS, *table(**off)) == []


def test_one_wrong_row_neither_makes_nor_hides_a_block() -> None:
    size, accuracy = table()
    accuracy[-1] = 0
    assert blocks_that_are_off(OPTIONS, size, accuracy) == []
    size, accuracy = table(w240=-4)
    accuracy[0] = 0
    assert [one.value for one in blocks_that_are_off(OPTIONS, size, accuracy)] == [240]


def test_of_two_groups_one_is_named_and_small_groups_are_left_out() -> None:
    size, accuracy = table(w240=-4)
    two = {"wide": (WIDTHS == 240).tolist()}
    (block,) = blocks_that_are_off(two, size, accuracy)
    assert block.num_members in (20, 40)
    assert blocks_that_are_off({"row": list(range(60))}, size, accuracy) == []
    assert blocks_that_are_off({"same": [1] * 60}, size, accuracy) == []
