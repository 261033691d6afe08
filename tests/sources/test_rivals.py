"""Stock models that are fine-tuned for comparison with the cuts of a network."""

import json
import shutil
from pathlib import Path

import pytest
import timm
from huggingface_hub import HfApi
from safetensors.torch import save_file
from typer.testing import CliRunner

import prenas
from families.drawing import fill_as_trained
from prenas import pipeline
from prenas.cli import app
from prenas.models.comparison import compared, num_trained
from prenas.report.html import content_of
from prenas.runs.status import read_status
from prenas.sources import rivals
from prenas.sources.cutting import CutPlan, cut_plan
from prenas.sources.rivals import read_rival
from prenas.sources.transfer import Source
from sources.cut_runs import SHORT, command

pytest_plugins = "sources.cut_runs"
pytestmark = pytest.mark.pictures

NUM_IMAGES = 48
"""For training, of the sixty pictures."""


def stock_weights(model: str, folder: Path) -> str:
    """The name of a stock model, with random weights in a file."""
    path = folder / f"{model}.safetensors"
    save_file(fill_as_trained(timm.create_model(model, num_classes=3), seed=5).state_dict(), path)
    return f"timm/{model}={path}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock model that costs less than half of the source."""
    return stock_weights("test_efficientnet", tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock model that cannot take pictures of 40 pixels."""
    return stock_weights("test_vit", tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def compared_run(
    cut_run: Path,
    cut_weights: Path,
    cut_pictures: Path,
    small: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run to which a comparison was added with the same command."""
    out = tmp_path_factory.mktemp("runs") / "compared"
    shutil.copytree(cut_run, out)
    words = [*command(cut_weights, cut_pictures, out), "--compare", small]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.output.count("Training already complete") == 2
    assert result.output.count("Accuracies in %") == 1
    assert "cuts, the whole network and stock models" in result.output
    assert "Stock models were fine-tuned on 144 images each, the cuts on 144" in result.output
    return out


def stock_params(rival: prenas.Run) -> int:
    return rival.evaluations[0].costs["params"]


def plan_for(source: Source, pictures: Path, *names: str) -> CutPlan:
    return cut_plan(
        source,
        str(pictures),
        ["macs=75%"],
        image_size=40,
        overrides=SHORT,
        compare=names,
    )


@pytest.mark.slow
def test_a_stock_model_is_a_run_of_its_own(compared_run: Path) -> None:
    whole, rival = (prenas.Run(compared_run / n) for n in ("source", "rivals/test_efficientnet"))
    assert rival.recipe.data == whole.recipe.data.model_copy(  # type: ignore[union-attr]
        update={"preprocessing": rival.recipe.preprocessing}
    )
    assert rival.recipe.space.settings.image_size == (40, 40)
    ours, theirs = whole.recipe.training, rival.recipe.training
    assert ours is not None
    assert theirs is not None
    changed = {"epochs": None, "min_steps": 0, "steps": theirs.steps}
    assert theirs == ours.model_copy(update=changed)
    assert rival.class_names == ("ant", "bee", "cow")
    network, _ = prenas.load(compared_run / "rivals/test_efficientnet/subnets/00")
    assert sum(tensor.numel() for tensor in network.parameters()) == stock_params(rival)


def test_the_page_shows_the_whole_network_and_the_stock_model(compared_run: Path) -> None:
    """Beside the cuts, with their own trainings; a page of the whole network stands alone."""
    (found,) = content_of([prenas.Run(compared_run)])["runs"]
    networks = {one["kind"]: one for one in found["others"]}
    assert [*networks] == ["whole network", "stock model"]
    for kind, folder in (("whole network", "source"), ("stock model", "rivals/test_efficientnet")):
        (row,) = prenas.Run(compared_run / folder).evaluations
        assert networks[kind]["amounts"]["params"] == row.costs["params"]
        assert networks[kind]["results"]["test"]["top1"] == row.splits["test"].top1
    names = [training["name"] for training in found["trainings"]]
    assert names == ["compared", "whole network source", "stock model test_efficientnet"]
    assert found["order"] == [0, 1] or found["order"] == [1, 0]
    assert (compared_run / "report.html").exists()
    (inner,) = content_of([prenas.Run(compared_run / "source")])["runs"]
    assert (inner["others"], len(inner["subnets"])) == ([], 1)


def test_table_report_plot_and_json_mark_it_as_stock(
    compared_run: Path, cut_run: Path, tmp_path: Path
) -> None:
    run = prenas.Run(compared_run)
    (row,) = prenas.Run(compared_run / "rivals/test_efficientnet").evaluations
    document = json.loads((compared_run / "comparison.json").read_text())
    kinds = [(one["kind"], one["name"], one["num_images"]) for one in document["networks"]]
    assert kinds == [
        ("cut", "subnets/00", 144),
        ("cut", "subnets/01", 144),
        ("whole", "timm/test_resnet", 48),
        ("stock", "timm/test_efficientnet", 144),
    ]
    stock = document["networks"][-1]
    assert [one["resized_to"] for one in document["networks"]] == [
        *(cut.arch.resized_to for cut in run.evaluations), None, None,
    ]  # fmt: skip
    assert stock["costs"] == row.costs
    assert stock["splits"]["test"]["top1"] == row.splits["test"].top1
    words = compared(run).in_words
    page = (compared_run / "report.md").read_text()
    assert "## Compared with stock models" in page
    assert "| [timm/test_efficientnet](rivals/test_efficientnet/subnets/00) | stock model |" in page
    assert len(words) == 3
    alone = shutil.copytree(cut_run, tmp_path / "alone")  # its own pictures may be blank
    pipeline.report(alone)
    without = (alone / "report/accuracy.png").read_bytes()
    assert (compared_run / "report/accuracy.png").read_bytes() != without
    assert (compared_run / "accuracy.png").read_bytes() != (alone / "accuracy.png").read_bytes()


@pytest.mark.slow
def test_a_compared_run_is_recorded_and_continues_with_its_own_recipe(
    compared_run: Path, cut_weights: Path, cut_pictures: Path
) -> None:
    """Also the first command, without the option, keeps the comparison."""
    status = read_status(compared_run)
    assert [(one.folder, one.stage) for one in status.rivals] == [
        ("rivals/test_efficientnet", "done")
    ]
    assert status.next_command is None
    before = (compared_run / "comparison.json").read_bytes()
    for words in (
        ["run", "--out", str(compared_run)],
        command(cut_weights, cut_pictures, compared_run),
    ):
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert "stock models" in result.output
        assert (compared_run / "comparison.json").read_bytes() == before


@pytest.mark.parametrize("stage", ["begun", "missing"])
def test_an_interrupted_comparison_continues_to_the_same_weights(
    stage: str, compared_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock model that has begun does not need its file any more."""
    out = tmp_path / "run"
    shutil.copytree(compared_run, out)
    rival, name = out / "rivals/test_efficientnet", "supernet.safetensors"
    trained = (rival / name).read_bytes()
    if stage == "missing":
        shutil.rmtree(rival)
    else:
        for path in (name, "calibration.json", "evaluation.json"):
            (rival / path).unlink()
        for folder in ("subnets", "checkpoints"):
            shutil.rmtree(rival / folder)
        monkeypatch.setattr(pipeline, "read_rival", pytest.fail)
    status = read_status(out)
    assert (status.rivals[0].stage, status.next_command) == (stage, f"prenas run --out {out}")
    if stage == "begun":
        assert read_status(rival).next_command == status.next_command
    result = CliRunner().invoke(app, ["run", "--out", str(out)], catch_exceptions=False)
    assert "Stock models were fine-tuned" in result.output
    assert (rival / name).read_bytes() == trained
    comparisons = [(one / "comparison.json").read_bytes() for one in (out, compared_run)]
    assert comparisons[0] == comparisons[1]


def test_other_weights_under_the_same_name_are_refused(
    compared_run: Path, cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    network = timm.create_model("test_efficientnet", num_classes=3)
    save_file(fill_as_trained(network, seed=6).state_dict(), tmp_path / "other.safetensors")
    other = f"timm/test_efficientnet={tmp_path / 'other.safetensors'}"
    words = [*command(cut_weights, cut_pictures, compared_run), "--compare", other]
    with pytest.raises(ValueError, match=r"rivals/test_efficientnet belongs to .* other weights"):
        CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("adaptation.steps=7", "training.steps=11"),
        ("adaptation.batch_size=5", "training.batch_size=7"),
        ("adaptation.min_steps=50",),
    ],
)
def test_a_stock_model_sees_as_many_images(
    cut_source: Source, cut_pictures: Path, small: str, changes: tuple[str, ...]
) -> None:
    plan = cut_plan(
        cut_source,
        str(cut_pictures),
        ["macs=75%"],
        image_size=40,
        overrides=changes,
        compare=[small],
    )
    (recipe,) = plan.rival_recipes(NUM_IMAGES)
    ours = num_trained(plan.adaptation, NUM_IMAGES) + num_trained(plan.recipe, NUM_IMAGES)
    assert recipe.training is not None
    assert 0 <= num_trained(recipe, NUM_IMAGES) - ours < recipe.training.batch_size


def test_a_stock_model_that_cannot_take_the_size_keeps_its_own(
    cut_source: Source, cut_pictures: Path, vit: str, cut_weights: Path, tmp_path: Path
) -> None:
    (recipe,) = plan_for(cut_source, cut_pictures, vit).rival_recipes()
    assert recipe.space.settings.image_size == (160, 160)
    words = [*command(cut_weights, cut_pictures, tmp_path / "x"), "--compare", vit, "--dry-run"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "MACs at 160 x 160 pixels (it cannot take 40 x 40); licence" in result.output
    assert result.output.count("Estimate for the whole training") == 3
    *_, last = result.output.split("Estimate for all trainings")
    assert [line.split()[0] for line in last.splitlines() if line.strip()][3:7] == [
        "whole",
        "cuts",
        "timm/test_vit=" + vit.partition("=")[2],
        "all",
    ]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/test_efficientnett", "timm has no model 'test_efficientnett': did you mean test_"),
        ("timm/a,timm/b", "Give --compare once for each model"),
        ("timm/test_vit=missing.pth", "missing.pth does not exist"),
        ("timm/test_vit=WEIGHTS", "not those of timm's test_vit"),
        ("runs/other", "runs/other cannot be compared: --compare takes the name"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_is_spent(
    name: str, words: str, cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    out, name = tmp_path / "x", name.replace("WEIGHTS", str(cut_weights))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        CliRunner().invoke(
            app,
            [*command(cut_weights, cut_pictures, out), "--compare", name],
            catch_exceptions=False,
        )
    assert not out.exists()


def test_weights_that_cannot_be_downloaded_are_refused_before_anything_is_spent(
    cut_source: Source, cut_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **fields: object) -> object:
        raise OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", offline)
    with pytest.raises(ValueError, match=r"--compare timm/resnet18: .* cannot be downloaded"):
        plan_for(cut_source, cut_pictures, "timm/resnet18")


def test_a_stock_model_that_no_unit_can_be_read_of_is_refused_by_name(
    cut_source: Source, cut_pictures: Path, tmp_path: Path
) -> None:
    name = stock_weights("test_mambaout", tmp_path)
    words = (
        r"--compare timm/test_mambaout=.*: test_mambaout has no hidden units .*blocks\.0\.conv: "
    )
    with pytest.raises(ValueError, match=words):
        plan_for(cut_source, cut_pictures, name)


def test_the_same_stock_model_twice_is_refused(
    cut_source: Source, cut_pictures: Path, small: str
) -> None:
    with pytest.raises(ValueError, match="--compare names test_efficientnet twice"):
        plan_for(cut_source, cut_pictures, small, small)


def test_a_stock_model_for_other_channels_is_refused(
    cut_source: Source, cut_pictures: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = read_rival(small)
    settings = rival.supernet.settings.changed(in_chans=1)
    monkeypatch.setattr(rival.supernet, "settings", settings)
    plan = plan_for(cut_source, cut_pictures)
    with pytest.raises(ValueError, match="takes images of 1 channels, but these have 3"):
        rivals.rival_recipe(rival, plan.adaptation, plan.recipe, NUM_IMAGES)


def test_the_option_needs_a_source(tmp_path: Path) -> None:
    words = ["run", "digits", "--compare", "timm/resnet18", "--out", str(tmp_path / "x")]
    with pytest.raises(ValueError, match="--compare timm/resnet18 needs --from"):
        CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.slow
def test_all_at_once_in_python(
    cut_source: Source, cut_pictures: Path, small: str, tmp_path: Path
) -> None:
    plan = plan_for(cut_source, cut_pictures, small)
    prenas.run_cuts(plan, tmp_path / "run", device="cpu")
    found = pipeline.compare(tmp_path / "run", device="cpu")
    assert [one.kind for one in found.networks] == ["cut", "whole", "stock"]
    assert len(found.verdicts) == 1
    described = json.loads((tmp_path / "run/subnets/00/arch.json").read_text())
    assert "rivals" not in described["provenance"]["source"]
