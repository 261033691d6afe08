"""Formats numbers and names for readers."""

from __future__ import annotations

NONE = "-"
"""Printed where a number is missing."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def amount(number: int) -> str:
    """Formats a count: 199,017, or 1.06 x 10⁹."""
    if number < 10**9:
        return f"{number:,}"
    exponent = len(str(number)) - 1
    digits = f"{number / 10**exponent:.2f}"
    if digits == "10.00":
        digits, exponent = "1.00", exponent + 1
    return f"{digits} x 10{str(exponent).translate(_SUPERSCRIPTS)}"


def score_text(score: float | None) -> str:
    """Formats the score of a subnet."""
    return NONE if score is None else f"{score:,.1f}"


def percent(share: float) -> str:
    """Formats a share, 0 to 1, in % with two decimals and without the % sign."""
    return f"{100 * share:.2f}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Formats a number with its noun: "1 epoch", "2 epochs"."""
    return f"{amount(number)} {one if number == 1 else many or one + 's'}"


def words(name: str) -> str:
    """The name of a field as words: "a field" for "a_field"."""
    return name.replace("_", " ")
