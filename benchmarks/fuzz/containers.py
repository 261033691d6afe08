"""Files with a structure, changed inside it: safetensors, torch.save, tars and pictures."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fuzz import odd
from benchmarks.fuzz.odd import Dice

# --- safetensors ---------------------------------------------------------------------------------


def other_safetensors(content: bytes, dice: Dice) -> tuple[bytes, str, bool]:
    """Content with another header; how; and whether it may be accepted with another meaning."""
    length = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name, other = dice.choice(names), dice.choice(names)
    how = dice.choice(("swap", "type", "shape", "offsets", "length", "edit", "number", "no digest",
                       "drop", "nested", "huge"))  # fmt: skip
    text = None
    if how == "swap":
        header[name], header[other] = header[other], header[name]
    elif how == "type":
        header[name]["dtype"] = dice.choice(("I32", "F16", "F64", "BOOL", "F8_E4M3", "X", 3, None))
    elif how == "shape":
        header[name]["shape"] = dice.choice(([10**6] * 3, [0], [-1], [], "x", [2**63], [1.5]))
    elif how == "huge":
        header[name] = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    elif how == "offsets":
        header[name]["data_offsets"] = dice.choice(([0, 4], [4, 0], [0, 2**62], [-4, 0], [], None))
    elif how == "edit":
        header, how = odd.edited(header, dice)
    elif how == "number":
        text = odd.odd_number(json.dumps(header), dice)
    elif how == "drop":
        del header[name]
    elif how == "nested":
        text = odd.nested(dice)
    elif how == "no digest":  # as release 0.1.0 wrote it: then nothing can be noticed
        header.pop("__metadata__", None)
    encoded = (json.dumps(header) if text is None else text).encode()
    size = len(encoded)
    if how == "length":
        size = dice.choice((0, 1, 2**31, 2**63, len(content)))
    return size.to_bytes(8, "little") + encoded + values, f"{how} of {name}", how == "no digest"


# --- torch.save ----------------------------------------------------------------------------------


class _Evil:
    """Would write a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch outside-was-touched",)


_OTHER_VALUES = ("of stride 0", "of truths", "of bytes", "of doubles", "a parameter")
"""What may be accepted where a checkpoint has a tensor, as other values of the same shape."""


def _tensor_like(tensor: Tensor, dice: Dice) -> tuple[str, Any]:
    """Another thing where a checkpoint has a tensor."""
    shape = tuple(tensor.shape)
    choices: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("larger", lambda: torch.zeros(*shape, 2)),
        ("empty", lambda: torch.zeros(0)),
        ("not finite", lambda: torch.full(shape, float("nan"))),
        ("infinite", lambda: torch.full(shape, float("inf"))),
        ("of stride 0", lambda: torch.zeros(1).expand(shape or (1,))),
        ("of terabytes by stride 0", lambda: torch.zeros(1).expand(10**6, 10**6)),
        ("on meta", lambda: torch.zeros(shape, device="meta")),
        ("sparse", lambda: torch.zeros(shape or (1,)).to_sparse()),
        ("complex", lambda: torch.zeros(shape, dtype=torch.complex64)),
        ("of truths", lambda: torch.zeros(shape, dtype=torch.bool)),
        ("of bytes", lambda: torch.zeros(shape, dtype=torch.uint8)),
        ("of doubles", lambda: tensor.double()),
        ("a parameter", lambda: torch.nn.Parameter(tensor.float())),
        ("a numpy array", lambda: np.zeros(shape)),
        ("a numpy scalar", lambda: np.float64(0.5)),
        ("a text", lambda: "x"),
        ("nothing", lambda: None),
        ("a number", lambda: 10**30),
        ("a list", lambda: [1, 2]),
    )
    name, make = dice.choice(choices)
    return name, make()


