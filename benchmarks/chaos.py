"""Kills a command again and again; the result must equal an uninterrupted one bit for bit.

    python -m benchmarks.chaos --kills 100 --warm                  # prenas train
    python -m benchmarks.chaos --kills 100 --warm --step run       # the whole method
    python -m benchmarks.chaos --kills 100 --warm --step all       # each step, one after the other
    python -m benchmarks.chaos --kills 100 --processes 2           # under torchrun
    python -m benchmarks.chaos --kills 100 --warm --recipe mobilenet-micro --step all
    python -m benchmarks.chaos --kills 20 --warm --shards          # pictures read from shards
    python -m benchmarks.chaos --kills 100 --warm --cut            # prenas run --from, all of it

A command of a short run on the digits, which has a checkpoint every three steps and a log record of
every step, is killed at a random moment (SIGKILL to all its processes, as in a power failure), and
started again until it is finished. Then the next folder starts, until the requested number of kills
is reached. Every finished folder is compared with that of an uninterrupted command: all its files,
and no others, so that nothing temporary may be left. Several processes are started with torchrun.
With `--warm`, the processes are forked from one that has already imported everything, and get their
ranks as from torchrun: this is the same command without its start-up time.

The results are written to `results/chaos.json` after every finished folder. The exit status is 1 if
anything differed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # more threads would only make the processes wait

import sklearn.datasets
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.paired import commit_in_use
from prenas import artifacts, cli

RESULTS = Path(__file__).parent.parent / "results" / "chaos.json"
CHANGES = (
    "training.epochs=6",
    "training.checkpoint_steps=3",
    "training.log_steps=1",
    "training.validate_all_epochs=2",
    "training.ema_decay=0.9",
    "training.final_weights=best",
    "data.num_workers=0",
    "calibration.while_training=256",
)
EVOLUTION = (
    "evolution.population=8",
    "evolution.generations=4",
    "evolution.num_parents=4",
    "evolution.num_mutations=3",
    "evolution.num_crossovers=3",
    "evolution.num_images=64",
    "calibration.while_evolving=128",
)
"""Changes in addition, for `prenas evolve`."""
FROM_SHARDS = (
    "data.memory_gib=0",
    "data.num_workers=1",
    "data.augmentation.crop_scale=[0.5,1.0]",
    "data.augmentation.repeats=2",
    "data.augmentation.mixup=0.2",
    "training.batch_size=16",
)
"""Changes in addition, for digits that are read from shards while they are trained on."""
_PER_SHARD, _NUM_SHARDS = 60, 6
SOURCE = "test_efficientnet"
"""The network of timm that `--cut` fine-tunes, scores and cuts."""
CUTS = (
    "adaptation.steps=24",
    "adaptation.checkpoint_steps=3",
    "adaptation.log_steps=1",
    "training.epochs=6",
    "training.checkpoint_steps=3",
    "training.log_steps=1",
    "data.num_workers=0",
)
"""Changes for such a run, which has two trainings in two folders."""
_NUM_PICTURES, _PICTURE_SIZE = 240, 32
STATE, STATE_DIGEST = "state.pt", "state.sha256"
STEPS: dict[str, tuple[str, ...]] = {
    "run": (),
    "search": (),
    "train": ("search",),
    "evolve": ("search", "train"),
    "calibrate": ("search", "train"),
    "evaluate": ("search", "train"),
    "specialize": ("search", "train", "evaluate"),
    "report": ("search", "train", "evaluate"),
}
"""Command that is killed -> the commands before it."""


# --- starting and killing ------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def command(step: str, options: argparse.Namespace, out: Path) -> list[str]:
    """The words of one step of the run."""
    computing = ["--device", "cpu", "--threads", "1"]
    if step == "report":
        return [step, str(out)]
    if step == "specialize":
        return [step, str(out), "--index", "0", *computing]
    if step not in ("run", "search"):
        return [step, str(out), *computing]
    changes = [word for change in changes_of(options) for word in ("--set", change)]
    subject = [options.recipe]
    if options.cut:
        subject = ["--from", f"timm/{SOURCE}={options.weights}", "--image-size", str(_PICTURE_SIZE)]
        subject += ["--budget", "macs=90%", "--budget", "macs=60%"]
    return [step, *subject, "--data", options.data, "--out", str(out), *changes, *computing]


def changes_of(options: argparse.Namespace) -> tuple[str, ...]:
    """What is changed in the recipe."""
    if options.cut:
        return CUTS
    changes = (*CHANGES, *EVOLUTION) if options.step == "evolve" else CHANGES
    return (*changes, *FROM_SHARDS) if options.shards else changes


def write_source(home: Path) -> tuple[Path, Path]:
    """Weights of a small network of timm, and a folder with some of the digits as pictures."""
    torch.manual_seed(0)
    weights, pictures = home / "source.safetensors", home / "pictures"
    save_file(timm.create_model(SOURCE).state_dict(), weights)
    digits = sklearn.datasets.load_digits()
    for number in range(_NUM_PICTURES):
        folder = pictures / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((digits.images[number] * 15.9).astype("uint8"))
        picture.resize((_PICTURE_SIZE, _PICTURE_SIZE)).save(folder / f"{number:04d}.png")
    return weights, pictures


def write_shards(folder: Path) -> str:
    """The first digits as WebDataset's shards; returns a pattern for them."""
    digits = sklearn.datasets.load_digits()
    folder.mkdir()
    for shard in range(_NUM_SHARDS):
        with tarfile.open(folder / f"digits-{shard}.tar", "w") as tar:
            for number in range(shard * _PER_SHARD, (shard + 1) * _PER_SHARD):
                picture = io.BytesIO()
                Image.fromarray((digits.images[number] * 15.9).astype("uint8")).save(picture, "PNG")
                label = str(digits.target[number]).encode()
                for ending, content in (("png", picture.getvalue()), ("cls", label)):
                    member = tarfile.TarInfo(f"{number:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder / f"digits-{{0..{_NUM_SHARDS - 1}}}.tar")


def start(words: list[str], num_processes: int, log: Path) -> int:
    """Starts a command as a user would; returns the process to wait for."""
    launcher = [sys.executable, "-m"]
    if num_processes > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={num_processes}"]
        launcher += [f"--master-port={free_port()}", "-m"]
    with log.open("w") as file:
        return subprocess.Popen(
            [*launcher, "prenas", *words], stdout=file, stderr=file, start_new_session=True
        ).pid


def start_warm(words: list[str], num_processes: int, log: Path) -> int:
    """The same, forked from this process."""
    port = free_port()
    leader = os.fork()
    if leader:
        return leader
    os.setsid()
    ranks = [fork_rank(words, rank, num_processes, port, log) for rank in range(num_processes)]
    os._exit(max(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) != 0 for one in ranks))


