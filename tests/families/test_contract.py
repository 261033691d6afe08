"""Every family keeps the contract of `prenas.families.base`: nothing here names a family.

A new family is covered as soon as `drawing.TEST_SPACES` has small spaces for it.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
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
    cut,
    fill_as_trained,
    images_for,
    new_supernet,
    noise_for,
    run,
    shared_supernet,
    timm_space,
)
from prenas.cost import count
from prenas.families import (
    FAMILIES,
    all_spaces,
    build,
    build_shared,
    build_structure,
    family_of,
    get_space,
    shapes_by_role,
)
from prenas.families.adaptation import adapt, extended
from prenas.families.base import (
    Arch,
    Choices,
    SearchSpace,
    Stage,
    StageChoice,
    TensorRole,
    check_contains,
    envelope,
    tensor_shapes,
)
from prenas.supernet import Supernet, statistic_names

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
    """A copy of everything in a state dict."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Compares to the bit."""
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def fits(largest: Arch, arch: Arch) -> bool:
    """Whether `check_contains` accepts the architecture."""
    try:
        check_contains(largest, arch)
    except ValueError:
        return False
    return True


# --- architectures and spaces --------------------------------------------------------------------


def test_every_family_has_test_spaces() -> None:
    """A family that is not listed would not be tested."""
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
def test_a_sample_is_uniform_and_named_by_its_generator(space: SearchSpace) -> None:
    """Every choice takes every option equally often, and equal generators draw the same."""
    num_draws = 6000
    generator, again = np.random.default_rng(0), np.random.default_rng(0)
    drawn = [space.sample_choices(generator) for _ in range(num_draws)]
    for picked, resolution in drawn[:50]:
        arch = space.compose(picked, resolution)
        assert arch == space.sample(again)
        assert fits(space.largest, arch)

    def assert_uniform(found: list[int], num_options: int) -> None:
        expected = len(found) / num_options
        numbers = Counter(found)
        assert len(numbers) == num_options
        assert all(abs(number - expected) < 5 * expected**0.5 for number in numbers.values())

    assert_uniform([resolution or 0 for _, resolution in drawn], len(space.resolutions))
    for number, stage in enumerate(space.chain):
        in_stage = [choices[number] for choices, _ in drawn]
        assert_uniform([choice.width for choice in in_stage], len(stage.widths))
        assert_uniform([choice.depth for choice in in_stage], len(stage.depths))
        for place, axis in enumerate(stage.axes):
            for layer in (0, -1):
                options = [choice.options[place][layer] for choice in in_stage]
                assert_uniform(options, len(axis.options))
        if stage.tied:
            assert all(len(set(axis)) == 1 for choice in in_stage for axis in choice.options)


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
    """All architectures of a small space; for a large one, with at most two options everywhere."""
    chain = space.chain
    if space.num_archs > 6000:
        chain = tuple(
            stage._replace(
                widths=stage.widths[:2],
                depths=stage.depths[:1],
                axes=tuple(axis._replace(options=axis.options[:2]) for axis in stage.axes),
            )
            for stage in chain
        )
    ways = [list(_stage_choices(stage)) for stage in chain]
    found = {
        space.compose(choices, resolution)
        for choices in product(*ways)
        for resolution in space.resolutions
    }
    assert len(found) == math.prod(map(len, ways)) * len(space.resolutions)
    if chain == space.chain:
        assert len(found) == space.num_archs
    assert len({arch.id for arch in found}) == len(found)


def _stage_choices(stage: Stage) -> Iterator[StageChoice]:
    """All choices in a stage."""
    for width, depth in product(range(len(stage.widths)), stage.depths):
        layers = min(depth, 1) if stage.tied else depth
        per_axis = [product(range(len(axis.options)), repeat=layers) for axis in stage.axes]
        for options in product(*per_axis):
            repeated = tuple(one * depth if stage.tied else one for one in options)
            yield StageChoice(width, depth, repeated)


@each_space
@given(data=st.data())
def test_options_are_what_was_chosen(space: SearchSpace, data: st.DataObject) -> None:
    """Layers report the composed options, and networks whatever else distinguishes them."""
    picked, resolution = data.draw(choices(space)), data.draw(st.sampled_from(space.resolutions))
    arch = space.compose(picked, resolution)
    expected: dict[str, list[tuple[float, ...]]] = {axis.name: [] for axis in space.layer_axes}
    for stage, choice in zip(space.chain, picked, strict=True):
        for axis, numbers in zip(stage.axes, choice.options, strict=True):
            expected[axis.name].append(tuple(axis.options[number] for number in numbers))
    assert {name: list(stages) for name, stages in arch.layer_options.items()} == expected
    other = space.compose(data.draw(choices(space)), data.draw(st.sampled_from(space.resolutions)))
    assert list(other.network_options) == list(arch.network_options)
    is_same = other.network_options == arch.network_options
    assert (is_same and other.layer_options == arch.layer_options) == (other == arch)
    assert not set(arch.network_options) & set(arch.layer_options)


