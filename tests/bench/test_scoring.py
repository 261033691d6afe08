"""Values of every score in a table: those of the functions, once each, and never twice."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.tables import SPACE, archs, rows, some_rows, written
from prenas.bench.agreement import compare, shape_groups
from prenas.bench.scoring import Scoring, complete, is_random, score_names
from prenas.bench.table import AccuracyTable, read_accuracies
from prenas.cost import count
from prenas.families import all_spaces, build, family_of
from prenas.proxy.importance import measure_importance, noise_images
from prenas.proxy.network_scores import NETWORK_SCORES, NetworkScore
from prenas.proxy.scores import PUBLISHED_SCORE, WEIGHT_SCORES
from prenas.randomness import torch_generator
from prenas.supernet import Supernet


@pytest.fixture
def table(tmp_path: Path) -> AccuracyTable:
    return read_accuracies(written(tmp_path / "table.json", some_rows(12)), SPACE)


def measured(scoring: Scoring) -> dict[str, np.ndarray]:
    scoring.measure(lambda at, of: None, lambda: None)
    return complete(scoring.values)


def test_every_score_there_is_has_a_value_of_every_row(table: AccuracyTable) -> None:
    names = score_names(table)
    assert {"params", "macs", "entropy", *WEIGHT_SCORES, *NETWORK_SCORES} == set(names)
    scoring = Scoring(table, names, num_seeds=2, batch_size=4)
    assert scoring.seconds() > 0
    values = measured(scoring)
    for name in names:
        assert values[name].shape == (2 if is_random(name) else 1, 12), name
        assert np.isfinite(values[name]).all(), name
        if is_random(name):
            assert (values[name][0] != values[name][1]).any(), name


def test_counts_and_scores_of_architectures(table: AccuracyTable) -> None:
    values = measured(Scoring(table, ["params", "macs", "entropy"], num_seeds=3))
    costs = [count(arch, SPACE) for arch in table.archs]
    for name in ("params", "macs"):
        assert values[name][0].tolist() == [one[name] for one in costs]
    entropy = family_of(SPACE).arch_scores["entropy"]
    assert values["entropy"][0].tolist() == [entropy(a, SPACE.settings) for a in table.archs]


def test_scores_of_a_search_are_sums_over_what_a_subnet_owns(table: AccuracyTable) -> None:
    values = measured(Scoring(table, [PUBLISHED_SCORE], num_seeds=2, batch_size=4))
    supernet = Supernet(SPACE.supernet, SPACE.settings)
    supernet.initialize(torch_generator(1, "weights"))
    images = noise_images(4, 1, (8, 8), [0.0], [1.0], 1)
    importance = measure_importance(supernet, SPACE.scored, images)
    for arch, value in zip(table.archs, values[PUBLISHED_SCORE][1], strict=True):
        expected = sum(
            float((importance.weights[n] * importance.gradients[n])[box].abs().double().sum())
            for n, box in supernet.owned_boxes(arch).items()
            if n in importance.weights and family_of(arch).is_scored(n)
        )
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["digits", "mobilenet-micro"])
def test_scores_of_networks_are_those_of_the_network_alone(tmp_path: Path, name: str) -> None:
    space = all_spaces()[name]
    chosen = archs(10, space)
    path = written(tmp_path / "t.json", rows(chosen, lambda arch: float(chosen.index(arch))))
    scoring = Scoring(
        read_accuracies(path, space), ["grad_norm"], num_seeds=1, batch_size=4, image_size=16
    )
    values = measured(scoring)
    settings = space.settings.changed(image_size=16)
    network = build(chosen[5], settings)
    with torch.no_grad():
        family_of(space).initialize(network, torch_generator(0, "weights of a bench", 5))
    family_of(space).prepare_for_scoring(network)
    zeros, deviations = [0.0] * settings.in_chans, [1.0] * settings.in_chans
    images = noise_images(8, settings.in_chans, (16, 16), zeros, deviations, 0)[:4]
    labels = torch.randint(
        settings.num_classes, (8,), generator=torch_generator(0, "labels of a bench")
    )[:4]
    expected = NETWORK_SCORES["grad_norm"].function(network, [(images, labels)])
    assert values["grad_norm"][0, 5] == expected
    assert scoring.conditions.image_size == (16, 16)


def test_convolutional_networks_have_all_scores_too(tmp_path: Path) -> None:
    space = all_spaces()["mobilenet-micro"]
    chosen = archs(10, space)
    path = written(tmp_path / "t.json", rows(chosen, lambda arch: float(chosen.index(arch))))
    table = read_accuracies(path, space)
    values = measured(Scoring(table, score_names(table), num_seeds=1, batch_size=8))
    assert all(np.isfinite(found).all() for found in values.values())


def test_known_values_are_not_computed_again(
    table: AccuracyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["params", PUBLISHED_SCORE, "grad_norm", "synflow"]
    whole = Scoring(table, names, num_seeds=2, batch_size=4)
    values = measured(whole)
    calls = []

    def counted(network: torch.nn.Module, batches: object) -> float:
        calls.append(network)
        return 7.0

    monkeypatch.setitem(NETWORK_SCORES, "grad_norm", NetworkScore(counted))
    known = {name: [list(seed) for seed in seeds] for name, seeds in whole.values.items()}
    known["grad_norm"][1][4] = None
    further = Scoring(table, names, num_seeds=2, batch_size=4)
    further.reuse(known)
    monkeypatch.setattr(
        "prenas.bench.scoring.measure_importance", lambda *given: pytest.fail("computed again")
    )
    again = measured(further)
    assert len(calls) == 1
    assert again["grad_norm"][1, 4] == 7.0
    again["grad_norm"][1, 4] = values["grad_norm"][1, 4]
    for name in names:
        assert (again[name] == values[name]).all(), name


def test_wrong_options_and_values_are_refused(
    table: AccuracyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="unknown score 'synflo': did you mean 'synflow'"):
        Scoring(table, ["synflo"], num_seeds=1)
    with pytest.raises(ValueError, match="0 seeds"):
        Scoring(table, ["params"], num_seeds=0)
    with pytest.raises(ValueError, match="not a multiple of patch_size"):
        Scoring(table, ["params"], num_seeds=1, image_size=9)
    monkeypatch.setitem(NETWORK_SCORES, "naswot", NetworkScore(lambda *given: -math.inf))
    with pytest.raises(ValueError, match=r"the score naswot of row 1 .* is -inf at seed 0: leave"):
        measured(Scoring(table, ["naswot"], num_seeds=1, batch_size=4))


# --- what they say -------------------------------------------------------------------------------


def with_accuracies(table: AccuracyTable, **columns: np.ndarray) -> AccuracyTable:
    return AccuracyTable(table.space, table.archs, table.choices, columns)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> AccuracyTable:
    path = tmp_path_factory.mktemp("larger") / "table.json"
    return read_accuracies(written(path, some_rows(80)), SPACE)


def test_a_perfect_score_and_one_that_only_counts(larger: AccuracyTable) -> None:
    """Accuracy is the number of parameters and something else, which one score knows."""
    generator = np.random.default_rng(0)
    params, noise = larger.costs["params"], generator.normal(size=80)
    accuracy = np.log(params) + 0.3 * noise
    table = with_accuracies(larger, top1=accuracy)
    values = {
        "perfect": accuracy[None],
        "params": params[None],
        "counting": (params * np.exp(0.1 * generator.normal(size=(4, 80)))),
    }
    (column,) = compare(table, values, window=0.2)
    perfect, counts, counting = column.agreements
    for estimate in (perfect.spearman, perfect.kendall, perfect.given_counts, perfect.given_shape):
        assert estimate is not None
        assert [estimate.value, estimate.low, estimate.high] == pytest.approx([1, 1, 1])
    assert perfect.gain is not None
    assert perfect.gain.low > 0.1
    assert counts.given_counts is None
    assert counts.spearman is not None
    assert counts.spearman.value > 0.5
    assert counting.spearman is not None
    assert counting.spearman.value > 0.5
    assert counting.given_counts is not None
    assert counting.given_counts.low < 0 < counting.given_counts.high
    assert len(counting.given_counts.seeds) == 4
    assert counting.given_counts.value == pytest.approx(np.mean(counting.given_counts.seeds))
    assert column.blocks == ()


def test_an_interval_is_that_of_the_mean_over_seeds(larger: AccuracyTable) -> None:
    accuracy = np.arange(80.0)
    (column,) = compare(
        with_accuracies(larger, top1=accuracy), {"two": np.stack([accuracy, -accuracy])}, window=0.1
    )
    estimate = column.agreements[0].spearman
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0, 0, 0))
    assert estimate.seeds == pytest.approx((1, -1))


def test_intervals_hold_what_they_promise(larger: AccuracyTable) -> None:
    """Of scores that know nothing, about one in twenty has an interval without zero."""
    generator = np.random.default_rng(1)
    table = with_accuracies(larger, top1=generator.normal(size=80))
    values = {str(number): generator.normal(size=(1, 80)) for number in range(40)}
    (column,) = compare(table, values, window=0.1)
    for name in ("spearman", "kendall", "given_counts", "given_shape", "gain"):
        found = [getattr(one, name) for one in column.agreements]
        outside = sum(not one.low <= 0 <= one.high for one in found)
        assert outside <= 6, name


def test_shapes_are_what_rows_share(larger: AccuracyTable) -> None:
    groups = shape_groups(larger)
    shapes = [tuple(arch.network_options.values()) for arch in larger.archs]
    for one, other in zip(range(80), reversed(range(80)), strict=True):
        assert (groups[one] == groups[other]) == (shapes[one] == shapes[other])
    assert len(set(groups)) == len(set(shapes)) == 9
