"""Performance balancing: a group uniformly, then a member, from the seed and the step alone."""

from collections import Counter
from itertools import pairwise

import pytest
from scipy.stats import chisquare

from prenas.families.vit.space import VitArch
from prenas.training.sampler import BalancedSampler


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
