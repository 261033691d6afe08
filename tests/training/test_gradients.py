"""The gradient of a step is one buffer: zero outside the subnet, whatever the optimiser does."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prenas.families.vit.space import VitArch
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.gradients import GradientBuffer
from prenas.training.optim import make_optimizer
from training.runs import MINI, SMALLEST, WHOLE

INNER = VitArch(embed_dim=8, num_heads=(1, 2), mlp_ratio=(2.0, 1.0))
RECIPE = TrainingRecipe(epochs=1, batch_size=512, lr_per_512_images=1e-2, weight_decay=0.1)


def new_supernet() -> Supernet:
    supernet = Supernet(WHOLE, MINI.settings)
    return supernet.initialize(torch.Generator().manual_seed(0)).train()


def loss_of(supernet: Supernet, arch: VitArch) -> Tensor:
    generator = torch.Generator().manual_seed(arch.embed_dim + arch.depth)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    return cross_entropy(supernet(images, arch), torch.arange(16) % 10)


def is_owned(supernet: Supernet, arch: VitArch) -> dict[str, Tensor]:
    """Parameter name -> where the subnet owns it."""
    owned = supernet.owned_boxes(arch)
    masks = {}
    for name, parameter in supernet.network.named_parameters():
        masks[name] = torch.zeros_like(parameter, dtype=torch.bool)
        if name in owned:
            masks[name][owned[name]] = True
    return masks


@pytest.mark.parametrize("arch", [SMALLEST, INNER, WHOLE], ids=["smallest", "inner", "whole"])
def test_a_gradient_is_exactly_zero_outside_the_subnet(arch: VitArch) -> None:
    supernet = new_supernet()
    buffer = GradientBuffer(supernet.network.parameters())
    buffer.flat.fill_(7.0)
    buffer.zero()
    loss_of(supernet, arch).backward()
    for (name, parameter), mask in zip(
        supernet.network.named_parameters(), is_owned(supernet, arch).values(), strict=True
    ):
        assert parameter.grad is not None
        assert not parameter.grad[~mask].any(), name
        if mask.any() and parameter.ndim > 1:
            assert parameter.grad[mask].any(), name


def test_a_gradient_is_the_plain_networks() -> None:
    supernet = new_supernet()
    GradientBuffer(supernet.network.parameters())
    loss_of(supernet, INNER).backward()
    plain = supernet.cut(INNER)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(10))
    cross_entropy(plain(images), torch.arange(16) % 10).backward()
    shared = dict(supernet.network.named_parameters())
    for name, parameter in plain.named_parameters():
        found = shared[name].grad[supernet.owned_boxes(INNER)[name]]  # type: ignore[index]
        assert torch.allclose(found, parameter.grad, atol=1e-7, rtol=1e-4), name  # type: ignore[arg-type]


def test_subnets_add_up_in_one_step() -> None:
    supernet = new_supernet()
    buffer = GradientBuffer(supernet.network.parameters())
    single = []
    for arch in (INNER, WHOLE):
        buffer.zero()
        loss_of(supernet, arch).backward()
        single.append(buffer.flat.clone())
    buffer.zero()
    for arch in (INNER, WHOLE):
        loss_of(supernet, arch).backward()
    assert torch.allclose(buffer.flat, single[0] + single[1], atol=1e-7)


def test_views_stay_attached_over_steps() -> None:
    """Whatever subnets are trained: every `.grad` is a window onto the one buffer."""
    supernet = new_supernet()
    buffer = GradientBuffer(supernet.network.parameters())
    optimizer = make_optimizer(supernet.network, RECIPE)
    start, end = buffer.flat.data_ptr(), buffer.flat.data_ptr() + 4 * buffer.flat.numel()
    addresses = [p.grad.data_ptr() for p in supernet.network.parameters() if p.grad is not None]
    for arch in (WHOLE, SMALLEST, INNER, SMALLEST):
        buffer.zero()
        loss_of(supernet, arch).backward()
        buffer.clip(buffer.norm(), 0.1)
        optimizer.step()
        found = [p.grad.data_ptr() for p in supernet.network.parameters() if p.grad is not None]
        assert found == addresses
    assert len(set(addresses)) == len(addresses) == len(list(supernet.network.parameters()))
    assert all(start <= address < end for address in addresses)
    buffer.flat.fill_(3.0)
    assert all((p.grad == 3.0).all() for p in supernet.network.parameters())  # type: ignore[union-attr]
    assert buffer.flat.numel() == sum(p.numel() for p in supernet.network.parameters())


@pytest.mark.parametrize("max_norm", [1e-3, 0.1, 1.0, 1e6])
def test_clipping_is_pytorchs(max_norm: float) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
    buffer = GradientBuffer(ours.parameters())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = torch.randn_like(other)
        mine.grad.copy_(other.grad)  # type: ignore[union-attr]
    before = float(buffer.flat.norm())
    buffer.clip(buffer.norm(), max_norm)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-6)  # type: ignore[arg-type]
    assert float(buffer.flat.norm()) == pytest.approx(min(before, max_norm), rel=1e-4)


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e6])
def test_clipping_of_elements_is_pytorchs(limit: float) -> None:
    ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
    buffer = GradientBuffer(ours.parameters())
    generator = torch.Generator().manual_seed(0)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = torch.randn(other.shape, generator=generator)
        mine.grad.copy_(other.grad)  # type: ignore[union-attr]
    buffer.clip_values(limit)
    torch.nn.utils.clip_grad_value_(theirs.parameters(), limit)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)  # type: ignore[arg-type]


def test_no_gradient_is_clipped_to_nothing_else() -> None:
    layer = nn.Linear(3, 2)
    buffer = GradientBuffer(layer.parameters())
    buffer.clip(buffer.norm(), 1.0)
    assert not buffer.flat.any()


# --- what unsampled weights see ------------------------------------------------------------------


def decay_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, float]:
    """Parameter name -> its weight decay."""
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: group_of[id(p)]["weight_decay"] for name, p in network.named_parameters()}


def test_biases_norms_and_positions_do_not_decay() -> None:
    network = new_supernet().network
    decays = decay_of(make_optimizer(network, RECIPE), network)
    assert set(decays.values()) == {0.0, 0.1}
    for name, parameter in network.named_parameters():
        is_exempt = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
        assert decays[name] == (0.0 if is_exempt else 0.1), name


def test_unsampled_weights_move_as_plain_adamw_moves_them() -> None:
    """Step 1 trains the largest subnet, step 2 the smallest: outside it the gradient is zero, and
    AdamW (Loshchilov and Hutter) acts by its momentum and decay alone."""
    supernet = new_supernet()
    buffer = GradientBuffer(supernet.network.parameters())
    optimizer = make_optimizer(supernet.network, RECIPE)
    decays = decay_of(optimizer, supernet.network)
    lr, eps = 1e-2, optimizer.param_groups[0]["eps"]
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    assert (beta1, beta2) == (0.9, 0.999)
    assert all(group["lr"] == pytest.approx(lr) for group in optimizer.param_groups)

    first: dict[str, Tensor] = {}
    for arch in (WHOLE, SMALLEST):
        before = {name: p.detach().clone() for name, p in supernet.network.named_parameters()}
        buffer.zero()
        loss_of(supernet, arch).backward()
        if not first:
            first = {n: p.grad.clone() for n, p in supernet.network.named_parameters()}  # type: ignore[union-attr]
        optimizer.step()

    masks = is_owned(supernet, SMALLEST)
    moved = 0
    for name, parameter in supernet.network.named_parameters():
        outside = ~masks[name]
        momentum = beta1 * (1 - beta1) * first[name] / (1 - beta1**2)
        square = beta2 * (1 - beta2) * first[name] ** 2 / (1 - beta2**2)
        expected = before[name] * (1 - lr * decays[name])
        expected = expected - lr * momentum / (square.sqrt() + eps)
        assert torch.allclose(parameter[outside], expected[outside], atol=1e-7, rtol=1e-5), name
        moved += int((parameter != before[name])[outside].sum())
    assert moved > 1000
