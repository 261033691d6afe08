"""How seconds and memory grow: with pictures, budgets, subnets and depth.

    python -m benchmarks scale                          every size: about half an hour
    python -m benchmarks scale --most 100000            sets of at most 100,000 pictures: minutes
    python -m benchmarks scale --only folders,depth     some parts

Every row is measured in a process of its own: seconds of processor time, and by how much memory
grew, at most, beyond what the imports take. The slope is that of a line through the logarithms of
the rows' sizes and seconds; `n log n` has the slope that is given beside it. A set of many
pictures consists of names of few files (hard links): listing them is the same, and takes no
space. So an index of shards is made once per size of a shard, and taken over for those that are
the same file under another name.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.paired import ROOT, Options, environment
from prenas.data import open_data
from prenas.data.shards import index_file
from prenas.families import build_shared, get_space
from prenas.families.base import SearchSpace
from prenas.families.vit.space import VitSpace
from prenas.proxy.gains import block_scores
from prenas.proxy.importance import Importance
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.proxy.tables import SpaceTables, space_tables, stage_scores
from prenas.randomness import torch_generator
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe
from prenas.selection.isomers import isomer_gains
from prenas.selection.search import new_supernet
from prenas.selection.select import Candidates
from prenas.training.gradients import GradientBuffer
from prenas.training.subnets import BoundSubnets, num_kept

NAMES = (10_000, 100_000, 1_000_000, 10_000_000)
_PER_FOLDER, _PER_SHARD, _MOST_LINKS = 1_000, 10_000, 50_000
_MOST_LISTED = 1_000_000  # members of new shards: a minute for a million
_MEGABYTE = 1e6
_TOLERANCE = 0.1  # of a slope: processor time varies


class Row(NamedTuple):
    """One size of one thing that grows."""

    size: int
    seconds: float
    megabytes: float
    """The growth of the peak of the process."""


# --- what is measured, each in a process of its own ----------------------------------------------


def folders(size: int, home: Path) -> Callable[[], object]:
    """Listing a set of folders, dividing it, and its fingerprint."""
    root = home / f"folders-{size}"
    num_folders = max(2, size // max(_PER_FOLDER, size // 1000))
    made = iter(_links(home, b"no picture", size, ".jpg"))
    for number in range(num_folders):
        folder = root / f"class-{number:04d}"
        folder.mkdir(parents=True)
        for file, name in _next(made, size // num_folders):
            os.link(file, folder / name)
    return partial(_listed, root)


def new_shards(size: int, home: Path) -> Callable[[], object]:
    """The same for shards that were not read before."""
    return partial(_listed, _shards(size, home))


def known_shards(size: int, home: Path) -> Callable[[], object]:
    """The same for shards of which there is an index."""
    root = _shards(size, home)
    paths = sorted(root.iterdir())
    first = root.parent / "first"
    first.mkdir()
    os.link(paths[0], first / paths[0].name)
    _listed(first)
    index = index_file(first / paths[0].name)
    for path in paths:
        os.link(index, index_file(path))
    return partial(_listed, root)


def budgets(size: int, home: Path) -> Callable[[], object]:
    """The best subnets of so many intervals of parameters in `tiny`, whose scores are known."""
    tables = _tables(get_space("tiny"))
    width = 7_000_000 // size
    chosen = parse_budgets([f"params=5M:{5_000_000 + width * size}:{width}"]).kept
    assert len(chosen) == size, len(chosen)
    return lambda: Candidates(tables).best(chosen, 1)


def subnets(size: int, home: Path) -> Callable[[], object]:
    """A forward and a backward pass of so many subnets of `digits`, whose networks are kept."""
    recipe = get_recipe("digits")
    generator = np.random.default_rng(0)
    archs = {recipe.space.sample(generator) for _ in range(4 * size)}
    chosen = list(archs)[:size]
    supernet = new_supernet(recipe, 0)
    GradientBuffer(supernet.network.parameters())
    bound = BoundSubnets(supernet, most_kept=num_kept(size))
    settings = recipe.space.settings
    images = torch.zeros(8, settings.in_chans, *settings.image_size)

    def turn() -> None:
        for arch in chosen:
            bound(arch)(images, None).sum().backward()  # type: ignore[no-untyped-call]

    return turn


def depth(size: int, home: Path) -> Callable[[], object]:
    """Scoring and choosing for 100 budgets among transformers of up to so many layers."""
    space = VitSpace(
        name="rich",
        embed_dim=(128, 192, 256),
        depth=(size - 2, size),
        num_heads=(1, 2, 3, 4),
        mlp_ratio=(1.0, 2.0, 3.0, 4.0, 5.0),
    )
    importance = _random_importance(space)
    least, most = size * 200_000, size * 800_000
    chosen = parse_budgets([f"params={least}:{most}:{(most - least) // 100}"]).kept
    return lambda: Candidates(_tables(space, importance)).best(chosen, 1)


PARTS: dict[str, tuple[Callable[[int, Path], Callable[[], object]], tuple[int, ...]]] = {
    "folders": (folders, NAMES),
    "new_shards": (new_shards, NAMES),
    "known_shards": (known_shards, NAMES),
    "budgets": (budgets, (10, 100, 1_000, 10_000)),
    "subnets": (subnets, (10, 100, 1_000)),
    "depth": (depth, (12, 24, 36, 48)),
}
"""Name -> (makes the work of a size, the sizes)."""


def _links(home: Path, content: bytes, number: int, ending: str) -> Iterator[tuple[Path, str]]:
    """(file, name for a link to it): a file may have only so many names."""
    for each in range(number):
        file = home / f"linked-{each // _MOST_LINKS}{ending}"
        if each % _MOST_LINKS == 0:
            file.write_bytes(content)
            os.utime(file, (1e9, 1e9))
        yield file, f"{each:08d}{ending}"


def _next(made: Iterator[tuple[Path, str]], number: int) -> Iterator[tuple[Path, str]]:
    return (next(made) for _ in range(number))


def _shards(size: int, home: Path) -> Path:
    root = home / f"shards-{size}"
    root.mkdir()
    each = min(size, _PER_SHARD)
    for file, name in _links(home, _shard(each), size // each, ".tar"):
        os.link(file, root / name)
    os.environ["PRENAS_DATA"] = str(root.parent / f"cache-{size}")
    return root


def _shard(number: int) -> bytes:
    content, num_classes = io.BytesIO(), min(1_000, number // 5)
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for each in range(number):
            for ending, text in ((".jpg", b"no picture"), (".cls", b"%d" % (each % num_classes))):
                member = tarfile.TarInfo(f"{each:06d}{ending}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    return content.getvalue()


def _listed(root: Path) -> str:
    return open_data(DataRecipe(name="folder", root=str(root))).fingerprint


def _tables(space: SearchSpace, importance: Importance | None = None) -> SpaceTables:
    importance = importance or _random_importance(space)
    gains = isomer_gains("published", block_scores(space, importance), 0)
    scores = stage_scores(space, importance, score=PUBLISHED_SCORE)
    return space_tables(space, scores, gains, score=PUBLISHED_SCORE, resolution=None)


def _random_importance(space: SearchSpace) -> Importance:
    network = build_shared(space.supernet, space.settings)
    generator = torch_generator(0, "importances")
    weights, gradients = (
        {n: torch.randn(p.shape, generator=generator) for n, p in network.named_parameters()}
        for _ in range(2)
    )
    return Importance(weights, gradients)


def one_row(part: str, size: int) -> None:
    """Measures one size of one part; prints JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        work = PARTS[part][0](size, Path(home))
        before, started = _peak_megabytes(), time.process_time()
        work()
        row = Row(size, time.process_time() - started, _peak_megabytes() - before)
        sys.stdout.write(json.dumps(row) + "\n")


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE


