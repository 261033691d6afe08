"""At which precision a device multiplies. What is stored is always float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""`tf32`: the factors of float32 products keep 10 bits of 23 on NVIDIA GPUs since 2020; elsewhere,
it is `fp32`."""

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Forward passes in half precision, if that is asked for."""
    return torch.autocast(device.type, _HALF.get(precision), enabled=precision in _HALF)


@contextmanager
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Products of float32 numbers, backward passes included: whole, but for `tf32` rounded.

    By itself, PyTorch rounds the convolutions on CUDA and leaves the other products whole.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    is_rounded = precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_rounded else "highest")
    # Not `cudnn.conv.fp32_precision`: after it, PyTorch 2.14's own compiler cannot read this flag.
    torch.backends.cudnn.allow_tf32 = is_rounded
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Both: for passes without gradients."""
    with float32_products(precision, device), autocast(precision, device):
        yield
