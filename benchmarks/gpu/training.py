"""Training steps compared with timm's: eager, as a CUDA graph, compiled; and their memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

from benchmarks.gpu.clock import Work, clean_up, peak_bytes
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.steps import (
    BareStep,
    PlainStep,
    captured,
    new_batch,
    new_supernet,
    our_step,
)
from benchmarks.networks import in_literal_form
from benchmarks.paired import Section
from prenas.data import Batch
from prenas.families.base import Arch
from prenas.families.vit import attention
from prenas.families.vit.space import VitArch, VitSettings
from prenas.precision import Precision


def _ours(
    sizes: Sizes,
    batch: Batch,
    device: torch.device,
    *,
    compiled: bool = False,
    graphs: bool = False,
) -> Work:
    archs = sizes.vit.archs[:1]
    return our_step(sizes.vit, archs, batch, device, compiled=compiled, graphs=graphs)


def _rival(sizes: Sizes, batch: Batch, device: torch.device) -> PlainStep:
    network = sizes.rival(sizes.vit.training.drop_path).to(device)
    return PlainStep(network, batch, sizes.vit.training)


def _literal(sizes: Sizes, batch: Batch, device: torch.device) -> PlainStep:
    arch, settings = sizes.vit.archs[0], sizes.vit.settings
    assert isinstance(arch, VitArch)
    assert isinstance(settings, VitSettings)
    network = in_literal_form(arch, settings).to(device)
    return PlainStep(network, batch, sizes.vit.training)


def eager(sizes: Sizes, device: torch.device) -> Section:
    """Steps at both batch sizes, with kernels and memory; the smaller one also in literal form."""
    found = Findings("Training step, eager", device, sizes)
    for size in sizes.batches:
        batch = new_batch(sizes.vit, size, device)
        memory = {
            name: peak_bytes(partial(make, sizes, batch, device), device)
            for name, make in (("ours", _ours), ("timm", _rival))
        }
        for name, held in memory.items():
            found.fact(f"peak memory, batch {size}, {name}, MB", round(held / 1e6, 1))
        found.exactly(
            f"peak memory, ours / timm, batch {size}", memory["ours"] / memory["timm"], target=1.3
        )
        steps: dict[str, Work] = {
            "ours": _ours(sizes, batch, device),
            "timm": _rival(sizes, batch, device),
        }
        if size == sizes.batches[0]:
            steps["literal"] = _literal(sizes, batch, device)
        what = f"training step, batch {size}"
        times = found.times(what, steps)
        found.compare(
            f"{what}: ours / timm",
            times["ours"],
            times["timm"],
            target=1.6,
            limit="1.56 by traffic",
        )
        if "literal" in times:
            found.compare(f"{what}: ours / literal", times["ours"], times["literal"], target=0.6)
        for name, step in steps.items():
            found.kernels(f"{what}, {name}", step)
        del steps
        clean_up()
    return found.section()


def as_graph(sizes: Sizes, device: torch.device) -> Section:
    """The whole step as one CUDA graph: as prenas trains with graphs, and without what surrounds
    the graph there (copies of the batch, rates, results)."""
    found = Findings("Training step as a CUDA graph", device, sizes)
    size, arch = sizes.batches[0], sizes.vit.archs[0]
    batch = new_batch(sizes.vit, size, device)

    def bare() -> BareStep:
        supernet = new_supernet(sizes.vit, device)
        return BareStep(supernet, arch, batch, sizes.vit.training)

    steps: dict[str, Work] = {"ours": _ours(sizes, batch, device), "bare": bare()}
    rival = _rival(sizes, batch, device)
    steps["timm"] = rival

    def with_parts_of_tables() -> Work:
        with patch.object(attention, "attention_with_tables", attention.attention_at_once):
            return bare().captured()

    graphs: dict[str, Callable[[], Work]] = {
        "ours with graphs": lambda: _ours(sizes, batch, device, graphs=True),
        "graph": lambda: bare().captured(),
        "graph, parts of tables": with_parts_of_tables,
        "timm, graph": lambda: captured(again := _rival(sizes, batch, device), again.optimizer),
    }
    for name, make in graphs.items():
        if (graph := found.attempt(f"{name}, batch {size}", make)) is not None:
            steps[name] = graph
    what = f"training step, batch {size}"
    times = found.times(what, steps, sizes.plan.fewer(2))
    found.compare(f"{what}: without reading back / ours", times["bare"], times["ours"])
    if "ours with graphs" in times:
        found.compare(
            f"{what}: ours with graphs / ours",
            times["ours with graphs"],
            times["ours"],
            target=0.6,
            limit="9.5 ms by bandwidth",
        )
        found.compare(f"{what}: ours with graphs / timm", times["ours with graphs"], times["timm"])
    if "graph" in times:
        found.compare(f"{what}: graph / ours", times["graph"], times["ours"])
        found.kernels(f"{what}, graph", steps["graph"])
    if "graph, parts of tables" in times:
        found.compare(
            f"{what}: graph, parts of tables / ours", times["graph, parts of tables"], times["ours"]
        )
        found.kernels(f"{what}, graph, parts of tables", steps["graph, parts of tables"])
    if "timm, graph" in times and "graph" in times:
        found.compare(f"{what}: graph, ours / timm", times["graph"], times["timm, graph"])
    return found.section()


def reading(sizes: Sizes, device: torch.device) -> Section:
    """Results of short steps read one at a time, and up to ten at once, as trainings read them."""
    found = Findings("Results of steps read later", device, sizes)
    subject = sizes.small_set
    batch = new_batch(subject, sizes.batches[0], device)
    steps: dict[str, Work] = {
        "each": our_step(subject, subject.archs[:1], batch, device),
        "ten at once": our_step(subject, subject.archs[:1], batch, device, late=True),
    }
    what = f"small images, batch {sizes.batches[0]}, results read"
    times = found.times(what, steps, sizes.plan.fewer(2))
    found.compare(f"{what}: ten at once / each", times["ten at once"], times["each"])
    return found.section()


def precisions(sizes: Sizes, device: torch.device) -> Section:
    """Training steps in whole float32, with rounded products, and in bfloat16."""
    found = Findings("Precision of a training step", device, sizes)
    names: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
    for subject_name, subject in (("ViT", sizes.vit), ("convolutional", sizes.mobilenet)):
        batch = new_batch(subject, sizes.batches[0], device)
        steps: dict[str, Work] = {}
        for name in names:
            own = subject.training.model_copy(update={"precision": name})
            steps[name] = our_step(replace(subject, training=own), subject.archs[:1], batch, device)
        what = f"{subject_name}, batch {sizes.batches[0]}"
        times = found.times(f"precision, {what}", steps, sizes.plan.fewer(4))
        for name in names[1:]:
            found.compare(f"{what}: {name} / fp32", times[name], times["fp32"])
        del steps
        clean_up()
    return found.section()


def compiled(sizes: Sizes, device: torch.device) -> Section:
    """All steps with torch.compile at the smaller batch, compared with eager steps and graphs."""
    found = Findings("Training step, compiled", device, sizes)
    _compiled_at(found, sizes, sizes.batches[0], device, with_others=True)
    return found.section()


def compiled_large(sizes: Sizes, device: torch.device) -> Section:
    """Our step and timm's at the larger batch."""
    found = Findings("Training step, compiled, larger batch", device, sizes)
    _compiled_at(found, sizes, sizes.batches[1], device, with_others=False)
    return found.section()


