"""Sizes that no network has are refused by value and limit, before anything is built."""

import time
from typing import Any

import pytest
from pydantic import ValidationError

from prenas.families import get_space
from prenas.families.limits import MOST_LAYERS
from prenas.families.mobilenet.arch import MobileNetArch
from prenas.families.vit.space import VitArch, VitSettings, VitSpace
from prenas.recipe import with_overrides
from prenas.recipe.catalogue import get_recipe

_VIT = {"name": "x", "embed_dim": 64, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"embed_dim": 10**6}, "less than or equal to 65536"),
        ({"embed_dim": list(range(1, 60_001))}, "60,000 options is too long: at most 256"),
        ({"depth": 10**5}, "100,000 layers are too many"),
        ({"num_heads": 10**400}, "less than or equal to 65536"),
        ({"mlp_ratio": 1e9}, "less than or equal to 100"),
        (
            {"embed_dim": list(range(1, 201)), "num_heads": list(range(1, 201))},
            "40,000 combinations of widths and options are too many for a search: at most 20,000",
        ),
        ({"settings": {"image_size": 8000}}, "at most 4,096 pixels"),
        ({"settings": {"image_size": 999_999_999}}, "at most 4,096 pixels"),
        ({"settings": {"image_size": 4096, "patch_size": 1}}, "at most 65,536 are allowed"),
        ({"settings": {"num_classes": 10**7}}, "less than or equal to 1000000"),
        ({"settings": {"in_chans": 10**6}}, "less than or equal to 65536"),
    ],
)
def test_an_absurd_space_is_refused_at_once(fields: dict[str, Any], words: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=words):
        VitSpace.model_validate({**_VIT, **fields})
    assert time.monotonic() - started < 5


def test_the_stages_and_all_layers_of_a_space_are_counted() -> None:
    fields = get_space("mobilenet-micro").model_dump(mode="json")
    space = type(get_space("mobilenet-micro"))
    stage = fields["stages"][-1] | {"stride": 1}
    assert len(space.model_validate({**fields, "stages": [stage] * 64}).stages) == 64
    with pytest.raises(ValidationError, match="at most 64 items"):
        space.model_validate({**fields, "stages": [stage] * 200})
    with pytest.raises(ValidationError, match=r"1,280 layers are too many for a search: at most"):
        space.model_validate({**fields, "stages": [stage | {"depth": 20}] * 64})


@pytest.mark.parametrize(
    "fields",
    [
        {"embed_dim": 10**6, "num_heads": [1], "mlp_ratio": [1]},
        {"embed_dim": 64, "num_heads": [10**6], "mlp_ratio": [1]},
        {"embed_dim": 64, "num_heads": [1], "mlp_ratio": [1e9]},
        {"embed_dim": 64, "num_heads": [1] * 100_000, "mlp_ratio": [1] * 100_000},
        {"embed_dim": True, "num_heads": [1], "mlp_ratio": [1]},
        {"embed_dim": 64, "num_heads": [True], "mlp_ratio": [1]},
    ],
)
def test_an_absurd_architecture_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VitArch.model_validate(fields)


def test_the_limits_themselves_are_allowed() -> None:
    arch = VitArch(embed_dim=8, num_heads=(1,) * MOST_LAYERS, mlp_ratio=(100.0,) * MOST_LAYERS)
    assert arch.depth == MOST_LAYERS
    assert VitSettings(image_size=(4096, 4096), patch_size=16).grid == (256, 256)


def test_a_convolutional_description_has_the_same_limits() -> None:
    stage = {"width": 8, "kernel": [3], "expand": [1]}
    good = {"stem": 8, "head": 8, "stages": [stage]}
    assert MobileNetArch.model_validate(good).head == 8
    for bad in (
        {"stem": 10**6},
        {"head": 10**6},
        {"resolution": 8000},
        {"stages": [stage] * 65},
        {"stages": [{**stage, "expand": [1e9]}]},
        {"stages": [{**stage, "kernel": [99_999]}]},
        {"stages": [{**stage, "kernel": [3] * 1001, "expand": [1] * 1001}]},
        {"stages": [{**stage, "width": True}]},
    ):
        with pytest.raises(ValidationError):
            MobileNetArch.model_validate({**good, **bad})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("search.further_seeds=1000000", "less than or equal to 1000"),
        ("search.num_images=1000000007", "less than or equal to 1000000"),
        ("training.epochs=1e30", "training.epochs"),
        ("space.settings.image_size=999999999", "at most 4,096 pixels"),
        ('search.budgets=["params=1:1000000000:1"]', "makes 999,999,999 budgets: at most 10,000"),
        ('search.budgets=["params=99999999999999999999G"]', "at most 1000000000G is allowed"),
        (f'search.budgets=["params={"9" * 5000}"]', "5,000 characters is too long"),
        (f"seed={'9' * 5000}", "an integer has 5,000 digits"),
        (f"space.embed_dim={'[' * 5000}", "nested more deeply"),
        (f"search.budgets={'x' * 5000}", r"search\.budgets: must be a list \(got 'xxx"),
        (f"training.epochs.x={'x' * 5000}", "is a single value and has no fields"),
        (f"evolution.x.y={'x' * 5000}", r"evolution\.x"),
        (f"seed={'x' * 5000}", r"seed must be a number \(got 'xxx"),
        ("x" * 5000, "write FIELD=VALUE"),
    ],
)
def test_settings_have_limits(change: str, words: str) -> None:
    """And a message does not repeat a long value."""
    started = time.monotonic()
    with pytest.raises(ValueError, match=words) as refused:
        with_overrides(get_recipe("digits"), [change])
    assert time.monotonic() - started < 5
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("space.mlp_ratio=true", r"space\.mlp_ratio\.0: must be a number \(got True\)"),
        ("space.mlp_ratio=[2, true]", r"space\.mlp_ratio\.1: must be a number \(got True\)"),
        ("space.settings.image_size=true", r"image_size\.0: must be an integer \(got True\)"),
        ("training.clip_grad_norm=true", r"training\.clip_grad_norm must be a number"),
        ("data.preprocessing.mean=[false]", r"preprocessing\.mean\.0: must be a number"),
        ('data.validation=""', r"data\.validation: an empty text is not a path"),
        ('data.root=""', r"data\.root: an empty text is not a path"),
        ('data.train=""', r"data\.train: an empty text is not a path"),
        ('data.test=""', r"data\.test: an empty text is not a path"),
    ],
)
def test_booleans_are_not_numbers_and_nothing_is_not_a_path(change: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_overrides(get_recipe("digits"), [change])
