"""Compact names and numbers are what tuples of them are."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenas.data.names import Integers, Names, Sizes, SortedNames

WORDS = st.text(st.characters(codec=None), max_size=5)  # with lone surrogates, as in file names
PATHS = st.lists(
    st.lists(
        st.sampled_from(["a", "a-b", "a0", "a.b", "b", "é", "\udc80", "\U0001f600"]), min_size=1
    ),
    max_size=12,
).map(lambda parts: sorted({"/".join(part) for part in parts}))


@given(st.lists(WORDS, max_size=8), st.data())
def test_names_are_a_sequence_of_strings(words: list[str], data: st.DataObject) -> None:
    names = Names.of(iter(words))
    assert [*names] == words
    assert [names[i] for i in range(-len(words), len(words))] == words * 2
    chosen = data.draw(st.slices(len(words)))
    assert [*names[chosen]] == words[chosen]
    indices = data.draw(st.lists(st.integers(0, max(0, len(words) - 1)), max_size=5))
    if words:
        taken = names.take(np.array(indices, np.int64))
        assert [*taken] == [words[i] for i in indices]
        assert [*Names.unpacked(*taken.packed())] == [*taken]
    assert names == Names.of(words)
    assert (names == Names.of([*words, ""])) is False


@given(PATHS)
def test_what_is_in_a_folder_is_found_as_by_looking_at_every_name(paths: list[str]) -> None:
    names = SortedNames.of_sorted(paths)
    tops = {path.partition("/")[0] for path in paths if "/" in path}
    assert names.folders.keys() == tops
    assert [names[i] for i in names.loose] == [path for path in paths if "/" not in path]
    for folder in [*tops, "a", "zz"]:
        inside = [path for path in paths if path.startswith(f"{folder}/")]
        assert [names[i] for i in names.below(folder)] == inside
        assert [*names.inside(folder)] == [path.removeprefix(f"{folder}/") for path in inside]
        assert [*names.without([folder])] == [path for path in paths if path not in inside]
    assert [names.position(path) for path in paths] == [*range(len(paths))]
    with pytest.raises(KeyError):
        names.position("a/nowhere")


def test_sizes_are_asked_for_once_and_only_when_they_are_needed() -> None:
    calls: list[int] = []

    def measure() -> array[int]:
        calls.append(1)
        return array("q", [3, 1, 4, 1])

    names = SortedNames.of_sorted(["a/1", "a/2", "b/1", "c"])
    sizes = Sizes(names, Integers(4, measure))
    inside, taken = sizes.inside("a"), sizes.measured.take(np.array([2, 0]))
    assert [*sizes] == [*names]
    assert (len(inside), len(taken), len(sizes.measured[1:3])) == (2, 2, 2)
    assert not calls
    assert dict(inside) == {"1": 3, "2": 1}
    assert [*taken] == [4, 3]
    assert sizes["c"] == 1
    assert calls == [1]


@pytest.mark.parametrize("form", [list, tuple, np.array, lambda values: array("q", values)])
def test_integers_are_python_integers_whatever_they_were(
    form: Callable[[list[int]], list[int]],
) -> None:
    numbers = Integers.of(form([5, -(2**62), 0]))
    assert [type(number) for number in numbers] == [int] * 3
    assert numbers == Integers.of([5, -(2**62), 0])
    assert np.asarray(numbers).dtype == np.int64
    assert [*numbers[1:]] == [-(2**62), 0]


def test_a_name_takes_sixteen_bytes_and_its_letters() -> None:
    """Parts of it share the letters."""
    names = Names.of(f"train-{number // 100:03d}.tar/{number:08d}.jpg" for number in range(1000))
    letters = sum(map(len, names))
    assert len(names._letters) == letters
    assert names.take(np.arange(10))._letters is names._letters
    assert names._starts.nbytes == 8000
