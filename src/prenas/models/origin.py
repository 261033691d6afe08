"""Which commit of this package is at work, so that results can be made again."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_HERE = Path(__file__).parent


def commit() -> str | None:
    """The commit of the installed code, with `-dirty` if it was changed since; None if unknown.

    It is known in a clone, and if the package was installed from a repository.
    """
    return _commit_of_clone() or _commit_of_installation()


def _commit_of_clone() -> str | None:
    """None unless git keeps this very file: the package may lie inside somebody's repository."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_HERE), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
    return done.stdout.strip()


def _commit_of_installation() -> str | None:
    """As pip records it (PEP 610)."""
    try:
        text = distribution("prenas").read_text("direct_url.json")
        found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
