"""The HTML page holds what the run holds, chooses as `specialize` does, and loads nothing."""

import base64
import hashlib
import json
import logging
import re
import shutil
import sys
from html.parser import HTMLParser
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prenas import artifacts, pipeline
from prenas.cost import bounded_axis
from prenas.evaluation.accuracy import Evaluation
from prenas.models.choice import choose
from prenas.report.html import content_of, document
from prenas.report.html.content import _keep_classes
from prenas.report.html.library import plotting_library
from prenas.report.html.pictures import thumbnails
from prenas.report.intervals import wilson_interval
from prenas.runs.run import Run
from training.runs import contents, mini_recipe

pytest_plugins = "training.runs"

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\u2028 ]]> &lt;b&gt; \x1b[31m",
)


class Reading(HTMLParser):
    """The tags of a page, and what its scripts contain."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.styles: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        elif self._inside == "style":
            self.styles.append(data)

    @property
    def content(self) -> dict[str, Any]:
        (found,) = (text for kind, text in self.scripts if kind == "application/json")
        return json.loads(found)

    @property
    def policy(self) -> str:
        (found,) = (
            attrs["content"]
            for tag, attrs in self.tags
            if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
        )
        assert found is not None
        return found


def page_of(run: Path, **options: Any) -> Reading:
    return Reading(pipeline.page(run, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    return page_of(finished_run, to=tmp_path_factory.mktemp("page") / "page.html")


# --- the content ---------------------------------------------------------------------------------


def test_the_page_has_the_results_of_the_run(
    page: Reading, finished_run: Path, finished_rows: list[Evaluation]
) -> None:
    (run,) = page.content["runs"]
    assert len(run["subnets"]) == len(finished_rows)
    for subnet, row in zip(run["subnets"], finished_rows, strict=True):
        number = subnet["number"]
        model = finished_run / f"subnets/{number:02d}/model.safetensors"
        assert subnet["amounts"] == {
            "params": row.costs["params"],
            "macs": row.costs["macs"],
            "file": model.stat().st_size,
        }
        assert subnet["summary"] == row.arch.summary
        assert subnet["results"].keys() == row.splits.keys()
        for split, metrics in row.splits.items():
            low, high = wilson_interval(metrics)
            assert subnet["results"][split] == {**metrics.summary, "low": low, "high": high}
    assert run["splits"] == ["validation", "test"]
    assert json.loads(run["recipe"]) == mini_recipe().model_dump(mode="json")
    (training,) = run["trainings"]
    assert [epoch[0] for epoch in training["epochs"]] == [1, 2, 3]


def test_classes_and_mistakes_are_those_of_the_evaluation(
    page: Reading, finished_rows: list[Evaluation]
) -> None:
    (run,) = page.content["runs"]
    for subnet, row in zip(run["subnets"], finished_rows, strict=True):
        metrics, found = row.splits["test"], subnet["classes"]
        matrix = np.zeros((10, 10), dtype=int)
        for label, cells in enumerate(found["confusion"]):
            for predicted, number in zip(cells[::2], cells[1::2], strict=True):
                matrix[label, predicted] = number
        assert matrix.tolist() == [list(counts) for counts in metrics.confusion or ()]
        assert sum(right for _, right, _, _ in found["rows"]) == np.trace(matrix)
        assert metrics.mistakes is not None
        named = [{**one.model_dump(), "picture": None} for one in metrics.mistakes]
        assert [{**one, "picture": None} for one in subnet["mistakes"]] == named


def taken(run: dict[str, Any], limits: dict[str, int]) -> int | None:
    """What the page's script does: the first subnet of the order within every limit."""
    for number in run["order"]:
        amounts = run["subnets"][number]["amounts"]
        if all(amounts[axis] <= limit for axis, limit in limits.items()):
            return number
    return None


@given(shares=st.tuples(st.floats(0.3, 1.6), st.floats(0.3, 1.6)), both=st.booleans())
def test_the_page_takes_what_specialize_takes(
    page: Reading, finished_rows: list[Evaluation], shares: tuple[float, float], both: bool
) -> None:
    (run,) = page.content["runs"]
    names = ["params", "macs"] if both else ["params"]
    middle = finished_rows[1].costs
    limits = {n: max(1, int(s * middle[n])) for n, s in zip(names, shares, strict=False)}
    text = ",".join(f"{n}={bounded_axis(n).format(limit)}" for n, limit in limits.items())
    try:
        expected: int | None = choose(finished_rows, None, text)
    except ValueError:
        expected = None
    assert taken(run, limits) == expected


