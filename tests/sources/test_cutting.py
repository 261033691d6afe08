"""From a pretrained network to a family of models: plans, refusals, and a whole run."""

import json
import re
import shutil
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from timm.models import adapt_model_from_string
from typer.testing import CliRunner

import prenas
from families.drawing import assert_equal
from prenas import pipeline
from prenas.cli import app
from prenas.cost import bounded_axis, count
from prenas.data import load_data
from prenas.evaluation.accuracy import evaluate_networks
from prenas.evaluation.calibration import calibration_batches
from prenas.models.export import read_description
from prenas.pipeline import dry_run
from prenas.recipe import cut_fields, with_overrides
from prenas.recipe.catalogue import get_cut_recipe, get_recipe
from prenas.report.sections import how_it_was_made
from prenas.runs.status import read_status
from prenas.sources.cutting import CutPlan, absolute_budgets, cut_plan
from prenas.sources.transfer import Source, finetuning_recipe, read_source
from prenas.training.outlook import doubts
from sources.cut_runs import FEW, MODEL, SHORT, command

pytest_plugins = "sources.cut_runs"


def digests(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_run_hands_over_a_cut_for_every_budget(cut_run: Path, cut_pictures: Path) -> None:
    run, whole = prenas.Run(cut_run), prenas.Run(cut_run / "source")
    (adapted,) = whole.evaluations
    assert adapted.arch == run.recipe.space.largest
    for share, row in zip((0.75, 0.9), run.evaluations, strict=True):
        assert row.costs["macs"] <= share * adapted.costs["macs"]
        assert row.costs["macs"] > (share - 0.1) * adapted.costs["macs"]
    assert run.class_names == ("ant", "bee", "cow")
    described = json.loads((cut_run / "subnets/00/arch.json").read_text())
    assert described["provenance"]["source"]["name"].startswith(f"timm/{MODEL}")
    prediction = next(iter(prenas.predict(cut_run / "subnets/01", [cut_pictures / "bee/3.png"])))
    assert prediction.error is None


def test_accuracies_before_training_are_those_of_the_cut_source(cut_run: Path) -> None:
    """Each cut as a plain network with the adapted weights and statistics of its own images."""
    run = prenas.Run(cut_run)
    trained, images = run.preferred.trained, run.images.read_own()
    assert trained is not None
    assert trained.top1_untrained is not None
    assert trained.halves is not None
    supernet, found = run.initial_supernet().eval(), []
    for arch in run.preferred.archs:
        network = supernet.cut(arch, supernet.fresh_statistics(arch))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.train().momentum = None
        batches = calibration_batches(
            images, supernet.settings, run.recipe.calibration, 512, seed=0, first_epoch=2
        )
        for batch in batches:
            network(batch)
        (result,) = evaluate_networks([network.eval()], images.validation, supernet.settings)
        found.append(result.top1)
    assert trained.top1_untrained == pytest.approx(tuple(found))


def test_timm_alone_loads_what_is_handed_over(cut_run: Path) -> None:
    folder = cut_run / "subnets/00"
    described = json.loads((folder / "arch.json").read_text())["timm"]
    model = timm.create_model(
        described["model"], num_classes=described["num_classes"], in_chans=described["in_chans"]
    )
    model = adapt_model_from_string(model, described["shapes"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        theirs, ours = model(images), prenas.load(folder).network(images)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert type(prenas.load_timm(folder).network) is type(model)


def test_a_run_may_choose_smaller_images(
    cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    """The smaller budget can only be met at 24 pixels; the larger one says that it wants 40."""
    out = tmp_path / "run"
    words = command(cut_weights, cut_pictures, out)
    words[words.index("macs=90%")] = "macs=30%"
    words[words.index("macs=75%")] = "macs=75%,resolution=40"
    words += ["--set", "space.resolution=[24,40]", "--set", "training.teacher.feature_weight=0.5"]
    words += ["--set", "search.score=gate"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert re.search(r"architecture +score +lead ", result.output)
    assert "lead, %" in (out / "report.md").read_text()
    run = prenas.Run(out)
    assert run.recipe.training is not None
    assert run.recipe.training.teacher is not None
    assert run.recipe.training.teacher.feature_weight == 0.5
    assert [row.arch.resized_to for row in run.evaluations] == [24, 40]
    assert "(30 %), resolution 24: tried 24 px: " in " ".join(result.output.split())
    trained = run.preferred.trained
    assert trained is not None
    assert [(one.budget, one.resolution) for one in trained.tried] == [(0, 24)]
    assert "resolution 24: 24 px: " in (out / "report.md").read_text()
    model = prenas.load(out / "subnets/00").network
    images = torch.randn(2, 3, 40, 40)  # of the source's size
    supernet = run.supernet
    with torch.no_grad():
        stored = run.results.statistics([run.evaluations[0].arch])
        expected = supernet(images, run.evaluations[0].arch, None, stored[0])
        alone = prenas.load_timm(out / "subnets/00").network(images)
        assert_equal(model(images), expected, 1e-5)
        assert_equal(alone, expected, 1e-5)
    cut = read_source(out / "subnets/00")
    with pytest.raises(ValueError, match=r"resizes its images to 24 pixels .*: give 24 or more"):
        cut_plan(cut, str(cut_pictures), ["macs=90%"], image_size=20)


def test_a_run_may_leave_out_branches(
    cut_source: Source, cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    """The smaller budget can only be met without a block; what is handed over is such a network."""
    plans = [
        cut_plan(cut_source, str(cut_pictures), ["macs=90%"], image_size=40, overrides=overrides)
        for overrides in ((), ("space.absent_branches=true",))
    ]
    least, less = (count(plan.recipe.space.smallest, plan.recipe.space)["macs"] for plan in plans)
    out = tmp_path / "run"
    words = command(cut_weights, cut_pictures, out)
    words[words.index("macs=75%")] = f"macs={(least + less) // 2}"
    with pytest.raises(ValueError, match="cannot be met by cutting"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    words += ["--set", "space.absent_branches=true"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "1 branch left out" in " ".join(result.output.split())
    assert "1 branch left out" in (out / "report.md").read_text()
    folder = out / "subnets/00"
    run, model = prenas.Run(out), prenas.load(folder).network
    (statistics,) = run.results.statistics([run.evaluations[0].arch])
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        expected = run.supernet(images, run.evaluations[0].arch, None, statistics)
        assert_equal(model(images), expected, 1e-5)
        alone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(alone(images), model(images))
    assert not any(name.startswith("layer1.0.") for name in load_file(folder / "model.safetensors"))
    assert "timm" not in json.loads((folder / "arch.json").read_text())
    with pytest.raises(ValueError, match="it leaves out 1 of its residual branches"):
        prenas.load_timm(folder)
    again = cut_plan(read_source(folder), str(cut_pictures), ["macs=95%"])
    assert again.recipe.space.largest == run.evaluations[0].arch


def test_the_same_command_again_changes_nothing(
    cut_run: Path, cut_weights: Path, cut_pictures: Path
) -> None:
    before = digests(cut_run)
    result = CliRunner().invoke(app, command(cut_weights, cut_pictures, cut_run))
    assert result.exit_code == 0, result.output
    after = digests(cut_run)
    # The report gives the time of its writing.
    assert {name for name in after if after[name] != before.get(name)} <= {
        name for name in after if "report" in name
    }
    assert set(after) == set(before)


@pytest.mark.parametrize("name", ["source", "rivals", "rivals/test_resnet"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_nothing_is_written_where_a_folder_of_the_run_leads(
    name: str, kind: str, cut_source: Source, cut_pictures: Path, tmp_path: Path
) -> None:
    """The network that is cut, and every stock model, has a run of its own inside the run."""
    budgets, stock = ["macs=90%"], [cut_source.name]
    plan = cut_plan(cut_source, str(cut_pictures), budgets, image_size=40, compare=stock)
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "run" / name
    elsewhere.mkdir()
    (elsewhere / ".prenas-letter.1.tmp").write_text("mine")
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere) if kind == "link" else place.write_text("mine")
    words = "is a symbolic link.*Replace" if kind == "link" else "is a file.*move it elsewhere"
    with pytest.raises(ValueError, match=f"{name} {words}"):
        pipeline.run_cuts(plan, tmp_path / "run")
    assert [path.name for path in elsewhere.iterdir()] == [".prenas-letter.1.tmp"]
    assert [*(tmp_path / "run").iterdir()] == [tmp_path / "run" / name.partition("/")[0]]


def test_status_and_report_of_a_cut_run(cut_run: Path) -> None:
    assert read_status(cut_run).next_command is None
    page = (cut_run / "report.md").read_text()
    assert f"prenas run --from timm/{MODEL}" in page
    assert "## What the options keep" in page
    assert re.search(r"\| [0-9.]+ M MACs \(75 %\) \|", page)
    untrained = prenas.Run(cut_run).preferred.trained
    assert untrained is not None
    assert untrained.top1_untrained is not None
    for choice in prenas.Run(cut_run).preferred.choices:
        tried = [one for one in untrained.tried if one.budget == choice.budget]
        assert " and ".join(one.score or "" for one in tried) == "gate and fisher"
        assert untrained.top1_untrained[choice.subnet] == max(one.top1 for one in tried)
    for share in untrained.top1_untrained:
        assert f" {100 * share:.2f} |" in page
    assert "untrained validation top-1, %" in page
    assert "Two halves of the scored images" in page
    assert "Several scores were tried" in page
    assert "lead, %" not in page
    for of_other_runs in (
        "initialisation",
        "another seed",
        "further-seeds",
        "No command reproduces",
    ):
        assert of_other_runs not in page


def test_the_command_of_a_report_is_quoted_for_a_shell(cut_run: Path) -> None:
    preferred = prenas.Run(cut_run).preferred
    recipe = preferred.recipe
    assert recipe.source is not None
    source = recipe.source.model_copy(update={"name": "timm/resnet18=my $w$.safetensors"})
    changed = recipe.model_copy(update={"source": source})
    text = how_it_was_made(preferred.model_copy(update={"recipe": changed}), "cut")
    assert "\nprenas run --from 'timm/resnet18=my $w$.safetensors' ...\n" in text


def test_status_before_and_after_the_source_is_adapted(
    cut_source: Source, cut_pictures: Path, cut_run: Path, tmp_path: Path
) -> None:
    plan = cut_plan(cut_source, str(cut_pictures), ["macs=90%"], image_size=40)
    out = tmp_path / "run"
    prenas.Run(out, plan.recipe).record_recipe(plan.recipe)
    before = read_status(out)
    command = f"prenas run --from {cut_source.name} --data PATH --out {out}"
    assert before.next_command == f"{command} (and the options that it was started with)"
    assert before.finish_command is None
    assert (before.adaptation, before.search) == ("missing", "missing")
    shutil.copytree(cut_run / "source", out / "source")
    (out / "source/supernet.safetensors").unlink()
    (out / "source/subnets/00/arch.json").unlink()
    for adaptation, search in (("begun", "missing"), ("done", "begun")):
        for folder in (out, out / "source"):
            found = read_status(folder)
            assert found.next_command == found.finish_command == f"prenas run --out {out}"
        found = read_status(out)
        assert (found.adaptation, found.search) == (adaptation, search)
        shown = CliRunner().invoke(app, ["status", str(out)]).output
        word = {"begun": "interrupted", "done": "done"}[adaptation]
        assert re.search(rf"adaptation +{word} +step 2 of 2, ", shown)
        assert "Or   " not in shown
        shutil.copytree(cut_run / "source", out / "source", dirs_exist_ok=True)


def test_a_plan_for_other_classes_gets_a_fresh_head(cut_source: Source, cut_pictures: Path) -> None:
    plan = cut_plan(cut_source, str(cut_pictures), ["params=80%"], image_size=40)
    assert plan.recipe.space.settings.num_classes == 3
    assert plan.recipe.training is not None
    assert plan.recipe.training.teacher is not None
    assert plan.recipe.training.teacher.name == "source/subnets/00"
    assert plan.recipe.source == plan.adaptation.source
    assert plan.adaptation.space.num_archs == 1


def test_settings_of_the_images_hold_for_every_training(
    cut_source: Source, cut_pictures: Path, tmp_path: Path
) -> None:
    """Of the whole network, the cuts and the stock models."""
    photos = shutil.copytree(cut_pictures, tmp_path / "photos")
    (photos / "ant" / "broken.png").write_bytes(b"no picture")
    changes = ("data.unreadable=skip", "data.augmentation.flip=0", *SHORT)
    stock = [cut_source.name]
    plan = cut_plan(
        cut_source, str(photos), ["macs=90%"], image_size=40, overrides=changes, compare=stock
    )
    for recipe in (plan.recipe, plan.adaptation, *plan.rival_recipes()):
        assert recipe.data is not None
        assert (recipe.data.unreadable, recipe.data.augmentation.flip) == ("skip", 0)
    pipeline.run_cuts(plan._replace(rivals=()), tmp_path / "run")
    assert read_status(tmp_path / "run").next_command is None


def test_shares_become_amounts(cut_source: Source) -> None:
    arch, settings = cut_source.supernet.arch, cut_source.supernet.settings
    costs = count(arch, settings)
    found = absolute_budgets(
        ["macs=50%", "params=12.5 %,macs=1M", "macs=2M", "size=50%"], arch, settings
    )
    assert found == (
        f"macs={costs['macs'] // 2}",
        f"params={int(costs['params'] / 8)},macs=1M",
        "macs=2M",
        f"params={costs['params'] // 2}",
    )
    share = 100 * Fraction(costs["macs"] - 1, costs["macs"])  # to the unit, as floats are not
    (exact,) = absolute_budgets([f"macs={share}%"], arch, settings)
    assert bounded_axis("macs").parse(exact.removeprefix("macs=")) == costs["macs"] - 1
    with pytest.raises(ValueError, match=r"macs=1e-9% is less than 1: write a larger share"):
        absolute_budgets(["macs=1e-9%"], arch, settings)
    with pytest.raises(ValueError, match=r"macs=120% is not a share of the source"):
        absolute_budgets(["macs=120%"], arch, settings)
    for text in ("macs=1.2.3%", "macs=.%", "macs=nan%", "macs=10%:%"):
        with pytest.raises(ValueError, match=r"the budget macs=.*% is not a share of the source"):
            absolute_budgets([text], arch, settings)
    with pytest.raises(ValueError, match="unknown budget axis 'speed'"):
        absolute_budgets(["speed=50%"], arch, settings)
    with pytest.raises(ValueError, match="budget axis 'latency' needs a table of times"):
        absolute_budgets(["latency=50%"], arch, settings)


def test_shares_may_be_ranges(cut_source: Source) -> None:
    arch, settings = cut_source.archs[0], cut_source.supernet.settings
    macs = count(arch, settings)["macs"]
    (text,) = absolute_budgets(["macs=30%:90%:20%, params=2k"], arch, settings)
    range_of_macs, rest = text.split(",")
    assert rest.strip() == "params=2k"
    axis, amounts = range_of_macs.split("=")
    shares = [100 * bounded_axis("macs").parse(amount) / macs for amount in amounts.split(":")]
    assert axis == "macs"
    assert shares == pytest.approx([30, 90, 20], abs=1e-3)


@pytest.mark.parametrize("budget", ["macs=1", "macs=900G", "params=1%"])
def test_budgets_that_no_cut_meets_are_refused_with_both_ends(
    cut_source: Source, cut_pictures: Path, budget: str
) -> None:
    ends = r"cannot be met by cutting .* range from .* \(\d+ % of the whole network\) to .*"
    with pytest.raises(ValueError, match=ends):
        cut_plan(cut_source, str(cut_pictures), [budget], image_size=40)


@pytest.mark.parametrize(
    ("budget", "change", "words"),
    [
        ("params=55%,macs=95%:100%", [], r"no subnet fits the budget .*: this space"),
        (
            "macs=90%:90.5%", ["search.allocation=equal"],
            "no subnet that keeps .* fits any of the budgets",
        ),
    ],
)  # fmt: skip
def test_budgets_between_the_cuts_are_refused_before_the_source_is_adapted(
    budget: str, change: list[str], words: str, cut_source: Source, cut_pictures: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        cut_plan(cut_source, str(cut_pictures), [budget], image_size=40, overrides=change)


def test_budgets_of_the_recipe_that_no_cut_meets_are_left_out(
    cut_source: Source, cut_pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = cut_plan(cut_source, str(cut_pictures), image_size=40)
    assert len(plan.recipe.search.budgets) == 1
    assert "small enough for macs=50%, macs=35%, macs=25%: the smallest has 54 %" in caplog.text
    small = get_cut_recipe("pretrained").model_copy(update={"budgets": ("macs=20%", "macs=30%")})
    with pytest.raises(ValueError, match="cannot be met by cutting"):
        cut_plan(cut_source, str(cut_pictures), recipe=small, image_size=40)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("space.settings.image_size=[32,32]", "space.settings: .* give --image-size"),
        ("space.settings.num_classes=5", "space.settings: the cuts take the images and classes"),
        ("search.images=noise", "search.images=noise: units are scored on your pictures"),
        ("training.teacher.name=resnet18", "the whole network is the teacher"),
        ("adaptation.epohcs=3", "unknown recipe field 'adaptation.epohcs': .*'adaptation.epochs'"),
    ],
)
def test_fields_that_follow_from_the_source_cannot_be_set(
    change: str, words: str, cut_source: Source, cut_pictures: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        cut_plan(cut_source, str(cut_pictures), ["macs=90%"], image_size=40, overrides=[change])


def test_a_path_keeps_its_name_in_an_error(cut_source: Source) -> None:
    """Only fields of the adaptation get another name."""
    for change in ((), ("adaptation.epochs=1",)):
        with pytest.raises((ValueError, FileNotFoundError), match=r"missing/training\.tar"):
            cut_plan(cut_source, "missing/training.tar", ["macs=90%"], overrides=change)


def test_an_adaptation_that_fails_names_its_own_fields(
    cut_source: Source, cut_pictures: Path, tmp_path: Path
) -> None:
    changes = ["adaptation.lr_per_512_images=1e30", "adaptation.skipped_steps_limit=2"]
    plan = cut_plan(cut_source, str(cut_pictures), ["macs=90%"], image_size=40, overrides=changes)
    with pytest.raises(ValueError, match="not finite in 2 steps") as caught:
        pipeline.run_cuts(plan, tmp_path / "run")
    assert "with a lower adaptation.lr_per_512_images, with adaptation.clip" in str(caught.value)
    assert "training." not in str(caught.value)


def test_warnings_of_the_adaptation_name_its_own_fields(
    cut_source: Source, cut_pictures: Path
) -> None:
    plan = cut_plan(cut_source, str(cut_pictures), ["macs=90%"], image_size=40)
    assert plan.adaptation.training_field == "adaptation"
    assert plan.recipe.training_field == get_recipe("digits").training_field == "training"
    few = with_overrides(plan.adaptation, ["training.steps=2"])
    images, asked = load_data(few.data, few.space.settings), few.training
    assert asked is not None
    warned = doubts(few, asked, images, is_pretrained=True)
    assert any("give adaptation.steps=20 or more" in text for text in warned)


def test_a_single_image_that_cannot_be_normalised_is_refused_before_anything_is_spent(
    cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    """48 images in batches of 47 leave one; 16 x 16 pixels become one in the last stage."""
    source, pictures = read_source(f"timm/{MODEL}={cut_weights}"), str(cut_pictures)
    for name in ("adaptation", "training"):
        plan = cut_plan(
            source, pictures, ["macs=90%"], image_size=16, overrides=[f"{name}.batch_size=47"]
        )
        for act in (partial(pipeline.run_cuts, out=tmp_path / "run"), pipeline.dry_run_cuts):
            with pytest.raises(ValueError, match=rf"48 images in .* change {name}\.batch_size"):
                act(plan)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/test_resnett", r"timm has no model 'test_resnett': did you mean .*test_resnet"),
        ("timm/test_vit=WEIGHTS", r"not those of timm's test_vit \(\d+ differences: "),
        ("timm/test_resnet=missing.pth", r"missing.pth does not exist"),
        ("timm/test_resnet=", r"'timm/test_resnet=' names no file: give one after the '='"),
        ("timm/resnet18.a1_in1K=WEIGHTS", r"weights of timm's resnet18 'a1_in1K': .*'a1_in1k'"),
        ("timm/repvit_m0_9=WEIGHTS", r"repvit_m0_9 has several classifiers: choose a timm model"),
        ("timm/resnext50_32x4d=WEIGHTS", r"not those of timm's resnext50_32x4d"),
    ],
)
def test_a_source_that_cannot_be_read(name: str, words: str, cut_weights: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_source(name.replace("WEIGHTS", str(cut_weights)))


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **fields: object) -> object:
        raise OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", offline)
    with pytest.raises(
        ValueError,
        match=re.escape(
            "the weights of resnet18 are not in timm's cache and cannot be downloaded (OSError: "
            "Name or service not known). Get the file from https://huggingface.co/timm/resnet18."
        ),
    ):
        read_source("timm/resnet18")


def test_a_run_of_several_subnets_is_no_source(cut_run: Path, cut_pictures: Path) -> None:
    with pytest.raises(ValueError, match="it contains 2 subnets: choose one of them"):
        cut_plan(read_source(cut_run), str(cut_pictures))


def test_a_run_whose_source_is_not_adapted_says_how_to_continue(
    cut_source: Source, cut_pictures: Path, tmp_path: Path
) -> None:
    plan = cut_plan(cut_source, str(cut_pictures), ["macs=90%"], image_size=40)
    prenas.Run(tmp_path / "run", plan.recipe).record_recipe(plan.recipe)
    words = ["run", "--out", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=r"source/subnets/00 is missing.*run --from SOURCE"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    with pytest.raises(ValueError, match="not adapted yet"):
        prenas.search(plan.recipe, tmp_path / "run")
    with pytest.raises(ValueError, match=r"no finished search .*with \(prenas run --from SOURCE"):
        pipeline.report(tmp_path / "run")
    with pytest.raises(ValueError, match="'gate_or_fisher' scores the units of a trained"):
        dry_run(plan.recipe.model_copy(update={"training": plan.adaptation.training}))
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name[0] != "."] == [
        "recipe.json"
    ]


def test_a_run_that_recorded_what_says_nothing_is_continued(cut_run: Path, tmp_path: Path) -> None:
    """Earlier versions took these fields, and ignored them."""
    out = tmp_path / "run"
    shutil.copytree(cut_run, out)
    run = prenas.Run(out)
    recipe = with_overrides(run.recipe, ["search.exact_optimum=true", "search.further_seeds=2"])
    preferred = run.preferred.model_copy(update={"recipe": recipe})
    run.record_recipe(recipe)
    run.record_preferred(preferred)
    before = (out / "preferred.json").read_bytes()
    result = CliRunner().invoke(app, ["run", "--out", str(out), "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert (out / "preferred.json").read_bytes() == before


def test_the_last_table_has_the_whole_network_and_the_names_of_classes(
    cut_run: Path, cut_weights: Path, cut_pictures: Path
) -> None:
    result = CliRunner().invoke(app, command(cut_weights, cut_pictures, cut_run))
    _, table = result.output.split("cuts, the whole network\n")
    assert result.output.count("Accuracies in %") == 1
    assert f"{prenas.Run(cut_run / 'source').evaluations[0].costs['params']:,}" in table
    assert re.search(r"weakest: (ant|bee|cow) ", table)


def test_a_finished_run_continues_with_its_own_recipe(cut_run: Path) -> None:
    result = CliRunner().invoke(app, ["run", "--out", str(cut_run)])
    assert result.exit_code == 0, result.output


def test_a_run_that_was_stopped_while_it_adapted_continues_with_its_own_recipe(
    cut_run: Path, cut_source: Source, tmp_path: Path
) -> None:
    """It ends as the uninterrupted one did, and `prenas status` names the command."""
    out = tmp_path / "run"
    whole, adaptation = (prenas.Run(one).recipe for one in (cut_run, cut_run / "source"))
    prenas.Run(out, whole).record_recipe(whole)
    pipeline.finetune(cut_source, adaptation, out / "source")  # not trained yet
    assert read_status(out).next_command == f"prenas run --out {out}"
    result = CliRunner().invoke(app, ["run", "--out", str(out), "--threads", "1"])
    assert result.exit_code == 0, result.output
    for inside in (".", "source"):
        found, expected = (prenas.Run(one / inside).evaluations for one in (out, cut_run))
        assert [one.splits for one in found] == [one.splits for one in expected]


@pytest.mark.parametrize("is_adapted", [True, False])
@pytest.mark.parametrize("names_its_source", [True, False])
def test_pictures_that_moved_are_known_again(
    is_adapted: bool,
    names_its_source: bool,
    cut_run: Path,
    cut_weights: Path,
    cut_pictures: Path,
    tmp_path: Path,
) -> None:
    """The command with their new place, or with the run alone, reads them for results that were
    lost; the whole network's folder knows the new place, too."""
    out, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(cut_run, out)
    expected = (out / "evaluation.json").read_bytes()
    (out / "evaluation.json").unlink()
    if not is_adapted:
        shutil.rmtree(out / "source" / "subnets")
        (out / "source" / "evaluation.json").unlink()
    shutil.copytree(cut_pictures, moved)
    words = command(cut_weights, moved, out)
    if not names_its_source:
        words = ["run", "--out", str(out), "--data", str(moved), "--threads", "1"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (out / "evaluation.json").read_bytes() == expected
    for folder in (out, out / "source"):
        data = prenas.Run(folder).recipe.data
        assert data is not None
        assert data.root == str(moved)


def test_weights_that_moved_are_the_same_weights(
    cut_run: Path, cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copy(cut_weights, tmp_path / "elsewhere.safetensors"))
    out = shutil.copytree(cut_run, tmp_path / "run")
    result = CliRunner().invoke(app, command(moved, cut_pictures, out), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output.count("Training already complete") == 2


def test_single_texts_need_no_list(cut_weights: Path, cut_pictures: Path) -> None:
    source = f"timm/{MODEL}={cut_weights}"
    plan = cut_plan(
        source, str(cut_pictures), "macs=90%", image_size=40, overrides="training.epochs=3"
    )
    listed = cut_plan(
        read_source(source),
        [str(cut_pictures)],
        ["macs=90%"],
        image_size=40,
        overrides=["training.epochs=3"],
    )
    assert (plan.recipe, plan.adaptation) == (listed.recipe, listed.adaptation)


def test_a_dry_run_measures_both_trainings_and_writes_nothing(
    cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    words = [*command(cut_weights, cut_pictures, tmp_path / "x"), "--dry-run"]
    result = CliRunner().invoke(app, [*words, "--set", "training.teacher.feature_weight=0.5"])
    assert result.exit_code == 0, result.output
    assert result.output.count("Estimate for the whole training") == 2
    assert re.search(r"Scoring and choosing, .* take about \d+ s more", result.output)
    assert "Budgets" in result.output
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_time_scales_both_trainings_and_is_measured_once(
    cut_weights: Path, cut_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    words = [*command(cut_weights, cut_pictures, out, lengths=()), "--time", "12s"]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "300 of 8 images" not in dry.output
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    ours, theirs = steps_of(out / "source"), steps_of(out)
    assert f"Time      {ours:,} and {theirs:,} steps fit into 12s" in result.output
    assert ours == round(theirs / 2)

    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert f"Time      {theirs:,} steps, as when {out} was started" in dry.output
    assert "nothing was written" in dry.output
    other = CliRunner().invoke(app, [*words, "--dry-run", "--budget", "macs=70%"])
    assert f"{out} was made with another recipe" in str(other.exception)

    def measured_again(*arguments: object, **options: object) -> None:
        raise AssertionError("the lengths are recorded")

    monkeypatch.setattr(pipeline, "dry_run_cuts", measured_again)
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "Training already complete" in result.output

    def stopped(plan: CutPlan, folder: Path, **options: object) -> None:
        planned.append(plan)
        raise ValueError("stopped")

    planned: list[CutPlan] = []
    monkeypatch.setattr(pipeline, "run_cuts", stopped)
    again.mkdir()  # as if killed just before the adaptation is recorded
    shutil.copy(out / "recipe.json", again)
    words[words.index("--out") + 1] = str(again)
    with pytest.raises(ValueError, match="stopped"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    both = planned[0].adaptation.training, planned[0].recipe.training
    lengths = [one.steps for one in both if one is not None]
    assert lengths == [ours, theirs]


def steps_of(folder: Path) -> int:
    training = prenas.Run(folder).recipe.training
    assert training is not None
    assert training.steps is not None
    return training.steps


def test_one_network_has_no_subnet_to_choose(cut_weights: Path) -> None:
    with pytest.raises(ValueError, match="is one network, of which no subnet can be chosen"):
        read_source(f"timm/{MODEL}={cut_weights}", 0)


def test_a_cut_can_be_cut_again(cut_run: Path, cut_pictures: Path, tmp_path: Path) -> None:
    again = read_source(cut_run / "subnets/01")
    plan = cut_plan(again, str(cut_pictures), ["macs=90%"], overrides=SHORT)
    assert plan.recipe.space.largest == again.archs[0]
    (row,) = prenas.run_cuts(plan, tmp_path / "again", device="cpu")
    assert row.costs["macs"] <= 0.9 * count(again.archs[0], again.supernet.settings)["macs"]


def test_the_licence_of_the_weights_goes_along(
    cut_run: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    """From a handed-over cut, or its whole run, to what is fine-tuned from it."""
    first = read_description(cut_run / "subnets/01")
    assert first.licence == "apache-2.0"
    assert first.origin is not None
    for number, path in enumerate((cut_run / "subnets/01", cut_run)):
        source = read_source(path)
        assert (source.licence, source.origin) == (first.licence, first.origin)
        recipe = finetuning_recipe(
            source, data=str(cut_pictures), overrides=("training.epochs=1", *FEW)
        )
        prenas.finetune(source, recipe, out := tmp_path / str(number))
        pipeline.train(out)
        pipeline.evaluate(out)
        again = read_description(pipeline.specialize(out, 0))
        assert (again.licence, again.origin) == (first.licence, first.origin)
        assert read_source(out).licence == first.licence
    prenas.push(out, "me/insects", index=0, to=tmp_path / "hub")
    card = (tmp_path / "hub/README.md").read_text()
    assert "Licence of these source weights: apache-2.0." in card


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--space", "digits"], "--space cannot be combined with --from"),
        (["--time", "20m"], "--time 20m and --set training.epochs=2 both give a length"),
        (["--further-seeds", "2"], "--further-seeds cannot be combined with --from"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], words: str, cut_weights: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        CliRunner().invoke(
            app,
            [*command(cut_weights, cut_pictures, tmp_path / "x"), *options],
            catch_exceptions=False,
        )
    assert not (tmp_path / "x").exists()


def test_every_field_of_the_recipe_that_info_prints_may_be_set(
    cut_source: Source, cut_pictures: Path
) -> None:
    """With the value that it has, it changes nothing."""
    fields = {name: json.dumps(value) for name, value in cut_fields(get_cut_recipe("pretrained"))}
    printed = CliRunner().invoke(app, ["info", "pretrained"]).output
    for name, value in fields.items():
        assert re.search(rf"^ *{re.escape(name)} +{re.escape(value)} *$", printed, re.MULTILINE)
    changes = [f"{name}={value}" for name, value in fields.items()]
    images, budgets = str(cut_pictures), ["macs=90%"]
    plan = cut_plan(cut_source, images, budgets, image_size=40, overrides=changes)
    assert plan == cut_plan(cut_source, images, budgets, image_size=40)
    assert "Budgets: macs=75%, macs=50%, macs=35%, macs=25%" in printed


def test_image_size_needs_a_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--image-size needs --from"):
        CliRunner().invoke(
            app,
            ["run", "digits", "--image-size", "16", "--out", str(tmp_path / "x")],
            catch_exceptions=False,
        )


def test_a_run_from_random_weights_names_the_pretrained_start(
    cut_pictures: Path, tmp_path: Path
) -> None:
    words = ["run", "photos", "--data", str(cut_pictures), "--dry-run", "--threads", "1"]
    words += ["--set", "space.settings.image_size=36"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    hint = f"prenas run --from timm/tf_efficientnet_lite0 --data {cut_pictures} --out RUN"
    assert result.output.count(hint) == 1
    (tmp_path / "recipe.json").touch()  # of a run that continues
    continued = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert "--from" not in continued.output
    on_digits = CliRunner().invoke(app, ["run", "digits", "--dry-run", "--threads", "1"])
    assert "--from" not in on_digits.output
