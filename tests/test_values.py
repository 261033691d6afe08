"""How names and mistakes are shown to people."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prenas.values import Value, amount, explain, printable

ANY_TEXT = st.text(st.characters(categories=None))  # lone surrogates and controls included


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m and \x07", r"\x9b31m and \x07"),  # the one-letter form of the same
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("high \ud83d alone", r"high \ud83d alone"),
        ("exe\u202egnp.cat", r"exe\u202egnp.cat"),
        ("two\u2028lines", r"two\u2028lines"),
        ("back\rover", r"back\rover"),
        ("café, кот, 猫, می‌خواهم, [bold]", "café, кот, 猫, می‌خواهم, [bold]"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_lines_stay_lines_unless_one_is_wanted() -> None:
    assert printable("a\n\tb") == "a\n\tb"
    assert printable("a\n\tb", keeps="") == r"a\n\tb"


@given(ANY_TEXT)
def test_every_text_becomes_printable(text: str) -> None:
    shown = printable(text)
    assert shown.encode() == shown.encode(errors="replace")
    controls = {c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    assert controls <= {"\n", "\t"}
    assert not {c for c in shown if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLI", "RLE")}
    assert printable(shown) == shown
    assert printable(text, keeps="").count("\n") == 0


class Numbers(Value):
    """For the test below."""

    numbers: tuple[int, ...]


def test_of_many_problems_the_first_are_named() -> None:
    def problems(num: int) -> list[str]:
        with pytest.raises(ValidationError) as caught:
            Numbers.model_validate({"numbers": ["x"] * num})
        return explain(caught.value).splitlines()

    assert len(problems(10)) == 10
    assert problems(11) == [*problems(10), "and 1 more problem"]
    assert problems(2000)[-1] == "and 1,990 more problems"


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (199_017, "199,017"), (10**9, "1.00 x 10⁹"), (9_999 * 10**12, "1.00 x 10¹⁶")],
)
def test_amounts(number: int, text: str) -> None:
    assert amount(number) == text
