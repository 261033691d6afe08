"""Convolutional networks through the same steps, files and promises as Vision Transformers.

What is particular to them is calibration: a step of its own, done once, by which every subnet is
evaluated and handed over.
"""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import prenas
from edits import write_edited
from prenas import artifacts, pipeline
from prenas.artifacts import read_tensors
from prenas.cli import app
from prenas.cost import count
from prenas.data import load_data
from prenas.evaluation.accuracy import Evaluation, evaluate_archs, evaluate_networks
from prenas.evaluation.calibration import calibrate_on
from prenas.families.mobilenet.arch import MobileNetSettings
from prenas.families.mobilenet.space import MobileNetSpace, StageOptions
from prenas.models.export import load
from prenas.recipe import EvolutionRecipe, Recipe, SearchRecipe
from prenas.runs.lock import held
from prenas.runs.run import Run
from prenas.runs.status import read_status
from prenas.sources.transfer import finetuning_recipe, read_source
from prenas.steps import choosing, measuring, training
from training.runs import (
    StoppedError,
    assert_same_training,
    contents,
    hearing,
    metrics_of,
    mini_recipe,
    never,
    own_data,
    stop_at,
)

pytest_plugins = "training.runs"

SPACE = MobileNetSpace(
    name="mini-conv",
    resolution=(8, 12),
    schedule=((60_000, 8),),
    stem=(8,),
    stages=(
        StageOptions(width=(8,), depth=(1,), expand=(1,)),
        StageOptions(width=(8, 16), depth=(1, 2), kernel=(3, 5), expand=(2, 3), stride=2, se=True),
    ),
    head=(16, 24),
    settings=MobileNetSettings(
        image_size=(8, 8), in_chans=1, num_classes=10, stem_stride=1, head_expand=2
    ),
)
TRAINING: dict[str, Any] = {"optimizer": "sgd", "lr_per_512_images": 1.6, "weight_decay": 1e-4}
SANDWICH: dict[str, Any] = {
    **TRAINING, "sandwich": 1, "sandwich_loss": "sum", "inplace_distillation": "alpha",
    "clip_grad_norm": None, "clip_grad_value": 1.0, "dropout": 0.2, "drops_in": "largest",
}  # fmt: skip


def recipe_of(**fields: Any) -> Recipe:
    """The digits, at two resolutions, few images to calibrate on."""
    return mini_recipe(
        **{
            "space": SPACE,
            "search": {"budgets": ("macs=50k:110k:30k", "macs=150k:400k"), "num_images": 16},
            "training": TRAINING,
            "calibration": {"num_images": 256, "batch_size": 64, "while_training": 64},
            **fields,
        }
    )


@pytest.fixture(scope="module")
def finished_conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps, done. Copy it, do not change it."""
    out = tmp_path_factory.mktemp("conv") / "run"
    pipeline.run(recipe_of(), out)
    return out


@pytest.fixture
def finished(finished_conv: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(finished_conv, tmp_path / "finished")


def test_budgets_have_their_resolutions(finished_conv: Path) -> None:
    """As the schedule says, and every subnet's networks resize to its own."""
    preferred = pipeline.read_preferred(finished_conv)
    sides = {arch.network_options["resolution"] for arch in preferred.archs}
    assert sides == {8, 12}
    assert [budget.rpartition(" ")[2] for budget in preferred.budgets] == ["8", "12", "12"]
    macs = [subnet.costs["macs"] for subnet in preferred.subnets]
    assert macs == sorted(macs)  # as the budgets are, not by parameters
    for subnet in preferred.subnets:
        assert subnet.costs["macs"] == count(subnet.arch, SPACE.settings)["macs"]


def test_it_writes_what_it_promises(finished_conv: Path) -> None:
    names = set(contents(finished_conv))
    assert {"calibration.json", "calibration.safetensors", "evaluation.json", "report.md"} <= names
    rows = pipeline.evaluate(finished_conv)
    said = artifacts.read_json(finished_conv / "calibration.json")
    assert said["num_images"] == 256
    assert said["subnets"] == [row.arch.id for row in rows]
    assert read_status(finished_conv).calibration_images == 256
    shown = CliRunner().invoke(app, ["status", str(finished_conv)]).output
    assert re.search(r"calibration +done +256 images", shown)


