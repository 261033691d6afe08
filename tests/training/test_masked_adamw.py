"""The masked optimiser: AdamW of every element alone, at the steps whose subnets own it."""

import copy
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from families.drawing import archs
from prenas.families.base import Arch, Box
from prenas.families.vit.space import VitArch
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training import masked_adamw
from prenas.training.masked_adamw import MaskedAdamW, disjoint
from prenas.training.optim import make_optimizer
from reference.masked_adamw import ReferenceMaskedAdamW
from training.runs import MINI, SMALLEST, WHOLE

RECIPE = TrainingRecipe(
    epochs=1, batch_size=512, lr_per_512_images=1e-2, weight_decay=0.1, optimizer="masked_adamw"
)
WIDE = VitArch(embed_dim=16, num_heads=(1,), mlp_ratio=(1.0,))
DEEP = VitArch(embed_dim=8, num_heads=(2, 2), mlp_ratio=(2.0, 2.0))
"""Neither contains the other: together they own no box of most tensors."""

STEPS = st.lists(st.lists(archs(MINI), min_size=1, max_size=3), min_size=1, max_size=6)


def new_supernet(dtype: torch.dtype = torch.float32) -> Supernet:
    supernet = Supernet(MINI.supernet, MINI.settings)
    supernet.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter += 0.1
    return supernet.to(dtype)


def boxes_of(supernet: Supernet, chosen: list[Any]) -> dict[str, list[Box]]:
    """Parameter name -> the boxes of it that any of the architectures owns."""
    each = [supernet.owned_boxes(arch) for arch in chosen]
    names = [name for name, _ in supernet.network.named_parameters()]
    return {name: [boxes[name] for boxes in each if name in boxes] for name in names}


def masks_of(supernet: Supernet, chosen: list[Any]) -> dict[str, Tensor]:
    """Parameter name -> where any of the architectures owns it."""
    masks = {}
    for name, boxes in boxes_of(supernet, chosen).items():
        masks[name] = torch.zeros(supernet.network.get_parameter(name).shape, dtype=torch.bool)
        for box in boxes:
            masks[name][box] = True
    return masks


def fill_gradients(supernet: Supernet, chosen: list[Any], seed: int) -> None:
    """Normal noise where the architectures own something, of very different sizes; else zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, mask in masks_of(supernet, chosen).items():
        parameter = supernet.network.get_parameter(name)
        size = 10.0 ** float(torch.randint(-4, 2, (), generator=generator))
        noise = torch.randn(mask.shape, generator=generator) * size
        parameter.grad = (noise * mask).to(parameter.dtype)


def step(optimizer: MaskedAdamW, supernet: Supernet, chosen: list[Any], seed: int) -> None:
    fill_gradients(supernet, chosen, seed)
    boxes = boxes_of(supernet, chosen)
    optimizer.step({supernet.network.get_parameter(name): found for name, found in boxes.items()})


def made(supernet: Supernet) -> MaskedAdamW:
    optimizer = make_optimizer(supernet.network, RECIPE)
    assert isinstance(optimizer, MaskedAdamW)
    return optimizer


def everything(supernet: Supernet, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of weights and moments by name."""
    found = {}
    for name, parameter in supernet.network.named_parameters():
        found[name] = parameter.detach().clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}.{key}"] = value.clone()
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@given(steps=STEPS)
def test_it_is_the_literal_form(dtype: torch.dtype, steps: list[list[Arch]]) -> None:
    supernet = new_supernet(dtype)
    network, optimizer = supernet.network, made(supernet)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    literal = ReferenceMaskedAdamW(
        {name: p.detach().double().numpy().copy() for name, p in network.named_parameters()},
        {name: decay[id(p)] for name, p in network.named_parameters()},
    )
    for number, chosen in enumerate(steps):
        lr = 1e-2 / (1 + number)
        for group in optimizer.param_groups:
            group["lr"] = lr
        step(optimizer, supernet, chosen, number)
        literal.step(
            {name: p.grad.double().numpy() for name, p in network.named_parameters()},  # type: ignore[union-attr]
            {name: mask.numpy() for name, mask in masks_of(supernet, chosen).items()},
            lr,
        )
    close = (
        {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-6}
    )
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(parameter.detach(), literal.weights[name], err_msg=name, **close)
        if state := optimizer.state.get(parameter):
            assert (state["steps"].numpy() == literal.num_steps[name]).all(), name
            np.testing.assert_allclose(state["exp_avg"], literal.mean[name], **close)


@given(steps=STEPS, last=st.lists(archs(MINI), min_size=1, max_size=2))
def test_what_a_step_does_not_own_stays_to_the_bit(
    steps: list[list[Arch]], last: list[Arch]
) -> None:
    supernet = new_supernet()
    optimizer = made(supernet)
    for number, chosen in enumerate([[MINI.supernet], *steps]):
        step(optimizer, supernet, chosen, number)
    before = everything(supernet, optimizer)
    step(optimizer, supernet, last, 99)
    after, moved = everything(supernet, optimizer), 0
    for name, mask in masks_of(supernet, last).items():
        for key in (name, f"{name}.exp_avg", f"{name}.exp_avg_sq", f"{name}.steps"):
            assert torch.equal(after[key][~mask], before[key][~mask]), key
        moved += int((after[name] != before[name]).sum())
    assert moved > 400


