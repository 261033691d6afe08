"""Bound subnets: the plain networks of architectures on the shared weights and gradients."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from families.drawing import ALL_SPACES, archs, images_for, new_supernet, noise_for
from prenas.families.base import Arch, SearchSpace, named_tensors
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training import loop
from prenas.training.gradients import GradientBuffer
from prenas.training.loop import train_supernet
from prenas.training.subnets import BoundSubnets, num_kept
from training.runs import MINI, SMALLEST, WHOLE, own_data

each_space = pytest.mark.parametrize("space", ALL_SPACES)
DROP_PATH = 0.3


def run_sliced(supernet: Supernet) -> Callable[[Arch, Tensor, Tensor], Tensor]:
    return lambda arch, images, noise: supernet(images, arch, noise)


def run_bound(supernet: Supernet) -> Callable[[Arch, Tensor, Tensor], Tensor]:
    subnets = BoundSubnets(supernet)
    return lambda arch, images, noise: subnets(arch)(images, noise)


def outcome(
    space: SearchSpace, make: Callable[..., Callable[..., Tensor]], chosen: Sequence[Arch]
) -> tuple[list[Tensor], Tensor]:
    """Logits of subnets, and what their backward passes make of a buffer full of numbers."""
    supernet = new_supernet(space, DROP_PATH).train()
    buffer = GradientBuffer(supernet.network.parameters())
    buffer.flat.copy_(torch.randn(len(buffer.flat), generator=torch.Generator().manual_seed(0)))
    run, found = make(supernet), []
    for number, arch in enumerate(chosen):
        images, noise = images_for(space, seed=number), noise_for(supernet, seed=number)
        found.append(run(arch, images, noise))
        found[-1].square().mean().backward()  # type: ignore[no-untyped-call]
    return found, buffer.flat


@each_space
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@settings(max_examples=8)
@given(data=st.data())
def test_logits_and_gradients_are_those_of_the_supernet_to_the_bit(
    space: SearchSpace, precision: str, data: st.DataObject
) -> None:
    """Of several subnets in one step, some of them twice, on top of what was there."""
    chosen = data.draw(st.lists(archs(space), min_size=1, max_size=3))
    chosen.append(chosen[0])
    half = torch.autocast("cpu", torch.bfloat16)
    with half if precision == "bf16" else nullcontext():
        expected, expected_gradient = outcome(space, run_sliced, chosen)
        found, gradient = outcome(space, run_bound, chosen)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(gradient, expected_gradient)


@each_space
@settings(max_examples=10)
@given(data=st.data())
def test_nothing_outside_the_owned_part_is_touched(space: SearchSpace, data: st.DataObject) -> None:
    arch = data.draw(archs(space))
    supernet = new_supernet(space).train()
    buffer = GradientBuffer(supernet.network.parameters())
    buffer.flat.fill_(3.0)
    BoundSubnets(supernet)(arch)(images_for(space)).square().sum().backward()
    boxes = supernet.owned_boxes(arch)
    for name, parameter in supernet.network.named_parameters():
        assert parameter.grad is not None
        changed = parameter.grad != 3.0
        if name in boxes:
            # After a normalisation, small gradients may vanish next to a 3.
            assert supernet.has_statistics or changed[boxes[name]].any()
            changed[boxes[name]] = False
        assert not changed.any()


@each_space
def test_every_tensor_is_a_leaf_on_shared_memory(space: SearchSpace) -> None:
    """Parameters, their gradients, and buffers, such as a normalisation updates in place."""
    supernet = new_supernet(space)
    GradientBuffer(supernet.network.parameters())
    shared = named_tensors(supernet.network)
    for arch in (space.smallest, space.largest):
        network, cut = supernet.bound(arch), supernet.cut(arch)
        assert named_tensors(network).keys() == named_tensors(cut).keys()
        assert network.state_dict().keys() == cut.state_dict().keys()
        for name, tensor in named_tensors(network).items():
            assert tensor.shape == named_tensors(cut)[name].shape
            box = supernet.owned_boxes(arch)[name]
            assert tensor.data_ptr() == shared[name][box].data_ptr()
            assert tensor.is_leaf
            assert isinstance(tensor, nn.Parameter) == isinstance(shared[name], nn.Parameter)
            if tensor.requires_grad:
                assert tensor.grad.data_ptr() == shared[name].grad[box].data_ptr()  # type: ignore[union-attr, index]


def test_frozen_parameters_stay_frozen() -> None:
    supernet = new_supernet(MINI).requires_grad_(False)
    supernet.network.head.requires_grad_(True)  # type: ignore[union-attr, operator]
    GradientBuffer(supernet.network.head.parameters())  # type: ignore[union-attr]
    network = BoundSubnets(supernet)(SMALLEST)
    asking = [name for name, p in network.named_parameters() if p.requires_grad]
    assert asking == ["head.weight", "head.bias"]
    network(images_for(MINI)).sum().backward()
    assert supernet.network.head.weight.grad[:, : SMALLEST.embed_dim].any()  # type: ignore[union-attr, index]


def test_gradients_need_a_place() -> None:
    with pytest.raises(ValueError, match="create a GradientBuffer"):
        BoundSubnets(new_supernet(MINI))(SMALLEST)


def test_what_does_not_fit_is_refused_as_by_the_supernet() -> None:
    supernet = new_supernet(MINI, arch=SMALLEST)
    with pytest.raises(ValueError, match="does not fit") as found:
        BoundSubnets(supernet)(WHOLE)
    with pytest.raises(ValueError, match=re.escape(str(found.value))):
        supernet.owned_boxes(WHOLE)


# --- keeping -------------------------------------------------------------------------------------


def new_subnets() -> tuple[Supernet, BoundSubnets]:
    supernet = new_supernet(MINI)
    GradientBuffer(supernet.network.parameters())
    return supernet, BoundSubnets(supernet)


def test_changes_in_place_are_seen_by_what_is_kept() -> None:
    """A step of an optimiser, a checkpoint, another mode."""
    supernet, subnets = new_subnets()
    images, network = images_for(MINI), subnets(SMALLEST)
    other = new_supernet(MINI, 0.5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-0.5)
    supernet.load_state_dict(other.state_dict())
    torch.optim.SGD(supernet.parameters(), lr=0.1).step()
    for mode in (True, False):
        supernet.train(mode)
        assert subnets(SMALLEST) is network
        assert {module.training for module in network.modules()} == {mode}
        assert torch.equal(network(images), supernet(images, SMALLEST))


def _cast(supernet: Supernet) -> None:
    supernet.double()


def _assign(supernet: Supernet) -> None:
    supernet.load_state_dict(new_supernet(MINI).double().state_dict(), assign=True)
    GradientBuffer(supernet.network.parameters())


def _replace_data(supernet: Supernet) -> None:
    for parameter in supernet.parameters():
        parameter.data = parameter.data * 2


def _new_gradients(supernet: Supernet) -> None:
    GradientBuffer(supernet.network.parameters())


def _freeze(supernet: Supernet) -> None:
    supernet.network.requires_grad_(False)
    supernet.network.head.requires_grad_(True)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("change", [_cast, _assign, _replace_data, _new_gradients, _freeze])
def test_kept_networks_are_rebuilt_if_tensors_moved(
    change: Callable[[Supernet], None],
) -> None:
    supernet, subnets = new_subnets()
    before = subnets(SMALLEST)
    change(supernet)
    network = subnets(SMALLEST)
    assert network is not before
    assert subnets(SMALLEST) is network
    images = images_for(MINI).to(next(supernet.parameters()).dtype)
    logits = network(images)
    assert torch.equal(logits, supernet(images, SMALLEST))
    for parameter in supernet.network.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    logits.square().sum().backward()
    found = supernet.network.head.weight.grad.clone()  # type: ignore[union-attr, operator]
    supernet.network.head.weight.grad.zero_()  # type: ignore[union-attr, operator]
    supernet(images, SMALLEST).square().sum().backward()
    assert found.any()
    assert torch.equal(found, supernet.network.head.weight.grad)  # type: ignore[union-attr, arg-type]


def test_a_subnet_is_kept_with_and_without_drops() -> None:
    """Two networks on the same weights and gradients."""
    supernet = new_supernet(MINI, drop_path=0.5).train()
    buffer, subnets = GradientBuffer(supernet.network.parameters()), BoundSubnets(supernet)
    dropping, still = subnets(WHOLE), subnets(WHOLE, drops=False)
    images, noise = images_for(MINI), torch.zeros_like(noise_for(supernet))
    assert not torch.allclose(dropping(images, noise), still(images, noise))
    assert torch.equal(still(images, None), new_supernet(MINI).train()(images, WHOLE))
    assert (subnets(WHOLE, drops=True), subnets(WHOLE, drops=False)) == (dropping, still)
    for network in (dropping, still):
        buffer.zero()
        network(images, noise).square().sum().backward()
        assert buffer.flat.any()


def test_only_the_latest_are_kept() -> None:
    supernet = new_supernet(MINI)
    GradientBuffer(supernet.network.parameters())
    subnets = BoundSubnets(supernet, most_kept=1)
    first = subnets(SMALLEST)
    assert subnets(SMALLEST) is first
    subnets(WHOLE)
    assert subnets(SMALLEST) is not first


def test_every_preferred_subnet_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is made twice, however many subnets take turns."""
    made = Counter[Arch]()
    bound = Supernet.bound

    def counted(self: Supernet, arch: Arch, *, drops: bool = True) -> nn.Module:
        made[arch] += 1
        return bound(self, arch, drops=drops)

    monkeypatch.setattr(Supernet, "bound", counted)
    archs = [SMALLEST, WHOLE]
    recipe = TrainingRecipe(epochs=4, batch_size=8, optimizer="masked_adamw")
    train_supernet(new_supernet(MINI), archs, own_data(), recipe)
    assert made == {SMALLEST: 1, WHOLE: 1}
    monkeypatch.setattr(loop, "num_kept", lambda num_preferred: 1)
    train_supernet(new_supernet(MINI), archs, own_data(), recipe)
    assert min(made.values()) > 2


def test_how_many_are_kept() -> None:
    """Preferred subnets with and without drops, up to a limit; of a space, few."""
    assert [num_kept(number) for number in (1, 100, 10_000)] == [2, 200, 1024]
    assert num_kept(None) == 64


def test_pytorch_does_not_warn_of_gaps() -> None:
    """Adding to views with gaps is meant; PyTorch says so once per process otherwise."""
    script = """
import torch
from prenas.families import get_space
from prenas.supernet import Supernet
from prenas.training.gradients import GradientBuffer
from prenas.training.subnets import BoundSubnets, num_kept
space = get_space("digits")
supernet = Supernet(space.supernet, space.settings).initialize(torch.Generator())
GradientBuffer(supernet.network.parameters())
BoundSubnets(supernet)(space.smallest)(torch.randn(2, 1, 8, 8)).sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
