"""Runs one case as a user would, and judges how it ended."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import stat
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from enum import StrEnum
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

from benchmarks.fuzz import guard
from prenas import artifacts, cli
from prenas.latency import use_table

Files = Mapping[str, str]
"""Path inside a folder -> what is there: a digest, or the target of a link, or the kind."""

_VOLATILE = (artifacts.LOCK, artifacts.METRICS)
PATIENCE = 4  # times the limit that a case may wait
_LONGEST_MESSAGE = 8_000  # characters; the widest legitimate one lists all fields of a recipe
_RAW = re.compile(
    r"errors\.pydantic\.dev|weights_only|Traceback \(most recent|^error: *$"
    r"|^error: \[Errno|^error: '[^']*'$|object has no attribute|index out of range"
    r"|unsupported operand|maximum recursion|has no len|not subscriptable|not iterable",
    re.MULTILINE,
)
"""Signs of an error that was passed on as Python or a library worded it."""


_NOT_FINITE = re.compile(r"\b(?:nan|NaN)\b|\bInfinity\b")


class Outcome(StrEnum):
    """How a case ended; all but the first three are faults."""

    RIGHT = "right"
    EDITED = "accepted another valid value"
    REFUSED = "refused in words"
    TRACEBACK = "traceback"
    SLOW = "too slow"
    DIED = "the process died"
    SILENT = "silent difference"
    CHANGED = "changed or lost files"
    OUTSIDE = "touched something outside"
    UNCLEAR = "refused without naming the value or file"

    @property
    def is_fault(self) -> bool:
        """Whether it must not happen."""
        return self not in (Outcome.RIGHT, Outcome.EDITED, Outcome.REFUSED)


class Case(NamedTuple):
    """One command line in a prepared folder."""

    kind: str
    what: str
    """In words, for people who look at a fault."""
    words: tuple[str, ...]
    names: tuple[str, ...] = ()
    """A refusal must contain one of these: the odd value, or the name of the damaged file."""
    expected: Done | None = None
    """What the same command does without damage. None: any valid result is accepted."""
    damaged: tuple[str, ...] = ()
    """Files that are not compared, because they were changed on purpose."""
    check: Check | None = None
    """A further look at a finished command."""
    written: tuple[str, ...] = ()
    """Files of the user that the command is to write, unless it refuses."""
    kept: tuple[str, ...] = ()
    """Files in which also a refused command keeps what it finished before."""


class Done(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str
    seconds: float
    """Of the processor."""
    trace: str | None
    events: tuple[str, ...]
    home: Path
    before: Files
    after: Files
    results: Files
    """The results among the files, without the digest of the file that a run was made from."""


class Check:
    """Looks at what a successful command left; returns what is wrong, or None."""

    def __call__(self, done: Done) -> str | None:
        raise NotImplementedError


class Verdict(NamedTuple):
    """The outcome of a case, and why."""

    outcome: Outcome
    why: str = ""


class TooSlowError(BaseException):
    """The time of a case is over; no `except Exception` stops it."""


# --- running -------------------------------------------------------------------------------------


def run(words: tuple[str, ...], home: Path, *, seconds: float) -> Done:
    """Runs a command line in `home/work`; `home/outside` must stay as it is."""
    before = files_in(home)
    out, err = BytesIO(), BytesIO()
    errors = "strict", "backslashreplace"  # as Python opens stdout and stderr of a terminal
    streams = [
        TextIOWrapper(raw, encoding="utf-8", errors=how)
        for raw, how in zip((out, err), errors, strict=True)
    ]
    trace, status = None, 0
    started = time.process_time()
    with _as_it_was(home / "work"), guard.watched(home) as events:
        sys.argv = ["prenas", *words]
        try:
            with redirect_stdout(streams[0]), redirect_stderr(streams[1]), _alarm(seconds):
                cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except (Exception, KeyboardInterrupt, TooSlowError):
            trace = traceback.format_exc()
    elapsed = time.process_time() - started
    for stream in streams:
        stream.flush()
    texts = [one.getvalue().decode("utf-8", "replace") for one in (out, err)]
    return Done(
        status,
        texts[0],
        texts[1],
        elapsed,
        trace,
        tuple(events),
        home,
        before,
        after := files_in(home),
        _results_in(home, after),
    )


@contextmanager
def _as_it_was(folder: Path) -> Iterator[None]:
    """Enters a folder, and afterwards undoes what a command leaves in the process."""
    home, environment, words = Path.cwd(), dict(os.environ), sys.argv
    logging.getLogger().handlers.clear()  # so that warnings go to this command's stderr
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = words
        torch.set_num_threads(1)
        use_table(None)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Ends what takes more seconds of the processor, or several times as many of waiting.

    A busy machine makes nothing slow, and what waits for a pipe takes no time of the processor.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"over {seconds:g} s")

    limits = {
        signal.ITIMER_PROF: (signal.SIGPROF, seconds),
        signal.ITIMER_REAL: (signal.SIGALRM, PATIENCE * seconds),
    }
    before = {number: signal.signal(number, ring) for number, _ in limits.values()}
    for timer, (_, limit) in limits.items():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer in limits:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def files_in(home: Path) -> dict[str, str]:
    """Every path below a folder, links not followed."""
    found = {}
    for folder, folders, names in os.walk(home):
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, home)] = _content(path)
    return found


def _content(path: str) -> str:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return f"-> {os.readlink(path)}"
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    if not stat.S_ISREG(status.st_mode):
        return "special"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- judging -------------------------------------------------------------------------------------


def judge(case: Case, done: Done, *, seconds: float) -> Verdict:
    """How a case ended, the worst first."""
    if done.trace and ("TooSlowError" in done.trace or done.seconds > seconds):
        return Verdict(Outcome.SLOW, _last_lines(done.trace, 12))
    if done.trace or "Traceback (most recent call last)" in done.out + done.err:
        return Verdict(Outcome.TRACEBACK, _last_lines(done.trace or done.err, 12))
    if done.seconds > seconds:
        return Verdict(Outcome.SLOW, f"{done.seconds:.0f} s")
    if events := [one for one in done.events if not _is_asked_for(one, case, done.home)]:
        return Verdict(Outcome.OUTSIDE, "; ".join(events[:5]))
    is_refused = done.status == 2
    written = case.kept if is_refused else (*case.written, *case.kept)
    if lost := _lost(done, written, is_refused=is_refused):
        return Verdict(Outcome.CHANGED, ", ".join(lost[:8]))
    if done.status == 2:
        unclear = _unclear(case, done)
        return Verdict(Outcome.UNCLEAR, unclear) if unclear else Verdict(Outcome.REFUSED)
    if done.status not in (0, 1):
        return Verdict(Outcome.UNCLEAR, f"exit status {done.status}: {_last_lines(done.err, 4)}")
    return _judge_success(case, done)


def _is_asked_for(event: str, case: Case, home: Path) -> bool:
    """Whether a change outside the folder is where the command line says, or on the way there."""
    changed = event.rpartition(" ")[2]
    asked = [os.path.abspath(home / "work" / word) for word in case.words if ".." in word]
    beside = [os.path.join(os.path.dirname(one), ".prenas-") for one in asked]  # before a rename
    return any(changed.startswith(one) for one in (*asked, *beside)) or any(
        one.startswith(changed) for one in asked
    )


def _judge_success(case: Case, done: Done) -> Verdict:
    if _NOT_FINITE.search(_without_documents(done.out)) and not _NOT_FINITE.search(
        " ".join(case.words)
    ):
        return Verdict(Outcome.SILENT, f"not finite: {_last_lines(done.out, 6)}")
    problem = case.check(done) if case.check else None
    if problem:
        return Verdict(Outcome.SILENT, problem)
    if case.expected is None:
        return Verdict(Outcome.EDITED if case.damaged else Outcome.RIGHT)
    if any(_says(name, case, done) for name in case.names):  # a fallback, a picture left out
        return Verdict(Outcome.RIGHT, "said so")
    if different := differences(case, done):
        return Verdict(Outcome.SILENT, ", ".join(different[:6]))
    return Verdict(Outcome.RIGHT)


def _without_documents(out: str) -> str:
    """The lines that are not valid JSON. In those that are, all numbers are finite, and a text may
    say which number of a file is not."""
    return "\n".join(line for line in out.splitlines() if not _is_json(line))


def _is_json(line: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        json.loads(line, parse_constant=refuse)
    except ValueError:
        return False
    return True


def differences(case: Case, done: Done) -> list[str]:
    """What a successful command printed or left that the same one without damage did not."""
    assert case.expected is not None
    found = []
    if done.status != case.expected.status:
        found.append(f"status {done.status}")
    if steady(done.out) != steady(case.expected.out):
        found.append(f"printed {_last_lines(done.out, 6)!r}")
    ours, theirs = (_results(one, case.damaged) for one in (done, case.expected))
    found += sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    return found


def _results(done: Done, damaged: tuple[str, ...]) -> dict[str, str]:
    """The files of a run that were not there before, or were replaced, and hold results."""
    return {
        name: content
        for name, content in done.results.items()
        if not any(name == one or name.startswith(f"{one}/") for one in damaged)
        and not name.startswith("work/given")
    }


def _results_in(home: Path, files: Files) -> Files:
    """Results by content. A run records the digest of the file that it was made from; a byte that
    means nothing changes only this digest."""
    found = {}
    for name, content in files.items():
        if Path(name).name in _COMPARED and Path(name).name not in _VOLATILE:
            path = home / name
            is_text = name.endswith(".json") and path.is_file() and not path.is_symlink()
            text = path.read_bytes() if is_text else content.encode()
            found[name] = re.sub(rb'"(?:content_)?sha256": "[0-9a-f]{64}"', b"", text).hex()
    return found


_COMPARED = (
    artifacts.SUPERNET,
    artifacts.PREFERRED,
    artifacts.EVALUATION,
    artifacts.STATISTICS,
    artifacts.MODEL,
    artifacts.BEST,
)


def steady(out: str) -> str:
    """A command's output without times."""
    lines = [line for line in out.splitlines() if "images/s" not in line and " ms" not in line]
    return re.sub(r"\b\d+(\.\d+)? (s|min|seconds)\b", "T", "\n".join(lines))