def test_where_all_is_owned_it_is_adamw() -> None:
    ours, theirs = new_supernet(), new_supernet()
    masked = made(ours)
    plain = make_optimizer(theirs.network, RECIPE.model_copy(update={"optimizer": "adamw"}))
    assert isinstance(plain, torch.optim.AdamW)
    for number in range(60):
        step(masked, ours, [MINI.supernet, SMALLEST], number)
        fill_gradients(theirs, [MINI.supernet], number)
        plain.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_an_element_is_alone_in_its_optimiser() -> None:
    """A subnet that takes turns with another ends where AdamW on it alone would."""
    supernet = new_supernet()
    optimizer = made(supernet)
    alone = supernet.cut(DEEP)
    plain = make_optimizer(alone, RECIPE.model_copy(update={"optimizer": "adamw"}))
    for number in range(12):
        step(optimizer, supernet, [DEEP], number)
        gradients = {n: p.grad for n, p in supernet.network.named_parameters()}
        for name, parameter in alone.named_parameters():
            parameter.grad = gradients[name][supernet.owned_boxes(DEEP)[name]].clone()  # type: ignore[index]
        plain.step()
        # What only the other owns moves in between, and is none of DEEP's business.
        others = {
            supernet.network.get_parameter(name): [box for box in boxes]
            for name, boxes in boxes_of(supernet, [MINI.supernet]).items()
            if name not in supernet.owned_boxes(DEEP)
        }
        optimizer.step(others)
    for name, parameter in alone.named_parameters():
        ours = supernet.network.get_parameter(name)[supernet.owned_boxes(DEEP)[name]]
        torch.testing.assert_close(ours, parameter, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", [1, 4])
def test_it_continues_from_a_file_to_the_bit(place: int) -> None:
    sequence = [[WIDE, DEEP], [SMALLEST], [WHOLE], [DEEP], [WIDE, SMALLEST], [MINI.supernet]]
    whole = new_supernet()
    optimizer = made(whole)
    for number, chosen in enumerate(sequence):
        if number == place:
            content = BytesIO()
            torch.save([whole.state_dict(), optimizer.state_dict()], content)
        step(optimizer, whole, chosen, number)

    content.seek(0)
    weights, state = torch.load(content, weights_only=True)
    again = new_supernet()
    again.load_state_dict(weights)
    continued = made(again)
    continued.load_state_dict(state)
    for number, chosen in list(enumerate(sequence))[place:]:
        step(continued, again, chosen, number)
    expected = everything(whole, optimizer)
    found = everything(again, continued)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_was_never_owned_has_no_state() -> None:
    supernet = new_supernet()
    optimizer = made(supernet)
    step(optimizer, supernet, [SMALLEST], 0)
    names = {n for n, p in supernet.network.named_parameters() if optimizer.state.get(p)}
    assert names == {n for n, boxes in boxes_of(supernet, [SMALLEST]).items() if boxes}


def test_a_parameter_without_gradient_stays() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    MaskedAdamW(layer.parameters()).step({layer.weight: [(slice(0, 2), slice(0, 3))]})
    assert torch.equal(layer.weight, before)


# --- what is kept from step to step --------------------------------------------------------------


def moved(steps: list[list[Arch]], *, again: bool) -> dict[str, Tensor]:
    """Weights and state after steps that pass the same boxes object every time, or new ones.

    The gradients are new tensors from the third step on, and the state is loaded before the last.
    """
    supernet = new_supernet()
    optimizer, known = made(supernet), {}
    for number, chosen in enumerate(steps):
        before = {name: p.grad for name, p in supernet.network.named_parameters()}
        fill_gradients(supernet, chosen, number)
        for name, parameter in supernet.network.named_parameters():
            if number in (1, 2) and before[name] is not None:
                before[name].copy_(parameter.grad)  # type: ignore[union-attr]
                parameter.grad = before[name]
        if number == len(steps) - 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        boxes = boxes_of(supernet, chosen)
        owned = {supernet.network.get_parameter(name): found for name, found in boxes.items()}
        optimizer.step(known.setdefault(tuple(chosen), owned) if again else owned)
    return everything(supernet, optimizer)


@pytest.mark.parametrize("block", [1, 7, 50, 2**16])
def test_views_that_are_kept_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does their size, to the bit: every element is moved alone."""
    steps = [[WHOLE], [WIDE, DEEP], [WHOLE], [SMALLEST], [WIDE, DEEP], [WHOLE], [WIDE, DEEP]]
    expected = moved(steps, again=False)
    monkeypatch.setattr(masked_adamw, "_BLOCK", block)
    found = moved(steps, again=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_it_keeps_views_of_the_latest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskedAdamW, "most_kept", 3)
    supernet = new_supernet()
    optimizer = made(supernet)
    for number in range(8):
        step(optimizer, supernet, [SMALLEST], number)
        assert len(optimizer._kept) == min(number + 1, 3)
    assert not copy.deepcopy(optimizer)._kept


# --- boxes ---------------------------------------------------------------------------------------


@given(data=st.data())
def test_disjoint_boxes_cover_the_union_once(data: st.DataObject) -> None:
    """Leading boxes, and such as the centres of kernels, which begin further in."""
    num_dims = data.draw(st.integers(1, 4))
    part = st.tuples(st.integers(0, 2), st.integers(1, 3)).map(lambda p: slice(p[0], p[0] + p[1]))
    boxes = data.draw(st.lists(st.tuples(*[part] * num_dims), min_size=1, max_size=4))
    covered = np.zeros((5,) * num_dims, dtype=int)
    for box in disjoint(boxes):
        assert covered[box].size
        covered[box] += 1
    union = np.zeros_like(covered)
    for box in boxes:
        union[box] = 1
    assert (covered == union).all()


def test_nested_boxes_are_one() -> None:
    nested = [(slice(0, 3), slice(0, 2)), (slice(0, 4), slice(0, 2)), (slice(0, 1), slice(0, 1))]
    assert disjoint(nested) == [(slice(0, 4), slice(0, 2))]
    assert disjoint([(), ()]) == [()]
    assert disjoint([]) == []
