"""The harness behind every claim about speed; the sections themselves are run by hand."""

import json
import math
import os
import re
import subprocess
import sys
import tarfile
from importlib import import_module
from io import BytesIO
from pathlib import Path

import pytest
import timm
import torch
import torch_pruning
from benchmarks import dinov2, pretrained, pruners, scale, trained_vit
from benchmarks.__main__ import SECTIONS
from benchmarks.gpu.attending import in_one_part
from benchmarks.gpu.command import SECTIONS as GPU_SECTIONS
from benchmarks.gpu.command import main as on_gpu
from benchmarks.gpu.command import short_name
from benchmarks.gpu.sizes import full
from benchmarks.paired import (
    ROOT,
    Options,
    Section,
    command_of,
    peak_bytes,
    ratio,
    take_turns,
)
from benchmarks.pretrained import print_table
from benchmarks.small_data import unpack

from data.making import write
from families.drawing import fill_as_trained
from prenas import artifacts
from prenas.cost import count
from prenas.families.base import check_contains
from prenas.families.vit.attention import attention_at_once, grid_index
from prenas.sources.pretrained import read_pretrained


def test_variants_take_turns_and_each_round_starts_with_another() -> None:
    calls: list[str] = []
    names = "abc"
    seconds = take_turns({n: lambda n=n: calls.append(n) for n in names}, 4, warm_ups=2)  # type: ignore[misc]
    assert "".join(calls) == "abcabc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys(names, 4)


def test_a_ratio_is_the_median_of_rounds_not_of_seconds() -> None:
    found = ratio("x", [1.0, 20.0, 3.0], [1.0, 10.0, 1.0], target=2.0)
    assert (found.median, found.quartiles, found.is_met) == (2.0, (1.5, 2.5), True)
    assert ratio("x", [3.0], [1.0], target=2.0).is_met is False
    assert ratio("x", [3.0], [1.0]).is_met is None


def test_peak_memory_counts_what_is_held_at_once() -> None:
    """Two tensors of 4 MB beside each other, then a third after both are gone."""

    def work() -> None:
        pair = [torch.ones(10**6), torch.ones(10**6)]
        del pair
        torch.ones(10**6)

    assert peak_bytes(work) == pytest.approx(8e6, rel=0.01)


def test_a_command_names_no_place_of_one_machine() -> None:
    words = ["pretrained", "--data", "/data/pictures/waste.tar", "--test=/data/b.tar"]
    words += ["--source", "timm/resnet18=/x/y.pth", "--arms", "gate, best", "--home", "runs/a"]
    assert command_of(words) == (
        "python -m benchmarks pretrained --data waste.tar --test=b.tar "
        "--source timm/resnet18=y.pth --arms 'gate, best' --home runs/a"
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name
)
def test_no_result_names_a_place_of_one_machine(path: Path) -> None:
    commands = re.findall(r'"command": "(.*)"', path.read_text())
    assert not [one for one in commands if re.search(r"(?:^|[\s=])/", one)]


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_can_be_asked(name: str) -> None:
    measure = import_module(f"benchmarks.{name}").measure
    assert measure.__annotations__ == {"options": Options.__name__, "return": Section.__name__}


