"""Sums over boxes from cumulative sums equal sums over slices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prenas.families.base import Box
from prenas.proxy.boxes import BoxSums


@st.composite
def tensors_and_boxes(draw: st.DrawFn) -> tuple[Tensor, list[Box]]:
    """Integers, so that every sum is exact; boxes anywhere, including empty ones."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    seed = draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-9, 10, shape, generator=generator).float()
    box = st.tuples(
        *(st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted) for size in shape)
    ).map(lambda ends: tuple(slice(*end) for end in ends))
    return values, draw(st.lists(box, min_size=0, max_size=4))


@given(tensors_and_boxes())
def test_sums_equal_slices(case: tuple[Tensor, list[Box]]) -> None:
    values, boxes = case
    sums = BoxSums(values, boxes)
    for box in [*boxes, tuple(slice(0, size) for size in values.shape)]:
        assert sums(box) == values[box].double().sum().item()


@given(tensors_and_boxes(), st.data())
def test_borders_combine(case: tuple[Tensor, list[Box]], data: st.DataObject) -> None:
    """Any box between the given borders works, not only the given boxes."""
    values, boxes = case
    sums = BoxSums(values, boxes)
    mixed = []
    for dim, size in enumerate(values.shape):
        borders = {0, size}.union(*((box[dim].start, box[dim].stop) for box in boxes))
        ends = st.lists(st.sampled_from(sorted(borders)), min_size=2, max_size=2)
        mixed.append(slice(*sorted(data.draw(ends))))
    assert sums(tuple(mixed)) == values[tuple(mixed)].double().sum().item()


def test_sums_are_float64() -> None:
    """2^24 + 1 is not a float32: a float32 sum would lose every one of these ones."""
    values = torch.ones(5, 4)
    values[0, 0] = 2**24
    sums = BoxSums(values, [(slice(0, 3), slice(0, 4))])
    assert sums((slice(0, 3), slice(0, 4))) == 2**24 + 11


def test_tensor_is_left_alone() -> None:
    values = torch.arange(12.0).view(3, 4)
    BoxSums(values, [(slice(1, 2), slice(0, 3))])
    assert torch.equal(values, torch.arange(12.0).view(3, 4))


def test_views_and_strides() -> None:
    values = torch.arange(24.0).view(4, 6)[:, ::2].t()
    box = (slice(1, 3), slice(2, 4))
    assert BoxSums(values, [box])(box) == values[box].sum().item()


def test_scalar() -> None:
    """A tensor without dimensions has one box, the empty tuple."""
    assert BoxSums(torch.tensor(3.0), [()])(()) == 3.0


def test_unknown_border_is_an_error() -> None:
    """Raises an error instead of returning a wrong number."""
    sums = BoxSums(torch.ones(5), [(slice(0, 2),)])
    with pytest.raises(KeyError):
        sums((slice(0, 3),))
    with pytest.raises(ValueError, match="zip"):
        sums((slice(0, 2), slice(0, 2)))
