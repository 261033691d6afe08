"""The order in which batches are sent to a device and used."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from prenas.data import batches
from prenas.data.ahead import one_ahead, sent, sent_ahead

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_each_is_sent_before_the_one_before_it_is_used(length: int) -> None:
    events = []

    def items() -> Iterator[int]:
        for number in range(length):
            events.append(f"read {number}")
            yield number

    def send(number: int) -> str:
        events.append(f"send {number}")
        return f"item {number}"

    found = []
    for item in one_ahead(items(), send):
        events.append(f"use {item[5:]}")
        found.append(item)
    assert found == [f"item {number}" for number in range(length)]
    expected = [[f"read {number}", f"send {number}"] for number in range(length)]
    for number in range(length):  # used once the next one is on its way
        expected[min(number + 1, length - 1)].append(f"use {number}")
    assert events == [event for group in expected for event in group]


def test_an_error_of_the_next_batch_is_raised_before_this_one_is_used() -> None:
    """Nothing is used twice or lost: a training continues from its last checkpoint."""

    def items() -> Iterator[int]:
        yield 0
        raise ValueError("cannot read")

    with pytest.raises(ValueError, match="cannot read"):
        next(one_ahead(items(), int))


def test_tensors_of_a_user_are_not_pinned() -> None:
    """They may be on the device already, where nothing can be pinned."""
    cuda, tensors = torch.device("cuda"), TensorDataset(torch.zeros(2, 1), torch.zeros(2))
    assert batches._may_pin(Subset(tensors, [0]), cuda)
    assert not batches._may_pin(tensors, cuda)
    assert not batches._may_pin(Subset(tensors, [0]), torch.device("cpu"))


def test_on_a_processor_no_batch_is_read_or_copied_before_its_turn() -> None:
    asked = []

    def batches() -> Iterator[tuple[Any, ...]]:
        for number in range(3):
            asked.append(number)
            yield torch.full((2,), number), torch.zeros(2), "more"

    found = sent_ahead(batches(), CPU, lambda batch: batch)
    assert asked == []
    images, _, more = next(found)
    assert asked == [0]
    assert sent(images, CPU) is images
    assert more == "more"
    assert len(list(found)) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams and pinned memory are of CUDA")
def test_copies_beside_the_work_arrive_whole() -> None:
    """While the device is busy; memory of used batches is given out again for later ones."""
    device, size = torch.device("cuda"), 4_000_000
    busy = torch.randn(2000, 2000, device=device)
    sums = []
    given = [(torch.full((size,), float(number)), torch.tensor([number])) for number in range(20)]
    for images, labels in sent_ahead(
        given, device, lambda pair: (sent(pair[0], device), sent(pair[1], device))
    ):
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(torch.stack([images.min(), images.max(), labels[0]]))
    assert torch.stack(sums).tolist() == [[number] * 3 for number in range(20)]
