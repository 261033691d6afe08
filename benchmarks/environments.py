"""Handed-over models and exported files where this package is not installed.

    python -m benchmarks environments --model runs/lite/subnets/00 --pictures photos/

Makes three fresh environments with Python's `venv` and installs into them what a user would: timm
alone; ONNX Runtime, NumPy and Pillow; OpenVINO, NumPy and Pillow. Each classifies the same
pictures with the same model, a cut of a convolutional network of timm: timm from the folder
itself, by the lines of the guide, and the engines from files that `prenas export` writes, by
`examples/serving/classify.py`. The probabilities of all classes are compared with those of
`prenas predict`. Results are stored in `results/environments.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.paired import ROOT, Options, environment
from prenas.artifacts import read_json
from prenas.devices.exporting import export
from prenas.devices.prediction import predict
from prenas.models.export import read_description

PACKAGES = {
    "timm": ("timm",),
    "onnx": ("onnxruntime", "numpy", "pillow"),
    "openvino": ("openvino", "numpy", "pillow"),
}
"""Environment -> what is installed into it."""
CLASSIFY = ROOT / "examples" / "serving" / "classify.py"
WITH_TIMM = """
import json, sys
import timm, torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

folder, *pictures = sys.argv[1:]
description = json.load(open(f"{folder}/arch.json"))
described, names = description["timm"], description["class_names"]
model = timm.create_model(
    described["model"], num_classes=described["num_classes"], in_chans=described["in_chans"]
)
model = timm.models.adapt_model_from_string(model, described["shapes"])
model.load_state_dict(load_file(f"{folder}/model.safetensors"))
config = json.load(open(f"{folder}/config.json"))["pretrained_cfg"]
chosen = ("input_size", "interpolation", "mean", "std", "crop_pct")
transform = create_transform(**{name: config[name] for name in chosen})
for picture in pictures:
    images = transform(Image.open(picture).convert("RGB"))[None]
    if "resize" in described:
        images = torch.nn.functional.interpolate(images, **described["resize"])
    with torch.no_grad():
        shares = model.eval()(images).softmax(1)[0][: len(names)]
    classes = [{"name": n, "probability": float(s)} for n, s in zip(names, shares)]
    print(json.dumps({"picture": picture, "classes": classes}))
"""
"""As the guide's page about cuts says."""


def main(words: Sequence[str] | None = None) -> None:
    """Makes the environments, compares, prints and saves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks environments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a handed-over cut")
    parser.add_argument(
        "--pictures", type=Path, required=True, help="a picture or a folder of them"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "environments.json")
    given = parser.parse_args(words)
    if "shapes" not in read_json(given.model / "arch.json").get("timm", {}):
        parser.error(f"{given.model} is no convolutional cut, which timm alone could load")
    rows = [*compare(given.model.absolute(), given.pictures.absolute())]
    document = {**environment(Options(threads=1, rounds=1)), "environments": rows}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    print_rows(rows)


def compare(model: Path, pictures: Path) -> list[dict[str, Any]]:
    """One row per environment."""
    number = len(read_description(model).class_names)
    expected = [one.as_dict() for one in predict(model, [pictures], top=number)]
    names = [one["picture"] for one in expected if "error" not in one]
    rows = []
    for name, packages in PACKAGES.items():
        with tempfile.TemporaryDirectory() as home:
            python = fresh_python(Path(home) / "environment", packages)
            if name == "timm":
                script = Path(home) / "with_timm.py"
                script.write_text(WITH_TIMM)
                words = [script, model, *names]
            else:
                script = Path(home) / "classify_all.py"
                script.write_text(all_classes(number))
                words = [script, export(model, name, out=Path(home) / name).folder, *names]
            told = output_of([python, *words])
            installed = output_of([python, "-m", "pip", "list", "--format=freeze"]).split()
        rows.append(
            {
                "environment": name,
                "installed": [one for one in installed if one.split("==")[0] in packages],
                "has_prenas": any(one.startswith("prenas==") for one in installed),
                **agreement([json.loads(line) for line in told.splitlines()], expected),
            }
        )
    return rows


def fresh_python(folder: Path, packages: Sequence[str]) -> Path:
    """The interpreter of a new environment with these packages."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def all_classes(number: int) -> str:
    """A script that uses the serving example, and prints all classes instead of the first ones."""
    return (
        f"import json, sys; sys.path.insert(0, {str(CLASSIFY.parent)!r})\n"
        "from pathlib import Path\n"
        "from classify import Classifier\n"
        "classifier = Classifier(Path(sys.argv[1]))\n"
        "for name in sys.argv[2:]:\n"
        f"    classes = classifier.classify(Path(name).read_bytes(), top={number})\n"
        "    print(json.dumps({'picture': name, 'classes': classes}))\n"
    )


def output_of(words: Sequence[str | Path]) -> str:
    """What a command prints. Nothing of this process's Python reaches it."""
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    if done.returncode:
        raise SystemExit(f"{words[0]} failed:\n{done.stderr}")
    return done.stdout


def agreement(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> dict[str, Any]:
    """How many pictures have the same likeliest class, and how far probabilities differ at most."""
    theirs = {one["picture"]: one["classes"] for one in expected if "error" not in one}
    num_same, most = 0, 0.0
    for one in found:
        ours, others = (
            {c["name"]: c["probability"] for c in classes}
            for classes in (one["classes"], theirs.pop(one["picture"]))
        )
        assert ours.keys() == others.keys()
        num_same += max(ours, key=ours.__getitem__) == max(others, key=others.__getitem__)
        most = max(most, *(abs(ours[name] - others[name]) for name in ours))
    assert not theirs, "every picture is classified"
    return {"pictures": len(found), "same_class": num_same, "largest_difference": most}


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """One line per environment."""
    table = Table("environment", "installed", "pictures", "same class", "largest difference")
    for row in rows:
        installed, most = ", ".join(row["installed"]), f"{row['largest_difference']:.1e}"
        table.add_row(
            row["environment"], installed, str(row["pictures"]), str(row["same_class"]), most
        )
    Console().print(table)
