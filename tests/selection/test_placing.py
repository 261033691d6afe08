"""Which resolution a budget gets, and how it prints it."""

import pytest

from families.drawing import TEST_SPACES
from prenas.cost import count
from prenas.families import get_space
from prenas.recipe import searching_recipe
from prenas.recipe.budgets import Budget, parse_budgets
from prenas.selection.placing import placed_budgets
from prenas.selection.preferred import exact_budgets

MOBILENET, ODD = get_space("mobilenet"), TEST_SPACES["mobilenet"][1]


def sides(text: str, **options: bool) -> list[int | None]:
    return [budget.resolution for budget in placed_budgets(MOBILENET, [text], **options).kept]  # type: ignore[arg-type]


def test_the_published_grid_follows_the_schedule() -> None:
    """By the lower end; if nothing fits at that resolution, the next smaller one."""
    found = sides("macs=200M:700M:25M")
    assert found == [192, 192, *[224] * 8, *[256] * 5, *[288] * 5]
    smallest = MOBILENET.smallest
    at_224 = smallest.model_copy(update={"resolution": 224})
    assert (
        count(at_224, MOBILENET)["macs"] > 250_000_000
    )  # so 225M:250M, which the schedule puts there, is empty


def test_a_limit_follows_its_upper_end() -> None:
    assert sides("macs=209M") == [192]
    assert sides("macs=400M") == [224]
    assert sides("macs=2G") == [288]
    assert sides("macs=430M") == [256]


def test_what_fits_nowhere_has_the_smallest() -> None:
    """Makes sure that the message tested below has a subject."""
    assert sides("macs=1M") == [192]


def test_of_parameters_alone_it_is_the_one_that_is_scored() -> None:
    assert MOBILENET.scored_resolution == 224
    assert MOBILENET.with_settings(image_size=1000).scored_resolution == 288
    assert MOBILENET.with_settings(image_size=208).scored_resolution == 192  # of two the smaller
    assert sides("params=10M") == [224]
    assert sides("params=10M,macs=500M") == [256]


def test_budgets_may_name_theirs() -> None:
    assert sides("macs=300M,resolution=192/224") == [192, 224]
    assert sides("resolution=256, params=12M") == [256]
    assert sides("macs=300M:400M:50M,resolution=192/288") == [192, 288, 192, 288]


def test_they_say_so_where_there_are_several() -> None:
    (budget,) = placed_budgets(MOBILENET, ["macs=300M"]).kept
    assert str(budget) == "macs <= 300M, resolution 224"
    for name in ("tiny", "mobilenet-micro"):
        (budget,) = placed_budgets(get_space(name), ["macs=300M"]).kept
        assert budget == Budget({"macs": (0, 300_000_001)})
        assert "resolution" not in str(budget)
    one = ODD.model_copy(update={"resolution": (13,)})
    (budget,) = placed_budgets(one, ["macs=300M,resolution=13"]).kept
    assert budget.resolution is None


def test_partial_intervals_have_one_too() -> None:
    found = placed_budgets(MOBILENET, ["macs=200M:440M:100M"])
    assert [budget.resolution for budget in found.kept] == [192, 224]
    assert [budget.resolution for budget in found.partial] == [224]


@pytest.mark.parametrize(
    ("space", "text", "words"),
    [
        (MOBILENET, "macs=300M,resolution=200", ["resolution 200", "choose from 192, 224, 256"]),
        (get_space("tiny"), "params=6M,resolution=224", ["space 'tiny'", "leave it out"]),
    ],
    ids=["another", "none"],
)
def test_unknown_resolutions_are_told_with_the_choices(
    space: object, text: str, words: list[str]
) -> None:
    """The recipe already refuses it."""
    with pytest.raises(ValueError, match="does not have") as caught:
        searching_recipe(space, [text])  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(ValueError, match="does not have"):
        placed_budgets(space, [text])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resolution=224", "limits nothing"),
        ("macs=1G,resolution=big", "cannot read the resolution 'big'"),
        ("macs=1G,resolution=0", "cannot read the resolution '0'"),
        ("macs=1G,resolution=224/", "cannot read the resolution ''"),
        ("macs=1G,resolution", "cannot read the budget"),
        ("macs=1G,resolution=192,resolution=224", "gives resolution twice"),
    ],
)
def test_texts_that_do_not_read(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_budgets([text])


def test_exact_budgets_hold_their_subnets() -> None:
    archs = [MOBILENET.smallest, MOBILENET.scored]
    texts = exact_budgets(archs, MOBILENET.settings)
    for budget, arch in zip(placed_budgets(MOBILENET, texts).kept, archs, strict=True):
        assert budget.holds(count(arch, MOBILENET))
