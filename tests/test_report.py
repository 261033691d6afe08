"""Tables, pictures and the page of Markdown hold what the run folder holds."""

import csv
import json
import re
import shlex
import shutil
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from edits import write_edited
from families.drawing import ALL_SPACES, archs
from prenas import pipeline
from prenas.cli.tables import print_preferred
from prenas.evaluation.accuracy import Evaluation, Metrics
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.families.vit.space import VitArch
from prenas.models.choice import pick
from prenas.recipe import Recipe, with_overrides
from prenas.recipe.catalogue import get_recipe
from prenas.report import flat_rows, page, render, write_csv
from prenas.report.cells import architecture_panels, block_score_panels, draw_panels
from prenas.report.classes import ClassResult, class_results, draw_confusion
from prenas.report.curves import draw_accuracy, draw_training, grouped, ranges
from prenas.report.forms import words
from prenas.report.intervals import tied_in_words, tied_with_best, wilson_interval
from prenas.report.markdown import code, escape, link, table
from prenas.report.reproduction import command_of
from prenas.runs.log import EpochRecord, MetricsLog, ValidationRecord, read_log
from prenas.selection.preferred import PreferredSet
from training.runs import (
    MINI,
    StoppedError,
    contents,
    hearing,
    mini_recipe,
    own_recipe,
)

pytest_plugins = "training.runs"
pytestmark = pytest.mark.pictures


def row(params: int, *splits: str, top5: float | None = None) -> Evaluation:
    arch = VitArch(embed_dim=params, num_heads=(1, 2), mlp_ratio=(1.5, 2.0))
    return Evaluation(
        arch=arch,
        costs={"params": params, "macs": 3 * params},
        splits={
            name: Metrics(top1=0.1 * number + params / 1000, top5=top5, loss=1.25, num_images=7)
            for number, name in enumerate(splits, start=1)
        },
    )


