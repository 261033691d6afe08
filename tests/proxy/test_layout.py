"""A layout assembled from a few networks has the shapes of every network."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from families.drawing import ALL_SPACES, choices
from prenas.cost import count
from prenas.families import build_structure, get_space, shapes_by_role
from prenas.families.base import Arch, SearchSpace, Settings
from prenas.proxy import layout as layouts
from prenas.proxy.layout import costs_of, interchangeable, layout_of, num_options, options_of

each_space = pytest.mark.parametrize("space", ALL_SPACES)


@each_space
@given(data=st.data())
def test_shapes_are_those_of_the_built_network(space: SearchSpace, data: st.DataObject) -> None:
    """For any option of each layer, and any neighbours of a stage."""
    picked = data.draw(choices(space))
    network = build_structure(space.compose(picked), space.settings)
    built = {name: tuple(p.shape) for name, p in network.named_parameters()}
    found, before = {}, 0
    for stage, layout, choice in zip(space.chain, layout_of(space), picked, strict=True):
        ways = [options_of(stage, number) for number in range(num_options(stage))]
        found |= layout.fixed[before, choice.width]
        for layer in range(choice.depth):
            option = ways.index(tuple(options[layer] for options in choice.options))
            found |= layout.layer(layer, before, choice.width, option)
        before = choice.width
    assert found == built


@each_space
@pytest.mark.parametrize("end", [0, -1])
def test_costs_are_those_of_the_built_network(space: SearchSpace, end: int) -> None:
    """For the smallest and the largest, at every resolution (the tables' tests cover others)."""
    picked = space.extreme(end)
    for resolution in space.resolutions:
        total, before = 0, 0
        for costs, choice in zip(costs_of(space, resolution), picked, strict=True):
            total = total + costs.fixed[before, choice.width]
            layers = costs.layers[before, choice.width, : choice.depth, end]
            total, before = total + layers.sum(axis=0), choice.width
        expected = count(space.compose(picked, resolution), space.settings)
        assert total.tolist() == [expected["params"], expected["macs"]]


@pytest.mark.parametrize("name", ["mobilenet", "ofa-mobilenetv3", "small", "mobilenet-small"])
def test_no_more_networks_are_built_than_a_stage_has_ways(name: str) -> None:
    """A large network takes 30 ms; the stage with most widths and options sets the number."""
    stages = get_space(name).chain
    needed = [
        before * len(stage.widths) * num_options(stage)
        for before, stage in zip(layouts.widths_before(stages), stages, strict=True)
    ]
    assert len(list(layouts._probes(stages))) == max(needed)


# --- interchangeable layers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "small", "base", "digits"])
def test_a_chain_of_one_stage_has_one_class(name: str) -> None:
    space = get_space(name)
    (classes,) = interchangeable(space, None)
    assert classes == (tuple(range(space.chain[0].depths[-1])),)


@pytest.mark.parametrize("name", ["mobilenet", "ofa-mobilenetv3", "mobilenet-small"])
def test_the_first_layer_of_a_stage_stands_alone(name: str) -> None:
    """Its input, stride or map size differ; all later layers are alike."""
    space = get_space(name)
    for stage, classes in zip(
        space.chain, interchangeable(space, space.resolutions[0]), strict=True
    ):
        others = tuple(range(1, stage.depths[-1]))
        expected = [(0,), others] if others else [(0,)]
        assert list(classes) == (expected if stage.depths[-1] else [])


def test_a_first_layer_that_differs_in_nothing_is_one_of_them() -> None:
    """Follows from shapes and costs: without a new width or a stride, all layers are alike."""
    space = get_space("mobilenet-micro")
    stages = [
        stage.model_copy(update={"width": (16,), "stride": 1, "depth": (1, 3)})
        for stage in space.stages  # type: ignore[attr-defined]
    ]
    alike = space.model_copy(update={"stages": tuple(stages)})
    assert interchangeable(alike, None)[2] == ((0, 1, 2),)
    assert interchangeable(alike, None)[1] == ((0,), (1, 2))  # there the stem is narrower


@each_space
def test_layers_of_a_class_cost_the_same(space: SearchSpace) -> None:
    for resolution in space.resolutions:
        for costs, classes in zip(
            costs_of(space, resolution), interchangeable(space, resolution), strict=True
        ):
            assert sorted(sum(classes, ())) == list(range(costs.layers.shape[2]))
            for layers in classes:
                found = costs.layers[:, :, list(layers)]
                assert (found == found[:, :, :1]).all()


def test_numbers_of_options_are_their_product() -> None:
    stage = get_space("small").chain[0]
    ways = [options_of(stage, number) for number in range(num_options(stage))]
    assert len(set(ways)) == math.prod(len(axis.options) for axis in stage.axes) == len(ways)
    assert ways == sorted(ways)


def test_no_network_is_read_that_is_shallower_than_the_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A family need not be able to build one."""
    space = get_space("digits").model_copy(update={"name": "deep", "depth": (3, 5)})
    depths = set()

    def noted(arch: Arch, settings: Settings) -> object:
        depths.add(arch.num_layers)
        return shapes_by_role(arch, settings)

    monkeypatch.setattr(layouts, "shapes_by_role", noted)
    layout_of(space)
    assert depths == {3, 5}
