"""One backward pass at initialisation gives the gradient of every weight."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from families.drawing import ALL_SPACES, TEST_SPACES, images_for, new_supernet
from prenas.families.base import Arch, SearchSpace
from prenas.proxy.importance import Importance, _batches, measure_importance, noise_images
from prenas.supernet import Supernet

each_space = pytest.mark.parametrize("space", ALL_SPACES)
SPACE = TEST_SPACES["vit"][1]


def labels_for(space: SearchSpace, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(space.settings.num_classes, (batch,), generator=generator)


def assert_gradients_close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-4
) -> None:
    """Relative to each tensor's largest value, or to the rounding of the overall largest."""
    assert actual.keys() == expected.keys()
    overall = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        bound = relative * max(gradient.abs().max().item(), 1e-3 * overall)
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=bound, msg=name)


def embedded(supernet: Supernet, network: torch.nn.Module, arch: Arch) -> dict[str, Tensor]:
    """Gradients of a cut network in the supernet's full size, zero elsewhere."""
    boxes = supernet.owned_boxes(arch)
    gradients = dict(network.named_parameters())
    full = {}
    for name, parameter in supernet.network.named_parameters():
        full[name] = torch.zeros_like(parameter)
        if name in gradients and gradients[name].grad is not None:
            full[name][boxes[name]] = gradients[name].grad
    return full


def prepared(supernet: Supernet) -> Supernet:
    """A copy with the weights and in the mode that its family scores."""
    other = deepcopy(supernet)
    supernet.family.prepare_for_scoring(other.network)
    return other.train(other.network.training)


@each_space
@pytest.mark.parametrize("labelled", [False, True])
def test_equals_plain_autograd_on_the_cut_network(space: SearchSpace, labelled: bool) -> None:
    """Sum of all logits, or mean cross-entropy; full size, exactly zero outside the owned part."""
    supernet, images = new_supernet(space).eval(), images_for(space, batch=9)
    labels = labels_for(space, 9) if labelled else None
    importance = measure_importance(supernet, space.scored, images, labels, batch_size=2)
    network = prepared(supernet).cut(space.scored)
    logits = network(images)
    scalar = logits.sum() if labels is None else cross_entropy(logits, labels)
    scalar.backward()
    expected = embedded(supernet, network, space.scored)
    assert_gradients_close(
        importance.gradients, expected, 1e-3 if supernet.has_statistics else 1e-4
    )
    for name, gradient in importance.gradients.items():
        outside = torch.ones_like(gradient, dtype=torch.bool)
        if name in supernet.owned_boxes(space.scored):
            outside[supernet.owned_boxes(space.scored)[name]] = False
        assert not gradient[outside].any()


@each_space
def test_weights_are_those_that_the_family_scores(space: SearchSpace) -> None:
    """Every parameter, full size, on the CPU, outside any graph."""
    supernet = new_supernet(space).eval()
    importance = measure_importance(supernet, space.scored, images_for(space, batch=8))
    parameters = dict(prepared(supernet).network.named_parameters())
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
    """Gradients of small batches add up to those of all images at once."""
    supernet, images = new_supernet(space).eval(), images_for(space, batch=num_images)
    labels = labels_for(space, num_images) if labelled else None

    def measured(size: int) -> Importance:
        return measure_importance(supernet, space.scored, images, labels, batch_size=size)

    assert_gradients_close(measured(batch_size).gradients, measured(100).gradients)


@given(st.integers(1, 200), st.integers(1, 40), st.booleans())
def test_batches_hold_every_image_once(number: int, size: int, are_equal: bool) -> None:
    """With batch statistics, all batches are equal and have at least eight images."""
    batches = _batches(number, size, are_equal)
    assert [image for batch in batches for image in range(number)[batch]] == list(range(number))
    sizes = [len(range(number)[batch]) for batch in batches]
    if are_equal:
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(number, max(size, 8))
    else:
        assert max(sizes) <= size