def test_the_table_holds_every_number(tmp_path: Path) -> None:
    rows = [row(100, "validation", "test"), row(200, "validation", "test", top5=0.75)]
    write_csv(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2
    for number, (line, expected) in enumerate(zip(table, rows, strict=True)):
        assert line["subnet"] == str(number)
        assert int(line["params"]) == expected.costs["params"]
        assert int(line["macs"]) == expected.costs["macs"]
        for split, metrics in expected.splits.items():
            assert float(line[f"{split}_top1"]) == metrics.top1
            assert line[f"{split}_top5"] == ("" if metrics.top5 is None else "0.75")
            assert float(line[f"{split}_loss"]) == metrics.loss
            assert line[f"{split}_num_images"] == "7"
        assert line["embed_dim"] == str(expected.costs["params"])
        assert (line["num_heads"], line["mlp_ratio"]) == ("1 2", "1.5 2")


def test_stages_stand_in_the_table_one_after_the_other(tmp_path: Path) -> None:
    arch = get_space("mobilenet-micro").largest
    write_csv([row(100).model_copy(update={"arch": arch})], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["kernel"], line["width_3"], line["depth_3"]) == ("3 | 5 5 5 | 5 5 5 5", "40", "4")


def test_a_finished_runs_table_is_its_evaluation(finished_run: Path) -> None:
    rows = flat_rows(pipeline.evaluate(finished_run))
    with (finished_run / "evaluation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["params"] for line in table] == [str(row["params"]) for row in rows]
    for split in ("validation", "test"):
        found = [float(line[f"{split}_top1"]) for line in table]
        assert found == [row[f"{split}_top1"] for row in rows]


def test_a_finished_run_has_a_picture(finished_run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished_run, tmp_path / "run")
    for name in ("evaluation.json", "evaluation.csv", "accuracy.png"):
        (out / name).unlink()  # the picture of a shared run may be blank
    pipeline.evaluate(out)
    with Image.open(out / "accuracy.png") as picture:
        picture.verify()
        assert picture.format == "PNG"
        assert min(picture.size) > 300


# --- reading a page back -------------------------------------------------------------------------


class Page(NamedTuple):
    text: str
    tables: dict[str, list[dict[str, str]]]
    """Heading of the section -> rows, each head -> text of the cell."""
    targets: list[str]
    """Of links and pictures."""
    prose: dict[str, str]
    """Heading -> the paragraphs below it."""


def read_page(path: Path) -> Page:
    """Reads Markdown as CommonMark with tables, as GitHub does."""
    text = path.read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    tables: dict[str, list[dict[str, str]]] = {}
    prose: dict[str, str] = {}
    targets: list[str] = []
    heading, heads, cells, place = "", [], [], ""
    for token in tokens:
        place = token.type if token.type.endswith("_open") else place
        if token.type == "inline":
            shown = shown_text(token)
            for child in token.children or []:
                targets += [str(child.attrs[key]) for key in ("href", "src") if key in child.attrs]
            if place == "heading_open":
                heading = shown
            elif place == "th_open":
                heads.append(shown)
            elif place == "td_open":
                cells.append(shown)
            else:
                prose[heading] = prose.get(heading, "") + shown + "\n"
        elif token.type == "tr_close" and cells:
            tables.setdefault(heading, []).append(dict(zip(heads, cells, strict=True)))
            cells = []
        elif token.type == "table_close":
            heads = []
    return Page(text, tables, targets, prose)


def shown_text(token: Token) -> str:
    """What a reader sees of an inline token."""
    kinds = ("text", "code_inline", "text_special")
    return "".join(child.content for child in token.children or [] if child.type in kinds)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take a second; where only the text matters their files are left empty."""

    def touch(draw: Callable[[Figure], None], *paths: Path) -> None:
        for path in paths:
            path.touch()

    monkeypatch.setattr(page, "render", touch)


SUBNETS, STABILITY, REPRODUCTION = (
    "Preferred subnets",
    "Do other seeds agree?",
    "How to reproduce",
)


def check_subnets(shown: Page, preferred: PreferredSet, rows: Sequence[Evaluation]) -> None:
    """Every number of the table is that of preferred.json and evaluation.json."""
    found = shown.tables[SUBNETS]
    assert len(found) == len(preferred.subnets)
    for number, (line, subnet) in enumerate(zip(found, preferred.subnets, strict=True)):
        assert int(line["subnet"]) == number
        assert int(line["params"].replace(",", "")) == subnet.costs["params"]
        assert float(line["MACs, M"].replace(",", "")) * 1e6 == pytest.approx(
            subnet.costs["macs"], rel=5.1e-4
        )
        assert line["architecture"] == subnet.arch.summary
        assert float(line["score"].replace(",", "")) == pytest.approx(subnet.score, abs=0.051)
        choices = [choice for choice in preferred.choices if choice.subnet == number]
        for text, choice in zip(line["lead, %"].split("; "), choices, strict=True):
            if choice.margin is None:
                assert text == "-"
            else:
                assert float(text) == pytest.approx(100 * choice.margin, rel=0.051)
        assert [
            text.split(" (rank")[0] for text in line["budget"].split("; ")
        ] == preferred.budgets_of(number)
        for split, metrics in rows[number].splits.items() if rows else ():
            assert float(line[f"{split} top-1, %"]) == pytest.approx(100 * metrics.top1, abs=0.0051)
            assert float(line[f"{split} loss"]) == pytest.approx(metrics.loss, abs=0.00051)
            if metrics.top5 is not None:
                shown5 = float(line[f"{split} top-5, %"])
                assert shown5 == pytest.approx(100 * metrics.top5, abs=0.0051)
    assert any("top-1" in head for head in found[0]) == bool(rows)


def check_targets(shown: Page, out: Path) -> None:
    """Links lead to what exists, pictures are there in both forms, and no others."""
    assert shown.targets
    for target in shown.targets:
        assert (out / target).exists(), target
    pictures = {target for target in shown.targets if target.startswith("report/")}
    assert pictures == {f"report/{path.name}" for path in (out / "report").iterdir()}
    assert {Path(name).suffix for name in pictures} == {".png", ".svg"}


def new_files(out: Path, before: dict[str, Any]) -> set[str]:
    """The report's files, and others that are new; what was there before must be as it was."""
    after = contents(out)
    kept = {name: content for name, content in before.items() if not name.startswith("report")}
    assert {name: after[name] for name in kept} == kept
    return after.keys() - kept.keys()


# --- at every stage ------------------------------------------------------------------------------


def test_after_the_search(searched: Path) -> None:
    before = contents(searched)
    path = pipeline.report(searched)
    assert path == searched / "report.md"
    assert new_files(searched, before) == {
        "report.md",
        *(f"report/{n}.{s}" for n in ("architectures", "block_scores") for s in ("png", "svg")),
    }
    shown, preferred = read_page(path), pipeline.read_preferred(searched)
    check_subnets(shown, preferred, [])
    check_targets(shown, searched)
    assert "3 preferred subnets; not evaluated yet" in shown.text
    assert "40 architectures; " in shown.text
    num_classes = preferred.num_classes_of_isomers
    scored = f"{num_classes} classes of equally expensive architectures (isomers) scored"
    assert scored in shown.text
    assert "0 of 3 epochs trained" in shown.text
    assert "prenas evaluate searched" in shown.prose["Accuracy and cost"]
    assert "prenas train searched" in shown.prose["Training"]
    assert "--further-seeds" in shown.prose[STABILITY]
    for number in preferred.empty_budgets:
        assert preferred.budgets[number] in shown.prose[SUBNETS]
    assert preferred.empty_budgets
    assert preferred.partial_budgets
    for budget in preferred.partial_budgets:
        assert budget in shown.prose[SUBNETS]


@pytest.mark.usefixtures("without_pictures")
def test_while_training(searched: Path) -> None:
    """After two of three epochs, with the lock held by whoever trains."""

    def watch(progress: Any) -> None:
        if progress.epoch == 2:
            shown = read_page(pipeline.report(searched))
            assert "2 of 3 epochs trained" in shown.text
            assert "After epoch 2 of 3: loss" in shown.prose["Training"]
            check_targets(shown, searched)
            raise StoppedError

    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=watch))
    assert (searched / "report/training.png").exists()


