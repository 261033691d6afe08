"""Attention alone, forward and backward: relative positions compared with plain attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.gpu.clock import Work
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from benchmarks.paired import Section
from prenas.families.vit import attention_in_parts
from prenas.families.vit.attention import GridIndex, attention_at_once, grid_index, lay_out, windows
from prenas.families.vit.attention_with_tables import attention_with_tables

_HEAD_DIM = 64
_MAX_DISTANCE = 14
Form = Callable[..., Tensor]


def measure(sizes: Sizes, device: torch.device) -> Section:
    """Ours, eager and compiled; PyTorch's at its usual width and at ours; FlexAttention."""
    found = Findings("Attention alone, forward and backward, bf16", device, sizes)
    inputs = _Inputs(sizes, device)
    is_cuda = device.type == "cuda"
    flex = torch.compile(flex_attention, dynamic=False) if is_cuda else flex_attention
    forms: dict[str, Callable[[], Work]] = {
        "ours": lambda: inputs.work(attention_with_tables),
        "ours, compiled": lambda: inputs.work(_compiled(attention_with_tables, sizes)),
        "parts of tables": lambda: inputs.work(attention_at_once),
        "parts of tables, compiled": lambda: inputs.work(_compiled(attention_at_once, sizes)),
        "custom function": lambda: inputs.work(in_one_part),
        "plain, 64 wide": lambda: inputs.work(_plain),
        "plain, 96 wide": lambda: inputs.work(_plain_wide),
        "FlexAttention": lambda: inputs.work(partial(with_flex, flex)),
        "FlexAttention, all compiled": lambda: inputs.work(
            _compiled(partial(with_flex, flex_attention), sizes)
        ),
    }
    works = {}
    for name, make in forms.items():
        if (work := found.attempt(name, make)) is not None:
            works[name] = work
    images, heads, side = sizes.attention
    what = f"attention, {images} x {heads} heads x {side**2 + 1} tokens"
    times = found.times(what, works)
    for name in works:
        if name != "plain, 64 wide":
            found.compare(
                f"{what}: {name} / plain, 64 wide",
                times[name],
                times["plain, 64 wide"],
                target=None if name.startswith("plain") else 1.8,
                limit="" if name.startswith("plain") else "1.5",
            )
        found.kernels(f"{what}, {name}", works[name])
    others = {
        "parts of tables": attention_at_once,
        "custom function": in_one_part,
        "FlexAttention": partial(with_flex, flex),
    }
    for name, form in others.items():
        if name in works:
            found.fact(f"{name}: largest difference from ours", inputs.difference(form))
    return found.section()


def _compiled(form: Form, sizes: Sizes) -> Form:
    compiled: Form = torch.compile(form, dynamic=False, backend=sizes.backend)
    return compiled