def _compiled_at(
    found: Findings, sizes: Sizes, size: int, device: torch.device, *, with_others: bool
) -> None:
    batch, arch = new_batch(sizes.vit, size, device), sizes.vit.archs[0]
    what = f"training step, batch {size}"

    def bare() -> BareStep:
        supernet = new_supernet(sizes.vit, device)
        return BareStep(supernet, arch, batch, sizes.vit.training, compiled=True)

    rival = _rival(sizes, batch, device).compile(sizes.backend)
    makers: dict[str, Callable[[], Work]] = {
        "ours": lambda: _ours(sizes, batch, device, compiled=True),
        "timm": lambda: rival,
    }
    if with_others:
        makers |= {
            "literal": lambda: _literal(sizes, batch, device).compile(sizes.backend),
            "ours, graph": lambda: bare().captured(),
            "ours with graphs": lambda: _ours(sizes, batch, device, compiled=True, graphs=True),
            "timm, graph": lambda: captured(rival, rival.optimizer),
        }
    steps: dict[str, Work] = {}
    for name, make in makers.items():
        started = time.perf_counter()
        if (step := found.attempt(f"compiled, batch {size}, {name}", make)) is not None:
            steps[name] = step
            found.fact(
                f"{what}, {name}: seconds to compile", round(time.perf_counter() - started, 1)
            )
    if with_others:
        steps["ours, eager"] = _ours(sizes, batch, device)
    times = found.times(f"compiled, {what}", steps, sizes.plan.fewer(2))
    for over, under, target, limit in (
        ("ours", "timm", 1.2, "1.1 by MACs"),
        ("ours", "literal", 0.3, ""),
        ("ours", "ours, eager", None, ""),
        ("ours, graph", "ours, eager", None, "9.5 ms by bandwidth"),
        ("ours with graphs", "ours, eager", None, "9.5 ms by bandwidth"),
        ("ours, graph", "timm, graph", None, ""),
    ):
        if over in times and under in times:
            found.compare(
                f"{what}, compiled: {over} / {under}",
                times[over],
                times[under],
                target=target,
                limit=limit,
            )
    if "ours" in steps:
        found.kernels(f"compiled, {what}, ours", steps["ours"])
    if "timm" in steps:
        found.kernels(f"compiled, {what}, timm", steps["timm"])


