"""A layout put together from few networks has the shapes of every network that is built."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from families.drawing import ALL_SPACES, choices
from prenas.families import build_structure
from prenas.families.base import SearchSpace
from prenas.proxy.layout import layout_of

each_space = pytest.mark.parametrize("space", ALL_SPACES)


@each_space
@given(data=st.data())
def test_shapes_are_those_of_the_built_network(space: SearchSpace, data: st.DataObject) -> None:
    """Whatever each layer chooses; so layers are interchangeable, and options independent."""
    skeleton = data.draw(st.sampled_from(space.skeletons))
    picked = data.draw(choices(space, skeleton))
    network = build_structure(space.compose(skeleton, picked), space.settings)
    built = {name: tuple(p.shape) for name, p in network.named_parameters()}
    layout = layout_of(space, skeleton)
    for name, shape in built.items():
        if name in layout.fixed:
            assert layout.fixed[name] == shape
    sized = {
        name: {axis[option][name] for option in set(options) if name in axis[option]}
        for axis, options in zip(layout.chosen, picked, strict=True)
        for name in axis[0]
    }
    assert built.keys() == layout.fixed.keys() | sized.keys()
    assert not layout.fixed.keys() & sized.keys()
    assert all(built[name] in shapes for name, shapes in sized.items())


@each_space
@given(data=st.data())
def test_one_option_everywhere(space: SearchSpace, data: st.DataObject) -> None:
    skeleton = data.draw(st.sampled_from(space.skeletons))
    options = [data.draw(st.integers(0, len(axis.options) - 1)) for axis in space.layer_axes]
    arch = space.compose(skeleton, [[option] * skeleton.num_layers for option in options])
    built = [tuple(p.shape) for p in build_structure(arch, space.settings).parameters()]
    assert sorted(layout_of(space, skeleton).shapes(options)) == sorted(built)
