"""What tests on an accelerator share: products in whole float32, and the device."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _whole_float32() -> Iterator[None]:
    """Convolutions would otherwise round their inputs to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def device() -> torch.device:
    """The accelerator of this machine."""
    found = torch.accelerator.current_accelerator()
    assert found is not None, "conftest skips these tests where there is none"
    return found


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Algorithms that give the same bits every time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