def _says(name: str, case: Case, done: Done) -> bool:
    """Whether a successful command names the damage, as it does not without it."""
    assert case.expected is not None
    return name in done.err or (name in done.out and name not in case.expected.out)


def _lost(done: Done, written: tuple[str, ...], *, is_refused: bool) -> list[str]:
    """Files that a refused command changed, and those of the user that any command did."""

    def is_kept(name: str) -> bool:
        is_users = not name.startswith("work/run/") or Path(name).name in USERS
        return (is_users or is_refused) and Path(name).name not in _VOLATILE

    lost = [
        name
        for name, content in done.before.items()
        if is_kept(name) and name not in written and done.after.get(name) != content
    ]
    leftovers = [name for name in done.after.keys() - done.before.keys() if name.endswith(".tmp")]
    return sorted(lost) + [f"left {name}" for name in leftovers]


USERS = ("notes.txt", ".notes.tmp")
"""Files of the user in a run folder."""


def _unclear(case: Case, done: Done) -> str | None:
    """What is wrong with the message of a refusal; None if it is clear."""
    message = done.err
    if not message.strip():
        return "it says nothing"
    if raw := _RAW.search(message):
        return f"in Python's words ({raw[0].strip()!r}): {_last_lines(message, 4)}"
    if len(message) > _LONGEST_MESSAGE:
        return f"{len(message):,} characters: {message[:200]!r}"
    if case.names and not any(_mentions(message, name) for name in case.names):
        return f"names none of {case.names[:3]!r}: {_last_lines(message, 4)}"
    return None


def _mentions(message: str, name: str) -> bool:
    """Whether a text is in a message: as it is, escaped, or its beginning if it is long."""
    flat = re.sub(r"[\s│]+", "", message)
    forms = {name[:16], repr(name)[1:17], name.encode("unicode_escape").decode()[:16]}
    if len(name) > 200:
        forms.add(f"{len(name):,} characters")
    return any(re.sub(r"[\s│]+", "", form) in flat for form in forms)


def _last_lines(text: str, number: int) -> str:
    lines = [line[:300] for line in text.strip().splitlines()]
    return "\n".join(lines[-number:])