# --- rows, slopes and results --------------------------------------------------------------------


def measured(part: str, size: int) -> Row:
    """One row, from a process of its own."""
    code = f"from benchmarks.scale import one_row; one_row({part!r}, {size})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{part} of {size:,} failed:\n{done.stderr}")
    return Row(*json.loads(done.stdout.splitlines()[-1]))


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the line through the logarithms: 1 if doubling the size doubles the value."""
    found = np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-6)), 1)
    return float(found[0])


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows of one part, with slopes of seconds and what `n log n` would have."""
    sizes = [row.size for row in rows]
    found: dict[str, Any] = {"rows": [row._asdict() for row in rows]}
    if len(rows) > 1:
        found["slope"] = slope(sizes, [row.seconds for row in rows])
        found["slope of n log n"] = slope(sizes, [n * np.log(n) for n in sizes])
        found["at most n log n"] = found["slope"] <= found["slope of n log n"] + _TOLERANCE
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measures, prints and saves; 1 if something grows faster than n log n."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--most", type=int, default=NAMES[-1], help="pictures in the largest set")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "scale.json")
    options = parser.parse_args(words)
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if options.most < NAMES[0]:
        parser.error(f"--most {options.most}: give at least {NAMES[0]:,}")
    console, is_met = Console(), True
    for part in chosen:
        most = min(options.most, _MOST_LISTED) if part == "new_shards" else options.most
        rows = [measured(part, size) for size in PARTS[part][1] if size <= most]
        found = summary(rows)
        console.print(_table(part, rows, found))
        _save(options.out, part, found)
        is_met &= found.get("at most n log n", True)
    return 0 if is_met else 1


def _table(part: str, rows: Sequence[Row], found: dict[str, Any]) -> Table:
    caption = ""
    if "slope" in found:
        limit = found["slope of n log n"]
        caption = f"slope of seconds {found['slope']:.2f}, of n log n {limit:.2f}"
    table = Table("size", "seconds", "MB more", title=part, caption=caption)
    for row in rows:
        table.add_row(f"{row.size:,}", f"{row.seconds:.3g}", f"{row.megabytes:,.0f}")
    return table


def _save(path: Path, part: str, found: dict[str, Any]) -> None:
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    document[part] = {**environment(Options(threads=1, rounds=1)), **found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
