"""How numbers and names are written for people."""

from __future__ import annotations

NONE = "-"
"""Where there is no number."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def amount(number: int) -> str:
    """A count: 199,017, or 1.06 x 10⁹."""
    if number < 10**9:
        return f"{number:,}"
    exponent = len(str(number)) - 1
    digits = f"{number / 10**exponent:.2f}"
    if digits == "10.00":
        digits, exponent = "1.00", exponent + 1
    return f"{digits} x 10{str(exponent).translate(_SUPERSCRIPTS)}"


def percent(share: float) -> str:
    """A share, 0 to 1, in % with two decimals and without the sign."""
    return f"{100 * share:.2f}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """A number and what is counted: "1 epoch", "2 epochs"."""
    return f"{amount(number)} {one if number == 1 else many or one + 's'}"


def words(name: str) -> str:
    """A field's name: "a_field" reads "a field"."""
    return name.replace("_", " ")
