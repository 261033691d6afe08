"""Formats numbers and names for readers."""

from __future__ import annotations

NONE = "-"
"""Printed where a number is missing."""


def score_text(score: float | None) -> str:
    """Formats the score of a subnet."""
    return NONE if score is None else f"{score:,.1f}"


def percent(share: float) -> str:
    """Formats a share, 0 to 1, in % with two decimals and without the % sign."""
    return f"{100 * share:.2f}"


def words(name: str) -> str:
    """The name of a field as words: "a field" for "a_field"."""
    return name.replace("_", " ")
