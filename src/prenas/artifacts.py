"""Names, schema versions and safe writing of every file in a run folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

from pydantic import ValidationError

from prenas.files import MOST_JSON_BYTES, load_json, mistaken_for, open_file, read_bytes
from prenas.values import UnknownNameError, explained, few_of

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

RECIPE = "recipe.json"
INITIAL = "initial.safetensors"
PREFERRED = "preferred.json"
DATA = "data.json"
CHECKPOINTS = "checkpoints"
BEST = "best.safetensors"
EMA = "ema.safetensors"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SUPERNET = "supernet.safetensors"
EVOLUTION = "evolution.json"
CALIBRATION = "calibration.json"
STATISTICS = "calibration.safetensors"
EVALUATION = "evaluation.json"
EVALUATION_CSV = "evaluation.csv"
PLOT = "accuracy.png"
SOURCE = "source"
"""In a run that cuts a trained network: the run in which that was adapted to the images."""
SUBNETS = "subnets"
ADAPTED = f"{SOURCE}/{SUBNETS}/00"
"""The model that was adapted."""
RIVALS = "rivals"
"""In a run that cuts a trained network: the runs of the stock models that it is compared with."""
COMPARISON = "comparison.json"
REPORT = "report.md"
PAGE = "report.html"
REPORT_PICTURES = "report"
MODEL = "model.safetensors"
MODEL_ARCH = "arch.json"
MODEL_CONFIG = "config.json"
"""The description of a handed-over model for timm, in timm's form."""
EXPORT = "export.json"
"""Beside an exported file."""
LATENCY = "latency.json"
"""The times that a run counts latencies with."""
MEASURED = "measured.json"
"""The times of a run's subnets, each measured as a whole."""
PROXIES = "proxies.json"
"""What `prenas bench proxies` found, under a name of the user's."""
LOCK = ".lock"

_DIGEST = "sha256"  # its name in the metadata of a safetensors file
CONTENT_DIGEST = "content_sha256"
"""The last field of a JSON file of ours: the digest of all others."""
_LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors itself

SCHEMA_VERSIONS = {
    RECIPE: 1,
    PREFERRED: 2,
    DATA: 1,
    EVOLUTION: 2,
    CALIBRATION: 1,
    EVALUATION: 2,
    COMPARISON: 1,
    MODEL_ARCH: 2,
    EXPORT: 1,
    LATENCY: 1,
    MEASURED: 1,
    PROXIES: 1,
}


_JSON_AND_TABLES = {*SCHEMA_VERSIONS, MODEL_CONFIG, METRICS, EVALUATION_CSV}


def is_of_run_or_model(path: Path) -> bool:
    """Whether a JSON file or table is one that a run, or a handed-over model, consists of."""
    beside = (path.with_name(name) for name in (RECIPE, MODEL_ARCH))
    return path.name in _JSON_AND_TABLES and any(one.exists() for one in beside)


def rival_folder(name: str) -> str:
    """The folder of a stock model inside a run: `rivals/NAME` for `timm/NAME=FILE`."""
    return f"{RIVALS}/{name.partition('=')[0].rpartition('/')[2]}"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically, as `writing` does; raises as it does."""
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that is written atomically: under a temporary name, synced, then renamed.

    If the block fails, nothing is left, and an earlier file of this name is unchanged.

    Raises:
        OSError: the file cannot be written, e.g. on a full disk; the message names it.
    """
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # the error of a write does not name the file
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: OSError) -> OSError:
    """An error that says which file could not be written, why, and what to do."""
    return OSError(
        f"cannot write {path} ({error.strerror or error}): free some disk space or fix the "
        "permissions of the folder, then give the same command to continue",
    )


def _temporary_name(name: str) -> str:
    return f".prenas-{name}.{os.getpid()}.tmp"


