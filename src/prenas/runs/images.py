"""The images of a run: those named in its recipe, or others that fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from prenas import artifacts
from prenas.data import ImageData, load_data, num_samples, open_data, undivided, with_data
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.data import OWN_DATA, DataRecipe
from prenas.values import Amount, Value

if TYPE_CHECKING:
    from prenas.runs.run import Run

SPLITS = ("train", "validation", "test")


class RecordedImages(Value):
    """The images that a run was started with; stored as `data.json`."""

    class_names: tuple[str, ...] = Field(min_length=1)
    """The classes, in the order of the outputs."""
    num_images: dict[str, Amount]
    """Number of images per split."""
    notes: tuple[str, ...]
    fingerprint: str | None
    """None if it is unknown."""
    teacher_sha256: str | None = None
    """Digest of the weights that teach on them; None without a teacher, and in files of earlier
    versions."""


@dataclass
class HeldImages:
    """The images that a run was given, and the images that it has read."""

    given: ImageData | None
    found: ImageData | None = None
    splits: frozenset[str] = frozenset()
    """The splits that may be in memory."""


class RunImages:
    """The images that a run works on: those named in its recipe, or others that were given."""

    def __init__(self, run: Run, held: HeldImages) -> None:
        self._run, self._held = run, held

    def read(self, hold: Sequence[str] = SPLITS) -> ImageData:
        """The images, read once; their classes are those of the run's outputs.

        Args:
            hold: splits that may be held in memory.

        Raises:
            ValueError: no images are named, or they do not fit the space or the run.
        """
        held = self._held
        if held.found is None or not held.splits.issuperset(hold):
            held.found = self._suited(self._run.recipe, held.given, hold=hold)
            held.splits = frozenset(SPLITS if held.given else hold)
        self.require_classes(held.found)
        return held.found

    def read_own(self, hold: Sequence[str] = SPLITS) -> ImageData:
        """Like `read`, but only the images that the run was started with."""
        found = self.read(hold)
        self.require_own(found, "start a run in another folder")
        return found

    def require_own(self, images: ImageData, instead: str) -> None:
        """Raises ValueError for images that are known not to be those of the run.

        Args:
            instead: what else the user may do than to restore them.
        """
        before = self.recorded
        known = None if before is None else before.fingerprint
        if known is not None and images.fingerprint is not None and known != images.fingerprint:
            raise ValueError(
                f"these are not the images that {self._run.folder} was started with (a file, class "
                f"or split was added, removed, renamed or changed): restore them, or {instead}. "
                "Nothing was changed"
            )

    def require_as_many(self, images: ImageData) -> None:
        """Raises ValueError if a split has another number of images than when the run started.

        That shows other images where fingerprints are unknown, and unreadable pictures that are
        now left out instead of replaced, or the other way around.
        """
        before = self.recorded
        recorded = {} if before is None else before.num_images
        for split, number in _numbers(images).items():
            known = recorded.get(split, number)
            if number != known:
                raise ValueError(
                    f"{self._run.folder} was started with {known:,} {split} images, and these are "
                    f"{number:,}: give the same images, or start a run in another folder "
                    "(data.memory_gib decides whether unreadable pictures are left out or "
                    "replaced). Nothing was changed"
                )

    def read_few(self) -> ImageData:
        """Like `read`, to look at a few images only: does not load all of them into memory."""
        recipe = self._run.recipe
        if self._held.found or self._held.given or recipe.data is None:
            return self.read()
        lazily = recipe.data.model_copy(update={"memory_gib": 0.0, "crops": 1})
        found = self._suited(recipe.model_copy(update={"data": lazily}), None)
        self.require_classes(found)
        return found

    def read_from(self, texts: Sequence[str] = (), *, crops: int | None = None) -> ImageData:
        """Reads images from somewhere else than the recipe says: moved files, or another test set.

        Args:
            texts: as `prenas.with_data` takes them; none for the recipe's own images.
            crops: crops per evaluated image, 1, 5 or 10; None for the recipe's.

        Raises:
            ValueError: the classes are not those of the run, or images are missing or unreadable.
        """
        recipe = self._run.preferred.recipe
        moved = with_data(recipe, texts) if texts else recipe
        if crops is not None:
            moved = with_overrides(moved, [f"data.crops={crops}"])
        if moved.data is None:
            raise ValueError(f"{self._run.folder} has no images: give some with --data PATH")
        whole = None
        if texts and not self._may_be_moved(moved.data):
            whole = undivided(moved.data, recipe.space.settings)
            if whole is not None and self.recorded is None:  # they become the run's validation
                whole = replace(whole, is_undivided=False)
        found = whole or load_data(moved.data, recipe.space.settings)
        self.require_classes(found)
        return found

    def are_named_by(self, texts: Sequence[str]) -> bool:
        """Whether texts name the images that the run was started with, maybe in another folder."""
        data = with_data(self._run.preferred.recipe, texts).data
        return data is not None and self.are_at(data)

    def are_at(self, data: DataRecipe) -> bool:
        """Whether the images that the run was started with are known, and lie there now."""
        return self.recorded is not None and self._may_be_moved(data)

    @property
    def are_missing(self) -> bool:
        """Whether this is an imported run without images; its subnets can still be handed over."""
        return self._run.is_imported and self._run.recipe.data is None and not self._held.given

    @property
    def recorded(self) -> RecordedImages | None:
        """The images that the run was started with; None before that."""
        read = partial(artifacts.parse_json, parse=RecordedImages.model_validate)
        return self._run.files.read(artifacts.DATA, read)

    def require_same_teacher(self, sha256: str) -> None:
        """Raises ValueError for a teacher of other weights than the training began with."""
        before = self.recorded
        known = None if before is None else before.teacher_sha256
        if known not in (None, sha256):
            raise ValueError(
                f"the training in {self._run.folder} began with a teacher of other weights: "
                "restore them, or train in another folder. Nothing was changed"
            )

    def record(self, images: ImageData, teacher_sha256: str | None = None) -> None:
        """Writes `data.json`, so that the run continues with the same images and teacher only."""
        noted = RecordedImages(
            class_names=images.class_names,
            num_images=_numbers(images),
            notes=images.notes,
            fingerprint=images.fingerprint,
            teacher_sha256=teacher_sha256,
        )
        with self._run.locked():
            self._run.files.write_json(artifacts.DATA, noted.model_dump(mode="json"), noted)

    @property
    def are_its_own(self) -> bool:
        """Whether the run works on its own images; False if that cannot be known."""
        given = self._held.given
        return given is None or (given.fingerprint is not None and self.may_be_own(given))

    @property
    def are_others(self) -> bool:
        """Whether images were given that are not the run's own."""
        return self._held.given is not None and not self.may_be_own(self._held.given)

    def may_be_own(self, images: ImageData) -> bool:
        """Whether results on these images may be recorded as the run's."""
        recipe, before = self._run.recipe, self.recorded
        if images.num_crops != (recipe.data.crops if recipe.data else 1):
            return False
        if before is None or before.fingerprint != images.fingerprint:
            return before is None
        known, now = before.num_images, _numbers(images)
        return images.fingerprint is not None or all(
            known.get(split) == now[split] for split in images.splits
        )

    def are_own_with_other_crops(self, images: ImageData) -> bool:
        """Whether these are the run's own images, but with more or fewer crops of each."""
        before = self.recorded
        return (
            before is not None
            and before.fingerprint is not None
            and before.fingerprint == images.fingerprint
            and not self.may_be_own(images)
        )

    def require_classes(self, images: ImageData) -> None:
        """Raises ValueError unless the labels of images mean what the outputs of the run mean."""
        names, folder = self._run.class_names, self._run.folder
        if names is not None and names != images.class_names:
            differing = sorted(set(names) ^ set(images.class_names)) or ["their order"]
            raise ValueError(
                f"these images have other classes than those of {folder} (differing: "
                f"{', '.join(differing[:10])}): give images of the same classes (--data PATH)"
            )
        num_outputs = self._run.recipe.space.settings.num_classes
        is_unknown = names is None and self._run.is_imported
        if is_unknown and len(images.class_names) != num_outputs:
            raise ValueError(
                f"these images have {len(images.class_names)} classes, but {folder} has "
                f"{num_outputs} outputs: give images of the classes that the released weights were "
                "trained on"
            )

    def _suited(
        self, recipe: Recipe, given: ImageData | None, *, hold: Sequence[str] = SPLITS
    ) -> ImageData:
        """As the function; of a run that is searched, an error says where its images are named."""
        try:
            return suited(recipe, given, hold=hold)
        except ValueError as error:
            if given is not None or not self._run.is_searched:
                raise
            named = self._run.folder / artifacts.RECIPE
            raise ValueError(f"{error}. The images of this run are named in {named}") from None

    def _may_be_moved(self, data: DataRecipe) -> bool:
        """Whether these may be the run's own images in another folder, split in the same way."""
        if self.recorded is None:
            return not self._run.is_imported
        try:
            return open_data(data).fingerprint == self.recorded.fingerprint
        except ValueError:  # too few to divide, or other classes
            return False


