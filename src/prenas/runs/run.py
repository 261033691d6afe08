"""A run: the content of its folder, read on first use, and the recording of results."""

from __future__ import annotations

from contextlib import AbstractContextManager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

from prenas import artifacts
from prenas.data import ImageData
from prenas.evaluation.accuracy import Evaluation
from prenas.families import build_structure, require_stored
from prenas.families.base import Arch
from prenas.latency import LATENCY, table_in_use, use_table_of, write_table
from prenas.processes import resolve_device
from prenas.recipe import Recipe, deciding_differences, recipe_from_dict
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.data import FOLDER, PLACES
from prenas.runs.folder import RunFolder
from prenas.runs.images import HeldImages, RunImages
from prenas.runs.results import RunResults
from prenas.selection.preferred import PreferredSet
from prenas.supernet import Supernet, statistic_names

_MOST_SHOWN = 12
"""Differences between two recipes that a message lists."""


class Run:
    """A run folder, opened once: each file is read when it is first needed, and checked.

    Reading takes no lock, and works while another process trains the run. A file that has changed
    is read again. Results that belong to other weights than the trained supernet's are refused.

    Example:
        run = prenas.Run("runs/digits")
        print(run.preferred.archs, run.evaluations)
        logits = run.supernet(images, run.preferred.archs[0])

    Args:
        folder: it does not have to exist yet.
        recipe: what to start or continue the run with; by default the recipe in the folder.
        data: images from Python that replace those named in the recipe.
        device: where networks are put.

    Raises:
        ValueError: the folder belongs to another recipe, or would be new among the images, the
            device is unknown, or the run counts latencies with another table than this process.
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
        use_table_of(self.folder)
        self.device = resolve_device(device)
        self.files = RunFolder(self.folder)
        self._held = HeldImages(data)
        self._asked = recipe
        self._is_moved = False
        self._require_same_recipe()
        self._require_outside_images()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    # --- what was decided ------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The recipe that was given, or the one that the run was started with."""
        found = self._asked or self._recorded_recipe
        if found is None:
            raise self._not_searched(artifacts.RECIPE)
        return found

    @property
    def is_searched(self) -> bool:
        """Whether its subnets are chosen, by a search, an import or for fine-tuning."""
        return self.files.has(artifacts.PREFERRED)

    @property
    def preferred(self) -> PreferredSet:
        """The preferred set; ValueError before the search, or if it is damaged."""
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
        """Whether its weights were released by the authors and imported, not trained here."""
        return self.is_searched and self.preferred.imported is not None

    @property
    def subnets(self) -> PreferredSet:
        """The subnets to evaluate and hand over: preferred ones, or evolved ones in one-shot NAS.

        Raises:
            ValueError: the search, or the evolution, is not finished; the message names the
                command.
        """
        if self.preferred.recipe.evolution is None:
            return self.preferred
        if (found := self.results.evolved_set) is None:
            raise ValueError(
                f"{self.folder} has no finished evolution, which its recipe needs to choose "
                f"subnets: run `prenas evolve {self.folder}` first"
            )
        return found

    @property
    def fine_tunes(self) -> str | None:
        """The name of the source that the run was started to fine-tune; None for a search."""
        if not self.files.has(artifacts.RECIPE):
            return None
        name = artifacts.read_json(self.folder / artifacts.RECIPE).get("fine_tunes")
        return None if name is None else str(name)

    def record_recipe(self, recipe: Recipe, *, fine_tunes: str | None = None) -> None:
        """Writes `recipe.json`, and the latency table that its budgets are counted with.

        Args:
            fine_tunes: name of the source whose weights the run will start from. It is kept when
                the recipe is recorded again.
        """
        with self.locked():
            if recipe.search.limits(LATENCY):
                used = table_in_use()
                assert used is not None, "without a table, its budgets could not be read"
                write_table(self.folder / artifacts.LATENCY, used)
            document: dict[str, Any] = {"recipe": recipe.model_dump(mode="json")}
            if (name := fine_tunes or self.fine_tunes) is not None:
                document["fine_tunes"] = name
            self.files.write_json(artifacts.RECIPE, document, recipe)

    def record_preferred(self, preferred: PreferredSet) -> None:
        """Writes `preferred.json`, the last file of a search; its recipe is in `recipe.json`."""
        with self.locked():
            document = preferred.model_dump(mode="json", exclude={"recipe"})
            self.files.write_json(artifacts.PREFERRED, document, preferred)

    def on(self, data: ImageData | None) -> Run:
        """The same run with other images; None for those named in its recipe."""
        other = copy(self)
        other._held = HeldImages(data)
        return other

    @property
    def images(self) -> RunImages:
        """The images that the run works on."""
        return RunImages(self, self._held)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in the order of the outputs; None until images are recorded."""
        return self.images.recorded.class_names if self.images.recorded else None

    # --- weights ---------------------------------------------------------------------------------

    def initial_supernet(self, *, drop_path: float = 0.0, dropout: float = 0.0) -> Supernet:
        """The envelope with its weights before training: those scored, or those adapted."""
        preferred, space = self.preferred, self.recipe.space
        arch = space.supernet if preferred.adapted is None else preferred.envelope
        path = self.folder / artifacts.INITIAL
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist, but the training starts from it: restore it from a copy, "
                f"or remove {artifacts.PREFERRED} and give the command again that the run was "
                "started with"
            )
        self._require_stored(path, arch)
        initial = Supernet(arch, space.settings)
        artifacts.load_weights(initial.network, path)
        return initial.trimmed(preferred.envelope, drop_path=drop_path, dropout=dropout)

    def record_initial(self, supernet: Supernet) -> None:
        """Writes `initial.safetensors`."""
        with self.locked():
            weights = supernet.network.state_dict()
            artifacts.write_tensors(self.folder / artifacts.INITIAL, weights)

    @property
    def is_trained(self) -> bool:
        """Whether the run has a trained, or imported, supernet."""
        return self.files.has(artifacts.SUPERNET)

    @property
    def supernet(self) -> Supernet:
        """The trained supernet, in evaluation mode, on the run's device.

        Raises:
            ValueError: the supernet is not trained yet, or its file is damaged.
        """
        preferred = self.preferred
        found = self.files.read(artifacts.SUPERNET, partial(self._load_supernet, preferred))
        if found is None:
            command = f"import FILE --out {self.folder}"
            if preferred.imported is None:
                command = f"train {self.folder}"
            raise ValueError(
                f"{self.folder} has no trained supernet ({artifacts.SUPERNET} is missing): "
                f"run `prenas {command}` first"
            )
        return found

    @property
    def supernet_sha256(self) -> str | None:
        """The digest of the trained weights; None before training."""
        return self.files.sha256(artifacts.SUPERNET)

    def record_supernet(self, supernet: Supernet) -> None:
        """Writes `supernet.safetensors`, the last file of a training."""
        with self.locked():
            weights = supernet.network.state_dict()
            artifacts.write_tensors(self.folder / artifacts.SUPERNET, weights)
            plain = supernet.trimmed(supernet.arch).eval()  # as it would be read
            self.files.keep(artifacts.SUPERNET, plain.to(self.device))

    @property
    def needs_calibration(self) -> bool:
        """Whether its networks have BatchNorm, whose statistics training does not measure."""
        space = self.recipe.space
        return bool(statistic_names(build_structure(space.smallest, space.settings)))

    # --- results ---------------------------------------------------------------------------------

    @property
    def results(self) -> RunResults:
        """The results that were measured with the trained supernet."""
        return RunResults(self)

    @property
    def is_evaluated(self) -> bool:
        """Whether its subnets are evaluated."""
        return self.files.has(artifacts.EVALUATION)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The results of its subnets, in the order of `subnets`.

        Raises:
            ValueError: the run is not evaluated, or its results are damaged or belong to other
                weights.
        """
        return list(self.results.evaluations)

    # --- what belongs together -------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        """Locks the folder, so that only this process writes there; may be nested.

        Raises:
            ValueError: the folder is not writable, has other files or a run of another recipe, or
                another process works on it.
        """
        return self.files.locked(self._require_same_recipe)

    @property
    def _recorded_recipe(self) -> Recipe | None:
        read = partial(artifacts.parse_json, parse=_parse_recipe)
        return self.files.read(artifacts.RECIPE, read)

    def _require_same_recipe(self) -> None:
        """Raises ValueError if the run was started with another recipe."""
        if self._asked is None or (theirs := self._recorded_recipe) is None:
            return
        changed = deciding_differences(theirs, self._asked)
        is_of_places = all(map(_is_of_a_place, changed))
        if not changed or (is_of_places and self._has_its_images_at_the_new_place()):
            return
        advice = self._if_moved() if is_of_places else ""
        shown = [*changed[:_MOST_SHOWN]]
        if len(changed) > _MOST_SHOWN:
            shown.append(f"... and {len(changed) - _MOST_SHOWN} more")
        raise ValueError(
            f"{self.folder} was made with another recipe (in the folder -> requested):\n  "
            + "\n  ".join(shown)
            + f"\nChoose another --out folder, or use its recipe{advice}. Nothing was changed"
        )

    def _has_its_images_at_the_new_place(self) -> bool:
        """Whether the images that the run was started with lie where the asked recipe says."""
        if not self._is_moved:
            data = None if self._asked is None else self._asked.data
            self._is_moved = data is not None and self._with_known_images.are_at(data)
        return self._is_moved

    @property
    def _with_known_images(self) -> RunImages:
        """The images; of a run that cuts a network and has recorded none yet, those that the whole
        network is adapted to, which are the same."""
        inside = self.folder / artifacts.SOURCE
        if self.images.recorded is None and (inside / artifacts.DATA).exists():
            return Run(inside, device="cpu").images
        return self.images

    def _if_moved(self) -> str:
        """What to do if images should be in another place than before."""
        if self._with_known_images.recorded is not None:
            return (
                ". These are not its images: if they moved, a file, class or split was also added, "
                "removed, renamed or changed"
            )
        return (
            f". Images that only moved are named to each step: prenas train {self.folder} "
            "--data PATH, then calibrate, evaluate and specialize"
        )

    def _require_outside_images(self) -> None:
        """Raises ValueError for a new run among its images, where it would be taken for a class."""
        data = None if self._asked is None else self._asked.data
        if data is None or data.name != FOLDER or self.files.has(artifacts.RECIPE):
            return
        folder = self.folder.resolve()
        root = Path(data.root or "")
        inside = (data.train, data.validation, data.test)
        places = [root / one for one in inside if isinstance(one, str)]
        for place in [*([root] if data.root else []), *places]:
            if place.is_dir() and folder.is_relative_to(place.resolve()):
                raise ValueError(
                    f"{self.folder} lies among the images in {place}, where its pictures would be "
                    "taken for a class: choose a folder outside"
                )

    def _not_searched(self, missing: str) -> ValueError:
        started = None if missing == artifacts.RECIPE else self._recorded_recipe
        first = f"run `prenas search RECIPE --out {self.folder}` first"
        if not self.folder.exists():
            first = f"the folder does not exist. Check the path, or {first}"
        elif (self.folder / artifacts.MODEL_ARCH).is_file():
            first = (
                "it is a handed-over model, not a run. Use prenas.load, or `prenas evaluate "
                f"{self.folder} --data PICTURES`"
            )
        elif started is not None and started.source is not None:
            first = "give the command again that it was started with (prenas run --from SOURCE ...)"
        elif started is not None and (source := self.fine_tunes) is not None:
            first = (
                f"give the command again that it was started with (prenas finetune {source} ...)"
            )
        return ValueError(f"{self.folder} has no finished search ({missing} is missing): {first}")

    def _load_supernet(self, preferred: PreferredSet, path: Path) -> Supernet:
        arch, settings = preferred.envelope, preferred.recipe.space.settings
        self._require_stored(path, arch)
        supernet = Supernet(arch, settings)
        artifacts.load_weights(supernet.network, path)
        return supernet.to(self.device).eval()

    def _require_stored(self, path: Path, arch: Arch) -> None:
        """Raises ValueError if a file of the run has other weights than those of its supernet."""
        try:
            require_stored(path, arch, self.recipe.space.settings, shared=True)
        except artifacts.OtherWeightsError as error:
            raise ValueError(
                f"{error}. The architecture follows from {self.folder / artifacts.RECIPE} and "
                f"{artifacts.PREFERRED}: restore the file that was changed from a copy"
            ) from None


def _is_of_a_place(line: str) -> bool:
    return line.startswith(tuple(f"data.{name}:" for name in PLACES))


def _parse_recipe(document: dict[str, Any]) -> Recipe:
    return recipe_from_dict(document["recipe"])


def _parse_preferred(recipe: Recipe, document: dict[str, Any]) -> PreferredSet:
    """Reads `preferred.json`; files of release 0.1.0 also contain the recipe.

    Raises:
        ValueError: the recipe in the file is not the given one.
    """
    repeated = document.get("recipe")
    if repeated is not None and (
        changed := deciding_differences(recipe, recipe_from_dict(repeated))
    ):
        raise ValueError(
            f"its recipe differs from that in {artifacts.RECIPE} ({'; '.join(changed)}): restore "
            "both files from a copy"
        )
    found = PreferredSet.model_validate({**document, "recipe": recipe})
    _require_its_own(recipe, found)
    return found


def _require_its_own(recipe: Recipe, preferred: PreferredSet) -> None:
    """Raises ValueError if a preferred set was not chosen for this recipe: one of the two files was
    changed afterwards."""
    kept = parse_budgets(recipe.search.budgets, keep_partial=recipe.search.keep_partial).kept
    for choice in preferred.choices:
        costs = preferred.subnets[choice.subnet].costs
        budget = kept[choice.budget] if choice.budget < len(kept) else None
        intervals = {} if budget is None else budget.intervals
        is_within = all(
            low <= costs[name] < high for name, (low, high) in intervals.items() if name in costs
        )
        if budget is None or not is_within:
            asked = f"budget {choice.budget}, {budget}" if budget else f"{len(kept)} budgets"
            raise ValueError(
                f"subnet {choice.subnet} was chosen for {preferred.budgets[choice.budget]}, but "
                f"{artifacts.RECIPE} has {asked}: restore the file that was changed from a copy"
            )


def read_preferred(out: str | Path) -> PreferredSet:
    """The preferred set of a run folder; ValueError before the search, or if it is damaged."""
    return Run(out).preferred


def read_supernet(out: str | Path, *, device: str = "auto") -> Supernet:
    """The trained supernet of a run folder, in evaluation mode; ValueError if it is missing."""
    return Run(out, device=device).supernet
