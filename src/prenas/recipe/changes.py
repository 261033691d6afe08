"""Building recipes from plain fields, changing single fields, and comparing recipes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from pydantic import ValidationError

from prenas import artifacts
from prenas.families.base import SearchSpace
from prenas.files import load_json
from prenas.recipe.data import IMAGENET_MEAN, IMAGENET_STD, PLACES
from prenas.recipe.fields import CutRecipe, EvolutionRecipe, Recipe, TeacherRecipe
from prenas.values import Value, explained, shortened, unknown_name

_LONGEST = 400
"""Characters of a value in a message."""

_DECIDE_NOTHING = (
    "space.name:",  # of a cut network, it has the path of the weights
    "search.further_seeds:",
    "search.exact_optimum:",
    "source.name:",
    "source.rivals:",
    "data.unreadable:",
    "data.memory_gib:",
    "data.num_workers:",
    "training.checkpoint_steps:",
    "training.keep_checkpoints:",
)


def recipe_from_dict(fields: Mapping[str, Any]) -> Recipe:
    """Builds a recipe from plain fields.

    Raises:
        ValueError: some fields are wrong; the message names each, its value and what is allowed.
    """
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise explained(error) from None


def with_overrides(recipe: Recipe, overrides: Iterable[str] | str) -> Recipe:
    """The recipe with fields changed by `field=value` texts, e.g. `training.epochs=3`.

    A single text may be given without a list.

    Values are JSON or `none`; anything that is not valid JSON is a plain text. Paths of images and
    of a teacher are made absolute. `evolution={}`, or setting any field of it, switches evolution
    on with its defaults; setting `training.teacher.name` does the same for a teacher.
    `training.epochs` and `training.steps` replace each other, and the recipe's
    `training.min_steps`.

    Raises:
        ValueError: an unknown field (the message suggests similar names), or a value of the wrong
            type.
    """
    fields = recipe.model_dump(mode="json")
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if fields["training"] is not None:
        _make_way(fields["training"], overrides)
    for override in overrides:
        path, separator, text = override.partition("=")
        given = repr(shortened(override))
        if not separator:
            raise ValueError(f"cannot read {given}: write FIELD=VALUE, e.g. training.epochs=3")
        *parents, last = path.strip().split(".")
        if parents[:1] == ["evolution"] and isinstance(fields["evolution"], dict | None):
            defaults = EvolutionRecipe().model_dump(mode="json")
            fields["evolution"] = {**defaults, **(fields["evolution"] or {})}
        training = fields["training"]
        has_teacher_field = isinstance(training, dict) and "teacher" in training
        if parents == ["training", "teacher"] and has_teacher_field and not training["teacher"]:
            training["teacher"] = {
                name: None if field.is_required() else field.default
                for name, field in TeacherRecipe.model_fields.items()
            }
        target: Any = fields
        for depth, key in enumerate([*parents, last]):
            if not isinstance(target, dict):
                parent = ".".join(parents[:depth])
                raise ValueError(
                    f"recipe {recipe.name!r} has no {parent!r} that could be changed ({given})"
                    if target is None
                    else f"{parent!r} is a single value and has no fields ({given})"
                )
            if key not in target:
                raise _unknown_field(path.strip(), fields)
            if depth < len(parents):
                target = target[key]
        value = _read_value(path.strip(), text.strip(), target[last])
        if isinstance(value, dict):
            value = _with_defaults([*parents, last], value)
        elif isinstance(value, str):
            value = _from_anywhere(path.strip(), value)
        target[last] = value
    return recipe_from_dict(fields)


def _make_way(training: dict[str, Any], overrides: Iterable[str]) -> None:
    """Clears the length of a training if the overrides give it another one."""
    parts = (override.partition("=") for override in overrides)
    given = {path.strip(): text.strip().lower() for path, _, text in parts}
    lengths = (given.get(f"training.{name}", "none") for name in ("epochs", "steps"))
    if any(length not in ("none", "null") for length in lengths):
        training |= {"epochs": None, "steps": None, "min_steps": 0}


def _with_defaults(path: Iterable[str], fields: dict[str, Any]) -> dict[str, Any]:
    """A group that is given as a whole, with the fields that it leaves out: later overrides may
    change those. Wrong fields stay as they are, and are named with the whole recipe."""
    kind: type[Value] = Recipe
    for key in path:
        annotation = kind.model_fields[key].annotation if key in kind.model_fields else None
        groups = [
            one
            for one in (annotation, *get_args(annotation))
            if isinstance(one, type) and issubclass(one, Value)
        ]
        if not groups or issubclass(groups[0], SearchSpace):  # a space's type follows its family
            return fields
        kind = groups[0]
    try:
        return kind.model_validate(fields).model_dump(mode="json")
    except ValidationError:
        return fields


def _from_anywhere(path: str, text: str) -> str:
    """An existing file or folder by its absolute path: a run may go on from another folder."""
    if not text or path not in ("data.root", "training.teacher.name", "training.teacher.weights"):
        return text
    is_teacher = path == "training.teacher.name"  # a folder may have the name of a timm model
    try:
        place = Path(text).expanduser()
        exists = (place / artifacts.MODEL_ARCH).is_file() if is_teacher else place.exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, or of no known user
        return text
    return str(place.resolve()) if exists else text


def with_space(recipe: Recipe, space: SearchSpace) -> Recipe:
    """The recipe, under the same name, with another search space.

    Raises:
        ValueError: the images of that space have another number of channels than the recipe
            prepares, or the recipe's score does not suit it.
    """
    prepared, asked = len(recipe.preprocessing.mean), space.settings.in_chans
    if prepared != asked:
        raise ValueError(
            f"the networks of space {space.name!r} take images of {asked} "
            f"{'channel' if asked == 1 else 'channels'}, but the recipe {recipe.name} prepares "
            f"{prepared}: write in_chans: {prepared} in the space, or choose a recipe for images "
            f"of {asked}"
        )
    return recipe_from_dict({**recipe.model_dump(mode="json"), "space": space})


def searching_recipe(space: SearchSpace, budgets: Iterable[str]) -> Recipe:
    """A recipe that only searches, without a data set and without training; named after its space.

    There are no published statistics for images with other than three channels. Every channel then
    gets the average of ImageNet's mean and deviation, recorded for data that are passed later.

    Raises:
        ValueError: a budget cannot be read.
    """
    fields: dict[str, Any] = {
        "name": space.name,
        "space": space,
        "search": {"budgets": tuple(budgets)},
    }
    if (num_channels := space.settings.in_chans) != len(IMAGENET_MEAN):
        mean, std = (
            [round(fmean(values), 3)] * num_channels for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        fields["data"] = {"name": "own", "preprocessing": {"mean": mean, "std": std}}
    return recipe_from_dict(fields)


_NONE_IS_A_VALUE = ("data.validation", "data.test", "training.freeze", "training.class_weights")
"""Fields of which "none" says something; `null` gives their default."""


def _read_value(path: str, text: str, current: Any) -> Any:
    """An override's value; ValueError if its kind differs from that of the current value."""
    if text.lower() == "none":
        return "none" if path in _NONE_IS_A_VALUE else None
    try:
        value = load_json(text)
    except json.JSONDecodeError:
        value = text
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    left, right = (kinds.get(type(one)) for one in (current, value))
    if left and right and left != right:
        raise ValueError(f"{path} must be {left} (got {shortened(text)!r})")
    return value


