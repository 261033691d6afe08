"""Budgets, compared with the smallest and the largest network of a space."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from families.drawing import ALL_SPACES
from prenas.cost import bounded_names, count
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.reach import following, holds_nothing, limits_nothing
from training.runs import MINI

LEAST, MOST = (count(arch, MINI)["params"] for arch in (MINI.smallest, MINI.largest))


@pytest.mark.parametrize(
    ("text", "is_out", "is_idle"),
    [
        (f"params={LEAST - 1}", True, False),
        (f"params={LEAST}", False, False),
        (f"params={MOST - 1}", False, False),
        (f"params={MOST}", False, True),
        ("params=5M", False, True),
        ("params=5M,macs=1", True, False),
        ("params=5M,macs=5G", False, True),
        (f"params={MOST}:5M", False, False),
        (f"params={MOST + 1}:5M", True, False),
        (f"params=1:{LEAST}", True, False),
        (f"params=1:{LEAST + 1}", False, False),
    ],
)
def test_the_ends_of_a_space(text: str, is_out: bool, is_idle: bool) -> None:
    (budget,) = parse_budgets([text]).kept
    assert (holds_nothing(budget, MINI), limits_nothing(budget, MINI)) == (is_out, is_idle)


def test_budgets_that_reach_the_space_stay() -> None:
    assert following(("params=5M:12M:1M", "params=2k"), MINI) is None


def test_budgets_follow_a_space_of_another_size() -> None:
    assert following(("params=150k:950k:160k",), MINI) == ("params=710:4160:690",)
    assert following(("macs=200M:700M:25M",), get_space("mobilenet-small")) is not None
    assert following(("params=150k:950k:160k",), get_space("photos")) is None


@given(
    space=st.sampled_from([p.values[0] if hasattr(p, "values") else p for p in ALL_SPACES]),
    axis=st.sampled_from(bounded_names()),
    number=st.integers(1, 20),
)
def test_they_cover_the_whole_space(space: SearchSpace, axis: str, number: int) -> None:
    """As many as before, and every network is in one of them."""
    texts = following([f"{axis}=1P:{number + 1}P:1P".replace("P", "000000G")], space)
    assert texts is not None
    kept, partial = parse_budgets(texts)
    assert len(kept) == number
    assert partial == ()
    least, most = (count(arch, space)[axis] for arch in (space.smallest, space.largest))
    intervals = [budget.intervals[axis] for budget in kept]
    assert intervals[0][0] <= least < intervals[0][1]
    assert intervals[-1][0] <= most < intervals[-1][1]