def test_every_step_of_a_slider_is_a_limit_that_specialize_reads(
    page: Reading, finished_rows: list[Evaluation]
) -> None:
    """It stands for the exact cost of a subnet, in the form that the command takes."""
    (run,) = page.content["runs"]
    for subnet, row in zip(run["subnets"], finished_rows, strict=True):
        for name in ("params", "macs"):
            assert bounded_axis(name).parse(subnet["limits"][name]) == row.costs[name]
            found = choose(finished_rows, None, f"{name}={subnet['limits'][name]}")
            assert taken(run, {name: row.costs[name]}) == found


def test_the_command_names_the_folder_as_a_shell_reads_it(finished: Path, tmp_path: Path) -> None:
    odd = finished.rename(tmp_path / "my run; rm x")
    (run,) = page_of(odd).content["runs"]
    assert run["command"] == f"prenas specialize '{odd}'"


def test_a_run_that_is_not_evaluated_has_no_choice(searched: Path) -> None:
    (run,) = page_of(searched).content["runs"]
    assert run["order"] == []
    assert run["waiting"] == "The subnets are not evaluated yet."
    assert [subnet["results"] for subnet in run["subnets"]] == [{}, {}, {}]
    assert run["trainings"] == []


def test_several_runs_stand_on_one_page(finished: Path, tmp_path: Path) -> None:
    other = shutil.copytree(finished, tmp_path / "elsewhere" / "other")
    same = shutil.copytree(finished, tmp_path / "elsewhere" / finished.name)
    content = page_of([finished, other], to=tmp_path / "two.html").content  # type: ignore[arg-type]
    assert [run["name"] for run in content["runs"]] == ["finished", "other"]
    assert content["title"] == "2 runs compared"
    names = [run["name"] for run in content_of([Run(finished), Run(same)])["runs"]]
    assert names == [str(finished), str(same)]


