"""Files are written whole or not at all, and read with suspicion."""

import json
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from edits import write_edited
from prenas import artifacts


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc, as Linux has it")
def test_what_a_killed_process_was_writing_is_removed_before_its_parent_has_noticed(
    tmp_path: Path,
) -> None:
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(1)
    name = tmp_path / f".prenas-accuracy.png.{child}.tmp"
    try:
        name.touch()
        artifacts.remove_leftovers(tmp_path, keeps_running=True)
        assert name.exists()
    finally:
        os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and is still there
    artifacts.remove_leftovers(tmp_path, keeps_running=True)
    assert not name.exists()
    os.waitpid(child, 0)


def test_what_an_earlier_process_of_the_same_number_was_writing_is_removed(tmp_path: Path) -> None:
    """In a container every command may be process 1."""
    left, own = (tmp_path / f".prenas-{name}.{os.getpid()}.tmp" for name in ("left", "own"))
    for path in (left, own):
        path.mkdir()
    os.utime(left, (1e9, 1e9))
    with artifacts.temporary_folder(tmp_path, "left") as made:
        assert made == left
        assert own.exists()
    assert not left.exists()


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong, the old content stays and no temporary file does."""
    path = tmp_path / "preferred.json"
    artifacts.write_bytes(path, b"old")
    for step in ("fsync", "replace"):

        def fail(*args: object, step: str = step) -> None:
            raise OSError(28, f"no space for {step}")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail) if step == "fsync" else patch.setattr(
                Path, "replace", fail
            )
            with pytest.raises(OSError, match=f"no space for {step}"):
                artifacts.write_bytes(path, b"new content")
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["preferred.json"]
    artifacts.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_an_interruption_is_cleaned_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifacts.write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synced, then renamed: a power cut never leaves an empty file under the right name."""
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watch_sync(descriptor: int) -> None:
        order.append(f"sync {os.fstat(descriptor).st_size}")
        sync(descriptor)

    def watch_replace(self: Path, target: Path) -> Path:
        order.append(f"rename {self.stat().st_size}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watch_sync)
    monkeypatch.setattr(Path, "replace", watch_replace)
    artifacts.write_bytes(tmp_path / "file", b"12345")
    assert order == ["sync 5", "rename 5"]


@pytest.mark.parametrize("name", list(artifacts.SCHEMA_VERSIONS))
def test_json_is_written_with_its_version_and_read_without(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    artifacts.write_json(path, {"b": [1, 2.5, None], "a": "ü"})
    written = list(json.loads(path.read_text(encoding="utf-8")))
    assert written == ["schema_version", "b", "a", "content_sha256"]
    assert path.read_text().endswith("}\n")
    assert artifacts.read_json(path) == {"b": [1, 2.5, None], "a": "ü"}


_OWN_FIELDS = {"schema_version", artifacts.CONTENT_DIGEST}
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.text(alphabet='[]{}", \n\\'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text().filter(lambda key: key not in _OWN_FIELDS), _VALUES))
def test_any_json_comes_back_as_it_was(content: dict[str, Any]) -> None:
    """However it is laid out, by us or by an editor that sorts and indents."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "preferred.json"
        artifacts.write_json(path, content)
        assert artifacts.read_json(path) == content
        path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
        assert artifacts.read_json(path) == content


def test_every_flipped_bit_of_a_json_file_is_noticed(tmp_path: Path) -> None:
    """Or it changes no value: it hides the digest under another name."""
    path = tmp_path / "preferred.json"
    content = {
        "arch": {"depth": [3, 4]},
        "params": 1_024,
        "score": 0.5,
        "name": "small",
        "no": None,
    }
    artifacts.write_json(path, content)
    whole, hidden = path.read_bytes(), 0
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = artifacts.read_json(path)
        except ValueError:
            continue
        hidden += found != content
        assert {name: found[name] for name in content} == content
        assert len(found) <= len(content) + 1
    assert 0 < hidden < 8 * len(artifacts.CONTENT_DIGEST)


@pytest.mark.parametrize("edit", [("0.5", "0.6"), ("small", "large"), ("[3, 4]", "[3, 4, 4]")])
def test_an_edited_json_file_is_refused_unless_its_editor_meant_it(
    edit: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "preferred.json"
    artifacts.write_json(path, {"depth": [3, 4], "score": 0.5, "name": "small"})
    path.write_text(path.read_text().replace(*edit))
    with pytest.raises(ValueError, match=r"preferred\.json is damaged or was edited.*on purpose"):
        artifacts.read_json(path)
    write_edited(path, json.loads(path.read_text()))
    assert json.loads(edit[1] if edit[1][0] in "[0" else f'"{edit[1]}"') in (
        artifacts.read_json(path).values()
    )


def test_lists_of_numbers_stand_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "preferred.json"
    artifacts.write_json(path, {"heads": [3, 4, 3], "gains": [[0.5, 1.5], [2.5, 3.5]], "none": []})
    assert '"heads": [3, 4, 3]' in path.read_text()
    assert "[0.5, 1.5]" in path.read_text()


def test_numbers_that_json_does_not_know_are_never_written(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            artifacts.write_json(path, {"loss": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged or not valid JSON"),
        (b'{"schema_version": 1, "rec', "is damaged or not valid JSON"),
        (b"\xff\xfe", "is damaged or not valid JSON"),
        (b"[]", "was not written by prenas"),
        (b"3", "was not written by prenas"),
        (b"{}", "was not written by prenas"),
        (b'{"schema_version": 2}', "has schema version 2, but this version of prenas reads 1"),
        (b'{"schema_version": 0}', "has schema version 0, but this version of prenas reads 1"),
        (b'{"schema_version": "one"}', "has schema version 'one'"),
        (b'{"schema_version": null}', "has schema version None"),
    ],
)
def test_unreadable_json_is_refused_by_name(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        artifacts.read_json(path)
    assert str(path) in str(caught.value)


def test_missing_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recipe\.json"):
        artifacts.read_json(tmp_path / "recipe.json")
    with pytest.raises(FileNotFoundError, match=r"w\.safetensors does not exist"):
        artifacts.read_tensors(tmp_path / "w.safetensors")


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    """Views, transposed ones and parameters too; no two share memory in the file."""
    base = torch.randn(4, 6)
    tensors = {
        "view": base[:2, :3],
        "transposed": base.T,
        "parameter": torch.nn.Parameter(base),
        "whole numbers": torch.arange(3),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 2),
    }
    artifacts.write_tensors(tmp_path / "t.safetensors", tensors)
    found = artifacts.read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


@given(st.data())
def test_a_flipped_bit_is_noticed(data: st.DataObject) -> None:
    """Wherever it stands: in a value, a name, a shape, or the digest itself."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.safetensors"
        artifacts.write_tensors(path, {"weight": torch.arange(6.0), "count": torch.tensor([7])})
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            found = artifacts.read_tensors(path)
        except ValueError:
            return
        # A flip may hide the digest, by another name, or make one white space another.
        assert torch.equal(found["weight"], torch.arange(6.0))
        assert torch.equal(found["count"], torch.tensor([7]))


def test_a_file_without_a_digest_is_read(tmp_path: Path) -> None:
    """As 0.1.0 and other programs write them."""
    save_file({"weight": torch.ones(2)}, tmp_path / "t.safetensors")
    assert torch.equal(artifacts.read_tensors(tmp_path / "t.safetensors")["weight"], torch.ones(2))
    assert artifacts.carried_digest(tmp_path / "t.safetensors") is None


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    one = artifacts.write_tensors(path, {"weight": torch.ones(2)})
    assert artifacts.carried_digest(path) == one
    others = ({"weight": torch.zeros(2)}, {"bias": torch.ones(2)}, {"weight": torch.ones(1, 2)})
    assert len({one, *(artifacts.write_tensors(path, other) for other in others)}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_tensor(value: float, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    artifacts.write_tensors(path, {"good": torch.ones(2), "bad": torch.tensor([1.0, value])})
    with pytest.raises(ValueError, match=r"t\.safetensors contains non-finite values in bad"):
        artifacts.read_tensors(path)


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2), "a": torch.zeros(3)}
    artifacts.write_tensors(tmp_path / "1", tensors)
    artifacts.write_tensors(tmp_path / "2", {name: t.clone() for name, t in tensors.items()})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_folder_is_made_and_proven(tmp_path: Path) -> None:
    artifacts.require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    artifacts.require_writable(tmp_path / "a" / "b")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=f"cannot write to {folder}.*choose another"):
            artifacts.require_writable(folder)
    assert (tmp_path / "file").read_text() == "mine"
