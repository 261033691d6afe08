"""Values: the frozen, hashable, checked objects that the whole package passes around."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, ValidationError


class Value(BaseModel):
    """A frozen pydantic model: unknown fields are errors, equal content means equal hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def explain(error: ValidationError) -> str:
    """A pydantic error in one line per field: name, what is wrong, what was given."""
    lines = []
    for problem in error.errors():
        where = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        if problem["type"] == "tuple_type":
            message = f"a list is needed, such as {json.dumps([given], default=str)}"
        plain = isinstance(given, (str, int, float, bool, list, tuple)) or given is None
        suffix = f" (given: {given!r})" if plain and problem["type"] != "value_error" else ""
        lines.append(f"{where}: {message}{suffix}" if where else f"{message}{suffix}")
    return "\n".join(lines)
