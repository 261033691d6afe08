"""Search spaces from a file: YAML or JSON for lists of options, Python for everything else.

The YAML is version 1.2 with its JSON schema: numbers, `true`, `false` and `null` are written as in
JSON, and every other unquoted word is a string. YAML 1.1 would read `depth: 12:14` as the number
734 and `yes` as true; here such a slip is an error instead of another space.
"""

from __future__ import annotations

import re
import runpy
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from prenas.families import (
    all_spaces,
    family_names,
    family_of,
    get_family,
    get_space,
)
from prenas.families.base import SearchSpace
from prenas.files import check_depth, exists, load_json, open_file
from prenas.values import explain, unknown_name

SUFFIXES = (".yaml", ".yml", ".json", ".py")
_MOST_BYTES = 2**18  # a space needs a few hundred; a large file given by mistake is not parsed


def names_a_space_file(text: str) -> bool:
    """Whether a text means a space file: the file exists, or the suffix is that of one."""
    path, _ = _path_and_name(text)
    return path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir())


def find_space(text: str) -> SearchSpace:
    """The search space of this name, or that of a file; ValueError lists the names."""
    if names_a_space_file(text) and text not in all_spaces():
        return read_space(text)
    return get_space(text)


def read_space(path: str | Path) -> SearchSpace:
    """The search space that a file describes.

    A YAML or JSON file contains the fields: `family`, the options of every axis, and the settings,
    either at the top level or under `settings`; `name` defaults to the file's name. No code in it
    is run. A Python file defines one `SearchSpace` at module level, or `FILE.py:NAME` says which;
    it is executed with all your rights, so use only files that you trust.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file cannot be read or does not describe a valid space; the message names
            the file and each wrong field, its value and what is allowed.
    """
    file, variable = _path_and_name(str(path))
    if file.is_dir():
        raise ValueError(f"{file} is a folder: give the space file in it")
    if not exists(file):
        raise FileNotFoundError(f"{file} does not exist: check the path of the space file")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{file} is not a space file: its name must end in {', '.join(SUFFIXES)}")
    if suffix == ".py":
        return _space_of_module(file, variable)
    document = _read_document(file)
    if not isinstance(document, dict):
        kind = _KINDS[type(document)]
        raise ValueError(
            f"{file} contains {kind} instead of fields: write `field: value`, one per line"
        )
    try:
        return _space_of_fields({"name": file.stem, **document})
    except ValidationError as error:
        problems = explain(error)
    except ValueError as error:
        problems = str(error)
    raise ValueError("\n".join(f"{file}: {line}" for line in problems.splitlines()))


_KINDS = {
    type(None): "nothing",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
}


def _path_and_name(text: str) -> tuple[Path, str | None]:
    """Splits `FILE.py:NAME` into file and name; any other path has no name."""
    path, colon, name = text.rpartition(":")
    return (Path(path), name) if colon and path.endswith(".py") else (Path(text), None)


# --- fields --------------------------------------------------------------------------------------


def _space_of_fields(fields: Mapping[str, Any]) -> SearchSpace:
    """The space with these fields, settings flat or nested; ValueError lists every problem.

    Types are checked strictly: a string or a boolean is not a number, and 2.5 is not an integer.
    """
    if not isinstance(fields.get("family"), str):
        given = f" (got {fields['family']!r})" if "family" in fields else ""
        raise ValueError(f"family: write one of {', '.join(family_names())}{given}")
    family = get_family(fields["family"])
    settings_names = family.settings_type.model_fields
    space_fields = family.space_type.model_fields

    own = {key: value for key, value in fields.items() if key not in settings_names}
    flat = {key: value for key, value in fields.items() if key in settings_names}
    nested = {} if own.get("settings") is None else own["settings"]
    problems: list[str] = []
    if not isinstance(nested, dict):
        problems.append(f"settings must be a group of fields (got {nested!r})")
        nested = {}
    problems += [
        f"{key} is given twice, once under settings and once outside: keep one of them"
        for key in flat
        if key in nested
    ]
    problems += _unknown(own, [*space_fields, *settings_names])
    problems += _unknown(nested, settings_names, "settings.")
    problems += [
        f"{name} is missing: list its options, from small to large"
        for name, field in space_fields.items()
        if field.is_required() and name != "name" and fields.get(name) is None
    ]
    if problems:
        raise ValueError("\n".join(problems))
    content = {**own, "settings": {**nested, **flat}}
    return family.space_type.model_validate(_tuples(content), strict=True)


def _unknown(fields: Iterable[str], known: Iterable[str], prefix: str = "") -> list[str]:
    known = list(known)
    return [
        str(unknown_name("field", f"{prefix}{field}", [prefix + name for name in known]))
        for field in fields
        if field not in known
    ]


