"""Measuring how long the networks of a space take, on this machine, in one engine.

Every kind of layer is timed alone, with the input that it gets in a network. A few whole networks
are timed as well. What they take beside their layers, and how far layers in a network differ from
layers alone, follows from a fit: the time of a network is a constant, plus a factor times the sum
over its layers, plus factors times the multiply-accumulates of its stem, of its head and, if it
resizes its images, of doing so, plus a constant for each layer if that predicts networks better.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import median
from typing import NamedTuple, get_args

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from prenas.cost import Part, bounded_axis, parts_of
from prenas.devices.blocks import Block, blocks_of, example_images, network_of
from prenas.devices.formats import Format, Plan, Written, get_format
from prenas.devices.timing import MOST_PACE, MOST_SPREAD, Latency, latencies
from prenas.families import family_of, shapes_by_role
from prenas.families.base import Arch, SearchSpace, StageChoice
from prenas.latency import (
    Conditions,
    Entry,
    Fit,
    LatencyTable,
    Machine,
    Precision,
    resizing_macs,
    signature,
)
from prenas.proxy.layout import probed_parts
from prenas.proxy.scores import Floats
from prenas.randomness import numpy_generator
from prenas.values import unknown_name

ENGINES: Mapping[str, str | None] = {"torch": None, "onnxruntime": "onnx", "openvino": "openvino"}
"""Name of an engine -> the format that it runs; None for networks as they are."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_INT8_FORM = "static"
_FOLDER = "prenas-timing-"

_NUM_NETWORKS = 24
_LAYER_SECONDS = 1e-3
_NETWORK_SECONDS = 2e-3
_LAYER_ROUNDS, _NETWORK_ROUNDS = 20, 40
_IN_TURN = 64  # layers that are timed in turn
_NUM_ANCHORS = 8  # layers that are timed in every turn
_MOST_ATTEMPTS = 3
_NUM_REHEARSED = 6
_MOST_OPTIONS, _NUM_MEASURED = 8, 5
"""Of a layer with one axis and more options than this, so many are measured."""

_OF_LAYERS = [1, 2, 3]
"""The places of their seconds, their number and their parameters in what the time of a network is a
sum of."""
_LEFT_OUT = ((), (2,), (3,), (2, 3))
"""The places of what may be left out of that sum: in some spaces and engines the number of layers
or of parameters says nothing more than the seconds. The form that predicts best is taken."""
_LEAST_SHARE = 0.01
"""Layers take a larger share than this of the time of some network, or nothing was measured."""

_SCATTER = 0.25
"""Deviation of a network's options from its level."""

Progress = Callable[[str, int, int], None]
"""Is told (what is measured, how many are done, how many there are)."""


class Engine(NamedTuple):
    """What runs networks, and how."""

    name: str
    threads: int = 1
    batch: int = 1
    precision: Precision = "float32"

    @property
    def deploys(self) -> bool:
        """Whether it runs files, which are written from the deployed form."""
        return ENGINES[self.name] is not None

    @property
    def conditions(self) -> Conditions:
        """What times depend on, for the machine that this is."""
        packages = dict.fromkeys(("prenas", "torch", self.name))
        return Conditions(
            engine=self.name,
            precision=self.precision,
            threads=self.threads,
            batch=self.batch,
            versions={one: version(one) for one in packages},
            machine=Machine(
                processor=_processor(),
                num_cores=os.cpu_count() or 1,
                system=f"{platform.system()} {platform.machine()}",
            ),
        )

    def runner(self, network: nn.Module, images: Tensor) -> Callable[[], object]:
        """A call of a network on these images."""
        if (format_name := ENGINES[self.name]) is None:
            return partial(_applied, network, images)
        found = get_format(format_name)
        with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder:
            path = Path(folder) / found.file
            found.write(network, images, path, Plan(self.batch, None))
            return self._opened(found, Written(path, network, images))

    def layer_runners(self, blocks: Sequence[Block]) -> list[Callable[[], object]]:
        """Calls of layers, each on its example."""
        if (format_name := ENGINES[self.name]) is None:
            return [partial(_applied, block.module, block.example) for block in blocks]
        found = get_format(format_name)
        assert found.write_layers is not None, "engines that are measured write layers"
        with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder:
            paths = [
                Path(folder, found.file).with_stem(f"layer-{number}")
                for number in range(len(blocks))
            ]
            found.write_layers(blocks, paths, Plan(self.batch, None))
            return [
                self._opened(found, Written(path, *block, is_layer=True))
                for path, block in zip(paths, blocks, strict=True)
            ]

    def _opened(self, found: Format, written: Written) -> Callable[[], object]:
        """A call of what was written, on the examples that it was written for."""
        path, pixels = written.path, written.images.numpy()
        if self.precision == "int8":
            # Ranges come from the images that are timed: how long a call takes is the same.
            path = path.with_stem(f"{path.stem}-int8")
            found.quantizers[_INT8_FORM](written, path, lambda: [pixels])
        return partial(found.open(path, self.threads), pixels)


