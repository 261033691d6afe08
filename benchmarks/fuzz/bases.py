"""What is damaged: two small runs in four states, and what a user may give with them."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fuzz import judging
from prenas import artifacts
from prenas.cost import Part, parts_of
from prenas.devices.exporting import export
from prenas.devices.whole import RunTimes, SubnetTime
from prenas.families import shapes_by_role
from prenas.families.base import SearchSpace
from prenas.latency import (
    Conditions,
    Entry,
    Fit,
    LatencyTable,
    Machine,
    signature,
    use_table,
    write_table,
)
from prenas.recipe.space_file import read_space
from prenas.runs.run import Run

CLASSES = ("ant", "bee", "cat")
PICTURES = ("p.png", "p.jpg", "p.gif", "p.bmp", "p.tif", "p.webp", "p.ppm")
"""The same picture in every format that Pillow always reads."""

SPACES = {
    "vit": """\
family: vit
embed_dim: [8, 16]
depth: [1, 2]
num_heads: [1, 2]
mlp_ratio: [1, 2]
image_size: 8
in_chans: 3
num_classes: 3
patch_size: 4
head_dim: 4
max_distance: 2
""",
    "conv": """\
family: mobilenet
stem: [8]
stages:
- {width: [8], depth: [1], expand: [1]}
- {width: [8, 16], depth: [1, 2], kernel: [3, 5], expand: [2, 3], stride: 2, se: true}
head: [16, 24]
image_size: 8
in_chans: 3
num_classes: 3
stem_stride: 1
head_expand: 2
""",
}
TABLE = "accuracies.json"
"""Made-up accuracies of networks of the space `vit`, for `prenas bench`."""
SCORES = "scores.json"
"""What `prenas bench` found for it."""
BENCH_OPTIONS = ("--space", "given/vit.yaml", "--scores", "params,entropy", "--batch-size", "4")
SHARDS = "shards"
"""A folder of three of WebDataset's shards."""
EXPORTED = "exported"
"""A folder with an exported file."""
BUDGETS = {"vit": "params=1k:4k:1k", "conv": "macs=50k:200k"}
_SETTINGS = (
    "training.epochs=2",
    "training.batch_size=16",
    "training.checkpoint_steps=1",
    "training.keep_checkpoints=3",
    "training.lr_per_512_images=0.1",
    "training.warmup_epochs=0",
    "search.num_images=8",
    "data.num_workers=0",
    "data.augmentation={}",
    "calibration.num_images=16",
    "calibration.batch_size=8",
    "calibration.while_training=8",
)
STATES = ("finished", "trained", "stopped", "searched")
"""A whole run, one before its evaluation, one in the middle of its training, and one before it."""

CPU = ("--device", "cpu")


class Bases(NamedTuple):
    """Where everything lies."""

    home: Path

    def run(self, family: str, state: str) -> Path:
        """A run folder."""
        return self.home / family / state

    @property
    def given(self) -> Path:
        """Pictures, tars, shards, spaces, tables, an exported file and a released checkpoint, as a
        user might have them."""
        return self.home / "given"


def settings_words() -> tuple[str, ...]:
    """The options that make a training small."""
    return tuple(word for setting in _SETTINGS for word in ("--set", setting))


def run_words(family: str, *, data: str = "given/photos", out: str = "run") -> tuple[str, ...]:
    """The command that made a run, relative to the folder in which cases run."""
    return (
        *("run", "photos", "--space", f"given/{family}.yaml", "--data", data, "--out", out),
        *settings_words(),
        *("--budget", BUDGETS[family], "--threads", "1", *CPU),
    )


def make(home: Path) -> Bases:
    """Makes everything, in seconds."""
    bases = Bases(home)
    _make_given(bases.given)
    work = home / "case" / "work"  # the path at which cases run: a recipe records that of its data
    for family in SPACES:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(bases.given, work / "given")
        done = judging.run(run_words(family), work.parent, seconds=300)
        if done.status != 0:
            raise RuntimeError(f"cannot make the {family} run:\n{done.err}{done.trace}")
        _add_times(work / "run", read_space(bases.given / f"{family}.yaml"))
        for state in STATES:
            shutil.copytree(work / "run", bases.run(family, state))
            _take_back(bases.run(family, state), state)
    model = bases.run("vit", "finished") / artifacts.SUBNETS / "00"
    export(model, out=bases.given / EXPORTED, data=[str(bases.given / "photos")])
    _make_scores(bases.given)
    return bases


def _add_times(folder: Path, space: SearchSpace) -> None:
    """Adds made-up times to a run, as `prenas measure` writes them."""
    table = latency_table(space)
    write_table(folder / artifacts.LATENCY, table)
    times = RunTimes(
        conditions=table.conditions,
        subnets=tuple(
            SubnetTime(arch=arch.id, predicted=1000, nanoseconds=900 + n, spread=0.01)
            for n, arch in enumerate(Run(folder, device="cpu").subnets.archs)
        ),
    )
    document = {"times": [times.model_dump(mode="json")]}
    artifacts.write_json(folder / artifacts.MEASURED, document)
    use_table(None)


