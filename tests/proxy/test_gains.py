"""What a family says about the tensors behind its block scores is checked, and corrected in words.

The block scores themselves are checked in `test_tables.py`.
"""

from dataclasses import replace
from typing import Any

import pytest

import residual_mlp
from families.drawing import ALL_SPACES, new_supernet
from prenas.families import family_of
from prenas.families.base import SearchSpace, StageNames
from prenas.proxy import gains
from prenas.proxy.gains import check_unit_tensors
from prenas.selection.search import zero_cost_search
from training.runs import mini_recipe

FAMILY, SPACE = residual_mlp.FAMILY, residual_mlp.DIGITS
RECIPE = mini_recipe(space=SPACE, search={"budgets": ("params=5k:15k:5k",)})


@pytest.mark.parametrize("space", ALL_SPACES)
def test_every_family_is_right(space: SearchSpace) -> None:
    check_unit_tensors(space, new_supernet(space).network)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"unit_tensors": {"hidden": (("fc1.wieght", 0),)}},
            [
                "the family residual-mlp names 'fc1.wieght' for the axis 'hidden'",
                "has no such parameter: did you mean 'fc1.weight'?",
                "fc2.weight [",
            ],
        ),
        (
            {"unit_tensors": {"hidden": (("fc1.weight", 2),)}},
            ["names dimension 2 of 'fc1.weight'", "give a dimension from 0 to 1"],
        ),
        (
            {"unit_tensors": {"hiden": (("fc1.weight", 0),)}},
            ["no entry for the layer axis 'hidden'"],
        ),
        (
            {"stage_names": lambda arch: [StageNames(["wrong."] * len(s)) for s in _layers(arch)]},
            ["the layer 'wrong.' has no such parameter: its parameters are none", "stage_names"],
        ),
    ],
)
def test_a_slip_is_named_before_anything_is_scored(
    changes: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gains, "family_of", lambda space: replace(FAMILY, **changes))
    with pytest.raises(ValueError, match="unit_tensors of the family") as caught:
        zero_cost_search(RECIPE)
    for word in words:
        assert word in str(caught.value)


def _layers(arch: Any) -> list[Any]:
    return [stage.layers for stage in family_of(arch).stage_names(arch)]
