"""Cases of damaged files in a run: documents, weights, checkpoints, links and pipes."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.fuzz import containers, odd
from benchmarks.fuzz.bases import SPACES, run_words
from benchmarks.fuzz.judging import Case
from benchmarks.fuzz.odd import Dice
from benchmarks.fuzz.stage import ONE, Stage
from prenas import artifacts

_STATUS = ("status", "run", "--json")
_INFO = ("info", "run")
_REPORT = ("report", "run")
_PAGE = ("report", "run", "--html", "--to", "page.html")
_PUSH = ("push", "run/subnets/00", "--repo", "me/photos", "--to", "pushed", "--threads", "1")
_TRAIN = ("train", "run", *ONE)
_EVALUATE = ("evaluate", "run", *ONE)
_CALIBRATE = ("calibrate", "run", *ONE)
_SPECIALIZE = ("specialize", "run", "--index", "0", "--to", "model", *ONE)
_PREDICT = ("predict", "run/subnets/00", "given/p.png", "given/p.jpg", "--json", *ONE)
_TUNE = (
    "finetune", "run/subnets/00", "--data", "given/photos", "--out", "tuned",
    "--set", "training.epochs=1", "--set", "training.batch_size=16", *ONE,
)  # fmt: skip
_AGAIN = ("run",)  # stands for the command that made the run

Readers = tuple[tuple[str, tuple[str, ...]], ...]
"""(state of the run, command) that read a file."""

_ALL: Readers = (
    ("finished", _STATUS), ("finished", _INFO), ("finished", _REPORT), ("finished", _SPECIALIZE),
    ("trained", _EVALUATE), ("stopped", _TRAIN), ("finished", _AGAIN), ("searched", _TRAIN),
)  # fmt: skip
DOCUMENTS: dict[str, Readers] = {
    artifacts.RECIPE: _ALL,
    artifacts.PREFERRED: _ALL,
    artifacts.DATA: (("trained", _EVALUATE), ("stopped", _TRAIN), ("finished", _AGAIN)),
    artifacts.EVALUATION: tuple(
        ("finished", one)
        for one in (_STATUS, _EVALUATE, _REPORT, _PAGE, _SPECIALIZE, _PUSH, _AGAIN)
    ),
    artifacts.LATENCY: (
        ("finished", _STATUS), ("finished", _SPECIALIZE), ("finished", _PAGE), ("stopped", _TRAIN),
    ),
    artifacts.MEASURED: (("finished", _STATUS), ("finished", _REPORT), ("finished", _PAGE)),
    artifacts.CALIBRATION: tuple(
        ("finished", one) for one in (_STATUS, _CALIBRATE, _EVALUATE, _SPECIALIZE)
    ),
    artifacts.METRICS: (("stopped", _STATUS), ("stopped", _TRAIN), ("finished", _REPORT)),
    f"{artifacts.SUBNETS}/00/{artifacts.MODEL_ARCH}": (
        ("finished", _PREDICT), ("finished", _PREDICT), ("finished", _TUNE), ("finished", _AGAIN),
        ("finished", _STATUS), ("finished", _PUSH),
    ),
}  # fmt: skip
WEIGHTS: dict[str, Readers] = {
    artifacts.SUPERNET: (
        ("finished", _SPECIALIZE), ("trained", _EVALUATE), ("finished", _AGAIN),
        ("trained", _CALIBRATE),
    ),
    artifacts.INITIAL: (("searched", _TRAIN),),
    artifacts.STATISTICS: (("finished", _SPECIALIZE), ("finished", _AGAIN)),
    f"{artifacts.SUBNETS}/00/{artifacts.MODEL}": (
        ("finished", _PREDICT), ("finished", _TUNE), ("finished", _PUSH),
    ),
    f"{artifacts.CHECKPOINTS}/NEWEST/{artifacts.SUPERNET}": (("stopped", _TRAIN),),
    f"{artifacts.CHECKPOINTS}/{artifacts.BEST}": (("stopped", _TRAIN),),
}  # fmt: skip
STATE = f"{artifacts.CHECKPOINTS}/NEWEST/state.pt"
_STATE_DIGEST = f"{artifacts.CHECKPOINTS}/NEWEST/state.sha256"
_OTHERS: dict[str, Readers] = {
    STATE: (("stopped", _TRAIN),),
    _STATE_DIGEST: (("stopped", _TRAIN),),
    artifacts.LOCK: (
        ("stopped", _TRAIN), ("trained", _EVALUATE), ("finished", _STATUS), ("finished", _AGAIN),
    ),
    artifacts.CHECKPOINTS: (("stopped", _TRAIN), ("stopped", _STATUS)),
    artifacts.SUBNETS: (("finished", _AGAIN), ("finished", _STATUS), ("finished", _PREDICT)),
    f"{artifacts.SUBNETS}/00": (("finished", _AGAIN), ("finished", _PREDICT)),
    artifacts.REPORT_PICTURES: (("finished", _REPORT), ("finished", _AGAIN)),
    artifacts.REPORT: (("finished", _REPORT), ("finished", _AGAIN)),
    artifacts.EVALUATION_CSV: (("finished", _REPORT), ("finished", _AGAIN)),
}  # fmt: skip


_ALSO = {
    artifacts.STATISTICS: (artifacts.CALIBRATION,),  # which holds its digest
    artifacts.DATA: ("not the images that run was started with", "other classes than those of run"),
    artifacts.PREFERRED: (artifacts.SUPERNET, artifacts.INITIAL),  # they contradict each other
    artifacts.RECIPE: ("was made with another recipe",),
    artifacts.CALIBRATION: ("a calibration that is now missing",),
}
"""What a refusal may name instead of a file."""


class Target:
    """A file of a run, set up with a command that reads it."""

    def __init__(self, table: dict[str, Readers], dice: Dice, stage: Stage) -> None:
        family = dice.choice(tuple(SPACES))
        names = [name for name in table if family == "conv" or "calibration" not in name]
        name = dice.choice(names)
        state, words = dice.choice(table[name])
        self.words: tuple[str, ...] = run_words(family) if words == _AGAIN else words
        self.expected = stage.expected(family, state, self.words)
        run = stage.work / "run"
        if "NEWEST" in name:
            _, newest = artifacts.find_checkpoints(run / artifacts.CHECKPOINTS)[0]
            name = name.replace("NEWEST", newest.name)
        self.path = run / name
        self.damaged = (f"work/run/{name}",)
        self.what = f"{family} {state}: {' '.join(self.words[:2])}, {name}"
        # A link or a folder is also named by what it is in, a checkpoint by its folder.
        known = (name, self.path.name, *name.split("/")[:2], *_ALSO.get(name, ()))
        self.names = tuple(dict.fromkeys(known))

    def case(self, kind: str, how: str, *, may_differ: bool) -> Case:
        """The case, after the file was damaged."""
        return Case(
            kind, f"{self.what}: {how}", self.words, self.names,
            None if may_differ else self.expected, self.damaged,
        )  # fmt: skip


def document(dice: Dice, stage: Stage) -> Case:
    """A JSON file: another value, another number, damaged bytes, or something else."""
    target = Target(DOCUMENTS, dice, stage)
    path, how = (
        target.path,
        dice.choice(("edit", "edit", "edit", "edit", "number", "bytes", "other")),
    )
    content = path.read_bytes()
    has_digest = path.suffix == ".json"
    if has_digest and how in ("edit", "number") and dice.random() < 0.8:
        content = odd.without_digest(content)  # or nothing behind the digest would be reached
    may_differ = True
    if how == "edit" and path.suffix == ".json":
        document, how = odd.edited(json.loads(content), dice)
        path.write_text(json.dumps(document, indent=1) + "\n")
    elif how == "edit":
        how = _edit_line(path, dice)
    elif how == "number":
        path.write_text(odd.odd_number(content.decode(), dice))
    else:
        damage = dice.choice(odd.BYTES if how == "bytes" else odd.WRONG)
        path.write_bytes(damage(content, dice))
        how, may_differ = damage.__name__, not has_digest and damage in (odd.flip_bits, odd.blot)
    if path.name == artifacts.METRICS:  # a log: what cannot be read in it is left out
        may_differ = True
    return target.case("document", how, may_differ=may_differ)


def _edit_line(path: Path, dice: Dice) -> str:
    """Edits one line of a log."""
    lines = path.read_text().splitlines()
    number = dice.randrange(len(lines))
    record, how = odd.edited(json.loads(lines[number]), dice)
    lines[number] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    return f"{how} in line {number + 1}"


def weights(dice: Dice, stage: Stage) -> Case:
    """A safetensors file: damaged bytes, another header, other tensors."""
    target = Target(WEIGHTS, dice, stage)
    content = target.path.read_bytes()
    may_differ = False
    if dice.random() < 0.5:
        damage = dice.choice((odd.flip_bits, odd.flip_bits, odd.cut, odd.blot, *odd.WRONG))
        changed, how = damage(content, dice), damage.__name__
    else:
        changed, how, may_differ = containers.other_safetensors(content, dice)
    target.path.write_bytes(changed)
    return target.case("weights", how, may_differ=may_differ)


def checkpoint(dice: Dice, stage: Stage) -> Case:
    """The state of a stopped training, or a released checkpoint."""
    if dice.random() < 0.35:
        return _released(dice, stage)
    target = Target({STATE: _OTHERS[STATE]}, dice, stage)
    if dice.random() < 0.4:
        damage = dice.choice((*odd.BYTES, *odd.WRONG))
        target.path.write_bytes(damage(target.path.read_bytes(), dice))
        return target.case("checkpoint", damage.__name__, may_differ=False)
    how, may_differ = containers.other_state(target.path, dice)
    if dice.random() < 0.8:  # as if it had been written this way
        digest = artifacts.sha256(target.path)
        (target.path.parent / "state.sha256").write_text(f"{digest}\n")
    return target.case("checkpoint", how, may_differ=may_differ)


def _released(dice: Dice, stage: Stage) -> Case:
    words: tuple[str, ...] = ("import", "given/released.pth", "--out", "new")
    if dice.random() < 0.4:
        words = (
            "finetune", "given/released.pth", "--data", "given/photos", "--out", "tuned",
            "--set", "training.epochs=1", "--set", "training.batch_size=16", *ONE,
        )  # fmt: skip
    expected = stage.expected("vit", "searched", words)
    path = stage.work / "given" / "released.pth"
    if dice.random() < 0.35:
        damage = dice.choice((*odd.BYTES, *odd.WRONG))
        path.write_bytes(damage(path.read_bytes(), dice))
        how, may_differ = damage.__name__, False
    else:
        how, may_differ = containers.other_state(path, dice)
    return Case(
        "checkpoint", f"{words[0]} released.pth: {how}", words, ("released",),
        None if may_differ else expected, ("work/given/released.pth",),
    )  # fmt: skip


def replaced(dice: Dice, stage: Stage) -> Case:
    """A pipe, a device, a link, a folder or nothing where a file or folder of a run belongs."""
    target = Target({**DOCUMENTS, **WEIGHTS, **_OTHERS}, dice, stage)
    if not target.path.exists():  # the lock of a run that was never used
        target.path.touch()
    how = odd.replace(target.path, stage.outside, dice)
    return target.case("replaced", how, may_differ=True)
