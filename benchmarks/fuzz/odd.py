"""Odd values, and ways to damage bytes, documents and files."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prenas import artifacts

Dice = random.Random

TEXTS = (
    "", " ", "none", "None", "null", "nan", "inf", "-inf", "true", "False", "0", "-1", "1", "-0",
    "1e5", "1e999", "0x10", "1_000", "1,5", "0.5", "2", "3.5", "[]", "{}", "[1", "[[[]]]", "a=b",
    "=", "--", "-", ".", "..", "/", "~", "*", "%s%n", "{0}", "$HOME", "`id`", "; ls", "é", "日本",
    "🐜", "a\nb", "a\tb", "\x1b[31mred", "\u202eabc", "\udcff", "A" * 300, "9" * 5_000,
    "../../etc/passwd", "/dev/null", "/dev/zero", "/proc/self/mem", "digits", "own", "folder",
    "all", "data", "noise", "vit", "cuda:99", "NaN", "1e-320", "١٢", "1/2", "a,b", "a:b:c", "@x",
)  # fmt: skip
"""Texts for the command line."""

_SMALL: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    0.5,
    1.0,
    -0.5,
    1e-12,
    True,
    False,
    None,
    "",
    "x",
    [],
    {},
    [1],
    [8, 16],
)
_HUGE: tuple[Any, ...] = (
    2**31, 2**63, 2**64, 10**9 + 7, 999_999_999, -(2**63), 1e18, 1e308, 1e-320, -1e308,
    [0], [-1], [1, 1], [2, 1], [[1]], [None], ["a"], [True], {"a": 1}, [[]], [10**9], [1e308],
    list(range(1, 300)), "1", "8", "nan", "/dev/zero", "\x1b[31m", "é" * 40, "9" * 5_000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (*_SMALL, *_HUGE)
"""Plain values of every kind, for fields of documents."""

_NUMBERS = (
    "9" * 5_000,
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "1e400",
    "0.1e-999",
    "-0",
    "00",
    "+1",
)
"""Numbers that JSON texts may hold and Python's types do not."""


def value(dice: Dice) -> Any:
    """An odd plain value."""
    return dice.choice(VALUES)


def value_text(dice: Dice) -> str:
    """An odd value as `--set` reads it: JSON, or any text."""
    kind = dice.random()
    if kind < 0.6:
        return json.dumps(value(dice))
    if kind < 0.7:
        return dice.choice(_NUMBERS)
    if kind < 0.75:
        return nested(dice)
    return dice.choice(TEXTS)


def nested(dice: Dice) -> str:
    """Brackets, so many that a recursive reader fails."""
    opening, closing = dice.choice((("[", "]"), ('{"a":', "}")))
    depth = dice.choice((50, 2_000, 100_000))
    middle = dice.choice(("1", ""))
    return opening * depth + middle + closing * (depth if dice.random() < 0.7 else 0)


# --- bytes ---------------------------------------------------------------------------------------