def other_state(path: Path, dice: Dice) -> tuple[str, bool]:
    """Rewrites a torch.save file with one change; how, and whether it may mean another state."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    owner, key = dice.choice(list(_places(content)))
    how = dice.choice(("remove", "value", "value", "tensor", "tensor", "tensor", "tensor", "rename",
                       "code", "whole", "pickle"))  # fmt: skip
    name = str(key)[:40]
    may_differ = False
    if how == "tensor":
        places = [(o, k) for o, k in _places(content) if isinstance(o[k], Tensor)]
        owner, key = dice.choice(places)
        kind, owner[key] = _tensor_like(owner[key], dice)
        how, name, may_differ = kind, str(key), kind in _OTHER_VALUES
    elif how == "remove":
        del owner[key]
    elif how == "value":
        owner[key] = odd.value(dice)
        how, may_differ = f"value {owner[key]!r:.30}", True
    elif how == "rename" and isinstance(owner, dict):
        owner[f"module.{key}"] = owner.pop(key)
        may_differ = True  # names with the prefix of a wrapper are read
    elif how == "code":
        owner[key] = dice.choice((_Evil(), Fraction(1, 2), Path("x")))
    elif how == "whole":
        content = dice.choice((None, [], {}, "x", 3, torch.zeros(3), [content]))
    else:
        how = "pickle"
        path.write_bytes(pickle.dumps({"model": {"x": 1}}))
        return how, False
    torch.save(content, path)
    return f"{how}: {name}", may_differ


def _places(value: Any) -> Any:
    """(owner, key) of everything inside nested dicts and lists."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


# --- tars ----------------------------------------------------------------------------------------


def add_odd_member(path: Path, dice: Dice) -> str:
    """Adds a member that a tar of pictures should not have; says which."""
    with tarfile.open(path) as tar:
        members = [(one, tar.extractfile(one).read()) for one in tar.getmembers()]  # type: ignore[union-attr]
    content = members[0][1]
    how, member, data = dice.choice(_members(content, dice))
    place = dice.choice((0, len(members)))
    members.insert(place, (member, data))
    with tarfile.open(path, "w") as tar:
        for info, inside in members:
            tar.addfile(
                info, io.BytesIO(inside) if info.isreg() and info.size == len(inside) else None
            )
    return how


def _members(content: bytes, dice: Dice) -> list[tuple[str, tarfile.TarInfo, bytes]]:
    def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        return info, data

    link, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    return [
        ("an absolute name", *member("/abs/x.png", content)),
        ("a name with ..", *member("../../up/x.png", content)),
        ("a class of its own", *member("dog/x.png", content)),
        ("a picture outside classes", *member("x.png", content)),
        ("a member twice", *member("ant/0.png", content)),
        ("a link out", *member("ant/l.png", type=link, linkname="/etc/passwd")),
        ("a link to a member", *member("ant/l.png", type=link, linkname="1.png")),
        ("a link to itself", *member("ant/l.png", type=link, linkname="l.png")),
        ("a hard link", *member("ant/l.png", type=hard, linkname="ant/1.png")),
        ("a hard link to nothing", *member("ant/l.png", type=hard, linkname="nothing")),
        ("a pipe", *member("ant/p.png", type=tarfile.FIFOTYPE)),
        ("a device", *member("ant/d.png", type=tarfile.CHRTYPE)),
        ("an empty picture", *member("ant/e.png")),
        ("not a picture", *member("ant/n.png", b"text")),
        ("metadata of a tool", *member("@eaDir/x.png", content)),
        ("a hidden file", *member("ant/._1.png", b"\0\5\26\7")),
        ("an empty class", *member("dog", type=tarfile.DIRTYPE)),
        ("a name of 5,000 letters", *member("ant/" + "a" * 5_000 + ".png", content)),
        ("control characters", *member("ant/\x1b[31m\n.png", content)),
        ("a name that is not UTF-8", *member("ant/\udcff.png", content)),
        ("another format", *member("ant/x.heic", content)),
    ]


def other_member(path: Path, dice: Dice) -> str:
    """Turns the first header into that of a sparse file, of an absurd size or another type."""
    content = bytearray(path.read_bytes())
    kind = dice.choice(("sparse type", "size", "negative size", "type"))
    if kind == "sparse type":
        content[156:157] = b"S"
    elif kind == "size":
        content[124:136] = b"\x80\x00\x00\x00" + (2**62).to_bytes(8, "big")
    elif kind == "negative size":
        content[124:136] = b"\xff" * 12
    else:
        content[156:157] = dice.choice((b"7", b"x", b"g", b"L", b"K", b"9", b"V"))
        kind = f"type {content[156:157].decode()}"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(bytes(content))
    return kind
