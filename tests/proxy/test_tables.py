"""Tables give every candidate the score and cost that slicing its tensors gives."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families.drawing import ALL_SPACES, TEST_SPACES, choices, images_for, new_supernet
from prenas.cost import count
from prenas.families import build_structure, family_of, get_space, shapes_by_role
from prenas.families.base import SearchSpace
from prenas.families.vit.space import VitSpace
from prenas.proxy.gains import block_scores
from prenas.proxy.importance import Importance, measure_importance
from prenas.proxy.scores import (
    COUNT_SCORE,
    PUBLISHED_SCORE,
    WEIGHT_SCORES,
    Scope,
    WeightScore,
    check_score_name,
)
from prenas.proxy.tables import SpaceTables, cost_tables, space_tables, stage_scores
from prenas.selection.isomers import isomer_gains
from prenas.supernet import Supernet, owned_boxes
from proxy.reading import cost_from_tables, sum_from_tables
from reference import scores as literal

each_space = pytest.mark.parametrize("space", ALL_SPACES)
each_vit_space = pytest.mark.parametrize("space", TEST_SPACES["vit"], ids=lambda s: s.name)


@functools.cache
def random_importance(space: SearchSpace) -> Importance:
    """Normal weights and gradients in float64, also outside the largest subnet."""
    generator = torch.Generator().manual_seed(1)
    shapes = Supernet(space.supernet, space.settings).network.named_parameters()
    drawn = {
        name: torch.randn(2, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in shapes
    }
    return Importance(
        {name: pair[0] for name, pair in drawn.items()},
        {name: pair[1] for name, pair in drawn.items()},
    )


@functools.cache
def tables_of(space: SearchSpace, score: str) -> SpaceTables:
    importance = random_importance(space)
    gains = isomer_gains("published", block_scores(space, importance), 0)
    scores = stage_scores(space, importance, score=score)
    return space_tables(space, scores, gains, score=score, resolution=space.resolutions[0])


def finished(tables: SpaceTables, total: float) -> float:
    return float(tables.finish(np.array(total))) if tables.finish else total


LITERAL: dict[str, Callable[..., float]] = {
    "sum_abs_weight_times_gradient": lambda w, g, **arch: literal.left_super_taylor6(
        w, g, **arch, head_bias_quirk=False
    ),
    "abs_sum_weight_times_gradient": lambda w, g, **arch: literal.left_super_taylor5(
        w, g, **arch, head_bias_quirk=False
    ),
    "sum_abs_weight": lambda w, g, **arch: literal.left_super_l1norm(
        w, **arch, head_bias_quirk=False
    ),
    "sum_abs_weight_times_gradient_of_layer_choices": literal.left_attn_mlp_taylor6,
    "entropy": lambda w, g, **arch: literal.entropy(**arch),
}


@each_vit_space
@pytest.mark.parametrize("score", LITERAL)
@given(data=st.data())
def test_scores_equal_slicing_each_candidate(
    space: VitSpace, score: str, data: st.DataObject
) -> None:
    """Every named score, for random architectures, against the literal reference."""
    tables = tables_of(space, score)
    picked = data.draw(choices(space))
    arch = space.compose(picked)
    ours = finished(tables, sum_from_tables(tables, picked))
    weights, gradients = random_importance(space)
    theirs = LITERAL[score](
        weights, gradients, **arch.model_dump(), head_dim=space.settings.head_dim
    )
    magnitude = literal.left_super_taylor6(  # a signed sum cancels
        weights,
        gradients,
        **arch.model_dump(),
        head_bias_quirk=False,
        head_dim=space.settings.head_dim,
    )
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-13 * magnitude)


def test_every_score_is_compared() -> None:
    names = {*WEIGHT_SCORES, *family_of(TEST_SPACES["vit"][0]).arch_scores}
    assert set(LITERAL) == names


@each_space
@given(data=st.data())
@settings(max_examples=8)
def test_counting_scores_what_the_network_has(space: SearchSpace, data: st.DataObject) -> None:
    """Parameters of the plain network; without those outside layers if the scope is blocks."""
    tables, picked = tables_of(space, COUNT_SCORE), data.draw(choices(space))
    arch = space.compose(picked)
    assert tables.score(picked) == count(arch, space.settings)["params"]
    prefixes = family_of(space).layers(arch)
    named = build_structure(arch, space.settings).named_parameters()
    inside = sum(p.numel() for name, p in named if name.startswith(tuple(prefixes)))
    assert tables.score(picked, "blocks") == inside


@each_space
@pytest.mark.parametrize("score", [PUBLISHED_SCORE, "sum_abs_weight", COUNT_SCORE])
@given(data=st.data(), power=st.floats(0.1, 3), scope=st.sampled_from(["all", "blocks"]))
@settings(max_examples=5)
def test_a_power_is_taken_layer_by_layer(
    space: SearchSpace, score: str, data: st.DataObject, power: float, scope: Scope
) -> None:
    """The sum over layers of (what the layer's tensors score) ** power, and of what is outside the
    layers of each stage; from the elements of the network's own tensors."""
    picked, importance = data.draw(choices(space)), random_importance(space)
    arch, family = space.compose(picked), family_of(space)
    boxes = owned_boxes(arch, space.supernet, space.settings)
    sums: dict[object, float] = {}
    for role, shapes in shapes_by_role(arch, space.settings).items():
        for name, shape in shapes.items():
            if score == COUNT_SCORE:
                value = float(np.prod(shape))
            elif family.is_scored(name):
                elements = WEIGHT_SCORES[score].element(
                    importance.weights[name], importance.gradients[name].clone()
                )
                value = float(elements[boxes[name]].sum())
            else:
                continue
            if scope == "all" or role.layer is not None:
                sums[role] = sums.get(role, 0.0) + value
    expected = sum(value**power for value in sums.values())
    scores = stage_scores(space, importance, score=score, scope=scope, power=power)
    gains = [table.gains for table in cost_tables(space).stages]
    tables = space_tables(space, scores, gains, score=score)
    assert tables.score(picked) == pytest.approx(expected, rel=1e-9)


@each_space
def test_the_first_power_is_the_published_score_to_the_bit(space: SearchSpace) -> None:
    importance = random_importance(space)
    found = (
        stage_scores(space, importance, score=PUBLISHED_SCORE, **power)
        for power in ({}, {"power": 1.0})
    )
    for plain, powered in zip(*found, strict=True):
        assert plain.fixed.tobytes() == powered.fixed.tobytes()
        assert plain.layers.tobytes() == powered.layers.tobytes()


@functools.cache
def modules_with_a_choice(space: SearchSpace) -> set[str]:
    """Modules in layers whose size changes when all options are at their smallest."""
    largest = space.extreme(-1)
    smaller = tuple(
        choice._replace(options=tuple((0,) * len(options) for options in choice.options))
        for choice in largest
    )
    small, large = (
        {
            name: p.shape
            for name, p in build_structure(space.compose(one), space.settings).named_parameters()
        }
        for one in (smaller, largest)
    )
    return {name.rpartition(".")[0] for name in large if small.get(name) != large[name]}


@each_space
@pytest.mark.parametrize("score", WEIGHT_SCORES)
@given(data=st.data())
def test_scores_equal_sums_over_owned_boxes(
    space: SearchSpace, score: str, data: st.DataObject
) -> None:
    """For any family: the element of the score, summed over what the subnet owns."""
    family, entry, tables = family_of(space), WEIGHT_SCORES[score], tables_of(space, score)
    picked = data.draw(choices(space))
    arch = space.compose(picked)
    weights, gradients = random_importance(space)
    sized = modules_with_a_choice(space)
    total = magnitude = 0.0
    for name, box in owned_boxes(arch, space.supernet, space.settings).items():
        if name not in weights or not family.is_scored(name):
            continue
        if entry.layer_choices_only and name.rpartition(".")[0] not in sized:
            continue
        elements = entry.element(weights[name], gradients[name])[box]
        total += elements.sum().item()
        magnitude += elements.abs().sum().item()
    ours = finished(tables, sum_from_tables(tables, picked))
    assert ours == pytest.approx(finished(tables, total), rel=1e-12, abs=1e-13 * magnitude)


@each_space
@given(data=st.data())
def test_costs_are_those_of_the_arch(space: SearchSpace, data: st.DataObject) -> None:
    """Checked at every resolution."""
    picked = data.draw(choices(space))
    resolution = data.draw(st.sampled_from(space.resolutions))
    tables = cost_tables(space, resolution)
    cost = count(space.compose(picked, resolution), space.settings)
    assert cost_from_tables(tables, picked) == [cost["params"], cost["macs"]]
    assert tables.cost(picked).tolist() == [cost["params"], cost["macs"]]
    assert tables.score(picked) == 0


@each_space
@given(data=st.data())
def test_scores_in_parts(space: SearchSpace, data: st.DataObject) -> None:
    """The parts inside and outside layers add up to the same numbers as entry by entry."""
    tables, picked = tables_of(space, PUBLISHED_SCORE), data.draw(choices(space))
    total = sum_from_tables(tables, picked)
    assert tables.score(picked) == pytest.approx(total, rel=1e-12)
    blocks = stage_scores(space, random_importance(space), score=PUBLISHED_SCORE, scope="blocks")
    assert not any(scores.fixed.any() for scores in blocks)
    gains = [table.gains for table in tables.stages]
    of_blocks = space_tables(space, blocks, gains, score=PUBLISHED_SCORE)
    assert tables.score(picked, "blocks") == pytest.approx(of_blocks.score(picked), rel=1e-12)
    assert 0 <= tables.score(picked, "blocks") < total
    assert tables.score(space.extreme(-1), "blocks") > 0


@each_space
def test_scores_do_not_depend_on_the_resolution(space: SearchSpace) -> None:
    scores = stage_scores(space, random_importance(space), score=PUBLISHED_SCORE)
    gains = [table.gains for table in tables_of(space, PUBLISHED_SCORE).stages]
    for resolution in space.resolutions:
        tables = space_tables(space, scores, gains, score=PUBLISHED_SCORE, resolution=resolution)
        assert tables.resolution == resolution
        for table, known in zip(
            tables.stages, tables_of(space, PUBLISHED_SCORE).stages, strict=True
        ):
            assert np.array_equal(table.scores, known.scores)
            assert np.array_equal(table.fixed_scores, known.fixed_scores)
            assert np.array_equal(table.costs[..., 0], known.costs[..., 0])


def test_what_only_smaller_subnets_own_costs_and_scores_nothing() -> None:
    """A projection between two widths that are equal in the largest subnet, which has no use for
    it: it takes part in no gradient, and every subnet that has it pays for it."""
    space = get_space("mobilenet")
    tables = cost_tables(space, 224)
    for before, width in ((0, 1), (1, 0)):
        with_it = tables.stages[1].costs[before, width, 0, 0, 0]
        plain = tables.stages[1].costs[before, before, 0, 0, 0]
        widths = space.chain[0].widths[before], space.chain[1].widths[width]
        pointwise = widths[0] * (widths[1] - widths[0]) + 2 * (widths[1] - widths[0])
        assert with_it == plain + pointwise + widths[0] * widths[1]
    micro = TEST_SPACES["mobilenet"][1]
    supernet = new_supernet(micro)
    importance = measure_importance(supernet, micro.scored, images_for(micro))
    spare = importance.weights.keys() - {
        name for name, _ in build_structure(micro.scored, micro.settings).named_parameters()
    }
    assert spare
    assert not any(importance.gradients[name].any() for name in spare)
    assert all(importance.weights[name].any() for name in spare)


# --- gains ---------------------------------------------------------------------------------------


@each_vit_space
@pytest.mark.parametrize("normalised", [True, False])
def test_block_scores_equal_the_literal_ones(space: VitSpace, normalised: bool) -> None:
    """Gains of every option in every layer, at the largest width."""
    weights, gradients = random_importance(space)
    (found,) = block_scores(space, random_importance(space))
    expected = literal.block_scores(
        weights,
        gradients,
        embed_dim=space.embed_dim[-1],
        largest_embed_dim=space.embed_dim[-1],
        num_heads_options=space.num_heads,
        mlp_ratio_options=space.mlp_ratio,
        head_dim=space.settings.head_dim,
        normalised=normalised,
    )
    for scores, gains in zip(found, expected, strict=True):
        ours = scores.normalised if normalised else scores.raw
        assert not ours[:, 0].any()
        assert ours[:, 1:].T.tolist() == [pytest.approx(row, rel=1e-11) for row in gains]


@each_space
@settings(max_examples=5)
@given(data=st.data())
def test_block_scores_do_not_depend_on_scale(space: SearchSpace, data: st.DataObject) -> None:
    """Scaling one layer's gradients scales its raw gains but not its normalised ones."""
    prefixes = family_of(space).layers(space.largest)
    chosen = data.draw(st.sampled_from(prefixes))
    factor = data.draw(st.sampled_from([0.25, 8.0]))
    importance = random_importance(space)
    scaled = importance._replace(
        gradients={
            name: gradient * factor if name.startswith(chosen) else gradient
            for name, gradient in importance.gradients.items()
        }
    )
    number = 0
    for stage, before, after in zip(
        space.chain, block_scores(space, importance), block_scores(space, scaled), strict=True
    ):
        layers = prefixes[number : number + stage.depths[-1]]
        number += stage.depths[-1]
        factors = np.array([[factor if prefix == chosen else 1.0] for prefix in layers])
        for old, new in zip(before, after, strict=True):
            assert new.normalised == pytest.approx(old.normalised, rel=1e-12)
            assert new.raw == pytest.approx(old.raw * factors, rel=1e-12)


@each_space
def test_block_scores_are_shares_of_the_tensors_that_an_axis_sizes(space: SearchSpace) -> None:
    """Literally, tensor by tensor, by the boxes of two networks that differ in one axis; larger
    tensors count for more, as many times as they are larger."""
    family, (weights, gradients) = family_of(space), random_importance(space)
    prefixes = iter(family.layers(space.largest))
    largest = space.extreme(-1)
    scored = owned_boxes(space.scored, space.supernet, space.settings)
    found = block_scores(space, random_importance(space))
    for number, stage in enumerate(space.chain):
        layers = [next(prefixes) for _ in range(stage.depths[-1])]
        assert len(found[number]) == len(stage.axes)
        for place, axis in enumerate(stage.axes):
            ours = found[number][place]
            assert ours.normalised.shape == (len(layers), len(axis.options))
            assert not ours.normalised[:, 0].any()
            for option in range(1, len(axis.options)):
                boxes = []
                for one in (option - 1, option):
                    options = list(largest[number].options)
                    options[place] = (one,) * len(layers)
                    changed = list(largest)
                    changed[number] = changed[number]._replace(options=tuple(options))
                    arch = space.compose(tuple(changed))
                    boxes.append(owned_boxes(arch, space.supernet, space.settings))
                for layer, prefix in enumerate(layers):
                    shares, sizes = [], []
                    tensors = [
                        (prefix + n, dim) for n, dim in family.unit_tensors.get(axis.name, ())
                    ]
                    if family.unit_groups is not None:
                        group = family.unit_groups(space.largest)[number][place]
                        tensors = [(t.name, t.dim) for t in group.tensors if t.name in weights]
                    for name, unit_dim in tensors:
                        part = torch.zeros_like(weights[name], dtype=torch.bool)
                        part[boxes[1][name]] = True
                        if name in boxes[0]:  # it is not left out
                            part[boxes[0][name]] = False
                        whole = list(scored[name])
                        whole[unit_dim] = slice(None)
                        w, g = (t[name][tuple(whole)] for t in (weights, gradients))
                        added = (weights[name] * gradients[name]).abs()[part].sum()
                        shares.append(float(added / (w.abs().sum() * g.abs().sum())))
                        sizes.append(w.numel())
                    expected = np.dot(shares, sizes) / np.mean(sizes)
                    assert ours.normalised[layer, option] == pytest.approx(expected, rel=1e-9)


def test_an_axis_of_one_option_gains_nothing_and_needs_no_tensor() -> None:
    """The first stage has no expansion layer, so there is nothing to size."""
    space = get_space("mobilenet-micro")
    kernel, expand = block_scores(space, random_importance(space))[1]
    for scores in (kernel, expand):
        assert scores.raw.shape == (1, 1)
        assert not scores.raw.any()
        assert not scores.normalised.any()


def test_importance_is_left_alone() -> None:
    """Scores must not write into the weights and gradients they read."""
    space = TEST_SPACES["vit"][1]
    importance = random_importance(space)
    before = [{k: v.clone() for k, v in tensors.items()} for tensors in importance]
    block_scores(space, importance)
    for score in LITERAL:
        stage_scores(space, importance, score=score)
    for tensors, copies in zip(importance, before, strict=True):
        assert all(torch.equal(tensors[name], copies[name]) for name in copies)


def test_unknown_score_lists_the_choices() -> None:
    check_score_name("entropy", "vit")
    check_score_name(PUBLISHED_SCORE, "vit")
    with pytest.raises(ValueError, match="did you mean 'entropy'") as caught:
        check_score_name("entropie", "vit")
    assert all(name in str(caught.value) for name in LITERAL)


def test_default_score_is_the_papers() -> None:
    found: Any = WEIGHT_SCORES[PUBLISHED_SCORE]
    w, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    assert found.element(w, g).tolist() == [3.0, 8.0]
    assert found.finish is None
    assert not found.layer_choices_only


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (lambda w, g: g / (w * 0), "is not finite for some elements of .*do not divide"),
        (lambda w, g: (w * g).abs().log() - torch.inf, "is not finite"),
        (lambda w, g: (w * g).sum(), r"one element per weight, \(.*, but gives \(\)"),
        (lambda w, g: (w * g).numpy(), "but gives a ndarray"),
    ],
)
def test_a_score_that_is_no_finite_tensor_is_refused(
    element: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = TEST_SPACES["vit"][1]
    monkeypatch.setitem(WEIGHT_SCORES, "own", WeightScore(element))
    with pytest.raises(ValueError, match=f"the score own .*{message}"):
        stage_scores(space, random_importance(space), score="own")


def test_a_negative_score_has_no_power(monkeypatch: pytest.MonkeyPatch) -> None:
    space = TEST_SPACES["vit"][1]
    monkeypatch.setitem(WEIGHT_SCORES, "own", WeightScore(lambda w, g: w * g))
    stage_scores(space, random_importance(space), score="own")
    with pytest.raises(ValueError, match=r"the score own is negative .*leave search\.power at 1"):
        stage_scores(space, random_importance(space), score="own", power=0.5)


@pytest.mark.parametrize(
    "function",
    [
        lambda arch, settings: float(sum(arch.num_heads) * sum(arch.mlp_ratio)),
        lambda arch, settings: float("nan"),
    ],
)
def test_a_score_of_the_architecture_must_be_a_sum(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = TEST_SPACES["vit"][0]
    scores: Any = family_of(space).arch_scores
    monkeypatch.setitem(scores, "own", function)
    with pytest.raises(ValueError, match=r"the score own of .* a sum over stages and layers"):
        stage_scores(space, random_importance(space), score="own")
