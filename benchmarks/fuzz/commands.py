"""Cases of the command line: options, fields of a recipe, budgets and amounts."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import typer

from benchmarks.fuzz import odd
from benchmarks.fuzz.bases import BENCH_OPTIONS, SPACES, TABLE, run_words, settings_words
from benchmarks.fuzz.judging import Case, Check, Done
from benchmarks.fuzz.odd import Dice
from benchmarks.fuzz.stage import ONE, Stage
from prenas import artifacts
from prenas.cli import app
from prenas.recipe import flat_fields, with_overrides
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.space_file import read_space

Part = tuple[str, ...]
"""Words that belong together: an option with its value, or one argument."""

_PHOTOS = ("--data", "given/photos")
_SMALL = tuple(zip(*(iter(settings_words()),) * 2, strict=True))
_RIGHT: dict[str, tuple[str, tuple[Part, ...]]] = {
    "run": ("searched", (
        ("photos",), ("--space", "given/vit.yaml"), _PHOTOS, *_SMALL,
        ("--budget", "params=1k:4k:1k"), ("--track", "tensorboard"), ("--further-seeds", "1"),
    )),
    "finetune": ("finished", (
        ("run",), _PHOTOS, ("--subnet", "0"), ("--head", "fresh"), ("--image-size", "8"),
        ("--set", "training.batch_size=16"),
    )),
    "search": ("searched", (
        ("photos",), ("--out", "new"), ("--space", "given/vit.yaml"), _PHOTOS, *_SMALL,
        ("--budget", "params=1k:4k:1k"),
    )),
    "train": ("stopped", (("run",), _PHOTOS)),
    "evolve": ("trained", (("run",),)),
    "calibrate": ("trained", (("run",), _PHOTOS)),
    "evaluate": ("trained", (
        ("run",), _PHOTOS, ("--crops", "5"),
        ("--arch", '{"embed_dim": 8, "num_heads": [1], "mlp_ratio": [1.0]}'),
    )),
    "report": ("finished", (
        ("run",), ("other",), ("--html",), ("--to", "page.html"), ("--no-pictures",),
    )),
    "status": ("stopped", (("run",), ("--json",))),
    "specialize": ("finished", (("run",), ("--index", "0"), ("--to", "model"))),
    "import": ("searched", (("given/released.pth",), ("--out", "new"), ("--space", "tiny"))),
    "predict": ("finished", (
        ("run/subnets/00",), ("given/p.png",), ("given/p.jpg",), ("--top", "2"), ("--json",),
        ("--batch-size", "2"), ("--out", "classes.json"),
    )),
    "export": ("finished", (
        ("run/subnets/00",), ("--format", "torch"), ("--to", "model"), ("--batch", "2"),
    )),
    "measure": ("finished", (("run",), ("--engine", "torch"), ("--batch", "2"))),
    "push": ("finished", (("run",), ("--repo", "me/photos"), ("--to", "model"))),
    "info": ("finished", (("run",),)),
    "bench": ("searched", (
        ("proxies",), (f"given/{TABLE}",), *zip(*(iter(BENCH_OPTIONS),) * 2, strict=True),
        ("--seeds", "1"), ("--out", "bench.json"),
    )),
    "watch": ("searched", (("nowhere",), ("--port", "0"))),  # of a run, it would never end
}  # fmt: skip
"""Command -> the state of the run, and the parts of a valid line."""

_COMMANDS: Any = getattr(typer.main.get_command(app), "commands")  # noqa: B009
_PATHS = ("case/work", str(Path.home()))  # what a path such as .. or ~ stands for
_DRY = ("run", "finetune")  # these only measure a few steps here, and write nothing


def command_line(dice: Dice, stage: Stage) -> Case:
    """A valid line with parts left out, doubled, moved, or given odd values."""
    name = dice.choice(tuple(_RIGHT))
    state, right = _RIGHT[name]
    family = dice.choice(tuple(SPACES))
    stage.set_up(family, state)
    if name == "report":  # a page of several runs
        shutil.copytree(stage.work / "run", stage.work / "other")
    parts = [*right]
    for _ in range(dice.choice((1, 1, 2, 3))):
        how = dice.choice(("odd", "odd", "odd", "new", "new", "leave out", "twice", "order"))
        place = dice.randrange(len(parts)) if parts else 0
        if how == "odd" and parts:
            parts[place] = (*parts[place][:-1], dice.choice(odd.TEXTS))
        elif how == "new":
            parts.insert(place, _odd_option(name, dice))
        elif how == "leave out" and parts:
            del parts[place]
        elif how == "twice" and parts:
            parts.append(parts[place])
        else:
            dice.shuffle(parts)
    last = ("--dry-run",) if name in _DRY else ()
    words = (name, *(word for part in parts for word in part), *last)
    real = [os.path.realpath(word) for word in words if word.startswith("/")]  # of /proc/self
    fields = [repr(word.partition("=")[0]) for word in words if "=" in word]  # of --set
    names = ("Usage:", "--", *_PATHS, *words, *real, *fields)
    kept = (f"work/run/{artifacts.MEASURED}",) if name == "measure" else ()  # of earlier engines
    return Case("command line", " ".join(words)[:300], words, names, kept=kept)


def _odd_option(name: str, dice: Dice) -> Part:
    """An option of the command, or of another one, with an odd value or none."""
    owner = _COMMANDS[name if dice.random() < 0.8 else dice.choice(tuple(_RIGHT))]
    options = [one.opts[-1] for one in owner.params if one.opts[-1].startswith("-")]
    option = dice.choice((*options, "--help", "--unknown", "-x"))
    return dice.choice(
        ((option, dice.choice(odd.TEXTS)), (option,), ("--import", "given/vit.yaml"))
    )


# --- fields --------------------------------------------------------------------------------------


def field(dice: Dice, stage: Stage) -> Case:
    """A field of a recipe, with an odd value."""
    family = dice.choice(tuple(SPACES))
    stage.set_up(family, "searched")
    name = dice.choice(_fields(stage.work / "given" / f"{family}.yaml"))
    text = odd.value_text(dice)
    words = list(run_words(family, out="new"))
    command = dice.choice(("search", "search", "run"))
    if command == "search":
        words[0] = "search"
    elif not _may_train(name):
        words.append("--dry-run")
    if name == "search.budgets":
        place = words.index("--budget")
        del words[place : place + 2]
    words += ["--set", f"{name}={text}"]
    check = Recorded(name, text) if command == "search" else None
    consequences = ("no subnet fits", "not finite", "channels")  # of a value that is a valid one
    names = (text, str(_read(text)), name, name.rpartition(".")[2], "--set", *consequences)
    return Case("field", f"{command} {family} {name}={text[:80]}", tuple(words), names, check=check)


def _fields(space: Path) -> list[str]:
    """All fields of a recipe of own pictures, those of a teacher and of an evolution too."""
    recipe = get_recipe("photos").model_dump(mode="json")
    recipe["space"] = read_space(space).model_dump(mode="json")
    whole = with_overrides(
        get_recipe("photos"), ["evolution={}", "training.sandwich=1", "training.teacher.name=x"]
    ).model_dump(mode="json")
    fields = {**recipe, "evolution": whole["evolution"], "training": whole["training"]}
    groups = [f"{group}.{n}" for group in fields if isinstance(fields[group], dict)
              for n, inner in fields[group].items() if isinstance(inner, dict)]  # fmt: skip
    return [name for name, _ in flat_fields(fields)] + [*fields, *groups]


_LONG = re.compile(
    r"epochs|steps|size|num_|population|generations|repeats|sandwich|seed|memory|compile|crops"
    r"|^(space|search|calibration)|^(evolution|training|data)$"
)


def _may_train(name: str) -> bool:
    """Whether an accepted value of a field leaves a training as short as it is."""
    return _LONG.search(name) is None


class Recorded(Check):
    """An accepted value is the one in `recipe.json`, not something that it was turned into."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text.strip()

    def __call__(self, done: Done) -> str | None:
        work = done.home / "work"
        recipe = json.loads((work / "new" / artifacts.RECIPE).read_text())["recipe"]
        got: Any = recipe
        for key in self._name.split("."):
            if not isinstance(got, dict) or key not in got:
                return None
            got = got[key]
        asked = _read(self._text)
        if self._name == "training.inplace_distillation" and isinstance(asked, bool):
            return None
        if _is_same(asked, got):
            return None
        return f"{self._name}={self._text[:60]} became {json.dumps(got)[:120]}"


