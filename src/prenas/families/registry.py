"""The table of families, of this package and of others, and look-ups by name.

Another package declares its families as entry points of the group `prenas.families`, each under
the family's name. They are loaded only when an unknown name is looked up or when all families are
listed.
"""

from __future__ import annotations

import copyreg
import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from prenas.families.base import Arch, Family, SearchSpace
from prenas.values import few_of, unknown_name

_log = logging.getLogger(__name__)

ENTRY_POINTS = "prenas.families"

FAMILIES: dict[str, Family[Any, Any]] = {}
"""Name -> family. Families of other packages appear once they are registered or needed."""


def register(family: Family[Any, Any]) -> None:
    """Adds a family to the table, so that every command can use it.

    Registering the same family again has no effect.

    Raises:
        ValueError: another family already has its name, one of its space names or its types.
    """
    for other in FAMILIES.values():
        if other is family:
            return
        if other.name == family.name:
            raise ValueError(
                f"the family name {family.name!r} is already registered: choose another name, and "
                "register each family once, from the module that defines it"
            )
        taken = sorted(set(family.spaces) & set(other.spaces))
        if taken:
            raise ValueError(
                f"the space name{'s' if len(taken) > 1 else ''} {', '.join(map(repr, taken))} of "
                f"family {family.name!r} already belong{'' if len(taken) > 1 else 's'} to family "
                f"{other.name!r}: choose other names"
            )
        if family.arch_type is other.arch_type or family.space_type is other.space_type:
            raise ValueError(
                f"family {family.name!r} uses the architecture or space types of family "
                f"{other.name!r}: subclass them, so that values can be told apart"
            )
    FAMILIES[family.name] = family


def family_names() -> list[str]:
    """Names of all families, loaded or only declared."""
    return sorted({*FAMILIES, *(entry.name for entry in _declared())})


def get_family(name: str) -> Family[Any, Any]:
    """The family of that name.

    Raises:
        ValueError: nobody has it, with the choices; or the package that does cannot be loaded.
    """
    if not isinstance(name, str):  # from a document
        raise ValueError(
            f"family is {name!r:.80}, which is no name: choose {few_of(family_names())}"
        )
    if name not in FAMILIES:
        found = [entry for entry in _declared() if entry.name == name]
        if not found:
            raise unknown_name("family", name, family_names())
        for entry in found:
            _load(entry)
    return FAMILIES[name]


def family_of(value: Arch | SearchSpace) -> Family[Any, Any]:
    """The family that an architecture or a space belongs to."""
    family = _known_family_of(value)
    if family is None:
        _load_declared()
        family = _known_family_of(value)
    if family is None:
        raise TypeError(
            f"{type(value).__name__} does not belong to a registered family "
            f"({', '.join(FAMILIES)}): register its family first (prenas.families.register)"
        )
    return family


def _known_family_of(value: Arch | SearchSpace) -> Family[Any, Any] | None:
    for family in FAMILIES.values():
        if isinstance(value, (family.arch_type, family.space_type)):
            return family
    return None


def all_families() -> list[Family[Any, Any]]:
    """All families; those that cannot be loaded are left out with a warning."""
    for problem in _load_declared():
        _warn_once(problem)
    return list(FAMILIES.values())


def all_spaces() -> dict[str, SearchSpace]:
    """All named spaces; families that cannot be loaded are left out with a warning."""
    return {name: space for family in all_families() for name, space in family.spaces.items()}


def get_space(name: str) -> SearchSpace:
    """The space of this name.

    Raises:
        ValueError: no family has it; the message lists the available names, and the families that
            cannot be loaded.
    """
    for family in FAMILIES.values():
        if name in family.spaces:
            return family.spaces[name]
    problems = _load_declared()
    spaces = {name: space for family in FAMILIES.values() for name, space in family.spaces.items()}
    if name not in spaces:
        error = unknown_name("space", name, spaces)
        raise ValueError("; ".join([str(error), *problems]))
    return spaces[name]


def _by_name(family: Family[Any, Any]) -> tuple[Callable[[str], Family[Any, Any]], tuple[str]]:
    return get_family, (family.name,)


copyreg.pickle(Family, _by_name)  # so that supernets can be pickled, and copies share their family


# --- families of other packages ------------------------------------------------------------------


def _declared() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (entry.name, entry.value))


def _load_declared() -> list[str]:
    """Loads the declared families; returns a message for each that could not be loaded."""
    problems = []
    for entry in _declared():
        try:
            _load(entry)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _load(entry: EntryPoint) -> None:
    """Registers a declared family; any failure becomes a ValueError that names the package."""
    where = f"family {entry.name!r} of {_package(entry)} ({entry.value}) cannot be used"
    remedy = "repair or uninstall that package"
    for other in _declared():
        if other.name == entry.name and other.value != entry.value:
            raise ValueError(
                f"{where}: {_package(other)} also provides a family of that name; {remedy}"
            )
    try:
        family = entry.load()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}; {remedy}") from error
    if not isinstance(family, Family):
        raise ValueError(f"{where}: it is of type {type(family).__name__}, not Family; {remedy}")
    if family.name != entry.name:
        raise ValueError(f"{where}: the family's own name is {family.name!r}; {remedy}")
    try:
        register(family)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"


@cache
def _warn_once(problem: str) -> None:
    _log.warning("%s", problem)
