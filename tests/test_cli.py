"""The command line: everything the package does, and every mistake in one readable message."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from data.making import write
from families.test_vit_released import ARCH, SETTINGS, mini
from prenas import pipeline
from prenas.cli import app, main
from prenas.cost import count
from prenas.evaluation.accuracy import Evaluation
from prenas.families import all_spaces
from prenas.families.vit.space import VitArch
from prenas.models.choice import pick
from prenas.models.export import load
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.catalogue import CUT_RECIPES, RECIPES, TRANSFER_RECIPES, get_recipe
from prenas.runs.run import read_preferred
from prenas.steps import measuring, training
from training.runs import (
    SMALLEST,
    StoppedError,
    contents,
    hearing,
    stop_at,
)

pytest_plugins = "training.runs"

COMMANDS = (
    "run",
    "finetune",
    "search",
    "train",
    "evolve",
    "evaluate",
    "report",
    "status",
    "specialize",
    "import",
    "predict",
    "info",
)
SMALL = [
    *("--set", "space.embed_dim=[8, 16]", "--set", "space.depth=[1, 2]"),
    *("--set", "space.num_heads=[1, 2]", "--set", "space.mlp_ratio=[1, 2]"),
    *("--set", "space.settings.patch_size=4", "--set", "space.settings.head_dim=4"),
    *("--set", "search.num_images=8", "--set", "training.batch_size=256"),
    *("--set", "training.epochs=1", "--budget", "params=1k:3k:1k"),
]


class Result(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def prenas(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Runs `prenas ARGUMENTS` in this process, as its entry point does."""
    threads = torch.get_num_threads()

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["prenas", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    yield command
    torch.set_num_threads(threads)


def refused(result: Result, *words: str) -> str:
    """Checks for status 2 and one readable message; returns it."""
    assert result.status == 2, result
    assert "Traceback" not in result.err + result.out
    assert "errors.pydantic.dev" not in result.err
    assert result.err.strip()
    assert len(result.err.strip().splitlines()) <= 4
    for word in words:
        assert word in result.err
    return result.err


# --- the whole method ----------------------------------------------------------------------------


def test_run_goes_all_the_way(prenas: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = prenas("run", "digits", "--out", out, *SMALL, "--device", "cpu", "--threads", "1")
    assert (result.status, result.err) == (0, "")
    rows = pipeline.evaluate(out)
    assert len(rows) == 2
    for row in rows:
        assert f"{row.costs['params']:,}" in result.out
    assert f"Training done in 0 s: {out / 'supernet.safetensors'}" in re.sub(
        r"done in \d+ s", "done in 0 s", result.out
    )
    assert f"Models    {out / 'subnets'}/00 ... 01" in result.out
    assert "Training 100 %: epoch 1, loss 2." in result.out
    for number in range(2):
        load(out / "subnets" / f"{number:02d}")

    again = prenas("run", "digits", "--out", out, *SMALL)
    assert again.status == 0
    assert "Search already complete" in again.out
    assert "Training already complete" in again.out
    other = prenas("run", "digits", "--out", out, *SMALL, "--set", "seed=1")
    refused(other, "was made with another recipe", "seed: 0 -> 1", "Nothing was changed")


def test_a_space_for_own_pictures_needs_a_recipe_which_is_named(
    prenas: Command, tmp_path: Path
) -> None:
    photos = write(tmp_path / "photos", ["a/1.png", "b/1.png"])
    for space, recipe in (("cifar", "photos"), ("mobilenet-micro", "photos-mobilenet")):
        result = prenas("run", "--space", space, "--data", photos, "--out", tmp_path / "run")
        refused(result, f"`prenas run {recipe} --space {space} --data {photos} --out RUN`")


@pytest.mark.parametrize(
    "given", [[], [f"--set=data.preprocessing.{name}=[0.5]" for name in ("mean", "std")]]
)
def test_a_one_channel_space_is_refused_by_a_recipe_for_three(
    given: list[str], prenas: Command, tmp_path: Path
) -> None:
    """Whether mean and deviation of one channel are given or not."""
    photos = write(tmp_path / "photos", ["a/1.png", "b/1.png"])
    result = prenas("run", "photos", "--space", "digits", "--data", photos, "--dry-run", *given)
    refused(
        result,
        "space 'digits' take images of 1 channel, but the recipe photos prepares 3",
        "write in_chans: 3 in the space",
    )


def test_run_and_dry_run_say_how_pictures_are_prepared(
    prenas: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = write(tmp_path / "photos", [f"{kind}/{n}.png" for kind in "ab" for n in range(20)])
    small = ["--set", "space.settings.image_size=24", "--set", "training.epochs=1"]
    small += ["--set", "search.num_images=8", "--budget", "params=180k"]
    line = "Input:  24 x 24 pixels, 3 channels; mean 0.485 0.456 0.406, deviation 0.229 0.224 0.225"
    for end in (["--dry-run"], ["--out", tmp_path / "run"]):
        result = prenas("run", "photos", "--data", photos, *small, *end)
        assert result.status == 0, result.err
        assert line in result.out
        assert "this training is short: 1 step for 1 subnet. Less than about" in caplog.text
        assert "these are few images: 32 to train 2 classes" in caplog.text
        caplog.clear()


def test_a_time_chooses_the_length_once(prenas: Command, tmp_path: Path) -> None:
    """The number of steps is in recipe.json, so the same command continues the run."""
    out, words = tmp_path / "run", [word for word in SMALL if word != "training.epochs=1"]
    words = [*words[: words.index("--budget") - 1], *words[words.index("--budget") :]]
    command = ("run", "digits", "--out", out, *words, "--device", "cpu", "--time", "3s")
    result = prenas(*command)
    assert result.status == 0, result.err
    training = pipeline.read_preferred(out).recipe.training
    assert training is not None
    assert training.epochs is None
    assert f"{training.steps:,} steps fit into 3s: training with validation takes" in result.out
    again = prenas(*command)
    assert again.status == 0
    assert f"Time      {training.steps:,} steps, as when {out} was started" in again.out
    assert "Training already complete" in again.out
    both = prenas(*command, "--set", "training.epochs=2")
    refused(both, "--time 3s and --set training.epochs=2 both give a length: leave out one")
    refused(prenas(*command[:-1], "fast"), "cannot read 'fast' as a time", "90s, 20m, 1.5h")


def test_a_folder_is_looked_at_before_steps_are_measured(
    prenas: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "dry_run", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "letter.txt").write_text("mine")
    result = prenas("run", "digits", "--out", tmp_path, "--device", "cpu", "--time", "3s")
    refused(result, f"{tmp_path} is neither empty nor a run folder of prenas")


def test_a_time_is_refused_for_a_run_that_was_started_without(
    prenas: Command, finished: Path
) -> None:
    before = contents(finished)
    result = prenas("run", "digits", "--out", finished, "--time", "20m")
    refused(result, f"{finished} was started without --time: leave it out to continue")
    assert contents(finished) == before


def test_a_dry_run_looks_at_the_folder_that_it_is_given(
    prenas: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it says what a run takes that would be refused."""
    monkeypatch.setattr(pipeline, "dry_run", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "letter.txt").write_text("mine")
    before = contents(finished)
    again = ("run", "--dry-run", "--out", finished)
    refused(prenas(*again, "--set", "training.epochs=7"), "made with another recipe")
    refused(prenas(*again, "--time", "20m"), "was started without --time")
    other = prenas("run", "digits", "--dry-run", "--out", tmp_path)
    refused(other, "neither empty nor a run folder of prenas")
    tuned = prenas("finetune", finished, "--dry-run", "--out", finished)
    assert f"{finished} was made with another recipe" in tuned.err
    assert contents(finished) == before


def test_the_steps_one_by_one(prenas: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = prenas("search", "digits", "--out", out, *SMALL, "--further-seeds", "1")
    assert (found.status, found.err) == (0, "")
    assert re.search(
        r"Seed 1: Kendall's tau 0\.\d+ for scores, for block scores num_heads", found.out
    )
    assert pipeline.read_preferred(out).recipe.search.further_seeds == 1
    assert "gap" not in found.out
    exact = ("--set", "search.exact_optimum=true")
    asked = prenas("search", "digits", "--out", out, *SMALL, *exact)
    assert (asked.status, asked.err) == (0, "")
    assert re.search(r"lead +gap +budget", asked.out)
    assert "does not guarantee a better network" in asked.out
    trained = prenas("train", out)
    assert (trained.status, trained.err) == (0, "")
    evaluated = prenas("evaluate", out)
    assert (evaluated.status, evaluated.err) == (0, "")
    told = prenas("report", out)
    assert (told.status, told.err) == (0, "")
    assert told.out == f"Report    {out / 'report.md'}\n"
    assert (out / "report.md").read_text().startswith("# digits: 2 preferred subnets")
    page = prenas("report", out, "--html", "--no-pictures")
    assert (page.status, page.err) == (0, "")
    assert page.out == f"Page      {out / 'report.html'}\n"
    refused(prenas("report", out, "--no-pictures"), "--no-pictures needs --html")
    refused(prenas("report", out, out), "report.md is of one run, but 2 are given: add --html")
    refused(prenas("report", out, out, "--html"), "name its file (--to FILE)")
    cut = prenas("specialize", out, "--index", "1")
    assert (cut.status, cut.err) == (0, "")
    assert f"prenas.load('{out / 'subnets' / '01'}')" in cut.out


def test_one_shot_goes_all_the_way(prenas: Command, tmp_path: Path) -> None:
    """A line per generation, the evolved subnets, and the run hands those over."""
    out = tmp_path / "run"
    few = [*SMALL, "--set", "evolution.population=4", "--set", "evolution.num_parents=2"]
    few += ["--set", "evolution.generations=3", "--set", "evolution.num_mutations=2"]
    few += ["--set", "evolution.num_crossovers=1", "--device", "cpu", "--threads", "1"]
    result = prenas("run", "digits", "--out", out, *few)
    assert (result.status, result.err) == (0, "")
    for number in (1, 2, 3):
        assert result.out.count(f": generation {number} of 3, ") == 2
    assert result.out.count("generation 1 of 3, 4 subnets, best ") == 2
    evolved = pipeline.evolve(out)
    assert "digits: evolved subnets after training" in result.out
    assert "run: evolved subnets\n" in result.out
    for found in evolved:
        assert f"{found.costs['params']:,}" in result.out
    assert [row.arch for row in pipeline.evaluate(out)] == [found.arch for found in evolved]
    assert (out / "report.md").read_text().startswith("# digits: 2 evolved subnets")
    again = prenas("evolve", out)
    assert (again.status, again.err) == (0, "")
    assert "generation" not in again.out
    assert f"{out}: evolved subnets" in prenas("evaluate", out).out


def test_evolve_wants_a_recipe_with_evolution(prenas: Command, finished: Path) -> None:
    refused(prenas("evolve", finished), "has no evolution", "--set evolution={}")


def test_a_released_checkpoint_from_file_to_model(prenas: Command, tmp_path: Path) -> None:
    file, out, path = tmp_path / "released.pth", tmp_path / "run", tmp_path / "arch.json"
    torch.save({"model": mini()}, file)
    small = VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.5,))
    path.write_text(ARCH.model_dump_json())
    result = prenas("import", file, "--out", out, "--arch", small.model_dump_json(), "--arch", path)
    assert (result.status, result.err) == (0, "")
    assert "imported from released.pth, with the given subnets" in result.out
    assert f"Supernet  {out / 'supernet.safetensors'}" in result.out
    for arch in (small, ARCH):
        params = count(arch, SETTINGS)["params"]
        assert re.search(rf"{params:,} .* - +- +params <= ", result.out)
    assert "with the given subnets" in prenas("info", out).out
    assert "Training already complete" in prenas("train", out).out
    cut = prenas("specialize", out, "--max-params", "10M")
    assert (cut.status, cut.err) == (0, "")
    assert re.search(r"Subnet 1: [\d,]+ parameters, [\d,]+ MACs\n", cut.out)
    refused(prenas("evaluate", out), "names no data")
    assert "was made with another recipe" in prenas("search", "tiny", "--out", out).err


def test_what_cannot_be_imported(prenas: Command, tmp_path: Path) -> None:
    file, wrong, out = tmp_path / "mini.pth", tmp_path / "wrong.pth", tmp_path / "run"
    torch.save(mini(), file)
    wrong.write_text("hello")
    refused(prenas("import", wrong, "--out", out), "not a complete torch.save file")
    refused(prenas("import", tmp_path / "none.pth", "--out", out), "does not exist")
    refused(prenas("import", file, "--out", out, "--space", "tny"), "did you mean 'tiny'")
    unread = prenas("import", file, "--out", out, "--arch", '{"embed_dim": 1}')
    refused(unread, "is not a vit architecture")
    assert not out.exists()
    chosen = prenas("import", file, "--out", out)
    assert "with the largest network, because its sizes match no published space" in chosen.out


def test_finetuning_goes_all_the_way(prenas: Command, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "fine"
    words = ["finetune", finished_run, "--image-size", 12, "--extend-distances", "--subnet", 1]
    words += ["--set", "training.epochs=1", "--threads", "1"]
    dry = prenas(*words, "--dry-run")
    assert (dry.status, dry.err) == (0, "")
    assert "classifier kept" in dry.out
    assert "nothing was written" in dry.out
    refused(prenas(*words), "say where to write the run: --out FOLDER")
    result = prenas(*words, "--out", out)
    assert (result.status, result.err) == (0, "")
    assert f"fine-tuned from {finished_run} (one subnet; trained at 8 x 8" in result.out
    assert f"Models    {out / 'subnets'}/00; load one" in result.out
    assert load(out / "subnets" / "00").network(torch.zeros(1, 1, 12, 12)).shape == (1, 10)
    assert "fine-tuned from" in prenas("info", out).out
    again = prenas(*words, "--out", out)
    assert again.status == 0
    assert "Training already complete" in again.out
    by_folder = prenas("run", "--out", out)
    assert (by_folder.status, by_folder.err) == (0, "")
    assert f"fine-tuned from {finished_run} (one subnet" in by_folder.out
    assert "Training already complete" in by_folder.out
    refused(prenas("run", "--out", out, "--set", "seed=1"), "seed: 0 -> 1", "Nothing was changed")
    refused(prenas(*words, "--out", out, "--set", "seed=1"), "was made with another recipe")
    refused(prenas("finetune", finished_run, "--out", tmp_path / "x", "--head", "x"), "auto, fresh")
    limited = ["finetune", finished_run, "--max-params", "1", "--out", tmp_path / "x"]
    refused(prenas(*limited), "no subnet of this run satisfies params <= 1")
    refused(prenas("finetune", tmp_path / "no", "--out", tmp_path / "x"), "no does not exist")
    assert not (tmp_path / "x").exists()


def test_budgets_replace_the_recipes(prenas: Command, tmp_path: Path) -> None:
    result = prenas(
        "search", "digits", "--out", tmp_path / "run", *SMALL,
        "--budget", "params=10k:11k", "--budget", "params=1k:2500:1k", "--budget", "macs=9k",
    )  # fmt: skip
    assert result.status == 0
    assert pipeline.read_preferred(tmp_path / "run").recipe.search.budgets == (
        "params=1k:3k:1k",
        "params=10k:11k",
        "params=1k:2500:1k",
        "macs=9k",
    )
    assert "No subnet fits the budget params in [10k, 11k)" in result.out
    assert "Left out params in [2k, 2.5k): shorter than one step" in result.out
    assert "macs <= 9k" in result.out


def test_threads_are_set(prenas: Command, finished_run: Path) -> None:
    torch.set_num_threads(1)
    assert prenas("evaluate", finished_run, "--threads", "2").status == 0
    assert torch.get_num_threads() == 2
    assert prenas("evaluate", finished_run).status == 0
    assert torch.get_num_threads() == 2


def test_the_search_table_is_the_preferred_set(prenas: Command, searched: Path) -> None:
    preferred = pipeline.read_preferred(searched)
    result = prenas("info", searched)
    assert result.status == 0
    assert "3 preferred subnets of 40 (26 isomer classes scored)" in result.out
    for number, subnet in enumerate(preferred.subnets):
        (line,) = [
            line for line in result.out.splitlines() if f" {subnet.costs['params']:,} " in line
        ]
        assert line.split()[0] == str(number)
        score = line.partition(subnet.arch.summary)[2].split()[0]
        assert float(score.replace(",", "")) == pytest.approx(subnet.score, rel=0.01)
        assert preferred.budgets_of(number)[0] in line
    assert "No subnet fits the budget params in [10k, 11k)" in result.out
    assert "Left out params in [3.3k, 3.4k): shorter than one step" in result.out


# --- evaluate ------------------------------------------------------------------------------------


def test_the_evaluation_table_is_evaluation_json(prenas: Command, finished_run: Path) -> None:
    result = prenas("evaluate", finished_run)
    assert (result.status, result.err) == (0, "")
    rows = json.loads((finished_run / "evaluation.json").read_text())["subnets"]
    assert len(rows) == 3
    for number, row in enumerate(rows):
        (line,) = [
            line for line in result.out.splitlines() if f" {row['costs']['params']:,} " in line
        ]
        cells = line.split()
        assert cells[0] == str(number)
        numbers = [
            text
            for split in ("validation", "test")
            for text in (
                f"{100 * row['splits'][split]['top1']:.2f}",
                f"{row['splits'][split]['loss']:.3f}",
            )
        ]
        assert cells[-4:] == numbers
    assert "validation 360 images, test 360 images" in result.out
    evaluated = pipeline.evaluate(finished_run)
    best = evaluated[pick(evaluated, {})].splits["test"]
    assert best.per_class is not None
    assert best.balanced_accuracy is not None
    line = f"on test: balanced accuracy {100 * best.balanced_accuracy:.2f} %; weakest: "
    assert line in result.out
    weakest = min(right / number for right, number in best.per_class)
    assert re.search(rf"{line}\d {100 * weakest:.1f} % of \d+, \d ", result.out)


def test_given_architectures_are_evaluated(
    prenas: Command, finished: Path, finished_rows: list[Evaluation], tmp_path: Path
) -> None:
    """As JSON, as a file of JSON, and as the description of a handed-over model."""
    before = contents(finished)
    text = SMALLEST.model_dump_json()
    (tmp_path / "arch.txt").write_text(text)
    description = finished / "subnets" / "01" / "arch.json"
    result = prenas(
        "evaluate", finished, "--arch", text, "--arch", tmp_path / "arch.txt", "--arch", description
    )
    assert (result.status, result.err) == (0, "")
    lines = [line for line in result.out.splitlines() if re.match(r"\s*[012]\s", line)]
    assert len(lines) == 3
    assert lines[0].split()[1:] == lines[1].split()[1:]
    row = finished_rows[1]
    assert f"{row.costs['params']:,}" in lines[2]
    assert f"{100 * row.splits['test'].top1:.2f}" in lines[2]
    assert contents(finished) == before


def test_the_title_of_a_table_is_one_line(prenas: Command, finished: Path) -> None:
    """A path that is cut in two cannot be copied."""
    for arguments, title in (
        ([], f"{finished}: preferred subnets"),
        (["--arch", SMALLEST.model_dump_json()], f"{finished}: the given architectures"),
    ):
        assert title in prenas("evaluate", finished, *arguments).out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"embed_dim": 8', ["is not a JSON object that describes an architecture"]),
        ('{"embed_dim": 8}', ["is not a vit architecture", "num_heads: Field required"]),
        (
            '{"embed_dim": 8, "num_heads": [1], "mlp_ratio": [1], "wings": 2}',
            ["wings: Extra inputs are not permitted"],
        ),
        (
            '{"embed_dim": 8, "num_heads": [1, 1], "mlp_ratio": [1]}',
            ["num_heads has 2 entries and mlp_ratio has 1"],
        ),
        (
            '{"embed_dim": 99, "num_heads": [1], "mlp_ratio": [1]}',
            ["does not fit into the supernet", "embed_dim 99 > 16"],
        ),
        ("nowhere.json", ["nowhere.json"]),
        ("[8]", ["[8]"]),
    ],
)
def test_a_wrong_architecture_is_refused(
    text: str, words: list[str], prenas: Command, finished_run: Path
) -> None:
    refused(prenas("evaluate", finished_run, "--arch", text), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000, ["is neither JSON nor a file"]),
        ('{"a":' * 5000, ["nested more deeply than 100 levels"]),
        (f'{{"embed_dim": {"9" * 5000}}}', ["an integer has 5,000 digits"]),
        ('{"family": "mobilenet", "arch": {}}', ["a network of the family 'mobilenet'"]),
        (
            json.dumps({"embed_dim": 8, "num_heads": [1] * 1000, "mlp_ratio": [1] * 1000}),
            ["does not fit into the supernet: depth 1000 > 2"],
        ),
    ],
    ids=["brackets", "deep", "digits", "family", "layers"],
)
def test_an_architecture_without_bounds_is_refused(
    text: str, words: list[str], prenas: Command, finished_run: Path
) -> None:
    refused(prenas("evaluate", finished_run, "--arch", text), *words)


def test_the_description_of_a_subnet_is_an_architecture_of_any_length(
    prenas: Command, finished_run: Path
) -> None:
    """As JSON text, as a file and as a folder."""
    folder = finished_run / "subnets" / "01"
    text = (folder / "arch.json").read_text()
    assert len(text) > 255  # more than a file name may have
    shown = [
        prenas("evaluate", finished_run, "--arch", a).out for a in (text, folder / "arch.json")
    ]
    shown.append(prenas("evaluate", finished_run, "--arch", folder).out)
    assert read_preferred(finished_run).archs[1].summary in shown[0]
    assert len(set(shown)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "digits", "--out", ""], "a path is empty (after --out)"),
        (["search", "digits", "--out="], "a path is empty (--out=)"),
        (["status", ""], "a path is empty (after status)"),
        (["predict", "", "x.png"], "a path is empty (after predict)"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(
    arguments: list[str],
    words: str,
    prenas: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from an unset variable of the shell."""
    monkeypatch.chdir(tmp_path)
    refused(prenas(*arguments), words)
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_in_a_pipe_is_refused(
    prenas: Command, finished_run: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "arch.json")
    refused(prenas("evaluate", finished_run, "--arch", tmp_path / "arch.json"), "is a pipe, not a")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "params=1:1000000000:1"], ["makes 999,999,999 budgets: at most 10,000"]),
        (["--budget", "params=99999999999999999999G"], ["is too large: at most"]),
        (["--further-seeds", "1000000"], ["further_seeds", "1000"]),
        (
            [
                *("--set", "search.num_images=1000000"),
                *(
                    "--set",
                    "space.settings.image_size=4096",
                    "--set",
                    "space.settings.patch_size=64",
                ),
            ],
            ["does not fit into the memory", "search.num_images=1,000,000 images of 4096 x 4096"],
        ),
    ],
)
def test_a_search_without_bounds_is_refused_at_once(
    arguments: list[str], words: list[str], prenas: Command, tmp_path: Path
) -> None:
    started = time.monotonic()
    result = prenas("search", "digits", "--out", tmp_path / "run", *arguments)
    refused(result, *words)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "run" / "preferred.json").exists()