def get_engine(
    name: str, *, threads: int = 1, batch: int = 1, precision: str = "float32"
) -> Engine:
    """An engine by its name.

    Raises:
        ValueError: there is none of this name, it is not installed (the message says how to install
            it), or it does not compute in this precision.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    format_name = ENGINES[name]
    if format_name is not None:
        get_format(format_name)
    elif precision != "float32":
        others = " or ".join(other for other, form in ENGINES.items() if form is not None)
        raise ValueError(f"{name} runs networks in float32: for {precision} choose {others}")
    return Engine(name, threads, batch, precision)


def engine_of(conditions: Conditions) -> Engine:
    """The engine that runs networks in this way, on this machine.

    Raises:
        ValueError: it is not installed.
    """
    return get_engine(
        conditions.engine,
        threads=conditions.threads,
        batch=conditions.batch,
        precision=conditions.precision,
    )


def _applied(network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        network(images)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return _named_in(text) or platform.processor() or platform.machine()


def _named_in(cpuinfo: str) -> str:
    """The processor that Linux describes; on ARM the board and the kinds of its cores."""
    found: dict[str, dict[str, None]] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), {})[value.strip()] = None
    if "model name" in found:
        return next(iter(found["model name"]))
    board = [*found.get("Model", found.get("Hardware", ()))]
    kinds = [name for name in ("CPU implementer", "CPU part") if name in found]
    cores = [f"{name} {'/'.join(found[name])}" for name in kinds]
    return ", ".join(board + cores)


# --- a table -------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One kind of layer, and a network that has it."""

    signature: str
    arch: Arch
    name: str
    """In the plain network, without a dot at its end."""


