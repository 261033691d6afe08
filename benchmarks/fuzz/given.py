"""Cases of what a user gives: space files, tars, and pictures."""

from __future__ import annotations

import json
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from benchmarks.fuzz import containers, judging, odd
from benchmarks.fuzz.bases import BENCH_OPTIONS, BUDGETS, PICTURES, SPACES, TABLE, settings_words
from benchmarks.fuzz.judging import Case, Check, Done
from benchmarks.fuzz.odd import Dice
from benchmarks.fuzz.stage import ONE, Stage

# --- spaces --------------------------------------------------------------------------------------


def space(dice: Dice, stage: Stage) -> Case:
    """A space file with odd values, damaged text, or nothing like a space."""
    family = dice.choice(tuple(SPACES))
    stage.set_up(family, "searched")
    suffix = dice.choice((".yaml", ".yaml", ".json", ".yml"))
    path = stage.work / "given" / f"own{suffix}"
    text = SPACES[family]
    document = YAML(typ="safe").load(text)
    if suffix == ".json":
        text = json.dumps(document, indent=1)
    how = _spoil(path, text, document, dice, stage)
    line: tuple[str, ...] = ("info", f"given/own{suffix}")
    if dice.random() < 0.4:
        line = (
            "search", "photos", "--space", f"given/own{suffix}", "--data", "given/photos",
            "--out", "new", *settings_words(), "--budget", BUDGETS[family], *ONE,
        )  # fmt: skip
    # A valid space may not suit the budget, or the channels of the recipe.
    names = (path.name, BUDGETS[family].partition("=")[0], "channels")
    return Case("space", f"{line[0]} {family}{suffix}: {how}", line, names)


def _spoil(path: Path, text: str, document: Any, dice: Dice, stage: Stage) -> str:
    """Writes a document with odd values, damaged text, or no file at all; returns what it did."""
    how: str = dice.choice(("edit", "edit", "edit", "number", "token", "bytes", "wrong", "kind"))
    content = text.encode()
    if how == "edit":
        document, how = odd.edited(document, dice)
        content = json.dumps(document).encode()
    elif how == "number":
        content = odd.odd_number(text, dice).encode()
    elif how == "token":
        words = text.split(" ")
        words[dice.randrange(len(words))] = dice.choice(odd.TEXTS)
        content = " ".join(words).encode("utf-8", "surrogateescape")
    elif how in ("bytes", "wrong"):
        damage = dice.choice(odd.BYTES if how == "bytes" else odd.WRONG)
        content, how = damage(content, dice), damage.__name__
    path.write_bytes(content)
    if how == "kind":
        how = odd.replace(path, stage.outside, dice)
    return how


def accuracies(dice: Dice, stage: Stage) -> Case:
    """A table of known accuracies with odd values, damaged text, or nothing like a table."""
    stage.set_up("vit", "searched")
    path = stage.work / "given" / TABLE
    text = path.read_text()
    how = _spoil(path, text, json.loads(text), dice, stage)
    line = ("bench", "proxies", f"given/{TABLE}", *BENCH_OPTIONS, *ONE)
    return Case("accuracies", f"bench: {how}", line, (path.name,))


# --- tars ----------------------------------------------------------------------------------------


class AsExtracted(Check):
    """A tar gives what Python's tarfile extracts from it, if that can be read."""

    def __init__(self, stage: Stage, words: tuple[str, ...]) -> None:
        self._stage = stage
        other = {TAR: "given/extracted", "new": "again"}
        self._words = tuple(other.get(word, word) for word in words)

    def __call__(self, done: Done) -> str | None:
        work = done.home / "work"
        folder = work / "given" / "extracted"
        try:
            with tarfile.open(work / TAR) as tar:
                tar.extractall(folder, filter="data")
        except tarfile.SpecialFileError:  # a pipe or label that is no picture
            return None
        except tarfile.FilterError as error:
            return f"read, but it is not safe to extract: {error}"
        except (OSError, KeyError):  # names that no folder can hold, links to later members
            return None
        other = judging.run(self._words, self._stage.home, seconds=60)
        ours, theirs = (judging.steady(one.out) for one in (done, other))
        theirs = theirs.replace("given/extracted", TAR).replace("again/", "new/")
        if other.status == 0 and ours == theirs:
            return None
        return f"the extracted folder gives {other.status}: {other.out[-300:]}{other.err[-300:]}"


TAR = "given/photos.tar"