def test_thousands_of_empty_budgets_take_one_line(prenas: Command, tmp_path: Path) -> None:
    budgets = ("--budget", "params=60k", "--budget", "params=1M:3M:1k")
    result = prenas("search", "digits", "--out", tmp_path / "run", *budgets)
    lines = [line for line in result.out.splitlines() if line.startswith("No subnet fits")]
    assert lines == [
        "No subnet fits 2,000 of the 2,001 budgets: params in [1M, 1001k); params in [1001k, "
        "1002k); params in [1002k, 1003k); params in [1003k, 1004k); params in [1004k, 1005k); "
        "and 1,995 more"
    ]


def test_a_file_that_holds_no_architecture_is_refused(
    prenas: Command, finished_run: Path, tmp_path: Path
) -> None:
    for content in ("[1, 2]", "hello", '{"arch": 3}', ""):
        path = tmp_path / "arch.json"
        path.write_text(content)
        refused(prenas("evaluate", finished_run, "--arch", path), str(path))
    refused(prenas("evaluate", finished_run, "--arch", finished_run), str(finished_run))


# --- specialize ----------------------------------------------------------------------------------


def test_a_limit_chooses_a_model(
    prenas: Command, finished: Path, finished_rows: list[Evaluation], tmp_path: Path
) -> None:
    cheapest = finished_rows[0]
    params, macs = (cheapest.costs[name] for name in ("params", "macs"))
    for number, options in enumerate(
        (
            ["--max-params", params],
            ["--max-macs", macs],
            ["--max", f"params={params}"],
            ["--max", f"macs=1G, params={params}"],
            ["--max", f"macs={macs}", "--max", "params=1M"],
            ["--max", f"macs={macs}", "--max-params", "1M"],
        )
    ):
        to = tmp_path / str(number)
        result = prenas("specialize", finished, *options, "--to", to)
        assert (result.status, result.err) == (0, "")
        assert f"Subnet 0: {params:,} parameters, {macs:,} MACs" in result.out
        test = 100 * cheapest.splits["test"].top1
        assert f"test top-1 {test:.2f} %" in result.out
        assert f"Model     {to}" in result.out
        load(to)
    smallest = f"0: params {params:,}"
    refused(prenas("specialize", finished, "--max-params", "1k"), "params <= 1k", smallest)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "say which subnet: give either its number or limits such as params=6M"),
        (["--index", 3], "subnet 3 does not exist: this run has subnets 0 to 2"),
        (["--index", "first"], "'--index'"),
        (["--max-params", "lots"], "cannot read the amount 'lots'"),
        (["--index", 0, "--max-macs", "1G"], "say which subnet"),
        (["--max", "parms=6M"], "unknown cost 'parms': did you mean 'params'? available: macs"),
        (["--max", "6M"], "cannot read the limit '6M': write COST=AMOUNT"),
        (["--max", ""], "cannot read the limit ''"),
        (["--max", "params=6M", "--max-params", "5M"], "params is limited twice"),
        (["--max", "relative_macs=6M"], "unknown cost 'relative_macs'"),
    ],
)
def test_an_unclear_choice_is_refused(
    options: list[object], words: str, prenas: Command, finished: Path
) -> None:
    refused(prenas("specialize", finished, *options), words)


