"""Training steps on an accelerator: in half precision, compiled, and as a CUDA graph."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from benchmarks.gpu.sizes import Subject, quick
from benchmarks.gpu.steps import BareStep, new_batch
from torch import Tensor

from families.drawing import TEST_SPACES, images_for, new_supernet, noise_for
from prenas.data import Batch, load_data, training_batches
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.precision import Precision, float32_products
from prenas.randomness import numpy_generator
from prenas.recipe import TrainingRecipe
from prenas.recipe.catalogue import get_recipe
from prenas.supernet import Supernet
from prenas.training.gradients import GradientBuffer
from prenas.training.loop import train_supernet
from prenas.training.sampler import make_sampler
from prenas.training.step import TrainingStep, read
from prenas.training.subnets import BoundSubnets

pytestmark = pytest.mark.gpu

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")


def losses_on_digits(space: SearchSpace, device: torch.device, **fields: Any) -> list[float]:
    """Of four epochs of the smallest and the largest subnet."""
    data = get_recipe("digits").data
    assert data is not None
    own = space.with_settings(image_size=(8, 8), in_chans=1)
    archs, settings = [own.smallest, own.largest], own.settings
    recipe = TrainingRecipe(epochs=4, batch_size=64, lr_per_512_images=1.6e-2, **fields)
    supernet = Supernet(own.largest, settings, drop_path=0.1)
    supernet.initialize(torch.Generator().manual_seed(0)).to(device).train()
    step = TrainingStep(supernet, make_sampler(archs, recipe, 0), recipe, steps_per_epoch=17)
    images, found = load_data(data, settings), list[float]()
    for epoch in range(recipe.epochs):
        for batch in training_batches(images, settings, recipe.batch_size, 0, epoch):
            found.append(step(len(found), batch).loss)
    return found


@pytest.mark.parametrize("name", ["digits", "mobilenet-micro"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_training_in_half_precision_learns(
    name: str, precision: str, device: torch.device
) -> None:
    found = losses_on_digits(get_space(name), device, precision=precision)
    assert all(map(math.isfinite, found[8:]))  # the loss scaler of fp16 looks for its scale first
    assert sum(found[-8:]) < 0.99 * sum(found[:8])


def test_a_training_of_four_subnets_a_step_learns(device: torch.device) -> None:
    fields = {"sandwich": 2, "inplace_distillation": "cross_entropy", "ema_decay": 0.9}
    found = losses_on_digits(get_space("digits"), device, precision="bf16", **fields)
    assert all(map(math.isfinite, found))
    assert sum(found[-8:]) < 0.995 * sum(found[:8])


@on_cuda
@pytest.mark.usefixtures("deterministic")
def test_results_that_are_read_later_change_nothing(device: torch.device) -> None:
    """A step that is not finite is left out by the device itself."""
    space, recipe = TEST_SPACES["vit"][0], TrainingRecipe(epochs=1, lr_per_512_images=1e-2)
    images = images_for(space, batch=8).to(device)
    found = []
    for late in (False, True):
        supernet = new_supernet(space, 0.0).to(device).train()
        step = TrainingStep(supernet, lambda _: (space.smallest,), recipe, 6)
        assert step.may_be_late
        begun = []
        for number in range(6):
            generators = [numpy_generator(0, "x", number, one) for one in range(8)]
            spoilt = images * math.nan if number in (0, 3) else images
            labels = torch.arange(8, device=device) % space.settings.num_classes
            batch = Batch(spoilt, labels, generators, 8)
            begun.append(step.begin(number, batch, stop=False, late=late))
        outcomes = read(begun)
        assert [one.is_skipped for one in outcomes] == [n in (0, 3) for n in range(6)]
        found.append((repr(outcomes), [one.clone() for one in supernet.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


@on_cuda
def test_products_are_whole_unless_they_are_to_be_rounded(device: torch.device) -> None:
    """Matrix products and convolutions, against double precision."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 64, 16, 16, generator=generator).to(device)
    weight = torch.randn(64, 64, 3, 3, generator=generator).to(device)
    works: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, b: a.flatten(1) @ a.flatten(1).T,
        lambda a, b: torch.nn.functional.conv2d(a, b, padding=1),
    ]
    for work in works:
        exact, errors = work(maps.double(), weight.double()), {}
        for precision in get_args(Precision)[:2]:
            with float32_products(precision, device):
                errors[precision] = float((work(maps, weight) - exact).norm() / exact.norm())
        assert errors["fp32"] < 1e-5
        assert errors["tf32"] < 1e-2


