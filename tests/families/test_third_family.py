"""The family of examples/residual_mlp goes through the whole method, and the document shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import prenas
import residual_mlp
from families.drawing import TEST_SPACES
from prenas import pipeline
from prenas.cost import count
from prenas.data import load_data
from prenas.evaluation.accuracy import evaluate_networks
from prenas.families import build
from prenas.families.adaptation import adapt
from prenas.families.base import check_contains
from prenas.sources.transfer import finetuning_recipe, read_source
from training.runs import mini_recipe, own_data

SPACE = residual_mlp.DIGITS


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mlp") / "run"
    recipe = mini_recipe(
        space=SPACE,
        search={"budgets": ("params=5k:15k:5k",), "num_images": 32},
        training={"epochs": 2, "dropout": 0.1},
        calibration={"num_images": 256, "batch_size": 64, "while_training": 64},
    )
    pipeline.run(recipe, out)
    return out


def test_models_are_what_was_evaluated(finished: Path) -> None:
    """Search, training, calibration, evaluation and hand-over all use the same network."""
    preferred = pipeline.read_preferred(finished)
    assert preferred.recipe.space == SPACE
    assert [5 <= subnet.costs["params"] / 1000 < 15 for subnet in preferred.subnets] == [True, True]
    assert preferred.recipe.data is not None
    images = load_data(preferred.recipe.data, SPACE.settings)
    rows = pipeline.evaluate(finished)
    assert (finished / "calibration.json").exists()
    for number, row in enumerate(rows):
        assert row.splits["test"].top1 > 0.3
        network = prenas.load(pipeline.specialize(finished, number)).network
        assert isinstance(network, residual_mlp.ResidualMlp)
        assert (
            sum(p.numel() for p in network.parameters())
            == count(row.arch, SPACE.settings)["params"]
        )
        (found,) = evaluate_networks([network], images.test, SPACE.settings)
        assert found.top1 == row.splits["test"].top1


def test_fine_tuning_to_other_classes(finished: Path, tmp_path: Path) -> None:
    source, data, out = read_source(finished), own_data(num_classes=4), tmp_path / "tuned"
    overrides = ["training.epochs=1", "calibration.num_images=32", "calibration.batch_size=16"]
    recipe = finetuning_recipe(source, "transfer", data, overrides=overrides)
    pipeline.finetune(source, recipe, out, data=data)
    pipeline.train(out, data=data)
    assert len(pipeline.evaluate(out, data=data)) == 2
    network = prenas.load(pipeline.specialize(out, 0, data=data)).network
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 4)


def test_without_noise_the_network_draws_its_own() -> None:
    """As when other tools fine-tune a handed-over network."""
    network = build(SPACE.smallest, SPACE.settings, (0.9,) * 2, 0.5).train()
    with torch.no_grad():
        residual_mlp.initialize(network, torch.Generator().manual_seed(0))
    images = torch.ones(4, 1, 8, 8)
    torch.manual_seed(0)
    assert not torch.equal(network(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"grid": 4}, "grid is 8, not 4"), ({"in_chans": 3}, "in_chans is 1, not 3")],
)
def test_weights_of_another_input_are_refused(change: dict[str, int], words: str) -> None:
    settings = SPACE.settings.changed(**change)
    with pytest.raises(ValueError, match=words):
        adapt(residual_mlp.FAMILY, {}, SPACE.settings, settings, torch.Generator())


def test_stages_of_another_number_do_not_fit() -> None:
    _, odd = TEST_SPACES[residual_mlp.FAMILY.name]
    with pytest.raises(ValueError, match="a chain of 4 stages, not 3"):
        check_contains(SPACE.largest, odd.smallest)


def test_the_document_quotes_the_example() -> None:
    """Every code block of the page appears in the example."""
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs/extending.md").read_text(encoding="utf-8")
    section = text.split("## A family")[1]
    blocks = re.findall(r"^```(python|toml)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    files = {"python": "residual_mlp.py", "toml": "pyproject.toml"}
    assert {language for language, _ in blocks} == set(files)
    for language, block in blocks:
        assert block in (root / "examples/residual_mlp" / files[language]).read_text("utf-8")