def test_cuts_of_different_shares_have_lines_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of the same shares are averaged over seeds."""
    measured = [([50, 25], [90.0, 80.0]), ([50, 25], [92.0, 84.0]), ([75], [95.0])]
    print_table(
        [
            {
                "arm": "gate",
                "training": "none",
                "shares": shares,
                "macs_share": shares,
                "top1": top1,
            }
            for shares, top1 in measured
        ]
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "gate" in line]
    assert [line[5] for line in lines] == ["2", "1"]  # seeds
    assert [line[-2] for line in lines] == ["(2.8)", "95.0"]


@pytest.mark.parametrize("classes", [(), ("b",)])
def test_the_first_pictures_of_each_class_are_unpacked(
    classes: tuple[str, ...], tmp_path: Path
) -> None:
    tar = tmp_path / "set.tar"
    with tarfile.open(tar, "w") as archive:
        for name in ("a/1.png", "b/1.png", "a/2.png", "a/0.png", "b/2.png"):
            archive.addfile(tarfile.TarInfo(f"train/{name}"), BytesIO())
    unpack(tar, tmp_path / "set", 2, classes)
    found = {str(path.relative_to(tmp_path / "set")) for path in tmp_path.rglob("*.png")}
    first = {"a/1.png", "a/2.png", "b/1.png", "b/2.png"}
    assert found == {name for name in first if not classes or name[0] in classes}


def test_results_state_what_they_were_measured_on() -> None:
    document = json.loads((ROOT / "results" / "speed.json").read_text())
    assert set(document) == set(SECTIONS)
    for found in document.values():
        assert {"command", "commit", "date", "hardware", "versions", "ratios", "facts"} <= set(
            found
        )
        assert "dirty" not in found["commit"]


def test_an_unknown_section_is_refused_with_the_choices(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "speling", "--out", str(tmp_path / "x.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "unknown section 'speling': choose from attention, supernet" in done.stderr


# --- on an accelerator ---------------------------------------------------------------------------


@pytest.mark.slow
def test_all_sections_for_an_accelerator_run_on_a_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line that a processor can run; then nothing is measured twice, unless it is asked."""
    path = tmp_path / "quick.json"
    words = ["--device", "cpu", "--quick", "--out", str(path)]
    assert on_gpu(words) == 0
    document = json.loads(path.read_text())
    assert tuple(document) == tuple(GPU_SECTIONS)
    for name, found in document.items():
        assert {"command", "commit", "device", "versions", "seconds", "facts"} <= set(found), name
        assert found["ratios"], name
    for name in ("graph", "ours with graphs"):
        fact = document["graph"]["facts"][f"not measured: {name}, batch 2"]
        assert fact.startswith("RuntimeError")
    assert "loader: already measured" not in capsys.readouterr().out
    assert on_gpu([*words, "--sections", "loader,memory"]) == 0
    assert capsys.readouterr().out.count("already measured") == 2
    assert on_gpu([*words, "--sections", "memory", "--again"]) == 0
    assert "memory: already measured" not in capsys.readouterr().out


def test_the_sizes_for_an_accelerator_are_those_of_the_tables() -> None:
    """They are only run there, but everything that they name must exist here."""
    sizes = full()
    macs = count(sizes.mobilenet.archs[0], sizes.mobilenet.settings)["macs"]
    assert macs == pytest.approx(400e6, rel=0.01)
    assert count(sizes.vit.archs[0], sizes.vit.settings)["params"] == pytest.approx(6e6, rel=0.02)
    for subject in (sizes.vit, sizes.mobilenet, sizes.small_set):
        for arch in subject.archs:
            check_contains(subject.supernet, arch)
    with torch.device("meta"):
        assert sizes.rival(0.1).get_classifier() is not None  # type: ignore[operator]


def test_results_of_accelerators_state_what_they_were_measured_on() -> None:
    documents = list((ROOT / "results").glob("gpu-*.json"))
    assert documents
    for document in documents:
        for name, found in json.loads(document.read_text()).items():
            assert name in GPU_SECTIONS
            assert {"command", "commit", "date", "hardware", "versions", "device"} <= set(found)
            assert short_name(found["device"]) == document.stem.removeprefix("gpu-")
            assert "dirty" not in found["commit"]


def test_another_form_of_attention_is_ours_to_rounding() -> None:
    """Output and gradients, on a grid that is no square."""
    grid, generator = (3, 5), torch.Generator().manual_seed(0)
    features = grid_index(*grid, 8, 2).features.double()
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 16, 3, 3, 8), (15, 8), (15, 8))
    ]
    found = []
    for each in (in_one_part, attention_at_once):
        out = each(*inputs, features, grid, 0.3)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        found.append([out, *torch.autograd.grad(out, inputs, cotangent)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sections", "speling"], "unknown section 'speling': choose from training, graph"),
        (["--device", "cpu"], "the full sizes need an accelerator: add --quick"),
        (
            ["--device", "cpu", "--quick", "--out", str(ROOT / "results" / "gpu-h100.json")],
            "results of --quick are meaningless",
        ),
    ],
)
def test_what_would_spoil_results_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        on_gpu(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
    ],
)
def test_results_are_named_after_the_device(device: str, name: str) -> None:
    assert short_name(device) == name