@dataclass(frozen=True)
class Measurement:
    """What will be measured for the table of a space."""

    space: SearchSpace
    engine: Engine
    layers: tuple[Layer, ...]
    networks: tuple[Arch, ...]
    cells: tuple[tuple[Part, ...], ...]
    """Kinds of layers that differ in one option, or in nothing that a time could lie between."""
    fixed: tuple[Part, ...]
    """What stages have outside their layers."""

    def is_answered_by(self, table: LatencyTable) -> bool:
        """Whether a table holds all of these times."""
        return all(map(table.knows, chain(self.fixed, *self.cells)))

    def seconds(self) -> float:
        """About how long it takes, judged by a few layers and one network."""
        some = self.layers[:: -(-len(self.layers) // _NUM_REHEARSED)]
        started = time.perf_counter()
        calls = self._layer_calls(some)
        _rehearse(calls, self.engine, rounds=_LAYER_ROUNDS, least_seconds=_LAYER_SECONDS)
        layers = (time.perf_counter() - started) / len(some) * len(self.layers)
        return layers + seconds_for_networks(self.space, self.networks, self.engine)

    def measure(self, progress: Progress = lambda what, done, number: None) -> LatencyTable:
        """Measures everything.

        Raises:
            ValueError: the machine is too busy for times that mean anything.
        """
        started = time.perf_counter()
        alone: dict[str, float] = {}
        anchors = self.layers[:: -(-len(self.layers) // _NUM_ANCHORS)]
        every_turn = self._layer_calls(anchors)
        for at in range(0, len(self.layers), _IN_TURN):
            progress("layers", at, len(self.layers))
            others = [one for one in self.layers[at : at + _IN_TURN] if one not in anchors]
            found = self._time_layers(others, every_turn)
            # Some layers are timed every time: they show how fast the machine is meanwhile.
            pace = median(alone.get(key, found[key]) / found[key] for key in every_turn)
            alone |= {key: pace * one for key, one in found.items() if key not in alone}
        progress("networks", 0, len(self.networks))
        times = time_networks(self.space, self.networks, self.engine, progress=progress)
        entries = {key: one for cell in self.cells for key, one in _filled(cell, alone).items()}
        return self._fitted(entries, times, time.perf_counter() - started)

    def _time_layers(
        self, layers: Sequence[Layer], others: Mapping[str, Callable[[], object]] | None = None
    ) -> dict[str, float]:
        """Signature -> seconds, also of other calls that are timed in turn with the layers."""
        times = _steadily(
            {**(others or {}), **self._layer_calls(layers)},
            self.engine,
            rounds=_LAYER_ROUNDS,
            least_seconds=_LAYER_SECONDS,
        )
        return {key: one.median for key, one in times.items()}

    def _layer_calls(self, layers: Sequence[Layer]) -> dict[str, Callable[[], object]]:
        blocks: dict[str, Block] = {}
        settings, engine = self.space.settings, self.engine
        images = example_images(settings, engine.batch)
        for arch in dict.fromkeys(layer.arch for layer in layers):
            found = {layer.name: layer.signature for layer in layers if layer.arch == arch}
            network = network_of(arch, settings, deploys=engine.deploys)
            blocks |= zip(found.values(), blocks_of(network, found, images), strict=True)
        return dict(zip(blocks, engine.layer_runners([*blocks.values()]), strict=True))

    def _fitted(
        self, entries: Mapping[str, Entry], times: Sequence[Latency], seconds: float
    ) -> LatencyTable:
        """The table whose sums are nearest to the times of the whole networks."""
        features = np.array([self._features(arch, entries) for arch in self.networks])
        measured = np.array([one.median for one in times])
        fits = []
        for left_out in _LEFT_OUT:
            kept = features.copy()
            kept[:, left_out] = 0.0
            factors = _factors(kept, measured)
            if _share_of_layers(kept, factors) > _LEAST_SHARE:
                fits.append((_fit(kept, measured, times), factors))
        if not fits:
            raise ValueError(
                "the times of whole networks do not follow from those of their layers: the "
                "machine is too busy, so measure again when it is idle"
            )
        fit, factors = min(fits, key=lambda found: found[0].median_error)
        constant, per_second, per_layer, per_parameter, per_resizing, *per_mac = factors
        num_parameters = {signature(part): _num_parameters(part) for part in chain(*self.cells)}
        scaled = {}
        for key, one in entries.items():
            more = 1e9 * (per_layer + per_parameter * num_parameters[key])
            in_network = round(one.nanoseconds * per_second + more)
            scaled[key] = one.model_copy(update={"nanoseconds": in_network})
        last = len(self.space.chain) - 1
        for part in self.fixed:
            stage, macs = part.work.role.stage, part.work.macs
            own = per_mac[stage] * macs
            if stage == last:  # every network has its classifier there
                own += constant + per_resizing * resizing_macs(part.arch, part.settings)
            scaled[signature(part)] = Entry(nanoseconds=round(1e9 * own), macs=macs, measured=False)
        return LatencyTable(
            conditions=self.engine.conditions,
            space=self.space.name,
            fit=fit,
            seconds=round(seconds, 1),
            entries=scaled,
        )

    def _features(self, arch: Arch, entries: Mapping[str, Entry]) -> list[float]:
        """What the time of a network is a sum of: [1, seconds of layers, number of layers, their
        parameters, MACs of resizing, MACs of each stage].

        A layer alone finds its parameters in the caches. In a network they come from memory.
        """
        seconds, depth, parameters, macs = 0.0, 0, 0, [0.0] * len(self.space.chain)
        for part in _parts(arch, self.space):
            if part.work.role.layer is None:
                macs[part.work.role.stage] += part.work.macs
            elif not part.is_absent:
                seconds += 1e-9 * entries[signature(part)].nanoseconds
                depth += 1
                parameters += _num_parameters(part)
        resizing = resizing_macs(arch, self.space.settings)
        return [1.0, seconds, depth, parameters, resizing, *macs]


def _num_parameters(part: Part) -> int:
    return bounded_axis("params").of_part(part)


def measurement(space: SearchSpace, engine: Engine) -> Measurement:
    """What to measure for the table of a space."""
    family, side = family_of(space), space.scored_resolution
    layers: dict[str, Layer] = {}
    cells: dict[object, dict[str, Part]] = {}
    fixed: dict[str, Part] = {}
    for resolution in space.resolutions:
        for probe, part in probed_parts(space, resolution or side):
            key, (stage, layer) = signature(part), part.work.role
            if layer is None:
                fixed.setdefault(key, part)
            elif not part.is_absent:
                prefix = family.stage_names(part.arch)[stage].layers[layer]
                layers.setdefault(key, Layer(key, part.arch, prefix.removesuffix(".")))
                is_one = len(space.chain[stage].axes) == 1
                ends = probe.widths[stage : stage + 2]
                cell = (resolution, stage, layer > 0, ends) if is_one else key
                cells.setdefault(cell, {})[key] = part
    kept = {key for cell in cells.values() for key in _to_measure(cell)}
    return Measurement(
        space,
        engine,
        tuple(sorted((layers[key] for key in kept), key=lambda one: (one.arch.id, one.name))),
        _networks(space),
        tuple(tuple(cell.values()) for cell in cells.values()),
        tuple(fixed.values()),
    )


def _parts(arch: Arch, space: SearchSpace) -> Iterator[Part]:
    return parts_of(arch, space.settings, shapes_by_role(arch, space.settings))


def _to_measure(cell: Mapping[str, Part]) -> list[str]:
    """All kinds of layers in a cell; of many the smallest, the largest and some between."""
    rising = sorted(cell, key=lambda key: cell[key].work.macs)
    if len(rising) <= _MOST_OPTIONS:
        return rising
    places = np.linspace(0, len(rising) - 1, _NUM_MEASURED).round().astype(int)
    return [rising[place] for place in places]


def _filled(cell: Sequence[Part], seconds: Mapping[str, float]) -> dict[str, Entry]:
    """The times of all kinds of layers in a cell; those between measured ones by interpolation."""
    macs = {signature(part): part.work.macs for part in cell}
    known = sorted((macs[key], seconds[key]) for key in macs if key in seconds)
    amounts, times = [amount for amount, _ in known], [one for _, one in known]
    found = {}
    for key, amount in macs.items():
        between = float(np.interp(amount, amounts, times))
        own = seconds.get(key, between)
        found[key] = Entry(nanoseconds=round(1e9 * own), macs=amount, measured=key in seconds)
    return found


def _networks(space: SearchSpace) -> tuple[Arch, ...]:
    """The smallest and the largest network, and others of all sizes between."""
    found = dict.fromkeys([space.smallest, space.largest])
    sides = space.resolutions
    for number in range(_NUM_NETWORKS - len(found)):
        draws = numpy_generator(0, "timed networks", number)
        level = number / (_NUM_NETWORKS - 3)
        side = sides[int(draws.integers(len(sides)))]
        found[space.compose(_near(space, level, draws), side)] = None
    return tuple(found)


def _near(space: SearchSpace, level: float, draws: np.random.Generator) -> tuple[StageChoice, ...]:
    """Choices around a level between the smallest (0) and the largest option (1)."""

    def place(number: int) -> int:
        drawn = draws.normal(level, _SCATTER) * (number - 1)
        return int(np.clip(round(drawn), 0, number - 1))

    choices = []
    for stage in space.chain:
        depth = stage.depths[place(len(stage.depths))]
        options = []
        for axis in stage.axes:
            drawn = [place(len(axis.options)) for _ in range(depth)]
            options.append(tuple(drawn[:1] * depth if stage.tied else drawn))
        choices.append(StageChoice(place(len(stage.widths)), depth, tuple(options)))
    return tuple(choices)


def _factors(features: Floats, seconds: Floats) -> Floats:
    """What each feature is worth, at least 0, by the smallest squares of relative errors."""
    scale = np.where(features.any(axis=0), np.abs(features).max(axis=0), 1.0)
    found, _ = scipy.optimize.nnls(features / scale / seconds[:, None], np.ones(len(seconds)))
    return np.asarray(found / scale)


def _share_of_layers(features: Floats, factors: Floats) -> float:
    """The largest share of a network's time that its layers take."""
    parts = features * factors
    return float((parts[:, _OF_LAYERS].sum(axis=1) / parts.sum(axis=1)).max())


def _fit(features: Floats, seconds: Floats, times: Sequence[Latency]) -> Fit:
    """How well each network is predicted from all others."""
    predicted = np.array(
        [
            features[one] @ _factors(np.delete(features, one, 0), np.delete(seconds, one))
            for one in range(len(seconds))
        ]
    )
    errors = np.abs(predicted / seconds - 1)
    correlation = None
    if len(seconds) > 2 and np.ptp(seconds) > 0 and np.ptp(predicted) > 0:
        correlation = float(scipy.stats.spearmanr(predicted, seconds).statistic)
    return Fit(
        num_networks=len(seconds),
        median_error=float(np.median(errors)),
        worst_error=float(errors.max()),
        rank_correlation=correlation,
        noise_floor=median(abs(a - b) / one.median for one in times for a, b in [one.halves]),
        pace=max(one.pace for one in times),
    )


# --- whole networks ------------------------------------------------------------------------------


def time_networks(
    space: SearchSpace,
    archs: Sequence[Arch],
    engine: Engine,
    progress: Progress = lambda what, done, number: None,
) -> list[Latency]:
    """Times whole networks of random weights, in turn.

    Raises:
        ValueError: the machine is too busy.
    """
    times = _steadily(
        _network_calls(space, archs, engine, progress),
        engine,
        rounds=_NETWORK_ROUNDS,
        least_seconds=_NETWORK_SECONDS,
    )
    return [times[arch.id] for arch in archs]


def _network_calls(
    space: SearchSpace,
    archs: Sequence[Arch],
    engine: Engine,
    progress: Progress = lambda what, done, number: None,
) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    images = example_images(space.settings, engine.batch)
    for number, arch in enumerate(archs):
        progress("networks", number, len(archs))
        network = network_of(arch, space.settings, deploys=engine.deploys)
        calls[arch.id] = engine.runner(network, images)
    return calls


def seconds_for_networks(space: SearchSpace, archs: Sequence[Arch], engine: Engine) -> float:
    """About how long `time_networks` takes, judged by the last network."""
    started = time.perf_counter()
    calls = _network_calls(space, archs[-1:], engine)
    _rehearse(calls, engine, rounds=_NETWORK_ROUNDS, least_seconds=_NETWORK_SECONDS)
    return (time.perf_counter() - started) * len(archs)


def _rehearse(
    calls: Mapping[str, Callable[[], object]], engine: Engine, *, rounds: int, least_seconds: float
) -> None:
    """Does what timing does."""
    latencies(calls, rounds=rounds, threads=engine.threads, least_seconds=least_seconds)


def _steadily(
    calls: Mapping[str, Callable[[], object]],
    engine: Engine,
    *,
    rounds: int,
    least_seconds: float,
) -> dict[str, Latency]:
    """Times calls; if they are unsteady, all of them again.

    Raises:
        ValueError: they were unsteady in every attempt.
    """
    spreads, paces = [], []
    for _ in range(_MOST_ATTEMPTS):
        times = latencies(calls, rounds=rounds, threads=engine.threads, least_seconds=least_seconds)
        spreads.append(median(one.spread for one in times.values()))
        paces.append(max(one.pace for one in times.values()))
        if spreads[-1] <= MOST_SPREAD and paces[-1] <= MOST_PACE:
            return times
    if min(spreads) > MOST_SPREAD:
        seen = (
            f"the times of {len(calls)} calls spread by {100 * min(spreads):.0f} % or more around "
            f"their medians in each of {_MOST_ATTEMPTS} attempts, where {100 * MOST_SPREAD:.0f} % "
            "is allowed"
        )
    else:
        listed = ", ".join(f"{100 * one:.0f}" for one in paces)
        seen = (
            f"the pace of this machine varied by {listed} % in {_MOST_ATTEMPTS} attempts, where "
            f"{100 * MOST_PACE:.0f} % is allowed"
        )
    raise ValueError(f"{seen}: the machine is busy, so measure again when it is idle")
