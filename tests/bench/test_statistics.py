"""Correlations, gains and bootstrap against SciPy, against loops, and against known numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prenas.bench import statistics

SEEDS = st.integers(0, 2**16)


def drawn(seed: int, num: int = 25, *, ties: bool = False) -> tuple[np.ndarray, ...]:
    """Score, accuracy and two counts that are related to each other."""
    generator = np.random.default_rng(seed)
    counts = generator.normal(size=(num, 2))
    score = counts[:, 0] + generator.normal(size=num)
    accuracy = counts[:, 1] + score + generator.normal(size=num)
    if ties:
        score, accuracy = np.round(score), np.round(accuracy)
    return score, accuracy, counts


def ones(num: int) -> np.ndarray:
    return np.ones((1, num))


def repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Every row as often as its weight says."""
    return np.repeat(values, weights.astype(int), axis=0)


def partial_by_hand(score: np.ndarray, accuracy: np.ndarray, counts: np.ndarray) -> float:
    ranked = [stats.rankdata(one) for one in counts.T]
    design = np.column_stack([np.ones(len(score)), *ranked])

    def left(values: np.ndarray) -> np.ndarray:
        values = stats.rankdata(values)
        return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]

    return float(np.corrcoef(left(score), left(accuracy))[0, 1])


# --- correlations --------------------------------------------------------------------------------


@given(seed=SEEDS, ties=st.booleans())
def test_rank_correlations_are_those_of_scipy(seed: int, ties: bool) -> None:
    score, accuracy, _ = drawn(seed, ties=ties)
    assert statistics.spearman(score, accuracy, ones(25))[0] == pytest.approx(
        stats.spearmanr(score, accuracy).statistic
    )
    assert statistics.kendall(score, accuracy, ones(25))[0] == pytest.approx(
        stats.kendalltau(score, accuracy).statistic
    )


def test_rank_correlations_of_known_numbers() -> None:
    """One of six pairs is in the wrong order; the squared differences of ranks add up to 2."""
    one, other = np.array([1, 2, 3, 4.0]), np.array([10, 30, 20, 40.0])
    assert statistics.kendall(one, other, ones(4))[0] == pytest.approx((5 - 1) / 6)
    assert statistics.spearman(one, other, ones(4))[0] == pytest.approx(1 - 6 * 2 / (4 * 15))


@given(seed=SEEDS)
def test_a_partial_correlation_given_one_count_follows_from_three_correlations(seed: int) -> None:
    score, accuracy, counts = drawn(seed)
    one, two, three = (
        stats.spearmanr(*pair).statistic
        for pair in ((score, accuracy), (score, counts[:, 0]), (accuracy, counts[:, 0]))
    )
    expected = (one - two * three) / np.sqrt((1 - two**2) * (1 - three**2))
    found = statistics.spearman_given_counts(score, accuracy, counts[:, :1], ones(25))
    assert found[0] == pytest.approx(expected)


@given(seed=SEEDS)
def test_a_partial_correlation_given_two_counts_is_that_of_what_is_left(seed: int) -> None:
    score, accuracy, counts = drawn(seed)
    found = statistics.spearman_given_counts(score, accuracy, counts, ones(25))
    assert found[0] == pytest.approx(partial_by_hand(score, accuracy, counts))


def test_counts_that_order_alike_are_taken_away_once() -> None:
    score, accuracy, counts = drawn(3)
    same = np.column_stack([counts[:, 0], counts[:, 0] ** 3])
    assert statistics.spearman_given_counts(score, accuracy, same, ones(25)) == pytest.approx(
        statistics.spearman_given_counts(score, accuracy, counts[:, :1], ones(25))
    )


def test_nothing_is_left_of_a_count_given_itself() -> None:
    _, accuracy, counts = drawn(4)
    weights = np.vstack([ones(25), statistics.resamples(25, 50, 0)])
    for score in (counts[:, 0], np.exp(counts[:, 1])):
        assert np.isnan(statistics.spearman_given_counts(score, accuracy, counts, weights)).all()


def test_correlation_within_groups_takes_away_each_groups_mean_rank() -> None:
    score, accuracy, _ = drawn(5, 30)
    groups = np.arange(30) % 3
    score, accuracy = score + 10 * groups, accuracy - 10 * groups  # groups against the score

    def left(values: np.ndarray) -> np.ndarray:
        ranked = stats.rankdata(values)
        return ranked - [ranked[groups == group].mean() for group in groups]

    found = statistics.spearman_given_groups(score, accuracy, groups, ones(30))[0]
    assert found == pytest.approx(np.corrcoef(left(score), left(accuracy))[0, 1])
    assert found > 0.4
    assert statistics.spearman(score, accuracy, ones(30))[0] < -0.5