def test_after_everything(finished: Path, finished_rows: list[Evaluation]) -> None:
    before = contents(finished)
    shown = read_page(pipeline.report(finished))
    pictures = ("accuracy", "architectures", "block_scores", "confusion", "training")
    assert new_files(finished, before) == {
        "report.html",  # of the run
        "report.md",
        *(f"report/{name}.{suffix}" for name in pictures for suffix in ("png", "svg")),
    }
    preferred = pipeline.read_preferred(finished)
    check_subnets(shown, preferred, finished_rows)
    check_targets(shown, finished)
    models = [line["model"] for line in shown.tables[SUBNETS]]
    assert models == ["subnets/00", "subnets/01", "subnets/02"]
    assert set(models) <= set(shown.targets)
    best = max(
        range(3),
        key=lambda n: (
            finished_rows[n].splits["validation"].top1,
            -finished_rows[n].costs["params"],
        ),
    )
    row = finished_rows[best]
    assert f"best by validation is subnet {best} ({row.costs['params']:,} parameters" in shown.text
    assert f"test {100 * row.splits['test'].top1:.2f} %" in shown.text
    assert shown.text.count(f"**{100 * row.splits['validation'].top1:.2f}**") == 1
    assert "3 of 3 epochs trained" in shown.text
    last = read_log(finished / "metrics.jsonl").epochs[-1]
    assert f"loss {last.loss:.3f}, learning rate {last.lr:.2e}" in shown.prose["Training"]
    pictures = {ending: [*(finished / "report").glob(f"*.{ending}")] for ending in ("png", "svg")}
    assert all(pictures.values())
    for picture in pictures["png"]:
        with Image.open(picture) as image:
            image.verify()
    for picture in pictures["svg"]:
        assert picture.read_text().rstrip().endswith("</svg>")


def test_the_images_are_named(finished: Path) -> None:
    path = finished / "data.json"
    document = json.loads(path.read_text())
    text = pipeline.report(finished).read_text()
    assert "data digits: train 1,077, validation 360, test 360 images in 10 classes" in text
    write_edited(path, {**document, "notes": ["train: 2 of 9 | cannot be read"]})
    assert (
        r"- **Images:** train: 2 of 9 \| cannot be read." in pipeline.report(finished).read_text()
    )


def test_again_is_the_same(finished: Path) -> None:
    pipeline.report(finished)
    once = {name: content for name, (content, _) in contents(finished).items()}
    pipeline.report(finished)
    assert {name: content for name, (content, _) in contents(finished).items()} == once