def test_what_cannot_be_written_is_refused_before_anything_is(
    finished: Path, tmp_path: Path
) -> None:
    before = contents(finished)
    with pytest.raises(ValueError, match="name its file"):
        pipeline.page([finished, finished])
    with pytest.raises(ValueError, match="named twice"):
        pipeline.page([finished, finished], tmp_path / "two.html")
    foreign = tmp_path / "letter.html"
    foreign.write_text("Dear reader")
    with pytest.raises(ValueError, match=r"letter.html exists and is not a page of prenas"):
        pipeline.page(finished, foreign)
    with pytest.raises(ValueError, match="is a folder"):
        pipeline.page(finished, tmp_path)
    with pytest.raises(ValueError, match="nowhere has no finished search"):
        pipeline.page(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere has no finished search"):
        pipeline.page(tmp_path / "nowhere", tmp_path / "pages/nowhere.html")
    assert foreign.read_text() == "Dear reader"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finished", "letter.html"]
    assert contents(finished) == before
    first = pipeline.page(finished).read_bytes()
    assert pipeline.page(finished).read_bytes() == first  # replaces its own, with the same


def test_a_run_does_not_fail_for_want_of_its_page(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (finished / "report.html").unlink()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    plotting_library.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert len(pipeline.run(mini_recipe(), finished)) == 3
    assert "report.html was not written: the HTML page needs vl-convert-python" in caplog.text
    assert (finished / "report.md").exists()
    assert not (finished / "report.html").exists()
    with pytest.raises(ValueError, match="pip install vl-convert-python"):
        pipeline.page(finished)


# --- pictures ------------------------------------------------------------------------------------


def test_thumbnails_are_the_images_that_were_mistaken(page: Reading, finished_run: Path) -> None:
    (run,) = page.content["runs"]
    source: Any = Run(finished_run).images.read().splits["test"]
    shown = 0
    for subnet in run["subnets"]:
        for mistake in subnet["mistakes"]:
            url = run["pictures"][mistake["picture"]]["url"]
            assert url.startswith("data:image/png;base64,")
            with Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
                pixels = torch.from_numpy(np.array(picture)).float() / 255
            image, label = source[mistake["image"]]
            mean, std = mini_recipe().preprocessing.mean[0], mini_recipe().preprocessing.std[0]
            assert torch.allclose(pixels, image[0] * std + mean, atol=0.003)
            assert int(label) == mistake["label"] != mistake["predicted"]
            shown += 1
    assert shown > 12


def test_pictures_can_be_left_out(finished_run: Path, tmp_path: Path) -> None:
    reading = page_of(finished_run, to=tmp_path / "page.html", with_pictures=False)
    (run,) = reading.content["runs"]
    assert run["pictures"] == []
    assert any(subnet["mistakes"] for subnet in run["subnets"])
    assert "data:image" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pictures_stay_within_their_bytes(finished_run: Path) -> None:
    run = Run(finished_run)
    all_of_them = thumbnails(run, "test", range(40), 10**6)
    assert [*all_of_them] == [*range(40)]
    total = sum(len(one.url) for one in all_of_them.values())
    fewer = thumbnails(run, "test", range(40), total // 2)
    assert sum(len(one.url) for one in fewer.values()) <= total // 2
    assert [*fewer] == [*range(len(fewer))]
    assert 15 < len(fewer) < 25


def test_images_that_are_gone_are_said_to_be_gone(finished: Path) -> None:
    path = finished / "data.json"
    document = artifacts.read_json(path)
    artifacts.write_json(path, {**document, "fingerprint": "of other images"})
    (run,) = page_of(finished).content["runs"]
    assert run["pictures"] == []
    assert "not those that the run was evaluated on" in run["no_pictures"]


# --- safety and size -----------------------------------------------------------------------------


def with_class_names(run: Path, names: tuple[str, ...]) -> None:
    recorded = artifacts.read_json(run / "data.json")
    own = [*names, *recorded["class_names"][len(names) :]]
    artifacts.write_json(run / "data.json", {**recorded, "class_names": own})


def test_names_cannot_become_markup(finished: Path, page: Reading) -> None:
    """A parser finds the same tags as without them, and the names as text in the data."""
    with_class_names(finished, HOSTILE)
    reading = page_of(finished, with_pictures=False)
    assert [tag for tag, _ in reading.tags] == [tag for tag, _ in page.tags]
    assert len(reading.scripts) == len(page.scripts)
    (run,) = reading.content["runs"]
    assert run["class_names"][:3] == list(HOSTILE[:3])
    assert run["class_names"][3] == r"\u2028 ]]> &lt;b&gt; \x1b[31m"
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert not any(name in text for name in HOSTILE)


def test_the_scripts_never_write_markup() -> None:
    for asset in (files("prenas.report.html") / "assets").iterdir():
        if asset.name.endswith(".js"):
            found = re.findall(
                r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", asset.read_text()
            )
            assert found == [], asset.name


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_allows_what_the_page_contains_and_nothing_else(page: Reading) -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    code = [text for kind, text in page.scripts if kind is None]
    assert len(code) == 4
    assert rules["script-src"].split() == [f"'sha256-{digest(text)}'" for text in code]
    assert rules["style-src"] == f"'sha256-{digest(''.join(page.styles))}'"
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag


def test_the_page_loads_nothing(page: Reading) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            target = attributes.get(name) or ""
            assert target == "" or target.startswith(("#", "data:")), (tag, name, target)
    assert "url(" not in "".join(page.styles)
    assert "@import" not in "".join(page.styles)


def test_only_a_page_that_follows_a_training_may_ask_for_anything(finished: Path) -> None:
    run = Run(finished)
    followed = Reading(document(content_of([run], live="epoch 1")))
    assert "connect-src 'self'" in followed.policy


def test_matrices_of_the_worst_subnets_give_way_to_size() -> None:
    """With 40 subnets and 100 classes, the best ones keep theirs, and all keep their classes."""
    dense = [[cell for n in range(100) for cell in (n, 17)] for _ in range(100)]
    rows = [[f"class {n}", 5, 9, "another"] for n in range(100)]
    subnets = [{"classes": {"rows": [*rows], "confusion": [*dense]}} for _ in range(40)]
    order = [*reversed(range(40))]
    _keep_classes(subnets, order)
    assert len(json.dumps(subnets)) < 1_300_000
    has_matrix = [subnets[number]["classes"]["confusion"] is not None for number in order]
    assert has_matrix[:10] == [True] * 10
    assert has_matrix == sorted(has_matrix, reverse=True)


@pytest.mark.plotting
def test_a_page_with_its_library_is_smaller_than_three_megabytes(finished: Path) -> None:
    path = pipeline.page(finished, with_pictures=False)
    assert 500_000 < path.stat().st_size < 3_000_000
    scripts = Reading(path.read_text(encoding="utf-8")).scripts
    assert "vegaEmbed" in scripts[1][1]
    assert "</script" not in scripts[1][1].lower()


def test_every_asset_is_in_the_package() -> None:
    """`package-data` in pyproject.toml names the folder, and the page all files in it."""
    names = {asset.name for asset in (files("prenas.report.html") / "assets").iterdir()}
    assert names == {"page.html", "page.css", "choice.js", "plots.js", "page.js"}
    declared = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '"report/html/assets/*"' in declared