def _tuples(value: Any) -> Any:
    """Turns lists into tuples at every level: strict checks do not accept a list for a tuple."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# --- YAML and JSON -------------------------------------------------------------------------------


def _read_document(file: Path) -> object:
    """The plain values in a YAML or JSON file; None if it is empty."""
    with open_file(file) as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(
            f"{file} is larger than {_MOST_BYTES // 1024} KiB, which is too large for a space "
            "file: check the path"
        )
    try:
        text = content.decode("utf-8-sig")  # with or without a byte-order mark
        if not text.strip():
            return None
        if file.suffix.lower() == ".json":
            return load_json(text, object_pairs_hook=_unique)
        document = _parse_yaml(text)
        check_depth(document)
        return document
    except UnicodeDecodeError:
        problem = "it is not UTF-8: save the file as UTF-8"
    except RecursionError:
        problem = "it is nested more deeply than any search space needs"
    except ValueError as error:  # with its line
        problem = str(error)
    raise ValueError(f"{file} cannot be read: {problem}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The fields of a JSON object; ValueError if a key occurs twice."""
    fields: dict[str, object] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"{key} is given twice: keep one of them")
        fields[key] = value
    return fields


class _PlainComposer(Composer):
    """Allows only plain values: refuses tags, aliases, and keys that are not single words.

    Without aliases, a small file cannot expand into a huge one. Repeated keys are refused with
    their line number.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        is_key = isinstance(parent, MappingNode) and index is None
        if isinstance(event, AliasEvent):
            raise _refusal(
                f"YAML aliases such as *{event.anchor} are not supported: write the value", event
            )
        if event.tag is not None:
            raise _refusal(
                f"YAML tags such as {event.tag} are not supported: write a plain value", event
            )
        if is_key and not isinstance(event, ScalarEvent):
            raise _refusal("a field name must be one word", event)
        node = super().compose_node(parent, index)
        if is_key and any(key.value == node.value for key, _ in parent.value):
            raise _refusal(f"{node.value} is given twice: keep one of them", event)
        return node


class _JsonSchema(VersionedResolver):
    """How unquoted words are read: the JSON schema of YAML 1.2, plus Python's NaN and Infinity."""

    processing_version = (1, 2)  # whatever version a directive in the file asks for
    versioned_resolver: ClassVar[dict[str | None, list[tuple[str, re.Pattern[str]]]]] = {
        None: [  # whatever the first character is
            ("tag:yaml.org,2002:null", re.compile(r"(?:null|~|)\Z")),
            ("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)\Z")),
            # A thousand digits: more than any size needs, fewer than Python's conversion limit.
            ("tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9][0-9]{0,999})\Z")),
            (
                "tag:yaml.org,2002:float",
                re.compile(
                    r"-?(?:0|[1-9][0-9]*)(?=[.eE])(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z"
                    r"|NaN\Z|-?Infinity\Z"
                ),
            ),
        ]
    }


def _parse_yaml(text: str) -> object:
    """The plain values of a YAML text; ValueError with line and column."""
    reader = YAML(typ="safe", pure=True)  # the C parser would not use these two classes
    reader.Composer, reader.Resolver = _PlainComposer, _JsonSchema
    reader.composer.warn_double_anchors = False  # aliases are refused, so anchors do not matter
    try:
        return reader.load(text)
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n"), error.position - before.rfind("\n") - 1
        problem = f"unacceptable character U+{error.character:04X}"
    except MarkedYAMLError as error:
        line, column = error.problem_mark.line, error.problem_mark.column
        is_second = isinstance(error, ComposerError)  # other refusals come from _PlainComposer
        problem = "there is a second YAML document: keep only one" if is_second else error.problem
    raise ValueError(f"line {line + 1}, column {column + 1}: {problem}")


def _refusal(problem: str, event: Any) -> MarkedYAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


# --- Python --------------------------------------------------------------------------------------


def _space_of_module(file: Path, variable: str | None) -> SearchSpace:
    """Executes a Python file and returns the space that it defines."""
    found = {name: value for name, value in execute(file).items() if isinstance(value, SearchSpace)}
    public = {name: value for name, value in found.items() if not name.startswith("_")}
    if variable is not None:
        if variable not in found:
            raise ValueError(
                f"{file} has no SearchSpace named {variable!r}: it has {_listed(found)}"
            )
        space = found[variable]
    elif len(set(public.values())) == 1:
        space = next(iter(public.values()))
    else:
        hint = (
            f"choose one, e.g. {file}:{min(public)}"
            if public
            else "assign one to a name in it, e.g. SPACE = prenas.get_space(...)"
        )
        raise ValueError(
            f"{file} must define exactly one SearchSpace at module level, but defines "
            f"{_listed(public)}: {hint}"
        )
    try:
        family_of(space)
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from None
    return space


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def execute(file: Path) -> dict[str, Any]:
    """The module-level names of a Python file, which runs with all your rights.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it fails; the message has the line.
    """
    if not exists(file):
        raise FileNotFoundError(f"there is no Python file {file}: check the path")
    try:
        return runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{file}, line {line}" if line else str(file)
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        if isinstance(error, ValidationError):
            message = explain(error)
        raise ValueError(f"{where}: {type(error).__name__}: {message}") from error
