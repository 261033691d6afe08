"""Costs are the published ones, to the last digit, and those that PyTorch counts."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prenas.cost import count
from prenas.families import build_structure
from prenas.families.base import COST_AXES, Cost
from prenas.families.vit.space import VitArch, VitSettings
from reference.vit import LiteralVit


@functools.cache
def published() -> dict[str, Any]:
    path = Path(__file__).parent / "golden" / "published_preferred.json"
    return json.loads(path.read_text(encoding="utf-8"))


def read_arch(entry: dict[str, Any]) -> VitArch:
    """An architecture of a golden file, where the width is repeated once per layer."""
    (width,) = set(entry["embed_dim"])
    arch = VitArch(
        embed_dim=width,
        num_heads=tuple(entry["num_heads"]),
        mlp_ratio=tuple(entry["mlp_ratio"]),
    )
    assert arch.depth == entry["layer_num"] == len(entry["embed_dim"])
    return arch


def preferred() -> list[Any]:
    """Every published architecture, under its space and its size."""
    return [
        pytest.param(entry, id=f"{size}-{entry['num_params']}")
        for size, intervals in published()["preferred"].items()
        for entries in intervals.values()
        for entry in entries
    ]


def test_there_are_thirteen_published_architectures() -> None:
    assert len(preferred()) == 13


@pytest.mark.parametrize("entry", preferred())
def test_published_parameter_counts(entry: dict[str, Any]) -> None:
    assert count(read_arch(entry)).params == round(entry["num_params"] * 1e6)
    assert count(read_arch(entry)).params / 1e6 == entry["num_params"]


# MACs of published networks in G without the relative tables, and of the direct form with them.
MACS = [
    ("tiny", "6.0", 1.320, 1.528),
    ("small", "23.0", 4.798, 5.191),
    ("base", "54.0", 11.077, 11.718),
]


@pytest.mark.parametrize(("size", "upper_edge", "plain", "direct"), MACS)
def test_published_macs(size: str, upper_edge: str, plain: float, direct: float) -> None:
    arch = read_arch(published()["preferred"][size][upper_edge][0])
    assert round(count(arch).macs / 1e9, 3) == plain

    with torch.device("meta"):
        literal = LiteralVit(
            **arch.model_dump(), image_size=(224, 224), patch_size=16, in_chans=3, num_classes=1000
        )
        with FlopCounterMode(display=False) as counter:
            literal(torch.empty(1, 3, 224, 224))
    assert round(counter.get_total_flops() / 2 / 1e9, 3) == direct


@pytest.mark.parametrize(("size", "upper_edge"), [row[:2] for row in MACS])
def test_relative_macs_are_what_is_run(size: str, upper_edge: str) -> None:
    """At full size PyTorch counts two operations for each product of the fused form."""
    arch = read_arch(published()["preferred"][size][upper_edge][0])
    cost = count(arch)
    network = build_structure(arch, VitSettings())
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * (cost.macs + cost.relative_macs)
    assert sum(p.numel() for p in network.parameters()) == cost.params


TINY = VitArch(embed_dim=192, num_heads=(3,) * 12, mlp_ratio=(4.0,) * 12)


def test_a_keyword_changes_one_setting() -> None:
    """990 classes fewer: a row of the head and a bias each, and one product per channel."""
    few, many = count(TINY, num_classes=10), count(TINY)
    assert many.params - few.params == 990 * (192 + 1)
    assert many.macs - few.macs == 990 * 192
    assert many.relative_macs == few.relative_macs
    assert count(TINY, num_classes=1000) == many
    settings = VitSettings(num_classes=10, image_size=(32, 64), patch_size=8, in_chans=1)
    assert count(TINY, settings) == count(
        TINY, num_classes=10, image_size=(32, 64), patch_size=8, in_chans=1
    )
    assert count(TINY, settings, num_classes=1000) == count(
        TINY, VitSettings(image_size=(32, 64), patch_size=8, in_chans=1)
    )


def test_image_size_costs_position_embedding_and_products() -> None:
    """384 px: 576 patches in place of 196."""
    large, usual = count(TINY, image_size=384), count(TINY)
    assert large.params - usual.params == (576 - 196) * 192
    macs = 577 * 12 * (4 * 192 * 192 + 2 * 192 * 768) + 12 * 2 * 577**2 * 192
    assert large.macs == macs + 576 * 3 * 16**2 * 192 + 192 * 1000


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_class": 10}, "num_class"),
        ({"drop_path": 0.1}, "drop_path"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": "many"}, "num_classes"),
        ({"image_size": 225}, "225"),
    ],
)
def test_wrong_keyword_is_named(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        count(TINY, **changes)
    with pytest.raises(ValueError, match=word):
        count(TINY, VitSettings(), **changes)


def test_cost_of_a_value_is_a_value() -> None:
    """The same twice, and named as budgets name it."""
    assert count(TINY) == count(TINY.model_copy())
    assert count(TINY)._fields[:2] == COST_AXES == ("params", "macs")
    assert isinstance(count(TINY), Cost)
