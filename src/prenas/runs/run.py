"""A run: what its folder holds, read when it is first asked for, and how results get there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prenas import artifacts
from prenas.data import ImageData
from prenas.evaluation.accuracy import Evaluation
from prenas.families import build_structure
from prenas.families.base import Arch
from prenas.processes import resolve_device
from prenas.recipe import Recipe, deciding_differences, recipe_from_dict
from prenas.runs import results
from prenas.runs.folder import RunFolder
from prenas.runs.images import HeldImages, RunImages
from prenas.runs.results import Calibration, Stored
from prenas.selection.evolved import Evolved, EvolvedSet, evolved_set
from prenas.selection.preferred import PreferredSet
from prenas.supernet import Statistics, Supernet, statistic_names

T = TypeVar("T")

_TO_REDO = {  # what is removed with a result that is no longer current, and what for
    artifacts.EVOLUTION: (f"{artifacts.EVALUATION} and {artifacts.SUBNETS}/", "evolve"),
    artifacts.CALIBRATION: (f"{artifacts.EVALUATION} and {artifacts.SUBNETS}/", "calibrate"),
    artifacts.EVALUATION: (f"{artifacts.SUBNETS}/", "evaluate and cut"),
}


class Run:
    """A run folder, opened: every file is read once, when it is asked for, and checked.

    Reading locks nothing, and works while another process trains there. Results of other weights
    than the trained supernet's are refused here, and nowhere else.

    Example:
        run = prenas.Run("runs/digits")
        print(run.preferred.archs, run.evaluations)
        logits = run.supernet(images, run.preferred.archs[0])

    Args:
        folder: need not be there yet.
        recipe: of a run that begins, or goes on, with it; by default the one it was begun with.
        data: images from Python in place of those that the recipe names.
        device: where networks go.

    Raises:
        ValueError: the folder belongs to another recipe, or an unknown device.
    """

    def __init__(
        self,
        folder: str | Path,
        recipe: Recipe | None = None,
        *,
        data: ImageData | None = None,
        device: str = "auto",
    ) -> None:
        self.folder = Path(folder)
        self.device = resolve_device(device)
        self.files = RunFolder(self.folder)
        self._held = HeldImages(data)
        self._asked = recipe
        self._require_same_recipe()

    # --- what was decided ------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The recipe that was asked for, or the one that the run was begun with."""
        found = self._asked or self._recorded_recipe
        if found is None:
            raise self._not_searched(artifacts.RECIPE)
        return found

    @property
    def is_searched(self) -> bool:
        """Whether its subnets are chosen, by a search, an import or an adaptation."""
        return self.files.has(artifacts.PREFERRED)

    @property
    def preferred(self) -> PreferredSet:
        """The preferred set; ValueError before the search, or where it is damaged."""
        if not self.is_searched:
            raise self._not_searched(artifacts.PREFERRED)
        recipe = self._recorded_recipe
        if recipe is None:
            raise ValueError(f"{self.folder / artifacts.RECIPE} is missing: restore it from a copy")
        read = partial(artifacts.parse_json, parse=partial(_parse_preferred, recipe))
        found = self.files.read(artifacts.PREFERRED, read)
        assert found is not None, "just looked for"
        return found if found.recipe is recipe else found.model_copy(update={"recipe": recipe})

    @property
    def is_imported(self) -> bool:
        """Whether it holds released weights instead of a training of its own."""
        return self.is_searched and self.preferred.imported is not None

    @property
    def subnets(self) -> PreferredSet:
        """The subnets that are evaluated and handed over: preferred, or of one-shot NAS evolved.

        Raises:
            ValueError: the search, or the evolution, is not finished; names the command.
        """
        if self.preferred.recipe.evolution is None:
            return self.preferred
        if (found := self.evolved_set) is None:
            raise ValueError(
                f"{self.folder} holds no finished evolution, by which its recipe chooses subnets: "
                f"run `prenas evolve {self.folder}` first"
            )
        return found

    def record_recipe(self, recipe: Recipe) -> None:
        """Writes `recipe.json`."""
        with self.locked():
            document = {"recipe": recipe.model_dump(mode="json")}
            self.files.write_json(artifacts.RECIPE, document, recipe)

    def record_preferred(self, preferred: PreferredSet) -> None:
        """Writes `preferred.json`: the last file of a search, which says that it is done.

        Its recipe stands in `recipe.json`.
        """
        with self.locked():
            document = preferred.model_dump(mode="json", exclude={"recipe"})
            self.files.write_json(artifacts.PREFERRED, document, preferred)

    def on(self, data: ImageData | None) -> Run:
        """The same run on other images; None for those that its recipe names."""
        other = copy(self)
        other._held = HeldImages(data)
        return other

    @property
    def images(self) -> RunImages:
        """The images that it is used with."""
        return RunImages(self, self._held)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in the order of the outputs; None before the run was begun on images."""
        return self.images.recorded.class_names if self.images.recorded else None

    # --- weights ---------------------------------------------------------------------------------

    def initial_supernet(self, *, drop_path: float = 0.0, dropout: float = 0.0) -> Supernet:
        """The envelope with the weights that were scored, or adapted, before the training."""
        preferred, space = self.preferred, self.recipe.space
        arch = space.supernet if preferred.adapted is None else preferred.envelope
        initial = Supernet(arch, space.settings)
        artifacts.load_weights(initial.network, self.folder / artifacts.INITIAL)
        return initial.trimmed(preferred.envelope, drop_path=drop_path, dropout=dropout)

    def record_initial(self, supernet: Supernet) -> None:
        """Writes `initial.safetensors`."""
        with self.locked():
            weights = supernet.network.state_dict()
            artifacts.write_tensors(self.folder / artifacts.INITIAL, weights)

    @property
    def is_trained(self) -> bool:
        """Whether the supernet is trained, or imported."""
        return self.files.has(artifacts.SUPERNET)

    @property
    def supernet(self) -> Supernet:
        """The trained supernet, in evaluation mode, on the run's device.

        Raises:
            ValueError: it is not trained, or damaged.
        """
        preferred = self.preferred
        found = self.files.read(artifacts.SUPERNET, partial(self._load_supernet, preferred))
        if found is None:
            command = f"import FILE --out {self.folder}"
            if preferred.imported is None:
                command = f"train {self.folder}"
            raise ValueError(
                f"{self.folder} holds no trained supernet ({artifacts.SUPERNET} is missing): "
                f"run `prenas {command}` first"
            )
        return found

    @property
    def supernet_sha256(self) -> str | None:
        """The digest of the trained weights; None before they are there."""
        return self.files.sha256(artifacts.SUPERNET)

    def record_supernet(self, supernet: Supernet) -> None:
        """Writes `supernet.safetensors`: the last file of a training, which says that it is done"""
        with self.locked():
            weights = supernet.network.state_dict()
            artifacts.write_tensors(self.folder / artifacts.SUPERNET, weights)
            plain = supernet.trimmed(supernet.arch).eval()  # as it would be read
            self.files.keep(artifacts.SUPERNET, plain.to(self.device))

    @property
    def needs_calibration(self) -> bool:
        """Whether its networks keep statistics of images, which training does not gather."""
        space = self.recipe.space
        return bool(statistic_names(build_structure(space.smallest, space.settings)))

    # --- results ---------------------------------------------------------------------------------

    @property
    def evolved(self) -> tuple[Evolved, ...]:
        """What evolution found so far, one per finished budget.

        Raises:
            ValueError: it is damaged, or belongs to other weights.
        """
        if self.recipe.evolution is None:
            return ()
        return self._result(artifacts.EVOLUTION, results.parse_evolution) or ()

    @property
    def evolved_set(self) -> EvolvedSet | None:
        """The evolved subnets; None until every budget is searched."""
        preferred, found = self.preferred, self.evolved
        missing = {
            budget
            for number, budget in enumerate(preferred.budgets)
            if number not in preferred.empty_budgets
        } - {one.budget for one in found}
        return None if missing or not found else evolved_set(preferred, found)

    def record_evolved(self, found: Sequence[Evolved]) -> None:
        """Writes `evolution.json`, after each budget."""
        with self.locked():
            stored = Stored(tuple(found), self._require_sha256())
            document = results.evolution_document(stored, self.recipe.space.family)
            self.files.write_json(artifacts.EVOLUTION, document, stored)

    @property
    def is_calibrated(self) -> bool:
        """Whether the statistics of its subnets are gathered."""
        return self.files.has(artifacts.CALIBRATION)

    @property
    def calibration(self) -> Calibration | None:
        """How the statistics of its subnets were gathered; None where they are not (yet).

        Raises:
            ValueError: it is damaged, or belongs to other weights.
        """
        return self._result(artifacts.CALIBRATION, results.parse_calibration)

    def statistics(self, archs: Sequence[Arch]) -> list[Statistics] | None:
        """The statistics of these subnets; None if the run is not calibrated yet.

        Raises:
            ValueError: they are missing or damaged, or of other weights or subnets.
        """
        calibration = self.calibration
        if calibration is None:
            return None
        is_other = self.files.sha256(artifacts.STATISTICS) != calibration.statistics_sha256
        if is_other or not {arch.id for arch in archs} <= set(calibration.subnets):
            what = f"other subnets or statistics than those of {self.folder}"
            raise self._not_current(artifacts.CALIBRATION, what)
        tensors = self.files.read(artifacts.STATISTICS, artifacts.read_tensors)
        assert tensors is not None, "its digest was just compared"
        return [results.statistics_of(arch, tensors) for arch in archs]

    def record_statistics(self, archs: Sequence[Arch], statistics: Sequence[Statistics]) -> None:
        """Writes `calibration.safetensors` and then, which marks it as whole, `calibration.json`"""
        with self.locked():
            tensors = results.statistics_tensors(archs, statistics)
            artifacts.write_tensors(self.folder / artifacts.STATISTICS, tensors)
            self.files.keep(artifacts.STATISTICS, tensors)
            digest = self.files.sha256(artifacts.STATISTICS)
            assert digest is not None, "just written"
            made = results.calibration_of(self.recipe.calibration, archs, digest)
            stored = Stored(made, self._require_sha256())
            document = results.calibration_document(stored)
            self.files.write_json(artifacts.CALIBRATION, document, stored)

    @property
    def is_evaluated(self) -> bool:
        """Whether its subnets are evaluated."""
        return self.files.has(artifacts.EVALUATION)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The results of its subnets.

        Raises:
            ValueError: it is not evaluated yet, or they are damaged or belong to other weights.
        """
        found = self._result(artifacts.EVALUATION, results.parse_evaluations)
        if found is None:
            raise ValueError(
                f"{self.folder} is not evaluated yet ({artifacts.EVALUATION} is missing): "
                f"run `prenas evaluate {self.folder}` first"
            )
        return list(found)

    def record_evaluations(self, rows: Sequence[Evaluation]) -> None:
        """Writes `evaluation.json`."""
        with self.locked():
            stored = Stored(tuple(rows), self._require_sha256())
            document = results.evaluations_document(stored, self.recipe.space.family)
            self.files.write_json(artifacts.EVALUATION, document, stored)

    def require_current_model(self, folder: Path) -> None:
        """Raises ValueError unless a handed-over model is whole and of the trained weights."""
        path = folder / artifacts.MODEL_ARCH
        digest = artifacts.parse_json(path, lambda found: found["provenance"]["supernet_sha256"])
        if not self._is_current(digest) or not (folder / artifacts.MODEL).exists():
            raise ValueError(
                f"{folder} is not whole, or was cut from other weights than "
                f"{self.folder / artifacts.SUPERNET}: remove it to cut anew"
            )

    # --- what belongs together -------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        """Opens the folder for writing, for this recipe and this process alone; may be nested.

        Raises:
            ValueError: no right to write, other files there, another recipe, or another process.
        """
        return self.files.locked(self._require_same_recipe)

    @property
    def _recorded_recipe(self) -> Recipe | None:
        read = partial(artifacts.parse_json, parse=_parse_recipe)
        return self.files.read(artifacts.RECIPE, read)

    def _require_same_recipe(self) -> None:
        """Raises ValueError if the run was begun with a recipe that decides otherwise."""
        if self._asked is None or (theirs := self._recorded_recipe) is None:
            return
        if changed := deciding_differences(theirs, self._asked):
            raise ValueError(
                f"{self.folder} belongs to another recipe (there -> asked for):\n  "
                + "\n  ".join(changed)
                + "\nChoose another --out folder, or the recipe of this one. Nothing was changed"
            )

    def _not_searched(self, missing: str) -> ValueError:
        return ValueError(
            f"{self.folder} holds no finished search ({missing} is missing): "
            "run `prenas search RECIPE --out ...` first"
        )

    def _load_supernet(self, preferred: PreferredSet, path: Path) -> Supernet:
        supernet = Supernet(preferred.envelope, preferred.recipe.space.settings)
        artifacts.load_weights(supernet.network, path)
        return supernet.to(self.device).eval()

    def _result(self, name: str, parse: Callable[[dict[str, Any]], Stored[T]]) -> T | None:
        """What a file of results says of the trained weights; None where it is missing."""
        stored = self.files.read(name, partial(artifacts.parse_json, parse=parse))
        if stored is None:
            return None
        if not self._is_current(stored.supernet_sha256):
            weights = self.folder / artifacts.SUPERNET
            raise self._not_current(name, f"other weights than {weights}")
        return stored.result

    def _is_current(self, supernet_sha256: str) -> bool:
        """Whether a result of these weights is one of the run's; true where its own are gone."""
        return self.supernet_sha256 in (supernet_sha256, None)

    def _not_current(self, name: str, what: str) -> ValueError:
        others, verb = _TO_REDO[name]
        return ValueError(
            f"{self.folder / name} belongs to {what}: remove it, and {others}, to {verb} anew"
        )

    def _require_sha256(self) -> str:
        digest = self.supernet_sha256
        assert digest is not None, "results of weights that are not there"
        return digest


def _parse_recipe(document: dict[str, Any]) -> Recipe:
    return recipe_from_dict(document["recipe"])


def _parse_preferred(recipe: Recipe, document: dict[str, Any]) -> PreferredSet:
    """A preferred set of a recipe, which files of release 0.1.0 repeat.

    Raises:
        ValueError: they repeat another one.
    """
    repeated = document.get("recipe")
    if repeated is not None and (
        changed := deciding_differences(recipe, recipe_from_dict(repeated))
    ):
        raise ValueError(
            f"its recipe is not that of {artifacts.RECIPE} ({'; '.join(changed)}): restore both "
            "files from a copy"
        )
    return PreferredSet.model_validate({**document, "recipe": recipe})


def read_preferred(out: str | Path) -> PreferredSet:
    """The preferred set of a run folder; ValueError if the search is not done or it is damaged."""
    return Run(out).preferred


def read_supernet(out: str | Path, *, device: str = "auto") -> Supernet:
    """The trained supernet of a run folder, in evaluation mode; ValueError if it is not there."""
    return Run(out, device=device).supernet
