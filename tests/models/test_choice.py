"""The best subnet within limits."""

import pytest

from prenas.evaluation.accuracy import Evaluation, Metrics
from prenas.families.vit.space import VitArch
from prenas.models.choice import pick


def row(params: int, macs: int, validation: float, test: float = 0.5) -> Evaluation:
    arch = VitArch(embed_dim=params, num_heads=(1,), mlp_ratio=(1.0,))
    splits = {
        name: Metrics(top1=top1, top5=None, loss=1.0, num_images=10)
        for name, top1 in (("validation", validation), ("test", test))
    }
    return Evaluation(arch=arch, costs={"params": params, "macs": macs}, splits=splits)


# A larger subnet is not always better, and test would choose otherwise than validation.
ROWS = [
    row(100, 5000, 0.60, test=0.99),
    row(200, 4000, 0.80, test=0.10),
    row(300, 9000, 0.70, test=0.95),
    row(400, 8000, 0.80, test=0.97),
    row(500, 9500, 0.90, test=0.20),
]


@pytest.mark.parametrize(
    ("limits", "best"),
    [
        ({"params": 10**9}, 4),
        ({"params": 500}, 4),  # inclusive
        ({"params": 499}, 1),  # 1 and 3 tie: fewer parameters
        ({"params": 399}, 1),
        ({"params": 199}, 0),
        ({"params": 100}, 0),
        ({"macs": 9000}, 1),
        ({"macs": 9499}, 1),
        ({"macs": 9500}, 4),
        ({"macs": 4000}, 1),
        ({"params": 300, "macs": 9000}, 1),
        ({"params": 100, "macs": 5000}, 0),
    ],
)
def test_best_by_validation_then_smallest(limits: dict[str, int], best: int) -> None:
    assert pick(ROWS, limits) == best
    backwards = ROWS[::-1]
    assert backwards[pick(backwards, limits)] == ROWS[best]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"params": 99}, ["params <= 99", "0: params 100; 1: params 200"]),
        ({"macs": 3999}, ["macs <= 3999", "1: macs 4,000"]),
        (
            {"params": 150, "macs": 4500},
            ["params <= 150 and macs <= 4.5k", "0: params 100, macs 5,000"],
        ),
    ],
)
def test_when_nothing_fits_what_there_is_is_named(limits: dict[str, int], words: list[str]) -> None:
    with pytest.raises(ValueError, match="no subnet of this run satisfies") as caught:
        pick(ROWS, limits)
    for word in words:
        assert word in str(caught.value)
    assert "Raise the limit" in str(caught.value)


def test_when_nothing_fits_both_limits_the_message_is_no_riddle() -> None:
    """Each limit alone can be met here: the costs of each subnet say what is wrong."""
    rows = [row(100, 9000, 0.6), row(900, 1000, 0.7)]
    with pytest.raises(ValueError, match="no subnet of this run satisfies") as caught:
        pick(rows, {"params": 500, "macs": 5000})
    assert "0: params 100, macs 9,000; 1: params 900, macs 1,000" in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "best"), [({"params": 400}, 3), ({"params": 399}, 2), ({"macs": 8500}, 3)]
)
def test_without_an_evaluation_the_largest(limits: dict[str, int], best: int) -> None:
    rows = [row.model_copy(update={"splits": {}}) for row in ROWS]
    assert pick(rows, limits) == best
    cheaper = {**rows[best].costs, "macs": rows[best].costs["macs"] - 1}
    twin = rows[best].model_copy(update={"costs": cheaper})
    assert pick([*rows, twin], limits) == len(rows)  # as many parameters, fewer MACs
