"""Whole trainings, searches and runs on an accelerator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prenas import pipeline
from prenas.recipe import Recipe
from prenas.recipe.catalogue import get_recipe
from prenas.selection.search import zero_cost_search
from training.runs import StoppedError, assert_same_training, mini_recipe, stop_at

pytestmark = pytest.mark.gpu


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_training_ends_with_the_same_bits(
    precision: str, device: torch.device, tmp_path: Path
) -> None:
    """Within an epoch, and from the checkpoint of another."""
    recipe = mini_recipe(training={"precision": precision, "checkpoint_steps": 4})
    for name in ("whole", "broken"):
        pipeline.search(recipe, tmp_path / name, device=device.type)
    pipeline.train(tmp_path / "whole", device=device.type)
    for step in (6, 14, 23):
        with pytest.raises(StoppedError):
            pipeline.train(tmp_path / "broken", device=device.type, watch=stop_at(step))
    pipeline.train(tmp_path / "broken", device=device.type)
    assert_same_training(tmp_path / "broken", tmp_path / "whole")


def recipe_of(name: str) -> Recipe:
    """The small ones whole; of `tiny` two budgets, from few images: a processor takes long."""
    recipe = get_recipe(name)
    few = {"budgets": ("params=5M:7M:1M",), "num_images": 8}
    fewer = recipe.search.model_copy(update=few if name == "tiny" else {})
    return recipe.model_copy(update={"search": fewer})


@pytest.mark.parametrize("name", ["digits", "mobilenet-micro", "tiny"])
def test_a_search_chooses_what_the_processor_would(name: str, device: torch.device) -> None:
    """Sums are rounded in another order, so scores agree to some digits; the choice is the same."""
    recipe = recipe_of(name)
    there = zero_cost_search(recipe, device=device).preferred
    here = zero_cost_search(recipe).preferred
    assert there.archs == here.archs
    for ours, theirs in zip(there.subnets, here.subnets, strict=True):
        assert ours.score == pytest.approx(theirs.score, rel=1e-4)


def prenas(*words: object) -> str:
    """What the command prints; it must succeed."""
    command = [sys.executable, "-m", "prenas", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_goes_all_the_way(device: torch.device, tmp_path: Path) -> None:
    """By the command line: search to models, then evaluated, and one chosen by its size."""
    run, where = tmp_path / "run", ("--device", device.type)
    short = ("--set", "training.epochs=3", "--set", "training.validate_all_epochs=3")
    prenas("run", "digits", *short, *where, "--out", run)
    rows = pipeline.evaluate(run, device=device.type)
    assert len(rows) == 6
    assert all(row.splits["test"].top1 > 0.05 for row in rows)
    prenas("evaluate", run, *where)
    prenas("specialize", run, "--max-params", "120k", *where)
    assert pipeline.read_preferred(run).device == device.type
    assert sorted(path.name for path in (run / "subnets").iterdir()) == [f"0{n}" for n in range(6)]
