"""Isomers: the classes, their order, and which member of a class is kept."""

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prenas.families import all_spaces, get_space
from prenas.families.vit.space import VitSpace
from prenas.proxy.gains import BlockScores
from prenas.proxy.tables import StageTable, layer_options
from prenas.recipe import Enumeration, IsomerRule
from prenas.selection import isomers
from prenas.selection.allocations import (
    allocate,
    allocate_evenly,
    count_vectors,
)
from prenas.selection.isomers import (
    axis_items,
    isomer_gains,
    num_isomer_classes,
    require_listable,
    stage_items,
)
from reference import scores as literal
from selection.chains import representatives, stage_tables

MODES: tuple[Enumeration, ...] = ("all", "published")


@st.composite
def gains_and_counts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Gains [layers, options] with ties, and some count vectors [ways, options]."""
    num_layers, num_options = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    row = st.lists(st.integers(-2, 2), min_size=num_options, max_size=num_options)
    gains = draw(st.lists(row, min_size=num_layers, max_size=num_layers))
    ways = st.lists(st.integers(0, num_options - 1), min_size=num_layers, max_size=num_layers)
    counts = [
        [options.count(option) for option in range(num_options)]
        for options in draw(st.lists(ways, min_size=1, max_size=4))
    ]
    return np.array(gains, dtype=np.float64), np.array(counts)


@given(gains_and_counts())
def test_allocation_equals_the_literal_rule(case: tuple[np.ndarray, np.ndarray]) -> None:
    """From the largest option down to the free layers of highest gain; ties: the earlier layer."""
    gains, counts = case
    found = allocate(gains, counts)
    assert found.shape == (len(counts), len(gains))
    for choice, way in zip(found.tolist(), counts.tolist(), strict=True):
        assert choice == literal.allocate(gains.T[1:].tolist(), way)
        assert [choice.count(option) for option in range(len(way))] == way


@given(gains_and_counts())
def test_allocation_sees_the_order_of_gains_alone(case: tuple[np.ndarray, np.ndarray]) -> None:
    """Any increasing function of the gains allocates alike; the first column has no effect."""
    gains, counts = case
    expected = allocate(gains, counts).tolist()
    assert allocate(np.exp(gains) + 7, counts).tolist() == expected
    changed = gains.copy()
    changed[:, 0] = np.arange(len(gains))
    assert allocate(changed, counts).tolist() == expected


def test_allocation_by_hand() -> None:
    gains = np.array([[0, 1, 3], [0, 5, 2], [0, 4, 3], [0, 9, 9]], dtype=np.float64)
    found = allocate(gains[:3], np.array([[1, 1, 1], [0, 1, 2], [3, 0, 0], [0, 0, 3]]))
    assert found.tolist() == [[2, 1, 0], [2, 1, 2], [0, 0, 0], [2, 2, 2]]


@pytest.mark.parametrize("mode", MODES)
def test_count_vectors_equal_the_literal_enumeration(mode: Enumeration) -> None:
    """The same cut points in the same order.

    The reference reads the pieces from the smallest option up, we from the largest down (column 0
    is the smallest option in both), so our rows are its rows read backwards.
    """
    for sizes in product([1, 2, 3, 6], [1, 2, 3, 4]):  # layers, options
        found = count_vectors(*sizes, mode)
        expected = literal.enumerate_counts(*sizes, published=mode == "published")
        assert [tuple(row[::-1]) for row in found.tolist()] == list(expected), sizes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["tiny", "small", "base", "digits"])
def test_classes_are_counted_without_listing_them(name: str, mode: Enumeration) -> None:
    space = get_space(name)
    listed = sum(
        np.prod(
            [len(count_vectors(depth, len(axis.options), mode)) for axis in stage.axes],
            dtype=np.int64,
        )
        for stage in space.chain
        for depth in stage.depths
        for _ in stage.widths
    )
    assert num_isomer_classes(space, mode) == listed


@given(st.integers(1, 8), st.integers(1, 4))
def test_all_count_vectors_once_each(num_layers: int, num_options: int) -> None:
    found = [tuple(row) for row in count_vectors(num_layers, num_options, "all").tolist()]
    everything = (
        {
            tuple(np.bincount(picks, minlength=num_options).tolist())
            for picks in np.ndindex(*[num_options] * num_layers)
        }
        if num_options**num_layers <= 4096
        else None
    )
    assert len(set(found)) == len(found)
    assert all(sum(row) == num_layers and min(row) >= 0 for row in found)
    if everything is not None:
        assert set(found) == everything
    published = [tuple(row) for row in count_vectors(num_layers, num_options, "published").tolist()]
    # Strictly rising cut points: every middle option has a layer.
    assert published == [row for row in found if all(row[1:-1])]


@settings(max_examples=60)
@given(
    deepest=st.integers(0, 8),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    mode=st.sampled_from(MODES),
    is_even=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sums_of_allocations_are_those_of_their_layers(
    deepest: int, sizes: list[int], mode: Enumeration, is_even: bool, seed: int
) -> None:
    """The same as adding up, layer by layer, what each layer gets more than with option 0."""
    generator = np.random.default_rng(seed)
    number = int(np.prod(sizes))
    every = generator.permutation(deepest).tolist()
    table = StageTable(
        depths=(deepest,),
        num_options=tuple(sizes),
        tied=False,
        classes=tuple(tuple(sorted(part)) for part in (every[1:], every[:1]) if part),
        fixed_costs=np.zeros((1, 1, 2), dtype=np.int64),
        costs=np.zeros((1, 1, deepest, number, 2), dtype=np.int64),
        fixed_scores=np.zeros((1, 1)),
        scores=np.zeros((1, 1, deepest, number)),
        gains=tuple(generator.integers(0, 4, (deepest, size)).astype(float) for size in sizes),
        is_even=is_even,
    )
    entries = generator.integers(-9, 9, (deepest, number, 3)) / 4.0
    for found in axis_items(table, deepest, mode):
        numbers, own = found.numbers(), entries[list(found.layers)]
        layers = np.arange(len(found.layers))
        expected = (own[layers, numbers] - own[:, 0]).sum(axis=1)
        assert found.sums(entries).tolist() == expected.tolist()
        assert found.numbers(np.arange(len(found))[::2]).tolist() == numbers[::2].tolist()


def test_order_begins_at_the_smallest() -> None:
    """Column 0 is the smallest option."""
    assert count_vectors(2, 2, "all").tolist() == [[2, 0], [1, 1], [0, 2]]
    assert count_vectors(2, 3, "published").tolist() == [[1, 1, 0], [0, 2, 0], [0, 1, 1]]
    assert len(count_vectors(14, 3, "published")) == 105
    assert len(count_vectors(14, 3, "all")) == 120


@pytest.mark.parametrize(
    ("name", "mode", "num_classes"),
    [
        ("tiny", "all", 1770),
        ("small", "all", 76275),
        ("base", "all", 19731),
        ("tiny", "published", 1770),
        ("small", "published", 57918),
        ("base", "published", 17421),
    ],
)
def test_classes_of_the_published_spaces(name: str, mode: Enumeration, num_classes: int) -> None:
    """The product over the axes, for each width and depth (docs/method.md, section 3)."""
    assert num_isomer_classes(get_space(name), mode) == num_classes


def test_classes_of_tied_stages_are_their_architectures() -> None:
    """Classes are counted again at every resolution."""
    for name in ("mobilenet", "mobilenet-micro", "mobilenet-small"):
        space = get_space(name)
        assert num_isomer_classes(space) == space.num_archs
    assert get_space("mobilenet").num_archs == 4 * 110_075_314_176


def test_classes_of_free_stages_are_those_of_the_first_layer_times_those_of_the_others() -> None:
    """Depths 2 to 4 of each stage, 3 kernels and 3 ratios; the first stage is fixed."""
    space = get_space("ofa-mobilenetv3")
    ways = sum(9 * len(count_vectors(n, 3, "all")) ** 2 for n in (1, 2, 3))
    assert num_isomer_classes(space) == len(space.resolutions) * ways**5


# --- rules ---------------------------------------------------------------------------------------


def block_scores() -> list[tuple[BlockScores, ...]]:
    """A stage with two axes of 5 layers, of 3 and 2 options; one of 2 layers; one without."""
    generator = np.random.Generator(np.random.Philox(key=1))

    def scores(*shape: int) -> BlockScores:
        return BlockScores(generator.random(shape), generator.random(shape))

    return [(scores(5, 3), scores(5, 2)), (scores(2, 3),), ()]


def test_block_score_rules_take_the_block_scores() -> None:
    for stages, field in (
        (isomer_gains("published", block_scores(), 0), 0),
        (isomer_gains("raw", block_scores(), 0), 1),
    ):
        for found, scores in zip(stages, block_scores(), strict=True):
            assert len(found) == len(scores)
            for gains, expected in zip(found, scores, strict=True):
                assert np.array_equal(gains, expected[field])


def test_front_gives_larger_options_to_the_first_layers() -> None:
    (heads, ratios), (others,), nothing = isomer_gains("front", block_scores(), 0)
    assert heads.shape == (5, 3)
    assert ratios.shape == (5, 2)
    assert others.shape == (2, 3)
    assert nothing == ()
    assert allocate(heads, np.array([[2, 1, 2]])).tolist() == [[2, 2, 1, 0, 0]]
    assert allocate(ratios, np.array([[3, 2]])).tolist() == [[1, 1, 0, 0, 0]]


def test_nested_by_hand() -> None:
    (heads, ratios), (others,), nothing = isomer_gains("nested", block_scores(), 0)
    assert allocate(ratios, np.array([[4, 1], [3, 2], [2, 3]])).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1],
        [1, 0, 1, 0, 1],
    ]
    assert allocate(heads, np.array([[1, 2, 2]])).tolist() == [[2, 1, 1, 0, 2]]
    assert others.shape == (2, 3)
    assert nothing == ()


@given(depth=st.integers(1, 40), options=st.integers(2, 5), data=st.data())
def test_nested_options_grow_with_the_counts_and_are_spread(
    depth: int, options: int, data: st.DataObject
) -> None:
    """With larger counts no layer gets less, in any depth; every second layer comes first, and of
    these every second."""
    scores = BlockScores(*np.zeros((2, 40, options)))
    gains = isomer_gains("nested", [(scores,)], 0)[0][0][:depth]
    cuts = st.lists(st.integers(0, depth), min_size=options - 1, max_size=options - 1).map(sorted)
    some, others = (np.array(data.draw(cuts)) for _ in range(2))
    ways = [np.diff([0, *both, depth])[::-1] for both in (some, np.maximum(some, others))]
    smaller, larger = allocate(gains, np.array(ways))
    assert np.all(smaller <= larger)
    order = np.argsort(-gains[:, 0])
    for period in (2, 4, 8, 16, 32):
        every = np.arange(0, depth, period)
        assert sorted(order[: len(every)]) == every.tolist()


def test_worst_takes_the_layers_of_the_lowest_block_scores() -> None:
    for stage, scores in zip(isomer_gains("worst", block_scores(), 0), block_scores(), strict=True):
        for gains, one in zip(stage, scores, strict=True):
            assert np.array_equal(gains, -one.normalised)


def test_even_options_by_hand() -> None:
    """The middles of equal parts of the layers that are still free."""
    counts = np.array([[6, 0, 1], [5, 0, 2], [4, 0, 3], [0, 7, 0], [3, 2, 2], [0, 0, 7]])
    assert allocate_evenly(7, counts).tolist() == [
        [0, 0, 0, 2, 0, 0, 0],
        [0, 2, 0, 0, 0, 2, 0],
        [0, 2, 0, 2, 0, 2, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 2, 1, 0, 1, 2, 0],
        [2, 2, 2, 2, 2, 2, 2],
    ]
    assert not isomer_gains("even", block_scores(), 0)[0][0].any()


@given(sizes=st.tuples(st.integers(1, 30), st.integers(1, 5)), data=st.data())
def test_even_options_are_as_far_apart_as_they_can_be(
    sizes: tuple[int, int], data: st.DataObject
) -> None:
    """The counts are kept; any stretch of layers has its share of the largest option, up to one."""
    num_layers, num_options = sizes
    cuts = data.draw(
        st.lists(st.integers(0, num_layers), min_size=num_options - 1, max_size=num_options - 1)
    )
    numbers = np.diff([0, *sorted(cuts), num_layers])
    (found,) = allocate_evenly(num_layers, numbers[None])
    assert np.bincount(found, minlength=num_options).tolist() == numbers.tolist()
    largest = np.concatenate([[0], np.cumsum(found == num_options - 1)])
    for start in range(num_layers):
        for end in range(start, num_layers + 1):
            share = (end - start) * numbers[-1] / num_layers
            assert abs(largest[end] - largest[start] - share) < 1 + 1e-9


@given(st.data())
def test_even_items_need_no_gains(data: st.DataObject) -> None:
    """Of every class of layers and axis, what `allocate_evenly` says, in the same order."""
    table = data.draw(stage_tables(1, tied=False))
    even = replace(table, is_even=True)
    found = stage_items(even, "all")
    assert len(found) == len(stage_items(table, "all"))
    others = replace(even, gains=tuple(-gains for gains in even.gains))
    assert np.array_equal(found, stage_items(others, "all"))
    for item in found:
        depth = int((item >= 0).sum())
        if depth == 0 or not table.num_options:
            continue
        per_axis = np.unravel_index(item[:depth], table.num_options)
        for layers in ([one for one in some if one < depth] for some in table.classes):
            for options, size in zip(per_axis, table.num_options, strict=True):
                numbers = np.bincount(options[layers], minlength=size)[None]
                assert options[layers].tolist() == allocate_evenly(len(layers), numbers)[0].tolist()


def test_random_follows_its_seed_and_its_place() -> None:
    scores = [block_scores()[0] * 2, block_scores()[0]]
    first, again, other = (isomer_gains("random", scores, seed) for seed in (0, 0, 1))
    draws = [gains.tobytes() for stage in first for gains in stage]
    assert len(set(draws)) == len(draws) == 6
    assert [gains.tobytes() for stage in again for gains in stage] == draws
    assert not set(draws) & {gains.tobytes() for stage in other for gains in stage}
    for stage, expected in zip(first, scores, strict=True):
        assert [gains.shape for gains in stage] == [one.raw.shape for one in expected]


def test_random_gives_every_layer_its_chance() -> None:
    """One large option among five layers, 2,000 seeds: each layer within five deviations."""
    scores = [block_scores()[0][1:]]
    chosen = Counter(
        allocate(isomer_gains("random", scores, seed)[0][0], np.array([[4, 1]]))[0].argmax()
        for seed in range(2000)
    )
    deviation = (2000 * 0.2 * 0.8) ** 0.5
    assert all(abs(chosen[layer] - 400) < 5 * deviation for layer in range(5))


def test_unknown_rule_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="did you mean 'published'") as caught:
        isomer_gains("publisht", block_scores(), 0)  # type: ignore[arg-type]
    for rule in get_args(IsomerRule):
        assert rule in str(caught.value)


# --- items ---------------------------------------------------------------------------------------


@given(st.data())
def test_items_are_therepresentatives_of_a_stage(data: st.DataObject) -> None:
    """Items come in order, for any classes of interchangeable layers."""
    table = data.draw(stage_tables(1))
    found = stage_items(table, "all")
    expected = [one for one in representatives(table, "all") if one.width == 0]
    assert len(found) == len(expected)
    for item, choice in zip(found.tolist(), expected, strict=True):
        assert [option >= 0 for option in item] == [
            layer < choice.depth for layer in range(table.depths[-1])
        ]
        numbers = [table.option(options) for options in layer_options(choice)]
        assert item[: choice.depth] == numbers


@pytest.mark.parametrize("enumeration", MODES)
def test_every_named_space_can_be_listed(enumeration: Enumeration) -> None:
    for space in all_spaces().values():
        require_listable(space, enumeration)


def test_scores_that_do_not_add_up_need_all_combinations_listed() -> None:
    """Five MLP ratios and four numbers of heads in 24 layers: each alone is a short list."""
    space = VitSpace(
        name="x", embed_dim=(64,), depth=(24,), num_heads=(1, 2, 3, 4), mlp_ratio=(1, 2, 3, 4, 5)
    )
    require_listable(space, "all")
    with pytest.raises(ValueError, match="59,889,375 isomer classes, too many to list"):
        require_listable(space, "all", by_axis=False)


def test_a_space_with_too_many_classes_is_refused_without_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of two axes alone has C(14 + 31, 31) = 166,871,334,960 classes."""

    def never(*args: object) -> None:
        raise AssertionError("measured something")

    monkeypatch.setattr(isomers, "cost_tables", never)
    options = tuple(range(1, 33))
    space = VitSpace(name="x", embed_dim=(64,), depth=(14,), num_heads=options, mlp_ratio=options)
    with pytest.raises(ValueError, match=r"up to 14 layers with 32 x 32 options has about 10\^22"):
        require_listable(space, "all")
    few = space.model_copy(update={"num_heads": (1, 2), "mlp_ratio": (1.0, 2.0)})
    require_listable(few, "all")
