"""JSON files of a run or a model, changed on purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prenas import artifacts


def write_edited(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a document that was read and changed, without the digest of the values it had."""
    kept = {name: value for name, value in document.items() if name != artifacts.CONTENT_DIGEST}
    path.write_text(json.dumps(kept))


def replace_text(path: Path, old: str, new: str) -> None:
    """Replaces a text in a JSON file, and removes the digest of the values it had."""
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    write_edited(path, json.loads(text.replace(old, new)))