def test_a_full_folder_is_refused(prenas: Command, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    result = prenas("specialize", finished, "--index", 0, "--to", tmp_path / "mine")
    refused(result, f"{tmp_path / 'mine'} is not empty: choose another folder")


# --- info and help -------------------------------------------------------------------------------


def test_info_lists_everything(prenas: Command) -> None:
    result = prenas("info")
    assert (result.status, result.err) == (0, "")
    for name in (*RECIPES, *TRANSFER_RECIPES, *CUT_RECIPES, *all_spaces()):
        assert re.search(rf"^\s*{name}\b", result.out, re.MULTILINE)


@pytest.mark.parametrize("name", [*RECIPES, *all_spaces()])
def test_info_describes_each(name: str, prenas: Command) -> None:
    result = prenas("info", name)
    assert (result.status, result.err) == (0, "")
    space = get_recipe(name).space.name if name in RECIPES else name
    assert f"Space {space} " in result.out
    assert "smallest" in result.out
    assert "largest" in result.out


@pytest.mark.parametrize("name", TRANSFER_RECIPES)
def test_info_describes_each_recipe_of_fine_tuning(name: str, prenas: Command) -> None:
    result = prenas("info", name)
    assert (result.status, result.err) == (0, "")
    assert "Source:" in result.out
    assert re.search(r"training\.epochs +\d+", result.out)


def test_info_of_a_recipe_is_what_set_takes(prenas: Command, tmp_path: Path) -> None:
    """Every field that is printed can be given back as it is printed."""
    lines = prenas("info", "digits").out.partition("Recipe digits")[2].splitlines()[1:]
    fields = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines]
    pairs = [f"{field[0]}={field[1]}" for field in fields if len(field) == 2 and "." in field[0]]
    assert len(pairs) > 25
    from prenas.recipe import with_overrides

    assert with_overrides(get_recipe("digits"), pairs) == get_recipe("digits")