def flip_bits(content: bytes, dice: Dice) -> bytes:
    """One flipped bit, or a few."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 8)) if changed else 0):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(content: bytes, dice: Dice) -> bytes:
    """The beginning of a file."""
    return content[: dice.choice((0, 1, 7, 8, len(content) // 2, max(0, len(content) - 1)))]


def grow(content: bytes, dice: Dice) -> bytes:
    """A file with bytes too many at its end."""
    return content + dice.choice((b"\0", b"\n\n", dice.randbytes(700)))


def blot(content: bytes, dice: Dice) -> bytes:
    """A stretch of zeros or noise, as a bad sector leaves."""
    if not content:
        return content
    start = dice.randrange(len(content))
    length = min(dice.choice((1, 16, 512)), len(content) - start)
    middle = bytes(length) if dice.random() < 0.5 else dice.randbytes(length)
    return content[:start] + middle + content[start + length :]


def foreign(content: bytes, dice: Dice) -> bytes:
    """Another kind of file under the same name."""
    return dice.choice(
        (
            b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab12\nsize 1234\n",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            b"PK\x03\x04" + bytes(60),
            b"\x80\x04\x95" + bytes(30),
            b"cos\nsystem\n(S'echo hi'\ntR.",
            b"name,label\na.png,0\n",
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\0}\0",
            b"null",
            b"[]",
            b"{}",
            b'"text"',
            b"\0" * 4096,
            nested(dice).encode(),
            b'{"schema_version": ' + b"9" * 5_000 + b"}",
        )
    )


BYTES: tuple[Callable[[bytes, Dice], bytes], ...] = (flip_bits, cut, blot)
"""Damage that must never go unnoticed where a file has a digest."""

WRONG: tuple[Callable[[bytes, Dice], bytes], ...] = (grow, foreign)


# --- documents -----------------------------------------------------------------------------------


def without_digest(content: bytes) -> bytes:
    """A JSON file of ours as somebody leaves it who edits it on purpose."""
    document = json.loads(content)
    document.pop(artifacts.CONTENT_DIGEST, None)
    return f"{json.dumps(document, indent=1)}\n".encode()


def edited(document: Any, dice: Dice) -> tuple[Any, str]:
    """A copy of nested plain values with one change, and which in words."""
    copy = json.loads(json.dumps(document))
    where = [path for path in _paths(copy) if path]
    if not where:
        return value(dice), "another document"
    path = dice.choice(where)
    owner = copy
    for key in path[:-1]:
        owner = owner[key]
    key = path[-1]
    name = ".".join(map(str, path))
    how = dice.choice(("value", "value", "value", "remove", "rename", "twin", "swap"))
    if how == "remove":
        del owner[key]
    elif how == "rename" and isinstance(owner, dict):
        owner[dice.choice((f"{key}s", "x", "__class__", ""))] = owner.pop(key)
    elif how == "twin" and isinstance(owner, list):
        owner.extend([owner[key]] * dice.choice((1, 50)))
    elif how == "swap" and len(owner) > 1:
        other = dice.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        owner[key], owner[other] = owner[other], owner[key]
        name += f" and {other}"
    else:
        how, owner[key] = "value", value(dice)
        name += f" = {str(owner[key])[:30]!r}"
    return copy, f"{how} {name}"


def _paths(document: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield prefix
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for key, item in items:
        yield from _paths(item, (*prefix, key))


def odd_number(text: str, dice: Dice) -> str:
    """A JSON text with one of its numbers replaced by one that no type holds."""
    spans, start = [], None
    for position, character in enumerate(f"{text} "):
        if character in "0123456789.-+eE" and (start is not None or character.isdigit()):
            start = position if start is None else start
        elif start is not None:
            spans.append((start, position))
            start = None
    if not spans:
        return text
    begin, end = dice.choice(spans)
    return text[:begin] + dice.choice(_NUMBERS) + text[end:]


# --- files ---------------------------------------------------------------------------------------


def _fifo(path: Path, outside: Path, dice: Dice) -> str:
    os.mkfifo(path)
    return "a pipe"


def _endless(path: Path, outside: Path, dice: Dice) -> str:
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero"


def _loop(path: Path, outside: Path, dice: Dice) -> str:
    path.symlink_to(path.name)
    return "a link to itself"


def _broken(path: Path, outside: Path, dice: Dice) -> str:
    path.symlink_to(outside / "missing")
    return "a link that leads nowhere"


def _folder(path: Path, outside: Path, dice: Dice) -> str:
    path.mkdir()
    return "a folder"


def _full_folder(path: Path, outside: Path, dice: Dice) -> str:
    path.mkdir()
    (path / "x.png").write_bytes(b"x")
    return "a folder with a file"


def _missing(path: Path, outside: Path, dice: Dice) -> str:
    return "missing"


def _link_out(path: Path, outside: Path, dice: Dice) -> str:
    path.symlink_to(outside / "precious.txt")
    return "a link to a file of somebody else"


def _link_to_folder(path: Path, outside: Path, dice: Dice) -> str:
    path.symlink_to(outside)
    return "a link to a folder of somebody else"


KINDS = (
    _fifo, _endless, _loop, _broken, _folder, _full_folder, _missing, _link_out, _link_to_folder,
)  # fmt: skip
"""What may be where a regular file belongs."""


def replace(path: Path, outside: Path, dice: Dice) -> str:
    """Puts another kind of thing in the place of a file or folder; says which."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return dice.choice(KINDS)(path, outside, dice)