def suited(recipe: Recipe, data: ImageData | None, *, hold: Sequence[str] = SPLITS) -> ImageData:
    """The images of the recipe, or those passed from Python; ValueError if they do not fit it.

    Args:
        hold: splits that may be held in memory.
    """
    if data is None:
        if recipe.data is None:
            raise ValueError(
                f"recipe {recipe.name!r} names no data: give images with --data PATH, choose a "
                "recipe that names some, or pass data=prenas.ImageData(...) in Python"
            )
        data = load_data(recipe.data, recipe.space.settings, hold=hold)
    elif recipe.data is not None and recipe.data.name != OWN_DATA and data.fingerprint is None:
        raise ValueError(
            f"recipe {recipe.name!r} loads {recipe.data.name!r} itself, but data were passed as "
            f"well: set its data to None or to DataRecipe(name={OWN_DATA!r}), or pass no data"
        )
    num_classes = recipe.space.settings.num_classes
    if len(data.class_names) > num_classes:
        raise ValueError(
            f"the data have {len(data.class_names)} classes, but the network has {num_classes} "
            f"outputs: set space.settings.num_classes={len(data.class_names)}"
        )
    return data


def _numbers(images: ImageData) -> dict[str, int]:
    """Number of images per split."""
    sources = {"train": images.train, **images.splits}
    return {name: num_samples(source) for name, source in sources.items()}