# --- growth --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ("folders", 40),
        ("new_shards", 40),
        ("known_shards", 40),
        ("budgets", 10),
        ("subnets", 2),
        ("depth", 3),
    ],
)
def test_every_part_of_growth_can_be_measured(
    part: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "_PER_FOLDER", 10)
    monkeypatch.setattr(scale, "_PER_SHARD", 10)
    monkeypatch.setattr(scale, "_MOST_LINKS", 2)
    monkeypatch.setenv("PRENAS_DATA", str(tmp_path))
    work = scale.PARTS[part][0](size, tmp_path)
    if part == "known_shards":  # none is read again
        monkeypatch.setattr("prenas.data.shards._made_index", None)
    work()


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_slope_is_that_of_the_power(power: float) -> None:
    rows = [scale.Row(n, 3 * n**power, 0.0) for n in (10, 100, 1000)]
    found = scale.summary(rows)
    assert found["slope"] == pytest.approx(power)
    assert found["at most n log n"] is (power <= 1)
    logarithmic = [scale.Row(n, n * math.log(n), 0.0) for n in (10, 100, 1000)]
    assert scale.summary(logarithmic)["at most n log n"]


def test_results_of_growth_state_what_they_were_measured_on() -> None:
    document = json.loads((ROOT / "results" / "scale.json").read_text())
    assert document.keys() <= scale.PARTS.keys()
    for found in document.values():
        assert {"command", "commit", "date", "hardware", "versions", "rows", "slope"} <= set(found)
        assert "dirty" not in found["commit"]


@pytest.mark.slow
def test_a_transformer_that_was_trained_here_is_cut(tmp_path: Path) -> None:
    """`vit`, then `pretrained --source vit`, which goes on where it was stopped."""
    home, names = tmp_path / "home", [f"{kind}/{n}.png" for kind in "ab" for n in range(12)]
    pictures, others = (write(tmp_path / name, names) for name in ("set", "others"))
    sizes = ["--image-size", "32", "--home", str(home)]
    data = ["--data", str(pictures)]
    trained_vit.main([*data, "--test", str(others), "--epochs", "1", *sizes])
    out = tmp_path / "rows.json"
    words = [*data, "--source", "vit", "--shares", "60", *sizes, "--out", str(out)]
    words += ["--set", "adaptation.epochs=1", "--set", "training.epochs=1"]
    kinds = []
    for arms in (["L1, equal"], ["L1, equal", "joint"]):
        pretrained.main([*words, "--joint", "L1, equal", "--arms", *arms])
        rows = json.loads(out.read_text())["rows"]
        kinds.append([(row["arm"], row["training"]) for row in rows])
        assert all(row["macs_share"][0] <= 60 for row in rows if row["arm"] != "source")
        assert all(0 <= top1 <= 100 for row in rows for top1 in row["top1"])
    first = [("source", "alone"), ("L1, equal", "none")]
    assert kinds == [first, [*first, ("L1, equal", "joint")]]


@pytest.mark.big_data
def test_a_backbone_with_real_weights_is_read(tmp_path: Path) -> None:
    """The command compares its features with those of the file before it writes anything."""
    file = Path(os.environ.get("PRENAS_DATA", "")) / "vit_s_focus.onnx"
    if not file.exists():
        pytest.skip(f"there is no {file}: `python -m benchmarks dinov2 --help` says where it is")
    out = tmp_path / "dinov2.safetensors"
    assert dinov2.main(["--onnx", str(file), "--out", str(out)]) == 0
    _, network = read_pretrained(f"timm/{dinov2.NAME}={out}")
    assert len(network.blocks) == 12


def test_a_pruned_network_of_another_pruner_is_a_source(tmp_path: Path) -> None:
    """All of its widths may be other ones, those between blocks as well."""
    network = fill_as_trained(timm.create_model("test_efficientnet", num_classes=3))
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    pruner = torch_pruning.pruner.BasePruner(
        network,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[network.get_classifier()],
    )
    pruner.step()
    file = tmp_path / "pruned_half.safetensors"
    artifacts.write_tensors(file, network.state_dict())
    source = pruners.read(file, "test_efficientnet")
    _, again = read_pretrained(source.name)
    with torch.no_grad():
        expected, found = network.eval()(images), again.eval()(images)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    widths = source.supernet.network.state_dict()["conv_stem.weight"].shape[0]
    assert widths == timm.create_model("test_efficientnet").conv_stem.out_channels // 2
