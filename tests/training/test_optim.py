"""What trains, and at which rate: layer-wise decay, and a backbone that stays."""

from pathlib import Path

import pytest
import torch

from prenas import pipeline
from prenas.data import training_batches
from prenas.families.vit.space import VitArch
from prenas.recipe import TrainingRecipe, with_overrides
from prenas.supernet import Supernet
from prenas.training.estimate import estimate_training
from prenas.training.gradients import GradientBuffer
from prenas.training.loop import Progress, train_supernet
from prenas.training.optim import (
    learning_rate,
    make_optimizer,
    make_schedule,
    trained_parameters,
)
from prenas.training.step import TrainingStep
from training.runs import (
    MINI,
    SMALLEST,
    WHOLE,
    StoppedError,
    assert_same_training,
    hearing,
    mini_recipe,
    own_data,
    stop_at,
)

LAYERS = {  # of the mini network, as timm counts them: stem, two blocks, head
    "cls_token": 0,
    "pos_embed": 0,
    "patch_embed.proj.weight": 0,
    "patch_embed.proj.bias": 0,
    "blocks.0.attn.qkv.weight": 1,
    "blocks.0.attn.key_vertical": 1,
    "blocks.1.mlp.fc2.bias": 2,
    "norm.weight": 2,
    "head.weight": 3,
    "head.bias": 3,
}


def training(**fields: object) -> TrainingRecipe:
    return TrainingRecipe.model_validate({"epochs": 2, "batch_size": 16, **fields})


def supernet() -> Supernet:
    return Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))