def test_within_groups_nothing_is_said_of_scores_of_the_group_or_of_many_groups() -> None:
    score, accuracy, _ = drawn(6, 30)
    groups = np.arange(30) % 3
    of_group = statistics.spearman_given_groups(groups * 2.0, accuracy, groups, ones(30))
    assert np.isnan(of_group).all()
    many = statistics.spearman_given_groups(score, accuracy, np.arange(30) // 2, ones(30))
    assert np.isfinite(many).all()  # 15 groups leave 15 degrees of freedom
    assert np.isnan(
        statistics.spearman_given_groups(score, accuracy, np.arange(30) % 21, ones(30))
    ).all()


def test_a_constant_score_has_no_correlation() -> None:
    _, accuracy, counts = drawn(7)
    for found in (
        statistics.spearman(np.ones(25), accuracy, ones(25)),
        statistics.kendall(np.ones(25), accuracy, ones(25)),
        statistics.spearman_given_counts(np.ones(25), accuracy, counts, ones(25)),
    ):
        assert np.isnan(found).all()


# --- gains in windows ----------------------------------------------------------------------------


def gain_by_hand(score: np.ndarray, accuracy: np.ndarray, size: np.ndarray, width: float) -> float:
    gains = []
    for start in size:
        inside = [row for row in range(len(size)) if start <= size[row] <= start * (1 + width)]
        if len(inside) < 5:
            continue
        best = max(score[row] for row in inside)
        picked = [accuracy[row] for row in inside if score[row] == best]
        gains.append(np.mean(picked) - np.mean(accuracy[inside]))
    return float(np.mean(gains))


@given(seed=SEEDS, ties=st.booleans())
def test_gain_is_that_of_every_window_by_hand(seed: int, ties: bool) -> None:
    score, accuracy, counts = drawn(seed, 40, ties=ties)
    size = 100 + 10 * np.abs(counts[:, 0])
    found = statistics.window_gain(score, accuracy, size, ones(40), width=0.1)
    assert found[0] == pytest.approx(gain_by_hand(score, accuracy, size, 0.1))


def test_gain_of_known_numbers() -> None:
    """One window of five: the pick has 9, the mean is 5; the sixth is alone, and not counted."""
    size = np.array([100, 100, 100, 100, 100, 900.0])
    accuracy = np.array([1, 3, 5, 7, 9, 100.0])
    best_last = np.arange(6.0)
    assert statistics.window_gain(best_last, accuracy, size, ones(6), width=0.1)[0] == 4
    assert statistics.window_gain(-best_last, accuracy, size, ones(6), width=0.1)[0] == -4
    assert statistics.window_gain(np.ones(6), accuracy, size, ones(6), width=0.1)[0] == 0
    ends = np.array([100, 100, 100, 100, 150, 900.0])  # a window includes its end
    assert statistics.window_gain(best_last, accuracy, ends, ones(6), width=0.5)[0] == 4
    assert np.isnan(statistics.window_gain(best_last[1:], accuracy[1:], size[1:], ones(5), width=0))


# --- bootstrap -----------------------------------------------------------------------------------


@given(seed=SEEDS, ties=st.booleans())
def test_a_weight_counts_like_so_many_equal_rows(seed: int, ties: bool) -> None:
    score, accuracy, counts = drawn(seed, 30, ties=ties)
    groups = np.arange(30) % 3
    size = 100.0 + 20 * (np.arange(30) % 2)  # two windows of fifteen
    weights = statistics.resamples(30, 3, seed)
    found = (
        statistics.window_gain(score, accuracy, size, weights, width=0.1),
        statistics.spearman(score, accuracy, weights),
        statistics.kendall(score, accuracy, weights),
        statistics.spearman_given_counts(score, accuracy, counts, weights),
        statistics.spearman_given_groups(score, accuracy, groups, weights),
    )
    for number, row in enumerate(weights):
        one, other, many = (repeated(values, row) for values in (score, accuracy, counts))
        expected = (
            gain_by_hand(one, other, repeated(size, row), 0.1),
            stats.spearmanr(one, other).statistic,
            stats.kendalltau(one, other).statistic,
            partial_by_hand(one, other, many),
            statistics.spearman_given_groups(one, other, repeated(groups, row), ones(30))[0],
        )
        assert [values[number] for values in found] == pytest.approx(expected)


def test_resamples_draw_as_many_rows_with_replacement() -> None:
    weights = statistics.resamples(50, 4000, seed=0)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.06)
    assert (weights == 0).mean() == pytest.approx(0.98**49 * 0.98, abs=0.005)
    assert (statistics.resamples(50, 10, seed=0) == weights[:10]).all()


def test_the_bootstrap_is_as_wide_as_the_error_of_a_correlation() -> None:
    """For normal variables, the standard error of a correlation r of n is (1 - r^2) / sqrt(n)."""
    generator = np.random.default_rng(0)
    one = generator.normal(size=400)
    other = 0.5 * one + np.sqrt(0.75) * generator.normal(size=400)
    found = statistics.spearman(one, other, statistics.resamples(400, 1000, 0))
    assert found.std() == pytest.approx(0.75 / np.sqrt(400), rel=0.2)
