"""One backward pass at initialisation gives the gradient of every weight."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from families.drawing import ALL_SPACES, TEST_SPACES, images_for, new_supernet
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.proxy.importance import Importance, measure_importance, noise_images
from prenas.supernet import Supernet

each_space = pytest.mark.parametrize("space", ALL_SPACES)
SPACE = TEST_SPACES["vit"][1]


def labels_for(space: SearchSpace, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(space.settings.num_classes, (batch,), generator=generator)


def assert_gradients_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-4
) -> None:
    """Relative to each tensor's largest, but at least to rounding of the largest of all."""
    assert actual.keys() == expected.keys()
    overall = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        bound = relative * max(gradient.abs().max().item(), 1e-3 * overall)
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=bound, msg=name)


def embedded(supernet: Supernet, network: torch.nn.Module) -> dict[str, Tensor]:
    """Gradients of a cut network in the supernet's full size, zero elsewhere."""
    boxes = supernet.owned(network.arch)
    gradients = dict(network.named_parameters())
    full = {}
    for name, parameter in supernet.network.named_parameters():
        full[name] = torch.zeros_like(parameter)
        if name in gradients and gradients[name].grad is not None:
            full[name][boxes[name]] = gradients[name].grad
    return full


@each_space
@pytest.mark.parametrize("labelled", [False, True])
def test_equals_plain_autograd_on_the_cut_network(space: SearchSpace, labelled: bool) -> None:
    """Sum of all logits, or mean cross-entropy; full size, exactly zero where nothing is owned."""
    supernet, images = new_supernet(space), images_for(space, batch=6)
    labels = labels_for(space, 6)
    importance = measure_importance(
        supernet, space.scored, images, labels if labelled else None, batch_size=3
    )
    network = supernet.cut(space.scored)
    supernet.family.prepare_for_scoring(network)
    for batch in (slice(0, 3), slice(3, 6)):  # what batch statistics are of
        logits = network(images[batch])
        loss = cross_entropy(logits, labels[batch], reduction="sum") / 6
        (loss if labelled else logits.sum()).backward()
    assert_gradients_close(importance.gradients, embedded(supernet, network))
    owned = supernet.owned(space.scored)
    for name, gradient in importance.gradients.items():
        outside = torch.ones_like(gradient, dtype=torch.bool)
        if name in owned:
            outside[owned[name]] = False
        assert not gradient[outside].any()


@each_space
def test_weights_are_those_of_a_prepared_copy(space: SearchSpace) -> None:
    """Every parameter, full size, on the CPU, outside any graph; the supernet keeps its own."""
    supernet = new_supernet(space).eval()
    prepared = deepcopy(supernet.network)
    supernet.family.prepare_for_scoring(prepared)
    importance = measure_importance(supernet, space.scored, images_for(space))
    parameters = dict(prepared.named_parameters())
    assert importance.weights.keys() == importance.gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert torch.equal(importance.weights[name], parameter)
        assert importance.gradients[name].shape == parameter.shape
    for tensor in [*importance.weights.values(), *importance.gradients.values()]:
        assert not tensor.requires_grad
        assert tensor.device.type == "cpu"


@pytest.mark.parametrize("space", TEST_SPACES["vit"], ids=lambda space: space.name)
@pytest.mark.parametrize("labelled", [False, True])
@settings(max_examples=5)
@given(num_images=st.integers(1, 7), batch_size=st.integers(1, 9))
@example(num_images=3, batch_size=1)
@example(num_images=5, batch_size=4)
def test_batch_size_does_not_matter(
    space: SearchSpace, labelled: bool, num_images: int, batch_size: int
) -> None:
    """Where no layer looks at a whole batch: gradients of small ones add up to those of all."""
    supernet, images = new_supernet(space).eval(), images_for(space, batch=num_images)
    labels = labels_for(space, num_images) if labelled else None

    def measured(size: int) -> Importance:
        return measure_importance(supernet, space.largest, images, labels, batch_size=size)

    assert_gradients_close(measured(batch_size).gradients, measured(100).gradients)


