"""Every family keeps the contract of `prenas.families.base`: nothing here names a family.

A new family is covered as soon as `drawing.TEST_SPACES` has small spaces for it.
"""

import copy
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from families.drawing import (
    ALL_SPACES,
    TEST_SPACES,
    archs,
    assert_equal,
    choices,
    images_for,
    new_supernet,
    noise_for,
    shared_supernet,
)
from prenas.cost import count
from prenas.families import (
    FAMILIES,
    all_spaces,
    build,
    build_structure,
    family_of,
    get_space,
    parameter_shapes,
)
from prenas.families.base import Arch, SearchSpace, TensorRole, leading_boxes, tensor_shapes
from prenas.supernet import Supernet

each_space = pytest.mark.parametrize("space", ALL_SPACES)
DROP_PATH = 0.3


def global_states() -> tuple[Tensor, object, object]:
    """The three global generators on the CPU."""
    _, keys, *rest = np.random.get_state()
    return torch.get_rng_state(), (keys.tolist(), rest), random.getstate()


@contextmanager
def global_state_untouched() -> Iterator[None]:
    """Fails if the block advances or reseeds a global generator."""
    torch_before, *others_before = global_states()
    yield
    torch_after, *others_after = global_states()
    assert torch.equal(torch_before, torch_after)
    assert others_before == others_after


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a state dict holds."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, before: dict[str, Tensor]) -> None:
    """To the bit."""
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def fits(largest: Arch, arch: Arch) -> bool:
    """Whether the family says so."""
    try:
        family_of(largest).check_contains(largest, arch)
    except ValueError:
        return False
    return True


# --- architectures and spaces --------------------------------------------------------------------


def test_every_family_has_test_spaces() -> None:
    """What is not listed would not be tested."""
    missing = [name for name in FAMILIES if not TEST_SPACES.get(name)]
    assert not missing, f"add small spaces to families/drawing.py for {missing}"
    for name, family in FAMILIES.items():
        assert family.name == name
        assert all(isinstance(space, family.space_type) for space in TEST_SPACES[name])
        assert all(family_of(space) is family for space in TEST_SPACES[name])


@pytest.mark.parametrize("name", all_spaces())
def test_named_spaces_stand_under_their_name(name: str) -> None:
    space = get_space(name)
    assert space.name == name
    assert FAMILIES[space.family].spaces[name] is space
    assert isinstance(space.settings, FAMILIES[space.family].settings_type)


@each_space
@given(data=st.data())
def test_arch_survives_json(space: SearchSpace, data: st.DataObject) -> None:
    arch = data.draw(archs(space))
    again = type(arch).model_validate_json(arch.model_dump_json())
    assert again == arch
    assert hash(again) == hash(arch)
    assert again.id == arch.id
    assert re.fullmatch("[0-9a-f]{10}", arch.id)
    assert family_of(arch) is family_of(space)


@each_space
def test_skeletons_are_every_combination_of_their_choices(space: SearchSpace) -> None:
    """So that a choice may be exchanged for any other."""
    values = [tuple(dict(skeleton).values()) for skeleton in space.skeletons]
    assert len(set(values)) == len(values)
    assert set(values) == set(product(*map(set, zip(*values, strict=True))))


@each_space
def test_a_sample_is_uniform_and_named_by_its_generator(space: SearchSpace) -> None:
    """Every choice takes every option equally often, and equal generators draw the same."""
    num_draws = 600 * len(space.skeletons)
    generator = np.random.default_rng(0)
    drawn = [space.sample(generator) for _ in range(num_draws)]
    again = np.random.default_rng(0)
    assert drawn[:50] == [space.sample(again) for _ in range(50)]
    for arch in drawn[:50]:
        assert fits(space.largest, arch)

    networks = Counter(tuple(arch.network_options.values()) for arch in drawn)
    assert len(networks) == len(space.skeletons)
    assert all(abs(number - 600) < 5 * 600**0.5 for number in networks.values())
    for axis in space.layer_axes:
        firsts = Counter(arch.layer_options[axis.name][0] for arch in drawn)
        assert set(firsts) == set(axis.options)
        expected = num_draws / len(axis.options)
        assert all(abs(number - expected) < 5 * expected**0.5 for number in firsts.values())


