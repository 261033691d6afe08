"""The supernet as a module: what the contract suite of the families does not cover."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families.drawing import (
    ALL_SPACES,
    archs,
    assert_equal,
    cut,
    images_for,
    new_supernet,
    noise_for,
    run,
    shared_supernet,
)
from prenas.families import build_structure, family_of, get_space
from prenas.families.base import SearchSpace
from prenas.randomness import torch_generator
from prenas.supernet import Supernet
from prenas.training.gradients import GradientBuffer

each_space = pytest.mark.parametrize("space", ALL_SPACES)


@each_space
def test_its_state_is_that_of_the_largest_network(space: SearchSpace) -> None:
    """Only names under `network.`, and one supernet loads the state of another."""
    supernet, other = new_supernet(space), Supernet(space.supernet, space.settings)
    state = supernet.state_dict()
    assert [f"network.{name}" for name in supernet.network.state_dict()] == list(state)
    other.load_state_dict(state)
    images = images_for(space)
    for arch in (space.smallest, space.largest):
        assert torch.equal(run(other.eval(), images, arch), run(supernet.eval(), images, arch))


def space_uses(space: SearchSpace, name: str) -> bool:
    """Whether the plain largest network has a tensor."""
    return name in dict(build_structure(space.supernet, space.settings).named_parameters())


@each_space
def test_its_own_network_is_the_subnet_of_its_arch(space: SearchSpace) -> None:
    supernet, images = shared_supernet(space, training=True), images_for(space)
    assert_equal(supernet(images, supernet.arch), supernet.cut(supernet.arch)(images))
    boxes = supernet.owned_boxes(supernet.arch)
    for name, parameter in supernet.network.named_parameters():
        if name not in boxes:  # kept for smaller subnets alone
            assert not space_uses(space, name)
            continue
        assert boxes[name] == tuple(slice(0, size) for size in parameter.shape)
        assert supernet.views(supernet.arch)[name].data_ptr() == parameter.data_ptr()


@each_space
def test_a_copy_is_another_supernet(space: SearchSpace) -> None:
    """Structures are shared between calls, weights never."""
    supernet, images = new_supernet(space).eval(), images_for(space)
    twin = copy.deepcopy(supernet)
    before = run(supernet, images, space.smallest)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(-1)
    assert not torch.equal(run(twin, images, space.smallest), before)
    assert torch.equal(run(supernet, images, space.smallest), before)


@each_space
def test_it_goes_to_another_process(space: SearchSpace) -> None:
    supernet, images = new_supernet(space).eval(), images_for(space)
    twin = pickle.loads(pickle.dumps(supernet))
    assert twin.family is supernet.family is copy.deepcopy(supernet).family
    assert torch.equal(run(twin, images, space.smallest), run(supernet, images, space.smallest))


@each_space
@settings(max_examples=10)
@given(data=st.data())
def test_gradients_of_subnets_add_up(space: SearchSpace, data: st.DataObject) -> None:
    """Several subnets in one step, together or one after the other, share their gradients."""
    members = data.draw(st.lists(archs(space), min_size=2, max_size=3))
    supernet, images = shared_supernet(space), images_for(space)
    parameters = list(supernet.parameters())

    def gradients(*chosen: int) -> list[torch.Tensor]:
        loss = sum(run(supernet, images, members[i]).square().sum() for i in chosen)
        return list(torch.autograd.grad(loss, parameters, materialize_grads=True))

    together = gradients(*range(len(members)))
    apart = zip(*(gradients(i) for i in range(len(members))), strict=True)
    largest = max(gradient.abs().max().item() for gradient in together)
    for ours, parts in zip(together, apart, strict=True):
        bound = 2e-5 * max(ours.abs().max().item(), 1e-3 * largest)
        torch.testing.assert_close(ours, sum(parts), rtol=0, atol=bound)


@each_space
def test_a_step_moves_what_the_subnet_owns_alone(space: SearchSpace) -> None:
    """Plain gradient descent on one subnet leaves the rest of every tensor bit for bit."""
    supernet = new_supernet(space)
    before = {name: p.detach().clone() for name, p in supernet.network.named_parameters()}
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.01)
    supernet(images_for(space), space.smallest).square().sum().backward()
    optimizer.step()
    boxes = supernet.owned_boxes(space.smallest)
    moved = 0
    for name, parameter in supernet.network.named_parameters():
        changed = parameter.detach() != before[name]
        moved += int(changed.sum())
        if name in boxes:
            changed[boxes[name]] = False
        assert not changed.any()
    assert moved > 0


@each_space
def test_a_failed_call_leaves_nothing_behind(space: SearchSpace) -> None:
    """After an error inside the network, the next call of that subnet works as before."""
    supernet, images = new_supernet(space).eval(), images_for(space)
    expected = run(supernet, images, space.smallest)
    with pytest.raises(ValueError, match="images"):
        run(supernet, images[:, :, 1:], space.smallest)
    assert torch.equal(run(supernet, images, space.smallest), expected)


@each_space
def test_same_arch_under_other_settings(space: SearchSpace) -> None:
    """Two supernets of one architecture with different heads share no cached structure."""
    other = space.with_settings(num_classes=space.settings.num_classes + 3)
    images = images_for(space)
    first, second = new_supernet(space).eval(), new_supernet(other).eval()
    for _ in range(2):
        assert run(first, images, space.smallest).shape == (3, space.settings.num_classes)
        assert run(second, images, space.smallest).shape == (3, other.settings.num_classes)


@each_space
def test_rates_are_the_familys(space: SearchSpace) -> None:
    """One per layer of the largest network; none drops without `drop_path`."""
    family, rates = family_of(space), Supernet(space.supernet, space.settings, drop_path=0.2)
    expected = family.drop_path_rates(space.supernet, 0.2)
    assert list(rates.drop_path_rates) == list(family.layers(space.supernet))
    assert tuple(rates.drop_path_rates.values()) == expected
    assert not any(Supernet(space.supernet, space.settings).drop_path_rates.values())


@each_space
def test_noise_beyond_the_subnets_layers_is_not_read(space: SearchSpace) -> None:
    """One row of noise suits any subnet: a shallow one reads the columns of its layers."""
    supernet = shared_supernet(space, 0.5, training=True)
    images, noise = images_for(space), noise_for(supernet)
    arch = space.smallest
    used = family_of(space).num_branches(arch)
    changed = noise.clone()
    changed[:, used:] = 1 - changed[:, used:]
    assert torch.equal(supernet(images, arch, noise), supernet(images, arch, changed))
    assert torch.equal(supernet(images, arch, noise), supernet(images, arch, noise[:, :used]))


@each_space
def test_dropout_reads_the_last_columns_of_the_noise(space: SearchSpace) -> None:
    """One row of noise suits any subnet: its features read as many columns, from the end."""
    plain = shared_supernet(space, training=True)
    supernet = plain.trimmed(space.supernet, drop_path=0.5, dropout=0.5)
    images, noise, num_branches = images_for(space), noise_for(supernet), noise_for(plain).shape[1]
    whole = supernet.network.head_hidden_size
    assert noise.shape[1] == supernet.num_draws == num_branches + whole  # type: ignore[operator]
    for arch in (space.smallest, space.largest):
        own, num_features = family_of(space).num_branches(arch), plain.cut(arch).head_hidden_size
        unread = slice(own, supernet.num_draws - num_features)  # type: ignore[operator]
        changed = noise.clone()
        changed[:, unread] = 1 - changed[:, unread]
        logits = supernet(images, arch, noise)
        assert torch.equal(logits, supernet(images, arch, changed))
        assert torch.equal(logits, supernet.cut(arch)(images, noise))
        kept = torch.cat([noise[:, :-num_features], torch.ones(3, num_features)], dim=1)  # type: ignore[operator]
        assert not torch.equal(logits, supernet(images, arch, kept))


@each_space
def test_dropout_and_stochastic_depth_are_of_training_and_can_be_left_out(
    space: SearchSpace,
) -> None:
    plain, images = new_supernet(space).train(), images_for(space)
    supernet = plain.trimmed(space.supernet, drop_path=0.5, dropout=0.5)
    GradientBuffer(supernet.network.parameters())
    arch, zeros = space.largest, torch.zeros(3, supernet.num_draws)
    still, expected = supernet.bound(arch, drops=False), plain(images, arch)
    for noise in (None, zeros):
        assert torch.equal(still(images, noise), expected)
    assert torch.equal(supernet.bound(arch)(images, zeros), supernet(images, arch, zeros))
    assert not torch.allclose(supernet(images, arch, zeros), expected)
    evaluated = run(supernet.eval(), images, arch, zeros)
    assert torch.equal(evaluated, run(plain.eval(), images, arch))


@each_space
def test_mixed_precision_equals_the_cut_network(space: SearchSpace) -> None:
    """Autocast treats views like parameters."""
    supernet, images = shared_supernet(space), images_for(space)
    with torch.autocast("cpu", torch.bfloat16):
        for arch in (space.smallest, space.largest):
            ours, theirs = run(supernet, images, arch), cut(supernet, arch)(images)
            assert ours.dtype == theirs.dtype == torch.bfloat16
            assert_equal(ours, theirs, 2**-8)
    exact = run(supernet, images, space.largest)
    torch.testing.assert_close(ours.float(), exact, rtol=0, atol=0.1 * exact.abs().max().item())


def test_threads_do_not_mix_the_weights_of_two_supernets() -> None:
    """Two supernets of one space share the structure of a subnet, but not at the same time."""
    space = get_space("digits")
    arch = space.smallest
    supernets = [
        Supernet(space.supernet, space.settings).initialize(torch_generator(seed, "weights")).eval()
        for seed in (0, 1)
    ]
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = [supernet(images, arch).detach() for supernet in supernets]
    assert not torch.equal(*expected)

    def calls(number: int) -> bool:
        with torch.no_grad():
            return all(
                torch.equal(supernets[number](images, arch), expected[number]) for _ in range(40)
            )

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(calls, (0, 1))) == [True, True]
