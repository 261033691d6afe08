"""The one table of families: those of this package, those of others, and look-ups in words.

Another package declares its families as entry points of the group `prenas.families`, each under
the family's name. What is declared is loaded only when a name is asked for that nobody knows yet,
or when everything is listed.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from prenas.families.base import Arch, Family, SearchSpace
from prenas.values import unknown_name

_log = logging.getLogger(__name__)

ENTRY_POINTS = "prenas.families"

FAMILIES: dict[str, Family[Any, Any]] = {}
"""Name -> family; of other packages those that were registered, or needed so far."""


def register(family: Family[Any, Any]) -> None:
    """Adds a family to the table, from where every command takes it; twice is no error.

    Raises:
        ValueError: its name, the name of one of its spaces, or one of its types is taken.
    """
    for other in FAMILIES.values():
        if other is family:
            return
        if other.name == family.name:
            raise ValueError(
                f"the name {family.name!r} is taken by another family: choose another name, and "
                "register a family once, from the module that makes it"
            )
        taken = sorted(set(family.spaces) & set(other.spaces))
        if taken:
            raise ValueError(
                f"the space name{'s' if len(taken) > 1 else ''} {', '.join(map(repr, taken))} of "
                f"family {family.name!r} belong{'' if len(taken) > 1 else 's'} to family "
                f"{other.name!r} already: choose other names"
            )
        if family.arch_type is other.arch_type or family.space_type is other.space_type:
            raise ValueError(
                f"family {family.name!r} has the architectures or spaces of family "
                f"{other.name!r}: derive types of its own, by which values are told apart"
            )
    FAMILIES[family.name] = family


def family_names() -> list[str]:
    """Of every family, loaded or only declared."""
    return sorted({*FAMILIES, *(entry.name for entry in _declared())})


def get_family(name: str) -> Family[Any, Any]:
    """The family of that name.

    Raises:
        ValueError: nobody has it, with the choices; or the package that does cannot be loaded.
    """
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
            f"{type(value).__name__} belongs to no family of {', '.join(FAMILIES)}: register its "
            "family first (prenas.families.register)"
        )
    return family


def _known_family_of(value: Arch | SearchSpace) -> Family[Any, Any] | None:
    for family in FAMILIES.values():
        if isinstance(value, (family.arch_type, family.space_type)):
            return family
    return None


def all_families() -> list[Family[Any, Any]]:
    """Every family; what cannot be loaded is left out, with a warning."""
    for problem in _load_declared():
        _warn_once(problem)
    return list(FAMILIES.values())


def all_spaces() -> dict[str, SearchSpace]:
    """Every named space of every family; of what cannot be loaded none, with a warning."""
    return {name: space for family in all_families() for name, space in family.spaces.items()}


def get_space(name: str) -> SearchSpace:
    """The named space; ValueError lists the choices, and families that cannot be loaded."""
    for family in FAMILIES.values():
        if name in family.spaces:
            return family.spaces[name]
    problems = _load_declared()
    spaces = {name: space for family in FAMILIES.values() for name, space in family.spaces.items()}
    if name not in spaces:
        error = unknown_name("space", name, spaces)
        raise ValueError("; ".join([str(error), *problems]))
    return spaces[name]


# --- families of other packages ------------------------------------------------------------------


def _declared() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (entry.name, entry.value))


def _load_declared() -> list[str]:
    """Loads what is declared; returns in words what could not be."""
    problems = []
    for entry in _declared():
        try:
            _load(entry)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _load(entry: EntryPoint) -> None:
    """Registers a declared family; ValueError that names it for whatever goes wrong."""
    where = f"family {entry.name!r} of {_package(entry)} ({entry.value}) cannot be used"
    remedy = "repair or uninstall that package"
    for other in _declared():
        if other.name == entry.name and other.value != entry.value:
            raise ValueError(f"{where}: {_package(other)} has one of that name too; {remedy}")
    try:
        family = entry.load()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}; {remedy}") from error
    if not isinstance(family, Family):
        raise ValueError(f"{where}: it is {type(family).__name__}, no Family; {remedy}")
    if family.name != entry.name:
        raise ValueError(f"{where}: it calls itself {family.name!r}; {remedy}")
    try:
        register(family)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"


@cache
def _warn_once(problem: str) -> None:
    _log.warning("%s", problem)