@each_space
def test_layer_axes_are_those_of_the_stages(space: SearchSpace) -> None:
    for axis in space.layer_axes:
        found = [a.options for stage in space.chain for a in stage.axes if a.name == axis.name]
        assert set(axis.options) == set().union(*found)
        assert list(axis.options) == sorted(set(axis.options))


@each_space
@given(data=st.data())
def test_extremes_bound_the_space(space: SearchSpace, data: st.DataObject) -> None:
    arch = data.draw(archs(space))
    check_contains(space.supernet, arch)
    check_contains(space.supernet, space.largest)
    check_contains(space.largest, space.smallest)
    check_contains(arch, arch)
    if arch != space.supernet:
        check_contains(space.largest, arch)
    low, cost = count(space.smallest, space.settings), count(arch, space.settings)
    high = count(space.supernet, space.settings)
    assert low["params"] <= cost["params"] <= high["params"]
    assert low["macs"] <= cost["macs"] <= high["macs"]


@each_space
def test_options_rise(space: SearchSpace) -> None:
    """Options run from small to large: each costs more than the one before, in every layer."""
    smallest = space.extreme(0)
    for number, stage in enumerate(space.chain):
        for options in (stage.widths, stage.depths, *(axis.options for axis in stage.axes)):
            assert list(options) == sorted(set(options))
        depth = stage.depths[-1]
        lowest = smallest[number]._replace(
            depth=depth, options=tuple((0,) * depth for _ in stage.axes)
        )
        for place, axis in enumerate(stage.axes):
            for layer in range(depth):
                costs = []
                for option in range(len(axis.options)):
                    layers = tuple(option * (one == layer) for one in range(depth))
                    changed = [*lowest.options[:place], layers, *lowest.options[place + 1 :]]
                    choice = lowest._replace(options=tuple(changed))
                    picked = (*smallest[:number], choice, *smallest[number + 1 :])
                    costs.append(count(space.compose(picked), space.settings))
                for smaller, larger in pairwise(costs):
                    assert smaller["params"] < larger["params"]
                    assert smaller["macs"] < larger["macs"]


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


# --- architectures and spaces as chains ----------------------------------------------------------


@each_space
@given(data=st.data())
def test_links_hold_an_architecture(space: SearchSpace, data: st.DataObject) -> None:
    """Links state the choices in the order of the chain, and give the architecture back."""
    picked, resolution = data.draw(choices(space)), data.draw(st.sampled_from(space.resolutions))
    arch = space.compose(picked, resolution)
    for stage, choice, link in zip(space.chain, picked, arch.links, strict=True):
        assert link.depth == choice.depth
        assert link.design == stage.design
        assert link.options == stage.link(choice).options
        assert all(len(sizes) == link.depth for sizes in link.sizes.values())
        assert link.sizes.keys() <= link.options.keys()
        if len(stage.widths) > 1:
            assert link.width == stage.widths[choice.width]
    assert arch.resized_to == (resolution or space.scored_resolution)
    bare = tuple(link._replace(sizes={}, name=None) for link in arch.links)
    assert type(arch).from_links(bare, arch.resized_to) == arch
    assert space.arch_type() is type(arch)
    assert space.settings_type() is type(space.settings)


@each_space
def test_a_space_is_made_of_its_chain(space: SearchSpace) -> None:
    sides = tuple(side for side in space.resolutions if side is not None)
    made = type(space).from_chain(space.chain, sides, name="made", settings=space.settings)
    assert made.chain == space.chain
    assert made.resolutions == space.resolutions
    assert (made.name, made.settings, made.family) == ("made", space.settings, space.family)


# --- envelope and containment --------------------------------------------------------------------


@each_space
@given(data=st.data())
def test_envelope_contains_its_members(space: SearchSpace, data: st.DataObject) -> None:
    members = data.draw(st.lists(archs(space), min_size=1, max_size=4))
    largest = envelope(members)
    for member in members:
        check_contains(largest, member)
        assert envelope([largest, member]) == largest
    assert envelope(members[::-1]) == largest
    assert envelope(members[:1]) == members[0]
    check_contains(space.supernet, largest)


