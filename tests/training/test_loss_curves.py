"""Small recipes train as they did when `python tests/golden/regenerate.py` was last run."""

import pytest

from training.curves import BIG_CURVES, CURVES, TOLERANCES, golden, losses_of, missing_data


def assert_as_ever(name: str) -> None:
    expected = golden(name)
    assert len(expected) == {**CURVES, **BIG_CURVES}[name][2]
    assert losses_of(name) == pytest.approx(expected, rel=TOLERANCES.get(name, 1e-3))


@pytest.mark.parametrize("name", CURVES)
def test_the_first_losses_are_as_ever(name: str) -> None:
    assert_as_ever(name)
    assert golden(name)[-1] < golden(name)[0]  # the larger sets still warm up after 20 steps


@pytest.mark.slow
@pytest.mark.big_data
@pytest.mark.parametrize("name", BIG_CURVES)
def test_the_first_losses_on_larger_sets_are_as_ever(name: str) -> None:
    if reason := missing_data(name):
        pytest.skip(reason)
    assert_as_ever(name)