def test_info_of_something_unknown_offers_the_nearest(prenas: Command, tmp_path: Path) -> None:
    refused(prenas("info", "digit"), "did you mean 'digits'", "tiny")
    refused(prenas("info", tmp_path), "preferred.json is missing", "prenas search")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, prenas: Command) -> None:
    result = prenas(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert re.search(rf"^Usage: .*prenas {command} \[OPTIONS\]", result.out, re.MULTILINE)
    options = {
        name
        for parameter in _command(command).params
        for name in parameter.opts
        if name.startswith("--")
    }
    for name in options:
        assert name in result.out
    # Every option says what it is for.
    for parameter in _command(command).params:
        assert getattr(parameter, "help", None), parameter.name


def _command(name: str):
    import typer.main

    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


def test_help_lists_the_commands(prenas: Command) -> None:
    result = prenas("--help")
    assert result.status == 0
    for command in COMMANDS:  # none is cut short
        assert re.search(rf"^\s+{command}\s+\w.*[^.]\.$", result.out, re.MULTILINE), command
    bare = prenas()
    assert re.search(r"^Usage: .*prenas \[OPTIONS\] COMMAND", bare.out + bare.err, re.MULTILINE)


def test_the_version_is_that_of_the_package(prenas: Command) -> None:
    result = prenas("--version")
    assert (result.status, result.out) == (0, f"prenas {version('prenas')}\n")


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "digit"], ["unknown recipe 'digit'", "did you mean 'digits'", "tiny"]),
        (["search", "digits", "--set", "training.epoch=3"], ["did you mean 'training.epochs'"]),
        (["search", "digits", "--set", "training.epochs=x"], ["training.epochs", "'x'"]),
        (["search", "digits", "--set", "training.epochs"], ["FIELD=VALUE"]),
        (["search", "tiny", "--set", "training.epochs=3"], ["'tiny' has no 'training'"]),
        (["search", "digits", "--budget", "parms=6M"], ["did you mean 'params'"]),
        (["search", "digits", "--budget", "params=six"], ["'six'", "250k or 6M"]),
        (
            ["search", "digits", "--budget", "params=1", "--set", "search.num_images=1"],
            ["no subnet fits", "params <= 1", "this space ranges over params"],
        ),
        (["search", "digits", "--further-seeds", "-1"], ["further_seeds", "-1"]),
        (["search", "digits", "--device", "quantum"], ["'quantum'", "choose auto, cpu"]),
        (["search", "digits", "--device", "cuda:99"], ["'cuda:99' does not exist on this machine"]),
        (["search", "digits", "--threads", "0"], ["'--threads'", "equal to 1"]),
        (["search", "digits", "--threads", "all"], ["'--threads'", "integer"]),
        (["search", "digits", "--buget", "params=6M"], ["--buget", "--budget"]),
        (["search", "[red]digits[/red]"], ["'[red]digits[/red]'"]),
        (["search"], ["RECIPE"]),
    ],
)
def test_a_mistake_is_one_readable_message(
    arguments: list[str], words: list[str], prenas: Command, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "run"] if len(arguments) > 1 else []
    result = prenas(*arguments, *out)
    refused(result, *words)
    assert result.out == ""


