"""Latency as a cost: measured tables predict networks, and are budgets, limits and columns.

Times are made up here, from the parameters that a module has, so that the right answers are known;
one test runs a clock.
"""

import functools
import itertools
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edits import write_edited
from families.drawing import ALL_SPACES, TEST_SPACES, choices, timm_space
from prenas import artifacts, pipeline
from prenas.cost import AXES, count, parts_of
from prenas.devices import blocks, measuring
from prenas.devices.formats import Written, get_format
from prenas.devices.measuring import (
    Engine,
    Measurement,
    engine_of,
    get_engine,
    measurement,
    time_networks,
)
from prenas.devices.timing import Latency, at_equal_pace, latencies
from prenas.devices.whole import measure_run, recorded_times
from prenas.families import build, family_of, get_space, shapes_by_role
from prenas.families.base import Arch, SearchSpace
from prenas.families.vit.network import VisionTransformer
from prenas.latency import (
    LatencyTable,
    Machine,
    counting_as,
    read_table,
    signature,
    table_in_use,
    use_table,
    use_table_of,
    write_table,
)
from prenas.proxy.layout import num_options
from prenas.proxy.tables import cost_tables
from prenas.randomness import torch_generator
from prenas.recipe import searching_recipe
from prenas.recipe.budgets import parse_budgets, parse_limits
from prenas.runs.run import Run
from prenas.selection.search import zero_cost_search
from prenas.sources.cutting import cut_plan
from prenas.sources.transfer import Source, read_source
from sources.cut_runs import MODEL, SHORT
from test_cli import Command
from test_cli import prenas as prenas_command
from training.runs import MINI, contents, mini_recipe, never

__all__ = ["prenas_command"]  # a fixture of another file

pytest_plugins = "sources.cut_runs"

TORCH = Engine("torch")
_START, _LONGER_IN_A_NETWORK = 3e-4, 1.25
_MORE_IN_A_NETWORK = 5e-5
_PER_PARAMETER_IN_A_NETWORK = 4e-9
_PER_PARAMETER = 1e-8
_PER_PRODUCT = 1e-8


def seconds_of_layer(layer: nn.Module) -> float:
    """The made-up time of a layer alone; a longer one takes disproportionately long."""
    num = sum(parameter.numel() for parameter in layer.parameters())
    if not num:
        return 0.0  # it was left out
    return _PER_PARAMETER * num**1.1 + 1e-6


def seconds_in_network(layer: nn.Module) -> float:
    """The made-up time of a layer in a network; none if it was left out."""
    alone = seconds_of_layer(layer)
    num = sum(parameter.numel() for parameter in layer.parameters())
    more = _MORE_IN_A_NETWORK + _PER_PARAMETER_IN_A_NETWORK * num
    return _LONGER_IN_A_NETWORK * alone + more if alone else 0.0