def logits_and_gradient(
    space: SearchSpace, device: torch.device, *, compiled: bool
) -> tuple[Tensor, Tensor]:
    supernet = new_supernet(space, 0.3).to(device).train()
    buffer = GradientBuffer(supernet.network.parameters())
    network = BoundSubnets(supernet, compiled_for=4 if compiled else None)(space.smallest)
    images, noise = images_for(space, batch=4).to(device), noise_for(supernet, batch=4).to(device)
    logits = network(images, noise)
    logits.square().sum().backward()  # type: ignore[no-untyped-call]
    return logits, buffer.flat


@pytest.mark.parametrize("family", ["vit", "mobilenet"])
def test_a_compiled_subnet_equals_the_eager_one(
    family: str, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    space = TEST_SPACES[family][0]
    eager = logits_and_gradient(space, device, compiled=False)
    compiled = logits_and_gradient(space, device, compiled=True)
    assert "torch.compile failed" not in caplog.text
    for ours, theirs in zip(compiled, eager, strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


def weights_after(
    subject: Subject, num_steps: int, device: torch.device, *, as_graph: bool
) -> Tensor:
    """All weights, after steps with draws for stochastic depth."""
    supernet = Supernet(subject.supernet, subject.settings, drop_path=0.3)
    supernet.initialize(torch.Generator().manual_seed(0)).to(device).train()
    before = {name: one.clone() for name, one in supernet.state_dict().items()}
    training = subject.training.model_copy(update={"precision": "fp32", "warmup_lr": 1e-3})
    batch = new_batch(subject, 8, device)
    bare = BareStep(supernet, subject.archs[0], batch, training)
    step = bare.captured() if as_graph else bare
    if as_graph:  # which took steps to warm up: back to where it began, tensors staying in place
        supernet.load_state_dict(before)
        for state in bare.optimizer.state.values():
            for one in state.values():
                one.zero_()
    for _ in range(num_steps):
        step()
    return torch.cat([one.detach().flatten() for one in supernet.parameters()])


@on_cuda
@pytest.mark.parametrize("family", ["vit", "mobilenet"])
def test_a_step_as_a_cuda_graph_equals_the_eager_one(family: str, device: torch.device) -> None:
    """Five steps of a subnet on the shared weights, each with draws of its own."""
    subject = getattr(quick(), family)
    eager = weights_after(subject, 5, device, as_graph=False)
    graph = weights_after(subject, 5, device, as_graph=True)
    still = weights_after(subject, 0, device, as_graph=False)
    moved = (eager - still).norm()
    assert moved > 1e-5 * still.norm()  # else nothing would be compared
    assert (graph - eager).norm() <= 1e-2 * moved


def trained_weights(
    space: SearchSpace, device: torch.device, folder: Path, **fields: Any
) -> dict[str, Tensor]:
    """After three epochs of the smallest and the largest subnet on digits."""
    data = get_recipe("digits").data
    assert data is not None
    own = space.with_settings(image_size=(8, 8), in_chans=1)
    supernet = Supernet(own.largest, own.settings, drop_path=0.1)
    supernet.initialize(torch.Generator().manual_seed(0)).to(device)
    recipe = TrainingRecipe(epochs=3, batch_size=100, lr_per_512_images=1e-2, **fields)
    archs = [own.smallest, own.largest]
    train_supernet(supernet, archs, load_data(data, own.settings), recipe, folder=folder)
    return {name: one.clone() for name, one in supernet.network.named_parameters()}


@on_cuda
@pytest.mark.parametrize("name", ["digits", "mobilenet-micro"])
@pytest.mark.parametrize("fields", [{}, {"precision": "bf16"}, {"compile": True}], ids=str)
def test_a_training_with_graphs_ends_with_nearly_the_same_weights(
    name: str,
    fields: dict[str, Any],
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the same steps computed one by one; schedule, noise, and a smaller last batch included."""
    replays = count_replays(monkeypatch)
    fields = {**fields, "cuda_graphs": True}
    graphs = trained_weights(get_space(name), device, tmp_path / "graphs", **fields)
    assert "cannot be recorded" not in caplog.text
    assert len(replays) > 20
    monkeypatch.setattr("prenas.training.graphs.STEPS_BEFORE", 1_000)
    eager = trained_weights(get_space(name), device, tmp_path / "eager", **fields)
    own = get_space(name).with_settings(image_size=(8, 8), in_chans=1)
    still = Supernet(own.largest, own.settings).initialize(torch.Generator().manual_seed(0))
    start = dict(still.to(device).network.named_parameters())
    apart, moved = (
        sum(float((ours[one] - theirs[one]).square().sum()) for one in start) ** 0.5
        for ours, theirs in ((graphs, eager), (eager, start))
    )
    assert moved > 0.1
    assert apart <= (0.2 if "precision" in fields else 5e-2) * moved


def count_replays(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with every graph that is replayed."""
    found = list[None]()
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        found.append(None)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return found
