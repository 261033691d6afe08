"""Lookups along the last axis: both ways take the same entries."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prenas.families.lookup import Lookup, with_flat_lookups


class Twice(nn.Module):
    """Two layers that share a lookup, beside one of their own."""

    def __init__(self, shared: Lookup, own: Lookup) -> None:
        super().__init__()
        self.first, self.second, self.own = shared, nn.Sequential(shared), own


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32))
def test_both_ways_take_the_same_entries(tokens: int, width: int, number: int, seed: int) -> None:
    generator = torch.manual_seed(seed)
    places = torch.randint(width, (tokens, number), generator=generator)
    x = torch.randn(2, 3, tokens, width, generator=generator)
    lookup = Lookup(places, width)
    expected = torch.stack([x[:, :, n, places[n]] for n in range(tokens)], dim=2)
    assert torch.equal(lookup(x), expected)
    assert torch.equal(with_flat_lookups(nn.Sequential(lookup))(x), expected)


def test_a_copy_has_flat_lookups_and_shares_what_was_shared() -> None:
    shared, own = (Lookup(torch.tensor([[place], [0]]), 2) for place in (0, 1))
    network = Twice(shared, own)
    copy = with_flat_lookups(network)
    assert isinstance(copy, Twice)
    assert not any(isinstance(module, Lookup) for module in copy.modules())
    assert copy.first is copy.second[0] is not copy.own
    assert network.first is network.second[0] is shared
