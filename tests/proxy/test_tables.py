"""Tables give every candidate the score and cost that slicing its tensors gives."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families.drawing import ALL_SPACES, TEST_SPACES, choices
from prenas.cost import count
from prenas.families import build_structure, family_of
from prenas.families.base import SearchSpace
from prenas.families.vit.space import VitSpace
from prenas.proxy.importance import Importance
from prenas.proxy.scores import DEFAULT_SCORE, WEIGHT_SCORES, check_score_name
from prenas.proxy.tables import SpaceTables, block_scores, space_tables
from prenas.supernet import owned_boxes
from proxy.reading import cost_from_tables, sum_from_tables
from reference import scores as literal

each_space = pytest.mark.parametrize("space", ALL_SPACES)
each_vit_space = pytest.mark.parametrize("space", TEST_SPACES["vit"], ids=lambda s: s.name)


@functools.cache
def random_importance(space: SearchSpace) -> Importance:
    """Normal weights and gradients, also where the largest subnet has none, in float64."""
    generator = torch.Generator().manual_seed(1)
    shapes = build_structure(space.supernet, space.settings).named_parameters()
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
    gains = tuple(scores.normalised for scores in block_scores(space, importance))
    return space_tables(space, importance, gains, score=score)


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
    number = data.draw(st.integers(0, len(space.skeletons) - 1))
    picked = data.draw(choices(space, space.skeletons[number]))
    arch = space.compose(space.skeletons[number], picked)
    ours = finished(tables, sum_from_tables(tables, number, picked))
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
@pytest.mark.parametrize("score", WEIGHT_SCORES)
@given(data=st.data())
def test_scores_equal_sums_over_owned_boxes(
    space: SearchSpace, score: str, data: st.DataObject
) -> None:
    """The same for any family: the element of the score, summed over what the subnet owns."""
    family, entry, tables = family_of(space), WEIGHT_SCORES[score], tables_of(space, score)
    number = data.draw(st.integers(0, len(space.skeletons) - 1))
    picked = data.draw(choices(space, space.skeletons[number]))
    arch = space.compose(space.skeletons[number], picked)
    weights, gradients = random_importance(space)
    total = magnitude = 0.0
    for name, box in owned_boxes(arch, space.supernet, space.settings).items():
        if name not in weights or not family.is_scored(name):
            continue
        if entry.layer_choices_only and family.role(name).axis is None:
            continue
        elements = entry.element(weights[name], gradients[name])[box]
        total += elements.sum().item()
        magnitude += elements.abs().sum().item()
    ours = finished(tables, sum_from_tables(tables, number, picked))
    assert ours == pytest.approx(finished(tables, total), rel=1e-12, abs=1e-13 * magnitude)


@each_space
@given(data=st.data())
def test_costs_are_those_of_the_arch(space: SearchSpace, data: st.DataObject) -> None:
    tables = tables_of(space, DEFAULT_SCORE)
    number = data.draw(st.integers(0, len(space.skeletons) - 1))
    picked = data.draw(choices(space, space.skeletons[number]))
    cost = count(space.compose(space.skeletons[number], picked), space.settings)
    assert cost_from_tables(tables, number, picked) == [cost.params, cost.macs]


@each_space
def test_tables_have_the_shape_of_the_space(space: SearchSpace) -> None:
    """The smallest option adds nothing to costs; gains are those handed in."""
    tables = tables_of(space, DEFAULT_SCORE)
    assert len(tables.skeletons) == len(space.skeletons)
    for table, skeleton in zip(tables.skeletons, space.skeletons, strict=True):
        assert table.num_layers == skeleton.num_layers
        for axis_table, axis in zip(table.axes, space.layer_axes, strict=True):
            assert axis_table.scores.shape == (skeleton.num_layers, len(axis.options))
            assert axis_table.costs.shape == (len(axis.options), 2)
            assert not axis_table.costs[0].any()
            assert (np.diff(axis_table.costs, axis=0) > 0).all()
    for gains, axis in zip(tables.gains, space.layer_axes, strict=True):
        assert gains.shape == (space.skeletons[-1].num_layers, len(axis.options))


@each_vit_space
@pytest.mark.parametrize("normalised", [True, False])
def test_block_scores_equal_the_literal_ones(space: VitSpace, normalised: bool) -> None:
    """Gains of every option in every layer, at the largest width."""
    weights, gradients = random_importance(space)
    found = block_scores(space, random_importance(space))
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
    """Gradients of one layer times a number: its raw gains grow, the normalised stay."""
    layer = data.draw(st.integers(0, space.skeletons[-1].num_layers - 1))
    factor = data.draw(st.sampled_from([0.25, 8.0]))
    importance = random_importance(space)
    prefix = family_of(space).layer_prefix(layer)
    scaled = importance._replace(
        gradients={
            name: gradient * factor if name.startswith(prefix) else gradient
            for name, gradient in importance.gradients.items()
        }
    )
    pairs = zip(block_scores(space, importance), block_scores(space, scaled), strict=True)
    for before, after in pairs:
        assert after.normalised == pytest.approx(before.normalised, rel=1e-12)
        raw = before.raw.copy()
        raw[layer] *= factor
        assert after.raw == pytest.approx(raw, rel=1e-12)


def test_importance_is_left_alone() -> None:
    """Scores must not write into the weights and gradients they read."""
    space = TEST_SPACES["vit"][1]
    importance = random_importance(space)
    before = [{k: v.clone() for k, v in tensors.items()} for tensors in importance]
    gains = tuple(scores.raw for scores in block_scores(space, importance))
    for score in LITERAL:
        space_tables(space, importance, gains, score=score)
    for tensors, copies in zip(importance, before, strict=True):
        assert all(torch.equal(tensors[name], copies[name]) for name in copies)


def test_unknown_score_lists_the_choices() -> None:
    check_score_name("entropy", "vit")
    check_score_name(DEFAULT_SCORE, "vit")
    with pytest.raises(ValueError, match="did you mean 'entropy'") as caught:
        check_score_name("entropie", "vit")
    assert all(name in str(caught.value) for name in LITERAL)


def test_default_score_is_the_papers() -> None:
    found: Any = WEIGHT_SCORES[DEFAULT_SCORE]
    w, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    assert found.element(w, g).tolist() == [3.0, 8.0]
    assert found.finish is None
    assert not found.layer_choices_only