def latency_table(space: SearchSpace) -> LatencyTable:
    """A table of another machine, on which every network takes a nanosecond per operation.

    Subnets that are chosen by it are not timed here, which would take longer on a busy machine.
    """
    generator = np.random.default_rng(0)
    archs = [space.smallest, space.largest, *(space.sample(generator) for _ in range(200))]

    def parts() -> Iterator[Part]:
        for arch in dict.fromkeys(archs):
            yield from parts_of(arch, space.settings, shapes_by_role(arch, space.settings))

    return LatencyTable(
        conditions=Conditions(
            engine="torch",
            threads=1,
            batch=1,
            versions={"torch": "0"},
            machine=Machine(processor="made up", num_cores=1, system="none"),
        ),
        space=space.name,
        fit=Fit(
            num_networks=3,
            median_error=0.01,
            worst_error=0.02,
            rank_correlation=1.0,
            noise_floor=0.01,
        ),
        seconds=1.0,
        entries={
            signature(part): Entry(nanoseconds=part.work.macs, macs=part.work.macs, measured=True)
            for part in parts()
        },
    )


def _make_scores(given: Path) -> None:
    work = given.parent / "case" / "work"
    shutil.rmtree(work)
    shutil.copytree(given, work / "given")
    words = ("bench", "proxies", f"given/{TABLE}", *BENCH_OPTIONS, "--out", SCORES, *CPU)
    done = judging.run(words, work.parent, seconds=300)
    if done.status != 0:
        raise RuntimeError(f"cannot make the scores:\n{done.err}{done.trace}")
    shutil.copy(work / SCORES, given / SCORES)


def _take_back(run: Path, state: str) -> None:
    """Removes what a run in this state does not have yet."""
    later = {"trained": 1, "stopped": 2, "searched": 3}.get(state, 0)
    steps = [
        (artifacts.EVALUATION, artifacts.EVALUATION_CSV, artifacts.PLOT, artifacts.REPORT,
         artifacts.CALIBRATION, artifacts.STATISTICS, artifacts.SUBNETS, artifacts.REPORT_PICTURES),
        (artifacts.SUPERNET,),
        (artifacts.CHECKPOINTS, artifacts.METRICS, artifacts.DATA),
    ]  # fmt: skip
    for name in (name for step in steps[:later] for name in step):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if state == "stopped":  # its last step is still to do
        newest, _ = artifacts.find_checkpoints(run / artifacts.CHECKPOINTS)[0]
        shutil.rmtree(run / artifacts.CHECKPOINTS / f"step-{newest:08d}")
    for name in judging.USERS:
        (run / name).write_text("the user's own\n")


# --- given ---------------------------------------------------------------------------------------


def _make_given(given: Path) -> None:
    for colour, name in enumerate(CLASSES):
        (given / "photos" / name).mkdir(parents=True)
        for number in range(10):
            image = picture(10 * colour + number, colour=colour)
            image.save(given / "photos" / name / f"{number}.png")
    for name in PICTURES:
        picture(1000, colour=1).save(given / name)
    tar_of(given / "photos", given / "photos.tar")
    write_shards(given / "photos", given / SHARDS)
    for family, text in SPACES.items():
        (given / f"{family}.yaml").write_text(text)
        write_table(
            given / latency_file(family), latency_table(read_space(given / f"{family}.yaml"))
        )
    artifacts.write_plain_json(given / TABLE, accuracies(given / "vit.yaml"))
    torch.save({"model": released()}, given / "released.pth")


def accuracies(space: Path, num: int = 12) -> dict[str, Any]:
    """A table of different networks of a space, each with accuracies of two names."""
    networks = read_space(space)
    generator = np.random.default_rng(0)
    archs = dict.fromkeys(networks.sample(generator) for _ in range(10 * num))
    rows = [
        {**arch.model_dump(mode="json"), "accuracy": {"first": 50 + n, "second": 90.5 - n}}
        for n, arch in enumerate([*archs][:num])
    ]
    return {"rows": rows}


def picture(key: int, *, colour: int) -> Image.Image:
    """12 x 10 pixels of noise, brighter in one channel."""
    pixels = np.random.default_rng(key).integers(0, 150, (10, 12, 3), dtype=np.uint8)
    pixels[..., colour] += 100
    return Image.fromarray(pixels)


def tar_of(folder: Path, path: Path) -> Path:
    """A tar of class folders."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.png")):
            tar.add(file, arcname=file.relative_to(folder).as_posix())
    return path


def latency_file(family: str) -> str:
    """The name of the latency table of a space."""
    return f"{family}-latency.json"


def write_shards(photos: Path, folder: Path) -> None:
    """Three shards, each with pictures of all classes and their names as labels."""
    folder.mkdir()
    for shard in range(3):
        with tarfile.open(folder / f"photos-{shard}.tar", "w") as tar:
            for file in sorted(photos.rglob(f"[{3 * shard}-{3 * shard + 2}].png")):
                key = f"{file.parent.name}-{file.stem}"
                for name, content in (
                    (f"{key}.png", file.read_bytes()),
                    (f"{key}.cls", file.parent.name.encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def released(width: int = 12, hidden: int = 24, classes: int = 5) -> Mapping[str, Tensor]:
    """A checkpoint with the names and shapes of the authors': one layer, two heads of 4."""
    generator = torch.Generator().manual_seed(0)
    block = {
        "attn.qkv": (24, width), "attn.proj": (width, 8), "attn_layer_norm": (width,),
        "ffn_layer_norm": (width,), "fc1": (hidden, width), "fc2": (width, hidden),
    }  # fmt: skip
    layers = {
        "patch_embed_super.proj": (width, 3, 4, 4), "norm": (width,), "head": (classes, width),
    } | {f"blocks.0.{name}": shape for name, shape in block.items()}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, 5, width)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for one in ("k", "v"):
        for axis in ("v", "h"):
            shapes[f"blocks.0.attn.rel_pos_embed_{one}.embeddings_table_{axis}"] = (8, 4)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
