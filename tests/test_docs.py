"""What the documents promise runs as written."""

from __future__ import annotations

import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import typer.main
from typer.testing import CliRunner

import prenas
from families.drawing import fill_as_trained
from prenas.cli import app
from prenas.devices.measuring import get_engine
from prenas.families import FAMILIES, all_spaces
from prenas.families.timm_cut import pretrained
from prenas.latency import Fit, LatencyTable, use_table
from prenas.recipe import TrainingRecipe, flat_fields, with_overrides
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.catalogue import (
    CUT_RECIPES,
    RECIPES,
    TRANSFER_RECIPES,
    get_recipe,
    get_transfer_recipe,
)
from prenas.recipe.data import Augmentation
from prenas.recipe.space_file import read_space

ROOT = Path(__file__).resolve().parent.parent
GUIDE = "docs/guide"
TUTORIALS = "docs/tutorials"  # `test_tutorials.py` runs them
FOLDERS = (GUIDE, TUTORIALS)
"""Of each, the pages, in the order in which `index.md` lists them, are one document here."""
FOR_USERS = ["README.md", *FOLDERS]
DOCUMENTS = [*FOR_USERS, "docs/method.md", "docs/extending.md", "CONTRIBUTING.md"]
PAGES = [
    str(page.relative_to(ROOT)) for name in FOLDERS for page in sorted((ROOT / name).glob("*.md"))
]
WITH_LINKS = [
    *(document for document in DOCUMENTS if document not in FOLDERS),
    *PAGES,
    "CHANGELOG.md",
    "docs/decisions.md",
    "results/README.md",
]

PROGRAM = typer.main.get_command(app)
COMMANDS = PROGRAM.commands  # type: ignore[attr-defined]


def read(document: str) -> str:
    if document not in FOLDERS:
        return (ROOT / document).read_text(encoding="utf-8")
    index = read(f"{document}/index.md")
    pages = re.findall(r"^\| \[[^]]+\]\((\w[\w-]*\.md)\)", index, flags=re.MULTILINE)
    return "\n".join([index, *(read(f"{document}/{page}") for page in pages)])


def section(document: str, heading: str) -> str:
    """The text below a heading of the second level."""
    return read(document).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    """What stands between backticks, outside the fenced blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def shown_commands(text: str) -> list[str]:
    """Every `prenas ...` line of the blocks, started by torchrun or accelerate too, bare."""
    lines = [line.split("#")[0] for _, block in code_blocks(text) for line in block.splitlines()]
    found = [re.search(r"(?:^|-m )(prenas .*)", line.removeprefix("$ ")) for line in lines]
    return [match[1].strip() for match in found if match]


def named_commands(text: str) -> list[str]:
    """Every `prenas ...` in running text, which may leave arguments out."""
    return [span for span in code_spans(text) if re.match(r"prenas [a-z]+( |$)", span)]


def examples(*documents: str) -> list[str]:
    return sorted({command for name in documents for command in shown_commands(read(name))})


def parsed(command: str) -> tuple[str, dict[str, object]]:
    """The command's name and the values of its options, as the real command line reads them."""
    _, *words = shlex.split(command.replace("[", "").replace("]", ""))
    while words[0] == "--import":  # before the command, with a file
        words = words[2:]
    name, *words = words
    return name, COMMANDS[name].make_context(name, list(words)).params


