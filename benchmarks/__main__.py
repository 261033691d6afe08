"""How fast prenas is, as ratios of times measured in the same run; printed and saved.

    python -m benchmarks                       all sections
    python -m benchmarks attention search      some sections
    python -m benchmarks gpu --help            benchmarks for an accelerator
    python -m benchmarks vit --help            a small Vision Transformer, as a source of cuts
    python -m benchmarks dinov2 --help         a Vision Transformer with real weights, as another
    python -m benchmarks pretrained --help     accuracies of cuts of a trained network
    python -m benchmarks cuts --help           cuts against timm's networks; time to choose
    python -m benchmarks devices --help        exported files: speed, size, accuracy
    python -m benchmarks latency --help        latency tables: how well they predict networks
    python -m benchmarks scale --help          how seconds and memory grow with sizes
    python -m benchmarks choice --help         does the choice before training help?
    python -m benchmarks environments --help   models and files where this package is not installed

A section replaces only its own part of results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.paired import ROOT, Options, Section, environment

SECTIONS = ("attention", "supernet", "search", "loader", "arrays", "compiled", "evaluation")
COMMANDS = {
    "gpu": "benchmarks.gpu.command",
    "pretrained": "benchmarks.pretrained",
    "vit": "benchmarks.trained_vit",
    "dinov2": "benchmarks.dinov2",
    "cuts": "benchmarks.cuts",
    "devices": "benchmarks.devices",
    "latency": "benchmarks.latency",
    "scale": "benchmarks.scale",
    "choice": "benchmarks.choice.command",
    "environments": "benchmarks.environments",
}
"""First word -> the module whose `main` takes the others."""


def main() -> None:
    if (module := COMMANDS.get(next(iter(sys.argv[1:]), ""))) is not None:
        try:
            sys.exit(import_module(module).main(sys.argv[2:]))
        except KeyboardInterrupt as stop:  # also a training that was asked to stop, and is saved
            print(str(stop) or "stopped", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11, help="turns per variant")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed.json")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: give at least 1")
    torch.set_num_threads(arguments.threads)
    options = Options(arguments.threads, arguments.rounds)
    for name in arguments.sections or SECTIONS:
        section = import_module(f"benchmarks.{name}").measure(options)
        _print(section)
        if section.ratios:  # otherwise nothing could be measured, and earlier results are kept
            _save(arguments.out, name, section, options)


def _print(section: Section) -> None:
    console = Console()
    table = Table("ratio", "median", "quartiles", "target", "", title=section.title)
    for found in section.ratios:
        low, high = found.quartiles
        met = {None: "", True: "met", False: "missed"}[found.is_met]
        table.add_row(
            found.what + (f" ({found.note})" if found.note else ""),
            f"{found.median:.3f}",
            f"{low:.3f} to {high:.3f}",
            "" if found.target is None else f"at most {found.target:g}",
            met,
        )
    console.print(table)
    for name, value in section.facts.items():
        console.print(
            f"  {name}: {value:,.4g}" if isinstance(value, float) else f"  {name}: {value}"
        )


def _save(path: Path, name: str, section: Section, options: Options) -> None:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found[name] = {**environment(options), **section.to_json()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