def fork_rank(words: list[str], rank: int, world_size: int, port: int, log: Path) -> int:
    process = os.fork()
    if process:
        return process
    descriptor = os.open(log.with_suffix(f".{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if world_size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in ranks.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    sys.argv = ["prenas", *words]
    status = 1
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(status)


def family(process: int) -> Iterator[int]:
    """A process and its descendants; those of torchrun run in separate sessions."""
    yield process
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def has_ended(process: int) -> int | None:
    """The exit status of a child process; None if it is still running."""
    ended, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def mark(out: Path) -> tuple[int, int] | None:
    """A value that changes whenever the log does."""
    try:
        found = (out / artifacts.METRICS).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size


class Rhythm:
    """How long things currently take on this machine; kills are timed by it."""

    start = record = 1.0
    whole = 1.0
    """Seconds of a command that does not train, or of what comes after the training."""


def one_life(
    out: Path, options: argparse.Namespace, dice: random.Random, rhythm: Rhythm, *, log: Path
) -> str | None:
    """Starts the command and kills it; returns what it was doing, None if it ended first.

    A fifth of the trainings are killed while they start, the others at any time up to
    `--records` changes of the log. Whatever does not train is killed at any time of its course.
    """
    last = mark(out)
    words = command(options.step, options, out)
    process = (start_warm if options.warm else start)(words, options.processes, log)
    started = changed = time.monotonic()
    num_awaited = dice.randint(1, options.records)
    is_training = options.step in ("run", "train") and not (out / artifacts.SUPERNET).exists()
    is_training &= not options.cut  # it trains twice, and scores and chooses between
    end = started + dice.uniform(0, rhythm.start) if dice.random() < 0.2 else None
    if not is_training:
        end = started + dice.uniform(0, 1.2 * rhythm.whole)
    num_seen = 0
    while end is None or time.monotonic() < end:
        status = has_ended(process)
        if status is not None:
            if status != 0:
                texts = [one.read_text() for one in sorted(log.parent.glob(f"{log.stem}*"))]
                raise SystemExit(f"the command ended with status {status}:\n" + "\n".join(texts))
            if not is_training:
                rhythm.whole = time.monotonic() - started
            return None
        if end is None and (out / artifacts.SUPERNET).exists():  # what follows has no records
            end = time.monotonic() + dice.uniform(0, rhythm.whole)
        now = time.monotonic()
        if end is None and (found := mark(out)) != last:
            num_seen += 1
            if num_seen == 1:
                rhythm.start = now - started
            else:
                rhythm.record = (rhythm.record + now - changed) / 2
            last, changed = found, now
            if num_seen == num_awaited:
                end = now + dice.uniform(0, 2 * rhythm.record)
        time.sleep(0.0005)
    for one in list(family(process)):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    if not is_training:
        rhythm.whole *= 1.1  # so that it ends some time, even if the machine has become slower
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return None if status == 0 else activity_of(out, is_training)


def activity_of(out: Path, is_training: bool) -> str:
    """What a killed command was doing, judging by its files."""
    temporary = [path.name for path in out.rglob(".*.tmp")]
    if temporary:
        return "in the middle of writing or removing files"
    lines = []
    if not is_training or (out / artifacts.SUPERNET).exists():
        written = [path for path in out.rglob("*") if path.is_file()]
        newest = max(written, key=lambda path: path.stat().st_mtime_ns, default=None)
        return f"after writing {newest.name}" if newest else "before the first file"
    if (out / artifacts.METRICS).exists():
        lines = (out / artifacts.METRICS).read_text().split("\n")
    if len(lines) < 2:
        return "before the first record"
    if lines[-1]:
        return "in the middle of a line of the log"
    return f"after a record of a {json.loads(lines[-2])['event']}"


# --- comparing -----------------------------------------------------------------------------------


def log_of(path: Path) -> list[dict[str, Any]]:
    """The records of a log, without speeds."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in one.items() if k != "images_per_second"} for one in lines]


def is_equal(left: Any, right: Any) -> bool:
    """Whether nested plain values and tensors are equal bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(is_equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(is_equal, left, right))
    return bool(left == right)


def digest_fits(path: Path) -> bool:
    """Whether the digest of a state is that of the file next to it."""
    return path.read_text().strip() == artifacts.sha256(path.with_name(STATE))


def description_of(path: Path) -> dict[str, Any]:
    """An `arch.json` without the commit, which is changed ("dirty") once the results are."""
    described = artifacts.read_json(path)
    described["provenance"].pop("commit")
    return described


def without_speeds(report: Path) -> str:
    return re.sub(r"[\d,]+ images/s", "", report.read_text())


def differences(left: Path, right: Path) -> list[str]:
    """Names of the files that differ between two finished folders; speeds and commits may."""
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*") if path.name != artifacts.LOCK}
        for run in (left, right)  # with their folders
    ]
    found = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        paths = left / name, right / name
        if paths[0].is_dir() and paths[1].is_dir():
            continue
        if name.endswith(STATE):
            same = is_equal(*(torch.load(path, weights_only=True) for path in paths))
        elif name.endswith(STATE_DIGEST):  # of equal values that were pickled in other bytes
            same = all(digest_fits(path) for path in paths)
        elif Path(name).name == artifacts.METRICS:
            same = log_of(paths[0]) == log_of(paths[1])
        elif Path(name).name == artifacts.MODEL_ARCH:
            same = is_equal(*map(description_of, paths))
        elif Path(name).name == artifacts.REPORT:
            same = len({without_speeds(path) for path in paths}) == 1
        else:
            same = paths[0].read_bytes() == paths[1].read_bytes()
        if not same:
            found.append(name)
    return found


def prove_that_differences_are_found(whole: Path, home: Path) -> None:
    """Changes a bit, an optimiser moment, a log number, a file and a folder; all are noticed."""
    changed = home / "changed"
    shutil.copytree(whole, changed)
    weights = artifacts.read_tensors(changed / artifacts.SUPERNET)
    next(one for one in weights.values() if one.ndim).view(torch.uint8).flatten()[0] ^= 1
    save_file(weights, changed / artifacts.SUPERNET)
    path = next(changed.rglob(STATE))
    state = torch.load(path, weights_only=True)
    moments = state["optimizer"]["state"][0].values()
    next(one for one in moments if one.ndim).flatten()[0] += 1e-3
    torch.save(state, path)
    logs = sorted(changed.rglob(artifacts.METRICS))
    for log in logs:
        log.write_text(log.read_text().replace('"step": 7,', '"step": 8,', 1))
    (changed / artifacts.CHECKPOINTS / ".leftover.tmp").touch()
    (changed / artifacts.CHECKPOINTS / ".empty.tmp").mkdir()
    expected = {
        artifacts.SUPERNET,
        str(path.relative_to(changed)),
        str(path.with_name(STATE_DIGEST).relative_to(changed)),
        *(str(log.relative_to(changed)) for log in logs),
        f"{artifacts.CHECKPOINTS}/.leftover.tmp",
        f"{artifacts.CHECKPOINTS}/.empty.tmp",
    }
    assert set(differences(whole, changed)) == expected, "the comparison overlooks differences"
    shutil.rmtree(changed)


# --- measuring -----------------------------------------------------------------------------------


def finish(words: list[str], options: argparse.Namespace, log: Path) -> float:
    """Runs a command without interruption; returns its seconds."""
    started = time.monotonic()
    process = (start_warm if options.warm else start)(words, options.processes, log)
    if os.waitpid(process, 0)[1]:
        texts = [one.read_text() for one in sorted(log.parent.glob(f"{log.stem}*"))]
        raise SystemExit(f"{words[0]} failed:\n" + "\n".join(texts))
    return time.monotonic() - started


def measure(options: argparse.Namespace, home: Path) -> Iterator[dict[str, Any]]:
    """Yields the results so far after every finished folder."""
    commit = commit_in_use()
    before, log, rhythm = home / "before", home / "log", Rhythm()
    # All runs have one path, because it is in some files; finished ones are moved away.
    out, whole = home / "run", home / "whole"
    before.mkdir()
    for step in STEPS[options.step]:
        finish(command(step, options, before), options, log)
    shutil.copytree(before, out)
    rhythm.whole = finish(command(options.step, options, out), options, log)
    out.rename(whole)
    if options.step in ("run", "train"):
        prove_that_differences_are_found(whole, home)
    if options.step in ("run", "train") and not options.cut:
        trained = (whole / artifacts.SUPERNET).stat().st_mtime
        last = max(path.stat().st_mtime for path in whole.rglob("*"))
        rhythm.whole = max(0.1, last - trained)

    dice = random.Random(options.seed)
    hits, found = Counter[str](), Counter[str]()
    num_finished = 0
    while sum(hits.values()) < options.kills:
        shutil.copytree(before, out)
        while (hit := one_life(out, options, dice, rhythm, log=log)) is not None:
            hits[hit] += 1
        num_finished += 1
        found.update(differences(whole, out))
        shutil.rmtree(out)
        yield {
            "command": "python -m benchmarks.chaos " + " ".join(sys.argv[1:]),
            "step": options.step,
            "shards": options.shards,
            "cut": options.cut,
            "processes": options.processes,
            "warm": options.warm,
            "kills": sum(hits.values()),
            "where": dict(hits.most_common()),
            "runs_compared": num_finished,
            "is_equal": not found,
            "differences": dict(found),
            "recipe": [SOURCE if options.cut else options.recipe, *changes_of(options)],
            "commit": commit,
            "hardware": f"{platform.machine()}, 1 thread per process",
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    kind = row.get("step", "train"), row["processes"], row["warm"], row["recipe"][0]
    return (*kind, row.get("shards", False), row.get("cut", False))


def keep(row: dict[str, Any]) -> None:
    """Saves results, replacing earlier ones of the same kind."""
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [one for one in rows if _kind(one) != _kind(row)] + [row]
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="minimum number of kills")
    parser.add_argument(
        "--step", choices=(*STEPS, "all"), default="train", help="the command that is killed"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="fork instead of starting Python")
    parser.add_argument(
        "--recipe", default="digits", help="the recipe whose networks are trained on the digits"
    )
    parser.add_argument(
        "--records", type=int, default=16, help="maximum number of log records before a kill"
    )
    parser.add_argument(
        "--shards",
        action="store_true",
        help="read the digits from shards, augmented, with a reader",
    )
    parser.add_argument(
        "--cut",
        action="store_true",
        help=f"kill `prenas run --from timm/{SOURCE}` on some of the digits as pictures",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.cut and (
        options.shards or options.processes > 1 or options.step not in ("train", "run")
    ):
        parser.error("--cut kills `prenas run --from`, in one process and without shards")
    if options.cut:
        options.step = "run"
    sklearn.datasets.load_digits()  # so that forked processes need not load them
    is_calibrated = "mobilenet" in options.recipe
    steps = [step for step in STEPS if options.step in ("all", step)]
    if options.step == "all" and not is_calibrated:  # there would be nothing to do
        steps.remove("calibrate")
    are_equal = True
    for options.step in steps:
        with tempfile.TemporaryDirectory() as home:
            options.data = "digits"
            if options.cut:
                options.weights, options.data = map(str, write_source(Path(home)))
            if options.shards:
                os.environ["PRENAS_DATA"] = f"{home}/cache"
                options.data = write_shards(Path(home) / "shards")
            for row in measure(options, Path(home)):
                keep(row)
                print(
                    f"{options.step}: {row['kills']} kills, {row['runs_compared']} runs, "
                    f"equal: {row['is_equal']}",
                    flush=True,
                )
        print(json.dumps(row, indent=1))
        are_equal &= row["is_equal"]
    sys.exit(0 if are_equal else 1)


if __name__ == "__main__":
    main()
