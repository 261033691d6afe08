"""Attention with relative positions on a CPU: a few images at a time, within its caches.

It computes the same sums as `attention.attention_at_once`, as plain matrix products. For the few
hundred tokens of an image they are faster than PyTorch's fused CPU kernel, and much faster in
bfloat16, as long as the logits of a part stay in the caches. The whole computation is one autograd
node. It keeps queries, keys, values and the attention mass per key row and column for the backward
pass, which computes the logits again.

Shapes are named as in `attention`; n is the number of images in a part, W = d + F.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

_CACHE_BYTES = 5 * 2**18  # logits of a part, per thread: fastest on cores with 2 MiB of cache
_MOST_KEPT_BYTES = 2**20  # logits of a part whose buffers are kept: 16 of them take some 50 MB
_MOST_BYTES = 2**26  # logits of one image; beyond this, the fused kernel saves memory
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def suits_parts(qkv: Tensor) -> bool:
    """Whether to use `attention_in_parts` for queries, keys and values [B, N, H, 3, d].

    It does not suit accelerators, large images, or code that looks inside the function: compilers
    (which fuse operations themselves), `torch.jit.trace`, and the transforms of `torch.func`.
    """
    _, tokens, heads = qkv.shape[:3]
    return (
        qkv.device.type == "cpu"
        and qkv.dtype in _DTYPES
        and heads * tokens**2 * qkv.element_size() <= _MOST_BYTES
        and not torch.compiler.is_compiling()
        and not is_traced_or_transformed()
    )


def is_traced_or_transformed() -> bool:
    """Whether `torch.jit.trace`, or a transform of `torch.func`, follows what is computed."""
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    return is_traced or torch._C._are_functorch_transforms_active()


def attention_in_parts(
    qkv: Tensor,
    key_table: Tensor,
    value_table: Tensor,
    features: Tensor,
    grid: tuple[int, int],
    scale: float,
) -> Tensor:
    """Computes the same as `attention_at_once`, with the same arguments: [B, N, H, d]."""
    tensors = (qkv, key_table, value_table)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        out, _ = _InParts.apply(*tensors, features, grid, scale)
        return out  # type: ignore[no-any-return]
    return _attend(*tensors, features, grid, scale, mass=None)


class _Wide:
    """A buffer [n, H, N, W] whose entries have a body and a tail, and views of it."""

    def __init__(self, like: Tensor, num_images: int, grid: tuple[int, int], width: int) -> None:
        _, tokens, heads, _, head_dim = like.shape
        rows, columns = grid
        used = head_dim + rows + 1 + columns
        self.wide = like.new_zeros(num_images, heads, tokens, width)
        self.matrices = self.wide.flatten(0, 1)
        """[n * H, N, W]."""
        self.body, self.tail = self.wide[..., :head_dim], self.wide[..., head_dim:used]
        self.vectors = self.wide.view(-1, width)[:, :head_dim]
        """[n * H * N, d], the body."""
        patches = torch.unflatten(self.tail[:, :, 1:], 2, grid)
        self.by_row, self.by_column = patches[..., :rows], patches[..., rows + 1 :]
        self.by_class = self.tail[:, :, 0, :rows]  # [n, H, R], of the class query

    def take(self, products: _Products) -> None:
        """Fills the tail of each token with the products that it uses."""
        self.by_row.copy_(products.by_row)
        self.by_column.copy_(products.by_column)
        self.by_class.copy_(products.by_class)


class _Products:
    """A buffer [n, H, N, T] with one number per entry of a laid-out table, and views of it.

    A patch uses one window of the vertical entries and one of the horizontal entries; the windows
    slide from row to row and from column to column. A class token uses the last entry.
    """

    def __init__(self, wide: _Wide, grid: tuple[int, int]) -> None:
        num_entries = 2 * sum(grid) - 1
        buffer = wide.wide.new_zeros(*wide.wide.shape[:3], num_entries)
        self.flat = buffer.view(-1, num_entries)
        """[n * H * N, T]."""
        patches = torch.unflatten(buffer[:, :, 1:], 2, grid)
        image, head, row, column, _ = patches.stride()
        start = patches.storage_offset()
        self.by_row = buffer.as_strided(wide.by_row.shape, (image, head, row + 1, column, 1), start)
        self.by_column = buffer.as_strided(
            wide.by_column.shape, (image, head, row, column + 1, 1), start + 2 * grid[0] - 1
        )
        self.by_class = buffer[:, :, 0, -1:]

    def take(self, wide: _Wide) -> None:
        """The adjoint of `_Wide.take`; entries that no token uses stay zero."""
        self.by_row.copy_(wide.by_row)
        self.by_column.copy_(wide.by_column)
        torch.sum(wide.by_class, -1, keepdim=True, out=self.by_class)


class _Part:
    """Buffers for n images, allocated once for all parts of that size.

    What a computation leaves in them is overwritten by the next, or is the same in all.
    """

    def __init__(
        self, like: Tensor, num_images: int, num_features: int, grid: tuple[int, int]
    ) -> None:
        tokens, width = like.shape[1], like.shape[-1] + num_features
        self.q, self.k, self.v, self.out = (_Wide(like, num_images, grid, width) for _ in range(4))
        self.products, self.seen = _Products(self.q, grid), _Products(self.q, grid)
        self.logits = like.new_empty(len(self.q.matrices), tokens, tokens)

    def describe(self, features: Tensor) -> _Part:
        """Writes the features of the keys [N, F]; returns self."""
        for laid in (self.k, self.v):
            laid.wide[..., -features.shape[1] :] = features
        return self

    def lay(self, qkv: Tensor, key_table: Tensor, value_table: Tensor, scale: float) -> None:
        """Fills in the scaled queries with their products, and the keys and values."""
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        torch.mul(q, scale, out=self.q.body)
        self.multiply(self.q, key_table)
        self.k.body.copy_(k)
        self.v.body.copy_(v)
        # All pairs with the class token use the last vector of a table. If it is the key, the
        # vector is part of key and value; if it is the query, of the row of every other key.
        self.k.body[:, :, 0] += key_table[-1]
        self.v.body[:, :, 0] += value_table[-1]

    def multiply(self, wide: _Wide, table: Tensor) -> None:
        """Writes the products of a body with a table [T, d] to its tail."""
        torch.mm(wide.vectors, table.t(), out=self.products.flat)
        wide.take(self.products)

    def attention(self) -> Tensor:
        """Softmax of the logits, [n * H, N, N]."""
        torch.bmm(self.q.matrices, self.k.matrices.transpose(1, 2), out=self.logits)
        return torch.softmax(self.logits, dim=-1, out=self.logits)

    def attend(self) -> None:
        """Puts the attention-weighted sum of the values into `out`."""
        if self.logits.dtype == torch.bfloat16:
            # PyTorch's kernel is as fast here, and keeps the logits in float32.
            q, k, v = self.q.wide, self.k.wide, self.v.wide
            self.out.wide.copy_(scaled_dot_product_attention(q, k, v, scale=1.0))
        else:
            torch.bmm(self.attention(), self.v.matrices, out=self.out.matrices)


def _part(qkv: Tensor, num_images: int, features: Tensor, grid: tuple[int, int]) -> _Part:
    """Buffers for images of this kind: small ones are kept, because making them takes longer than
    computing with them."""
    _, tokens, heads, _, head_dim = qkv.shape
    num_features = features.shape[1]
    is_large = num_images * heads * tokens**2 * qkv.element_size() > _MOST_KEPT_BYTES
    if is_large or type(qkv) is not Tensor:  # such as one without memory
        return _Part(qkv, num_images, num_features, grid).describe(features)
    shape = num_images, tokens, heads, head_dim
    of_mode = torch.is_inference_mode_enabled()  # outside of it, its tensors cannot be written
    return _kept(shape, qkv.dtype, num_features, grid, of_mode, get_ident()).describe(features)


@lru_cache(maxsize=16)
def _kept(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    num_features: int,
    grid: tuple[int, int],
    _is_inference: bool,
    _thread: int,
) -> _Part:
    num_images, tokens, heads, head_dim = shape
    like = torch.empty(0, tokens, heads, 3, head_dim, dtype=dtype, device="cpu")
    return _Part(like, num_images, num_features, grid)


def _parts(qkv: Tensor, features: Tensor, grid: tuple[int, int]) -> Iterator[tuple[slice, _Part]]:
    """The images of each part, with buffers of that size."""
    batch, tokens, heads = qkv.shape[:3]
    logits = heads * tokens**2 * qkv.element_size()
    size = max(1, min(batch, _CACHE_BYTES * torch.get_num_threads() // logits))
    part = None
    for start in range(0, batch, size):
        if part is None or start + size > batch:
            part = _part(qkv, min(size, batch - start), features, grid)
        yield slice(start, start + size), part


def _attend(
    qkv: Tensor,
    key_table: Tensor,
    value_table: Tensor,
    features: Tensor,
    grid: tuple[int, int],
    scale: float,
    mass: Tensor | None,
) -> Tensor:
    """Returns [B, N, H, d]; fills `mass` [B, H, N, R + 1 + C] if it is given."""
    out = torch.empty_like(qkv[:, :, :, 0], memory_format=torch.contiguous_format)
    for images, part in _parts(qkv, features, grid):
        part.lay(qkv[images], key_table, value_table, scale)
        part.attend()
        if mass is not None:
            mass[images] = part.out.tail
        part.seen.take(part.out)
        part.out.vectors.addmm_(part.seen.flat, value_table)
        out[images] = part.out.body.transpose(1, 2)
    return out


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        qkv: Tensor,
        key_table: Tensor,
        value_table: Tensor,
        features: Tensor,
        grid: tuple[int, int],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        batch, tokens, heads = qkv.shape[:3]
        mass = qkv.new_empty(batch, heads, tokens, sum(grid) + 1)
        return _attend(qkv, key_table, value_table, features, grid, scale, mass), mass

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.grid, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        qkv, key_table, value_table, features, mass = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv)
        # These sum over many parts, so they need at least float32.
        grad_key, grad_value = (
            table.new_zeros(table.shape, dtype=torch.promote_types(table.dtype, torch.float32))
            for table in (key_table, value_table)
        )
        g = None
        for images, part in _parts(qkv, features, ctx.grid):
            if g is None or len(g.wide) != len(part.q.wide):
                g = _Wide(qkv, len(part.q.wide), ctx.grid, part.q.wide.shape[-1])
                grad_logits = torch.empty_like(part.logits)
            part.lay(qkv[images], key_table, value_table, ctx.scale)
            attention = part.attention()
            g.body.copy_(grad[images].transpose(1, 2))
            part.multiply(g, value_table)
            torch.bmm(g.matrices, part.v.matrices.transpose(1, 2), out=grad_logits)
            torch._softmax_backward_data(
                grad_logits, attention, -1, attention.dtype, grad_input=grad_logits
            )
            grad_q, grad_k, grad_v = grad_qkv[images].permute(3, 0, 2, 1, 4)  # [n, H, N, d]

            by_value = torch.bmm(attention.transpose(1, 2), g.body.flatten(0, 1))
            grad_v.copy_(by_value.view(grad_v.shape))
            part.out.tail.copy_(mass[images])
            part.seen.take(part.out)
            grad_value += part.seen.flat.t() @ g.vectors
            grad_value[-1] += grad_v[:, :, 0].sum((0, 1))

            by_key = torch.bmm(grad_logits.transpose(1, 2), part.q.body.flatten(0, 1))
            grad_k.copy_(by_key.view(grad_k.shape))
            torch.baddbmm(
                part.out.matrices,
                grad_logits,
                part.k.matrices,
                beta=0,
                alpha=ctx.scale,
                out=part.out.matrices,
            )
            part.seen.take(part.out)
            grad_key += part.seen.flat.t() @ part.q.vectors / ctx.scale  # both are scaled
            grad_key[-1] += grad_k[:, :, 0].sum((0, 1))
            part.out.vectors.addmm_(part.seen.flat, key_table)
            grad_q.copy_(part.out.body)
        return grad_qkv, grad_key.to(key_table.dtype), grad_value.to(value_table.dtype), *[None] * 3
