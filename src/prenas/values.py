"""Values: the frozen, hashable, checked objects that the whole package passes around."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen pydantic model: unknown fields are errors, equal content means equal hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
