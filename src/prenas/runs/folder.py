"""Run folders: what a step reads of the ones before, who may write, and what belongs together."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from prenas import artifacts
from prenas.data import ImageData, num_samples
from prenas.evaluation.accuracy import Evaluation
from prenas.families import get_family
from prenas.processes import join, resolve_device
from prenas.recipe import Recipe, differences, recipe_from_dict
from prenas.selection.preferred import PreferredSet
from prenas.supernet import Supernet

_DECIDE_NOTHING = (  # fields that may change while a run goes on
    "search.further_seeds:",
    "search.exact_optimum:",
    "data.unreadable:",
    "data.memory_gib:",
    "data.num_workers:",
    "training.checkpoint_steps:",
    "training.keep_checkpoints:",
)

_SECONDS_TO_NOTICE = 15
_SECONDS_OF_STATUS = 0.5


def read_preferred(out: str | Path) -> PreferredSet:
    """The preferred set of a run folder; ValueError if the search is not done or it is damaged."""
    path = Path(out) / artifacts.PREFERRED
    if not path.exists():
        raise ValueError(
            f"{out} holds no finished search ({path.name} is missing): "
            "run `prenas search RECIPE --out ...` first"
        )
    return artifacts.parse_json(path, PreferredSet.model_validate)


def read_supernet(out: str | Path, *, device: str = "auto") -> Supernet:
    """The trained supernet of a run folder, in evaluation mode; ValueError if it is not there."""
    preferred, path = read_preferred(out), Path(out) / artifacts.SUPERNET
    if not path.exists():
        command = f"import FILE --out {out}" if preferred.imported else f"train {out}"
        raise ValueError(
            f"{out} holds no trained supernet ({path.name} is missing): "
            f"run `prenas {command}` first"
        )
    supernet = Supernet(preferred.envelope, preferred.recipe.space.settings)
    artifacts.load_weights(supernet.network, path)
    return supernet.to(resolve_device(device)).eval()


def stored_evaluations(out: Path) -> list[Evaluation]:
    """The evaluation of the preferred subnets; ValueError if it belongs to other weights."""
    path = out / artifacts.EVALUATION
    stored, digest = artifacts.parse_json(path, _parse_evaluations)
    supernet = out / artifacts.SUPERNET
    if supernet.exists() and artifacts.sha256(supernet) != digest:
        raise ValueError(
            f"{path} belongs to other weights than {supernet}: remove it, and {artifacts.SUBNETS}/ "
            "beside it, to evaluate and cut anew"
        )
    return stored


def _parse_evaluations(document: dict[str, Any]) -> tuple[list[Evaluation], str]:
    """The rows, and the digest of the supernet that they were measured on."""
    arch_type = get_family(document["family"]).arch_type
    rows = [
        Evaluation.model_validate({**row, "arch": arch_type.model_validate(row["arch"])})
        for row in document["subnets"]
    ]
    return rows, document["supernet_sha256"]


def record_data(out: Path, data: ImageData) -> None:
    """Notes what a run trains on, so that it goes on with nothing else."""
    sources = {"train": data.train, **data.splits}
    artifacts.write_json(
        out / artifacts.DATA,
        {
            "class_names": data.class_names,
            "num_images": {name: num_samples(source) for name, source in sources.items()},
            "notes": data.notes,
            "fingerprint": data.fingerprint,
        },
    )


def recorded_class_names(out: Path) -> tuple[str, ...] | None:
    """The classes that a run was trained on, in the order of its outputs; None before that."""
    path = out / artifacts.DATA
    if not path.exists():
        return None
    return artifacts.parse_json(path, lambda document: tuple(map(str, document["class_names"])))


def recorded_fingerprint(out: Path) -> str | None:
    """That of the images a run was begun with; None before that, or where it has none."""
    path = out / artifacts.DATA
    if not path.exists():
        return None
    fingerprint: str | None = artifacts.parse_json(path, lambda document: document["fingerprint"])
    return fingerprint


def require_same_classes(out: Path, data: ImageData) -> None:
    """Raises ValueError if images are not of the classes that a run was trained on."""
    names = recorded_class_names(out)
    if names is None or names == data.class_names:
        return
    differing = sorted(set(names) ^ set(data.class_names)) or ["their order"]
    raise ValueError(
        f"the classes of these images are not those of {out} (what differs: "
        f"{', '.join(differing[:10])}): give images of the same classes (--data PLACE)"
    )


def require_same_data(out: Path, data: ImageData) -> None:
    """Raises ValueError if a run was begun with other images."""
    before = recorded_fingerprint(out)
    if before is not None and data.fingerprint is not None and before != data.fingerprint:
        raise ValueError(
            f"the images are not those that {out} was begun with (a file, class or split was "
            "added, removed, renamed or changed): restore them, or begin a run in another folder. "
            "Nothing was changed"
        )


def is_the_runs(out: Path, recipe: Recipe, data: ImageData) -> bool:
    """Whether images are known to be those that the run's results are about."""
    return data.fingerprint is not None and may_be_the_runs(out, recipe, data)


