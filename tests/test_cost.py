"""Costs equal the published ones, to the last digit, and those that PyTorch counts."""

import functools
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.ticker import EngFormatter
from torch.utils.flop_counter import FlopCounterMode

from prenas.cost import AXES, CostAxis, bounded_names, count, register
from prenas.families import build_structure, get_space
from prenas.families.mobilenet.arch import MobileNetSettings
from prenas.families.vit.space import VitArch, VitSettings
from reference.vit import LiteralVit

IMAGENET = VitSettings()
PARAMS = AXES["params"]


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
    assert count(read_arch(entry), IMAGENET)["params"] == round(entry["num_params"] * 1e6)
    assert count(read_arch(entry), IMAGENET)["params"] / 1e6 == entry["num_params"]


# MACs of published networks in G without the relative tables, and of the direct form with them.
MACS = [
    ("tiny", "6.0", 1.320, 1.528),
    ("small", "23.0", 4.798, 5.191),
    ("base", "54.0", 11.077, 11.718),
]


@pytest.mark.parametrize(("size", "upper_edge", "plain", "direct"), MACS)
def test_published_macs(size: str, upper_edge: str, plain: float, direct: float) -> None:
    arch = read_arch(published()["preferred"][size][upper_edge][0])
    assert round(count(arch, IMAGENET)["macs"] / 1e9, 3) == plain

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
    cost = count(arch, IMAGENET)
    network = build_structure(arch, IMAGENET)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * (cost["macs"] + cost["relative_macs"])
    assert sum(p.numel() for p in network.parameters()) == cost["params"]


TINY = VitArch(embed_dim=192, num_heads=(3,) * 12, mlp_ratio=(4.0,) * 12)


def test_a_keyword_changes_one_setting() -> None:
    """990 classes fewer: a row of the head and a bias each, and one product per channel."""
    few, many = count(TINY, IMAGENET, num_classes=10), count(TINY, IMAGENET)
    assert many["params"] - few["params"] == 990 * (192 + 1)
    assert many["macs"] - few["macs"] == 990 * 192
    assert many["relative_macs"] == few["relative_macs"]
    assert count(TINY, IMAGENET, num_classes=1000) == many
    settings = VitSettings(num_classes=10, image_size=(32, 64), patch_size=8, in_chans=1)
    assert count(TINY, settings) == count(
        TINY, IMAGENET, num_classes=10, image_size=(32, 64), patch_size=8, in_chans=1
    )
    assert count(TINY, settings, num_classes=1000) == count(
        TINY, VitSettings(image_size=(32, 64), patch_size=8, in_chans=1)
    )


def test_image_size_costs_position_embedding_and_products() -> None:
    """384 px: 576 patches instead of 196."""
    large, usual = count(TINY, IMAGENET, image_size=384), count(TINY, IMAGENET)
    assert large["params"] - usual["params"] == (576 - 196) * 192
    macs = 577 * 12 * (4 * 192 * 192 + 2 * 192 * 768) + 12 * 2 * 577**2 * 192
    assert large["macs"] == macs + 576 * 3 * 16**2 * 192 + 192 * 1000


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
        count(TINY, IMAGENET, **changes)
    with pytest.raises(ValueError, match=word):
        count(TINY, get_space("tiny"), **changes)


def test_a_space_stands_for_its_settings() -> None:
    space = get_space("digits")
    assert count(space.largest, space) == count(space.largest, space.settings)
    assert count(space.largest, space, num_classes=5) == count(
        space.largest, space.settings.changed(num_classes=5)
    )


@pytest.mark.parametrize("given", [(), (None,), ("digits",), (MobileNetSettings(),)])
def test_an_architecture_alone_has_no_cost(given: tuple[Any, ...]) -> None:
    """It must not silently be counted at 224 px and for 1,000 classes."""
    with pytest.raises(TypeError, match=r"image size and the number of classes") as caught:
        count(get_space("digits").largest, *given)
    for word in ("count(arch, space)", "VitSettings(image_size=..., num_classes=...)"):
        assert word in str(caught.value)


def test_costs_are_named_and_nobody_can_spoil_them() -> None:
    """Equal in both calls, in the order of the table; a caller's changes affect no other."""
    first = count(TINY, IMAGENET)
    assert list(first) == list(AXES) == ["params", "macs", "relative_macs"]
    assert bounded_names() == ("params", "macs")
    first["params"] = 0
    assert count(TINY, IMAGENET) == count(TINY.model_copy(), IMAGENET) != first


