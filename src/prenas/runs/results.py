"""The results of a trained run; only this module judges whether they belong to its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from prenas import artifacts
from prenas.evaluation.accuracy import Evaluation
from prenas.families import get_family
from prenas.families.base import Arch
from prenas.selection.evolved import Evolved, EvolvedSet, evolved_set
from prenas.supernet import Statistics
from prenas.values import Amount, V, Value, parse_within

if TYPE_CHECKING:
    from prenas.runs.run import Run

T = TypeVar("T")

_TO_REDO = {  # outdated result -> what to remove together with it, and what to do again
    artifacts.EVOLUTION: (f"{artifacts.EVALUATION} and {artifacts.SUBNETS}/", "evolve"),
    artifacts.CALIBRATION: (f"{artifacts.EVALUATION} and {artifacts.SUBNETS}/", "calibrate"),
    artifacts.EVALUATION: (f"{artifacts.SUBNETS}/", "evaluate and hand over"),
}


class Calibration(Value):
    """What `calibration.json` says about the statistics in `calibration.safetensors`."""

    statistics_sha256: str
    num_images: Amount
    batch_size: Amount
    subnets: tuple[str, ...]
    """The ids of the architectures."""


class _Stored(NamedTuple, Generic[T]):
    """A result, and the digest of the supernet it belongs to."""

    result: T
    supernet_sha256: str


class RunResults:
    """What was measured with a trained supernet; results of other weights are refused.

    If the weights are gone, there is nothing to compare with, and results are taken as they are.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._files = run, run.files

    @property
    def evolved(self) -> tuple[Evolved, ...]:
        """The result of evolution so far: one subnet per finished budget.

        Raises:
            ValueError: the file is damaged, or belongs to other weights.
        """
        if self._run.recipe.evolution is None:
            return ()
        return self._current(artifacts.EVOLUTION, _parse_evolution) or ()

    @property
    def evolved_set(self) -> EvolvedSet | None:
        """The evolved subnets; None until every budget is searched."""
        preferred, found = self._run.preferred, self.evolved
        missing = {
            budget
            for number, budget in enumerate(preferred.budgets)
            if number not in preferred.empty_budgets
        } - {one.budget for one in found}
        return None if missing or not found else evolved_set(preferred, found)

    def record_evolved(self, found: Sequence[Evolved]) -> None:
        """Writes `evolution.json`, after each budget."""
        document = {
            "family": self._run.recipe.space.family,
            "supernet_sha256": self._run.supernet_sha256,
            "budgets": [one.model_dump(mode="json") for one in found],
        }
        self._record(artifacts.EVOLUTION, document, tuple(found))

    @property
    def are_calibrated(self) -> bool:
        """Whether the BatchNorm statistics of the subnets were measured."""
        return self._files.has(artifacts.CALIBRATION)

    @property
    def calibration(self) -> Calibration | None:
        """How the statistics of the subnets were measured; None if they were not.

        Raises:
            ValueError: the file is damaged, or belongs to other weights.
        """
        return self._current(artifacts.CALIBRATION, _parse_calibration)

    def statistics(self, archs: Sequence[Arch]) -> list[Statistics] | None:
        """The statistics of these subnets; None if the run is not calibrated yet.

        Raises:
            ValueError: they are missing or damaged, or belong to other weights or subnets.
        """
        calibration = self.calibration
        if calibration is None:
            return None
        is_other = self._files.sha256(artifacts.STATISTICS) != calibration.statistics_sha256
        if is_other or not {arch.id for arch in archs} <= set(calibration.subnets):
            what = f"other subnets or statistics than those of {self._run.folder}"
            raise self._not_current(artifacts.CALIBRATION, what)
        tensors = self._files.read(artifacts.STATISTICS, artifacts.read_tensors)
        assert tensors is not None, "its digest was just compared"
        return [_statistics_of(arch, tensors) for arch in archs]

    def record_statistics(
        self,
        archs: Sequence[Arch],
        statistics: Sequence[Statistics],
        num_images: int,
        batch_size: int,
    ) -> None:
        """Writes `calibration.safetensors`, then `calibration.json`, which marks it as complete.

        Args:
            num_images: how many images they were measured on.
            batch_size: how many of them at a time.
        """
        tensors = {
            f"{arch.id}/{name}": tensor
            for arch, own in zip(archs, statistics, strict=True)
            for name, tensor in own.items()
        }
        with self._run.locked():
            artifacts.write_tensors(self._run.folder / artifacts.STATISTICS, tensors)
            self._files.keep(artifacts.STATISTICS, tensors)
            digest = self._files.sha256(artifacts.STATISTICS)
            assert digest is not None, "just written"
            made = Calibration(
                statistics_sha256=digest,
                num_images=num_images,
                batch_size=batch_size,
                subnets=tuple(arch.id for arch in archs),
            )
            fields = made.model_dump(mode="json")
            document = {"supernet_sha256": self._run.supernet_sha256, **fields}
            self._record(artifacts.CALIBRATION, document, made)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The accuracy of the subnets.

        Raises:
            ValueError: the run is not evaluated, or the file is damaged or of other weights or
                subnets.
        """
        found = self._current(artifacts.EVALUATION, _parse_evaluations)
        if found is None:
            folder = self._run.folder
            raise ValueError(
                f"{folder} has not been evaluated yet ({artifacts.EVALUATION} is missing): "
                f"run `prenas evaluate {folder}` first"
            )
        if [row.arch for row in found] != [*self._run.subnets.archs]:
            recipe = self._run.preferred.recipe
            name = artifacts.PREFERRED if recipe.evolution is None else artifacts.EVOLUTION
            raise self._not_current(artifacts.EVALUATION, f"other subnets than {name}")
        return found

    def record_evaluations(self, rows: Sequence[Evaluation]) -> None:
        """Writes `evaluation.json`."""
        document = {
            "family": self._run.recipe.space.family,
            "supernet_sha256": self._run.supernet_sha256,
            "subnets": [row.model_dump(mode="json") for row in rows],
        }
        self._record(artifacts.EVALUATION, document, tuple(rows))

    def require_current_model(self, folder: Path, supernet_sha256: str | None) -> None:
        """Raises ValueError unless a handed-over model is complete and has the trained weights.

        Args:
            supernet_sha256: the digest of the supernet, as the model's description has it.
        """
        is_current = supernet_sha256 is not None and self._is_current(supernet_sha256)
        if not is_current or not (folder / artifacts.MODEL).exists():
            raise ValueError(
                f"{folder} is not complete, or was handed over from other weights than "
                f"{self._run.folder / artifacts.SUPERNET}: remove it to hand over again"
            )

    def _current(self, name: str, parse: Callable[[dict[str, Any]], _Stored[T]]) -> T | None:
        """The content of a file of results; None if it is missing."""
        stored = self._files.read(name, partial(artifacts.parse_json, parse=parse))
        if stored is None:
            return None
        if not self._is_current(stored.supernet_sha256):
            weights = self._run.folder / artifacts.SUPERNET
            raise self._not_current(name, f"other weights than {weights}")
        return stored.result

    def _is_current(self, supernet_sha256: str) -> bool:
        return self._run.supernet_sha256 in (supernet_sha256, None)

    def _not_current(self, name: str, what: str) -> ValueError:
        others, verb = _TO_REDO[name]
        return ValueError(
            f"{self._run.folder / name} belongs to {what}: to {verb} again, remove it, and "
            f"{others} in the same folder"
        )

    def _record(self, name: str, document: Mapping[str, Any], result: object) -> None:
        """Writes a file with results of the trained weights."""
        digest = document["supernet_sha256"]
        assert digest is not None, "results without weights"
        with self._run.locked():
            self._files.write_json(name, document, _Stored(result, digest))


def _parse_evolution(document: dict[str, Any]) -> _Stored[tuple[Evolved, ...]]:
    found = _parse_entries(document, "budgets", Evolved)
    for one in found:
        if not 0 <= one.accuracy <= 1:
            raise ValueError(f"accuracy is {one.accuracy}, which is not between 0 and 1")
    return _Stored(tuple(found), document["supernet_sha256"])


def _parse_evaluations(document: dict[str, Any]) -> _Stored[tuple[Evaluation, ...]]:
    rows = _parse_entries(document, "subnets", Evaluation)
    if (
        not rows
        or not rows[0].splits
        or any(row.splits.keys() != rows[0].splits.keys() for row in rows)
    ):
        raise ValueError("subnets: every subnet needs results, on the same splits")
    return _Stored(tuple(rows), document["supernet_sha256"])


def _parse_entries(document: dict[str, Any], entries: str, kind: type[V]) -> list[V]:
    """The entries of a document, with their architectures as values of its family."""
    arch_type = get_family(document["family"]).arch_type
    if not isinstance(document[entries], list):
        raise ValueError(f"{entries}: must be a list")
    rows = []
    for number, fields in enumerate(document[entries]):
        where = f"{entries}.{number}"
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: must be an object, not {fields!r:.40}")
        arch = parse_within(arch_type, fields["arch"], f"{where}.arch")
        rows.append(parse_within(kind, {**fields, "arch": arch}, where))
    return rows


def _parse_calibration(document: dict[str, Any]) -> _Stored[Calibration]:
    fields = {name: value for name, value in document.items() if name != "supernet_sha256"}
    return _Stored(Calibration.model_validate(fields), document["supernet_sha256"])


def _statistics_of(arch: Arch, tensors: Mapping[str, Tensor]) -> Statistics:
    """One subnet's part of `calibration.safetensors`."""
    prefix = f"{arch.id}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
