"""A table of architectures with accuracies, as people measured them, in JSON or CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from prenas.cost import bounded_names, count
from prenas.families import family_names, family_of, get_family, get_space
from prenas.families.base import Arch, Choices, Family, SearchSpace
from prenas.files import MOST_JSON_BYTES, load_json, read_bytes
from prenas.proxy.scores import Floats
from prenas.values import explain, few_of, shortened, unknown_name

FEWEST_ROWS, MOST_ROWS = 10, 1000
_ACCURACY = "accuracy"
_FIELDS = ("rows", "source", "space", "family", "settings")


_COUNTS = ("params", "macs")


@dataclass(frozen=True)
class AccuracyTable:
    """Architectures of one space, each with its accuracies."""

    space: SearchSpace
    archs: tuple[Arch, ...]
    choices: tuple[Choices, ...]
    """The architectures as choices of the space."""
    accuracies: Mapping[str, Floats]
    """Column -> the accuracy of every architecture, in the unit of the file."""

    @property
    def costs(self) -> dict[str, Floats]:
        """Cost axis -> the amount of every architecture."""
        found = [count(arch, self.space.settings) for arch in self.archs]
        return {
            name: np.array([costs[name] for costs in found], dtype=np.float64)
            for name in bounded_names()
            if all(name in costs for costs in found)
        }

    @property
    def counts(self) -> dict[str, Floats]:
        """The costs that a score may know by counting, whatever other axes there are."""
        return {name: found for name, found in self.costs.items() if name in _COUNTS}

    @property
    def network_options(self) -> dict[str, tuple[float, ...]]:
        """Choices made once per network that differ between rows -> the choice of every row."""
        options = [arch.network_options for arch in self.archs]
        found = {name: tuple(one[name] for one in options) for name in options[0]}
        return {name: chosen for name, chosen in found.items() if len(set(chosen)) > 1}

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the architectures, in order, and their space.

        Accuracies do not matter: scores do not depend on them.
        """
        parts = [self.space.model_dump_json(), *(arch.model_dump_json() for arch in self.archs)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def read_accuracies(
    path: Path, space: SearchSpace | None = None, columns: Sequence[str] = ()
) -> AccuracyTable:
    """Reads a table: a `.csv` file, or JSON under any other name.

    JSON is a list of rows, or an object with `rows` and, if no space is given, `space` (a name) or
    `family` and `settings`. A row has `arch` with the fields of an architecture, as in `arch.json`,
    or these fields themselves, and `accuracy`: a number, or numbers by name. CSV has a column for
    each field (lists as `3 4 3` or as JSON) or a column `arch` with JSON, and columns `accuracy` or
    `accuracy.NAME`.

    Args:
        space: the space that all architectures belong to; None takes that of the file, or the space
            of all options in the table.
        columns: the names of the accuracies to take; all by default.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it cannot be read as such a table, has fewer than ten or more than a thousand
            rows, or a column of accuracies says nothing; the message names the row and the column.
    """
    content = read_bytes(path, MOST_JSON_BYTES)
    try:
        document = _of_csv(content) if path.suffix.lower() == ".csv" else _of_json(content)
        return _table(document, space, columns)
    except (ValueError, csv.Error) as error:  # also those of decoding
        raise ValueError(f"{path}: {error}") from None


def _of_json(content: bytes) -> dict[str, Any]:
    try:
        document = load_json(content)
    except ValueError as error:
        raise ValueError(f"this is not JSON ({error}): a CSV file needs a name in .csv") from None
    if isinstance(document, list):
        return {"rows": document}
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise ValueError("a table is a list of rows, or an object with the list `rows`")
    if unknown := set(document).difference(_FIELDS):
        raise unknown_name("field of the table", min(unknown), _FIELDS)
    return document


def _of_csv(content: bytes) -> dict[str, Any]:
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    names = reader.fieldnames or []
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise ValueError(f"the header has {twice[0]!r} twice: give every column its own name")
    if not any(_accuracy_name(name) for name in names):
        raise ValueError(
            f"there is no column of accuracies among {', '.join(names) or 'none'}: name it "
            "`accuracy`, or several `accuracy.NAME`"
        )
    rows = []
    for number, cells in enumerate(reader, start=1):
        if None in cells or None in cells.values():
            raise ValueError(f"row {number} does not have the {len(names)} cells of the header")
        found = {_accuracy_name(name): cell for name, cell in cells.items() if _accuracy_name(name)}
        row: dict[str, Any] = {n: _of_cell(c) for n, c in cells.items() if not _accuracy_name(n)}
        rows.append(row | {_ACCURACY: {name: _of_cell(cell) for name, cell in found.items()}})
    return {"rows": rows}


def _accuracy_name(column: str) -> str | None:
    """The name of a column of accuracies; None for another column."""
    first, _, name = column.strip().partition(".")
    return (name or first) if first == _ACCURACY else None


def _of_cell(cell: str) -> Any:
    """What a cell holds: JSON, a list of numbers with spaces between them, or text."""
    try:
        return load_json(cell)
    except ValueError:
        pass
    try:
        numbers = [load_json(word) for word in cell.split()]
    except ValueError:
        return cell
    return numbers or cell


# --- rows ----------------------------------------------------------------------------------------


def _table(
    document: dict[str, Any], space: SearchSpace | None, columns: Sequence[str]
) -> AccuracyTable:
    rows = document["rows"]
    if strangers := [n for n, row in enumerate(rows, start=1) if not isinstance(row, dict)]:
        raise ValueError(f"row {strangers[0]} is not an object with the fields of an architecture")
    if not FEWEST_ROWS <= len(rows) <= MOST_ROWS:
        raise ValueError(
            f"there are {len(rows):,} rows, but a comparison needs {FEWEST_ROWS} to "
            f"{MOST_ROWS:,}: "
            + ("add rows" if len(rows) < FEWEST_ROWS else "draw a part of them at random")
        )
    accuracies = _accuracies(rows, columns)
    if space is None and "space" in document:
        space = get_space(str(document["space"]))
    if space is not None and "settings" in document:
        raise ValueError(
            f"the table has `settings`, and the space {space.name} has its own: leave out the "
            "settings, or the space (then `family` and `settings` describe the networks)"
        )
    family = _family(document, space)
    archs = tuple(_arch(row, number, family) for number, row in enumerate(rows, start=1))
    seen: dict[Arch, int] = {}
    for number, arch in enumerate(archs, start=1):
        if (first := seen.setdefault(arch, number)) != number:
            raise ValueError(
                f"rows {first} and {number} are the same architecture ({arch.summary}): give one "
                "row with the mean of its accuracies"
            )
    if space is None:
        space = _spanned(document, family, archs)
    choices = []
    for number, arch in enumerate(archs, start=1):
        try:
            choices.append(space.choices_of(arch))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
    return AccuracyTable(space, archs, tuple(choices), accuracies)


def _family(document: dict[str, Any], space: SearchSpace | None) -> Family[Any, Any]:
    named = [document["family"]] if "family" in document else []
    named += [row["family"] for row in document["rows"] if "family" in row]
    names = list(dict.fromkeys([*([space.family] if space else []), *map(str, named)]))
    if not names:
        raise ValueError(
            "nothing says what kind of networks these are: name their search space (--space "
            "NAME|FILE, or `space` beside `rows`), or write `family` beside `rows` (available: "
            f"{', '.join(family_names())})"
        )
    families = [get_family(name) for name in names]
    if len(names) > 1:
        raise ValueError(f"the families {' and '.join(names)} do not belong into one table")
    return families[0]


def _arch(row: Mapping[str, Any], number: int, family: Family[Any, Any]) -> Arch:
    beside = {name: one for name, one in row.items() if name not in (_ACCURACY, "family")}
    given = beside.pop("arch", None)
    fields = family.arch_type.model_fields
    if given is None:
        given = {name: beside.pop(name) for name in list(beside) if name in fields}
    elif not isinstance(given, dict):
        raise ValueError(f"row {number}: arch must be an object, not {given!r}")
    if missing := [n for n, field in fields.items() if field.is_required() and n not in given]:
        raise ValueError(
            f"row {number} lacks {', '.join(missing)} of a network of the family {family.name}"
        )
    try:
        arch: Arch = family.arch_type.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"row {number}: {few_of(explain(error).splitlines())}") from None
    known = arch.network_options  # such as a depth, which follows from the length of lists
    for name, value in beside.items():
        if name not in known:
            choices = [*fields, *known, _ACCURACY, "arch", "family"]
            raise ValueError(f"row {number}: {unknown_name('field', name, dict.fromkeys(choices))}")
        if value != known[name]:
            raise ValueError(f"row {number}: {name} is {value!r}, but follows as {known[name]:g}")
    return arch


