"""Networks without weights: whatever makes them faster, they are those that constructors build."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from families.drawing import ALL_SPACES
from prenas import families
from prenas.families import build_structure, family_of, structure_only
from prenas.families.base import SearchSpace
from prenas.families.structure import pickled


def described(network: nn.Module) -> tuple[Any, ...]:
    """Modules with their modes, and tensors with all that a tensor without values has."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return (
        repr(network),
        type(network),
        [module.training for module in network.modules()],
        list(network.state_dict()),
        [(n, t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for n, t in tensors],
    )


@pytest.mark.parametrize("space", ALL_SPACES)
def test_a_structure_is_what_constructors_build_every_time(space: SearchSpace) -> None:
    arch = space.sample(np.random.default_rng(5))
    with torch.device("meta"):
        expected = described(family_of(arch).build(arch, space.settings, (), 0.0))
    assert all(one[4].type == "meta" for one in expected[-1])
    for _ in range(4):  # the third and the fourth are copies
        structure = build_structure(arch, space.settings)
        assert described(structure) == expected
        for name, parameter in structure.named_parameters():  # must not matter to the next one
            path, _, own_name = name.rpartition(".")
            setattr(structure.get_submodule(path), own_name, nn.Parameter(parameter[:0]))
        structure.eval()


def test_rates_are_those_of_the_call() -> None:
    space = families.get_space("mobilenet-micro")
    arch, settings = space.largest, space.settings
    rates = [0.1 * number for number in range(len(family_of(arch).layers(arch)))]

    def drops(network: nn.Module) -> list[float]:
        return [one.drop_prob for one in network.modules() if hasattr(one, "drop_prob")]

    for _ in range(3):
        assert drops(build_structure(arch, settings, rates))[-1] == pytest.approx(rates[-1])
        assert not any(drops(build_structure(arch, settings)))


def test_what_cannot_be_pickled_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    space = families.get_space("digits")
    monkeypatch.setattr(families, "pickled", lambda network: None)
    made = families._Structures(space.smallest, space.settings, (), 0.0)
    assert len({described(made())[0] for _ in range(4)}) == 1
    network = nn.Linear(1, 1)
    network.hook = lambda: None  # type: ignore[assignment]
    assert pickled(network) is None


def test_constructors_give_tensors_no_values() -> None:
    generator = torch.get_rng_state()
    with structure_only():
        linear = nn.Linear(3, 2)
        nn.init.trunc_normal_(linear.weight)
        nn.init.kaiming_normal_(tensor=linear.weight)
        assert linear.weight.fill_(1) is linear.weight
    assert linear.weight.is_meta
    assert torch.equal(torch.get_rng_state(), generator)
    again = pickle.loads(pickled(linear) or b"")
    assert again.weight.is_meta
    assert again.weight.shape == (2, 3)
