"""Compiled subnets: the same gradients and trainings, other batch sizes, a compiler that fails."""

import logging
import shutil
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families.drawing import images_for, new_supernet, noise_for
from prenas.families.vit.space import VitArch
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.compiled import Compiled
from prenas.training.gradients import GradientBuffer
from prenas.training.loop import train_supernet
from prenas.training.subnets import BoundSubnets
from training.runs import MINI, SMALLEST, WHOLE, assert_same_tensors, own_data

torch_compile = torch.compile


@pytest.fixture
def fresh_graphs() -> None:
    """No graph of another test is used again.

    The tests make graphs and run them without a compiler, which would take half a minute each.
    """
    torch._dynamo.reset()


def trained(num_epochs: int = 2, **fields: Any) -> Supernet:
    """34 images in batches of 8: the last batch of an epoch has 2."""
    supernet = Supernet(WHOLE, MINI.settings, drop_path=0.2)
    supernet.initialize(torch.Generator().manual_seed(0))
    recipe = TrainingRecipe(epochs=num_epochs, batch_size=8, lr_per_512_images=0.32, **fields)
    train_supernet(supernet, [SMALLEST, WHOLE], own_data(num_images=34), recipe)
    return supernet


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize(
    ("backend", "fields"),
    [
        ("eager", {}),
        ("eager", {"grad_accum_steps": 2}),
        ("aot_eager", {"sandwich": 1, "drops_in": "largest"}),
    ],
    ids=str,
)
def test_a_compiled_training_ends_with_the_same_weights(
    backend: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last has the most graphs; its backward passes too are traced, which takes longest."""
    monkeypatch.setattr(torch, "compile", partial(torch_compile, backend=backend))
    plain, compiled = trained(**fields), trained(compile=True, **fields)
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_graphs")
def test_one_graph_serves_all_steps_of_a_subnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the weights move, and batches of another size come between."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch_compile, backend=backend))
    trained(num_epochs=3, compile=True)
    assert len(graphs) == 2


def test_a_compiler_that_fails_is_named_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def failing(network: nn.Module, **_: Any) -> Any:
        def run(*_: Tensor) -> Tensor:
            calls.append(1)
            raise torch._dynamo.exc.InternalTorchDynamoError("no compiler here\nand a long trace")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    with caplog.at_level(logging.WARNING):
        found = trained(compile=True)
    assert len(calls) == 2  # once per subnet
    assert "torch.compile failed (no compiler here): this subnet is trained" in caplog.text
    assert "Compiling needs a C++ compiler" in caplog.text
    assert_same_tensors(found.state_dict(), trained().state_dict())


def test_errors_of_the_network_itself_are_not_taken_for_the_compilers() -> None:
    network = Compiled(new_supernet(MINI).cut(WHOLE), 2)
    with pytest.raises(ValueError, match="images have shape"):
        network(torch.zeros(3, 1, 9, 9), None)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_logits_and_gradients_are_those_of_the_network() -> None:
    """With PyTorch's own compiler, to float tolerance.

    One layer has all kinds of kernels, and compiling those of a second takes three quarters of a
    minute.
    """
    one_layer = VitArch(embed_dim=16, num_heads=(2,), mlp_ratio=(2.0,))
    torch._dynamo.reset()
    found = []
    for compiled_for in (None, 3):
        supernet = new_supernet(MINI, 0.3).train()
        buffer = GradientBuffer(supernet.network.parameters())
        network = BoundSubnets(supernet, compiled_for=compiled_for)(one_layer)
        logits = network(images_for(MINI, batch=3), noise_for(supernet, batch=3))
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append((logits, buffer.flat))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
