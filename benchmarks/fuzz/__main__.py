"""Gives `prenas` thousands of odd command lines and damaged files, and counts what it does.

    python -m benchmarks.fuzz --cases 3000 --seed 0       # writes results/fuzz.json
    python -m benchmarks.fuzz --seed 0 --only 17,42       # some cases again, with their output

Every case follows from the seed and its number. It runs through the same entry point as the command
line, in this process's child, with a limit of time and of memory, in a folder of its own. Its
outcome is either right, or a refusal in words (status 2, naming the value or the file), or a fault:
a traceback, more than 20 seconds of the processor (or 80 of waiting), a result that differs
silently from that of the undamaged files, changed or lost files, a file or program outside the
folder. The exit status is 1 if there was any fault.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import select
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

os.environ["OMP_NUM_THREADS"] = "1"  # the networks are tiny

import torch

from benchmarks.fuzz import bases, commands, files, given, guard, judging
from benchmarks.fuzz.judging import Case, Outcome
from benchmarks.fuzz.stage import Stage
from benchmarks.paired import commit_in_use

RESULTS = Path(__file__).parents[2] / "results" / "fuzz.json"
KINDS: dict[Callable[[random.Random, Stage], Case], int] = {
    commands.command_line: 6,
    commands.field: 7,
    commands.budget: 3,
    given.space: 3,
    given.accuracies: 2,
    given.latency: 2,
    given.shards: 2,
    given.exported: 2,
    files.document: 5,
    files.weights: 3,
    files.checkpoint: 3,
    files.replaced: 2,
    given.tar: 2,
    given.picture: 3,
}
"""Makers of cases, and how many of them there are in every round."""

_ROUND = [make for make, number in KINDS.items() for _ in range(number)]
_GIB = 6  # of address space, in addition to what the imports take
_OWN_FAULT = 99  # exit status of a child


class Line(NamedTuple):
    """What is said about one case."""

    number: int
    kind: str
    what: str
    outcome: Outcome
    why: str
    seconds: float


def maker(number: int) -> Callable[[random.Random, Stage], Case]:
    """What makes the case of a number: kinds take turns, so that any run of numbers has all."""
    return _ROUND[number * 11 % len(_ROUND)]  # 11 and the length of a round have no common factor


def try_case(number: int, seed: int, stage: Stage, *, seconds: float, show: bool) -> Line:
    """Makes a case, runs it and judges it."""
    dice = random.Random(f"{seed}/{number}")
    make = maker(number)
    case = make(dice, stage)
    done = judging.run(case.words, stage.home, seconds=seconds)
    verdict = judging.judge(case, done, seconds=seconds)
    if show:
        print(f"--- {number}: {case.what}\n{case.words!r}\n{done.out}{done.err}{done.trace or ''}")
    why = verdict.why
    for place in (stage.home, RESULTS.parents[1], sysconfig.get_path("stdlib")):
        why = why.replace(f"{place}/", "")  # a record names no folder of this machine
    return Line(number, case.kind, case.what, verdict.outcome, why, round(done.seconds, 2))


# --- in a child ----------------------------------------------------------------------------------


def end_with(task: Callable[[], object]) -> NoReturn:
    """Does a task, then ends this process without any clean-up of its parent's."""
    status = 1
    try:
        task()
        status = 0
    except BaseException:  # a fault of this program, not of the one that is tried
        traceback.print_exc()
        status = _OWN_FAULT
    finally:
        os._exit(status)


def work(numbers: Sequence[int], options: argparse.Namespace, home: Path, pipe: int) -> None:
    """Tries cases one after the other, and writes a line before and after each."""
    limit_memory()
    guard.install()
    torch.set_num_threads(1)
    stage = Stage(bases.Bases(home))
    with os.fdopen(pipe, "w") as lines:
        for number in numbers:
            print(json.dumps({"number": number}), file=lines, flush=True)
            line = try_case(number, options.seed, stage, seconds=options.seconds,
                            show=options.only is not None)  # fmt: skip
            print(json.dumps(line._asdict()), file=lines, flush=True)


