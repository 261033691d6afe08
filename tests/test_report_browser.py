"""The page in a real browser: it draws, chooses as `specialize` does, and stays quiet."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from prenas import artifacts, pipeline
from prenas.cost import bounded_axis
from prenas.evaluation.accuracy import Evaluation
from prenas.models.choice import choose
from prenas.report.html import content_of, document
from prenas.runs.run import Run
from test_latency import in_use
from test_latency import run as timed_run
from test_report_html import taken

__all__ = ["in_use", "timed_run"]  # fixtures of another file

pytest_plugins = "training.runs"
pytestmark = [pytest.mark.browser, pytest.mark.plotting]

HOSTILE = "<img src=x onerror=alert(1)>"
AXE = Path(__file__).parent.parent / "build/node_modules/axe-core/axe.min.js"
SIZES = ("params", "macs")
LIMITS = [
    {},
    {"params": "1.5k"},
    {"params": "2700"},
    {"params": "9k", "macs": "8000"},
    {"macs": "1"},
]

# What a reader does, and what the page then says; it tells the page that frames it.
READER = """
const said = { problems: [], choices: [], reasons: [], axes: [] };
window.addEventListener("error", (event) => said.problems.push(event.message));
document.addEventListener("securitypolicyviolation", (event) =>
  said.problems.push(event.violatedDirective));
for (const level of ["error", "warn"])
  console[level] = (...words) => said.problems.push(words.join(" "));
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const type = (axis, text) => {
  const field = document.getElementById(`limit-${axis}-field`);
  field.value = text;
  field.dispatchEvent(new Event("input"));
};
const axes = $axes;
(async () => {
  while (!document.querySelector("#frontier-plot svg")) await pause(20);
  for (const limits of $limits) {
    for (const axis of axes) type(axis, limits[axis] ?? "");
    const name = document.querySelector("#choice .name").textContent;
    said.choices.push([name, document.getElementById("command").textContent]);
    const lines = [...document.querySelectorAll("#choice p")].map((line) => line.textContent);
    said.reasons.push(lines.filter((line) => line.includes("every subnet takes")));
  }
  said.followed = document.getElementById("x-axis").value;
  type(axes[0], "rubbish");
  said.refused = document.getElementById(`limit-${axes[0]}-problem`).textContent;
  said.unread = document.querySelector("#choice .name").textContent;
  said.isWithoutCommand = document.getElementById("hand-over").hidden;
  type(axes[0], "");
  type(axes.at(-1), "1");
  document.querySelector("[data-pick]").click();
  said.outside = [document.getElementById("choice").textContent];
  document.getElementById("unpick").click();
  said.outside.push(document.querySelector("#choice .name").textContent);
  type(axes.at(-1), "");
  type(axes[0], "5");
  said.bare = document.getElementById(`limit-${axes[0]}-problem`).textContent;
  for (const axis of axes) type(axis, "");
  const slider = document.getElementById(`limit-${axes[0]}`);
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  said.slid = document.getElementById("command").textContent;
  for (const axis of [axes.at(-1), "file", axes[0]]) {
    const select = document.getElementById("x-axis");
    select.value = axis;
    select.dispatchEvent(new Event("change"));
    await pause(400);
    said.axes.push(document.querySelector("#frontier-plot svg").textContent);
  }
  said.images = [...document.images].filter((image) => !image.src.startsWith("data:")).length;
  said.text = document.body.textContent.includes($hostile);
  const root = document.documentElement;
  said.width = [root.scrollWidth, root.clientWidth, window.innerWidth];
  said.points = document.querySelectorAll("#networks tbody tr").length;
  const faults = window.axe ? (await axe.run(document, { preload: false })).violations : [];
  said.faults = faults.filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => [one.id, ...one.nodes.map((node) => node.html.slice(0, 200))]);
  said.isDark = getComputedStyle(document.body).backgroundColor === "rgb(20, 24, 28)";
})().catch((error) => said.problems.push(String(error)))
  .finally(() => parent.postMessage(JSON.stringify(said), "*"));