def rates(optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> dict[str, float]:
    """Parameter name -> its learning rate."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        names[id(parameter)]: group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("decay", [0.65, 1.0])
def test_rates_fall_from_layer_to_layer_at_every_step(decay: float) -> None:
    """`decay ** (layers above)` times the rate without decay: in warm-up, cosine and at the end."""
    network, plain = supernet().network, supernet().network
    recipe = training(layer_decay=decay, epochs=4, warmup_epochs=1, min_lr=1e-6)
    optimizer = make_optimizer(network, recipe)
    reference = make_optimizer(plain, recipe.model_copy(update={"layer_decay": None}))
    schedules = [make_schedule(one, recipe, 5) for one in (optimizer, reference)]
    for step in range(20):
        for schedule in schedules:
            schedule.step_update(step)
        found, whole = rates(optimizer, network), rates(reference, plain)
        assert found.keys() == whole.keys() == dict(network.named_parameters()).keys()
        for name, layer in LAYERS.items():
            assert found[name] == pytest.approx(decay ** (3 - layer) * whole[name], rel=1e-12)
        assert learning_rate(optimizer) == pytest.approx(learning_rate(reference), rel=1e-12)


def test_weight_decay_is_as_without_layers() -> None:
    network = supernet().network
    groups = [
        {
            id(parameter): group["weight_decay"]
            for group in make_optimizer(network, recipe).param_groups
            for parameter in group["params"]
        }
        for recipe in (training(), training(layer_decay=0.5))
    ]
    assert groups[0] == groups[1]
    assert set(groups[0].values()) == {0.0, 0.05}


def test_sgd_is_nesterovs_with_decay_in_the_gradient() -> None:
    """v = 0.9 v + g + decay w, w -= lr (g + decay w + 0.9 v): Sutskever et al., ICML 2013."""
    network = supernet().network
    recipe = training(optimizer="sgd", weight_decay=0.1, lr_per_512_images=3.2)
    optimizer, buffer = make_optimizer(network, recipe), GradientBuffer(network.parameters())
    expected = {n: p.detach().clone() for n, p in network.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        buffer.flat.copy_(torch.randn(len(buffer.flat), generator=generator))
        for name, parameter in network.named_parameters():
            decays = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
            moved = parameter.grad + (0.1 if decays else 0.0) * expected[name]  # type: ignore[operator]
            velocity[name] = 0.9 * velocity[name] + moved
            expected[name] = expected[name] - 0.1 * (moved + 0.9 * velocity[name])
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6)


def stepped(arch: VitArch, optimizer: str) -> TrainingStep:
    """A training after its first step."""
    network = Supernet(arch, MINI.settings).initialize(torch.Generator().manual_seed(0))
    step = TrainingStep(network.train(), lambda _: (arch,), training(optimizer=optimizer), 5)
    step(0, next(iter(training_batches(own_data(), MINI.settings, 8, 0, 0))))
    return step


@pytest.mark.parametrize("name", ["sgd", "adamw", "masked_adamw"])
def test_the_state_of_another_optimiser_or_network_is_refused(name: str) -> None:
    state, other = stepped(WHOLE, name).state_dict(), "sgd" if name == "adamw" else "adamw"
    stepped(WHOLE, name).load_state_dict(state)
    narrow = VitArch(embed_dim=8, num_heads=(2, 2), mlp_ratio=(2.0, 2.0))  # as many tensors
    with pytest.raises(ValueError, match="another network"):
        stepped(narrow, name).load_state_dict(state)
    if other == "sgd" or name == "sgd":
        with pytest.raises(ValueError, match="another optimiser"):
            stepped(WHOLE, other).load_state_dict(state)


@pytest.mark.parametrize("name", ["sgd", "adamw", "masked_adamw"])
def test_moments_that_share_memory_in_a_file_are_taken_apart(name: str) -> None:
    """A step writes to every element: with one number of memory for all, it wrote beyond it."""
    step = stepped(WHOLE, name)
    state, shared = step.state_dict(), torch.full((1,), 0.25)
    for moments in state["optimizer"]["state"].values():
        moments |= {key: shared.expand(one.shape) for key, one in moments.items() if one.ndim}
    step.load_state_dict(state)
    found = [one for moments in step.optimizer.state.values() for one in moments.values()]
    assert all(one.untyped_storage().nbytes() >= one.nbytes for one in found)
    assert len({one.untyped_storage().data_ptr() for one in found}) == len(found)
    assert all((one == 0.25).all() for one in found if one.ndim)


def test_the_watched_rate_is_the_heads() -> None:
    seen: list[Progress] = []
    recipe = training(layer_decay=0.5, epochs=1)
    train_supernet(supernet(), [WHOLE], own_data(), recipe, watch=seen.append)
    assert seen[0].lr == pytest.approx(recipe.peak_lr)


def test_a_layer_wise_training_resumes_to_the_bit(tmp_path: Path) -> None:
    recipe = with_overrides(mini_recipe(), ["training.layer_decay=0.7"])
    for out in (tmp_path / "whole", tmp_path / "broken"):
        pipeline.search(recipe, out)
    pipeline.train(tmp_path / "whole")
    with pytest.raises(StoppedError):
        pipeline.train(tmp_path / "broken", observer=hearing(steps=stop_at(14)))
    pipeline.train(tmp_path / "broken")
    assert_same_training(tmp_path / "whole", tmp_path / "broken")


def test_a_frozen_backbone_keeps_its_bits(tmp_path: Path) -> None:
    network = supernet()
    before = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    recipe = training(freeze="backbone", drop_path=0.1, clip_grad_norm=1.0)
    train_supernet(network, [SMALLEST, WHOLE], own_data(), recipe, folder=tmp_path)
    changed = {
        name
        for name, tensor in network.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"head.weight", "head.bias"}


def test_only_what_trains_has_a_gradient_and_moments() -> None:
    network = supernet().network
    recipe = training(freeze="backbone")
    parameters = trained_parameters(network, recipe)
    assert [p.shape for p in parameters] == [(10, 16), (10,)]
    held = [p for g in make_optimizer(network, recipe).param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in parameters}
    assert len(GradientBuffer(parameters).flat) == 170
    whole = trained_parameters(network, training())
    assert {id(p) for p in whole} == {id(p) for p in network.parameters()}
    assert all(p.requires_grad for p in whole)


def test_a_frozen_training_keeps_little_for_the_backward_pass() -> None:
    sizes = [
        estimate_training(supernet(), [WHOLE], own_data(), training(freeze=freeze)).costs[0]
        for freeze in ("none", "backbone")
    ]
    assert 0 < sizes[1].activation_bytes < 0.1 * sizes[0].activation_bytes


@pytest.mark.parametrize("value", [0, -0.5, 1.1])
def test_layer_decay_is_a_share(value: float) -> None:
    with pytest.raises(ValueError, match=r"training\.layer_decay"):
        with_overrides(mini_recipe(), [f"training.layer_decay={value}"])


def test_only_whole_parts_can_be_frozen() -> None:
    with pytest.raises(ValueError, match=r"training\.freeze.*'none' or 'backbone'"):
        with_overrides(mini_recipe(), ["training.freeze=head"])