@each_space
@pytest.mark.parametrize("training", [False, True])
def test_is_deterministic_and_leaves_nothing_behind(space: SearchSpace, training: bool) -> None:
    """Stochastic depth and dropout take no part, whatever the mode; mode, weights, .grad stay."""
    dropping, images = new_supernet(space, drop_path=0.5).train(training), images_for(space)
    supernet = Supernet(dropping.arch, dropping.settings, drop_path=0.5, dropout=0.5)
    supernet.load_state_dict(dropping.state_dict())
    supernet.train(training)
    state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    rates, generator = dict(supernet.drop_path_rates), torch.get_rng_state()
    first = measure_importance(supernet, space.scored, images)
    again = measure_importance(supernet, space.scored, images)
    still = measure_importance(new_supernet(space, drop_path=0.0), space.scored, images)
    for name, gradient in first.gradients.items():
        assert torch.equal(gradient, again.gradients[name])
        assert torch.equal(gradient, still.gradients[name])
    assert (supernet.drop_path_rates, supernet.dropout) == (rates, 0.5)
    assert all(module.training == training for module in supernet.modules())
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert all(torch.equal(tensor, state[n]) for n, tensor in supernet.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


# --- what BatchNorm does to gradients ------------------------------------------------------------

MICRO = get_space("mobilenet-micro")


@pytest.fixture(scope="module")
def micro() -> Supernet:
    """As a search initialises it: the last BatchNorm weight of every block is zero."""
    supernet = Supernet(MICRO.supernet, MICRO.settings)
    return supernet.initialize(torch.Generator().manual_seed(0))


def images_of_micro() -> Tensor:
    return images_for(MICRO, batch=16)


def norms_of(supernet: Supernet) -> list[str]:
    modules = supernet.network.named_modules()
    return [name for name, module in modules if isinstance(module, torch.nn.BatchNorm2d)]


def test_a_block_that_begins_as_its_shortcut_has_no_gradient_inside(micro: Supernet) -> None:
    """Why networks are prepared: all but the zero itself, and what it multiplies, is exactly 0."""
    network = deepcopy(micro.network).train()
    network(images_of_micro()).sum().backward()
    last = {"0": "bn2", "1": "bn3", "2": "bn3"}  # per stage, of a block
    dead = {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        for _, stage, _, part, *_ in [[*name.split("."), "", "", ""]]
        if name.startswith("blocks.") and part not in (last.get(stage, part), "shortcut")
    }
    assert len(dead) > 50
    assert all(gradient is not None and not gradient.any() for gradient in dead.values())
    assert network.get_parameter("conv_stem.weight").grad.any()  # type: ignore[union-attr]


def test_a_prepared_copy_has_gradients_everywhere(micro: Supernet) -> None:
    before = {name: tensor.clone() for name, tensor in micro.state_dict().items()}
    importance = measure_importance(micro, MICRO.scored, images_of_micro(), batch_size=16)
    assert all(torch.equal(before[name], t) for name, t in micro.state_dict().items())
    norms = norms_of(micro)
    assert len(norms) == 1 + 2 + 3 * 7 + 1  # stem, narrow block, wide ones, before pooling
    zeros = [name for name in norms if not before[f"network.{name}.weight"].any()]
    assert len(zeros) == 8  # a block each
    for name in norms:
        assert torch.equal(
            importance.weights[f"{name}.weight"], torch.ones_like(before[f"network.{name}.weight"])
        )
    owned = micro.owned(MICRO.scored)
    matrices = {n: g for n, g in importance.gradients.items() if g.ndim > 1 and n in owned}
    assert len(matrices) > 30
    assert all(gradient.any() for gradient in matrices.values())


@pytest.mark.parametrize(("eps", "bound"), [(1e-5, 1e-3), (1e-14, 1e-8)])
def test_signed_sums_vanish_for_filters_before_batch_norm(
    micro: Supernet, eps: float, bound: float
) -> None:
    """Its output ignores a filter's scale, but for eps: w*g sums to nothing, |w*g| does not."""
    network = micro.cut(MICRO.scored).double()
    micro.family.prepare_for_scoring(network)
    for name in norms_of(micro):
        network.get_submodule(name).eps = eps  # type: ignore[assignment]
    network(images_of_micro().double()).sum().backward()
    products = {n: (p * p.grad).detach() for n, p in network.named_parameters() if p.ndim > 1}
    filters = [n for n in products if n.endswith(("_pw.weight", "_dw.weight", "_stem.weight"))]
    filters += [n for n in products if n.endswith(("_pwl.weight", "blocks.3.0.conv.weight"))]
    assert len(filters) == len(norms_of(micro))
    for name in filters:
        parts = products[name].flatten(1)
        assert (parts.sum(1).abs() <= bound * parts.abs().sum(1)).all(), name
        assert parts.sum().abs() <= 1e-4 * parts.abs().sum(), name
    free = products["classifier.weight"]
    assert free.sum().abs() > 1e-2 * free.abs().sum()


@pytest.mark.parametrize("activated", [False, True])
def test_batch_norm_right_before_pooling_gives_no_gradient(activated: bool) -> None:
    """Over a batch its output sums to a constant; an activation in between makes the difference."""
    torch_generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.SiLU() if activated else torch.nn.Identity(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    ).double()
    images = torch.randn(8, 3, 9, 9, dtype=torch.float64, generator=torch_generator)
    with torch.no_grad():
        for parameter in network.parameters():
            drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=torch_generator)
            parameter.copy_(drawn)
    network(images).sum().backward()
    gradient = network[0].weight.grad
    assert isinstance(gradient, Tensor)
    largest = gradient.abs().max().item()
    assert largest > 1e-2 if activated else largest < 1e-12