@pytest.mark.usefixtures("without_pictures")
def test_a_picture_without_its_source_goes_away(finished: Path) -> None:
    pipeline.report(finished)
    for name in ("evaluation.json", "metrics.jsonl"):
        (finished / name).unlink()
    check_targets(read_page(pipeline.report(finished)), finished)
    assert not (finished / "report/accuracy.png").exists()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    "search",
    [
        pytest.param({"k": 3, "further_seeds": 2}, id="k=3"),
        pytest.param({"k": 2, "exact_optimum": True}, id="optima"),
        pytest.param({"budgets": ("params=2k",)}, id="one-subnet"),
        pytest.param(
            {"budgets": ("params=3k,macs=60k", "params=3k", "params=9M:10M")}, id="shared"
        ),
    ],
)
def test_other_searches(search: dict[str, Any], tmp_path: Path) -> None:
    preferred = pipeline.search(mini_recipe(search=search), tmp_path / "run")
    shown = read_page(pipeline.report(tmp_path / "run"))
    check_subnets(shown, preferred, [])
    check_targets(shown, tmp_path / "run")
    optima = shown.tables.get("Compared with the whole space", [])
    for line, found in zip(optima, preferred.optima, strict=True):
        assert line["budget"] == preferred.budgets[found.budget]
        assert line["params"] == f"{found.costs['params']:,}"
        assert found.gap is not None
        assert float(line["gap, %"]) == pytest.approx(100 * found.gap, rel=0.06)
    assert len(shown.tables.get(STABILITY, [])) == len(preferred.agreement)
    for line, seed in zip(shown.tables.get(STABILITY, []), preferred.agreement, strict=True):
        assert int(line["seed"]) == seed.seed
        assert float(line["tau of S"]) == pytest.approx(seed.score_tau, abs=5.1e-4)
        for axis, tau in seed.block_score_tau.items():
            shown_tau = float(line[f"tau of block scores, {words(axis)}"])
            assert shown_tau == pytest.approx(tau, abs=5.1e-3)
        same = [one for one in seed.same_class if one is not None]
        assert line["same class"] == f"{sum(same)} of {len(same)}"
        options = line["options changed, per budget"].split(", ")
        assert [None if o == "-" else int(o) for o in options] == list(seed.changed_options)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("search", "is_counted"),
    [
        ({"score": "params"}, True),
        ({"score": "params", "strategy": "skeletons", "k": 2}, True),
        ({"score": "params", "strategy": "random"}, True),
        ({"score": "params", "power": 0.5}, False),
        ({"score": "params", "scope": "blocks"}, False),
        ({}, False),
    ],
)
def test_scores_are_left_out_where_they_would_repeat_the_size(
    search: dict[str, Any], is_counted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preferred = pipeline.search(mini_recipe(search=search), tmp_path / "run")
    assert preferred.counts_parameters is is_counted
    if is_counted:
        assert [subnet.score for subnet in preferred.subnets] == [
            subnet.costs["params"] for subnet in preferred.subnets
        ]
    page = pipeline.report(tmp_path / "run")
    heads = set(read_page(page).tables[SUBNETS][0])
    print_preferred(preferred)
    said = capsys.readouterr().out
    header = next(line for line in said.splitlines() if "architecture " in line)
    for name in ("score", "lead"):
        assert any(name in head for head in heads) is not is_counted
        assert (name in header.split()) is not is_counted
    # What a random search drew was not chosen by size.
    is_chosen = is_counted and search.get("strategy") != "random"
    text = page.read_text()
    assert ("The subnets with the most parameters were chosen" in text) is is_chosen
    assert ("chosen by counting parameters (search.score=params)" in said) is is_chosen
    assert "that the lead is over" not in text


def test_a_space_without_choices_in_layers(tmp_path: Path) -> None:
    space = MINI.model_copy(update={"num_heads": (2,), "mlp_ratio": (2.0,)})
    recipe = mini_recipe(space=space, search={"budgets": ("params=9k",)})
    pipeline.search(recipe.model_copy(update={"training": None}), tmp_path / "run")
    shown = read_page(pipeline.report(tmp_path / "run"))
    check_targets(shown, tmp_path / "run")
    assert not (tmp_path / "run/report/block_scores.png").exists()
    assert "Block scores" not in shown.prose
    for heading in ("Accuracy and cost", "Training"):
        assert "only searches" in shown.prose[heading]
    assert "not evaluated yet" not in shown.text


@pytest.mark.usefixtures("without_pictures")
def test_words_of_a_recipe_cannot_break_the_page(tmp_path: Path) -> None:
    name = "a | b *c* <b> `d` [e](f) \n# g"
    recipe = own_recipe(name=name, search={"budgets": ("params=2k",)})
    pipeline.search(recipe, tmp_path / "run`1")
    shown = read_page(pipeline.report(tmp_path / "run`1"))
    assert f"recipe {' '.join(name.split())}, seed 0" in "".join(shown.prose.values())
    check_targets(shown, tmp_path / "run`1")
    assert set(shown.tables) == {SUBNETS, REPRODUCTION}


@pytest.mark.usefixtures("without_pictures")
def test_what_would_steer_a_terminal_is_shown_escaped(tmp_path: Path) -> None:
    out = tmp_path / "run\x07"
    name = "\x1b[31mred\x1b[0m"
    pipeline.search(own_recipe(name=name, search={"budgets": ("params=2k",)}), out)
    text = pipeline.report(out).read_text(encoding="utf-8")
    assert not {c for c in text if ord(c) < 32 and c != "\n"}
    shown = read_page(out / "report.md")
    assert r"recipe \x1b[31mred\x1b[0m, seed 0" in "".join(shown.prose.values())
    assert escape("\u202egnp caf\udce9") == r"\\u202egnp caf\\xe9"
    assert code("a\x1bb\nc") == "```\na\\x1bb\nc\n```"


# --- mistakes ------------------------------------------------------------------------------------


def test_without_a_search(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no finished search"):
        pipeline.report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 1 of .*metrics.jsonl is not a training record"),
        ("\udcff", "line 1 of .*metrics.jsonl is not a training record"),
        ('{"loss": 1.0}', "line 1 of .*metrics.jsonl is not a training record"),
        ('{"epoch": 0, "loss": "low", "lr": 0.1}', "line 1 of .*metrics.jsonl has loss = "),
        ('{"epoch": 0, "loss": NaN, "lr": 0.1}', "line 1 of .*metrics.jsonl has loss = "),
    ],
)
def test_a_damaged_log(line: str, message: str, searched: Path) -> None:
    (searched / "metrics.jsonl").write_bytes((line + "\n").encode(errors="surrogateescape"))
    before = contents(searched)
    with pytest.raises(ValueError, match=message):
        pipeline.report(searched)
    assert contents(searched) == before