def made_up(
    space: SearchSpace, archs: Mapping[str, Arch], spread: float = 0.01
) -> Callable[..., dict[str, Latency]]:
    """Stands for `latencies`: a network takes a start, resizes its images, and its layers take a
    quarter and a bit more than alone."""

    def timed(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        found = {}
        for name, call in calls.items():
            module = call.args[0]
            if isinstance(module, blocks._Alone):
                seconds = seconds_of_layer(module.layer)
            else:
                arch = archs[name]
                layers = [prefix.removesuffix(".") for prefix in family_of(arch).layers(arch)]
                inside = sum(seconds_in_network(module.get_submodule(layer)) for layer in layers)
                seconds = _START + resizing(arch, space) + inside
            found[name] = Latency(seconds, spread, (seconds, seconds))
        return found

    return timed


def true_nanoseconds(arch: Arch, space: SearchSpace) -> float:
    network = build(arch, space.settings)
    layers = [prefix.removesuffix(".") for prefix in family_of(arch).layers(arch)]
    inside = sum(seconds_in_network(network.get_submodule(layer)) for layer in layers)
    return 1e9 * (_START + resizing(arch, space) + inside)


def resizing(arch: Arch, space: SearchSpace) -> float:
    """The made-up time of the two matrix products of a network that resizes its images."""
    (height, width), side = space.settings.image_size, arch.resized_to
    if side is None or side == height == width:
        return 0.0
    rows, columns = side * height * width, side * width * side
    return _PER_PRODUCT * space.settings.in_chans * (rows + columns)


def table_of(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    plan = measurement(space, TORCH)
    archs = {arch.id: arch for arch in plan.networks}
    monkeypatch.setattr(measuring, "latencies", made_up(space, archs))
    return plan.measure()


@pytest.fixture
def in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[LatencyTable]:
    """A table of the mini space, which the process counts with during the test."""
    table = table_of(MINI, monkeypatch)
    use_table(table)
    yield table
    use_table(None)


# --- a table -------------------------------------------------------------------------------------


@functools.cache
def table_in_made_up_times(space: SearchSpace) -> LatencyTable:
    with pytest.MonkeyPatch.context() as patch:
        return table_of(space, patch)


@pytest.mark.parametrize("space", ALL_SPACES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_table_adds_up_to_the_times_of_networks(space: SearchSpace, data: st.DataObject) -> None:
    """For any options of the layers, at every resolution; exactly where all are measured."""
    table = table_in_made_up_times(space)
    assert all(entry.nanoseconds > 0 for entry in table.entries.values() if entry.measured)
    is_interpolated = max(num_options(stage) for stage in space.chain if stage.axes) > 8
    picked, resolution = data.draw(choices(space)), data.draw(st.sampled_from(space.resolutions))
    arch = space.compose(picked, resolution)
    expected = true_nanoseconds(arch, space)
    assert table.predict(arch, space.settings) == pytest.approx(
        expected, rel=0.01 if is_interpolated else 1e-4
    )
    use_table(table)
    try:
        costs = count(arch, space)
        assert costs["latency"] == table.predict(arch, space.settings)
        assert cost_tables(space, resolution).cost(picked).tolist() == [
            costs["params"], costs["macs"], costs["latency"],
        ]  # fmt: skip
    finally:
        use_table(None)
    assert "latency" not in count(arch, space)


def test_networks_may_take_a_time_for_each_layer_whatever_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on an accelerator that waits for its launches; what layers take alone says nothing."""
    monkeypatch.setitem(globals(), "_LONGER_IN_A_NETWORK", 0.0)
    table = table_of(MINI, monkeypatch)
    assert table.fit.worst_error < 1e-3
    for arch in (MINI.smallest, MINI.largest):
        expected = true_nanoseconds(arch, MINI)
        assert table.predict(arch, MINI.settings) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_form_that_predicts_left_out_networks_best_is_taken(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times with noise; a number for each layer, or for its parameters, is not always better."""
    plan = measurement(MINI, TORCH)
    archs = {arch.id: arch for arch in plan.networks}
    factors = dict(
        zip(archs, np.random.default_rng(seed).normal(1.0, 0.05, len(archs)), strict=True)
    )
    honest = made_up(MINI, archs)

    def noisy(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        return {
            name: one._replace(median=one.median * factors.get(name, 1.0))
            for name, one in honest(calls, **others).items()
        }

    monkeypatch.setattr(measuring, "latencies", noisy)
    found, forms = plan.measure(), []
    for left_out in ((), (2,), (3,), (2, 3)):
        monkeypatch.setattr(measuring, "_LEFT_OUT", (left_out,))
        forms.append(plan.measure())
    errors = [one.fit.median_error for one in forms]
    best = errors.index(min(errors))
    assert errors[best] < max(errors)
    assert (found.fit, found.entries) == (forms[best].fit, forms[best].entries)


def test_networks_whose_times_do_not_depend_on_their_layers_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_LONGER_IN_A_NETWORK", "_MORE_IN_A_NETWORK", "_PER_PARAMETER_IN_A_NETWORK"):
        monkeypatch.setitem(globals(), name, 0.0)
    with pytest.raises(ValueError, match=r"do not follow from those of their layers: .* too busy"):
        table_of(MINI, monkeypatch)


def test_resizing_tells_networks_of_equal_layers_apart() -> None:
    """Its time is counted once; the layers are those of a network for small images."""
    space = TEST_SPACES["timm"][0]
    side = space.resolutions[0]
    arch, small = space.compose(space.extreme(-1), side), space.settings.changed(image_size=side)
    resized, native = (
        {signature(part) for part in parts_of(arch, one, shapes_by_role(arch, one))}
        for one in (space.settings, small)
    )
    assert len(native) > 2
    assert len(resized - native) == len(native - resized) == 1


def test_a_table_says_how_well_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = table_of(MINI, monkeypatch).fit
    assert fit.worst_error < 1e-3
    assert fit.rank_correlation == pytest.approx(1.0)
    assert fit.noise_floor == 0.0


def test_times_that_do_not_add_up_show_in_the_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = measurement(MINI, TORCH)
    archs = {arch.id: arch for arch in plan.networks}
    honest, turns = made_up(MINI, archs), itertools.cycle((1.0, 1.2))

    def disturbed(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        return {
            name: one._replace(median=one.median * (next(turns) if name in archs else 1.0))
            for name, one in honest(calls, **others).items()
        }

    monkeypatch.setattr(measuring, "latencies", disturbed)
    fit = plan.measure().fit
    assert 0.05 < fit.median_error < 0.15


def test_layers_with_many_options_are_measured_at_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others lie between their neighbours; none is outside what was measured."""
    space = timm_space("test_resnet", 64)
    plan = measurement(space, TORCH)
    assert max(len(stage.axes[0].options) for stage in space.chain if stage.axes) > 8
    table = table_of(space, monkeypatch)
    kept = [entry.measured for entry in table.entries.values()]
    assert 0 < sum(kept) == len(plan.layers) < len(kept)
    for arch in (space.smallest, space.largest, space.sample(np.random.default_rng(0))):
        expected = true_nanoseconds(arch, space)
        assert table.predict(arch, space.settings) == pytest.approx(expected, rel=0.02)


def test_equal_layers_are_measured_once() -> None:
    """The blocks of a Vision Transformer differ only in width, heads and MLP ratio."""
    plan = measurement(MINI, TORCH)
    chain = MINI.chain[0]
    kinds = len(chain.widths) * math.prod(len(axis.options) for axis in chain.axes)
    assert len(plan.layers) == kinds
    parts = list(parts_of(MINI.largest, MINI.settings, shapes_by_role(MINI.largest, MINI.settings)))
    assert len({signature(part) for part in parts if part.work.role.layer is not None}) == 1


@pytest.mark.parametrize(
    ("name", "precision"),
    [("torch", "float32"), ("onnxruntime", "float32"), ("onnxruntime", "int8")],
)
def test_a_clock_gives_every_layer_a_time(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one test that runs a clock; on a busy machine it may show anything above zero."""
    monkeypatch.setattr(measuring, "MOST_SPREAD", math.inf)
    engine = get_engine(name, batch=2, precision=precision)
    assert engine_of(engine.conditions) == engine
    form, quantised = get_format("onnx"), list[bool]()

    def static(source: Written, *others: Any) -> None:
        quantised.append(source.is_layer)
        form.quantizers["static"](source, *others)

    known = form._replace(quantizers={"static": static})
    monkeypatch.setattr(import_module("prenas.devices.onnx_format"), "FORMAT", known)
    space = MINI.model_copy(update={"depth": (1,), "mlp_ratio": (1.0,), "num_heads": (1,)})
    plan = measurement(space, engine)
    times = plan._time_layers(plan.layers)
    assert set(times) == {layer.signature for layer in plan.layers}
    assert all(0 < seconds < 1 for seconds in times.values())
    (whole,) = time_networks(space, [space.largest], engine)
    assert 0 < whole.median < 1
    is_int8 = precision == "int8"
    assert quantised == ([True] * len(plan.layers) + [False] if is_int8 else [])


@pytest.mark.parametrize(("is_layer", "in_int8"), [(False, [False, True]), (True, [True, True])])
def test_the_first_convolution_of_a_layer_alone_is_int8(
    is_layer: bool, in_int8: list[bool], tmp_path: Path
) -> None:
    """As in its network, where only that of the stem stays in float32."""
    onnx = pytest.importorskip("onnx")
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    images = torch.randn(1, 3, 8, 8, generator=torch_generator(0, "layer"))
    form = get_format("onnx")
    form.write(layer, images, tmp_path / "layer.onnx", form.plan(1))
    written = Written(tmp_path / "layer.onnx", layer, images, is_layer)
    form.quantizers["static"](written, tmp_path / "int8.onnx", lambda: [images.numpy()])
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    found = [node.input[1] in dequantized for node in nodes if node.op_type == "Conv"]
    assert found == in_int8


def nodes_of(path: Path) -> list[str]:
    return [node.op_type for node in pytest.importorskip("onnx").load(path).graph.node]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize(
    "space",
    [
        MINI,
        pytest.param(get_space("mobilenet-micro"), marks=pytest.mark.slow),
        timm_space("test_resnet", 64),
    ],
)
def test_layers_written_together_are_those_written_alone(
    name: str, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = get_format(name)
    arch, images = space.largest, blocks.example_images(space.settings, 2)
    network = blocks.network_of(arch, space.settings, deploys=True)
    layers = [prefix.removesuffix(".") for prefix in family_of(arch).layers(arch)]
    found = list(blocks.blocks_of(network, layers, images))
    sizes = [sum(p.nbytes for p in (*b.module.parameters(), *b.module.buffers())) for b in found]
    # The first two together, the others as it comes.
    monkeypatch.setattr(import_module("prenas.devices.onnx_format"), "_MOST_BYTES", sum(sizes[:2]))
    paths = [tmp_path / f"{number}{Path(form.file).suffix}" for number in range(len(found))]
    assert form.write_layers is not None
    form.write_layers(found, paths, form.plan(2))
    for path, block in zip(paths, found, strict=True):
        alone = path.with_name(f"alone-{path.name}")
        form.write(block.module, block.example, alone, form.plan(2))
        given = block.example.numpy()
        np.testing.assert_array_equal(form.open(path, 1)(given), form.open(alone, 1)(given))
        if name == "onnx":
            assert sorted(nodes_of(path)) == sorted(nodes_of(alone))
    assert {path for path in tmp_path.iterdir() if "passing" in path.name} == set()


def test_what_is_timed_in_int8_is_the_quantised_network() -> None:
    network = blocks.network_of(MINI.largest, MINI.settings, deploys=True)
    images = blocks.example_images(MINI.settings, 2)
    with torch.inference_mode():
        expected = network(images).numpy()
    errors = {}
    for precision in measuring.PRECISIONS:
        call = get_engine("onnxruntime", batch=2, precision=precision).runner(network, images)
        errors[precision] = np.abs(call() - expected).max() / np.abs(expected).max()  # type: ignore[operator]
    assert errors["float32"] <= 1e-5 < 1e-4 < errors["int8"] < 0.3


def test_subnets_are_timed_in_every_engine_and_precision(
    run: Run, prenas_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for networks as they are, which the made-up clock can read.
    monkeypatch.setattr(
        Engine, "runner", lambda self, network, images: functools.partial(print, network)
    )
    words = ["--engine", "onnxruntime", "--precision", "float32", "--precision", "int8"]
    output = prenas_command("measure", str(run.folder), *words).out
    found = [one.conditions.engine_in_words for one in recorded_times(run)]
    assert found[-2:] == ["onnxruntime", "onnxruntime int8"]
    assert "onnxruntime int8, 1 thread, batches of 1: " in output


def test_int8_needs_an_engine_that_computes_in_it() -> None:
    with pytest.raises(ValueError, match="float32: for int8 choose onnxruntime or openvino"):
        get_engine("torch", precision="int8")
    with pytest.raises(ValueError, match=r"unknown precision 'int4'.*float32, int8"):
        get_engine("onnxruntime", precision="int4")


@pytest.mark.parametrize("space", ALL_SPACES)
def test_a_layer_alone_computes_what_it_does_in_its_network(space: SearchSpace) -> None:
    arch = space.largest
    network = blocks.network_of(arch, space.settings, deploys=False)
    layers = [prefix.removesuffix(".") for prefix in family_of(arch).layers(arch)]
    seen: dict[str, Any] = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda module, given, output, layer=layer: seen.update({layer: output})
        )
    images = blocks.example_images(space.settings, 2)
    for layer, block in zip(layers, blocks.blocks_of(network, layers, images), strict=True):
        expected = seen[layer].clone()
        with torch.inference_mode():
            assert torch.equal(block.module(block.example), expected)


def test_times_that_spread_are_measured_again_and_then_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = measurement(MINI, TORCH)
    archs = {arch.id: arch for arch in plan.networks}
    attempts = []

    def busy_at_first(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        attempts.append(len(calls))
        return made_up(MINI, archs, spread=0.5 if len(attempts) < 3 else 0.01)(calls)

    monkeypatch.setattr(measuring, "latencies", busy_at_first)
    plan.measure()
    assert attempts == [len(plan.layers)] * 3 + [len(plan.networks)]
    monkeypatch.setattr(measuring, "latencies", made_up(MINI, archs, spread=0.5))
    with pytest.raises(ValueError, match=r"spread by 50 % or .* 10 % is allowed: the machine is b"):
        plan.measure()


def test_a_machine_whose_pace_varies_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = measurement(MINI, TORCH)
    steady = made_up(MINI, {arch.id: arch for arch in plan.networks})

    def uneven(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        return {name: one._replace(pace=0.4) for name, one in steady(calls).items()}

    monkeypatch.setattr(measuring, "latencies", uneven)
    with pytest.raises(ValueError, match=r"pace .* varied by 40, 40, 40 % in 3 .* 25 % is allowed"):
        plan.measure()


def unsteady(
    rounds: int, calls: int, *, own: float, draws: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What calls take, and times [rounds, calls] in a pace that changes every hundred calls."""
    typical = draws.uniform(1e-3, 1e-2, calls)
    number = rounds * calls
    knots = np.arange(0, number + 100, 100)
    pace = np.interp(np.arange(number), knots, draws.uniform(0.7, 1.4, len(knots)))
    noise = draws.normal(1.0, own, number)
    return typical, typical * (pace * noise).reshape(rounds, calls)


def test_the_pace_of_the_machine_is_taken_out_of_times() -> None:
    ratios = []
    for seed in range(6):
        typical, seconds = unsteady(20, 64, own=0.02, draws=np.random.default_rng(seed))
        even, pace = at_equal_pace(seconds)
        assert np.median(np.std(np.log(even), axis=0)) < 0.025  # what is left is the calls' own
        assert 0.05 < pace < 0.2
        errors = [np.std(np.log(np.median(one, axis=0) / typical)) for one in (even, seconds)]
        ratios.append(errors[0] / errors[1])
    assert np.mean(ratios) < 0.7


@pytest.mark.parametrize("calls", [1, 3, 64])
def test_noise_of_the_calls_themselves_is_not_taken_for_pace(calls: int) -> None:
    seconds = np.random.default_rng(0).normal(1.0, 0.1, (60, calls))
    even, pace = at_equal_pace(seconds)
    assert np.std(np.log(even)) > 0.97 * np.std(np.log(seconds))
    assert pace < 0.03


def test_steady_times_stay_as_they_are() -> None:
    seconds = np.tile([[1.0, 2.0, 4.0]], (5, 1))
    even, pace = at_equal_pace(seconds)
    np.testing.assert_allclose(even, seconds, rtol=1e-12)
    assert pace == 0.0
    alone, pace = at_equal_pace(np.array([[0.5]]))
    assert (alone.item(), pace) == (0.5, 0.0)


def test_layers_of_many_turns_are_timed_at_one_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is twice as slow in the second turn as in the first, and so on."""
    plan = measurement(MINI, TORCH)
    monkeypatch.setattr(measuring, "_IN_TURN", 5)
    monkeypatch.setattr(measuring, "_NUM_ANCHORS", 3)
    steady = made_up(MINI, {arch.id: arch for arch in plan.networks})
    turns = []

    def slower(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        turns.append(len(calls))
        found = steady(calls)
        if len(turns) > -(-len(plan.layers) // 5):
            return found  # whole networks
        return {
            key: one._replace(median=one.median * 2 ** len(turns)) for key, one in found.items()
        }

    monkeypatch.setattr(measuring, "latencies", slower)
    found = plan.measure()
    monkeypatch.undo()
    expected = table_of(MINI, monkeypatch)
    assert len(turns) > 2
    assert {key: one.nanoseconds for key, one in found.entries.items()} == pytest.approx(
        {key: one.nanoseconds for key, one in expected.entries.items()}, rel=1e-3
    )


def test_calls_that_a_coarse_clock_does_not_see_are_timed_by_the_wall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time of the process moves in ticks of four milliseconds while a profiler's timer runs."""
    monkeypatch.setattr(time, "process_time", lambda: time.perf_counter() // 0.004 * 0.004)
    found = latencies({"short": lambda: sum(range(100))}, rounds=5)["short"]
    assert 0 < found.median < 0.004


def test_pytorch_has_the_threads_that_are_timed() -> None:
    before, seen = torch.get_num_threads(), []
    latencies({"call": lambda: seen.append(torch.get_num_threads())}, threads=before + 2)
    assert {*seen} == {before + 2}
    assert torch.get_num_threads() == before


def test_boards_whose_processor_has_no_name_are_told_apart() -> None:
    """As Linux describes those of ARM: no `model name`, but the board and the kinds of cores."""
    pi = (
        "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi {}\n"
    )
    four, five = (measuring._named_in(pi.format(number)) for number in (4, 5))
    assert four == "Raspberry Pi 4, CPU implementer 0x41, CPU part 0xd08"
    assert four != five
    assert measuring._named_in("processor\t: 0\nmodel name\t: A 7\nprocessor\t: 1\n") == "A 7"
    assert not measuring._named_in("")


def test_one_thread_is_timed_by_what_the_processor_does() -> None:
    """A pause, such as another program's turn, does not count."""
    from time import sleep

    alone = latencies({"pause": lambda: sleep(0.02)}, rounds=3)["pause"]
    on_the_wall = latencies({"pause": lambda: sleep(0.02)}, rounds=3, threads=2)["pause"]
    assert alone.median < 0.01 < 0.02 <= on_the_wall.median


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory anyway")
def test_a_new_process_is_timed_as_one_that_has_been_running() -> None:
    """What a call frees stays with the process: the next one needs no pages of the system."""
    program = """if True:
        import resource
        import numpy as np
        from prenas.devices.timing import latencies

        def call():
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            [np.ones(4_000_000 // 8) for _ in range(4)]

        for time in (lambda: [call() for _ in range(20)], lambda: latencies({"ones": call})):
            faults = []
            time()
            print((faults[-1] - faults[-10]) // 9)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    before, timed = map(int, done.stdout.split())
    assert before > 900  # of the 3,906 pages of 16 MB
    assert timed < 100


def test_a_table_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = table_of(MINI, monkeypatch)
    write_table(tmp_path / "phone.json", table)
    found = read_table(tmp_path / "phone.json")
    assert found == table
    assert found.digest == table.digest
    document = json.loads((tmp_path / "phone.json").read_text())
    document["entries"][next(iter(document["entries"]))]["nanoseconds"] = -1
    write_edited(tmp_path / "phone.json", document)
    with pytest.raises(ValueError, match=r"phone\.json is damaged .*nanoseconds"):
        read_table(tmp_path / "phone.json")


# --- a budget ------------------------------------------------------------------------------------


def test_a_latency_is_read_and_written_in_milliseconds(in_use: LatencyTable) -> None:
    budgets = parse_budgets(["latency=1.5ms:2ms,params=6M", "latency=10ms", "latency=900us"]).kept
    assert [str(budget) for budget in budgets] == [
        "latency in [1.5ms, 2ms), params <= 6M", "latency <= 10ms", "latency <= 900us",
    ]  # fmt: skip
    assert parse_limits("latency=2ms") == {"latency": 2_000_000}
    assert AXES["latency"].header == "latency, ms"
    assert AXES["latency"].in_words(1_234_567) == "1.235 ms latency"


@pytest.mark.parametrize("amount", ["5", "1ms:5", "5:6ms", "1ms:9ms:5", "5e6"])
def test_nobody_means_nanoseconds(in_use: LatencyTable, amount: str) -> None:
    """A plain 5 is refused; an integer from Python is counted as the costs of evaluations are."""
    with pytest.raises(ValueError, match=r"has no unit: latency needs .*, such as 5ms"):
        parse_budgets([f"latency={amount}"])
    with pytest.raises(ValueError, match=r"'5' has no unit: latency needs .*, such as 5ms"):
        parse_limits("params=6M,latency=5")
    assert parse_limits({"latency": 5_000_000}) == parse_limits("latency=5ms")
    assert str(parse_budgets(["latency=0:5ms"]).kept[0]) == "latency <= 4999999ns"


def test_a_limit_is_milliseconds_that_the_amount_keeps(in_use: LatencyTable) -> None:
    """Rounded up, by less than a microsecond."""
    axis = AXES["latency"]
    assert axis.limit(1_996_871) == "1.997ms"
    assert axis.limit(2_000_000) == "2.000ms"
    for amount in (*range(1, 3_000, 7), 999_999, 1_234_567, 10**12 + 1):
        assert 0 <= axis.parse(axis.limit(amount)) - amount < 1_000


def test_without_a_table_a_latency_says_how_to_get_one() -> None:
    for parse in (lambda: parse_budgets(["latency=10ms"]), lambda: parse_limits("latency=10ms")):
        with pytest.raises(ValueError, match=r"table of times .* `prenas measure`.*--latency FILE"):
            parse()


def budgets_of(table: LatencyTable) -> tuple[str, ...]:
    """Three latencies that networks of the mini space keep, and one that none does."""
    least, most = (table.predict(arch, MINI.settings) for arch in (MINI.smallest, MINI.largest))
    ends = [least + (most - least) * part // 3 for part in (1, 2, 3)]
    return tuple(f"latency={end}ns" for end in (*ends, least // 2))


@pytest.fixture
def run(in_use: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose budgets limit the latency."""
    every = {
        arch.id: arch for seed in range(500) for arch in [MINI.sample(np.random.default_rng(seed))]
    }
    monkeypatch.setattr(measuring, "latencies", made_up(MINI, every))
    recipe = mini_recipe(search={"budgets": budgets_of(in_use)})
    pipeline.search(recipe, tmp_path / "run", device="cpu")
    return Run(tmp_path / "run", device="cpu")


def test_a_search_keeps_latencies_and_measures_what_it_chose(
    run: Run, in_use: LatencyTable
) -> None:
    """The best of all 40 networks that keep each budget, and none for the unreachable one."""
    budgets = parse_budgets(run.recipe.search.budgets).kept
    for number, budget in enumerate(budgets[:3]):
        (chosen,) = [
            run.preferred.subnets[one.subnet]
            for one in run.preferred.choices
            if one.budget == number
        ]
        assert budget.holds(chosen.costs)
    assert run.preferred.empty_budgets == (3,)
    (times,) = recorded_times(run)
    assert times.conditions == in_use.conditions
    for subnet, timed in zip(run.preferred.subnets, times.subnets, strict=True):
        assert timed.predicted == subnet.costs["latency"]
        assert timed.nanoseconds == pytest.approx(true_nanoseconds(subnet.arch, MINI), abs=1)
        assert timed.error == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("nanoseconds", [0, -1, 10**30, "x", None, True])
def test_a_time_that_nothing_takes_is_named(run: Run, nanoseconds: object) -> None:
    """Of zero, the error of the prediction was a division by zero."""
    path = run.folder / artifacts.MEASURED
    document = json.loads(path.read_text())
    document["times"][0]["subnets"][0]["nanoseconds"] = nanoseconds
    write_edited(path, document)
    with pytest.raises(ValueError, match=r"measured\.json is damaged .*nanoseconds: "):
        recorded_times(Run(run.folder))


def test_damaged_times_are_refused_before_anything_is_timed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("prenas.devices.whole"), "time_networks", never)
    (run.folder / artifacts.MEASURED).write_text("{}")
    with pytest.raises(ValueError, match=r"measured\.json"):
        measure_run(Run(run.folder), get_engine("torch", batch=1))


def test_a_run_keeps_its_table(run: Run, in_use: LatencyTable) -> None:
    """Later commands count as the search did, without the file that it was given."""
    use_table(None)
    assert Run(run.folder).preferred == run.preferred
    assert table_in_use() == in_use
    ours = in_use.conditions
    for change, difference in (
        ({"space": "another"}, r"\(torch, 1 thread, batches of 1; mini, .*; another, "),
        ({"conditions": ours.model_copy(update={"threads": 2})}, r"1 thread, .*\(torch, 2 threads"),
        (
            {
                "conditions": ours.model_copy(
                    update={"machine": Machine(processor="ARM", num_cores=8, system="Linux")}
                )
            },
            r"batches of 1; .* cores, .*batches of 1; ARM, 8 cores",
        ),
        ({"conditions": ours.model_copy(update={"versions": {"torch": "1.0"}})}, "1; torch 1.0"),
    ):
        use_table(in_use.model_copy(update=change))
        message = f"counts latencies with its own table .*{difference}"
        with pytest.raises(ValueError, match=message):
            Run(run.folder)
    use_table(None)


def test_runs_with_different_tables_are_read_side_by_side(
    run: Run, in_use: LatencyTable, tmp_path: Path
) -> None:
    """Each counts with its own, and the process goes on with the one that it used."""
    other, another = tmp_path / "other", in_use.model_copy(update={"space": "another"})
    shutil.copytree(run.folder, other)
    write_table(other / artifacts.LATENCY, another)
    page = pipeline.page([run.folder, other], tmp_path / "page.html").read_text()
    assert '"2 runs compared"' in page
    assert table_in_use() == in_use
    use_table(None)
    pipeline.page(other)
    assert table_in_use() is None
    with counting_as(other):
        assert table_in_use() == another


def test_a_run_is_a_source_beside_another_table(run: Run, in_use: LatencyTable) -> None:
    pipeline.train(run.folder, device="cpu")
    use_table(another := in_use.model_copy(update={"space": "another"}))
    assert read_source(run.folder).archs == run.subnets.archs
    assert table_in_use() == another
    use_table(None)
    pipeline.evaluate(run.folder, device="cpu")
    use_table(None)
    smallest = min(run.preferred.subnets, key=lambda subnet: subnet.costs["latency"])
    limit = {"latency": smallest.costs["latency"]}
    assert read_source(run.folder, limits=limit).archs == (smallest.arch,)


def test_a_search_that_was_killed_after_its_table_is_continued(
    run: Run, in_use: LatencyTable, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    out.mkdir()
    write_table(out / artifacts.LATENCY, in_use)
    assert pipeline.search(run.recipe, out, device="cpu") == run.preferred


def test_without_a_table_its_runs_say_what_is_missing(run: Run) -> None:
    use_table(None)
    (run.folder / artifacts.LATENCY).unlink()
    with pytest.raises(ValueError, match="needs a table of times"):
        _ = Run(run.folder).preferred


def test_networks_that_nobody_measured_have_no_latency(in_use: LatencyTable) -> None:
    space = timm_space("test_resnet", 64)
    assert set(count(space.largest, space)) == {"params", "macs", "relative_macs"}
    tables = cost_tables(space, None)
    assert tables.cost(space.extreme(-1))[-1] == 0
    recipe = searching_recipe(space, ["params=200k"])
    assert "latency" not in zero_cost_search(recipe).preferred.subnets[0].costs
    with pytest.raises(ValueError, match="not all in the table: measure it as it is searched"):
        zero_cost_search(searching_recipe(space, ["latency=1ms"]))
    with pytest.raises(ValueError, match="does not know all layers"):
        in_use.predict(space.largest, space.settings)


def test_a_budget_is_refused_if_any_layer_was_not_measured(in_use: LatencyTable) -> None:
    """Also one that the largest network lacks: it would count as nothing."""
    wider = MINI.model_copy(update={"mlp_ratio": (0.5, *MINI.mlp_ratio)})
    assert "latency" in count(wider.largest, wider)
    limit = AXES["latency"].format(10**9)
    with pytest.raises(ValueError, match="not all in the table: measure it as it is searched"):
        zero_cost_search(searching_recipe(wider, [f"latency={limit}"]))
    zero_cost_search(searching_recipe(MINI, [f"latency={limit}"]))


@pytest.mark.parametrize("budget", ["latency=10ms", "latency=50%"])
def test_a_cut_whose_layers_were_not_measured_is_refused(
    budget: str, in_use: LatencyTable, cut_source: Source, cut_pictures: Path
) -> None:
    with pytest.raises(ValueError, match=r"limits the latency of .*not all in the table: measure"):
        cut_plan(cut_source, str(cut_pictures), [budget], image_size=40)


def test_subnets_are_measured_again_in_another_engine(run: Run) -> None:
    measure_run(run, Engine("torch", threads=2))
    first, second = recorded_times(run)
    assert [one.conditions.threads for one in (first, second)] == [1, 2]
    assert [one.predicted for one in second.subnets] == [None] * len(run.preferred.subnets)
    measure_run(run, Engine("torch", threads=2))
    assert len(recorded_times(run)) == 2


# --- commands ------------------------------------------------------------------------------------


SPACE = """
family: vit
name: small
embed_dim: 8
depth: 2
num_heads: [1, 2]
mlp_ratio: [1, 2]
supernet_embed_dim: 8
settings: {image_size: 8, in_chans: 1, num_classes: 10, patch_size: 4, head_dim: 4}
"""


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a space file, in which commands run, and times that are made up."""
    (tmp_path / "small.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)

    def timed(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        found = {}
        for name, call in calls.items():
            module = call.args[0]
            alone = isinstance(module, blocks._Alone)
            if alone:
                layers = [module.layer]
            elif isinstance(module, VisionTransformer):
                layers = list(module.blocks)
            else:  # of timm
                layers = [module.layer1[0], module.layer2[0], module.layer3[0], module.layer4[0]]
            seconds = sum(map(seconds_of_layer, layers)) + (0 if alone else 1e-3)
            found[name] = Latency(seconds, 0.0, (seconds, seconds))
        return found

    monkeypatch.setattr(measuring, "latencies", timed)
    yield tmp_path
    use_table(None)


def test_the_commands_from_a_space_to_a_subnet(prenas_command: Command, at_home: Path) -> None:
    planned = prenas_command("measure", "small.yaml", "--dry-run")
    assert planned.status == 0, planned.err
    assert "torch, 1 thread, batches of 1: 4 kinds of layers and " in planned.out
    assert not list(at_home.glob("*.json"))
    measured = prenas_command("measure", "small.yaml", "--out", "mine.json")
    assert measured.status == 0, measured.err
    assert "smallest, ms" in measured.out
    again = prenas_command("measure", "small.yaml", "--out", "mine.json")
    assert "holds these times already" in again.out
    searching = ("search", "--space", "small.yaml", "--out", "run", "--latency", "mine.json")
    found = prenas_command(*searching, "--budget", "latency=1.04ms")
    assert found.status == 0, found.err
    assert "latency, ms" in found.out
    assert "predicted" in found.out
    assert "another pace" not in found.out
    too_little = prenas_command(
        "search", "--space", "small.yaml", "--out", "no", "--latency", "mine.json",
        "--budget", "latency=0.1ms",
    )  # fmt: skip
    assert too_little.status == 2
    assert "latency" in too_little.err
    assert not (at_home / "no" / artifacts.RECIPE).exists()
    shown = prenas_command("info", "run")
    assert "latency <= 1.04ms" in shown.out
    before = contents(at_home / "run")
    planned = prenas_command("measure", "run", "--dry-run")
    assert "torch, 1 thread, batches of 1: 1 subnet of run, about 0 seconds" in planned.out
    refused = prenas_command("measure", "run", "--out", "x.json", "--set", "seed=1")
    assert refused.status == 2
    assert (
        "run is a run, whose subnets are measured as they are: leave out --out, --set"
        in " ".join(refused.err.split())
    )
    assert contents(at_home / "run") == before
    assert prenas_command("measure", "run").status == 0


def test_a_table_for_other_classes_does_not_hold_these_times(
    prenas_command: Command, at_home: Path
) -> None:
    assert prenas_command("measure", "small.yaml", "--out", "mine.json").status == 0
    before = (at_home / "mine.json").read_bytes()
    other = prenas_command(
        "measure", "small.yaml", "--out", "mine.json", "--set", "space.settings.num_classes=5"
    )
    assert other.status == 2
    assert "and not all of small as it is asked for" in " ".join(other.err.split())
    assert (at_home / "mine.json").read_bytes() == before


def test_cuts_of_a_trained_network_keep_latencies(
    prenas_command: Command,
    at_home: Path,
    cut_weights: Path,
    cut_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a share of the whole network's latency; smaller images are tried for it as well."""
    source = f"timm/{MODEL}={cut_weights}"
    source_and_images = ("--from", source, "--data", cut_pictures, "--image-size", "40")
    measured = prenas_command("measure", *source_and_images, "--out", "cuts.json")
    assert measured.status == 0, measured.err
    words = [part for field in SHORT for part in ("--set", field)]
    found = prenas_command(
        "run", *source_and_images, "--latency", "cuts.json", "--budget", "latency=80%", *words,
        "--set", "training.epochs=1", "--out", "run", "--threads", "1",
    )  # fmt: skip
    assert found.status == 0, found.err
    run = Run(at_home / "run")
    (subnet,) = run.preferred.subnets
    whole = count(run.recipe.space.largest, run.recipe.space)["latency"]
    assert subnet.costs["latency"] <= 0.8 * whole
    assert "ms latency (80 %)" in run.preferred.budgets[0]
    assert (at_home / "run" / artifacts.LATENCY).exists()
    (row,) = run.evaluations
    assert row.costs == subnet.costs
    refused = prenas_command(
        "run", *source_and_images, "--latency", "cuts.json", "--budget", "latency=0.1ms",
        "--out", "no",
    )  # fmt: skip
    assert refused.status == 2
    assert "cannot be met by cutting" in refused.err


def test_how_much_the_pace_varied_is_said(
    prenas_command: Command, at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = measuring.latencies

    def uneven(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        return {name: one._replace(pace=0.12) for name, one in steady(calls, **others).items()}

    monkeypatch.setattr(measuring, "latencies", uneven)
    measured = prenas_command("measure", "small.yaml", "--out", "mine.json")
    assert "mine.json: the pace of this machine varied by 12 % meanwhile" in measured.out
    assert read_table(at_home / "mine.json").fit.pace == 0.12


@pytest.mark.parametrize(("factor", "words"), [(0.9, "faster than"), (1.25, "slower than")])
def test_another_pace_than_that_of_the_table_is_said(
    factor: float,
    words: str,
    prenas_command: Command,
    at_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = prenas_command("measure", "small.yaml", "--out", "mine.json")
    assert measured.status == 0, measured.err
    steady = measuring.latencies

    def otherwise(calls: Mapping[str, Any], **others: Any) -> dict[str, Latency]:
        return {
            name: one._replace(median=factor * one.median)
            for name, one in steady(calls, **others).items()
        }

    assert "the pace of this machine" not in measured.out
    monkeypatch.setattr(measuring, "latencies", otherwise)
    found = prenas_command(
        "search", "--space", "small.yaml", "--out", "run", "--latency", "mine.json",
        "--budget", "latency=1.03ms", "--budget", "latency=1.04ms",
    )  # fmt: skip
    assert found.status == 0, found.err
    percent = round(100 * abs(1 / factor - 1))
    said = " ".join(found.out.split())
    assert f"All subnets were {words} predicted, by {percent} % in the median" in said


def test_a_table_of_another_machine_is_taken_only_on_request(
    prenas_command: Command, at_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prenas_command("measure", "small.yaml", "--out", "phone.json")
    document = json.loads((at_home / "phone.json").read_text())
    document["conditions"]["machine"]["processor"] = "Phone"
    write_edited(at_home / "phone.json", document)
    searching = (
        "search", "--space", "small.yaml", "--out", "run", "--latency", "phone.json",
        "--budget", "latency=1.04ms",
    )  # fmt: skip
    refused = prenas_command(*searching)
    assert refused.status == 2
    assert "Phone" in refused.err
    assert "--latency-elsewhere" in refused.err
    assert not (at_home / "run").exists()
    taken = prenas_command(*searching, "--latency-elsewhere")
    assert taken.status == 0, taken.err
    assert "are not timed: Phone" in caplog.text
    assert not (at_home / "run" / artifacts.MEASURED).exists()
    kept = prenas_command("measure", "small.yaml", "--out", "phone.json")
    assert kept.status == 2
    assert "under other conditions" in kept.err
    assert "Phone" in (at_home / "phone.json").read_text()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["measure", "tinny"], "tiny"),
        (["measure", "tiny", "--engine", "onnx"], "onnxruntime"),
        (["measure"], "name what to measure"),
        (["measure", "tiny", "--image-size", "64"], "--image-size 64 needs --from"),
        (["search", "digits", "--out", "r", "--budget", "latency=1ms"], "prenas measure"),
        (["search", "digits", "--out", "r", "--latency", "none.json"], "none.json"),
    ],
)
def test_mistakes_are_named(
    words: list[str], named: str, prenas_command: Command, at_home: Path
) -> None:
    found = prenas_command(*words)
    assert found.status == 2
    assert named in found.err


def test_a_plan_is_what_is_measured() -> None:
    """No network of the plan is measured twice, and every one is of the space."""
    plan: Measurement = measurement(MINI, TORCH)
    assert len({arch.id for arch in plan.networks}) == len(plan.networks)
    assert {MINI.smallest, MINI.largest} <= set(plan.networks)
    use_table_of(Path("nowhere"))  # a folder without a table changes nothing
    assert table_in_use() is None
