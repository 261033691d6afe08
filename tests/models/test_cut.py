"""A subnet cut out of its supernet, and proved equal to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from prenas.families.vit.space import VitArch
from prenas.models.cut import require_equal_logits, verified_cut
from prenas.supernet import Supernet
from training.runs import MINI, SMALLEST, WHOLE


def new_supernet() -> Supernet:
    supernet = Supernet(WHOLE, MINI.settings, drop_path=0.9)
    return supernet.initialize(torch.Generator().manual_seed(0)).train()


@pytest.mark.parametrize("arch", [SMALLEST, WHOLE], ids=["smallest", "whole"])
def test_a_cut_network_is_the_supernets_subnet(arch: VitArch) -> None:
    supernet, images = new_supernet(), torch.randn(5, 1, 8, 8)
    network = verified_cut(supernet, arch, images)
    assert not network.training
    with torch.inference_mode():
        assert torch.allclose(network(images), supernet(images, arch), atol=1e-6)
        # A copy: changing one does not change the other.
        network.get_parameter("head.weight").zero_()
    assert supernet.network.head.weight.any()


def test_cuts_are_compared_in_whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that rounds the factors of products differs by a hundred times what is allowed."""
    within, seen = list[str](), list[str]()

    @contextmanager
    def noted(precision: str, device: torch.device) -> Iterator[None]:
        within.append(f"{precision} on {device.type}")
        yield
        within.clear()

    def called(*arguments: object) -> None:
        seen.extend(within)

    monkeypatch.setattr("prenas.models.cut.computing", noted)
    supernet = new_supernet()
    handle = nn.modules.module.register_module_forward_pre_hook(called)
    try:
        verified_cut(supernet, SMALLEST, torch.randn(5, 1, 8, 8))
    finally:
        handle.remove()
    num_modules = len([*supernet.cut(SMALLEST).modules()])
    assert set(seen) == {"fp32 on cpu"}
    assert len(seen) >= num_modules  # the cut one and the supernet


def test_a_cut_network_is_a_plain_one_that_can_be_trained_further() -> None:
    network = verified_cut(new_supernet(), SMALLEST, torch.randn(5, 1, 8, 8)).train()
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    assert network.get_parameter("head.weight").grad is not None


def test_a_spoilt_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, cut = new_supernet(), Supernet.cut

    def spoilt(self: Supernet, arch: VitArch, statistics: Any = None) -> torch.nn.Module:
        network = cut(self, arch, statistics)
        with torch.no_grad():
            network.get_parameter("head.bias")[3] += 1e-2
        return network

    monkeypatch.setattr(Supernet, "cut", spoilt)
    with pytest.raises(
        ValueError, match="the logits of the cut network differ from the supernet's"
    ):
        verified_cut(supernet, SMALLEST, torch.randn(5, 1, 8, 8))


def test_logits_may_differ_by_rounding_only() -> None:
    expected = torch.tensor([[100.0, -3.0]])
    require_equal_logits(expected + 0.9e-3, expected, "this")
    with pytest.raises(ValueError, match=r"logits of this differ .* by 0\.002 \(largest logit 100"):
        require_equal_logits(expected + 2e-3, expected, "this")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_never_equal(value: float) -> None:
    logits = torch.tensor([[1.0, value]])
    with pytest.raises(ValueError, match="nothing was written"):
        require_equal_logits(logits, logits, "this")