def _spanned(
    document: dict[str, Any], family: Family[Any, Any], archs: tuple[Arch, ...]
) -> SearchSpace:
    try:
        settings = family.settings_type.model_validate(document.get("settings", {}))
        space: SearchSpace = family.space_type.spanning(archs, name="table", settings=settings)
    except ValidationError as error:
        raise ValueError(few_of(explain(error).splitlines())) from None
    except ValueError as error:  # the architectures differ in the number or kind of stages
        raise ValueError(f"these architectures do not form one space: {error}") from None
    assert family_of(space) is family
    return space


# --- accuracies ----------------------------------------------------------------------------------


def _accuracies(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Floats]:
    per_row = [dict(_named(row, number)) for number, row in enumerate(rows, start=1)]
    names = list(dict.fromkeys(name for one in per_row for name in one))
    for column in columns:
        if column not in names:
            raise unknown_name("column of accuracies", column, names)
    found = {}
    for name in columns or names:
        numbers = [
            _number(one.get(name), name, number) for number, one in enumerate(per_row, start=1)
        ]
        if len(set(numbers)) == 1:
            raise ValueError(
                f"the accuracy {name} is {numbers[0]:g} in every row: there is nothing to predict; "
                "leave the column out, or name the others with --accuracy"
            )
        found[name] = np.array(numbers)
    return found


def _named(row: Mapping[str, Any], number: int) -> Iterator[tuple[str, Any]]:
    if _ACCURACY not in row or row[_ACCURACY] == {}:
        raise ValueError(f"row {number} has no `{_ACCURACY}`: a number, or numbers by name")
    given = row[_ACCURACY]
    yield from given.items() if isinstance(given, dict) else [(_ACCURACY, given)]


def _number(given: Any, name: str, number: int) -> float:
    if given is None or given == "":
        raise ValueError(
            f"row {number} lacks the accuracy {name}: add it, leave the row out, or name other "
            "columns with --accuracy"
        )
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    try:
        found = float(given) if is_number else math.nan
    except OverflowError:  # an integer of hundreds of digits
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(
            f"row {number}: the accuracy {name} is {shortened(repr(given))}, not a finite number"
        )
    return found