def test_an_unknown_command_is_refused(prenas: Command) -> None:
    refused(prenas("serch", "digits"), "serch")


def test_a_recipe_in_the_place_of_a_run_is_told(prenas: Command) -> None:
    refused(prenas("train", "digits"), "digits is a recipe", "prenas run digits --out")
    refused(prenas("train", "nowhere"), "nowhere has no finished search")


def test_the_folder_is_asked_for(prenas: Command) -> None:
    for command in ("run", "search"):
        refused(prenas(command, "digits"), "--out")


@pytest.mark.parametrize("command", ["train", "evaluate", "specialize"])
def test_a_missing_run_names_the_command(command: str, prenas: Command, tmp_path: Path) -> None:
    options = ["--index", 0] if command == "specialize" else []
    result = prenas(command, tmp_path / "nowhere", *options)
    refused(
        result,
        "preferred.json is missing",
        f"run `prenas search RECIPE --out {tmp_path / 'nowhere'}`",
    )
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", ["evaluate", "specialize"])
def test_an_untrained_run_names_the_command(command: str, prenas: Command, searched: Path) -> None:
    options = ["--index", 0] if command == "specialize" else []
    refused(prenas(command, searched, *options), f"run `prenas train {searched}` first")


def test_a_failing_write_is_one_message(
    prenas: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(measuring, "evaluate", full)
    refused(prenas("evaluate", finished), "No space left on device", "runs/x")


def test_a_damaged_run_is_one_message(prenas: Command, finished: Path) -> None:
    (finished / "preferred.json").write_text('{"schema_version": 1, "recipe": {}}')
    refused(prenas("evaluate", finished), "preferred.json")


def test_paths_with_brackets_are_printed_whole(prenas: Command, tmp_path: Path) -> None:
    out = tmp_path / "[bold]run[/bold]"
    result = prenas("search", "digits", "--out", out, *SMALL)
    assert result.status == 0
    assert str(out / "preferred.json") in result.out


def test_an_interruption_says_how_to_continue(
    prenas: Command, searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    result = prenas("train", searched)
    assert result.status == 130
    assert "Traceback" not in result.err
    assert "give the same command again to continue" in result.err


def test_an_interrupted_training_is_continued(
    prenas: Command, searched: Path, finished_run: Path
) -> None:
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=stop_at(14)))
    result = prenas("train", searched)
    assert (result.status, result.err) == (0, "")
    assert "epoch 3" in result.out
    name = "supernet.safetensors"
    assert (searched / name).read_bytes() == (finished_run / name).read_bytes()