def test_a_log_may_hold_more(tmp_path: Path) -> None:
    """Further fields and records of other kinds are left alone, and so is a line cut short."""
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"epoch": 0, "loss": 2.5, "lr": 0.1, "images_per_second": 9.5, "memory": {"gb": 1}}',
        '{"epoch": 0, "kind": "validation", "top1": 0.5}',
        '{"epoch": 1, "loss": 2, "lr": 0.05}',
        '{"epoch": 2, "lo',
    ]
    path.write_text("\n".join(lines))
    assert read_log(path).epochs == [EpochRecord(0, 2.5, 0.1, 9.5), EpochRecord(1, 2, 0.05, None)]
    assert read_log(tmp_path / "none.jsonl").epochs == []


def test_results_of_others_are_refused(finished: Path) -> None:
    path = finished / "evaluation.json"
    document = json.loads(path.read_text())
    document["subnets"].reverse()
    write_edited(path, document)
    with pytest.raises(ValueError, match="belongs to other subnets than preferred"):
        pipeline.report(finished)


# --- how to reproduce ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("digits", []),
        ("tiny", ["seed=3"]),
        ("digits", ["training.epochs=4", "search.further_seeds=2", "training.clip_grad_norm=none"]),
        ("digits", ['search.budgets=["params=1k:9k:2k", "macs=2M"]', "search.score=entropy"]),
    ],
)
def test_the_command_makes_the_recipe(name: str, changes: list[str]) -> None:
    recipe = with_overrides(get_recipe(name), changes)
    parts = shlex.split(command_of(recipe, "a run") or "")
    verb = "run" if recipe.training else "search"
    assert parts[:5] == ["prenas", verb, name, "--out", "a run"]
    assert set(parts[5::2]) <= {"--set"}
    assert with_overrides(get_recipe(name), parts[6::2]) == recipe


@pytest.mark.parametrize(
    "recipe", [mini_recipe(), get_recipe("tiny").model_copy(update={"data": mini_recipe().data})]
)
def test_no_command_makes_a_recipe_from_python(recipe: Recipe) -> None:
    assert command_of(recipe, "run") is None


def test_the_page_holds_the_recipe(searched: Path, without_pictures: None) -> None:
    text = pipeline.report(searched).read_text()
    (found,) = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert Recipe.model_validate(json.loads(found)) == mini_recipe()
    values = {
        line["item"]: line["value"]
        for line in read_page(searched / "report.md").tables[REPRODUCTION]
    }
    preferred = pipeline.read_preferred(searched)
    assert values.items() >= preferred.versions.items()
    assert values["device of the search"] == preferred.device
    assert values["threads of the search"] == str(preferred.num_threads)


# --- forms ---------------------------------------------------------------------------------------


@given(
    cells=st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=["C", "Z"])
            | st.sampled_from(string.punctuation + " ")
        ),
        min_size=2,
        max_size=2,
    )
)
def test_any_text_survives_a_table(cells: list[str]) -> None:
    text = table(["left", "right"], [list(map(escape, cells))])
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    shown = [shown_text(token) for token in tokens if token.type == "inline"]
    assert shown == ["left", "right", *(" ".join(cell.split()) for cell in cells)]


def test_code_and_links() -> None:
    assert code("a ``` b", "sh").splitlines() == ["````sh", "a ``` b", "````"]
    assert link("a", "b") == "[a](b)"


@given(st.sets(st.integers(0, 30), min_size=1))
def test_ranges_say_every_number(numbers: set[int]) -> None:
    said: list[int] = []
    for part in ranges(list(numbers)).split(", "):
        first, _, last = part.partition("-")
        said += range(int(first), int(last or first) + 1)
    assert said == sorted(numbers)


# --- pictures ------------------------------------------------------------------------------------


@given(num_images=st.integers(1, 60_000), data=st.data())
def test_wilson_interval(num_images: int, data: st.DataObject) -> None:
    """Against the closed form (Wilson 1927)."""
    hits = data.draw(st.integers(0, num_images))
    share, n, z = hits / num_images, num_images, 1.959963984540054
    low, high = wilson_interval(Metrics(top1=share, top5=None, loss=1, num_images=num_images))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize("space", ALL_SPACES)
@given(data=st.data())
def test_cells_are_the_architectures(space: SearchSpace, data: st.DataObject) -> None:
    """Stage beside stage, each as wide as the deepest of the subnets has it."""
    shown = data.draw(st.lists(archs(space), min_size=1, max_size=4))
    panels = architecture_panels(shown, space.layer_axes)
    assert [panel.title for panel in panels] == [words(axis.name) for axis in space.layer_axes]
    for panel, axis in zip(panels, space.layer_axes, strict=True):
        per_arch = [arch.layer_options[axis.name] for arch in shown]
        depths = [max(map(len, stages)) for stages in zip(*per_arch, strict=True)]
        assert panel.num_columns == sum(depths)
        for number, (arch, cells) in enumerate(zip(shown, panel.rows, strict=True)):
            options = [
                stage[layer] if layer < len(stage) else None
                for stage, depth in zip(per_arch[number], depths, strict=True)
                for layer in range(depth)
            ]
            for cell, option in zip(cells, options, strict=False):
                assert (cell and cell.text) == (None if option is None else f"{option:g}")
                if cell is not None:
                    assert axis.options[round(cell.shade * (len(axis.options) - 1))] == option
            assert not any(option is not None for option in options[len(cells) :])
            words_before = [str(number), *(f"{v:g}" for v in arch.network_options.values())]
            assert list(panel.labels[number]) == words_before


