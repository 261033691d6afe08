"""Values: the frozen, hashable, checked objects that the whole package passes around.

Also how a value, a name or a mistake in one is shown to people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

MOST_AMOUNT = 10**18
"""The largest cost or number of anything; tables add a few of them in 64 bits."""

LONGEST_NAME = 500
"""Characters in the name of a recipe or a space: pictures and tables show it."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Amount = Annotated[int, Field(ge=0, le=MOST_AMOUNT)]


class Value(BaseModel):
    """A frozen pydantic model: unknown fields are errors, equal content means equal hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_not_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Lets pydantic refuse, at its place in a list, what it would read as 1 or 0."""
        if info.field_name is not None and _takes_numbers_only(cls, info.field_name):
            return _without_booleans(value)
        return value


@cache
def _takes_numbers_only(kind: type[BaseModel], field: str) -> bool:
    types = set(_leaves(kind.model_fields[field].annotation))
    return bool not in types and not types.isdisjoint((int, float))


def _leaves(annotation: Any) -> list[Any]:
    """The types inside an annotation such as `tuple[int, ...] | None`."""
    return [leaf for part in get_args(annotation) for leaf in _leaves(part)] or [annotation]


class _Boolean:
    """Looks like a boolean in an error message, but is not a number."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __repr__(self) -> str:
        return repr(self._value)


def _without_booleans(value: Any) -> Any:
    if isinstance(value, bool):
        return _Boolean(value)
    if isinstance(value, dict):
        return {key: _without_booleans(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)) and not {*map(type, value)} <= {int, float}:
        return tuple(map(_without_booleans, value))
    return value


_NEEDED = {
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "model_type": "must be a group of fields",
}
"""Kind of pydantic error -> the same for readers who do not know pydantic."""


_MOST_PROBLEMS = 10


def shortened(text: str) -> str:
    """A text of at most 80 characters: of a longer one, its beginning."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _given(value: object) -> str:
    return shortened(repr(list(value) if isinstance(value, tuple) else value))


def explain(error: ValidationError, *, within: str | None = None) -> str:
    """A pydantic error, one line per field: its name, what is wrong, and the value.

    Of very many problems, it names the first.

    Args:
        within: the field that holds the value, if it is part of a larger document.
    """
    lines = []
    outer = () if within is None else (within,)
    for problem in error.errors():
        where = ".".join(map(str, (*outer, *problem["loc"])))
        kind, given = problem["type"], problem["input"]
        message = _NEEDED.get(kind, problem["msg"].removeprefix("Value error, "))
        if kind == "tuple_type" and isinstance(given, (str, int, float)):
            example = json.dumps([given])
            message += f", such as {example}" * (example == shortened(example))
        plain = isinstance(given, (str, int, float, bool, list, tuple)) or given is None
        shows_given = (plain and kind != "value_error") or kind in _NEEDED
        suffix = f" (got {_given(given)})" if shows_given else ""
        lines.append(f"{where}: {message}{suffix}" if where else f"{message}{suffix}")
    if (more := len(lines) - _MOST_PROBLEMS) > 0:
        lines[_MOST_PROBLEMS:] = [f"and {more:,} more problem{'s' if more > 1 else ''}"]
    return "\n".join(lines)


def explained(error: ValidationError, *, within: str | None = None) -> ValueError:
    """A pydantic error as an error with readable text, of the kind that a validator raised."""
    causes = [details.get("ctx", {}).get("error") for details in error.errors()]
    is_unknown = any(isinstance(cause, UnknownNameError) for cause in causes)
    return (UnknownNameError if is_unknown else ValueError)(explain(error, within=within))


V = TypeVar("V", bound=Value)


def parse_within(kind: type[V], fields: Any, where: str) -> V:
    """A value that is part of a larger document; the error names the part, `where`.

    Raises:
        ValueError: a field is wrong.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise explained(error, within=where) from None


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls, such as the start of a terminal's escape sequence
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of the text after them
    "\u2028\u2029"  # break lines
    "\ud800-\udfff]"  # bytes of a file name that are not UTF-8, as Python reads them
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def error_in_words(error: Exception) -> str:
    """The kind of somebody else's error and the first line of what it says, for one of ours."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:200]}"


def printable(text: str, *, keeps: str = "\n\t") -> str:
    r"""A text as people may see it: what would steer a terminal is escaped, such as `\x1b`.

    Names of files, classes and tensors can contain anything. A byte that is not UTF-8 is shown as
    it is in the file name, such as `\xe9`.

    Args:
        keeps: characters that are left as they are; "" shows the text on one line.
    """

    def escaped(found: re.Match[str]) -> str:
        character = found[0]
        if character in keeps:
            return character
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:  # one undecodable byte
            code -= 0xDC00
        return _SHORT.get(character, f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

    return _UNPRINTABLE.sub(escaped, text)


def amount(number: int) -> str:
    """Formats a count: 199,017, or 1.06 x 10⁹."""
    if number < 10**9:
        return f"{number:,}"
    exponent = len(str(number)) - 1
    digits = f"{number / 10**exponent:.2f}"
    if digits == "10.00":
        digits, exponent = "1.00", exponent + 1
    return f"{digits} x 10{str(exponent).translate(_SUPERSCRIPTS)}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Formats a number with its noun: "1 epoch", "2 epochs"."""
    return f"{amount(number)} {one if number == 1 else many or one + 's'}"


def few_of(texts: Sequence[str], most: int = 5) -> str:
    """The texts in one line; of many only the first ones, and how many more there are."""
    more = f"; and {len(texts) - most:,} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


class UnknownNameError(ValueError):
    """A name that is in no table; perhaps what registers it was not loaded."""


def unknown_name(
    kind: str, name: str, choices: Iterable[str], *, listed_by: str | None = None
) -> UnknownNameError:
    """An error for an unknown name, with the closest names first and then all of them.

    Args:
        listed_by: what lists the names, if they are too many for a message.
    """
    choices = sorted(choices)
    inside = [choice for choice in choices if choice.rpartition(".")[2] == name]
    near = [*inside, *get_close_matches(name, choices, n=3, cutoff=0.5)]
    near = [*dict.fromkeys(near)][:3]
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    rest = f"available: {', '.join(choices)}" if listed_by is None else f"{listed_by} lists all"
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}{rest}")
