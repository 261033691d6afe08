"""What is derived from an architecture's links equals what was written by hand for its family."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from families.drawing import TEST_SPACES, archs
from prenas.families import all_spaces, build_structure, family_of
from prenas.families.base import SearchSpace, check_contains, envelope
from reference.families import MOBILENET, VIT

each_space = pytest.mark.parametrize(
    ("space", "by_hand"),
    [
        pytest.param(space, by_hand, id=f"{space.family}-{number}-{space.name}")
        for by_hand, name in ((VIT, "vit"), (MOBILENET, "mobilenet"))
        for number, space in enumerate((
            *TEST_SPACES[name],
            *(space for space in all_spaces().values() if space.family == name),
        ))
    ],
)  # fmt: skip


@each_space
@given(data=st.data())
def test_of_one_architecture(
    space: SearchSpace, by_hand: SimpleNamespace, data: st.DataObject
) -> None:
    """Layers, branches, group, options and summary."""
    arch, family = data.draw(archs(space)), family_of(space)
    assert family.layers(arch) == by_hand.layers(arch)
    assert family.num_branches(arch) == by_hand.num_branches(arch)
    assert family.balancing_group(arch) == by_hand.balancing_group(arch)
    assert list(arch.network_options.items()) == list(by_hand.network_options(arch).items())
    assert list(arch.layer_options.items()) == list(by_hand.layer_options(arch).items())
    assert arch.summary == by_hand.summary(arch)


@each_space
def test_roles(space: SearchSpace, by_hand: SimpleNamespace) -> None:
    for arch in (space.smallest, space.supernet):
        names = [name for name, _ in build_structure(arch, space.settings).named_parameters()]
        found = family_of(space).roles(arch, names)
        assert found == {name: by_hand.role(arch, name) for name in names}


@each_space
@given(data=st.data())
def test_of_several_architectures(
    space: SearchSpace, by_hand: SimpleNamespace, data: st.DataObject
) -> None:
    """Their envelope and the space of their options, compared in JSON form."""
    members = data.draw(st.lists(archs(space), min_size=1, max_size=4))
    assert envelope(members) == by_hand.envelope(members)
    made = type(space).spanning(members, name="made", settings=space.settings)
    expected = by_hand.space_of("made", members, space.settings)
    assert made.model_dump_json() == expected.model_dump_json()
    assert made == expected


@each_space
@given(data=st.data())
def test_containment(space: SearchSpace, by_hand: SimpleNamespace, data: st.DataObject) -> None:
    """Also for envelopes, whose layers may differ in a tied stage."""
    drawn = st.lists(archs(space), min_size=1, max_size=3)
    largest, arch = envelope(data.draw(drawn)), data.draw(archs(space))
    try:
        check_contains(largest, arch)
    except ValueError:
        assert not by_hand.contains(largest, arch)
    else:
        assert by_hand.contains(largest, arch)
