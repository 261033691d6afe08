"""The folder in which cases run: a run, what was given with it, and what belongs to others."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.fuzz import judging
from benchmarks.fuzz.bases import CPU, Bases
from benchmarks.fuzz.judging import Done


class Stage:
    """Sets the folder up for every case, at the same path, so that outputs can be compared."""

    def __init__(self, bases: Bases) -> None:
        self.bases = bases
        self.home = bases.home / "case"
        self._expected: dict[tuple[str, str, tuple[str, ...]], Done] = {}

    @property
    def work(self) -> Path:
        """The current folder of every command; has `run` and `given`."""
        return self.home / "work"

    @property
    def outside(self) -> Path:
        """A folder of somebody else."""
        return self.home / "outside"

    def set_up(self, family: str, state: str) -> None:
        """A fresh folder with a copy of a run."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.bases.given, self.work / "given")
        shutil.copytree(self.bases.run(family, state), self.work / "run")
        self.outside.mkdir()
        (self.outside / "precious.txt").write_text("somebody else's\n")
        (self.outside / ".step-00000001.tmp").mkdir()
        (self.home / "tmp").mkdir()
        tempfile.tempdir = str(self.home / "tmp")

    def expected(self, family: str, state: str, words: tuple[str, ...]) -> Done:
        """What a command does without damage; leaves a fresh folder."""
        key = family, state, words
        if key not in self._expected:
            self.set_up(family, state)
            done = judging.run(words, self.home, seconds=300)
            if done.status != 0:
                raise RuntimeError(f"{words} fails without damage: {done.err}{done.trace}")
            self._expected[key] = done
        self.set_up(family, state)
        return self._expected[key]


ONE = ("--threads", "1", *CPU)
"""Options of every command that computes."""