class _Inputs:
    """The inputs of attention in bfloat16, and a cotangent."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        images, heads, side = sizes.attention
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            made = torch.randn(*shape, generator=generator).to(device, torch.bfloat16)
            return made.requires_grad_()

        grid = grid_index(side, side, _HEAD_DIM, _MAX_DISTANCE)
        self._grid = GridIndex(*(tensor.to(device) for tensor in grid))
        self._features = self._grid.features.to(torch.bfloat16)
        self._qkv = drawn(images, side**2 + 1, heads, 3, _HEAD_DIM)
        self._tables = [drawn(2 * _MAX_DISTANCE + 2, _HEAD_DIM) for _ in range(4)]
        self._cotangent = drawn(images, side**2 + 1, heads, _HEAD_DIM).detach()

    def work(self, form: Form) -> Work:
        """One forward and backward pass."""

        def passes() -> None:
            for tensor in (self._qkv, *self._tables):
                tensor.grad = None
            self._out(form).backward(self._cotangent)  # type: ignore[no-untyped-call]

        return passes

    def difference(self, form: Form) -> float:
        """Largest difference from ours, relative to the largest value."""
        with torch.no_grad():
            ours, other = self._out(attention_with_tables), self._out(form)
        return float((ours - other).abs().max() / ours.abs().max())

    def _out(self, form: Form) -> Tensor:
        laid = (lay_out(*self._tables[n : n + 2], self._grid) for n in (0, 2))
        return form(self._qkv, *laid, self._features, self._grid.shape, _HEAD_DIM**-0.5)


def _plain(qkv: Tensor, *others: object) -> Tensor:
    """Attention without relative positions."""
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _plain_wide(qkv: Tensor, _1: Tensor, _2: Tensor, features: Tensor, *others: object) -> Tensor:
    """The same with heads as wide as ours: the cost of the fused kernel within ours."""
    padded = pad(qkv, (0, features.shape[1]))
    q, k, v = padded.permute(3, 0, 2, 1, 4).unbind(0)
    out = scaled_dot_product_attention(q, k, v, scale=qkv.shape[-1] ** -0.5)
    return out[..., : qkv.shape[-1]].transpose(1, 2)


def in_one_part(*inputs: Any) -> Tensor:
    """The CPU's form, with a custom backward pass, for all images at once."""
    with patch.object(attention_in_parts, "_CACHE_BYTES", 2**40):
        return attention_in_parts.attention_in_parts(*inputs)


def with_flex(
    flex: Form,
    qkv: Tensor,
    key_table: Tensor,
    value_table: Tensor,
    features: Tensor,
    grid: tuple[int, int],
    scale: float,
) -> Tensor:
    """Ours with FlexAttention: products with the key tables are looked up per logit.

    Values still carry features, because the value tables need the attention mass per key row and
    column. Arguments and result are as in `attention_at_once`.
    """
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    rows, columns = grid
    head_dim, used = q.shape[-1], rows + 1 + columns
    patches = torch.unflatten(q[:, :, 1:], 2, grid)
    seen_rows, seen_columns = windows(key_table, rows, columns)
    by_row = torch.einsum("bhrcd,rds->bhrcs", patches, seen_rows)
    by_column = torch.einsum("bhrcd,cds->bhrcs", patches, seen_columns)
    zero = torch.zeros_like(by_column[..., :1])  # for the class token, which has no column
    products = torch.cat([by_row, by_column, zero], dim=-1).flatten(2, 3)
    products = pad(products, (0, 0, 1, 0)).float()  # [B, H, N, R + 1 + C + 1]
    again = products.clone()  # only one look-up is allowed per tensor with a gradient
    patch = torch.arange(rows * columns, device=q.device)
    row_of = torch.cat([patch.new_tensor([rows]), rows - 1 - patch // columns])
    column_of = torch.cat([patch.new_tensor([used]), used - 1 - patch % columns])

    def with_positions(
        score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor
    ) -> Tensor:
        by_position = products[image, head, query, row_of[key]]
        by_position = by_position + again[image, head, query, column_of[key]]
        return score + scale * by_position

    width = features.shape[1]
    wide = pad(features, (0, -(head_dim + width) % 128)).expand(*q.shape[:2], -1, -1)
    out = flex(
        *(q, k, torch.cat([v, wide], dim=-1)),
        score_mod=with_positions,
        scale=scale,
        kernel_options={"num_stages": 1},  # with values this wide, an H100 has no room for more
    )
    mass = torch.unflatten(out[:, :, 1:, head_dim : head_dim + used], 2, grid)
    seen_rows, seen_columns = windows(value_table, rows, columns)
    relative = torch.einsum("bhrcs,rds->bhrcd", mass[..., : rows + 1], seen_rows) + torch.einsum(
        "bhrcs,cds->bhrcd", mass[..., rows + 1 :], seen_columns
    )
    class_query = value_table[-1].expand(*q.shape[:2], 1, -1)
    out = out[..., :head_dim] + torch.cat([class_query, relative.flatten(2, 3)], dim=2)
    return out.transpose(1, 2)