def limit_memory() -> None:
    """Lets this process map a few GiB more than now, so that an absurd size is an error."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def lines_of(numbers: Sequence[int], options: argparse.Namespace, home: Path) -> Iterator[Line]:
    """The lines of all cases; a child that dies or hangs is replaced after the case it had."""
    left = list(numbers)
    while left:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            end_with(partial(work, left, options, home, writing))
        os.close(writing)
        current: int | None = left[0]
        started = time.monotonic()
        for answer in _answers(reading, child, 60 + (1 + judging.PATIENCE) * options.seconds):
            if "outcome" in answer:
                answer["outcome"] = Outcome(answer["outcome"])
                left.remove(answer["number"])
                yield Line(**answer)
                current = None
            else:
                current, started = answer["number"], time.monotonic()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == _OWN_FAULT:
            raise SystemExit(f"case {current} could not be made or judged (see above)")
        if current is not None:
            left.remove(current)
            seconds = time.monotonic() - started
            kind = Outcome.SLOW if seconds > options.seconds else Outcome.DIED
            yield Line(current, maker(current).__name__, "", kind, f"status {status}", seconds)


def _answers(pipe: int, child: int, patience: float) -> Iterator[dict[str, Any]]:
    """What a child writes, until it ends; it is killed if it writes nothing for long."""
    rest = b""
    while True:
        if not select.select([pipe], [], [], patience)[0]:
            os.kill(child, signal.SIGKILL)
        if not (content := os.read(pipe, 2**16)):
            os.close(pipe)
            return
        *whole, rest = (rest + content).split(b"\n")
        yield from map(json.loads, whole)


# --- the summary ---------------------------------------------------------------------------------


def summary(lines: Sequence[Line], options: argparse.Namespace) -> dict[str, Any]:
    """Counts, and every fault in full."""
    outcomes = Counter(line.outcome for line in lines)
    kinds = {kind: Counter(one.outcome for one in lines if one.kind == kind)
             for kind in sorted({line.kind for line in lines})}  # fmt: skip
    commit = commit_in_use()
    return {
        "command": f"python -m benchmarks.fuzz --cases {len(lines)} --seed {options.seed}",
        "cases": len(lines),
        "outcomes": {one.value: outcomes[one] for one in Outcome},
        "kinds": {kind: dict(found.most_common()) for kind, found in kinds.items()},
        "seconds": {
            kind: round(sum(line.seconds for line in lines if line.kind == kind)) for kind in kinds
        },
        "longest_seconds": max(line.seconds for line in lines),
        "faults": [line._asdict() for line in lines if line.outcome.is_fault],
        "commit": commit,
        "hardware": f"{platform.machine()}, 1 thread",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3000, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20, help="limit of a case")
    parser.add_argument("--only", metavar="N,N", help="numbers of cases; shows their output")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    numbers = [*map(int, options.only.split(","))] if options.only else range(options.cases)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        home = Path(folder).resolve()
        os.environ |= {
            "MPLCONFIGDIR": f"{home}/matplotlib",
            "HF_HUB_OFFLINE": "1",
            "PRENAS_DATA": f"{home}/case/cache",  # of every case, for the indices of shards
        }
        prepare(home)
        lines = []
        for line in lines_of(numbers, options, home):
            lines.append(line)
            if line.outcome.is_fault or options.only:
                print(f"{line.number} {line.kind}, {line.what}: {line.outcome}\n  {line.why}")
                sys.stdout.flush()
    found = summary(lines, options)
    if not options.only:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "faults"}, indent=1))
    print(f"{len(found['faults'])} faults in {time.monotonic() - started:.0f} s")
    sys.exit(1 if found["faults"] else 0)


def prepare(home: Path) -> None:
    """Makes the bases, in a child: PyTorch's backward pass works in one generation of forks."""
    child = os.fork()
    if not child:
        end_with(partial(bases.make, home))
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the runs to be damaged could not be made (see above)")


if __name__ == "__main__":
    main()
