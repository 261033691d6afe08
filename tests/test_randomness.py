"""Named randomness: stable seeds, and foreign code that leaves no trace."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenas.randomness import (
    derive_seed,
    isolated_global_state,
    numpy_generator,
    reseed_global_state,
    torch_generator,
)


def draw_globally() -> tuple[float, float, float]:
    """One number of each global generator."""
    return torch.rand(()).item(), float(np.random.rand()), random.random()


@pytest.fixture
def _global_state_is_put_back() -> object:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


# These numbers are part of the format: another value would change every result of every recipe.
STABLE = {
    (0, "weights"): 2039098572050236917,
    (1, "weights"): 1375928715667752225,
    (0, "shuffle", 3): 3361758494853273946,
    (2, "augment", 5, 17): 3892415095878497273,
}


def test_seeds_are_stable() -> None:
    """Half of the first eight bytes of SHA-256 of `seed:purpose:position...`."""
    assert {key: derive_seed(*key) for key in STABLE} == STABLE


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**31),
            st.sampled_from(["weights", "shuffle", "augment", "w"]),
            st.lists(st.integers(0, 10**6), max_size=3),
        ),
        min_size=2,
        max_size=6,
        unique_by=str,
    )
)
def test_seeds_are_distinct(keys: list[tuple[int, str, list[int]]]) -> None:
    """Across seeds, purposes and positions; all fit PyTorch's and NumPy's generators."""
    seeds = [derive_seed(seed, purpose, *position) for seed, purpose, position in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbours_are_distinct() -> None:
    """(1, 23) is not (12, 3), nor is a seed a position."""
    near = [(1, "a", 2, 3), (1, "a", 23), (12, "a", 3), (1, "a"), (1, "a", 2), (1, "a", 3, 2)]
    for left, right in combinations(near, 2):
        assert derive_seed(*left) != derive_seed(*right)


def test_generators_repeat_and_differ() -> None:
    draws = [torch.rand(4, generator=torch_generator(0, "a", i)).tolist() for i in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    draws = [numpy_generator(0, "a", i).random(4).tolist() for i in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert torch_generator(0, "a").device.type == "cpu"


@pytest.mark.usefixtures("_global_state_is_put_back")
def test_generators_leave_the_global_ones_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = draw_globally()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    torch.rand(3, generator=torch_generator(0, "a"))
    numpy_generator(0, "a").random(3)
    assert draw_globally() == expected


@pytest.mark.usefixtures("_global_state_is_put_back")
def test_isolated_block_is_seeded_and_leaves_no_trace() -> None:
    """Inside, draws depend on the name alone; outside, as if the block had not been."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = [draw_globally(), draw_globally()]

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    found = [draw_globally()]
    with isolated_global_state(0, "transform", 7):
        first = [draw_globally(), draw_globally()]
    found.append(draw_globally())
    assert found == expected

    draw_globally()
    with isolated_global_state(0, "transform", 7):
        again = [draw_globally(), draw_globally()]
    with isolated_global_state(0, "transform", 8):
        other = [draw_globally(), draw_globally()]
    assert again == first
    for numbers, others in zip(zip(*first, strict=True), zip(*other, strict=True), strict=True):
        assert set(numbers).isdisjoint(others)


@pytest.mark.usefixtures("_global_state_is_put_back")
def test_reseeding_inside_a_block_draws_what_a_block_of_its_own_draws() -> None:
    """Whatever was drawn before, also where a generator keeps a second normal number."""

    def draws() -> list[float]:
        return [random.gauss(0, 1), np.random.randn(), float(torch.randn(())), random.random()]

    with isolated_global_state(3, "samples", 1):
        expected = draws()
    with isolated_global_state(0, "all"):
        draws()
        reseed_global_state(3, "samples", 1)
        assert draws() == expected


@pytest.mark.usefixtures("_global_state_is_put_back")
def test_isolated_block_restores_after_an_error_and_when_nested() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    drawn = []

    def fail_inside() -> None:
        with isolated_global_state(0, "outer"):
            drawn.append(draw_globally())
            with isolated_global_state(0, "inner"):
                draw_globally()
            drawn.append(draw_globally())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    with isolated_global_state(0, "outer"):
        assert [draw_globally(), draw_globally()] == drawn
