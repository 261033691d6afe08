"""The command: runs the sections one by one, and saves each as soon as it is done."""

from __future__ import annotations

import argparse
import json
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu import attending, feeding, inference, training
from benchmarks.gpu.clock import clean_up
from benchmarks.gpu.sizes import Sizes, full, quick
from benchmarks.paired import ROOT, Options, Section, environment

SECTIONS: Mapping[str, Callable[[Sizes, torch.device], Section]] = {
    "training": training.eager,
    "graph": training.as_graph,
    "attention": attending.measure,
    "sharing": training.sharing,
    "inference": inference.measure,
    "copies": feeding.copies,
    "memory": feeding.in_memory,
    "sandwich": training.sandwich,
    "reading": training.reading,
    "precisions": training.precisions,
    "evaluation": inference.evaluation,
    "loader": feeding.loader,
    "compiled": training.compiled,
    "compiled-large": training.compiled_large,
}
"""In the order in which they run: the slowest come last."""


def main(words: Sequence[str]) -> int:
    """Runs the requested sections; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description="Measures what a training step costs on an accelerator, in under 8 minutes. "
        "Sections that were already measured with the same code on the same device are skipped.",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="run tiny sizes, to check that everything works"
    )
    parser.add_argument(
        "--sections", default=",".join(SECTIONS), help="sections to run, from %(default)s"
    )
    parser.add_argument(
        "--again", action="store_true", help="repeat sections that are already measured"
    )
    parser.add_argument(
        "--out", type=Path, help="default: results/gpu-NAME.json; none with --quick or on a CPU"
    )
    arguments = parser.parse_args(words)
    names = arguments.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device: give --device cpu --quick to try the code")
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("the full sizes need an accelerator: add --quick")
    path = arguments.out
    if path is None and not arguments.quick:
        path = ROOT / "results" / f"gpu-{short_name(torch.cuda.get_device_name())}.json"
    if arguments.quick and path is not None and path.parent == ROOT / "results":
        parser.error("results of --quick are meaningless: give --out another folder")
    return _run(names, torch.device(arguments.device), arguments.quick, arguments.again, path)


def short_name(device: str) -> str:
    """E.g. `h100` of "NVIDIA H100 80GB HBM3"."""
    found = re.search(r"\b[A-Z]{1,3}\d{1,4}\w*\b", device)
    return (found[0] if found else re.sub(r"\W+", "-", device)).lower()


def _run(
    names: Sequence[str], device: torch.device, is_quick: bool, again: bool, path: Path | None
) -> int:
    sizes = quick() if is_quick else full()
    where = environment(Options(torch.get_num_threads(), sizes.plan.turns))
    where["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    failed = []
    for name in names:
        if not again and path is not None and _is_there(path, name, where):
            print(f"{name}: already measured; give --again to repeat it")
            continue
        started = time.perf_counter()
        try:
            with _compiler(sizes):
                section = SECTIONS[name](sizes, device)
        except Exception:  # still run the other sections
            traceback.print_exc()
            failed.append(name)
            continue
        finally:
            clean_up()
        show(section)
        seconds = round(time.perf_counter() - started, 1)
        print(f"  {name}: {seconds} s", flush=True)
        if path is not None:
            _save(path, name, {**where, "seconds": seconds, **section.to_json()})
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _compiler(sizes: Sizes) -> AbstractContextManager[object]:
    """With tiny sizes, graphs are traced but not compiled, which would take minutes."""
    if sizes.backend == "inductor":
        return nullcontext()
    compile_ = torch.compile

    def traced(model: Any = None, **options: Any) -> Any:
        return compile_(model, **{**options, "backend": sizes.backend})

    return patch.object(torch, "compile", partial(traced))


def _is_there(path: Path, name: str, where: Mapping[str, Any]) -> bool:
    if not path.exists():
        return False
    found = json.loads(path.read_text()).get(name, {})
    return all(found.get(key) == where[key] for key in ("commit", "device"))


def _save(path: Path, name: str, section: Mapping[str, Any]) -> None:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found[name] = section
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def show(section: Section) -> None:
    """Prints the ratios with target and limit, then the facts."""
    console = Console(width=160)
    table = Table("ratio", "median", "quartiles", "target", "limit", "", title=section.title)
    for found in section.ratios:
        low, high = found.quartiles
        table.add_row(
            found.what,
            f"{found.median:.3f}",
            f"{low:.3f} to {high:.3f}",
            "" if found.target is None else f"at most {found.target:g}",
            found.limit,
            {None: "", True: "met", False: "missed"}[found.is_met],
        )
    console.print(table)
    for name, value in section.facts.items():
        console.print(f"  {name}: {_as_text(value)}", highlight=False)


def _as_text(value: Any) -> str:
    """Times in one line; only the largest of several shares."""
    if not isinstance(value, dict):
        return str(value)
    if "ms" in value:
        whole, host = value["ms"], value["ms of the process"]
        low, high = whole["lower quartile"], whole["upper quartile"]
        return f"{whole['median']:.4g} ms ({low:.4g} to {high:.4g}), process {host['median']:.4g}"
    return ", ".join(f"{share:.0%} {name[:40]}" for name, share in list(value.items())[:4])
