"""Performance balancing: a group uniformly, then a member, from the seed and the step alone."""

from collections import Counter
from itertools import pairwise

import pytest
from scipy.stats import chisquare

from prenas.families.vit.space import VitArch
from prenas.recipe import TrainingRecipe
from prenas.training.sampler import BalancedSampler, UniformSampler, make_sampler
from training.runs import MINI


def arch(width: int, *heads: int) -> VitArch:
    return VitArch(embed_dim=width, num_heads=heads, mlp_ratio=(1.0,) * len(heads))


NARROW = [arch(8, 1, 1), arch(8, 1, 2), arch(8, 2, 2), arch(8, 2, 1)]
SHALLOW, WIDE = [arch(8, 2)], [arch(16, 1, 1), arch(16, 2, 2)]
ALL = [NARROW[0], WIDE[0], *NARROW[1:], *SHALLOW, WIDE[1]]
NUM_STEPS = 6000


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_are_drawn_uniformly_then_members(seed: int) -> None:
    """Width and depth make the group: 1/3 each, shared equally by its members."""
    sampler = BalancedSampler(ALL, seed)
    drawn = Counter(sampler(step) for step in range(NUM_STEPS))
    expected = {
        member: NUM_STEPS / 3 / len(group) for group in (NARROW, SHALLOW, WIDE) for member in group
    }
    assert drawn.keys() == expected.keys()
    fit = chisquare([drawn[member] for member in expected], list(expected.values()))
    assert fit.pvalue > 0.001
    # The test can tell: uniform over all subnets would be far off.
    uniform = chisquare([drawn[member] for member in expected], [NUM_STEPS / 7] * 7)
    assert uniform.pvalue < 1e-9


def test_successive_steps_are_independent() -> None:
    """No pattern such as taking turns: a group follows itself as often as any other."""
    sampler = BalancedSampler(ALL, 0)
    widths = [(sampler(step).embed_dim, sampler(step).depth) for step in range(NUM_STEPS)]
    repeats = sum(left == right for left, right in pairwise(widths))
    assert repeats / NUM_STEPS == pytest.approx(1 / 3, abs=0.03)


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    first, second = BalancedSampler(ALL, 5), BalancedSampler(ALL, 5)
    forwards = [first(step) for step in range(50)]
    backwards = [second(step) for step in reversed(range(50))]
    assert backwards[::-1] == forwards == [first(step) for step in range(50)]
    assert [BalancedSampler(ALL, 6)(step) for step in range(50)] != forwards


def test_one_subnet_is_always_drawn() -> None:
    sampler = BalancedSampler(SHALLOW, 0)
    assert {sampler(step) for step in range(20)} == set(SHALLOW)


# --- several subnets per step --------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_sandwich_is_the_largest_random_ones_and_the_smallest(number: int) -> None:
    sampler = make_sampler(ALL, TrainingRecipe(epochs=1, sandwich=number), 0)
    again = make_sampler(ALL, TrainingRecipe(epochs=1, sandwich=number), 0)
    drawn = []
    for step in range(60):
        largest, *between, smallest = sampler(step)
        assert (largest, smallest) == (ALL[-1], ALL[0])
        assert len(between) == number
        assert again(step) == sampler(step)  # as in every process
        drawn += between
    assert set(drawn) == (set(ALL) if number else set())


def test_the_random_ones_of_a_sandwich_are_drawn_independently() -> None:
    """Balanced each: two of a step are of one group in a third of the steps."""
    sampler = make_sampler(ALL, TrainingRecipe(epochs=1, sandwich=2), 0)
    pairs = [sampler(step)[1:3] for step in range(3000)]
    same = sum((a.embed_dim, a.depth) == (b.embed_dim, b.depth) for a, b in pairs)
    assert same / 3000 == pytest.approx(1 / 3, abs=0.04)


def test_without_a_sandwich_a_step_has_one_subnet() -> None:
    sampler, plain = make_sampler(ALL, TrainingRecipe(epochs=1), 4), BalancedSampler(ALL, 4)
    assert [sampler(step) for step in range(30)] == [(plain(step),) for step in range(30)]


def test_of_the_whole_space_the_ends_are_the_spaces() -> None:
    sampler = make_sampler(ALL, TrainingRecipe(epochs=1, sandwich=1), 0, MINI)
    largest, _, smallest = sampler(0)
    assert (largest, smallest) == (MINI.largest, MINI.smallest)


def test_uniform_covers_the_space_choice_by_choice() -> None:
    """Every choice uniformly: of 40 architectures each shallow one comes up 1/2 / 2 / 4 of the
    time, each deep one 1/2 / 2 / 16."""
    sampler = UniformSampler(MINI, 0)
    drawn = Counter(sampler(step) for step in range(NUM_STEPS))
    assert len(drawn) == MINI.num_archs == 40
    expected = {one: NUM_STEPS / (16 if one.depth == 1 else 64) for one in drawn}
    assert chisquare([drawn[one] for one in expected], list(expected.values())).pvalue > 0.001
    assert [UniformSampler(MINI, 0)(step) for step in range(20)] == list(map(sampler, range(20)))
    assert sampler(3, 1) != sampler(3, 2) or sampler(4, 1) != sampler(4, 2)