def _read(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_same(asked: Any, got: Any) -> bool:
    """Whether a recorded value is the one asked for: numbers by value, a truth is no number."""
    if isinstance(asked, bool) or isinstance(got, bool):
        return asked is got
    if isinstance(asked, list) and isinstance(got, list):
        return len(asked) == len(got) and all(map(_is_same, asked, got))
    if isinstance(got, list) and len(got) == 1:  # one option instead of a list of options
        return _is_same(asked, got[0])
    if isinstance(asked, dict) and isinstance(got, dict):
        return all(key in got and _is_same(asked[key], got[key]) for key in asked)
    if isinstance(asked, str) and isinstance(got, (int, float)):
        try:
            return float(asked) == got
        except ValueError:
            return False
    if isinstance(asked, str) and isinstance(got, dict):
        return True  # the name of a space
    return bool(asked == got)


# --- budgets and amounts -------------------------------------------------------------------------

_AMOUNTS = (
    "6M", "1k", "2k", "4k", "0", "-1", "1e5", "1.5G", "99999999999999999999G", "1:1000000000:1",
    "1:2:3:4", "5M:1M", "k", "M", "1kk", "0.1", "1e999", "9" * 5_000, "nan", "1 000", "1_000",
    "\uff11\uff12", "1k:4k:1k", "1:2", "0:5M", "1k:4k:0", "1k:4k:-1", "", ":", "::", "1k:",
    ":4k", "1/2",
    "100%", "0x10", "5ms", "50us", "40ns", "5MB", "20kB", "1e3:1e4:1e3", "1T", "1m", "1K",
    "1.5.5k", "inf", "50k:200k", "1e-5", "+5k",
    "0:100000:1", "1.2345k", "8/12", "9" * 300 + "/8", "1k:4k:1e-3", "\x1b[0m", "2**10", "5k ",
)  # fmt: skip
_AXES = (
    "params", "params", "params", "macs", "macs", "resolution", "Params", "param", "latency", "",
    "params ", "p\u0430rams", "time", "params=params", "size", "latency",
)  # fmt: skip


def budget(dice: Dice, stage: Stage) -> Case:
    """Budgets of a search, or limits on the subnet that is handed over."""
    family = dice.choice(tuple(SPACES))
    stage.set_up(family, "finished")
    amount = dice.choice(_AMOUNTS)
    text = ",".join(
        f"{dice.choice(_AXES)}={dice.choice(_AMOUNTS)}" for _ in range(dice.choice((1, 1, 2)))
    )
    text = text if dice.random() < 0.9 else text.replace("=", "", 1)
    searching = (
        "search", "photos", "--space", f"given/{family}.yaml", *_PHOTOS, "--out", "new",
        *settings_words(),
    )  # fmt: skip
    handing = ("specialize", "run", "--to", "model")
    words, limit = dice.choice(
        (
            ((*searching, "--budget", text), text),
            ((*searching, "--budget", text), text),
            ((*handing, "--max", text), text),
            ((*handing, "--max", text), text),
            ((*handing, "--max-params", amount), f"params={amount}"),
            ((*handing, "--max-macs", amount), f"macs={amount}"),
        )
    )
    parts = limit.split(",")
    names = (limit, *parts, *(part.partition("=")[0] for part in parts))
    amounts = [part.partition("=")[2] for part in parts]
    amounts += [end for one in amounts for end in one.split(":")]
    names = (*(name for name in (*names, *amounts) if name), "axis ''", "cost ''")
    what = f"{words[0]} {family} {words[-2]} {limit[:80]}"
    return Case("budget", what, (*words, *ONE), names, check=Within(limit))


class Within(Check):
    """What was chosen costs no more than the limits, where they are written in a simple form."""

    def __init__(self, text: str) -> None:
        found = [re.fullmatch(r"(params|macs)=(\d{1,30})([kMG]?)", one) for one in text.split(",")]
        units = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
        self._limits = {m[1]: int(m[2]) * units[m[3]] for m in found if m}

    def __call__(self, done: Done) -> str | None:
        work = done.home / "work"
        paths = work / "new" / artifacts.PREFERRED, work / "model" / artifacts.MODEL_ARCH
        for path in paths:
            if not path.exists():
                continue
            document = json.loads(path.read_text())
            rows = document["subnets"] if "subnets" in document else [document["provenance"]]
            for row in rows:
                for axis, limit in self._limits.items():
                    if row["costs"][axis] > limit:
                        return f"{path.name}: {axis} {row['costs'][axis]} is over {limit}"
        return None