@each_space
def test_space_survives_json(space: SearchSpace) -> None:
    again = type(space).model_validate_json(space.model_dump_json())
    assert again == space
    assert hash(again) == hash(space)


@each_space
@given(data=st.data())
def test_ids_are_equal_iff_archs_are(space: SearchSpace, data: st.DataObject) -> None:
    left, right = data.draw(archs(space)), data.draw(archs(space))
    assert (left.id == right.id) == (left == right)


@each_space
def test_arch_is_frozen_and_closed(space: SearchSpace) -> None:
    arch = space.smallest
    first = next(iter(type(arch).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(arch, first, getattr(space.largest, first))
    with pytest.raises(ValidationError, match="no_such_field"):
        type(arch).model_validate({**arch.model_dump(), "no_such_field": 1})


@each_space
def test_compose_yields_every_arch_once(space: SearchSpace) -> None:
    """All of a small space; of a large one its smallest skeleton with two options per axis."""
    if space.num_archs <= 5000:
        skeletons, options = space.skeletons, [len(axis.options) for axis in space.layer_axes]
        expected = space.num_archs
    else:
        skeletons, options = space.skeletons[:1], [2 for _ in space.layer_axes]
        expected = 2 ** (len(options) * skeletons[0].num_layers)
    found = {
        space.compose(skeleton, axis_choices)
        for skeleton in skeletons
        for axis_choices in product(
            *(product(range(num), repeat=skeleton.num_layers) for num in options)
        )
    }
    assert len(found) == expected
    assert len({arch.id for arch in found}) == expected


@each_space
@given(data=st.data())
def test_options_are_what_was_chosen(space: SearchSpace, data: st.DataObject) -> None:
    """In every layer what was composed, and per network what tells skeletons apart."""
    skeleton = data.draw(st.sampled_from(space.skeletons))
    picked = data.draw(choices(space, skeleton))
    arch = space.compose(skeleton, picked)
    assert list(arch.layer_options) == [axis.name for axis in space.layer_axes]
    for axis, numbers in zip(space.layer_axes, picked, strict=True):
        kept = [option for option in arch.layer_options[axis.name] if option is not None]
        assert kept == [axis.options[number] for number in numbers]
    other_skeleton = data.draw(st.sampled_from(space.skeletons))
    other = space.compose(other_skeleton, data.draw(choices(space, other_skeleton)))
    assert list(arch.network_options) == list(other.network_options)
    assert (arch.network_options == other.network_options) == (skeleton == other_skeleton)
    assert not set(arch.network_options) & set(arch.layer_options)
    lengths = {len(options) for options in arch.layer_options.values()}
    assert len(lengths) == 1
    blanks = {tuple(o is None for o in options) for options in arch.layer_options.values()}
    assert len(blanks) == 1


@each_space
@given(data=st.data())
def test_extremes_bound_the_space(space: SearchSpace, data: st.DataObject) -> None:
    arch = data.draw(archs(space))
    check_contains = family_of(space).check_contains
    check_contains(space.supernet, arch)
    check_contains(space.supernet, space.largest)
    check_contains(space.largest, space.smallest)
    check_contains(arch, arch)
    if arch != space.supernet:
        check_contains(space.largest, arch)
    low, cost = count(space.smallest, space.settings), count(arch, space.settings)
    high = count(space.supernet, space.settings)
    assert low.params <= cost.params <= high.params
    assert low.macs <= cost.macs <= high.macs


@each_space
def test_axes_rise(space: SearchSpace) -> None:
    """Options from small to large: each costs more than the one before, in every layer alike."""
    skeleton = space.skeletons[-1]
    zeros = [[0] * skeleton.num_layers for _ in space.layer_axes]
    assert len({axis.name for axis in space.layer_axes}) == len(space.layer_axes)
    for number, axis in enumerate(space.layer_axes):
        assert list(axis.options) == sorted(set(axis.options))
        for layer in range(skeleton.num_layers):
            costs = []
            for option in range(len(axis.options)):
                picked = copy.deepcopy(zeros)
                picked[number][layer] = option
                costs.append(count(space.compose(skeleton, picked), space.settings))
            for smaller, larger in pairwise(costs):
                assert smaller.params < larger.params
                assert smaller.macs < larger.macs


@each_space
def test_with_settings_changes_the_settings_alone(space: SearchSpace) -> None:
    changed = space.with_settings(num_classes=7)
    assert changed.settings == type(space.settings)(
        **{**space.settings.model_dump(), "num_classes": 7}
    )
    assert changed.model_dump(exclude={"settings"}) == space.model_dump(exclude={"settings"})
    with pytest.raises(ValueError, match="no_such_setting"):
        space.with_settings(no_such_setting=1)
    with pytest.raises(ValueError, match="num_classes"):
        space.with_settings(num_classes=0)


# --- envelope and containment --------------------------------------------------------------------


@each_space
@given(data=st.data())
def test_envelope_contains_its_members(space: SearchSpace, data: st.DataObject) -> None:
    members = data.draw(st.lists(archs(space), min_size=1, max_size=4))
    family = family_of(space)
    envelope = family.envelope(members)
    for member in members:
        family.check_contains(envelope, member)
        assert family.envelope([envelope, member]) == envelope
    assert family.envelope(members[::-1]) == envelope
    assert family.envelope(members[:1]) == members[0]
    family.check_contains(space.supernet, envelope)


@each_space
@given(data=st.data())
def test_envelope_is_minimal(space: SearchSpace, data: st.DataObject) -> None:
    """On one skeleton: per axis and layer the largest option that a member has, no larger."""
    skeleton = data.draw(st.sampled_from(space.skeletons))
    members = data.draw(st.lists(choices(space, skeleton), min_size=1, max_size=3))
    largest = np.max(members, axis=0).tolist()
    envelope = family_of(space).envelope([space.compose(skeleton, member) for member in members])
    assert envelope == space.compose(skeleton, largest)


@each_space
@given(data=st.data())
def test_arch_that_does_not_fit_is_an_error_with_both_sizes(
    space: SearchSpace, data: st.DataObject
) -> None:
    """Containment is what the tensors' shapes say, and every complaint is `size > size`."""
    largest, arch = data.draw(archs(space)), data.draw(archs(space))
    shapes = [tensor_shapes(build_structure(a, space.settings)) for a in (arch, largest)]
    try:
        leading_boxes(*shapes)
    except ValueError:
        pass
    else:
        assert fits(largest, arch)
        return
    supernet = Supernet(largest, space.settings)
    calls = {
        "check": lambda: family_of(space).check_contains(largest, arch),
        "call": lambda: supernet(images_for(space), arch),
        "cut": lambda: supernet.cut(arch),
        "trim": lambda: supernet.trimmed(arch),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="does not fit") as caught:
            call()
        sizes = re.findall(r"(\d+(?:\.\d+)?)[^<>;\d]* > (\d+(?:\.\d+)?)", str(caught.value))
        assert sizes
        assert all(float(given) > float(most) for given, most in sizes)


# --- the supernet is the plain networks ----------------------------------------------------------


@each_space
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@given(data=st.data())
def test_supernet_output_equals_the_cut_network(
    space: SearchSpace, training: bool, data: st.DataObject
) -> None:
    """Smallest, largest and random subnets; in training the same noise drops the same branches."""
    arch = data.draw(archs(space))
    supernet = shared_supernet(space, DROP_PATH, training)
    images, noise = images_for(space), noise_for(supernet, seed=data.draw(st.integers(0, 99)))
    network = supernet.cut(arch)
    assert network.training == training
    assert all(module.training == training for module in network.modules())
    expected = network(images, noise)
    assert expected.shape == (3, space.settings.num_classes)
    assert_equal(supernet(images, arch, noise), expected)


@each_space
def test_stochastic_depth_acts_in_training_alone(space: SearchSpace) -> None:
    """Some noise changes the output in training; none does in evaluation or at rate zero."""
    arch, images = space.largest, images_for(space)
    for drop_path, training in ((DROP_PATH, False), (0.0, True), (DROP_PATH, True)):
        supernet = shared_supernet(space, drop_path, training)
        noise = noise_for(supernet)
        kept, some = (supernet(images, arch, n) for n in (torch.ones_like(noise), noise))
        dropped = supernet(images, arch, torch.zeros_like(noise))
        acts = bool(drop_path) and training
        assert torch.equal(kept, dropped) == (not acts)
        assert torch.equal(kept, some) == (not acts)
        assert dropped.isfinite().all()


@each_space
def test_cut_network_is_independent(space: SearchSpace) -> None:
    """It holds a copy: neither side sees what becomes of the other's weights."""
    supernet, images = new_supernet(space).eval(), images_for(space)
    arch = space.smallest
    before = supernet(images, arch)
    network = supernet.cut(arch)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    assert torch.equal(supernet(images, arch), before)
    after = network(images)
    assert not torch.equal(after, before)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert torch.equal(network(images), after)


@each_space
def test_views_share_the_weights(space: SearchSpace) -> None:
    """A change through a view is seen by the supernet: nothing was copied."""
    supernet = new_supernet(space).eval()
    before = snapshot(supernet)
    boxes = supernet.owned(space.smallest)
    with torch.no_grad():
        for view in supernet.views(space.smallest).values():
            if view.is_floating_point():
                view.zero_()
    for name, tensor in supernet.network.state_dict().items():
        if name not in boxes:
            assert torch.equal(tensor, before[f"network.{name}"])
            continue
        outside = torch.ones_like(tensor, dtype=torch.bool)
        outside[boxes[name]] = False
        assert not tensor[boxes[name]].any()
        assert torch.equal(tensor[outside], before[f"network.{name}"][outside])


@each_space
def test_cut_keeps_the_type_of_the_weights(space: SearchSpace) -> None:
    """A copy in another precision would be another network."""
    supernet, images = new_supernet(space).eval().double(), images_for(space).double()
    expected = supernet(images, space.smallest)
    network = supernet.cut(space.smallest)
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert_equal(network(images), expected, 1e-12)


@each_space
@settings(max_examples=15)
@given(data=st.data())
def test_trimmed_supernet_gives_the_same_logits(space: SearchSpace, data: st.DataObject) -> None:
    """Cut to an envelope, it still holds every subnet inside, and holds its own weights."""
    members = data.draw(st.lists(archs(space), min_size=1, max_size=3))
    supernet, images = shared_supernet(space), images_for(space)
    envelope = family_of(space).envelope(members)
    trimmed = supernet.trimmed(envelope).eval()
    assert trimmed.arch == envelope
    assert trimmed.settings == space.settings
    expected = {arch: supernet(images, arch) for arch in members}
    for arch in members:
        assert_equal(trimmed(images, arch), expected[arch])
    with torch.no_grad():
        for parameter in trimmed.parameters():
            parameter.zero_()
    assert torch.equal(supernet(images, members[0]), expected[members[0]])


@each_space
def test_trimmed_supernet_has_its_own_stochastic_depth(space: SearchSpace) -> None:
    trimmed = shared_supernet(space).trimmed(space.smallest, drop_path=DROP_PATH)
    assert (
        trimmed.drop_path_rates
        == Supernet(space.smallest, space.settings, drop_path=DROP_PATH).drop_path_rates
    )
    assert len(trimmed.drop_path_rates) == family_of(space).num_layers(space.smallest)


@each_space
@given(data=st.data())
def test_layers_keep_their_stochastic_depth_rate(space: SearchSpace, data: st.DataObject) -> None:
    """Rates rise linearly over the supernet's depth; a subnet has the first of them."""
    arch = data.draw(archs(space))
    supernet = shared_supernet(space, DROP_PATH, True)
    depth = family_of(space).num_layers(space.supernet)
    rates = [DROP_PATH * layer / max(1, depth - 1) for layer in range(depth)]
    assert supernet.drop_path_rates == pytest.approx(rates)
    branches = [
        module.drop_prob for module in supernet.cut(arch).modules() if hasattr(module, "drop_prob")
    ]
    num_layers = family_of(space).num_layers(arch)
    assert branches
    assert sorted(set(branches)) == pytest.approx(sorted(set(rates[:num_layers])))


# --- gradients -----------------------------------------------------------------------------------


@each_space
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@settings(max_examples=15)
@given(data=st.data())
def test_gradients_stay_inside_the_slice(
    space: SearchSpace, training: bool, data: st.DataObject
) -> None:
    """Full size, exactly zero outside what the subnet owns, inside those of the cut network."""
    arch = data.draw(archs(space))
    supernet = shared_supernet(space, DROP_PATH, training)
    images, noise = images_for(space), noise_for(supernet)
    weight = torch.linspace(-1, 1, space.settings.num_classes)  # a loss with no symmetry
    names, parameters = zip(*supernet.network.named_parameters(), strict=True)
    gradients = dict(
        zip(
            names,
            torch.autograd.grad(
                (supernet(images, arch, noise) * weight).sum(), parameters, allow_unused=True
            ),
            strict=True,
        )
    )
    network = supernet.cut(arch)
    (network(images, noise) * weight).sum().backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert {name for name, g in gradients.items() if g is not None} == {
        name for name, g in expected.items() if g is not None
    }
    boxes = supernet.owned(arch)
    shared = dict(supernet.network.named_parameters())
    scale = max(g.abs().max().item() for g in expected.values() if g is not None)
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        assert gradient.shape == shared[name].shape
        inside = gradient[boxes[name]]
        # Relative to the tensor's largest, and at least to rounding of the largest of all.
        largest = max(expected[name].abs().max().item(), 1e-3 * scale)
        torch.testing.assert_close(inside, expected[name], rtol=0, atol=2e-5 * largest)
        outside = gradient.clone()
        outside[boxes[name]] = 0
        assert not outside.any()
    assert all(gradients[name] is None for name in names if name not in boxes)


@each_space
def test_layers_that_are_not_owned_have_no_gradient(space: SearchSpace) -> None:
    """So that an optimiser which skips missing gradients leaves them alone."""
    supernet, arch = new_supernet(space).eval(), space.smallest
    supernet(images_for(space), arch).square().sum().backward()
    owned = supernet.owned(arch)
    missing = [name for name, p in supernet.network.named_parameters() if p.grad is None]
    role = family_of(space).role
    assert set(missing) == {n for n, _ in supernet.network.named_parameters() if n not in owned}
    assert all(role(name).layer is not None for name in missing)


# --- nothing stays behind ------------------------------------------------------------------------


@each_space
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@settings(max_examples=10)
@given(data=st.data())
def test_no_call_changes_a_later_call(
    space: SearchSpace, training: bool, data: st.DataObject
) -> None:
    """Nor the weights, the mode, the gradients or a global generator."""
    supernet = shared_supernet(space, DROP_PATH, training)
    images, noise = images_for(space), noise_for(supernet)
    first, *others = data.draw(st.lists(archs(space), min_size=2, max_size=4))
    with torch.no_grad(), global_state_untouched():
        before = snapshot(supernet)
        modes = [module.training for module in supernet.modules()]
        expected = supernet(images, first, noise)
        for other in others:
            supernet(images, other, noise)
            supernet.cut(other).train(not training)
            supernet.trimmed(other).train(not training)
            supernet.owned(other)
            count(other, space.settings)
        assert torch.equal(supernet(images, first, noise), expected)
        assert [module.training for module in supernet.modules()] == modes
        assert all(parameter.grad is None for parameter in supernet.parameters())
        if not training:
            assert_same_state(supernet, before)
        for name, parameter in supernet.named_parameters():
            assert torch.equal(parameter, before[name])


@each_space
def test_modes_do_not_mix(space: SearchSpace) -> None:
    """One supernet switched back and forth, and two of different rate, over one architecture."""
    supernet = new_supernet(space, DROP_PATH)
    still = new_supernet(space, 0.0).train()
    images, noise = images_for(space), torch.zeros_like(noise_for(supernet))
    with torch.no_grad():
        trained = supernet.train()(images, space.largest, noise)
        evaluated = supernet.eval()(images, space.largest, noise)
        assert not torch.equal(trained, evaluated)
        assert torch.equal(still(images, space.largest, noise), evaluated)
        assert torch.equal(supernet.train()(images, space.largest, noise), trained)
        assert torch.equal(supernet.eval()(images, space.largest), evaluated)


@each_space
def test_building_leaves_the_global_generators_alone(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(3)
    with global_state_untouched():
        network = build(space.largest, space.settings)
        build_structure(space.smallest, space.settings)
        parameter_shapes(space.smallest, space.settings)
        Supernet(space.supernet, space.settings, drop_path=DROP_PATH).initialize(generator)
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


@each_space
def test_structure_needs_no_memory(space: SearchSpace) -> None:
    structure = build_structure(space.supernet, space.settings)
    tensors = [*structure.parameters(), *structure.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@each_space
def test_shapes_are_known_without_a_structure(space: SearchSpace) -> None:
    for arch in (space.smallest, space.supernet):
        built = build_structure(arch, space.settings).named_parameters()
        found = parameter_shapes(arch, space.settings)
        assert list(found.items()) == [(name, tuple(p.shape)) for name, p in built]


# --- costs ---------------------------------------------------------------------------------------


@each_space
@settings(max_examples=15)
@given(data=st.data())
def test_counts_are_those_of_the_built_network(space: SearchSpace, data: st.DataObject) -> None:
    """Parameters as built; products as PyTorch counts them, two operations for each."""
    arch = data.draw(archs(space))
    cost = count(arch, space.settings)
    network = build_structure(arch, space.settings).eval()
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(images_for(space, batch=1).to("meta"))
    assert 2 * (cost.macs + cost.relative_macs) == counter.get_total_flops()


# --- roles ---------------------------------------------------------------------------------------


@each_space
def test_roles_name_layers_and_axes(space: SearchSpace) -> None:
    family = family_of(space)
    structure = build_structure(space.supernet, space.settings)
    num_layers = family.num_layers(space.supernet)
    axes = {axis.name for axis in space.layer_axes}
    roles = {name: family.role(name) for name, _ in structure.named_parameters()}
    for name, role in roles.items():
        assert isinstance(role, TensorRole)
        if role.layer is None:
            assert role.axis is None
        else:
            assert 0 <= role.layer < num_layers
            assert name.startswith(family.layer_prefix(role.layer))
        assert role.axis is None or role.axis in axes
    assert {role.layer for role in roles.values()} >= set(range(num_layers))
    assert {role.axis for role in roles.values()} >= axes
    assert any(family.is_scored(name) for name in roles)


@each_space
def test_unit_tensors_are_sized_by_their_axis(space: SearchSpace) -> None:
    """The matrices whose units an axis adds grow along the named dimension, and along no other."""
    family = family_of(space)
    assert set(family.unit_tensors) == {axis.name for axis in space.layer_axes}
    skeleton = space.skeletons[-1]
    zeros = [[0] * skeleton.num_layers for _ in space.layer_axes]
    small = tensor_shapes(build_structure(space.compose(skeleton, zeros), space.settings))
    for number, axis in enumerate(space.layer_axes):
        picked = copy.deepcopy(zeros)
        picked[number] = [1] * skeleton.num_layers
        large = tensor_shapes(build_structure(space.compose(skeleton, picked), space.settings))
        for layer in range(skeleton.num_layers):
            for inner_name, dim in family.unit_tensors[axis.name]:
                name = family.layer_prefix(layer) + inner_name
                assert family.is_scored(name)
                assert family.role(name) == (layer, axis.name)
                assert large[name][dim] > small[name][dim]
                assert large[name][:dim] == small[name][:dim]
                assert large[name][dim + 1 :] == small[name][dim + 1 :]


@each_space
@given(data=st.data())
def test_an_option_resizes_only_tensors_of_its_role(
    space: SearchSpace, data: st.DataObject
) -> None:
    """What the tables rely on: layers and axes are independent of each other."""
    skeleton = data.draw(st.sampled_from(space.skeletons))
    before = data.draw(choices(space, skeleton))
    number = data.draw(st.integers(0, len(space.layer_axes) - 1))
    layer = data.draw(st.integers(0, skeleton.num_layers - 1))
    option = data.draw(st.integers(0, len(space.layer_axes[number].options) - 1))
    assume(option != before[number][layer])
    after = copy.deepcopy(before)
    after[number][layer] = option
    shapes = [
        tensor_shapes(build_structure(space.compose(skeleton, picked), space.settings))
        for picked in (before, after)
    ]
    assert shapes[0].keys() == shapes[1].keys()
    changed = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert changed
    role = family_of(space).role
    assert {role(name) for name in changed} == {TensorRole(layer, space.layer_axes[number].name)}


@each_space
@given(data=st.data())
def test_balancing_groups_are_skeletons(space: SearchSpace, data: st.DataObject) -> None:
    """Members of a group differ in their per-layer choices alone."""
    skeletons = data.draw(st.lists(st.sampled_from(space.skeletons), min_size=2, max_size=2))
    left, right = (space.compose(s, data.draw(choices(space, s))) for s in skeletons)
    group = family_of(space).balancing_group
    assert (group(left) == group(right)) == (skeletons[0] == skeletons[1])


# --- initialisation ------------------------------------------------------------------------------


@each_space
def test_initialisation_comes_from_its_generator(space: SearchSpace) -> None:
    """Every parameter is filled, from the generator alone; another seed gives other weights."""

    def initialised(seed: int) -> dict[str, Tensor]:
        supernet = Supernet(space.supernet, space.settings)
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.fill_(torch.nan)
        with global_state_untouched():
            assert supernet.initialize(torch.Generator().manual_seed(seed)) is supernet
        return snapshot(supernet)

    first, again, other = initialised(1), initialised(1), initialised(2)
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if len(first[name].unique()) > 1]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


# --- a network like timm's -----------------------------------------------------------------------


@each_space
@given(data=st.data())
def test_images_of_another_shape_are_an_error(space: SearchSpace, data: st.DataObject) -> None:
    """The message gives the shape that came and the shape that is taken."""
    settings_ = space.settings
    expected = (settings_.in_chans, *settings_.image_size)
    shape = [
        max(1, size + data.draw(st.sampled_from([0, 0, -size, -1, 1, size]))) for size in expected
    ]
    assume(tuple(shape) != expected)
    images = torch.zeros(2, *shape)
    supernet = shared_supernet(space)
    for call in (
        lambda: supernet(images, space.smallest),
        lambda: supernet.cut(space.smallest)(images),
        lambda: supernet.cut(space.smallest).forward_features(images),
    ):
        with pytest.raises(ValueError, match="images") as caught:
            call()
        for size in (*shape, *expected):
            assert re.search(rf"\b{size}\b", str(caught.value))


@each_space
def test_an_image_without_batch_is_an_error(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="batch"):
        shared_supernet(space)(images_for(space)[0], space.smallest)


@each_space
@pytest.mark.parametrize("batch", [0, 1, 3, 5])
def test_any_batch_size(space: SearchSpace, batch: int) -> None:
    """An image's logits do not depend on its neighbours."""
    supernet, images = shared_supernet(space), images_for(space, batch=5)
    logits = supernet(images[:batch], space.largest)
    assert logits.shape == (batch, space.settings.num_classes)
    assert_equal(logits, supernet(images, space.largest)[:batch])


@each_space
def test_network_is_used_like_a_timm_model(space: SearchSpace) -> None:
    """Features, head, another classifier, and what timm's fine-tuning asks of a model."""
    network, images = shared_supernet(space).cut(space.largest), images_for(space)
    logits = network(images)
    features = network.forward_features(images)
    assert_equal(network.forward_head(features), logits)
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (3, network.head_hidden_size)
    classifier = network.get_classifier()
    assert_equal(classifier(pooled), logits)
    assert network.num_classes == space.settings.num_classes == logits.shape[1]
    assert {*network.no_weight_decay()} <= {name for name, _ in network.named_parameters()}
    assert network.num_features == features.shape[-1] or network.num_features in features.shape

    network.reset_classifier(7)
    assert network.num_classes == 7
    assert network.get_classifier() is not classifier
    assert_equal(network.forward_features(images), features)
    fresh = network(images)
    assert fresh.shape == (3, 7)
    assert fresh.isfinite().all()
    network.reset_classifier(0)
    assert network.num_classes == 0
    assert torch.equal(network(images), network.forward_head(features, pre_logits=True))
    assert not list(network.get_classifier().parameters())
    network.reset_classifier(4)
    assert network(images).shape == (3, 4)


# --- what the authors released -------------------------------------------------------------------


@each_space
@given(data=st.data())
def test_a_space_is_made_of_given_archs(space: SearchSpace, data: st.DataObject) -> None:
    """It holds their options and no others, and its supernet contains them."""
    given_archs = data.draw(st.lists(archs(space), min_size=1, max_size=4))
    made = family_of(space).space_of("made", given_archs, space.settings)
    assert (made.name, made.family, made.settings) == ("made", space.family, space.settings)
    assert all(fits(made.supernet, arch) for arch in given_archs)
    assert all(fits(space.supernet, arch) for arch in (made.smallest, made.largest))
    assert type(made).model_validate_json(made.model_dump_json()) == made
    assert family_of(space).space_of("made", [*given_archs, made.largest], space.settings) == made


@pytest.mark.parametrize("name", FAMILIES)
def test_published_archs_are_of_their_space(name: str) -> None:
    for space_name, published in FAMILIES[name].published.items():
        space = FAMILIES[name].spaces[space_name]
        costs = [count(arch, space.settings) for arch in published]
        assert costs == sorted(costs)
        assert len(set(published)) == len(published) > 0
        assert all(fits(space.largest, arch) for arch in published)


# --- adapting weights ----------------------------------------------------------------------------


def _larger(space: SearchSpace) -> SearchSpace:
    height, width = space.settings.image_size
    return space.with_settings(image_size=(2 * height, 3 * width))


def _adapted(supernet: Supernet, space: SearchSpace) -> Supernet:
    """The supernet with its weights adapted to the settings of `space`, the head kept."""
    adapted = Supernet(supernet.arch, space.settings).eval()
    tensors = supernet.network.state_dict()
    adapted.network.load_state_dict(
        supernet.family.adapt(tensors, supernet.settings, space.settings, None)
    )
    return adapted


@each_space
def test_adapting_to_the_same_settings_changes_nothing(space: SearchSpace) -> None:
    supernet = shared_supernet(space)
    assert_same_state(_adapted(supernet, space).network, snapshot(supernet.network))


@each_space
@pytest.mark.parametrize("reach", ["as it was", "full"])
@settings(max_examples=10)
@given(data=st.data())
def test_adapting_commutes_with_cutting(
    space: SearchSpace, reach: str, data: st.DataObject
) -> None:
    """A subnet of the adapted supernet is the adapted subnet: one adaptation serves them all."""
    family, large = family_of(space), _larger(space)
    if reach == "full":
        large = large.model_copy(update={"settings": family.with_full_reach(large.settings)})
    arch, supernet = data.draw(archs(space)), shared_supernet(space)
    cut_after = _adapted(supernet, large).cut(arch).state_dict()
    cut_before = family.adapt(supernet.cut(arch).state_dict(), space.settings, large.settings, None)
    assert cut_after.keys() == cut_before.keys()
    for name, tensor in cut_before.items():
        assert_equal(cut_after[name], tensor)


@each_space
@given(data=st.data())
def test_a_longer_reach_changes_no_logits_at_first(space: SearchSpace, data: st.DataObject) -> None:
    large = _larger(space)
    full = family_of(space).with_full_reach(large.settings)
    supernet = shared_supernet(space)
    arch, images = data.draw(archs(space)), images_for(large)
    expected = _adapted(supernet, large)(images, arch)
    extended = _adapted(supernet, large.model_copy(update={"settings": full}))
    assert_equal(extended(images, arch), expected)


@each_space
def test_a_fresh_head_leaves_everything_else(space: SearchSpace) -> None:
    supernet, new = shared_supernet(space), space.with_settings(num_classes=7).settings
    before = snapshot(supernet.network)
    fresh, again = (
        supernet.family.adapt(before, space.settings, new, torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    network = build(supernet.arch, new)
    network.load_state_dict(fresh)
    assert network(images_for(space)).shape == (3, 7)
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    assert head
    for name, parameter in network.named_parameters():
        assert torch.equal(fresh[name], again[name])
        assert (id(parameter) in head) or torch.equal(fresh[name], before[name])
    with pytest.raises(ValueError, match="cannot be kept for 7 classes"):
        supernet.family.adapt({}, space.settings, new, None)
