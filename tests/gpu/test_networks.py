"""Networks on an accelerator: both forms of attention, slices, and layouts of weights."""

import pytest
import torch
from torch import Tensor, nn

from families.drawing import TEST_SPACES, cut, images_for, new_supernet, noise_for, run
from families.test_vit_attention import (
    Case,
    Form,
    all_forms,
    draw_inputs,
    fast,
    literal,
    output_and_gradients,
)
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.families.mobilenet.blocks import Shortcut
from prenas.families.vit.published import PUBLISHED
from prenas.supernet import Supernet
from prenas.training.gradients import GradientBuffer

pytestmark = pytest.mark.gpu

CASE = Case(rows=14, columns=14, max_distance=14, heads=3, head_dim=64, batch=4)
SPACES = [
    pytest.param(space, id=f"{family}-{space.name}")
    for family in ("vit", "mobilenet")
    for space in TEST_SPACES[family]
]


def moved(tensors: list[Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Copies there, which ask for gradients of their own."""
    return [one.detach().to(device, dtype, copy=True).requires_grad_() for one in tensors]


def relative_errors(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Norm of the difference over the norm, tensor by tensor."""
    with torch.no_grad():
        return [
            float((ours.cpu().double() - truth).norm() / truth.norm())
            for ours, truth in zip(actual, expected, strict=True)
        ]


def on(device: torch.device, form: Form, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients there."""
    q, k, v, *tables = inputs

    def on_device(
        qkv: Tensor, key: Tensor, value: Tensor, features: Tensor, *rest: object
    ) -> Tensor:
        return form(qkv, key, value, features.to(device), *rest)

    out = fast(on_device, [q, k, v, *tables], CASE, 0.125)
    generator = torch.Generator().manual_seed(9)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return [out, *torch.autograd.grad(out, inputs, cotangent.to(device, out.dtype))]


@all_forms
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_all_forms_of_attention_equal_the_literal_one(
    form: Form, dtype: torch.dtype, limit: float, device: torch.device
) -> None:
    """Output and gradients, against float64 on the processor."""
    given = [one.to(dtype).double() for one in draw_inputs(CASE)]
    truths = [one.detach().requires_grad_() for one in given]
    expected = output_and_gradients(literal(truths, CASE, 0.125), truths)
    actual = on(device, form, moved(given, device, dtype))
    assert max(relative_errors(actual, expected)) < limit


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_slice_equals_the_network_cut_out(
    space: SearchSpace, training: bool, device: torch.device
) -> None:
    supernet = new_supernet(space, drop_path=0.2).to(device).train(training)
    images = images_for(space, batch=6).to(device)
    noise = noise_for(supernet, batch=6).to(device)
    for arch in (space.smallest, space.largest):
        network = cut(supernet, arch)
        whole = run(supernet, images, arch, noise)
        torch.testing.assert_close(whole, network(images, noise), rtol=1e-4, atol=1e-5)


def test_the_published_sizes_equal_what_the_processor_gives(device: torch.device) -> None:
    """At 224 pixels, whatever kernels the device chooses there."""
    space = get_space("tiny")
    arch = PUBLISHED["tiny"][0]
    supernet = Supernet(space.supernet, space.settings)
    network = supernet.initialize(torch.Generator().manual_seed(0)).eval().cut(arch)
    images = images_for(space, batch=2)
    with torch.no_grad():
        expected = network(images)
        actual = network.to(device)(images.to(device))
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["vit", "mobilenet"])
def test_a_classifier_is_replaced_on_the_device(family: str, device: torch.device) -> None:
    """Drawn on the processor, so that it is the same everywhere."""
    space = TEST_SPACES[family][0]
    here, there = (cut(new_supernet(space), space.largest) for _ in range(2))
    for network in (here, there.to(device)):
        network.reset_classifier(7)  # type: ignore[operator]
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        assert ours.device.type == device.type
        assert torch.equal(ours.cpu(), theirs)


def test_a_network_on_the_device_is_exported_whole(device: torch.device) -> None:
    """An exporter knows no windows of a tensor, so it gets another form of attention."""
    space = TEST_SPACES["vit"][0]
    network = new_supernet(space).network.eval().to(device)
    images = images_for(space, batch=3).to(device)
    exported = torch.export.export(network, (images,))
    assert "as_strided" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_gradients_are_those_of_float64_on_the_processor(
    space: SearchSpace, device: torch.device
) -> None:
    """Layer by layer: some kernels for channels-last maps were wrong, forward passes right."""
    supernet = new_supernet(space).train()
    network, images = supernet.cut(space.largest).double(), images_for(space, batch=6)
    names = [name for name, _ in network.named_parameters()]

    def gradients(where: torch.device, dtype: torch.dtype) -> list[Tensor]:
        own = network.to(where, dtype)
        logits = own(images.to(where, dtype))
        return list(torch.autograd.grad(logits.square().mean(), list(own.parameters())))

    expected = [one.clone() for one in gradients(torch.device("cpu"), torch.float64)]
    whole = torch.cat([one.flatten() for one in expected]).norm()
    found = gradients(device, torch.float32)
    errors = {
        name: float((ours.cpu().double() - truth).norm() / whole)
        for name, ours, truth in zip(names, found, expected, strict=True)
    }
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("shape", [(4, 8, 7, 7), (4, 8, 6, 9)], ids=str)
def test_a_pooled_shortcut_sends_back_what_the_processor_does(
    shape: tuple[int, ...], device: torch.device
) -> None:
    """Channels last, with a border where sides are odd."""
    shortcut = Shortcut(8, 8, pools=True, projects=False)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    found = []
    for where in (torch.device("cpu"), device):
        given = maps.detach().to(where, copy=True).requires_grad_()
        out = shortcut(given)
        out.mul(torch.linspace(-1, 1, out.numel(), device=where).view_as(out)).sum().backward()
        assert given.grad is not None
        found.append(given.grad.cpu())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("space", SPACES)
def test_a_bound_subnet_has_the_gradient_of_the_slice(
    space: SearchSpace, device: torch.device
) -> None:
    found = []
    for bound in (False, True):
        supernet = new_supernet(space, drop_path=0.2).to(device).train()
        buffer = GradientBuffer(supernet.network.parameters())
        images, noise = images_for(space).to(device), noise_for(supernet).to(device)
        arch = space.smallest
        network = supernet.bound(arch) if bound else lambda *x, s=supernet, a=arch: s(x[0], a, x[1])
        network(images, noise).square().mean().backward()
        found.append(buffer.flat)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("space", TEST_SPACES["mobilenet"], ids=lambda space: space.name)
def test_weights_laid_out_channels_last_give_the_same(
    space: SearchSpace, device: torch.device
) -> None:
    """Logits and gradients of a convolutional network, from images of either layout."""
    supernet = new_supernet(space).to(device).train()
    images = images_for(space, batch=6).to(device)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = supernet.cut(space.largest).to(memory_format=layout)
        for own in (torch.contiguous_format, torch.channels_last):
            found.append(logits_and_gradient(network, images.contiguous(memory_format=own)))
    for one in found[1:]:
        for ours, first in zip(one, found[0], strict=True):
            assert (ours - first).norm() <= 1e-3 * first.norm()


def logits_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    logits = network(images)
    gradients = torch.autograd.grad(logits.square().mean(), list(network.parameters()))
    return logits, torch.cat([one.contiguous().flatten() for one in gradients])