@each_space
@given(data=st.data())
def test_envelope_is_minimal(space: SearchSpace, data: st.DataObject) -> None:
    """The largest width and depth of every stage, and the largest option of each layer."""
    members = data.draw(st.lists(choices(space), min_size=1, max_size=3))
    largest = []
    for stage, *picked in zip(space.chain, *members, strict=True):
        depth = max(choice.depth for choice in picked)
        options = tuple(
            tuple(max(c.options[a][i] for c in picked if c.depth > i) for i in range(depth))
            for a in range(len(stage.axes))
        )
        largest.append(StageChoice(max(choice.width for choice in picked), depth, options))
    found = envelope([space.compose(member) for member in members])
    assert found == space.compose(tuple(largest))


@each_space
@given(data=st.data())
def test_arch_that_does_not_fit_is_an_error_with_both_sizes(
    space: SearchSpace, data: st.DataObject
) -> None:
    """Containment follows from the tensors' shapes, and every problem reads `size > size`."""
    largest, arch = data.draw(archs(space)), data.draw(archs(space))
    with torch.device("meta"):
        full = tensor_shapes(build_shared(largest, space.settings))
    try:
        family_of(space).owned_boxes(tensor_shapes(build_structure(arch, space.settings)), full)
    except ValueError:
        pass
    else:
        assert fits(largest, arch)
        return
    supernet = Supernet(largest, space.settings)
    calls = {
        "check": lambda: check_contains(largest, arch),
        "call": lambda: run(supernet, images_for(space), arch),
        "cut": lambda: cut(supernet, arch),
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
    network = cut(supernet, arch)
    assert network.training == training
    assert all(module.training == training for module in network.modules())
    expected = network(images, noise)
    assert expected.shape == (3, space.settings.num_classes)
    assert_equal(run(supernet, images, arch, noise), expected)


@each_space
def test_stochastic_depth_acts_in_training_alone(space: SearchSpace) -> None:
    """Some noise changes the output in training; none does in evaluation or at rate zero."""
    arch, images = space.largest, images_for(space)
    for drop_path, training in ((DROP_PATH, False), (0.0, True), (DROP_PATH, True)):
        supernet = shared_supernet(space, drop_path, training)
        noise = noise_for(supernet)
        kept, some = (run(supernet, images, arch, n) for n in (torch.ones_like(noise), noise))
        dropped = run(supernet, images, arch, torch.zeros_like(noise))
        acts = bool(drop_path) and training
        assert torch.equal(kept, dropped) == (not acts)
        assert torch.equal(kept, some) == (not acts)
        assert dropped.isfinite().all()


@each_space
def test_cut_network_is_independent(space: SearchSpace) -> None:
    """It has a copy: a change of one side's weights does not affect the other."""
    supernet, images = new_supernet(space).eval(), images_for(space)
    arch = space.smallest
    before = run(supernet, images, arch)
    network = cut(supernet, arch)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    assert torch.equal(run(supernet, images, arch), before)
    after = network(images)
    assert not torch.equal(after, before)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert torch.equal(network(images), after)


@each_space
def test_views_share_the_weights(space: SearchSpace) -> None:
    """A change through a view changes the supernet: nothing was copied."""
    supernet = new_supernet(space).eval()
    before = snapshot(supernet)
    boxes = supernet.owned_boxes(space.smallest)
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
    expected = run(supernet, images, space.smallest)
    network = cut(supernet, space.smallest)
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert_equal(network(images), expected, 1e-12)


@each_space
@settings(max_examples=8)
@given(data=st.data())
def test_trimmed_supernet_gives_the_same_logits(space: SearchSpace, data: st.DataObject) -> None:
    """Trimmed to an envelope, it still has every subnet inside it, and has its own weights."""
    members = data.draw(st.lists(archs(space), min_size=1, max_size=3))
    supernet, images = shared_supernet(space), images_for(space)
    largest = envelope(members)
    trimmed = supernet.trimmed(largest).eval()
    assert trimmed.arch == largest
    assert trimmed.settings == space.settings
    expected = {arch: run(supernet, images, arch) for arch in members}
    for arch in members:
        assert_equal(run(trimmed, images, arch), expected[arch])
    with torch.no_grad():
        for parameter in trimmed.parameters():
            parameter.zero_()
    assert torch.equal(run(supernet, images, members[0]), expected[members[0]])


@each_space
def test_trimmed_supernet_has_its_own_stochastic_depth(space: SearchSpace) -> None:
    trimmed = shared_supernet(space).trimmed(space.smallest, drop_path=DROP_PATH)
    assert (
        trimmed.drop_path_rates
        == Supernet(space.smallest, space.settings, drop_path=DROP_PATH).drop_path_rates
    )
    assert len(trimmed.drop_path_rates) == len(family_of(space).layers(space.smallest))


@each_space
@given(data=st.data())
def test_layers_keep_their_stochastic_depth_rate(space: SearchSpace, data: st.DataObject) -> None:
    """A layer of a subnet has the supernet's rate, or none if it has no branch to drop."""
    arch, family = data.draw(archs(space)), family_of(space)
    supernet = shared_supernet(space, DROP_PATH, True)
    rates = family.drop_path_rates(space.supernet, DROP_PATH)
    assert supernet.drop_path_rates == dict(zip(family.layers(space.supernet), rates, strict=True))
    assert list(rates) == sorted(rates)
    assert 0 < rates[-1] <= DROP_PATH + 1e-6
    network = cut(supernet, arch)
    assert set(family.layers(arch)) <= set(supernet.drop_path_rates)
    for layer in family.layers(arch):
        found = {
            module.drop_prob
            for name, module in network.named_modules()
            if f"{name}.".startswith(layer) and hasattr(module, "drop_prob")
        }
        is_absent = not any(name.startswith(layer) for name in network.state_dict())
        assert bool(found) != is_absent
        assert found <= {supernet.drop_path_rates[layer], 0.0}


# --- gradients -----------------------------------------------------------------------------------


@each_space
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@settings(max_examples=8)
@given(data=st.data())
def test_gradients_stay_inside_the_slice(
    space: SearchSpace, training: bool, data: st.DataObject
) -> None:
    """Full size: zero outside the owned part, and the cut network's gradients inside it."""
    arch = data.draw(archs(space))
    supernet = shared_supernet(space, DROP_PATH, training)
    images, noise = images_for(space), noise_for(supernet)
    weight = torch.linspace(-1, 1, space.settings.num_classes)  # a loss with no symmetry
    names, parameters = zip(*supernet.network.named_parameters(), strict=True)
    gradients = dict(
        zip(
            names,
            torch.autograd.grad(
                (run(supernet, images, arch, noise) * weight).sum(), parameters, allow_unused=True
            ),
            strict=True,
        )
    )
    network = cut(supernet, arch)
    (network(images, noise) * weight).sum().backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert {name for name, g in gradients.items() if g is not None} == {
        name for name, g in expected.items() if g is not None
    }
    boxes = supernet.owned_boxes(arch)
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
    """An optimiser that skips missing gradients must leave these parameters alone."""
    supernet, arch = new_supernet(space).eval(), space.smallest
    run(supernet, images_for(space), arch).square().sum().backward()
    owned = supernet.owned_boxes(arch)
    missing = [name for name, p in supernet.network.named_parameters() if p.grad is None]
    roles = family_of(space).roles(space.supernet, missing)
    assert set(missing) == {n for n, _ in supernet.network.named_parameters() if n not in owned}
    assert all(role.layer is not None for role in roles.values())


# --- nothing stays behind ------------------------------------------------------------------------


@each_space
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@settings(max_examples=10)
@given(data=st.data())
def test_no_call_changes_a_later_call(
    space: SearchSpace, training: bool, data: st.DataObject
) -> None:
    """Weights, mode, gradients and global generators do not change either."""
    supernet = shared_supernet(space, DROP_PATH, training)
    images, noise = images_for(space), noise_for(supernet)
    first, *others = data.draw(st.lists(archs(space), min_size=2, max_size=4))
    with torch.no_grad(), global_state_untouched():
        before = snapshot(supernet)
        modes = [module.training for module in supernet.modules()]
        expected = run(supernet, images, first, noise)
        for other in others:
            run(supernet, images, other, noise)
            cut(supernet, other).train(not training)
            supernet.trimmed(other).train(not training)
            supernet.owned_boxes(other)
            count(other, space.settings)
        assert torch.equal(run(supernet, images, first, noise), expected)
        assert [module.training for module in supernet.modules()] == modes
        assert all(parameter.grad is None for parameter in supernet.parameters())
        assert_same_state(supernet, before)  # statistics of images too


@each_space
def test_modes_do_not_mix(space: SearchSpace) -> None:
    """One supernet switched back and forth, and two of different rate, over one architecture."""
    supernet = new_supernet(space, DROP_PATH)
    still = new_supernet(space, 0.0).train()
    images, noise = images_for(space), torch.zeros_like(noise_for(supernet))
    with torch.no_grad():
        trained = run(supernet.train(), images, space.largest, noise)
        evaluated = run(supernet.eval(), images, space.largest, noise)
        assert not torch.equal(trained, evaluated)
        undropped = run(still, images, space.largest, noise)
        assert not torch.equal(trained, undropped)
        if not supernet.has_statistics:
            assert torch.equal(undropped, evaluated)
        assert torch.equal(run(supernet.train(), images, space.largest, noise), trained)
        assert torch.equal(run(supernet.eval(), images, space.largest), evaluated)


@each_space
def test_building_leaves_the_global_generators_alone(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(3)
    with global_state_untouched():
        network = build(space.largest, space.settings)
        build_structure(space.smallest, space.settings)
        shapes_by_role(space.smallest, space.settings)
        Supernet(space.supernet, space.settings, drop_path=DROP_PATH).initialize(generator)
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


@each_space
def test_structure_needs_no_memory(space: SearchSpace) -> None:
    structure = build_structure(space.supernet, space.settings)
    tensors = [*structure.parameters(), *structure.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@each_space
def test_shapes_stand_under_their_roles(space: SearchSpace) -> None:
    """Every parameter once, in the order of the network."""
    for arch in (space.smallest, space.supernet):
        built = build_structure(arch, space.settings).named_parameters()
        shapes = {name: tuple(parameter.shape) for name, parameter in built}
        found = shapes_by_role(arch, space.settings)
        assert {name: shape for part in found.values() for name, shape in part.items()} == shapes
        assert sum(map(len, found.values())) == len(shapes)
        for role, part in found.items():
            assert set(family_of(space).roles(arch, part).values()) == {role}
            assert list(part) == [name for name in shapes if name in part]


# --- costs ---------------------------------------------------------------------------------------


@each_space
@settings(max_examples=8)
@given(data=st.data())
def test_counts_are_those_of_the_built_network(space: SearchSpace, data: st.DataObject) -> None:
    """Parameters as in the network; products as PyTorch counts them, two operations each."""
    arch = data.draw(archs(space))
    cost = count(arch, space.settings)
    network = build_structure(arch, space.settings).eval()
    assert cost["params"] == sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(images_for(space, batch=1).to("meta"))
    assert 2 * (cost["macs"] + cost["relative_macs"]) == counter.get_total_flops()


# --- roles ---------------------------------------------------------------------------------------


@each_space
@settings(max_examples=8)
@given(data=st.data())
def test_work_is_told_layer_by_layer(space: SearchSpace, data: st.DataObject) -> None:
    """One entry per layer, in order; work outside layers is listed under its stage.

    A layer without work is left out: it has no tensors either.
    """
    arch = data.draw(archs(space))
    shapes = shapes_by_role(arch, space.settings)
    parts = family_of(space).work(arch, space.settings)
    depths = [len(stage) for stage in next(iter(arch.layer_options.values()))]
    layers = [part.role for part in parts if part.role.layer is not None]
    numbers = [number for number, stage in enumerate(space.chain) if stage.axes]
    assert layers == [
        TensorRole(number, layer)
        for number, depth in zip(numbers, depths, strict=True)
        for layer in range(depth)
    ]
    assert all(part.macs >= 0 and part.extra_macs >= 0 for part in parts)
    assert all((part.macs > 0) == (part.role in shapes) for part in parts)


# --- roles ---------------------------------------------------------------------------------------


@each_space
@settings(max_examples=8)
@given(data=st.data())
def test_roles_name_stages_and_layers(space: SearchSpace, data: st.DataObject) -> None:
    family, arch = family_of(space), data.draw(archs(space))
    names = [name for name, _ in build_structure(arch, space.settings).named_parameters()]
    roles = family.roles(arch, names)
    depths = [len(stage) for stage in next(iter(arch.layer_options.values()))]
    numbers = [number for number, stage in enumerate(space.chain) if stage.axes]
    expected = [
        TensorRole(number, layer)
        for number, depth in zip(numbers, depths, strict=True)
        for layer in range(depth)
    ]
    assert len(family.layers(arch)) == len(set(family.layers(arch))) == len(expected)
    working = {part.role for part in family.work(arch, space.settings) if part.macs}
    for layer, role in zip(family.layers(arch), expected, strict=True):
        assert {roles[name] for name in names if name.startswith(layer)} == {role} & working
    beside = {roles[name] for name in names if not name.startswith(family.layers(arch))}
    assert beside <= {TensorRole(number, None) for number in range(len(space.chain))}
    absent = {role.stage for role in expected if role not in working}
    assert {role.stage for role in roles.values()} == set(range(len(space.chain))) - absent
    assert any(family.is_scored(name) for name in names)


def _changed_roles(space: SearchSpace, *picked: Choices) -> set[TensorRole]:
    """Roles of the tensors that differ between two architectures of equal depths."""
    archs_ = [space.compose(one) for one in picked]
    shapes = [tensor_shapes(build_structure(arch, space.settings)) for arch in archs_]
    names = set(shapes[0]) | set(shapes[1])
    changed = [name for name in names if shapes[0].get(name) != shapes[1].get(name)]
    return set(family_of(space).roles(archs_[0], changed).values())


@each_space
@given(data=st.data())
def test_an_option_resizes_only_its_own_layer(space: SearchSpace, data: st.DataObject) -> None:
    """The tables rely on this: for given widths, layers are independent of each other."""
    before = data.draw(choices(space))
    places = [
        (number, axis, layer)
        for number, stage in enumerate(space.chain)
        for axis, one in enumerate(stage.axes)
        for layer in range(before[number].depth)
        if len(one.options) > 1
    ]
    number, axis, layer = data.draw(st.sampled_from(places))
    options = [list(one) for one in before[number].options]
    num_options = len(space.chain[number].axes[axis].options)
    options[axis][layer] = data.draw(
        st.sampled_from([one for one in range(num_options) if one != options[axis][layer]])
    )
    choice = before[number]._replace(options=tuple(map(tuple, options)))
    after = (*before[:number], choice, *before[number + 1 :])
    assert _changed_roles(space, before, after) == {TensorRole(number, layer)}


@each_space
@given(data=st.data())
def test_a_width_is_known_to_neighbours_alone(space: SearchSpace, data: st.DataObject) -> None:
    """A width resizes its own stage, and the next stage's first layer or tensors outside layers."""
    before = data.draw(choices(space))
    free = [n for n, stage in enumerate(space.chain) if len(stage.widths) > 1]
    if not free:  # nothing can differ
        assert all(len(stage.widths) == 1 for stage in space.chain)
        return
    number = data.draw(st.sampled_from(free))
    num_widths = len(space.chain[number].widths)
    other = data.draw(st.sampled_from([w for w in range(num_widths) if w != before[number].width]))
    after = (*before[:number], before[number]._replace(width=other), *before[number + 1 :])
    changed = _changed_roles(space, before, after)
    assert {role for role in changed if role.stage != number} <= {
        TensorRole(number + 1, 0),
        TensorRole(number + 1, None),
    }
    assert any(role.stage == number for role in changed)


@each_space
def test_unit_tensors_are_sized_by_their_axis(space: SearchSpace) -> None:
    """The tensors to which an axis adds units grow along the named dimension."""
    family = family_of(space)
    groups = None if family.unit_groups is None else iter(family.unit_groups(space.largest))
    if groups is None:
        assert set(family.unit_tensors) == {axis.name for axis in space.layer_axes}
    largest = space.extreme(-1)
    large = tensor_shapes(build_structure(space.compose(largest), space.settings))
    layers = iter(family.layers(space.compose(largest)))
    for number, stage in enumerate(space.chain):
        prefixes = [next(layers) for _ in range(largest[number].depth)]
        of_layer = [() if groups is None else next(groups) for _ in prefixes]
        for place, axis in enumerate(stage.axes):
            if len(axis.options) == 1:
                continue
            options = list(largest[number].options)
            options[place] = (0,) * largest[number].depth
            choice = largest[number]._replace(options=tuple(options))
            picked = (*largest[:number], choice, *largest[number + 1 :])
            small = tensor_shapes(build_structure(space.compose(picked), space.settings))
            for prefix, counted in zip(prefixes, of_layer, strict=True):
                for inner_name, dim in family.unit_tensors.get(axis.name, ()):
                    name = prefix + inner_name
                    assert family.is_scored(name)
                    assert large[name][dim] > small[name][dim]
                for part in counted[place].tensors if counted else ():
                    assert large[part.name][part.dim] == part.per_unit * axis.options[-1]
                    if axis.options[0]:
                        assert small[part.name][part.dim] == part.per_unit * axis.options[0]
                    else:
                        assert part.name not in small


@each_space
@given(data=st.data())
def test_balancing_groups_are_of_networks(space: SearchSpace, data: st.DataObject) -> None:
    """Choices per layer do not decide the group; choices per network may."""
    left = data.draw(choices(space))
    right = tuple(
        choice._replace(
            options=tuple(
                tuple(data.draw(st.integers(0, len(axis.options) - 1)) for _ in range(choice.depth))
                for axis in stage.axes
            )
        )
        for stage, choice in zip(space.chain, left, strict=True)
    )
    group = family_of(space).balancing_group
    assert group(space.compose(left)) == group(space.compose(right))
    is_free = any(len(stage.widths) > 1 or len(stage.depths) > 1 for stage in space.chain)
    is_free |= len(space.resolutions) > 1
    assert (group(space.smallest) != group(space.largest)) == is_free


# --- statistics of images ------------------------------------------------------------------------


@each_space
def test_evaluation_needs_statistics_where_there_are_any(space: SearchSpace) -> None:
    supernet, images = new_supernet(space), images_for(space)
    names = statistic_names(build_structure(space.smallest, space.settings))
    assert supernet.has_statistics == bool(names)
    supernet.train()(images, space.smallest)
    supernet.cut(space.smallest)
    if not names:
        supernet.eval()(images, space.smallest)
        return
    for call in (lambda: supernet(images, space.smallest), lambda: supernet.cut(space.smallest)):
        supernet.eval()
        with pytest.raises(ValueError, match="Calibrate it first"):
            call()


@each_space
def test_training_leaves_statistics_alone(space: SearchSpace) -> None:
    """Called as a function or bound as in training, a subnet changes no buffer of the supernet."""
    supernet, images = new_supernet(space).train(), images_for(space)
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    supernet(images * 3 + 1, space.smallest)
    for parameter in supernet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    supernet.bound(space.largest)(images * 3 + 1)
    for name, buffer in supernet.named_buffers():
        assert torch.equal(buffer, before[name])


# --- initialisation ------------------------------------------------------------------------------


@each_space
def test_initialisation_comes_from_its_generator(space: SearchSpace) -> None:
    """Every parameter is filled from the generator only; another seed gives other weights."""

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
    """The message gives the shape of the images and the expected shape."""
    settings_ = space.settings
    expected = (settings_.in_chans, *settings_.image_size)
    shape = [
        max(1, size + data.draw(st.sampled_from([0, 0, -size, -1, 1, size]))) for size in expected
    ]
    assume(tuple(shape) != expected)
    images = torch.zeros(2, *shape)
    supernet = shared_supernet(space)
    for call in (
        lambda: run(supernet, images, space.smallest),
        lambda: cut(supernet, space.smallest)(images),
        lambda: cut(supernet, space.smallest).forward_features(images),
    ):
        with pytest.raises(ValueError, match="images") as caught:
            call()
        for size in (*shape, *expected):
            assert re.search(rf"\b{size}\b", str(caught.value))


@each_space
def test_an_image_without_batch_is_an_error(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="batch"):
        run(shared_supernet(space), images_for(space)[0], space.smallest)


@each_space
@pytest.mark.parametrize("batch", [0, 1, 3, 5])
def test_any_batch_size(space: SearchSpace, batch: int) -> None:
    """An image's logits do not depend on its neighbours."""
    supernet, images = shared_supernet(space), images_for(space, batch=5)
    logits = run(supernet, images[:batch], space.largest)
    assert logits.shape == (batch, space.settings.num_classes)
    assert_equal(logits, run(supernet, images, space.largest)[:batch])


@each_space
def test_network_is_used_like_a_timm_model(space: SearchSpace) -> None:
    """Features, head, another classifier, and what timm's fine-tuning needs from a model."""
    network, images = cut(shared_supernet(space), space.largest), images_for(space)
    logits = network(images)
    features = network.forward_features(images)
    assert_equal(network.forward_head(features), logits)
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (3, network.head_hidden_size)
    classifier = network.get_classifier()
    assert_equal(classifier(pooled), logits)
    assert network.num_classes == space.settings.num_classes == logits.shape[1]
    assert {*getattr(network, "no_weight_decay", set)()} <= {
        name for name, _ in network.named_parameters()
    }
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
    """It has exactly their options, and its supernet contains them."""
    given_archs = data.draw(st.lists(archs(space), min_size=1, max_size=4))
    spanning = partial(family_of(space).space_type.spanning, name="made", settings=space.settings)
    made = spanning(given_archs)
    assert (made.name, made.family, made.settings) == ("made", space.family, space.settings)
    assert all(fits(made.supernet, arch) for arch in given_archs)
    assert all(fits(space.supernet, arch) for arch in (made.smallest, made.largest))
    assert type(made).model_validate_json(made.model_dump_json()) == made
    assert spanning([*given_archs, made.largest]) == made


@pytest.mark.parametrize("name", FAMILIES)
def test_published_archs_are_of_their_space(name: str) -> None:
    released = FAMILIES[name].released
    for space_name, published in (released.published if released else {}).items():
        space = FAMILIES[name].spaces[space_name]
        costs = [tuple(count(arch, space).values()) for arch in published]
        assert costs == sorted(costs)
        assert len(set(published)) == len(published) > 0
        assert all(fits(space.largest, arch) for arch in published)


# --- adapting weights ----------------------------------------------------------------------------


def _larger(space: SearchSpace) -> SearchSpace:
    height, width = space.settings.image_size
    resizes = space.resolutions != (None,)  # to squares
    return space.with_settings(image_size=(2 * height, (2 if resizes else 3) * width))


def _adapted(supernet: Supernet, space: SearchSpace) -> Supernet:
    """A supernet whose weights are adapted to the settings of `space`, with the same classifier."""
    adapted = Supernet(supernet.arch, space.settings).eval()
    tensors = supernet.network.state_dict()
    adapted.network.load_state_dict(
        adapt(supernet.family, tensors, supernet.settings, space.settings, None)
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
    """A subnet of the adapted supernet equals the adapted subnet: one adaptation suits them all."""
    family, large = family_of(space), _larger(space)
    if reach == "full":
        large = large.model_copy(update={"settings": extended(family, large.settings)})
    arch, supernet = data.draw(archs(space)), shared_supernet(space)
    cut_after = cut(_adapted(supernet, large), arch).state_dict()
    alone = cut(supernet, arch).state_dict()
    cut_before = adapt(family, alone, space.settings, large.settings, None)
    assert cut_after.keys() == cut_before.keys()
    for name, tensor in cut_before.items():
        assert_equal(cut_after[name], tensor)


@each_space
@given(data=st.data())
def test_a_longer_reach_changes_no_logits_at_first(space: SearchSpace, data: st.DataObject) -> None:
    large = _larger(space)
    full = extended(family_of(space), large.settings)
    supernet = shared_supernet(space)
    arch, images = data.draw(archs(space)), images_for(large)
    expected = run(_adapted(supernet, large), images, arch)
    longer = _adapted(supernet, large.model_copy(update={"settings": full}))
    assert_equal(run(longer, images, arch), expected)


@each_space
def test_a_fresh_head_leaves_everything_else(space: SearchSpace) -> None:
    supernet, new = shared_supernet(space), space.with_settings(num_classes=7).settings
    before = snapshot(supernet.network)
    fresh, again = (
        adapt(supernet.family, before, space.settings, new, torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert adapt(supernet.family, {}, space.settings, new, torch.Generator()) == {}
    network = build_shared(supernet.arch, new)
    network.load_state_dict(fresh)
    assert network(images_for(space)).shape == (3, 7)
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    assert head
    for name, parameter in network.named_parameters():
        assert torch.equal(fresh[name], again[name])
        assert (id(parameter) in head) or torch.equal(fresh[name], before[name])
    with pytest.raises(ValueError, match="cannot be kept for 7 classes"):
        adapt(supernet.family, {}, space.settings, new, None)


@each_space
def test_a_network_computes_the_same_as_it_is_exported(space: SearchSpace) -> None:
    """At every image size that it may have; engines resize images slowly, so products do it."""
    for side in {space.resolutions[0], space.resolutions[-1]}:
        arch = space.compose(space.extreme(0), side)
        network = fill_as_trained(build(arch, space.settings))
        images = images_for(space)
        with torch.no_grad():
            assert_equal(family_of(arch).deployed(network)(images), network(images), 1e-4)


@pytest.mark.parametrize(
    ("space", "side"),
    [
        (get_space("mobilenet-micro").model_copy(update={"resolution": (20, 28, 36)}), 20),
        (get_space("mobilenet-micro").model_copy(update={"resolution": (20, 28, 36)}), 36),
        (timm_space("test_efficientnet", 96).model_copy(update={"resolution": (64, 96)}), 64),
    ],
)
def test_no_exported_network_interpolates(space: SearchSpace, side: int) -> None:
    network = fill_as_trained(build(space.compose(space.extreme(0), side), space.settings))
    images = images_for(space)
    deployed = family_of(space).deployed(network)

    def interpolates(one: nn.Module) -> bool:
        nodes = torch.export.export(one, (images,)).graph.nodes
        return any("upsample_bicubic" in str(node.target) for node in nodes)

    assert interpolates(network)
    assert not interpolates(deployed)
    with torch.no_grad():
        assert_equal(deployed(images), network(images), 1e-4)
