"""The page in a real browser: it draws, chooses as `specialize` does, and stays quiet."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from prenas import artifacts, pipeline
from prenas.evaluation.accuracy import Evaluation
from prenas.models.choice import choose

pytest_plugins = "training.runs"
pytestmark = [pytest.mark.browser, pytest.mark.plotting]

HOSTILE = "<img src=x onerror=alert(1)>"
LIMITS = [
    {},
    {"params": "1.5k"},
    {"params": "2700"},
    {"params": "9k", "macs": "8000"},
    {"macs": "1"},
]

# What a reader does, and what the page then says; it tells the page that frames it.
READER = """
const said = { problems: [], choices: [], axes: [] };
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
(async () => {
  while (!document.querySelector("#frontier-plot svg")) await pause(20);
  for (const limits of $limits) {
    for (const axis of ["params", "macs"]) type(axis, limits[axis] ?? "");
    const name = document.querySelector("#choice .name").textContent;
    said.choices.push([name, document.getElementById("command").textContent]);
  }
  type("params", "rubbish");
  said.refused = document.getElementById("limit-params-problem").textContent;
  for (const axis of ["params", "macs"]) type(axis, "");
  const slider = document.getElementById("limit-params");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  said.slid = document.getElementById("command").textContent;
  for (const axis of ["macs", "file"]) {
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
  said.isDark = getComputedStyle(document.body).backgroundColor === "rgb(20, 24, 28)";
  parent.postMessage(JSON.stringify(said), "*");
})();
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


def read_in(chromium: str, page: Path, profile: Path, width: int, *options: str) -> dict[str, Any]:
    """What the reader above finds on a page.

    The reader's script goes before the page's own, and the policy is told about it.
    """
    script = READER.replace("$limits", json.dumps(LIMITS)).replace("$hostile", json.dumps(HOSTILE))
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    text = text.replace("script-src ", f"script-src 'sha256-{known}' ", 1)
    text = text.replace("<body>", f"<body><script>{script}</script>", 1)
    page.with_name("read.html").write_text(text, encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("$width", str(width)), encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    result = subprocess.run(
        [
            *(chromium, *quiet, f"--user-data-dir={profile}", *options),
            *("--virtual-time-budget=20000", "--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="said">(.+?)</pre>', result.stdout, re.DOTALL)
    assert found is not None, result.stderr[-2000:]
    said: dict[str, Any] = json.loads(unescape(found[1]))
    return said


@pytest.mark.parametrize(("width", "scheme"), [(1600, "light"), (360, "dark")])
def test_a_reader_finds_the_subnet_that_specialize_takes(
    chromium: str,
    finished: Path,
    finished_rows: list[Evaluation],
    tmp_path: Path,
    width: int,
    scheme: str,
) -> None:
    recorded = artifacts.read_json(finished / "data.json")
    names = [HOSTILE, *recorded["class_names"][1:]]
    artifacts.write_json(finished / "data.json", {**recorded, "class_names": names})
    look = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    said = read_in(chromium, pipeline.page(finished), tmp_path / "profile", width, look)
    assert said["problems"] == []
    for limits, (name, command) in zip(LIMITS, said["choices"], strict=True):
        text = ",".join(f"{axis}={amount}" for axis, amount in limits.items())
        try:
            number = choose(finished_rows, None, text or "params=1G")
        except ValueError:
            assert name == "No subnet is within these limits"
            continue
        assert name == f"Subnet {number}"
        option = f"--max {text}" if text else f"--index {number}"
        assert command == f"prenas specialize {finished} {option}"
    smallest = min(row.costs["params"] for row in finished_rows)
    assert said["slid"] == f"prenas specialize {finished} --max params={smallest}"
    assert said["refused"].startswith("Write an amount such as ")
    assert "MACs, M per image" in said["axes"][0]
    assert "model file, MB" in said["axes"][1]
    assert (said["images"], said["text"]) == (0, True)
    scrolled, seen, inner = said["width"]
    assert scrolled == seen
    assert inner == width
    assert said["isDark"] == (scheme == "dark")
