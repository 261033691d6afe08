"""Validation during training: which subnets are due, what is logged, and no side effects."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prenas.evaluation.accuracy import evaluate_archs
from prenas.families.vit.space import VitArch
from prenas.length import Length, length_of
from prenas.recipe import TrainingRecipe
from prenas.training.loop import train_supernet
from prenas.training.validation import subnets_due
from training.runs import SMALLEST, WHOLE, assert_same_tensors, own_data
from training.test_step import ARCHS, new_supernet, recipe_of

FIVE = [VitArch(embed_dim=8, num_heads=(1,) * n, mlp_ratio=(1.0,) * n) for n in range(1, 6)]
ALL, SOME = [0, 1, 2, 3, 4], [0, 2, 4]
SEVEN = Length(steps_per_epoch=4, num_steps=28, is_in_steps=False)
"""Seven epochs."""


@pytest.mark.parametrize(
    ("some", "every", "expected"),
    [
        pytest.param(1, 3, [SOME, SOME, ALL, SOME, SOME, ALL, ALL], id="both"),
        pytest.param(2, 0, [[], SOME, [], SOME, [], SOME, ALL], id="some"),
        pytest.param(0, 4, [[], [], [], ALL, [], [], ALL], id="all"),
        pytest.param(0, 0, [[], [], [], [], [], [], []], id="never"),
        pytest.param(1, 10, [SOME, SOME, SOME, SOME, SOME, SOME, ALL], id="default"),
    ],
)
def test_whose_turn_it_is(some: int, every: int, expected: list[list[int]]) -> None:
    """Of five subnets and seven epochs."""
    recipe = TrainingRecipe(epochs=7, validate_epochs=some, validate_all_epochs=every)
    assert [subnets_due(FIVE, recipe, SEVEN, done) for done in range(1, 8)] == expected


@pytest.mark.parametrize(
    ("some", "every", "num_some", "num_all"),
    [
        pytest.param(1, 10, 8, 2, id="default"),
        pytest.param(5, 20, 8, 2, id="photos"),
        pytest.param(1, 0, 9, 1, id="some"),
        pytest.param(300, 1000, 3, 1, id="as-rare-as-asked-for"),
        pytest.param(0, 0, 0, 0, id="never"),
    ],
)
def test_short_epochs_are_not_each_validated(
    some: int, every: int, num_some: int, num_all: int
) -> None:
    """Of 1,200 epochs of one step; the last always counts."""
    recipe = TrainingRecipe(steps=1200, validate_epochs=some, validate_all_epochs=every)
    length = length_of(recipe, steps_per_epoch=1)
    due = [subnets_due(FIVE, recipe, length, done) for done in range(1, 1201)]
    assert (due.count(SOME), due.count(ALL)) == (num_some, num_all)
    assert due[-1] == (ALL if some else [])


@pytest.mark.parametrize(("number", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_few_subnets_are_not_named_twice(number: int, expected: list[int]) -> None:
    recipe = TrainingRecipe(epochs=7)
    assert subnets_due(FIVE[:number], recipe, SEVEN, 1) == expected


def validated(folder: Path | None, **fields: Any) -> tuple[Any, list[dict[str, Any]]]:
    supernet, records = new_supernet(0.2), []
    recipe = recipe_of(epochs=3, ema_decay=0.8, **fields)
    train_supernet(
        supernet, ARCHS, own_data(), recipe, folder=folder, follow=lambda _: [records.append]
    )
    return supernet, [record for record in records if record["event"] == "validation"]


def test_records_are_the_evaluation_of_the_weights_and_of_their_average(tmp_path: Path) -> None:
    supernet, records = validated(tmp_path, validate_epochs=1, validate_all_epochs=2)
    assert [(r["epoch"], r["step"], r["weights"], r["subnet"]) for r in records] == [
        (epoch, 5 * (epoch + 1), weights, subnet)
        for epoch in range(3)
        for weights in ("trained", "ema")
        for subnet in range(3)
    ]
    for weights, name in (("trained", "supernet"), ("ema", "ema")):
        file = tmp_path / "checkpoints" / "step-00000015" / f"{name}.safetensors"
        supernet.network.load_state_dict(load_file(file))
        rows = evaluate_archs(supernet, ARCHS, {"validation": own_data().validation})
        last = [r for r in records if r["epoch"] == 2 and r["weights"] == weights]
        for record, row in zip(last, rows, strict=True):
            assert record["costs"] == row.costs
            expected = row.splits["validation"].summary
            assert {key: record[key] for key in expected} == expected


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """To the bit: weights, averages and optimiser, with drop path on."""
    looked, seen = validated(tmp_path / "a", validate_epochs=1, validate_all_epochs=1)
    blind, nothing = validated(tmp_path / "b", validate_epochs=0, validate_all_epochs=0)
    assert len(seen) == 18
    assert nothing == []
    assert_same_tensors(dict(looked.state_dict()), dict(blind.state_dict()))
    for name in ("supernet", "ema"):
        left, right = (
            load_file(tmp_path / run / "checkpoints" / "step-00000015" / f"{name}.safetensors")
            for run in "ab"
        )
        assert_same_tensors(left, right)


def test_some_subnets_alone_never_make_the_best(tmp_path: Path) -> None:
    """Only the mean over all preferred subnets is compared; the last epoch always has it."""
    recipe = recipe_of(epochs=2, validate_epochs=1, validate_all_epochs=0)
    five = [*ARCHS, WHOLE, SMALLEST]
    best, seen = tmp_path / "checkpoints" / "best.safetensors", []
    train_supernet(
        new_supernet(),
        five,
        own_data(),
        recipe,
        folder=tmp_path,
        watch=lambda progress: seen.append((progress.epoch, best.exists())),
    )
    assert {exists for _, exists in seen} == {False}
    assert best.exists()


def test_the_best_weights_are_looked_for_in_every_evaluation() -> None:
    recipe = TrainingRecipe(
        epochs=9, validate_epochs=2, validate_all_epochs=0, final_weights="best"
    )
    nine = Length(steps_per_epoch=4, num_steps=36, is_in_steps=False)
    due = {epoch: len(subnets_due(FIVE, recipe, nine, epoch)) for epoch in range(1, 10)}
    assert due == {1: 0, 2: 5, 3: 0, 4: 5, 5: 0, 6: 5, 7: 0, 8: 5, 9: 5}
