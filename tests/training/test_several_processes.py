"""Two processes give what one gives with the same batches, and agree with each other to the bit."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from prenas.processes import ALONE
from training.curves import golden
from training.runs import assert_same_tensors
from training.several import CASES, overflown, trained


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; they are started once."""
    folder = tmp_path_factory.mktemp("both")
    tests = str(Path(__file__).parents[1])
    found = os.environ.get("PYTHONPATH")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node=2", "-m", "training.several", str(folder)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *([found] if found else [])])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@cache
def alone(name: str) -> dict[str, Any]:
    return trained(name)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, both: list[dict[str, Any]]) -> None:
    expected, found = alone(name), both[0][name]
    assert len(found["losses"]) == len(expected["losses"]) > 9
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    moved = 0.0
    for key, tensor in expected["weights"].items():
        torch.testing.assert_close(found["weights"][key], tensor, rtol=1e-3, atol=1e-4, msg=key)
        moved = max(moved, (found["weights"][key] - tensor).abs().max().item())
    assert moved > 0  # sums were made in another order: there really were two


@pytest.mark.parametrize("name", CASES)
def test_both_hold_equal_weights_to_the_bit(name: str, both: list[dict[str, Any]]) -> None:
    assert_same_tensors(both[0][name]["weights"], both[1][name]["weights"])
    assert both[0][name]["losses"] == both[1][name]["losses"]


@pytest.mark.parametrize("name", CASES)
def test_every_image_is_evaluated_once(name: str, both: list[dict[str, Any]]) -> None:
    assert both[0][name]["evaluated"] == both[1][name]["evaluated"]
    for ours, theirs in zip(both[0][name]["evaluated"], alone(name)["evaluated"], strict=True):
        assert ours["num_images"] == theirs["num_images"]
        assert ours["top1"] == pytest.approx(theirs["top1"], abs=1e-9)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_an_overflow_in_one_process_is_skipped_in_both(both: list[dict[str, Any]]) -> None:
    left, right = both[0]["overflow"], both[1]["overflow"]
    assert left["skipped"] == right["skipped"] == [False, True, False]
    assert left["scales"] == right["scales"]
    assert left["scales"][1] == left["scales"][0] / 2
    assert_same_tensors(left["weights"], right["weights"])
    assert overflown(ALONE)["skipped"] == [False, True, False]


def test_a_step_takes_one_reduction(both: list[dict[str, Any]]) -> None:
    """And the beginning one more, by which all go on from the same step."""
    for found in both:
        assert found["reductions"] == {"all": 6, "gradients": 5}


def test_the_main_process_goes_first(both: list[dict[str, Any]]) -> None:
    assert [found["order"]["place"] for found in both] == [1, 2]
    assert both[0]["order"]["pid"] != both[1]["order"]["pid"]


def test_a_recipes_losses_are_those_of_one_process(both: list[dict[str, Any]]) -> None:
    assert both[0]["digits"] == both[1]["digits"] == pytest.approx(golden("digits"), rel=1e-3)
