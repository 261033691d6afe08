"""Files are regular and of bounded size, and JSON is of bounded depth."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenas.files import MOST_DIGITS, check_depth, load_json, open_file, read_bytes


@pytest.mark.parametrize(
    ("kind", "words"), [("fifo", "is a pipe"), ("socket", "is a socket"), ("folder", "is a folder")]
)
def test_what_is_not_a_regular_file_is_named(kind: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    with pytest.raises(ValueError, match=rf"thing {words}, not a regular file"):
        read_bytes(path, 10)


def test_a_link_to_an_endless_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"endless\.json is a device, not a regular file"):
        read_bytes(tmp_path / "endless.json", 10)


@pytest.mark.parametrize(
    "read",
    [
        lambda file: file.read(),
        lambda file: file.read(10),
        lambda file: file.readline(),
        lambda file: file.readinto(bytearray(10)),
        lambda file: file.readinto(bytearray(10**6)),
    ],
)
def test_a_file_that_cannot_be_read_is_named(read: Callable[[Any], object]) -> None:
    """The memory of this process has no first byte: a regular file with an error of the device."""
    with (
        open_file(Path("/proc/self/mem")) as file,
        pytest.raises(OSError, match="/proc/self/mem cannot be read: Input/output error"),
    ):
        read(file)


def test_a_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"content"


def test_a_missing_file_and_a_loop_of_links_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing does not exist"):
        read_bytes(tmp_path / "missing", 10)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"loop cannot be read: Too many levels"):
        read_bytes(tmp_path / "loop", 10)


def test_a_file_may_be_as_long_as_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match=r"file is longer than 4 bytes"):
        read_bytes(tmp_path / "file", 4)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 5_000 + "]" * 5_000,
        '{"a":' * 101 + "1" + "}" * 101,
        '{"a":' * 101,
        '["\\"]]]]]", ' * 101,
    ],
    ids=len,
)
def test_json_nested_too_deeply_is_refused(text: str) -> None:
    """Whether or not Python's own reader gives up first, and if the text is not whole."""
    with pytest.raises(ValueError, match="nested more deeply than 100 levels"):
        load_json(text)


@pytest.mark.parametrize("text", ['["' + "[" * 200, "[1], " * 200, '{"a":' * 100], ids=len)
def test_other_text_is_not_json(text: str) -> None:
    """Brackets inside texts, or beside each other, are not deep."""
    with pytest.raises(json.JSONDecodeError):
        load_json(text)


def test_a_hundred_levels_are_read() -> None:
    text = "[" * 100 + "]" * 100
    assert load_json(text) == json.loads(text)
    with pytest.raises(ValueError, match="nested"):
        check_depth([load_json(text)])


def test_integers_have_a_limit_of_digits() -> None:
    assert load_json(f"[{'9' * MOST_DIGITS}]") == [10**MOST_DIGITS - 1]
    for digits in ("9" * 5_000, "-" + "9" * 4_000):
        with pytest.raises(ValueError, match=r"an integer has [45],00[01] digits: at most 4,000"):
            load_json(f'{{"a": {digits}}}')


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_other_json_is_read_as_python_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert load_json(text) == json.loads(text)
    assert load_json(text.encode()) == json.loads(text)
