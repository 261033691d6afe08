"""Which of two networks is better at a budget, and what is said about it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenas.evaluation.accuracy import Evaluation, Metrics
from prenas.families.vit.space import VitArch
from prenas.models.comparison import Compared, Comparison, Kind
from prenas.recipe.budgets import parse_budgets


def network(kind: Kind, number: int, macs: int, top1: float, num_images: int = 400) -> Compared:
    row = Evaluation(
        arch=VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.0,)),
        costs={"params": 10, "macs": macs * 10**6},
        splits={"validation": Metrics(top1=top1, top5=None, loss=1.0, num_images=num_images)},
    )
    folder = f"subnets/{number:02d}" if kind == "cut" else f"rivals/{number}/subnets/00"
    return Compared(kind, f"timm/{number}", folder, row, (32, 32), 1000)


def comparison(*networks: Compared, budgets: tuple[str, ...] = ("macs=100M",)) -> Comparison:
    return Comparison(networks, parse_budgets(budgets).kept, {"params": 10, "macs": 200 * 10**6})


def test_a_better_stock_model_is_recommended_plainly() -> None:
    found = comparison(network("cut", 1, 90, 0.901), network("stock", 7, 100, 0.932))
    (verdict,) = found.verdicts
    assert verdict.better == "stock"
    assert verdict.in_words == (
        "timm/7 is better at 100.0 M MACs (50 %): 93.2 % against 90.1 % of subnet 1. "
        "Take rivals/7/subnets/00"
    )


def test_within_a_standard_error_they_are_level() -> None:
    found = comparison(network("cut", 0, 90, 0.90), network("stock", 7, 100, 0.92))
    (verdict,) = found.verdicts
    assert verdict.better == "neither"
    assert verdict.in_words == (
        "timm/7 and subnet 0 are level at 100.0 M MACs (50 %): 92.0 % and 90.0 %, within one "
        "standard error"
    )


def test_a_better_cut_is_named() -> None:
    found = comparison(network("cut", 2, 90, 0.95), network("stock", 7, 100, 0.90))
    (verdict,) = found.verdicts
    assert (
        verdict.in_words
        == "subnet 2 is better at 100.0 M MACs (50 %): 95.0 % against 90.0 % of timm/7"
    )


@given(*[st.floats(0, 1)] * 2, st.integers(1, 5000))
def test_level_means_at_most_a_standard_error_of_the_difference(
    ours: float, theirs: float, number: int
) -> None:
    found = comparison(
        network("cut", 0, 1, ours, number), network("stock", 1, 1, theirs, number)
    ).verdicts[0]
    shares = [(share * number + 2) / (number + 4) for share in (ours, theirs)]
    error = math.sqrt(sum(share * (1 - share) for share in shares) / (number + 4))
    gap = theirs - ours
    expected = "stock" if gap > error else "cut" if -gap > error else "neither"
    if not math.isclose(abs(gap), error, rel_tol=1e-9):
        assert found.better == expected


def test_all_of_a_few_pictures_are_no_proof() -> None:
    found = comparison(network("cut", 0, 1, 1.0, 10), network("stock", 1, 1, 0.9, 10))
    assert found.verdicts[0].better == "neither"


def test_only_what_a_budget_allows_is_compared() -> None:
    """The best of each kind that costs no more; a budget that no stock model meets is named."""
    networks = [
        network("cut", 0, 40, 0.60),
        network("cut", 1, 90, 0.80),
        network("whole", 2, 200, 0.99),
        network("stock", 3, 101, 0.99),
        network("stock", 4, 100, 0.70),
        network("stock", 5, 60, 0.65),
    ]
    found = comparison(*networks, budgets=("macs=50M", "macs=70M", "macs=100M", "macs=300M"))
    chosen = [(v.cut and v.cut.folder[-2:], v.stock.name, v.better) for v in found.verdicts]
    assert chosen == [
        ("00", "timm/5", "stock"),
        ("01", "timm/4", "cut"),
        ("01", "timm/3", "stock"),
    ]
    assert "No stock model is within 50.00 M MACs (25 %)." in found.in_words
    assert [one["better"] for one in found.document["verdicts"]] == ["stock", "cut", "stock"]


def test_a_budget_without_a_cut_has_one_choice() -> None:
    found = comparison(
        network("cut", 0, 90, 0.9), network("stock", 1, 40, 0.5), budgets=("macs=50M",)
    )
    assert found.verdicts[0].better == "stock"
    assert "no subnet is within it" in found.in_words[-1]


@pytest.mark.parametrize("kinds", [("cut",), ("cut", "whole")])
def test_without_stock_models_nothing_is_said(kinds: tuple[Kind, ...]) -> None:
    assert comparison(*(network(kind, 0, 10, 0.5) for kind in kinds)).in_words == []