def may_be_the_runs(out: Path, recipe: Recipe, data: ImageData) -> bool:
    """Whether results on these images may be kept as the run's."""
    if data.num_crops != (recipe.data.crops if recipe.data else 1):
        return False
    is_begun = (out / artifacts.DATA).exists()
    return not is_begun or recorded_fingerprint(out) == data.fingerprint


@contextmanager
def locked(out: Path, recipe: Recipe) -> Iterator[None]:
    """Opens a run folder for writing, for this recipe and this process alone.

    Of several processes of one run the first one holds the lock for all.

    Raises:
        ValueError: no right to write, other files there, another recipe, or another process.
    """
    path = out / artifacts.RECIPE
    if not join().is_main:
        yield
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder")
    is_foreign = out.exists() and any(not p.name.startswith(".") for p in out.iterdir())
    if is_foreign and not path.exists():
        raise ValueError(
            f"{out} is not empty and no run folder of prenas: choose an empty or a new folder"
        )
    artifacts.require_writable(out)
    with (out / artifacts.LOCK).open("a+") as lock:
        _take(lock, out)
        try:
            if path.exists():
                _require_same_recipe(path, recipe)
            for leftover in out.glob(".*.tmp"):  # of a process that was killed while writing
                leftover.unlink()
            yield
        finally:  # forked processes hold the file open too: closing it here would not be enough
            fcntl.flock(lock, fcntl.LOCK_UN)


def _take(lock: TextIO, out: Path) -> None:
    """Locks a file for this process; waits for what a killed process left, for others a moment.

    Processes that read images hold the lock of a killed training until they notice, in seconds,
    and `prenas status` shares it for an instant.
    """
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            patience = _SECONDS_OF_STATUS if _is_alive(lock) else _SECONDS_TO_NOTICE
            if time.monotonic() - started > patience:
                raise ValueError(
                    f"another process is working in {out}: wait for it, or choose another folder"
                ) from None
            time.sleep(0.1)
        else:
            lock.truncate(0)
            lock.write(f"{os.getpid()} {socket.gethostname()}")
            lock.flush()
            return


def _is_alive(lock: TextIO) -> bool:
    """Whether the process that took a lock still runs; true where that cannot be known."""
    lock.seek(0)
    number, _, host = lock.read().partition(" ")
    if host != socket.gethostname() or not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _require_same_recipe(path: Path, recipe: Recipe) -> None:
    theirs = artifacts.parse_json(path, lambda document: recipe_from_dict(document["recipe"]))
    found = differences(theirs, recipe)
    changed = [line for line in found if not line.startswith(_DECIDE_NOTHING)]
    if changed:
        raise ValueError(
            f"{path.parent} belongs to another recipe (there -> asked for):\n  "
            + "\n  ".join(changed)
            + "\nChoose another --out folder, or the recipe of this one. Nothing was changed"
        )
