"""Cases of what a user gives: spaces, tables, exported files, tars, shards and pictures."""

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
from benchmarks.fuzz.bases import (
    BENCH_OPTIONS,
    BUDGETS,
    EXPORTED,
    PICTURES,
    SCORES,
    SHARDS,
    SPACES,
    TABLE,
    latency_file,
    settings_words,
)
from benchmarks.fuzz.judging import Case, Check, Done
from benchmarks.fuzz.odd import Dice
from benchmarks.fuzz.stage import ONE, Stage
from prenas import artifacts

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


def _read(path: Path, dice: Dice) -> str:
    """A JSON file of ours; mostly without its digest, behind which nothing would be reached."""
    content = path.read_bytes()
    return (odd.without_digest(content) if dice.random() < 0.8 else content).decode()


def accuracies(dice: Dice, stage: Stage) -> Case:
    """A table of known accuracies, or what was found for it, with odd values, damaged text, or
    nothing like it."""
    stage.set_up("vit", "searched")
    path = stage.work / "given" / dice.choice((TABLE, TABLE, SCORES))
    text = _read(path, dice)
    how = _spoil(path, text, json.loads(text), dice, stage)
    line = (
        "bench", "proxies", f"given/{TABLE}", *BENCH_OPTIONS, "--out", f"given/{SCORES}", *ONE,
    )  # fmt: skip
    # Another architecture makes other conditions than those of the scores.
    return Case("accuracies", f"bench {path.name}: {how}", line, (path.name, SCORES),
                written=(f"work/given/{SCORES}",))  # fmt: skip


def latency(dice: Dice, stage: Stage) -> Case:
    """A latency table with odd values, damaged text, or nothing like a table."""
    family = dice.choice(tuple(SPACES))
    stage.set_up(family, "searched")
    path = stage.work / "given" / latency_file(family)
    text = _read(path, dice)
    how = _spoil(path, text, json.loads(text), dice, stage)
    line = (
        "search", "photos", "--space", f"given/{family}.yaml", "--data", "given/photos", "--out",
        "new", *settings_words(), "--latency", f"given/{path.name}", "--latency-elsewhere",
        "--budget", f"latency={dice.choice(('1ms', '50us', '9ns:1s', '20us:80us:20us', '40'))}",
        *ONE,
    )  # fmt: skip
    # A table of another machine, or of other layers, is refused for what it says.
    return Case("latency", f"{line[0]} {family}: {how}", line, (path.name, "latency"))


# --- exported files ------------------------------------------------------------------------------


def exported(dice: Dice, stage: Stage) -> Case:
    """An exported file or its card: damaged bytes, another value, or something else."""
    words = ("predict", f"given/{EXPORTED}", "given/p.png", "--json", *ONE)
    expected = stage.expected("vit", "searched", words)
    name = dice.choice((artifacts.EXPORT, artifacts.EXPORT, "model.onnx"))
    path = stage.work / "given" / EXPORTED / name
    content, may_differ = path.read_bytes(), False
    how = dice.choice(("edit", "edit", "bytes", "wrong", "kind"))
    if how == "edit" and name == artifacts.EXPORT:
        document, how = odd.edited(json.loads(_read(path, dice)), dice)
        path.write_text(json.dumps(document))
        may_differ = True
    elif how == "kind":
        how = odd.replace(path, stage.outside, dice)
    else:
        damage = dice.choice(odd.WRONG if how == "wrong" else odd.BYTES)
        path.write_bytes(damage(content, dice))
        how = damage.__name__
    # Without its card, a folder is taken for one of a model.
    return Case("exported", f"predict {name}: {how}", words, (name, EXPORTED),
                None if may_differ else expected, (f"work/given/{EXPORTED}/{name}",))  # fmt: skip


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


# --- shards --------------------------------------------------------------------------------------


def shards(dice: Dice, stage: Stage) -> Case:
    """One of three shards: damaged, with an odd member, or no tar at all; or an odd pattern."""
    pattern = dice.choice((f"given/{SHARDS}", f"given/{SHARDS}/photos-{{0..2}}.tar"))
    words = (
        "search", "photos", "--space", "given/vit.yaml", "--data", pattern, "--out", "new",
        *settings_words(), "--set", "search.images=data", "--budget", BUDGETS["vit"], *ONE,
    )  # fmt: skip
    expected = stage.expected("vit", "searched", words)
    path = stage.work / "given" / SHARDS / f"photos-{dice.randrange(3)}.tar"
    how, may_differ = dice.choice(("bytes", "bytes", "wrong", "member", "header", "kind")), False
    if how in ("bytes", "wrong"):
        damage = dice.choice(odd.BYTES if how == "bytes" else odd.WRONG)
        path.write_bytes(damage(path.read_bytes(), dice))
        # A label has no checksum: a flipped bit in it is another class.
        how, may_differ = damage.__name__, damage in (odd.flip_bits, odd.blot)
    elif how == "member":
        how, may_differ = containers.add_odd_member(path, dice), True
    elif how == "header":
        how, may_differ = containers.other_member(path, dice), True
    else:
        how = odd.replace(path, stage.outside, dice)
        if how in ("missing", "a folder", "a folder with a file"):  # a folder of fewer shards
            may_differ = pattern == f"given/{SHARDS}"
    names, damaged = (path.name, SHARDS, "/dev/zero", "case/outside"), f"work/given/{SHARDS}"
    return Case("shards", f"search {path.name}: {how}", words, names,
                None if may_differ else expected, (f"{damaged}/{path.name}",))  # fmt: skip


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