def _unknown_field(path: str, fields: Mapping[str, Any]) -> ValueError:
    names = [name for name, _ in flat_fields(fields)]
    return unknown_name("recipe field", path, names, listed_by="`prenas info RECIPE`")


def flat_fields(value: Value | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value) of every field that has no fields inside it."""
    fields = value.model_dump(mode="json") if isinstance(value, Value) else value
    for key, field in fields.items():
        name = f"{prefix}{key}"
        if isinstance(field, dict):
            yield from flat_fields(field, f"{name}.")
        else:
            yield name, field


def cut_fields(recipe: CutRecipe) -> Iterator[tuple[str, Any]]:
    """The `flat_fields` that `prenas run --from` takes with `--set`, by their names there.

    Budgets are given with `--budget`, and the teacher is always the whole network.
    """
    places = {"augmentation": "data.augmentation", "teacher": "training.teacher"}
    left_out = ("budgets", "search.budgets", "training.teacher", "teacher.name")
    for name, value in flat_fields(recipe):
        first, dot, rest = name.partition(".")
        if dot and name not in left_out:
            yield f"{places.get(first, first)}.{rest}", value


def differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """One line, `field: ours -> theirs`, for each field in which two recipes differ."""
    left, right = (dict(flat_fields(recipe)) for recipe in (ours, theirs))
    return [  # a field that one of them does not have is as one without a value
        f"{name}: {_shortened(left.get(name))} -> {_shortened(right.get(name))}"
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    ]


def _shortened(value: object) -> str:
    """A value as JSON; the middle of a long one, such as the blocks of a space, is left out."""
    text = json.dumps(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"


def with_places_of(recipe: Recipe, other: Recipe) -> Recipe:
    """The recipe with its images where another recipe of the same images has them."""
    if recipe.data is None or other.data is None:
        return recipe
    places = {name: getattr(other.data, name) for name in PLACES}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=places)})


def deciding_differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """The `differences` in fields that may not change during a run."""
    return [line for line in differences(ours, theirs) if not line.startswith(_DECIDE_NOTHING)]