_STARTED = time.time()
_LEFTOVER = re.compile(r"\.prenas-.+\.(\d+)\.tmp")
_OLDER_LEFTOVER = re.compile(  # as prenas 0.1.0 named them, for the files that it wrote
    r"\.(?:writable|metrics\.jsonl|report\.md|evaluation\.csv"
    r"|(?:recipe|preferred|data|evolution|calibration|evaluation|arch)\.json"
    r"|(?:initial|best|ema|supernet|calibration|model)\.safetensors|state\.pt"
    r"|(?:accuracy|architectures|training|block_scores)\.(?:png|svg))\.(\d+)\.tmp"
)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent`, which is removed at the end, or by the next call after a kill.

    Args:
        name: of what is made in it.

    Raises:
        OSError: it cannot be made.
    """
    remove_leftovers(parent, keeps_running=True)
    made = parent / _temporary_name(name)
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_leftovers(
    folder: Path, *, keeps_running: bool = False, keeps_running_folders: bool = False
) -> None:
    """Removes what a process was writing in a folder when it was killed.

    Only names that this package gives are removed: other hidden files are the user's.

    Args:
        keeps_running: keep those of processes that run; for folders in which several may write.
        keeps_running_folders: the same for `temporary_folder`s alone, when no other process may be
            writing single files.
    """
    for path in folder.glob(".*.tmp"):
        named = _LEFTOVER.fullmatch(path.name) or _OLDER_LEFTOVER.fullmatch(path.name)
        is_folder = path.is_dir() and not path.is_symlink()
        may_be_kept = keeps_running or (keeps_running_folders and is_folder)
        if not named or (may_be_kept and _is_in_work(path, int(named[1]))):
            continue
        if not is_folder:
            path.unlink(missing_ok=True)
        elif _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _is_in_work(path: Path, process: int) -> bool:
    """Whether the process that writes a file or folder still runs.

    What is older than this process, but has its number, is an earlier one's: in a container, each
    is the first.
    """
    try:
        is_earlier = path.lstat().st_mtime < _STARTED
    except FileNotFoundError:  # has just been finished
        return True
    return _is_running(process) and not (process == os.getpid() and is_earlier)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return not _has_ended(process)


def _has_ended(process: int) -> bool:
    """Whether a process was killed and its parent has not asked for its end yet (Linux)."""
    try:
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return state[:1] == [b"Z"]


def require_own_folder(folder: Path) -> None:
    """Raises ValueError if something else than a folder has the name of a folder of a run.

    What a link leads to is not the run's. A file would be noticed only when the folder is needed.
    """
    if folder.is_symlink():  # also one that leads nowhere, or to a device
        raise ValueError(
            f"{folder} is a symbolic link: prenas writes and deletes files in this folder, so it "
            "must be part of the run. Replace the link with the folder itself"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"{folder} is a file, where prenas keeps a folder of the run: move it elsewhere"
        )


def write_json(path: Path, content: Mapping[str, Any], *, kind: str | None = None) -> None:
    """Writes a JSON file with its schema version first and its digest last.

    The digest covers all values, so `read_json` notices a damaged one and an edited one.

    Args:
        kind: the usual name of such a file, if this one has a name of the user's.
    """
    document = {"schema_version": SCHEMA_VERSIONS[kind or path.name], **content}
    write_plain_json(path, {**document, CONTENT_DIGEST: _digest_of_values(document)})


def _digest_of_values(document: Mapping[str, Any]) -> str:
    """The digest of a JSON document, however it is laid out."""
    as_read = json.loads(json.dumps(document))  # keys are text, tuples are lists
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def write_plain_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file in somebody else's form."""
    write_bytes(path, (json_text(content) + "\n").encode())


def json_text(content: Mapping[str, Any]) -> str:
    """Readable JSON: one field per line, and lists of numbers on one line."""
    text = json.dumps(content, indent=1, allow_nan=False)
    # A raw line break occurs only between values, never inside a string.
    return re.sub(r'\[\n([^][{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text)


def read_json(path: Path, *, kind: str | None = None) -> dict[str, Any]:
    """Reads a JSON file of this package; earlier versions are upgraded to the present one.

    Args:
        kind: the usual name of such a file, if this one has a name of the user's.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged or was edited, was not written by prenas, or has a newer
            version.
    """
    text = read_bytes(path, MOST_JSON_BYTES)
    try:
        document = load_json(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged or not valid JSON ({error}): restore or remove it"
        ) from None
    kind = kind or path.name
    expected = SCHEMA_VERSIONS[kind]
    if not isinstance(document, dict) or "schema_version" not in document:
        raise ValueError(f"{path} was not written by prenas: it has no schema_version")
    content: dict[str, Any] = document
    digest = content.pop(CONTENT_DIGEST, None)
    # Files of earlier versions have none, and somebody who edits a file may remove it.
    if digest is not None and digest != _digest_of_values(content):
        raise ValueError(
            f"{path} is damaged or was edited: its content does not match its {CONTENT_DIGEST}. "
            f"Restore it from a copy; if you changed it on purpose, remove its {CONTENT_DIGEST}"
        )
    version = content.pop("schema_version")
    while isinstance(version, int) and (upgrade := _UPGRADES.get((kind, version))):
        content, version = upgrade(content), version + 1
    if version != expected:
        raise ValueError(
            f"{path} has schema version {version!r}, but this version of prenas reads {expected}: "
            "use the version of prenas that wrote it"
        )
    return content


def _with_named_costs(content: dict[str, Any], *fields: str) -> dict[str, Any]:
    """Upgrades release 0.1.0, in which each cost was a field, to a mapping of costs by name."""

    def renamed(owner: Any) -> Any:
        if not isinstance(owner, dict) or not {"params", "macs"} <= owner.keys():
            return owner  # damaged: parsing it will report that
        costs = {n: owner[n] for n in ("params", "macs", "relative_macs") if n in owner}
        return {name: owner[name] for name in owner if name not in costs} | {"costs": costs}

    upgraded = dict(content)
    for field in fields:
        owners = content.get(field)
        if owners is not None:
            is_list = isinstance(owners, list)
            upgraded[field] = [*map(renamed, owners)] if is_list else renamed(owners)
    return upgraded


_UPGRADES: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    (PREFERRED, 1): lambda content: _with_named_costs(content, "subnets", "optima"),
    (EVOLUTION, 1): lambda content: _with_named_costs(content, "budgets"),
    (EVALUATION, 1): lambda content: _with_named_costs(content, "subnets"),
    (MODEL_ARCH, 1): lambda content: _with_named_costs(content, "provenance"),
}
"""(file, its schema version) -> the step that takes its content to the next version."""


def parse_json(path: Path, parse: Callable[[dict[str, Any]], T], *, kind: str | None = None) -> T:
    """Reads a JSON file of this package and parses it into a value.

    Args:
        kind: the usual name of such a file, if this one has a name of the user's.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, was not written by prenas or has a newer version; the message
            names the file and the field.
    """
    document = read_json(path, kind=kind)
    try:
        return parse(document)
    except ValidationError as error:
        problem: Exception | str = explained(error)
    except KeyError as error:
        problem = f"the field {error} is missing"
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        problem = error
    if isinstance(problem, UnknownNameError):
        raise ValueError(
            f"{path} needs a name that is not loaded: {problem}. If a Python file of yours "
            "registers it, load that file first (prenas --import FILE COMMAND ...); if a package "
            "does, install it"
        )
    raise ValueError(f"{path} is damaged or was not written by prenas: {problem}")


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, to check whether results belong to it."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes tensors atomically as safetensors; returns the digest that the file contains.

    The digest covers names, types, shapes and values. `read_tensors` compares it, and so notices a
    flipped bit on a disk.
    """
    digest = digest_of(tensors)
    write_bytes(path, _serialized(tensors, {_DIGEST: digest}))
    return digest


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The digest that a file of these tensors contains."""
    return _open_tensors(BytesIO(_serialized(tensors))).digest()


def _serialized(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    from safetensors.torch import save  # late: names and JSON files do not need torch

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(contiguous, metadata=metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; never runs code from a file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is truncated, damaged, in another format such as pickle, or contains
            non-finite values; the message names the file and the tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with _reading(path) as file:
        stored = _open_tensors(file)
        is_intact = stored.carried is None or stored.carried == stored.digest()
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
    if not is_intact:
        raise ValueError(
            f"{path} is damaged: its content does not match its digest. Restore it from a copy, or "
            "remove it and give the command that writes it again"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{path} contains non-finite values in {name}: restore it from a copy, or remove "
                "it and give the command that writes it again"
            )
    return tensors


def carried_digest(path: Path) -> str | None:
    """The digest that a safetensors file contains; None if it was written without one.

    Raises:
        ValueError: it is not a safetensors file.
    """
    with _reading(path) as file:
        return _open_tensors(file).carried


def require_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compares the header of a safetensors file with the tensors of a network; reads no values.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a safetensors file, or has other tensors.
    """
    stored = stored_shapes(path)
    problems = [f"{name} is missing" for name in shapes if name not in stored]
    problems += [f"{name} is unknown" for name in stored if name not in shapes]
    problems += [
        f"{name} has shape {list(stored[name])} instead of {list(shape)}"
        for name, shape in shapes.items()
        if stored.get(name, shape) != shape
    ]
    if problems:
        raise other_weights(path, problems)


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a safetensors file, from its header; raises as above."""
    with _reading(path) as file:
        header = _open_tensors(file).header
        shapes = {}
        for name, fields in header.items():
            shape = fields.get("shape") if isinstance(fields, dict) else None
            if not isinstance(shape, list) or not {*map(type, shape)} <= {int}:
                raise ValueError(f"its header does not give the shape of {name}")
            shapes[name] = tuple(shape)
        return shapes


class OtherWeightsError(ValueError):
    """A weight file belongs to another network."""


def other_weights(path: Path, problems: Sequence[str]) -> OtherWeightsError:
    """The error for a weight file that belongs to another network."""
    return OtherWeightsError(
        f"{path} does not contain the weights of this architecture: {few_of(problems)}"
    )


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """The open safetensors file; a ValueError while it is read becomes one that names the file."""
    with open_file(path) as file:
        start = file.read(100)
        file.seek(0)
        try:
            yield file
        except ValueError as error:
            if mistaken := mistaken_for(start):
                raise ValueError(f"{path} {mistaken}") from None
            raise ValueError(
                f"{path} is not a readable safetensors file ({error}): it is truncated, or in "
                "another format such as pickle, which prenas never opens because it can contain "
                "code"
            ) from None


class _StoredTensors(NamedTuple):
    """A safetensors file after reading its header (8 bytes of length, then JSON)."""

    header: dict[str, Any]
    """Name -> type, shape and position of every tensor."""
    carried: str | None
    values: BinaryIO
    """The open file, positioned at the first value."""

    def digest(self) -> str:
        """SHA-256 of the header, without metadata, and of all values."""
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        while chunk := self.values.read(2**20):
            digest.update(chunk)
        return digest.hexdigest()


def _open_tensors(file: BinaryIO) -> _StoredTensors:
    """Reads the header; ValueError for a file in another format."""
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError("its header is too long")
    try:
        header = load_json(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        return _StoredTensors(header, metadata.get(_DIGEST), file)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"its header cannot be read: {error}") from None


def read_pickle(path: Path, *, safe: Sequence[Any] = ()) -> Any:
    """The content of a torch.save file, on the CPU: only tensors and plain values.

    Args:
        safe: further classes, or (class, name in the file), that the file may contain.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, in another format, larger in memory than on disk, or contains
            code, which is never run; the message names it.
    """
    import torch

    with open_file(path) as file:
        if mistaken := mistaken_for(file.read(100)):
            raise ValueError(f"{path} {mistaken}")
    if zipfile.is_zipfile(path):
        _require_stored(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(safe)):
            warnings.simplefilter("ignore")  # the errors below replace torch's warnings
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file in another format can raise any exception
        if isinstance(error, OSError) and error.filename is not None:
            raise
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            raise ValueError(
                f"{path} contains code or whole objects ({forbidden[1]}), which prenas never "
                "runs: ask for a file with tensors only, saved with torch.save(model.state_dict(), "
                "...)"
            ) from None
        raise ValueError(
            f"{path} is not a complete torch.save file: it is truncated or in another format "
            f"({type(error).__name__}{_reason_of(error)}). Download it again and compare its size"
        ) from None


def _reason_of(error: Exception) -> str:
    """The first line of torch's message, without its advice to read files that can run code."""
    text = str(error).strip()
    inner = re.search(r"WeightsUnpickler error: (.*)", text)
    line = inner[1] if inner else text.partition("\n")[0]
    is_advice = re.search("weights.only", line, re.IGNORECASE)
    return "" if not line or is_advice else f": {line[:200]}"


def _require_stored(path: Path) -> None:
    """Raises ValueError for a zip that is packed, which torch.save never does, or damaged.

    torch.load does not compare the checksums that torch.save writes.
    """
    damaged = None
    try:
        with zipfile.ZipFile(path) as file:
            num_bytes = sum(member.file_size for member in file.infolist())
            if num_bytes <= path.stat().st_size:
                damaged = file.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return  # torch says what is wrong
    if num_bytes > path.stat().st_size:
        raise ValueError(
            f"{path} would unpack to {num_bytes:,} bytes, but has {path.stat().st_size:,}: it was "
            "not written by torch.save"
        )
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: the checksum of {damaged} is wrong. Download it again, or restore "
            "it from a copy"
        )


def load_weights(network: nn.Module, path: Path) -> None:
    """Fills a network from a safetensors file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or its names or shapes are not those of the network.
    """
    weights = read_tensors(path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not contain the weights of this architecture: {error}"
        ) from None


def find_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(finished steps, `step-NNNNNNNN/`) of all complete checkpoints in a folder, newest first."""
    matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def require_writable(folder: Path) -> None:
    """Creates the folder and tries to write a file, before time is spent on results.

    Raises:
        ValueError: the path is a file, or is not writable.
    """
    probe = folder / _temporary_name("writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("a few bytes, to find out whether the disk is full")
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise ValueError(
            f"cannot write to {folder} ({error.strerror}): choose another --out folder, change its "
            "permissions, or free some disk space"
        ) from None