def test_cells_are_the_block_scores(searched_run: Path) -> None:
    """In % of the largest gain of an axis and stage."""
    preferred = pipeline.read_preferred(searched_run)
    panels = block_score_panels(preferred.block_scores, MINI.chain)
    (stage,) = MINI.chain
    assert len(panels) == len(stage.axes)
    for panel, axis in zip(panels, stage.axes, strict=True):
        (gains,) = preferred.block_scores[axis.name]
        assert [float(label) for (label,) in panel.labels] == list(axis.options[1:])
        largest = max(max(layer) for layer in gains)
        for option, cells in enumerate(panel.rows, start=1):
            for layer, cell in enumerate(cells):
                assert cell is not None
                assert int(cell.text) == pytest.approx(
                    100 * gains[layer][option] / largest, abs=0.51
                )
                assert 0 <= cell.shade <= 1


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("num_layers", [1, 12, 40])
def test_panels_show_every_cell_inside_the_picture(num_layers: int) -> None:
    """However many layers: beside each other or, from 36 columns on, below each other."""
    arch = VitArch(embed_dim=9, num_heads=(2,) * num_layers, mlp_ratio=(3.5,) * num_layers)
    space = MINI.model_copy(update={"mlp_ratio": (1.0, 3.5)})
    panels = architecture_panels([arch], space.layer_axes)
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    draw_panels(figure, panels)
    canvas.draw()
    texts = texts_of(figure)
    assert texts.count("3.5") == num_layers
    assert {"num heads", "mlp ratio", "subnet", "embed dim", "depth", "9"} <= set(texts)
    assert texts.count("embed dim") == (2 if num_layers == 40 else 1)
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    frame = figure.bbox
    for box in boxes:
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number]), texts[number]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row(100, "validation", "test")], id="one"),
        pytest.param([row(100, "validation"), row(90, "validation")], id="no-test"),
        pytest.param([row(100, "validation", "test"), row(100, "validation", "test")], id="equal"),
    ],
)
def test_any_evaluation_can_be_drawn(rows: list[Evaluation], tmp_path: Path) -> None:
    write_csv(rows, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == len(rows) + 1
    render(partial(draw_accuracy, rows=rows, title="a title"), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.convert("L").getextrema() == (pytest.approx(0, abs=40), 255)


@pytest.mark.parametrize("title", ["$\\frac{$ a_b $$", "\x1b[31mred", "caf\udce9", "<b>&--->"])
def test_any_title_can_be_drawn(title: str, tmp_path: Path) -> None:
    """It is no formula, and an SVG is XML, which has no control characters."""
    rows = [row(100, "validation"), row(200, "validation")]
    paths = [tmp_path / "plot.png", tmp_path / "plot.svg"]
    render(partial(draw_accuracy, rows=rows, title=title), *paths)
    ElementTree.parse(paths[1])


def keeps_its_engine(figure: Figure, layout: str | None = None) -> None:
    """`Figure.set_layout_engine`, which does not take one away."""
    if layout is not None:
        figure._layout_engine = ConstrainedLayoutEngine()


def test_a_figure_is_laid_out_once_and_drawn_once_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PNG is the one that matplotlib would have made, to the byte."""
    calls = Counter[str]()

    def counted(kind: type, name: str) -> None:
        original = getattr(kind, name)

        def call(*given: Any) -> Any:
            calls[name] += 1
            return original(*given)

        monkeypatch.setattr(kind, name, call)

    counted(Figure, "draw")
    counted(ConstrainedLayoutEngine, "execute")
    draw = partial(draw_accuracy, rows=[row(100, "validation"), row(200, "validation")])
    paths = [tmp_path / f"plot.{form}" for form in ("png", "svg")]
    render(draw, *paths)
    assert calls == {"draw": 2, "execute": 1}
    monkeypatch.undo()
    monkeypatch.setattr(Figure, "set_layout_engine", keeps_its_engine)
    render(draw, tmp_path / "plain.png")
    assert paths[0].read_bytes() == (tmp_path / "plain.png").read_bytes()


# --- ties ----------------------------------------------------------------------------------------


def measured(*hits: int, num_images: int = 100, split: str = "validation") -> list[Evaluation]:
    return [
        row(100 + number, split).model_copy(
            update={
                "splits": {
                    split: Metrics(top1=n / num_images, top5=None, loss=1.0, num_images=num_images)
                }
            }
        )
        for number, n in enumerate(hits)
    ]


@pytest.mark.parametrize(
    ("hits", "tied", "words"),
    [
        ((50, 90), [], []),
        ((89, 90), [0], ["Subnet 0 ties with the best, subnet 1: on 100 images"]),
        ((90, 20, 89, 88), [2, 3], ["Subnets 2 and 3 tie with the best, subnet 0: on 100 images"]),
        ((90, 90, 90, 90), [1, 2, 3], ["Subnets 1, 2 and 3 tie with the best, subnet 0"]),
        ((7,), [], []),
    ],
)
def test_ties_are_intervals_that_overlap(
    hits: tuple[int, ...], tied: list[int], words: list[str]
) -> None:
    rows = measured(*hits)
    assert tied_with_best(rows) == tied
    found = tied_in_words(rows)
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert sentence.startswith(word)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(1, 3))
def test_more_images_untie(hits: list[int], factor: int) -> None:
    few = set(tied_with_best(measured(*hits, num_images=50)))
    many = set(tied_with_best(measured(*(factor * n for n in hits), num_images=50 * factor)))
    assert many <= few


def test_without_a_validation_nothing_ties() -> None:
    assert tied_in_words(measured(5, 5, split="all")) == []
    assert tied_in_words([]) == []


def test_every_result_is_a_point_with_its_interval() -> None:
    """Against parameters and against MACs, one colour per split."""
    rows = [row(300, "validation", "test"), row(100, "validation", "test")]
    figure = Figure()
    draw_accuracy(figure, rows)
    assert len(figure.axes) == 2
    for axes, scale in zip(figure.axes, (1, 3), strict=True):
        points = [
            line for line in axes.lines if len(line.get_xdata()) and line.get_marker() != "None"
        ]
        for line, bars, split in zip(points, axes.collections, ("validation", "test"), strict=True):
            metrics = [row.splits[split] for row in rows]
            assert list(line.get_xdata()) == [300 * scale, 100 * scale]
            assert line.get_ydata() == pytest.approx([100 * one.top1 for one in metrics])
            ends = [segment[:, 1] for segment in bars.get_segments()]
            expected = [[100 * end for end in wilson_interval(one)] for one in metrics]
            assert ends == [pytest.approx(interval) for interval in expected]
            low, high = axes.get_ylim()
            assert all(low <= end <= high for interval in expected for end in interval)


@given(
    xs=st.lists(st.floats(0, 100), min_size=1, max_size=30),
    letter=st.floats(0.1, 5),
)
def test_names_above_a_panel_do_not_touch(xs: list[float], letter: float) -> None:
    groups = grouped(xs, letter)
    assert sorted(number for group in groups for number in group) == list(range(len(xs)))
    end = -float("inf")
    for group in groups:
        middle = sum(xs[n] for n in group) / len(group)
        half = len(ranges(group)) / 2 * letter
        assert middle - half > end
        end = middle + half


@pytest.mark.parametrize("num_epochs", [1, 300])
def test_curves_are_the_log(num_epochs: int) -> None:
    epochs = [EpochRecord(n, 2 / (n + 1), 0.1, None) for n in range(num_epochs)]
    figure = Figure()
    draw_training(figure, epochs, num_planned=300)
    for axes, name in zip(figure.axes, ("loss", "lr"), strict=True):
        (line,) = axes.lines
        assert list(line.get_xdata()) == list(range(1, num_epochs + 1))
        assert list(line.get_ydata()) == [getattr(epoch, name) for epoch in epochs]
        assert axes.get_xlim()[1] >= 300


def test_curves_of_validation() -> None:
    """A line per subnet and kind of weights; each subnet is named once."""
    epochs = [EpochRecord(n, 1.0, 0.1, None) for n in range(4)]
    validations = [
        ValidationRecord(
            *(epoch, epoch, subnet, {"params": 900 - subnet}), weights, share, None, 1.0, 10
        )
        for epoch, share in ((1, 0.25), (3, 0.5))
        for weights in ("trained", "ema")
        for subnet in (0, 1, 2)
    ]
    figure = Figure()
    draw_training(figure, epochs, 5, validations)
    panel = figure.axes[2]
    assert len(panel.lines) == 6
    for line in panel.lines:
        assert list(line.get_xdata()) == [2, 4]
        assert list(line.get_ydata()) == [25, 50]
    assert len({(line.get_color(), line.get_linestyle()) for line in panel.lines}) == 6
    assert len({line.get_color() for line in panel.lines}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "2"]
    assert all(axes.get_xlim()[1] >= 5 for axes in figure.axes)


def test_validations_and_skipped_steps_are_told(finished: Path) -> None:
    path = finished / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"validation"' not in line]
    path.write_text("\n".join(lines) + "\n")
    before = read_page(pipeline.report(finished)).prose["Training"]
    assert "Validation top-1" not in before
    assert "finite" not in before
    log = MetricsLog(path, step=10**6)
    log.append(
        "validation",
        **{
            "epoch": 2,
            "step": 27,
            "subnet": 0,
            "costs": {"params": 9},
            "weights": "ema",
            "top1": 0.5,
        },
        **{"top5": None, "loss": 1.0, "num_images": 360},
    )
    log.append("epoch", epoch=2, step=27, loss=1.0, lr=0.1, images_per_second=1.0, skipped=2)
    after = read_page(pipeline.report(finished)).prose["Training"]
    assert "Validation top-1 during training, one line per subnet" in after
    assert "2 steps were skipped because the loss or gradient was not finite" in after


# --- classes -------------------------------------------------------------------------------------

UNEVEN = Metrics(
    top1=0.96,
    top5=None,
    loss=0.1,
    num_images=508,
    confusion=((470, 7, 3), (10, 14, 0), (3, 1, 0)),
)
"""480 images of the first class, 24 of the second and 4 of the third."""


def test_classes_are_listed_from_the_weakest_with_what_they_are_taken_for() -> None:
    found = class_results(UNEVEN, ["cat", "dog", "owl"])
    assert found == [
        ClassResult("owl", 0, 4, "cat"),
        ClassResult("dog", 14, 24, "cat"),
        ClassResult("cat", 470, 480, "dog"),
    ]
    assert [one.name for one in class_results(UNEVEN, None)] == ["2", "1", "0"]


def test_classes_without_images_or_mistakes() -> None:
    whole = UNEVEN.model_copy(update={"confusion": ((5, 0, 0), (0, 0, 0), (0, 0, 2))})
    assert class_results(whole, ["cat", "dog", "owl"]) == [
        ClassResult("cat", 5, 5, None),
        ClassResult("owl", 2, 2, None),
    ]
    many = UNEVEN.model_copy(update={"confusion": None, "class_hits": ((1, 2), (3, 3))})
    assert class_results(many, ["cat", "dog"])[0] == ClassResult("cat", 1, 2, None)
    assert class_results(UNEVEN.model_copy(update={"confusion": None}), None) == []


def test_the_page_shows_the_classes_of_the_best_subnet(
    finished: Path, finished_rows: list[Evaluation]
) -> None:
    """On test, as the other sections; and the matrix is a picture."""
    shown = read_page(pipeline.report(finished))
    best = finished_rows[pick(finished_rows, {})].splits["test"]
    assert best.per_class is not None
    assert best.balanced_accuracy is not None
    assert f"balanced accuracy {100 * best.balanced_accuracy:.2f} %" in shown.prose["Classes"]
    lines = shown.tables["Classes"]
    accuracies = [float(line["right, %"]) for line in lines]
    assert accuracies == sorted(accuracies)
    by_hand = {str(n): (hits, size) for n, (hits, size) in enumerate(best.per_class)}
    for line in lines:
        hits, size = by_hand[line["class"]]
        assert (int(line["images"]), line["right, %"]) == (size, f"{100 * hits / size:.2f}")
    assert len(lines) == 10
    assert (finished / "report" / "confusion.png").exists()


def test_the_table_has_the_balanced_accuracy(tmp_path: Path) -> None:
    known = row(100, "validation")
    known = known.model_copy(update={"splits": {"validation": UNEVEN}})
    for one, expected in ((known, f"{UNEVEN.balanced_accuracy}"), (row(100, "validation"), "")):
        write_csv([one], tmp_path / "table.csv")
        with (tmp_path / "table.csv").open(newline="") as file:
            (line,) = csv.DictReader(file)
        assert line["validation_balanced_accuracy"] == expected
        assert not {"validation_confusion", "validation_class_hits"} & set(line)
    assert UNEVEN.balanced_accuracy == pytest.approx((470 / 480 + 14 / 24 + 0) / 3)


def test_classes_that_no_font_can_draw_are_numbered(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    named: list[list[str]] = []

    def draw(figure: Figure) -> None:
        draw_confusion(figure, UNEVEN, ["café", "\U0010fffd", "кот"])
        named.append([label.get_text() for label in figure.axes[0].get_yticklabels()])

    render(draw, tmp_path / "confusion.png")
    assert named == [["café", "1", "кот"]]
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


@pytest.mark.parametrize("num_classes", [2, 3, 26, 41, 100])
def test_the_matrix_is_drawn_for_up_to_100_classes(num_classes: int, tmp_path: Path) -> None:
    """With every name and every share, as long as they fit."""
    counts = np.random.default_rng(0).integers(0, 9, (num_classes, num_classes))
    counts[0] = 0  # a class without images
    metrics = UNEVEN.model_copy(update={"confusion": tuple(map(tuple, counts.tolist()))})
    names = [f"a $long$ name of class {number}" for number in range(num_classes)]
    render(partial(draw_confusion, metrics=metrics, names=names), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.width == picture.height
        assert 400 < picture.width < 1700