# --- as a process --------------------------------------------------------------------------------


def start(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "prenas", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "40"},
    )


def test_the_command_as_a_process(tmp_path: Path) -> None:
    """Status 2, nothing on stdout, one unbroken line on stderr however narrow the terminal."""
    process = start("search", "digits", "--set", "training.epoch=3", "--out", tmp_path / "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: unknown recipe field 'training.epoch': did you mean")


@pytest.mark.slow
def test_ctrl_c_as_a_process(tmp_path: Path) -> None:
    """The signal itself, in the middle of a training."""
    from training.runs import mini_recipe

    out = tmp_path / "run"
    pipeline.search(mini_recipe(training={"epochs": 500}), out)
    process = start("train", out, "--device", "cpu", "--threads", "1")
    limit = time.monotonic() + 120
    while not (out / "checkpoints" / "step-00000009").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "give the same command again to continue" in err


# --- pictures that nobody named ------------------------------------------------------------------


def test_the_default_folder_of_a_recipe_counts_as_named(
    prenas: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the network would keep ten outputs for three classes."""
    monkeypatch.chdir(tmp_path)
    words = refused(prenas("run", "photos", "--out", "run"), "recipe photos needs pictures")
    assert "--data FOLDER" in words
    assert "./photos, does not exist" in words
    write(tmp_path / "photos", [f"{kind}/{n}.png" for kind in "abc" for n in range(10)])
    small = ("--set", "space.settings.image_size=24", "--budget", "params=200k")
    searched = prenas("search", "photos", *small, "--out", "run")
    assert searched.status == 0, searched.err
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert recipe["space"]["settings"]["num_classes"] == 3
    assert recipe["data"]["root"] == str(tmp_path / "photos")


def test_a_run_folder_that_does_not_exist_offers_the_nearest(
    prenas: Command, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    words = refused(prenas("specialize", tmp_path / "fotos", "--max-params", "1M"))
    assert f"{tmp_path / 'fotos'} does not exist: did you mean {tmp_path / 'photos'}?" in words


# --- images of somebody else ---------------------------------------------------------------------


def digits_in_folders(root: Path, number: int) -> Path:
    """A folder per digit, named as the classes of the run."""
    return write(root, [f"{digit}/{digit}{n}.png" for digit in range(10) for n in range(number)])


def test_other_images_are_named_rightly_and_choose_nothing(
    prenas: Command, finished: Path, tmp_path: Path
) -> None:
    folder = digits_in_folders(tmp_path / "others", 2)
    result = prenas("evaluate", finished, "--data", folder)
    assert (result.status, result.err) == (0, "")
    assert "Accuracies in % on all 20 images.\n" in result.out
    assert re.search(r"^ +all +all *$", result.out, flags=re.MULTILINE)
    for word in ("val", "Choose", "best"):
        assert word not in result.out
    own = prenas("evaluate", finished)
    assert "Choose by validation accuracy; test accuracy is only for reporting." in own.out


def test_a_handed_over_model_is_evaluated(
    prenas: Command, finished: Path, finished_rows: list[Evaluation], tmp_path: Path
) -> None:
    model, folder = finished / "subnets" / "01", digits_in_folders(tmp_path / "others", 2)
    whole = prenas("evaluate", finished, "--data", folder)
    result = prenas("evaluate", model, "--data", folder)
    assert (result.status, result.err) == (0, "")
    params = f"{finished_rows[1].costs['params']:,}"
    (line,) = [line for line in result.out.splitlines() if params in line]
    (same,) = [line for line in whole.out.splitlines() if params in line]
    assert line.split()[1:] == same.split()[1:]
    refused(prenas("evaluate", model), f"{model} is a model and names no images")
    given = ("--arch", SMALLEST.model_dump_json(), "--data", folder)
    refused(prenas("evaluate", model, *given), f"{model} is one model")


def test_other_crops_of_the_runs_own_images_are_not_other_images(
    prenas: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    write(photos, [f"{kind}/{n}.png" for kind in "ab" for n in range(12)])
    small = [word.replace("patch_size=4", "patch_size=48") for word in SMALL[:-2]]
    out, budget = tmp_path / "run", ("--budget", "params=200k")
    assert prenas("search", "photos", "--data", photos, *small, *budget, "--out", out).status == 0
    assert prenas("train", out).status == 0
    result = prenas("evaluate", out, "--crops", "5")
    assert result.status == 0
    assert "Measured with 5 crops per image. The results in the run folder" in result.out
    assert "these images are not the ones" not in caplog.text
    assert not (out / "evaluation.json").exists()
    others = write(tmp_path / "others", [f"{kind}/{n}.png" for kind in "ab" for n in range(3)])
    prenas("evaluate", out, "--data", others)
    assert "these images are not the ones" in caplog.text


# --- spaces and budgets --------------------------------------------------------------------------

SPACE_FILE = """
family: vit
embed_dim: [8, 16]
depth: [1, 2]
num_heads: [1, 2]
mlp_ratio: [1, 2]
patch_size: 12
head_dim: 4
image_size: [24, 24]
in_chans: 3
num_classes: 3
"""


@pytest.fixture
def space_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A space file, next to pictures of two classes."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pictures", [f"{kind}/{n}.png" for kind in "ab" for n in range(12)])
    (tmp_path / "small.yaml").write_text(SPACE_FILE)
    return tmp_path / "small.yaml"


def test_a_space_without_a_recipe_says_which_recipe_trains_it(
    prenas: Command, space_file: Path
) -> None:
    for budget in ([], ["--budget", "params=6k"]):
        result = prenas(
            "run", "--space", "small.yaml", "--data", "pictures", "--out", "run", *budget
        )
        refused(result, "`prenas run photos --space small.yaml --data pictures --out RUN`")
    assert (
        prenas("search", "--space", "small.yaml", "--budget", "params=6k", "--out", "run").status
        == 0
    )


def test_budgets_of_a_recipe_follow_another_space(prenas: Command, space_file: Path) -> None:
    given = ("--space", "small.yaml", "--data", "pictures", "--set", "search.num_images=8")
    result = prenas("search", "photos", *given, "--out", "run")
    assert result.status == 0, result.err
    (budgets,) = pipeline.read_preferred("run").recipe.search.budgets
    assert f"Budgets   {budgets}, because those of the recipe photos" in result.out
    assert "hold no network of the space small" in result.out
    space = pipeline.read_preferred("run").recipe.space
    for arch in (space.smallest, space.largest):
        params = count(arch, space)["params"]
        (held,) = [b for b in parse_budgets([budgets]).kept if b.holds(count(arch, space))]
        assert held.intervals["params"][0] <= params
    chosen = prenas("search", "photos", *given, "--budget", "params=5k", "--out", "other")
    assert chosen.status == 0
    assert "Budgets" not in chosen.out
    kept = prenas("search", "photos", *given, "--set", 'search.budgets=["params=5k"]', "--out", "x")
    assert "Budgets" not in kept.out


def test_a_budget_above_the_largest_network_is_said(prenas: Command, tmp_path: Path) -> None:
    arguments = [*SMALL[:-2], "--budget", "params=1e6", "--budget", "params=2k"]
    result = prenas("search", "digits", *arguments, "--out", tmp_path / "run")
    assert result.status == 0, result.err
    space = pipeline.read_preferred(tmp_path / "run").recipe.space
    needed = count(space.largest, space)["params"]
    lines = [line for line in result.out.splitlines() if "limits nothing" in line]
    assert lines == [
        "The budget params <= 1M limits nothing: the largest network of the space digits needs "
        f"only {needed:,} parameters"
    ]


def test_an_unknown_field_names_few(prenas: Command, tmp_path: Path) -> None:
    result = prenas("search", "digits", "--set", "epochs=3", "--out", tmp_path / "run")
    assert refused(result) == (
        "error: unknown recipe field 'epochs': did you mean 'training.epochs'? `prenas info "
        "RECIPE` lists all\n"
    )