def test_the_page_and_the_table_tell_of_stages_and_calibration(finished_conv: Path) -> None:
    page = (finished_conv / "report.md").read_text()
    assert "BatchNorm was calibrated for every subnet on 256 augmented" in page
    with (finished_conv / "evaluation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    archs = pipeline.read_preferred(finished_conv).archs
    for line, arch in zip(table, archs, strict=True):
        assert line["resolution"] == str(arch.resolution)
        assert line["width_2"] == str(arch.stages[1].width)
        kernels = [" ".join(map(str, stage.kernel)) for stage in arch.stages]
        assert line["kernel"] == " | ".join(kernels)


def test_models_are_what_was_evaluated(finished_conv: Path) -> None:
    """The loaded network, statistics included, gives the accuracy of the table."""
    recipe = pipeline.read_preferred(finished_conv).recipe
    assert recipe.data is not None
    images = load_data(recipe.data, recipe.space.settings)
    for number, row in enumerate(pipeline.evaluate(finished_conv)):
        network, transform = load(finished_conv / "subnets" / f"{number:02d}")
        (found,) = evaluate_networks([network], images.test, recipe.space.settings)
        assert found.top1 == row.splits["test"].top1
        picture = Image.new("L", (20, 30))
        assert network(transform(picture)[None]).shape == (1, 10)


def test_a_finished_run_is_not_redone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {n: c for n, c in contents(finished).items() if not n.startswith("report")}
    monkeypatch.setattr(choosing, "zero_cost_search", never)
    monkeypatch.setattr(training, "train_supernet", never)
    for name in ("calibrate_on", "evaluate_archs"):
        monkeypatch.setattr(measuring, name, never)
    pipeline.run(recipe_of(), finished)
    after = {n: c for n, c in contents(finished).items() if not n.startswith("report")}
    assert after == before


@pytest.mark.parametrize("step", [5, 27])
def test_an_interrupted_run_ends_as_the_unbroken_one(
    step: int, finished_conv: Path, tmp_path: Path
) -> None:
    """To the bit: weights, metrics (validated after calibration), statistics, evaluation."""
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        pipeline.run(recipe_of(), out, observer=hearing(steps=stop_at(step)))
    pipeline.run(recipe_of(), out)
    assert_same_training(out, finished_conv)
    for name in ("calibration.safetensors", "calibration.json", "evaluation.json"):
        assert (out / name).read_bytes() == (finished_conv / name).read_bytes()


def test_validation_while_training_is_calibrated(finished_conv: Path) -> None:
    """The last lines of the log are what the final weights give after the smaller calibration."""
    preferred = pipeline.read_preferred(finished_conv)
    recipe, supernet = preferred.recipe, pipeline.read_supernet(finished_conv)
    assert recipe.data is not None
    images = load_data(recipe.data, recipe.space.settings)
    statistics = calibrate_on(
        supernet, preferred.archs, images, recipe.calibration, 64, seed=recipe.seed, first_epoch=3
    )
    rows = evaluate_archs(supernet, preferred.archs, {"validation": images.validation}, statistics)
    logged = metrics_of(finished_conv, "validation")[-len(rows) :]
    found = [(row.costs["params"], row.splits["validation"].loss) for row in rows]
    assert found == [(line["costs"]["params"], line["loss"]) for line in logged]


def test_a_dry_run_counts_the_calibration() -> None:
    few, many = (
        pipeline.dry_run(recipe_of(calibration={"num_images": number})).estimate
        for number in (256, 256_000)
    )
    assert 0 < few.calibration_seconds < many.calibration_seconds


def test_calibration_says_how_far_it_is(finished: Path) -> None:
    for name in ("calibration.safetensors", "calibration.json", "evaluation.json"):
        (finished / name).unlink()
    shutil.rmtree(finished / "subnets")
    words = ["calibrate", str(finished), "--device", "cpu"]
    output = CliRunner().invoke(app, words).output
    assert "Calibration 50 %: 128 of 256 images" in output
    assert "Calibration 100 %: 256 of 256 images" in output
    assert "subnets on 256 images done in" in output


def test_calibration_is_made_where_it_is_missing(finished: Path) -> None:
    """By `evaluate`, or alone; equal to the bit."""
    expected = (finished / "calibration.safetensors").read_bytes()
    rows = pipeline.evaluate(finished)
    for name in ("calibration.safetensors", "calibration.json", "evaluation.json"):
        (finished / name).unlink()
    with pytest.raises(
        ValueError, match=r"has subnets, which were made with a calibration .* missing: remove them"
    ):
        pipeline.evaluate(finished)  # the models would be those of another calibration
    shutil.rmtree(finished / "subnets")
    assert Run(finished).needs_calibration
    assert pipeline.evaluate(finished) == rows
    assert (finished / "calibration.safetensors").read_bytes() == expected
    stored = pipeline.calibrate(finished)
    assert len(stored) == len(rows)


@pytest.mark.parametrize("leave", [lambda path: None, lambda path: path.symlink_to("nowhere")])
def test_models_of_a_calibration_that_is_missing_are_not_handed_over(
    leave: Callable[[Path], None], finished: Path, tmp_path: Path
) -> None:
    path = finished / "calibration.json"
    path.unlink()
    leave(path)
    with pytest.raises(ValueError, match=r"calibration\.json is missing, .*: remove"):
        pipeline.specialize(finished, 0, to=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_calibration_beside_another_process_is_refused_before_it_begins(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (artifacts.CALIBRATION, artifacts.EVALUATION):
        (finished / name).unlink()
    shutil.rmtree(finished / artifacts.SUBNETS)
    monkeypatch.setattr(measuring, "calibrate_on", never)
    with held(finished), pytest.raises(ValueError, match="another process is working on"):
        pipeline.calibrate(finished)


def test_calibration_of_other_weights_is_refused(finished: Path) -> None:
    path = finished / "supernet.safetensors"
    tensors = {name: tensor * 2 for name, tensor in read_tensors(path).items()}
    artifacts.write_tensors(path, tensors)
    (finished / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="to calibrate again"):
        pipeline.evaluate(finished)


def test_vision_transformers_have_nothing_to_calibrate(finished_run: Path) -> None:
    assert not Run(finished_run).needs_calibration
    assert not any(pipeline.calibrate(finished_run))
    assert not (finished_run / "calibration.json").exists()


def test_given_architectures_are_calibrated_for_themselves(finished_conv: Path) -> None:
    """Those of the run give the run's own results; others are no trouble."""
    rows = pipeline.evaluate(finished_conv)
    again = pipeline.evaluate(finished_conv, [row.arch for row in rows])
    assert again == rows
    (other,) = pipeline.evaluate(finished_conv, SPACE.compose(SPACE.extreme(0), 8))
    assert 0 <= other.splits["test"].top1 <= 1


def test_a_sandwich_runs_through(tmp_path: Path) -> None:
    rows = pipeline.run(recipe_of(training={**SANDWICH, "epochs": 2}), tmp_path / "run")
    assert len(rows) == 3


def test_one_shot_nas_calibrates_its_candidates(tmp_path: Path) -> None:
    evolution = EvolutionRecipe(
        population=4, generations=2, num_parents=2, num_mutations=2, num_crossovers=1
    )
    calibration = {"num_images": 64, "batch_size": 64, "while_training": 64, "while_evolving": 64}
    recipe = recipe_of(
        training={**TRAINING, "epochs": 1}, calibration=calibration, evolution=evolution
    )
    rows: list[Evaluation] = pipeline.run(recipe, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "evolution.json").read_text())["budgets"]
    assert {row.arch.id for row in rows} == {
        type(rows[0].arch).model_validate(one["arch"]).id for one in found
    }


@pytest.mark.parametrize("kind", ["run", "model"])
def test_fine_tuning_to_other_classes_and_sizes(
    kind: str, finished_conv: Path, tmp_path: Path
) -> None:
    """All subnets or one, new classifier, larger images; calibrated anew."""
    source = read_source(finished_conv if kind == "run" else finished_conv / "subnets" / "00")
    data = own_data(num_classes=4)
    larger = torch.nn.Upsample(scale_factor=2)
    overrides = ["training.epochs=1", "calibration.num_images=32", "calibration.batch_size=16"]
    recipe = finetuning_recipe(source, "transfer", data, overrides=overrides)
    out = tmp_path / "tuned"
    pipeline.finetune(source, recipe, out, data=data)
    pipeline.train(out, data=data)
    rows = pipeline.evaluate(out, data=data)
    assert len(rows) == (3 if kind == "run" else 1)
    folder = pipeline.specialize(out, 0, data=data)
    network = load(folder).network
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(ValueError, match="images have shape"):
        network(larger(torch.randn(2, 1, 8, 8)))


def test_a_stock_model_of_a_run(tmp_path: Path) -> None:
    """With identity shortcuts the handed-over folder loads as timm's own class too."""
    space = SPACE.model_copy(
        update={
            "resolution": (),
            "schedule": (),
            "settings": SPACE.settings.changed(shortcut="identity", stem_stride=2),
        }
    )
    search = SearchRecipe(budgets=("macs=400k",), num_images=8)
    recipe = recipe_of(space=space, training={**TRAINING, "epochs": 1}).model_copy(
        update={"search": search}
    )
    pipeline.run(recipe, tmp_path / "run")
    folder = tmp_path / "run" / "subnets" / "00"
    images = torch.randn(3, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    stock, ours = prenas.load_timm(folder).network, prenas.load(folder).network
    assert type(stock).__module__.startswith("timm.")
    assert torch.equal(stock(images), ours(images))


def test_a_network_that_timm_does_not_have_is_told(finished_conv: Path, finished_run: Path) -> None:
    with pytest.raises(ValueError, match="projected shortcuts"):
        prenas.load_timm(finished_conv / "subnets" / "00")
    with pytest.raises(ValueError, match="timm does not have"):
        prenas.load_timm(finished_run / "subnets" / "00")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_images", "many"),
        ("num_images", 1e400),
        ("num_images", True),
        ("batch_size", -1),
        ("subnets", "0123456789"),
        ("subnets", None),
        ("statistics_sha256", 3),
        ("colour", "red"),
    ],
)
def test_odd_values_of_a_calibration_are_named(field: str, value: object, finished: Path) -> None:
    path = finished / "calibration.json"
    document = json.loads(path.read_text())
    write_edited(path, {**document, field: value})
    with pytest.raises(ValueError, match=rf"calibration\.json is damaged.*{field}"):
        _ = Run(finished).results.calibration
