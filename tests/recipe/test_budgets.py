"""Budgets: their text form, their ends, and how amounts are written."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenas.cost import bounded_names
from prenas.recipe.budgets import (
    Budget,
    Limits,
    parse_budgets,
    parse_limits,
)

M, G = 10**6, 10**9
UNITS = {"": 1, "k": 10**3, "M": M, "G": G}

amounts = st.one_of(
    st.integers(1, 10**4),
    st.integers(1, 10**12),
    st.builds(lambda n, scale: n * scale, st.integers(1, 10**5), st.sampled_from([1, 10, 100, M])),
)


# --- budgets -------------------------------------------------------------------------------------


def intervals(*texts: str, keep_partial: bool = False) -> list[dict[str, tuple[int, int]]]:
    return [b.intervals for b in parse_budgets(texts, keep_partial=keep_partial).kept]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("params=6M", [{"params": (0, 6 * M + 1)}]),
        ("macs=1.4G", [{"macs": (0, 1400 * M + 1)}]),
        ("params=5M:6M", [{"params": (5 * M, 6 * M)}]),
        (" params = 5M : 6M ", [{"params": (5 * M, 6 * M)}]),
        ("params=1:2", [{"params": (1, 2)}]),
        ("params=5M:12M:1M", [{"params": (i * M, (i + 1) * M)} for i in range(5, 12)]),
        ("params=5M:6M:1M", [{"params": (5 * M, 6 * M)}]),
        ("params=13M:33M:5M", [{"params": (i * M, (i + 5) * M)} for i in (13, 18, 23, 28)]),
        ("params=30M:70M:12M", [{"params": (i * M, (i + 12) * M)} for i in (30, 42, 54)]),
        ("params=6M,macs=1.4G", [{"params": (0, 6 * M + 1), "macs": (0, 1400 * M + 1)}]),
        ("macs=1G:2G,params=6M", [{"macs": (G, 2 * G), "params": (0, 6 * M + 1)}]),
        (
            "params=5M:7M:1M,macs=1.4G",
            [{"params": (i * M, (i + 1) * M), "macs": (0, 1400 * M + 1)} for i in (5, 6)],
        ),
        (
            "params=6M,macs=1G:3G:1G",
            [{"params": (0, 6 * M + 1), "macs": (i * G, (i + 1) * G)} for i in (1, 2)],
        ),
        ("params=1M:2M:1M,macs=1G:2G:1G", [{"params": (M, 2 * M), "macs": (G, 2 * G)}]),
        ("size=24MB", [{"params": (0, 6 * M + 1)}]),
        ("size=7B,macs=1G", [{"params": (0, 2), "macs": (0, G + 1)}]),
        ("size=5B:9B", [{"params": (2, 3)}]),  # a file of 8 bytes is in, one of 4 is not
        ("size=0:8MB:4MB", [{"params": (0, M)}, {"params": (M, 2 * M)}]),
    ],
)
def test_budgets_that_can_be_read(text: str, expected: list[dict[str, tuple[int, int]]]) -> None:
    assert intervals(text) == expected


def test_budgets_keep_their_order() -> None:
    assert intervals("params=9M", "params=5M:7M:1M", "params=6M") == [
        *intervals("params=9M"),
        *intervals("params=5M:7M:1M"),
        *intervals("params=6M"),
    ]


def test_the_last_interval_of_a_grid_may_be_partial() -> None:
    """Base has 66 to 70 M: left out as in the original, or kept on demand; always named."""
    last = {"params": (66 * M, 70 * M)}
    found = parse_budgets(["params=30M:70M:12M", "params=6M"])
    assert last not in [budget.intervals for budget in found.kept]
    assert [budget.intervals for budget in found.partial] == [last]
    whole = parse_budgets(["params=30M:70M:12M", "params=6M"], keep_partial=True)
    assert [budget.intervals for budget in whole.kept] == [
        *({"params": (i * M, (i + 12) * M)} for i in (30, 42, 54)),
        last,
        {"params": (0, 6 * M + 1)},
    ]
    assert whole.partial == ()
    assert parse_budgets(["params=5M:12M:1M"]).partial == ()


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 100))
def test_grids_cover_their_range(low: int, width: int, step: int) -> None:
    """Intervals touch, overlap nowhere, and are whole steps but for the last."""
    high = low + width
    text = f"macs={low}:{high}:{step}"
    if step > width:
        with pytest.raises(ValueError, match="shorter than one step"):
            parse_budgets([text])
        return
    ends = [interval["macs"] for interval in intervals(text, keep_partial=True)]
    assert ends[0][0] == low
    assert ends[-1][1] == high
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ends))
    assert all(end - start == step for start, end in ends[:-1])
    whole = [interval["macs"] for interval in intervals(text)]
    assert whole == [(start, end) for start, end in ends if end - start == step]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], ["no budget given", "AXIS=LIMIT"]),
        ([""], ["cannot read the budget ''", "AXIS=LIMIT", "params=6M"]),
        (["params"], ["cannot read the budget 'params'"]),
        (["params="], ["cannot read the budget 'params='"]),
        (["params=6M,"], ["cannot read the budget 'params=6M,'"]),
        (["params=1M:2M:3M:4M"], ["cannot read the budget 'params=1M:2M:3M:4M'"]),
        (["=6M"], ["unknown budget axis ''", "macs, params"]),
        (["param=6M"], ["unknown budget axis 'param'", "did you mean 'params'", "macs, params"]),
        (["speed=5"], ["unknown budget axis 'speed'", "macs, params"]),
        (["params=six"], ["'six'", "number with k, M or G"]),
        (["params=5M:"], ["cannot read the amount ''", "the budget 'params=5M:'", "AXIS=LO:HI"]),
        (["macs=::"], ["cannot read the amount ''", "the budget 'macs=::'"]),
        (["params=0"], ["'0'", "not a positive integer"]),
        (["params=-1"], ["'-1'"]),
        (["params=6M=7M"], ["'6M=7M'"]),
        (["params=6M,params=7M"], ["limits params twice"]),
        (["params=6M:5M"], ["'params=6M:5M' is empty", "smaller than the upper"]),
        (["params=5M:5M"], ["'params=5M:5M' is empty"]),
        (["params=5M:5M:1M"], ["'params=5M:5M:1M' is empty"]),
        (["params=5M:6M:2M"], ["shorter than one step of 2M", "smaller"]),
        (["params=1M:3M:1M,macs=1G:3G:1G"], ["a step on two axes", "only one may have a step"]),
        (["params=6M", "depth=6M"], ["unknown budget axis 'depth'"]),
        (["size=6M"], ["'6M'", "number with kB, MB or GB"]),
        (["size=3B"], ["size=3B", "3 bytes", "less than one parameter of 4"]),
        (["size=24"], ["'24' has no unit", "kB, MB or GB", "such as 5MB"]),
        (["size=1MB:24"], ["'24' has no unit"]),
        (["size=24MB,params=6M"], ["limits params twice: give"]),
        (["params=6M,size=24MB"], ["limits params twice, as size stands for params: give"]),
    ],
)
def test_budgets_that_cannot_be_read(texts: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        parse_budgets(texts)
    assert all(word in str(caught.value) for word in words)


def test_bounds_are_open_where_nothing_is_asked() -> None:
    """[cost axes, 2]: parameters, then MACs."""
    (low, high), (macs_low, macs_high) = Budget({"params": (5 * M, 6 * M)}).bounds.tolist()
    assert (low, high) == (5 * M, 6 * M)
    assert macs_low == 0
    assert macs_high > 10**18
    both = Budget({"macs": (3, 4), "params": (1, 2)})
    assert both.bounds.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("params=6M", "params <= 6M"),
        ("params=5M:6M", "params in [5M, 6M)"),
        ("params=6M,macs=1.4G", "params <= 6M, macs <= 1.4G"),
        ("macs=1G:1.5G,params=6M", "macs in [1G, 1.5G), params <= 6M"),
    ],
)
def test_budgets_in_words(text: str, words: str) -> None:
    assert str(parse_budgets([text]).kept[0]) == words


@pytest.mark.parametrize(
    ("text", "order"), [("params=9", [1, 0]), ("macs=9", [0, 1]), ("macs=9,params=9", [1, 0])]
)
def test_subnets_are_listed_by_the_cost_that_is_bounded(text: str, order: list[int]) -> None:
    costs = [{"params": 5, "macs": 1}, {"params": 4, "macs": 2}]
    (budget,) = parse_budgets([text]).kept
    assert sorted(range(2), key=lambda n: budget.expense(costs[n])) == order


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (None, {}),
        ({}, {}),
        ("params=6M", {"params": 6 * M}),
        ("macs=1.4G,params=6M", {"params": 6 * M, "macs": 1400 * M}),
        (" params = 6M , macs=1.4G ", {"params": 6 * M, "macs": 1400 * M}),
        ({"macs": 1_400_000_000, "params": "6M"}, {"params": 6 * M, "macs": 1400 * M}),
        ("size=24MB", {"params": 6 * M}),
        ({"size": 24 * M}, {"params": 6 * M}),
    ],
)
def test_limits_that_can_be_read(limits: Limits | None, expected: dict[str, int]) -> None:
    """In the order of the table, whatever theirs is."""
    assert list(parse_limits(limits).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("", "cannot read the limit ''"),
        ("6M", "write COST=AMOUNT"),
        ("params=", "write COST=AMOUNT"),
        ("params=6M,", "cannot read the limit"),
        ("params=5M:6M", "cannot read the amount '5M:6M'"),
        ("params=50%", "the amount '50%' is a share: only `prenas run --from SOURCE`"),
        ("params=6M,params=7M", "params is limited twice"),
        ("size=1MB,params=7M", "params is limited twice"),
        ("size=24", "'24' has no unit: size needs one of B, kB, MB or GB, such as 5MB"),
        ({"size": "24"}, "'24' has no unit"),
        ("parms=6M", "unknown cost 'parms': did you mean 'params'"),
        ("resolution=224", "unknown cost 'resolution'"),
        ({"macs": 0}, "'0' is not a positive integer"),
        ({"macs": 1.5}, "'1.5' is not a positive integer"),
    ],
)
def test_limits_that_cannot_be_read(limits: Limits, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_limits(limits)


def test_ends_of_a_budget() -> None:
    """The lower one is inside, the upper one is not, for one subnet as for many at once."""
    budget = Budget({"params": (10, 20)})
    expected = {9: False, 10: True, 19: True, 20: False}
    costs = [[params if name == "params" else 5 for name in bounded_names()] for params in expected]
    assert budget.contains(np.array(costs)).tolist() == list(expected.values())
    for params, fits in expected.items():
        cost = dict.fromkeys(bounded_names(), 5) | {"params": params}
        assert budget.holds(cost) == fits