@each_space
@pytest.mark.parametrize("training", [False, True])
def test_is_deterministic_and_leaves_nothing_behind(space: SearchSpace, training: bool) -> None:
    """Stochastic depth is off in any mode; mode, weights and .grad do not change."""
    supernet = new_supernet(space, drop_path=0.5).train(training)
    supernet.dropout = 0.5
    images = images_for(space, batch=8)
    state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    generator = torch.get_rng_state()
    first = measure_importance(supernet, space.scored, images)
    again = measure_importance(supernet, space.scored, images)
    still = measure_importance(new_supernet(space, drop_path=0.0), space.scored, images)
    for name, gradient in first.gradients.items():
        assert torch.equal(gradient, again.gradients[name])
        assert torch.equal(gradient, still.gradients[name])
    assert all(module.training == training for module in supernet.modules())
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert all(torch.equal(tensor, state[n]) for n, tensor in supernet.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def spoil_image(supernet: Supernet, images: Tensor) -> None:
    images[1, 0, 0, 0] = torch.inf


def spoil_weight(supernet: Supernet, images: Tensor) -> None:
    next(supernet.parameters()).data.fill_(torch.nan)


@pytest.mark.parametrize("spoil", [spoil_image, spoil_weight])
def test_gradients_that_are_not_finite_are_refused(
    spoil: Callable[[Supernet, Tensor], None],
) -> None:
    """The message names a tensor and says what to check; the mode is restored."""
    supernet, images = new_supernet(SPACE).train(), images_for(SPACE)
    spoil(supernet, images)
    with pytest.raises(ValueError, match=r"not finite.*check that the images are finite") as caught:
        measure_importance(supernet, SPACE.scored, images)
    names = [name for name, _ in supernet.network.named_parameters()]
    assert any(name in str(caught.value) for name in names)
    assert supernet.training


def test_gradients_that_are_zero_everywhere_are_refused() -> None:
    """A head of zero weights blocks all gradients: no other weight would have an importance."""
    supernet = new_supernet(SPACE).eval()
    torch.nn.init.zeros_(supernet.network.get_submodule("head").weight)
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight is zero everywhere"):
        measure_importance(supernet, SPACE.scored, images_for(SPACE))


def test_one_layer_without_gradient_is_enough() -> None:
    supernet = new_supernet(SPACE).eval()
    torch.nn.init.zeros_(supernet.network.get_submodule("blocks.1.mlp.fc2").weight)
    with pytest.raises(ValueError, match=r"blocks.1.mlp.fc1.weight is zero everywhere"):
        measure_importance(supernet, SPACE.scored, images_for(SPACE))


def test_layers_that_the_largest_subnet_lacks_may_have_none() -> None:
    """Measured at a smaller network, tensors that it does not own are zero; this is no error."""
    supernet = new_supernet(SPACE).eval()
    importance = measure_importance(supernet, SPACE.smallest, images_for(SPACE))
    assert not importance.gradients["blocks.2.mlp.fc1.weight"].any()
    assert importance.gradients["blocks.0.mlp.fc1.weight"].any()


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        measure_importance(new_supernet(SPACE), SPACE.scored, images_for(SPACE, batch=0))


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


# --- normalisation by batch statistics -----------------------------------------------------------

MICRO = TEST_SPACES["mobilenet"][0]


def real_supernet() -> Supernet:
    """As initialised for training: the last normalisation of every block starts at zero."""
    supernet = Supernet(MICRO.supernet, MICRO.settings)
    return supernet.initialize(torch.Generator().manual_seed(0))


def test_a_zero_weight_before_the_sum_hides_the_inside_of_every_block() -> None:
    """Left as initialised, only what stands outside the blocks has a gradient at all, to the bit;
    measured as the family prepares it, every tensor has one."""
    supernet, images = real_supernet().train(), images_for(MICRO, batch=16)
    supernet(images, MICRO.scored).sum().backward()
    gradients = {name: p.grad for name, p in supernet.network.named_parameters()}
    inside = [
        name
        for name in gradients
        if name in supernet.owned_boxes(MICRO.scored)
        and "conv" in name.rpartition("blocks.")[2]
        and name.startswith(("blocks.0.", "blocks.1.", "blocks.2."))
        and "shortcut" not in name
    ]
    assert len(inside) > 20
    assert all(gradients[name] is not None and not gradients[name].any() for name in inside)
    assert all(gradients[name].any() for name in ("conv_stem.weight", "conv_head.weight"))
    importance = measure_importance(real_supernet(), MICRO.scored, images)
    assert all(importance.gradients[name].any() for name in inside)


def test_signed_sums_of_normalised_filters_vanish() -> None:
    """Such a filter may be scaled without any effect, so that sum(w*g) over it is zero but for
    rounding; without its absolute value inside, the score would not see it."""
    importance = measure_importance(real_supernet(), MICRO.scored, images_for(MICRO, batch=16))
    followed = [
        name
        for name in importance.weights
        if name.startswith("blocks.") and name.endswith(("conv_pw.weight", "conv_dw.weight"))
    ]
    assert len(followed) > 10
    for name in followed:
        products = (importance.weights[name] * importance.gradients[name]).double().flatten(1)
        signed, unsigned = products.sum(1).abs().sum(), products.abs().sum()
        assert unsigned > 0
        assert signed < 1e-4 * unsigned
    head = importance.weights["classifier.weight"] * importance.gradients["classifier.weight"]
    assert head.sum().abs() > 1e-2 * head.abs().sum()


def test_normalisation_right_before_pooling_leaves_no_gradient() -> None:
    """The sum over a batch of what batch statistics normalised is a constant, so the sum of all
    logits says nothing; an activation in between makes it speak."""
    images = images_for(MICRO, batch=16)
    ratios = []
    for activation in (nn.Identity(), nn.SiLU()):
        convolution = nn.Conv2d(images.shape[1], 8, 3, bias=False)
        head = nn.Sequential(activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        network = nn.Sequential(convolution, nn.BatchNorm2d(8), head).train()
        generator = torch.Generator().manual_seed(0)
        for parameter in (convolution.weight, head[-1].weight):
            nn.init.normal_(parameter, generator=generator)
        network(images).sum().backward()
        assert convolution.weight.grad is not None
        ratios.append(float(convolution.weight.grad.abs().sum()))
    assert ratios[0] < 1e-4 * ratios[1]


def test_gradients_do_not_depend_on_what_the_caller_has_switched() -> None:
    """Autocast or `no_grad` around a search change nothing."""
    supernet, images = new_supernet(SPACE), images_for(SPACE, 4)
    plain = measure_importance(supernet, SPACE.largest, images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = measure_importance(supernet, SPACE.largest, images)
    for name, gradient in plain.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name