def test_the_site_shows_every_page_and_every_public_name() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = set(re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", settings, flags=re.MULTILINE))
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= shown
    assert all((ROOT / page).exists() for page in shown)
    reference = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    names = re.findall(r"^::: prenas\.(\w+)$", reference, flags=re.MULTILINE)
    assert sorted(names) == sorted(prenas.__all__)


# --- commands ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quickstart_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "examples/quickstart.py", tmp_path],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "a picture of a zero: class" in result.stdout
    assert (tmp_path / "run" / "preferred.json").exists()


def test_an_index_lists_every_page_and_what_it_is_for() -> None:
    for page in PAGES:
        index = read(f"{Path(page).parent}/index.md")
        assert page.endswith("index.md") or f"]({Path(page).name})" in index
        title, _, lead, *_ = read(page).splitlines()
        assert title.startswith("# ")
        assert page.endswith("index.md") or lead.startswith("You will ")


def test_the_guide_shows_every_command() -> None:
    assert {shlex.split(command)[1] for command in examples(GUIDE)} == set(COMMANDS)


@pytest.mark.parametrize("command", examples(*DOCUMENTS))
def test_command_is_read_by_the_command_line(command: str) -> None:
    """Unknown commands, options and missing arguments raise."""
    parsed(command)


@pytest.mark.parametrize("command", examples(*FOR_USERS))
def test_what_a_command_names_exists(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipes, spaces, budgets and the fields of `--set`: unknown ones raise."""
    monkeypatch.chdir(tmp_path)
    (space, *_) = [text for language, text in guide_blocks() if language == "yaml"]
    Path("my_space.yaml").write_text(space, encoding="utf-8")
    name, options = parsed(command)
    if options.get("budget"):
        texts = without_shares(options["budget"])  # type: ignore[arg-type]
        use_table(ANY_TIMES if options.get("latency") else None)
        try:
            assert parse_budgets(texts)
        finally:
            use_table(None)
    if space_name := options.get("space"):
        assert space_name in all_spaces() or read_space(Path(str(space_name)))
    if "--import" in command:  # of a name that the file adds
        return
    if source := options.get("start_from"):
        assert timm.is_model(str(source).removeprefix("timm/"))
    elif name in ("run", "search"):
        if options["recipe"] is None:
            assert options["space"]
            assert options["budget"]
        else:
            recipe = get_recipe(str(options["recipe"]))
            with_overrides(recipe, options["overrides"] or ())  # type: ignore[arg-type]
    if name == "finetune":
        get_transfer_recipe(str(options["recipe"]))
        with_overrides(get_recipe("digits"), options["overrides"] or ())  # type: ignore[arg-type]
    if name == "info":
        what = options["name"]
        known = {None, "my_space.yaml", *RECIPES, *TRANSFER_RECIPES, *CUT_RECIPES, *all_spaces()}
        assert what in known


@pytest.mark.parametrize(
    "command",
    sorted({one for name in [*FOR_USERS, "docs/method.md"] for one in named_commands(read(name))}),
)
def test_command_in_running_text_has_these_options(command: str) -> None:
    _, name, *words = shlex.split(command.replace("...", ""))
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


ANY_TIMES = LatencyTable(
    conditions=get_engine("torch").conditions,
    space="tiny",
    fit=Fit(num_networks=2, median_error=0, worst_error=0, rank_correlation=1, noise_floor=0),
    seconds=1,
    entries={},
)

OF_OTHERS = {
    "torchrun": {"--max-restarts"},
    "training code of the authors": {
        "--scale-attn", "--scale-mlp", "--scale-embed", "--switch-ln", "--gp", "--change_qkv",
    },
}  # fmt: skip


def without_shares(budgets: Iterable[str]) -> list[str]:
    """Budgets in which shares of a source, such as macs=50%, are amounts."""
    in_amounts = [re.sub(r"latency=[0-9.]+%", "latency=1ms", budget) for budget in budgets]
    return [re.sub(r"([0-9.]+)%", r"\1M", budget) for budget in in_amounts]


@pytest.mark.parametrize("document", [*FOR_USERS, "docs/method.md"])
def test_options_in_running_text_exist(document: str) -> None:
    ours = {
        option
        for command in (PROGRAM, *COMMANDS.values())
        for parameter in command.params
        for option in parameter.opts
    }
    spans = [span for span in code_spans(read(document)) if span.startswith("--")]
    words = {word for span in spans for word in span.split() if word.startswith("--")}
    assert words
    assert words <= ours.union(*OF_OTHERS.values())
    budgets = [text for span in spans for text in re.findall(r"--budget (\S+)", span)]
    assert not budgets or parse_budgets(without_shares(budgets))


def test_the_example_of_a_wrong_command_is_caught() -> None:
    """The checks above see what they are there for."""
    for wrong in ("prenas runn digits", "prenas run digits --outt x", "prenas train"):
        with pytest.raises(Exception, match=r"runn|No such option|Missing parameter"):
            parsed(wrong)


# --- fields --------------------------------------------------------------------------------------


def known_fields() -> set[str]:
    """Every field of a recipe, groups included, with teacher and evolution switched on.

    Those of all kinds of search spaces are among them.
    """
    recipe = with_overrides(
        get_recipe("mobilenet-small"),
        ["evolution={}", "training.teacher.name=deit_tiny_patch16_224"],
    )
    names = {name for name, _ in flat_fields(recipe)}
    kinds = [family.space_type for family in FAMILIES.values()]
    names |= {f"space.{field}" for kind in kinds for field in kind.model_fields}
    return {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}


def named_fields(document: str) -> Iterator[str]:
    """The field of every `training.epochs=3` or `data.root` in running text."""
    groups = "calibration|data|evolution|search|space|training"
    for span in code_spans(read(document)):
        found = re.fullmatch(rf"(?:--set )?((?:{groups})\.[a-z_.]+)(?:=\S+)?", span)
        if found and not found[1].endswith((".json", ".safetensors")):
            yield found[1]


@pytest.mark.parametrize("document", [GUIDE, "docs/method.md"])
def test_fields_in_running_text_exist(document: str) -> None:
    named = set(named_fields(document))
    known = known_fields()
    assert len(named) >= 3
    assert named <= known
    assert "training.epoch" not in known


def first_column(text: str) -> list[str]:
    """The code spans of the first cell of every row."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_tables_of_fields_name_existing_fields() -> None:
    augmentation = first_column(section(GUIDE, "Augmentation"))
    assert len(augmentation) > 10
    assert set(augmentation) <= set(Augmentation.model_fields)
    training = first_column(section("docs/method.md", "4. Preferred one-shot training"))
    fields = {name.split("=")[0].split(".")[0] for name in training if "=" in name}
    assert len(fields) > 5
    assert fields <= set(TrainingRecipe.model_fields)


@pytest.mark.parametrize("document", [GUIDE, "docs/method.md", "docs/extending.md"])
def test_python_names_and_files_in_running_text_exist(document: str) -> None:
    spans = code_spans(read(document))
    names = {span for span in spans if re.fullmatch(r"prenas(\.\w+)+", span)}
    assert names
    for name in names:
        pkgutil.resolve_name(name)  # raises, if there is no such thing
    modules = [span for span in spans if re.fullmatch(r"(prenas/)?\w+/[\w/]*(\.py)?", span)]
    for module in modules if document == "docs/method.md" else ():
        assert (ROOT / "src/prenas" / module).exists() or (ROOT / module).exists(), module


# --- the guide, run ------------------------------------------------------------------------------


def guide_blocks() -> list[tuple[str, str]]:
    return code_blocks(read(GUIDE))


def invoke(command: str, *more: str) -> str:
    _, *words = shlex.split(command)
    result = CliRunner().invoke(app, [*words, *more])
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.output


def subnets_shown(text: str) -> list[str]:
    """Number, costs and architecture of every row of a table of subnets."""
    return re.findall(
        r"^ (\d+ +[\d,]+ +[\d.]+ +\d+ x \d+, heads \S+, ratio \S+)", text, re.MULTILINE
    )


@pytest.mark.slow
def test_the_guides_walk_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps in order, then what it says about the finished run, with a short training."""
    monkeypatch.chdir(tmp_path)
    steps = shown_commands(section(GUIDE, "A run, step by step"))
    assert [shlex.split(step)[1] for step in steps] == [
        "search", "train", "calibrate", "evaluate", "specialize", "report",
    ]  # fmt: skip
    later = [
        command
        for command in shown_commands(read(GUIDE).split("\n## The report\n")[1])
        if re.match(r"prenas (run digits --out runs/digits|\w+ runs/digits)", command)
        and not re.search(r"--(track|arch|data)\b|runs/other|^prenas watch", command)
    ]
    assert {shlex.split(command)[1] for command in later} >= {"run", "status", "specialize"}
    budgets = [one for one in examples(GUIDE) if one.endswith("--out runs/budgets")]
    assert budgets
    for command in [*steps, *later, *budgets]:
        short = ["--set", "training.epochs=2"] if " digits " in command else []
        threads = [] if re.search(r" (report|status) |--threads", command) else ["--threads", "1"]
        output = invoke(command, *short, *threads)
        if command == steps[0]:
            assert len(subnets_shown(output)) == 6
            for document in ("README.md", GUIDE):
                text = section("README.md", "Try it") if document == "README.md" else read(document)
                assert set(subnets_shown(output)) <= set(subnets_shown(text)), document
    assert Path("runs/digits/report.md").exists()
    assert Path("models/digits-3/arch.json").exists()
    exercise_python_on(Path("runs/digits"))


def exercise_python_on(run: Path) -> None:
    """The guide's snippets about a finished run."""
    import torch

    snippets = [text for language, text in guide_blocks() if language == "python"]
    about_runs = [text for text in snippets if re.search(rf'[":]{run}', text)]
    assert len(about_runs) == 4
    names: dict[str, object] = {"images": torch.randn(2, 1, 8, 8)}
    for text in about_runs:
        exec(compile(text, GUIDE, "exec"), names)
    assert names["logits"].shape == (2, 10)  # type: ignore[attr-defined]


def test_python_of_the_guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The guide's own-data snippet, its dots filled with generated images and a short training."""
    import torch
    from torch.utils.data import TensorDataset

    (snippet,) = [text for language, text in guide_blocks() if "ImageData(" in text]
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    split = TensorDataset(images, torch.arange(20) % 5)
    filled = snippet.replace("train=..., validation=...", "train=split, validation=split")
    filled = filled.replace("epochs=50", "epochs=1")
    assert filled.count("split") == 2
    assert "epochs=1)" in filled
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"split": split}
    exec(compile(filled, GUIDE, "exec"), names)
    logits = names["network"](images)  # type: ignore[operator]
    assert logits.shape == (20, 5)
    assert (tmp_path / "runs/mine/preferred.json").exists()


def test_the_training_loop_of_the_guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a few random batches; the networks on shared weights that the page names, too."""
    import torch

    from prenas.training.gradients import GradientBuffer

    (snippet,) = [text for language, text in guide_blocks() if "loss.backward()" in text]
    batches = [(torch.randn(4, 1, 8, 8), torch.arange(4)) for _ in range(7)]
    names: dict[str, Any] = {
        "prenas": prenas, "torch": torch, "recipe": prenas.get_recipe("digits"), "loader": batches
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, GUIDE, "exec"), names)
    supernet, images = names["supernet"], batches[0][0]
    assert torch.equal(names["network"](images), supernet(images, names["arch"]))
    buffer = GradientBuffer(supernet.train().parameters())
    network = supernet.bound(names["arch"])
    buffer.zero()
    network(images).sum().backward()
    assert buffer.norm() > 0


# --- the README, run -----------------------------------------------------------------------------


def test_python_of_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its block on a picture, with a short training."""
    import numpy as np
    from PIL import Image

    (snippet,) = [text for language, text in code_blocks(read("README.md")) if language == "python"]
    recipe = 'prenas.get_recipe("digits")'
    assert snippet.count(recipe) == 1
    short = f'prenas.with_overrides({recipe}, ["training.epochs=1"])'
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"picture": Image.fromarray(np.zeros((20, 30), dtype=np.uint8))}
    exec(compile(snippet.replace(recipe, short), "README.md", "exec"), names)
    assert names["logits"].shape == (1, 10)  # type: ignore[attr-defined]
    assert len(names["rows"]) == 6  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_walk_on_own_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands of the README and of the tutorial on a folder of pictures.

    With a short training, and of the four models that the first of them announces only one.
    """
    import numpy as np
    from PIL import Image

    commands = shown_commands(section("README.md", "On your own pictures"))
    names = [shlex.split(command)[1] for command in commands]
    assert names == ["run", "run", "specialize", "predict", "export"]
    assert shown_commands(read(f"{TUTORIALS}/own-pictures.md")) == commands
    generator = np.random.default_rng(0)
    for place, (name, ending) in enumerate((("cat", "jpg"), ("dog", "png"))):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 128, (90, 120, 3)) + 127 * place
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.{ending}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(  # nothing is downloaded
        pretrained,
        "trained_model",
        lambda name: fill_as_trained(timm.create_model(name)),
    )
    short = ["--set", "training.epochs=1", "--set", "adaptation.epochs=1", "--image-size", "48"]
    changes = [short, [*short, "--budget", "macs=50%"], [], [], []]
    announced, *_, predicted, exported = (
        invoke(command, *words, "--threads", "1")
        for command, words in zip(commands, changes, strict=True)
    )
    assert len({*re.findall(r"channels \d+%", announced)}) == 5  # with the whole network
    assert all(word in predicted for word in ("photos/cat/1.jpg", "cat", "dog", "%"))
    assert (tmp_path / "runs/photos/report.md").exists()
    (model,) = (tmp_path / "runs/photos/subnets").iterdir()
    assert (model / "onnx/model.onnx").exists()
    assert f"subnets/{model.name}/onnx/model.onnx" in exported


def test_the_readme_is_short_and_explains_its_words() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 130
    for word in ("isomer", "envelope", "block score", " lead "):
        assert word not in text, f"{word!r} is explained in the guide, not here"
    for term in ("search space", "budgets", "score", "supernet", "subnets"):
        assert text.index(f"**{term}**") < text.index("## Install"), term


# --- links ---------------------------------------------------------------------------------------


def test_no_placeholder_is_left() -> None:
    for document in DOCUMENTS:
        assert not re.search(r"@[A-Z]+@", read(document)), document


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", WITH_LINKS)
def test_links_lead_somewhere(document: str) -> None:
    """Relative links point at files of the repository and at headings that exist."""
    path = ROOT / document
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", read(document)):
        goal = path.parent / target if target else path
        assert goal.exists(), f"{document} links to missing {target}"
        assert not anchor or anchor in anchors(goal), f"{document}: no heading #{anchor} in {goal}"