# --- amounts -------------------------------------------------------------------------------------

M, G = 10**6, 10**9
UNITS = {"": 1, "k": 10**3, "M": M, "G": G}

amounts = st.one_of(
    st.integers(1, 10**4),
    st.integers(1, 10**12),
    st.builds(lambda n, scale: n * scale, st.integers(1, 10**5), st.sampled_from([1, 10, 100, M])),
)


@given(amounts)
@example(10517272)
@example(1001 * 10**3)
@example(1234567)
def test_amounts_survive_their_text(value: int) -> None:
    """Exact, because a message that gives a range must not round it."""
    assert PARAMS.parse(PARAMS.format(value)) == value


@given(amounts)
@example(54321)
@example(10517272)
def test_amounts_are_written_exactly(value: int) -> None:
    """The number times its unit is the value."""
    match = re.fullmatch(r"([0-9.]+)([kMG]?)", PARAMS.format(value))
    assert match
    assert Decimal(match[1]) * UNITS[match[2]] == value


@given(amounts)
@example(54321)
def test_amounts_are_written_shortly(value: int) -> None:
    """No exact form with a unit is shorter."""
    lengths = []
    for unit, scale in UNITS.items():
        number = f"{Decimal(value) / scale:f}"
        if "." in number:
            number = number.rstrip("0").rstrip(".")
        lengths.append(len(number + unit))
    assert len(PARAMS.format(value)) <= min(lengths)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (6 * M, "6M"),
        (1250 * M, "1.25G"),
        (250_000, "250k"),
        (G, "1G"),
        (7, "7"),
        (5500, "5.5k"),
        (300 * M, "300M"),
    ],
)
def test_amounts_as_people_write_them(value: int, text: str) -> None:
    assert PARAMS.format(value) == text
    assert PARAMS.parse(text) == value


@given(st.integers(1, 10**9), st.integers(0, 3), st.sampled_from(["k", "M", "G"]))
@example(1001, 3, "M")
@example(4035, 3, "M")
def test_decimal_amounts_are_exact(number: int, digits: int, unit: str) -> None:
    """As many digits as the unit allows: an integer, in spite of binary fractions."""
    text = f"{Decimal(number).scaleb(-digits):f}{unit}"
    assert PARAMS.parse(text) == number * UNITS[unit] // 10**digits


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6M", 6 * M),
        ("6m", 6 * M),
        ("1.4G", 1400 * M),
        ("1.4g", 1400 * M),
        ("1.4B", 1400 * M),
        ("2b", 2 * G),
        ("250k", 250_000),
        ("250K", 250_000),
        ("6000000", 6 * M),
        ("6_000_000", 6 * M),
        (" 6 M ", 6 * M),
        (".5M", 500_000),
        ("0.5M", 500_000),
        ("6.0M", 6 * M),
        ("007", 7),
        ("1e5", 100_000),
        ("1.5e+6", 1_500_000),
        ("25E-1k", 2500),
        ("6e0M", 6 * M),
    ],
)
def test_amounts_that_can_be_read(text: str, value: int) -> None:
    assert PARAMS.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "six",
        "M",
        "6T",
        "6MB",
        "-6M",
        "+6M",
        "e6",
        "1e",
        "1e6.5",
        "1e100",
        "6,5M",
        "5.M",
        "6 000",
        "0x10",
        "_6",
    ],
)
def test_amounts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read the amount") as caught:
        PARAMS.parse(text)
    assert repr(text) in str(caught.value)
    assert "write a number with k, M or G" in str(caught.value)


@pytest.mark.parametrize("text", ["1__0", "1_", "1_.5M"])
def test_stray_underscores_are_named(text: str) -> None:
    """As in Python, underscores must be between digits; the error mentions the amount."""
    with pytest.raises(ValueError, match="amount") as caught:
        PARAMS.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["0", "0M", "0.0", "1.5", "0.0005k", "1.0000001M"])
def test_amounts_are_whole_and_positive(text: str) -> None:
    with pytest.raises(ValueError, match="not a positive integer") as caught:
        PARAMS.parse(text)
    assert repr(text) in str(caught.value)