def tar(dice: Dice, stage: Stage) -> Case:
    """A tar of pictures: damaged, odd members, sparse, or no tar at all."""
    words = dice.choice(
        (
            ("evaluate", "run", "--data", TAR, *ONE),
            ("search", "photos", "--space", "given/vit.yaml", "--data", TAR, "--out", "new",
             *settings_words(), "--set", "search.images=data", "--budget", BUDGETS["vit"], *ONE),
        )
    )  # fmt: skip
    expected = stage.expected("vit", "finished", words)
    path = stage.work / TAR
    how, check = (
        dice.choice(("bytes", "bytes", "wrong", "member", "member", "header", "kind")),
        None,
    )
    may_differ = False
    if how in ("bytes", "wrong"):
        damage = dice.choice(odd.BYTES if how == "bytes" else odd.WRONG)
        path.write_bytes(damage(path.read_bytes(), dice))
        how = damage.__name__
    elif how == "member":
        how, may_differ = containers.add_odd_member(path, dice), True
        check = AsExtracted(stage, words)
    elif how == "header":
        how, may_differ = containers.other_member(path, dice), True
        check = AsExtracted(stage, words)
    else:
        how = odd.replace(path, stage.outside, dice)
    names = (
        "photos.tar",
        "/dev/zero",
        "case/outside",
        "ant/",
        "bee/",
        "cat/",
        "dog",
        "x.png",
        "@eaDir",
    )
    return Case(
        "tar", f"{words[0]}: {how}", words, names, None if may_differ else expected,
        (f"work/{TAR}",), check,
    )  # fmt: skip


# --- pictures ------------------------------------------------------------------------------------


def picture(dice: Dice, stage: Stage) -> Case:
    """A picture that is damaged, elongated, of another format, or no file."""
    name = dice.choice(PICTURES)
    is_alone = dice.random() < 0.6
    words: tuple[str, ...] = ("evaluate", "run", "--data", "given/photos", *ONE)
    if is_alone:
        words = ("predict", "run/subnets/00", f"given/{name}", "--json", *ONE)
    family = dice.choice(tuple(SPACES))
    expected = stage.expected(family, "finished", words)
    path = stage.work / "given" / name
    if not is_alone:
        name = f"0{Path(name).suffix}"
        shutil.copy(path, stage.work / "given" / "photos" / "ant" / name)
        path = stage.work / "given" / "photos" / "ant" / name
    how = dice.choice(("bytes", "bytes", "bytes", "wrong", "shape", "shape", "kind", "renamed"))
    may_differ = True
    if how in ("bytes", "wrong"):
        damage = dice.choice(odd.BYTES if how == "bytes" else odd.WRONG)
        path.write_bytes(damage(path.read_bytes(), dice))
        how = damage.__name__
    elif how == "shape":
        how = _odd_shape(path, dice)
    elif how == "kind":
        how = odd.replace(path, stage.outside, dice)
    else:  # the content decides, not the name
        other = dice.choice([one for one in PICTURES if one != path.name])
        content, how = path.read_bytes(), f"renamed to {other}"
        if is_alone:
            path.unlink()
            path = path.with_name(other)
            path.write_bytes(content)
            before = stage.expected(family, "finished", words)
            path.write_bytes(content)
            words = tuple(f"given/{other}" if word == f"given/{name}" else word for word in words)
            expected = before._replace(out=before.out.replace(name, other))
            may_differ = False
    return Case(
        "picture", f"{words[0]} {name}: {how}", words, (path.name, "photos"),
        None if may_differ else expected, (f"work/given/{path.name}",),
    )  # fmt: skip


def _odd_shape(path: Path, dice: Dice) -> str:
    """Another picture under the same name: long, huge, tiny, or of another kind of pixel."""
    how = dice.choice(("8000 x 1", "1 x 40000", "1 x 1", "60000 x 60000", "0 x 5", "mode"))
    if how == "mode":
        mode = dice.choice(("1", "L", "LA", "P", "I;16", "I", "F", "CMYK", "RGBA", "YCbCr", "LAB"))
        image = Image.new(mode, (9, 7))
        try:
            image.save(path)
        except (OSError, ValueError, KeyError):  # this format does not know the mode
            image.convert("RGB").save(path)
        return f"mode {mode}"
    width, height = map(int, how.split(" x "))
    if width * height > 10**6 or not width:
        path.write_bytes(_png_header(width, height))
    else:
        Image.new("RGB", (width, height)).save(path, format="PNG")
    return how


def _png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
