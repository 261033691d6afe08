"""Exported files: how fast, how large, how much of the accuracy is left.

    python -m benchmarks devices                     ratios, in results/devices.json
    python -m benchmarks devices --model runs/mine/subnets/02    int8 forms of a model of your own

Networks take turns in one process, one thread, batch 1; ratios are those of medians. `plain` is the
same Vision Transformer with timm's attention instead of relative positions.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.networks import fused, published, some_images, without_relative_positions
from benchmarks.paired import ROOT, Options, environment
from prenas.devices.exporting import export
from prenas.devices.formats import FORMATS, get_format
from prenas.devices.timing import latencies
from prenas.families import build, family_of, get_space
from prenas.models.export import read_description
from prenas.randomness import torch_generator

_PACKAGES = ("torch", "onnxruntime", "openvino", "nncf")


def main(words: Sequence[str] | None = None) -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks devices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="a handed-over model inside its run")
    parser.add_argument("--rounds", type=int, default=40, help="turns per variant")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "devices.json")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    document: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    conditions = {
        **environment(Options(threads=1, rounds=given.rounds)),
        "versions": {name: version(name) for name in _PACKAGES},
    }
    if given.model is None:
        document |= {**conditions, "vit": vit(given.rounds), "mobilenet": mobilenet(given.rounds)}
    else:
        name = read_description(given.model).arch.summary
        forms = int8_forms(given.model)
        document.setdefault("int8", {})[name] = {**conditions, "forms": forms}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    print_document(document)


def vit(rounds: int) -> dict[str, Any]:
    """The smallest published subnet of `tiny`, as it is and as it is exported, against `plain`."""
    arch, settings = published(0)
    ours, plain = fused(arch, settings).eval(), without_relative_positions(arch, settings).eval()
    deployed = family_of(arch).deployed(ours)
    images, _ = some_images(1, settings)
    return _compared({"ours": ours, "deployed": deployed, "plain": plain}, "plain", images, rounds)


def mobilenet(rounds: int) -> dict[str, Any]:
    """The smallest network of the space `mobilenet` in each engine, as it is and as exported."""
    space = get_space("mobilenet")
    network = build(space.smallest, space.settings)
    family_of(space.smallest).initialize(network, torch_generator(0, "weights"))
    deployed = family_of(space.smallest).deployed(network.eval())
    images, _ = some_images(1, space.settings)
    return _compared({"ours": network, "deployed": deployed}, "ours", images, rounds)


def _compared(
    networks: dict[str, nn.Module], against: str, images: Tensor, rounds: int
) -> dict[str, Any]:
    """Times of every network in every engine, in turn; sizes and nodes of the ONNX files."""
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, Any] = {"nodes": {}, "megabytes": {}, "parameters_megabytes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks.items():
            calls[f"torch {name}"] = _eager(network, images)
            weights = sum(p.numel() * p.element_size() for p in network.parameters())
            found["parameters_megabytes"][name] = round(weights / 1e6, 2)
            for kind in FORMATS:
                if kind == "torch":
                    continue
                form = get_format(kind)
                path = Path(folder) / f"{name}-{form.file}"
                plan = form.plan(None)
                form.write(network, torch.cat([images] * (plan.batch or 2)), path, plan)
                run, pixels = form.open(path, 1), images.numpy()
                calls[f"{form.engine} {name}"] = lambda run=run, pixels=pixels: run(pixels)
                if kind == "onnx":
                    found["nodes"][name] = len(onnx.load(path).graph.node)
                    found["megabytes"][name] = round(path.stat().st_size / 1e6, 2)
        times = latencies(calls, rounds=rounds)
    found["milliseconds"] = {name: round(1000 * one.median, 3) for name, one in times.items()}
    found["spread"] = round(max(one.spread for one in times.values()), 3)
    engines = dict.fromkeys(name.split()[0] for name in times)
    found["ratios"] = {
        f"{engine}: {name} / {against}": round(
            times[f"{engine} {name}"].median / times[f"{engine} {against}"].median, 3
        )
        for engine in engines
        for name in networks
        if name != against
    } | {
        f"{engine} / torch: {name}": round(
            times[f"{engine} {name}"].median / times[f"torch {name}"].median, 3
        )
        for engine in engines
        if engine != "torch"
        for name in networks
    }
    return found


def _eager(network: nn.Module, images: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.inference_mode():
            network(images)

    return call


def int8_forms(model: Path) -> dict[str, Any]:
    """Every int8 form of a model: size and latency relative to float32, and accuracy lost."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in FORMATS:
            plain = export(model, kind, out=Path(folder) / kind).card
            found[kind] = {"agreement": plain.agreement.model_dump(mode="json")}
            for form in get_format(kind).quantizers:
                out = Path(folder) / f"{kind}-{form}"
                card = export(model, kind, int8=form, out=out, most_drop=1.0).card
                times, top1 = card.milliseconds, card.agreement
                assert top1.top1 is not None
                assert top1.top1_of_network is not None
                found[f"{kind} {form}"] = {
                    "size": round(card.size_bytes / plain.size_bytes, 3),
                    "latency": round(times["int8"] / times["float32"], 3),
                    "points_lost": round(100 * (top1.top1_of_network - top1.top1), 2),
                    "same_class": round(top1.same_class, 4),
                    "images": top1.num_images,
                }
    return found


def print_document(document: dict[str, Any]) -> None:
    """Prints all ratios."""
    table = Table("what", "ratio")
    for section in ("vit", "mobilenet"):
        for name, ratio in document.get(section, {}).get("ratios", {}).items():
            table.add_row(f"{section}, {name}", f"{ratio:.2f}")
    Console().print(table)
    for model, found in document.get("int8", {}).items():
        table = Table(model, "size", "latency", "points lost")
        for form, row in found["forms"].items():
            if "size" in row:
                cells = [f"{row[key]:.2f}" for key in ("size", "latency", "points_lost")]
                table.add_row(form, *cells)
        Console().print(table)