@given(st.integers(1, 10**13))
def test_amounts_in_tables_are_near(number: int) -> None:
    """Four digits at least, in a terminal and on a page."""
    axis = AXES["macs"]
    for shown in (axis.cell(number), axis.cell(number, pads=True)):
        assert float(shown.replace(",", "")) * 1e6 == pytest.approx(number, rel=5.01e-4)
    assert PARAMS.cell(number) == f"{number:,}"


@pytest.mark.parametrize(
    ("amount", "cell", "padded", "about", "exact"),
    [
        (4_210_000, "4.21", "4.210", "4.210 M MACs", "4,210,000 MACs"),
        (1_234_567_890, "1235", "1,235", "1,235 M MACs", "1,234,567,890 MACs"),
    ],
)
def test_amounts_in_tables_and_sentences(
    amount: int, cell: str, padded: str, about: str, exact: str
) -> None:
    axis = AXES["macs"]
    assert axis.header == "MACs, M"
    assert (axis.cell(amount), axis.cell(amount, pads=True)) == (cell, padded)
    assert (axis.about(amount), axis.in_words(amount)) == (about, exact)
    assert PARAMS.header == "params"
    assert PARAMS.about(amount) == PARAMS.in_words(amount) == f"{amount:,} parameters"


@given(st.integers(0, 10**12 - 1))
def test_ticks_are_those_of_engineers(number: int) -> None:
    assert PARAMS.tick(float(number)) == EngFormatter(sep="")(number)


# --- axes ----------------------------------------------------------------------------------------

TIME = {"us": 1, "ms": 1000, "s": 10**6}


def time_axis(**changes: Any) -> CostAxis:
    fields = {"of_part": lambda part: 1, "label": "time", "noun": "microseconds", "units": TIME}
    return CostAxis(**{"name": "latency", **fields, "table_unit": "ms", **changes})


def test_an_axis_has_units_of_its_own() -> None:
    axis = time_axis()
    for text, amount in (("2.5ms", 2500), ("2500", 2500), ("2500us", 2500), ("3 S", 3 * M)):
        assert axis.parse(text) == amount
    assert [axis.format(amount) for amount in (2500, 900, 3 * M)] == ["2.5ms", "900us", "3s"]
    assert (axis.header, axis.cell(2500), axis.about(2500)) == ("time, ms", "2.5", "2.500 ms time")
    assert (axis.tick(12_500.0), axis.tick(0)) == ("12.5ms", "0us")
    with pytest.raises(ValueError, match="write a number with ms or s, such as 250ms or 6s"):
        axis.parse("6M")


@pytest.mark.parametrize("text", ["5", "2500", ".5", "1e3", " 7 "])
def test_an_axis_may_need_a_unit(text: str) -> None:
    axis = time_axis(needs_unit=True)
    words = f"the amount {text!r} has no unit: latency needs one of us, ms or s, such as 5ms"
    with pytest.raises(ValueError, match=re.escape(words)):
        axis.parse(text)
    assert axis.parse(f"{text.strip()}s") == round(float(text) * 10**6)


@given(st.integers(1, 10**13))
def test_written_amounts_have_the_unit_that_an_axis_needs(amount: int) -> None:
    axis = time_axis(needs_unit=True)
    assert axis.parse(axis.format(amount)) == amount
    assert axis.parse(f"{amount}{axis.base_unit}") == amount


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "resolution"}, "'resolution' needs another name"),
        ({"name": "Latency, ms"}, "'Latency, ms' needs another name"),
        ({"units": {"ms": 1000}}, "one of them must have size 1"),
        ({"table_unit": "min"}, "table_unit 'min' must be among them"),
    ],
)
def test_an_axis_that_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        time_axis(**changes)


def test_a_name_has_one_axis() -> None:
    with pytest.raises(ValueError, match="a cost axis 'params' already exists"):
        register(time_axis(name="params"))
    assert AXES["params"] is PARAMS


@pytest.mark.parametrize("amount", [0.5, -1, "3", None])
def test_amounts_of_parts_are_whole(amount: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables contain integers: a fraction would silently be cut off."""
    monkeypatch.setitem(AXES, "latency", time_axis(of_part=lambda part: amount))
    with pytest.raises(TypeError, match=r"'latency' gives .*a smaller unit for fractions"):
        count(TINY, IMAGENET)