def spoil_image(supernet: Supernet, images: Tensor) -> None:
    images[1, 0, 0, 0] = torch.inf


def spoil_weight(supernet: Supernet, images: Tensor) -> None:
    next(supernet.parameters()).data.fill_(torch.nan)


@pytest.mark.parametrize("spoil", [spoil_image, spoil_weight])
def test_gradients_that_are_not_finite_are_refused(
    spoil: Callable[[Supernet, Tensor], None],
) -> None:
    """The message names a tensor and says what to check; the mode is put back."""
    supernet, images = new_supernet(SPACE).train(), images_for(SPACE)
    spoil(supernet, images)
    with pytest.raises(ValueError, match=r"not finite.*check the images") as caught:
        measure_importance(supernet, SPACE.largest, images)
    names = [name for name, _ in supernet.network.named_parameters()]
    assert any(name in str(caught.value) for name in names)
    assert supernet.training


def test_gradients_that_are_zero_everywhere_are_refused() -> None:
    """A head without weights sends nothing back: no other weight would have an importance."""
    supernet = new_supernet(SPACE).eval()
    torch.nn.init.zeros_(supernet.network.get_submodule("head").weight)
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is zero everywhere"):
        measure_importance(supernet, SPACE.largest, images_for(SPACE))


def test_one_layer_without_gradient_is_enough() -> None:
    supernet = new_supernet(SPACE).eval()
    torch.nn.init.zeros_(supernet.network.get_submodule("blocks.1.mlp.fc2").weight)
    with pytest.raises(ValueError, match=r"blocks.1.mlp.fc1.weight is zero everywhere"):
        measure_importance(supernet, SPACE.largest, images_for(SPACE))


def test_layers_that_the_largest_subnet_lacks_may_have_none() -> None:
    """Measured at a smaller network, what it does not own is zero and no error."""
    supernet = new_supernet(SPACE).eval()
    importance = measure_importance(supernet, SPACE.smallest, images_for(SPACE))
    assert not importance.gradients["blocks.2.mlp.fc1.weight"].any()
    assert importance.gradients["blocks.0.mlp.fc1.weight"].any()


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        measure_importance(new_supernet(SPACE), SPACE.largest, images_for(SPACE, batch=0))


# --- images without data -------------------------------------------------------------------------

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.1)


def test_noise_images_have_the_datas_mean_and_deviation() -> None:
    """Per channel, to four standard errors; all pixels independent."""
    images = noise_images(64, 3, (24, 40), MEAN, STD, seed=0)
    assert images.shape == (64, 3, 24, 40)
    assert images.dtype == torch.float32
    num = 64 * 24 * 40
    for channel in range(3):
        values = images[:, channel].double()
        assert abs(values.mean().item() - MEAN[channel]) < 4 * STD[channel] / num**0.5
        assert values.std().item() == pytest.approx(STD[channel], rel=4 / (2 * num) ** 0.5)
    standard = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    for shifted in (standard.roll(1, 0), standard.roll(1, 1), standard.roll(1, 2)):
        correlation = (standard * shifted).mean().item()
        assert abs(correlation) < 4 / (3 * num) ** 0.5
    assert standard.abs().max() > 4  # normal, not uniform or cut off


def test_noise_images_follow_their_seed_alone() -> None:
    draws = [noise_images(2, 3, (8, 8), MEAN, STD, seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    before = torch.get_rng_state()
    noise_images(2, 1, (4, 6), (0.5,), (0.25,), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_images_of_one_channel() -> None:
    images = noise_images(200, 1, (8, 8), (2.0,), (0.01,), 5)
    assert images.shape == (200, 1, 8, 8)
    assert images.mean().item() == pytest.approx(2.0, abs=0.01)
