"""The blocks of the Vision Transformer, held against their formulas."""

import pytest
import torch

from families.drawing import fill_as_trained, images_for
from prenas.families import build, get_space
from prenas.families.vit.attention import GridIndex, grid_index
from prenas.families.vit.network import Block
from prenas.families.vit.space import VitSettings

SETTINGS = VitSettings(image_size=(8, 8), patch_size=4, head_dim=4, max_distance=2)
GRID: GridIndex = grid_index(2, 2, 4, 2)


def test_stochastic_depth_keeps_the_mean() -> None:
    """A branch is dropped where noise is below the rate, and divided by its keep rate elsewhere."""
    block = Block(8, 2, 16, SETTINGS, rate=0.2).train()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        tokens = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
        noise = torch.tensor([[0.1, 0.1], [0.1, 0.9], [0.9, 0.1], [0.2, 0.2]])
        found = block(tokens, GRID, noise)
        kept = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])[:, :, None, None] / 0.8
        expected = tokens + kept[:, 0] * block.attn(block.norm1(tokens), GRID)
        expected = expected + kept[:, 1] * block.mlp(block.norm2(expected))
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[0], tokens[0])


@pytest.mark.parametrize("way", ["assign", "assign inside", "to_empty"])
def test_weights_are_loaded_into_a_network_without_memory(way: str) -> None:
    """Also what no state dict has: the indices of the grid."""
    space = get_space("digits")
    expected = fill_as_trained(build(space.largest, space.settings))
    with torch.device("meta"):
        network = build(space.largest, space.settings).eval()
        if way == "assign inside":
            network.load_state_dict(expected.state_dict(), assign=True)
    if way == "to_empty":
        network.to_empty(device="cpu")
        for buffer in network.buffers():
            buffer.zero_()  # as an allocator may leave them
    network.load_state_dict(expected.state_dict(), assign=way != "to_empty")
    images = images_for(space)
    assert torch.equal(network(images), expected(images))
    half = build(space.largest, space.settings).eval().bfloat16()
    half.load_state_dict(expected.bfloat16().state_dict())
    assert half(images.bfloat16()).dtype == torch.bfloat16