"""

# A frame may be narrower than the narrowest window of Chromium.
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><pre id="said"></pre>
<script>addEventListener("message", (event) => { said.textContent = event.data; });</script>
<iframe src="read.html" width="$width" height="900" style="border: 0"></iframe>
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs Chromium, which is not installed here")
    return found


class Browser(NamedTuple):
    """Chromium, and how it looks at a page."""

    program: str
    width: int = 1600
    scheme: str = "light"

    def read(
        self,
        page: Path,
        limits: Sequence[dict[str, str]] = LIMITS,
        axes: Sequence[str] = SIZES,
        axe: Path | None = None,
    ) -> dict[str, Any]:
        """What the reader above finds on a page, with limits on these axes.

        The reader's script goes before the page's own, and the policy is told about it; so does
        axe-core, if it is given.
        """
        script = READER.replace("$limits", json.dumps(limits)).replace("$axes", json.dumps(axes))
        script = script.replace("$hostile", json.dumps(HOSTILE))
        added = [script] if axe is None else [axe.read_text(encoding="utf-8"), script]
        digests = [hashlib.sha256(one.encode()).digest() for one in added]
        known = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
        text = page.read_text(encoding="utf-8")
        text = text.replace("script-src ", f"script-src {known} ", 1)
        scripts = "".join(f"<script>{one}</script>" for one in added)
        text = text.replace("<body>", f"<body>{scripts}", 1)
        page.with_name("read.html").write_text(text, encoding="utf-8")
        frame = page.with_name("frame.html")
        frame.write_text(FRAME.replace("$width", str(self.width)), encoding="utf-8")
        found = re.search(r'<pre id="said">(.+?)</pre>', self._dom(frame), re.DOTALL)
        assert found is not None, "the reader said nothing"
        said: dict[str, Any] = json.loads(unescape(found[1]))
        return said

    def _dom(self, frame: Path) -> str:
        """The document of a page after its scripts have run."""
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        look = f"--blink-settings=preferredColorScheme={int(self.scheme == 'light')}"
        with TemporaryDirectory() as profile:
            result = subprocess.run(
                [
                    *(self.program, *quiet, f"--user-data-dir={profile}", look),
                    *("--virtual-time-budget=20000", "--dump-dom", frame.as_uri()),
                ],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
        return result.stdout

    def require_fitting(self, said: dict[str, Any]) -> None:
        """Asserts that the page is quiet, as wide as its window, and in the colours asked for."""
        assert said["problems"] == []
        assert (said["images"], said["text"]) == (0, True)
        scrolled, seen, inner = said["width"]
        assert scrolled == seen
        assert inner == self.width
        assert said["isDark"] == (self.scheme == "dark")


def name_first_class(run: Path) -> None:
    """Gives the first class a hostile name."""
    recorded = artifacts.read_json(run / "data.json")
    names = [HOSTILE, *recorded["class_names"][1:]]
    artifacts.write_json(run / "data.json", {**recorded, "class_names": names})


def require_choices(
    said: dict[str, Any], run: Path, rows: list[Evaluation], limits: Sequence[dict[str, str]]
) -> None:
    """Asserts that the page took what `specialize` takes, and named its command."""
    for limit, (name, command) in zip(limits, said["choices"], strict=True):
        text = ",".join(f"{axis}={amount}" for axis, amount in limit.items())
        try:
            number = choose(rows, None, text or "params=1G")
        except ValueError:
            assert name == "No subnet is within these limits"
            continue
        assert name == f"Subnet {number}"
        option = f"--max {text}" if text else f"--index {number}"
        assert command == f"prenas specialize {run} {option}"


@pytest.mark.parametrize(("width", "scheme"), [(1600, "light"), (360, "dark")])
def test_a_reader_finds_the_subnet_that_specialize_takes(
    chromium: str, finished: Path, finished_rows: list[Evaluation], width: int, scheme: str
) -> None:
    name_first_class(finished)
    browser = Browser(chromium, width, scheme)
    said = browser.read(pipeline.page(finished))
    browser.require_fitting(said)
    require_choices(said, finished, finished_rows, LIMITS)
    smallest = min(row.costs["params"] for row in finished_rows)
    assert said["slid"] == f"prenas specialize {finished} --max params={smallest}"
    assert said["refused"].startswith("Write an amount such as ")
    assert said["unread"] == "No subnet is chosen"
    assert said["isWithoutCommand"], "or it would be one for other limits than are shown"
    picked, again = said["outside"]
    assert "picked by hand" in picked
    assert "It is outside the limits." in picked
    assert again == "No subnet is within these limits"
    assert said["bare"] == ""
    assert said["followed"] == "macs", "the plot shows the cost that was limited last"
    assert "MACs, M per image" in said["axes"][0]
    assert "model file, MB" in said["axes"][1]


def test_a_reader_chooses_by_milliseconds(chromium: str, timed_run: Run) -> None:
    """Amounts in nanoseconds are limits in any unit of time, and rounded nowhere."""
    rows = pipeline.run(timed_run.recipe, timed_run.folder, device="cpu")
    name_first_class(timed_run.folder)
    times = sorted(row.costs["latency"] for row in rows)
    assert times[0] < times[-1]
    limits = [{"latency": f"{time}ns"} for time in times]
    limits += [
        {"latency": f"{(times[0] + 1) / 1000:.3f}us"},
        {"latency": f"{times[-1] / 1e6:.6f}ms"},
    ]
    limits += [{"latency": "5ms"}, {"latency": "1ns"}]
    limits += [{"latency": "5ms", "params": "1.5k"}, {"latency": f"{times[0] - 1}ns"}]
    browser = Browser(chromium, 360)  # the names of times are the widest
    said = browser.read(pipeline.page(timed_run.folder), limits, ("latency", "params"))
    browser.require_fitting(said)
    require_choices(said, timed_run.folder, rows, limits)
    limit = bounded_axis("latency").limit(times[0])
    assert said["slid"] == f"prenas specialize {timed_run.folder} --max latency={limit}"
    assert said["followed"] == "latency"
    assert "predicted latency, ms (torch, 1 thread" in said["axes"][2]
    expected = f"Write an amount such as {limit}, with its unit."
    assert said["bare"] == expected, "5 would be nanoseconds"
    assert said["reasons"][0] == [], "nothing is in the way"
    least = bounded_axis("latency").number(times[0])
    assert f": every subnet takes at least {least}." in said["reasons"][-1][0]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1600, "dark"), (360, "light")])
def test_forty_subnets_of_a_hundred_classes_stay_usable(
    chromium: str, finished: Path, width: int, scheme: str
) -> None:
    content = content_of([Run(finished)])
    make_large(content["runs"][0])
    (run,) = content["runs"]
    page = finished / "large.html"
    page.write_text(document(content), encoding="utf-8")
    browser = Browser(chromium, width, scheme)
    limits = [{}, {"params": "100k"}, {"params": "2k", "macs": "1G"}, {"params": "1"}]
    said = browser.read(page, limits)
    browser.require_fitting(said)
    assert said["points"] == 40
    amounts: tuple[dict[str, int], ...] = ({}, {"params": 10**5}, {"params": 2_000}, {"params": 1})
    for limit, (name, _) in zip(amounts, said["choices"], strict=True):
        number = taken(run, limit)
        expected = "No subnet is within these limits" if number is None else f"Subnet {number}"
        assert name == expected


def make_large(run: dict[str, Any]) -> None:
    """Gives the content of a run forty subnets and a hundred classes, one of them hostile."""
    names = [HOSTILE, *(f"a class with a name of some length, {n}" for n in range(1, 100))]
    matrix = [[cell for n in range(100) for cell in (n, 17)] for _ in names]
    classes = {
        "split": "test",
        "balanced_accuracy": 0.01,
        "rows": [[name, 17, 1700, names[0]] for name in names],
        "confusion": matrix,
        "is_shortened": False,
    }
    known = len(run["subnets"])
    for number in range(known, 40):
        like = run["subnets"][number % known]
        factor = 1 + number // known
        amounts = {axis: factor * amount for axis, amount in like["amounts"].items()}
        run["subnets"].append({**like, "number": number, "amounts": amounts})
    for subnet in run["subnets"]:
        subnet["classes"] = classes
    for panel in run["architectures"]:
        panel["rows"] = [panel["rows"][number % known] for number in range(40)]
        panel["labels"] = [[str(number)] for number in range(40)]
    run["order"] = [*reversed(range(40))]
    run["class_names"] = names


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(chromium: str, finished: Path, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip("needs axe-core: npm install --prefix build axe-core")
    name_first_class(finished)
    page = pipeline.page(finished)
    assert Browser(chromium, scheme=scheme).read(page, axe=AXE)["faults"] == []
    text = page.read_text(encoding="utf-8")
    text = text.replace('<html lang="en">', "<html>", 1)
    page.write_text(text.replace("<body>", "<body><img src='data:,'>", 1), encoding="utf-8")
    (language, image) = Browser(chromium, scheme=scheme).read(page, axe=AXE)["faults"]
    assert (language[0], image[0]) == ("html-has-lang", "image-alt"), "it finds what is planted"