def sharing(sizes: Sizes, device: torch.device) -> Section:
    """The cost of weight sharing: a subnet in the supernet compared with the same one alone."""
    found = Findings("Supernet step over the step of the subnet cut out", device, sizes)
    size = sizes.batches[0]
    for name, subject in (("ViT", sizes.vit), ("convolutional", sizes.mobilenet)):
        batch, arch = new_batch(subject, size, device), subject.archs[0]
        cut = new_supernet(subject, device).cut(arch)
        steps: dict[str, Work] = {
            "supernet": our_step(subject, [arch], batch, device),
            "cut": PlainStep(cut, batch, subject.training),
        }
        if name == "convolutional":
            last = new_supernet(subject, device).cut(arch).to(memory_format=torch.channels_last)
            steps["cut, weights channels-last"] = PlainStep(last, batch, subject.training)
        what = f"{name}, batch {size}"
        times = found.times(f"{what}, {arch.summary}", steps, sizes.plan.fewer(3))
        found.compare(
            f"{what}: supernet / cut", times["supernet"], times["cut"], target=1.05, limit="1.0"
        )
        for other in ("cut, weights channels-last",):
            if other in times:
                found.compare(f"{what}: {other} / cut", times[other], times["cut"])
        for one in ("supernet", "cut"):
            found.kernels(f"{what}, {one}", steps[one])
        del steps
        clean_up()
    return found.section()


def sandwich(sizes: Sizes, device: torch.device) -> Section:
    """Four subnets in one step compared with four steps of one subnet."""
    found = Findings("Sandwich", device, sizes)
    size = sizes.batches[0]
    archs: list[Arch] = [sizes.vit.archs[number] for number in (-1, 1, 2, 0)]
    batch = new_batch(sizes.vit, size, device)
    single = our_step(sizes.vit, archs, batch, device)

    def four() -> None:
        for _ in archs:
            single()

    steps: dict[str, Work] = {
        "sandwich": our_step(sizes.vit, archs, batch, device, together=True),
        "four": four,
    }
    what = f"four subnets, batch {size}"
    times = found.times(what, steps, sizes.plan.fewer(4))
    found.compare(f"{what}: sandwich / four steps", times["sandwich"], times["four"], target=0.95)
    return found.section()
