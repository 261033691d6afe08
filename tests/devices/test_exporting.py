"""Exported files: they compute what their models do, elsewhere too, or they are not kept."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from typer.testing import CliRunner

import prenas
from edits import replace_text, write_edited
from families.drawing import (
    TEST_SPACES,
    fill_as_trained,
    images_for,
    some_branches_left_out,
    timm_space,
)
from models.handed_over import drawn_model, written_model
from prenas import artifacts
from prenas.cli import app
from prenas.cost import count
from prenas.data import num_samples
from prenas.devices import exporting, formats
from prenas.devices.card import Card, read_card
from prenas.devices.exporting import export
from prenas.devices.formats import Format, Pixels, Written, get_format
from prenas.devices.prediction import predict
from prenas.devices.timing import Latency
from prenas.devices.verification import Agreement
from prenas.evaluation.calibration import calibrate
from prenas.families.base import SearchSpace
from prenas.models.cut import verified_cut
from prenas.models.export import load, load_described
from prenas.runs.run import Run
from prenas.supernet import Supernet
from training.runs import contents

pytest_plugins = "sources.cut_runs"

ONNX, TORCH = "prenas.devices.onnx_format", "prenas.devices.torch_format"


@pytest.fixture
def model(cut_run: Path, tmp_path: Path) -> Path:
    """A copy of a handed-over model, outside its run."""
    copy: Path = shutil.copytree(cut_run / "subnets/00", tmp_path / "model")
    return copy


# --- what a file computes ------------------------------------------------------------------------


AWKWARD = [
    pytest.param(space, id=f"{family}-{space.name}")
    for family, spaces in TEST_SPACES.items()
    for space in (spaces if family == "timm" else spaces[1:2])
]
"""Per family, the space with odd sizes; of timm, a convolutional network and a Transformer."""


@pytest.mark.parametrize("space", AWKWARD)
def test_a_subnet_is_the_same_network_all_the_way_to_the_engine(
    space: SearchSpace, tmp_path: Path
) -> None:
    """Supernet, plain network, safetensors, this package, timm, ONNX, and ONNX Runtime, which is
    opened here and not by the export; for any number of images."""
    import onnxruntime

    supernet = Supernet(space.largest, space.settings)
    fill_as_trained(supernet.network)
    arch = space.sample(np.random.default_rng(3))
    statistics = calibrate(supernet, [arch], [images_for(space, 8, seed=n) for n in range(2)])[0]
    network = verified_cut(supernet, arch, images_for(space, 4), statistics)
    model = written_model(space, arch, network, tmp_path / "model")
    folder, card = export(model, "onnx")
    assert card.agreement.difference <= 1e-5
    assert card.agreement.same_class == 1
    session = onnxruntime.InferenceSession(folder / card.file, providers=["CPUExecutionProvider"])
    loaded = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    for size in (1, 2, 7):
        images = images_for(space, size, seed=size)
        (in_the_engine,) = session.run(None, {card.input: images.numpy()})
        with torch.inference_mode():
            expected = supernet.eval()(images, arch, statistics=statistics)
            found = [network(images), load(model).network(images), loaded(images)]
        assert float(expected.abs().max()) > 0
        for logits in (*found, torch.from_numpy(in_the_engine)):
            assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["onnx", "torch", "openvino"])
def test_a_network_that_resizes_its_images_computes_the_same(name: str, tmp_path: Path) -> None:
    """In OpenVINO too, whose own smoothed resizing is another one."""
    pytest.importorskip(name, reason=f"{name} is not installed")
    space = timm_space("test_resnet", 40).model_copy(update={"resolution": (24, 40)})
    assert space.smallest.resized_to == 24
    model = drawn_model(space, space.smallest, tmp_path / "model")
    _, card = export(model, name)
    assert card.agreement.difference <= 1e-5
    assert card.input_shape[2:] == (40, 40)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_network_without_some_branches_computes_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    space = some_branches_left_out(32)
    _, card = export(drawn_model(space, space.largest, tmp_path / "model"), name)
    assert card.agreement.difference <= 1e-5


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_other_formats_compute_the_same(name: str, model: Path) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    folder, card = export(model, name, threads=1)
    run = get_format(name).open(folder / card.file, 1)
    network = load(model).network
    for size in (1, 3):
        images = torch.randn(size, *card.input_shape[1:], generator=torch.manual_seed(size))
        with torch.inference_mode():
            expected = network(images)
        found = torch.from_numpy(run(images.numpy()))
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_biases_of_an_openvino_file_are_constants(model: Path) -> None:
    """Otherwise int8 does not correct them."""
    folder, card = export(model, "openvino")
    nodes = nodes_of(folder / card.file)
    convolutions = [node for node in nodes if "Convolution" in node.get_type_name()]
    assert len(convolutions) > 5
    for node in convolutions:
        (consumer,) = (one.get_node() for one in node.output(0).get_target_inputs())
        assert consumer.get_type_name() == "Add"
        assert source_of(consumer, 1).get_type_name() == "Constant"


def test_relative_positions_are_looked_up_as_each_engine_likes(tmp_path: Path) -> None:
    """OpenVINO has a fast kernel for one operation, and ONNX Runtime for the other."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    space = TEST_SPACES["vit"][1]
    model = drawn_model(space, space.smallest, tmp_path / "model")
    folder, card = export(model, "onnx")
    kinds = [node.op_type for node in onnx.load(folder / card.file).graph.node]
    folder, card = export(model, "openvino")
    graph = openvino.Core().read_model(folder / card.file)
    kinds_there = [node.get_type_name() for node in graph.get_ordered_ops()]
    lookups = 2 * space.smallest.depth
    assert (kinds.count("GatherElements"), kinds_there.count("GatherElements")) == (lookups, 0)
    assert kinds_there.count("Gather") >= lookups
    assert card.agreement.difference <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "batch"),
    [
        # With PyTorch's layouts, XNNPACK refuses this network at run time.
        pytest.param(TEST_SPACES["timm"][0], 3, id="convolutional"),
        # Its positions are resized by an operator that ExecuTorch lacks: they must be constants.
        pytest.param(TEST_SPACES["timm"][1], None, id="transformer"),
        pytest.param(TEST_SPACES["vit"][1], None, id="relative"),
    ],
)
def test_executorch_programs_compute_the_same(
    space: SearchSpace, batch: int | None, tmp_path: Path
) -> None:
    """For one image, or for as many as asked."""
    pytest.importorskip("executorch", reason="executorch is not installed")
    model = drawn_model(space, space.largest, tmp_path / "model")
    folder, card = export(model, "executorch", batch=batch)
    size = batch or 1
    assert card.input_shape[0] == size
    images = images_for(space, size, seed=7)
    found = get_format("executorch").open(folder / card.file, 1)(images.numpy())
    with torch.inference_mode():
        expected = load(model).network(images).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(ValueError, match=r"cannot run model\.pte on images of shape"):
        get_format("executorch").open(folder / card.file, 1)(
            images_for(space, size + 1, seed=7).numpy()
        )


def test_formats_say_how_many_images_a_file_takes() -> None:
    fixed = import_module("prenas.devices.executorch_format").FORMAT
    assert fixed.plan(None).batch == 1
    assert fixed.plan(8).batch == 8
    assert get_format("torch").plan(None).batch is None


def test_a_file_for_a_fixed_number_takes_that_number(model: Path) -> None:
    """The 32 images that are compared are no multiple of it."""
    batch = 5
    folder, card = export(model, batch=batch)
    assert card.input_shape[0] == batch
    run = get_format("onnx").open(folder / card.file, 1)
    shape = (batch, *card.input_shape[1:])
    assert run(np.zeros(shape, np.float32)).shape == (batch, 3)
    with pytest.raises(Exception, match="invalid dimensions"):
        run(np.zeros((batch + 1, *card.input_shape[1:]), np.float32))


def test_a_file_runs_without_torch_and_without_this_package(model: Path) -> None:
    """A device needs the folder and ONNX Runtime; the card tells how to prepare a picture."""
    folder, card = export(model)
    images = torch.randn(2, *card.input_shape[1:], generator=torch.manual_seed(0))
    np.save(folder / "images.npy", images.numpy())
    script = """
import json, sys
for name in ("torch", "prenas", "timm"):
    sys.modules[name] = None
import numpy as np, onnxruntime
card = json.load(open("export.json"))
session = onnxruntime.InferenceSession(card["file"], providers=["CPUExecutionProvider"])
(logits,) = session.run([card["output"]], {card["input"]: np.load("images.npy")})
np.save("logits.npy", logits)
print(card["model"]["class_names"], card["model"]["preprocessing"]["mean"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "['ant', 'bee', 'cow']" in done.stdout
    with torch.inference_mode():
        expected = load(model).network(images).numpy()
    found = np.load(folder / "logits.npy")
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_files_are_as_small_as_their_weights(cut_run: Path, tmp_path: Path) -> None:
    _, card = export(cut_run / "subnets/00", out=tmp_path / "onnx")
    weights = (cut_run / "subnets/00/model.safetensors").stat().st_size
    assert card.size_bytes < 1.1 * weights


# --- what a card says ----------------------------------------------------------------------------


def test_inside_a_run_files_are_compared_on_its_validation_images(
    cut_run: Path, tmp_path: Path
) -> None:
    folder, card = export(cut_run / "subnets/01", "torch", out=tmp_path / "torch")
    (row,) = [row for row in prenas.Run(cut_run).evaluations if row.arch == card.description.arch]
    validation = row.splits["validation"]
    assert card.compared_on == "validation"
    assert card.agreement.num_images == validation.num_images
    assert card.agreement.top1 == card.agreement.top1_of_network == validation.top1
    assert read_card(folder) == card
    assert card.model["provenance"]["source"]["licence"] == "apache-2.0"
    assert {*card.milliseconds} == {"torch", "float32"}
    assert not any("noise" in note for note in card.notes)


def test_pictures_that_have_changed_since_the_training_judge_nothing(
    cut_run: Path, tmp_path: Path
) -> None:
    """The splits would be drawn anew, and training pictures be among those that judge."""
    run = shutil.copytree(cut_run, tmp_path / "run")
    data = Run(run).recipe.data
    assert data is not None
    pictures = shutil.copytree(str(data.root), tmp_path / "pictures")
    replace_text(run / artifacts.RECIPE, json.dumps(data.root), json.dumps(str(pictures)))
    assert export(run / "subnets/00", "torch").card.compared_on == "validation"
    before = contents(run)
    (pictures / "ant/0.png").rename(pictures / "ant/other.png")
    for size in (None, 56):
        with pytest.raises(ValueError, match=r"not the images that .* or name labelled images wit"):
            export(run / "subnets/00", "torch", image_size=size, out=tmp_path / "out")
    assert contents(run) == before
    assert not (tmp_path / "out").exists()


def test_of_several_crops_the_centre_is_compared(cut_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(cut_run, tmp_path / "run")
    once = export(run / "subnets/00", "torch").card.agreement
    replace_text(run / artifacts.RECIPE, '"crops": 1', '"crops": 5')
    assert export(run / "subnets/00", "torch").card.agreement == once


def test_times_are_of_the_threads_that_the_card_states(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own number of threads is for the rest of the program."""
    found, seen = get_format("torch"), []

    def opened(path: Path, threads: int) -> Callable[[Pixels], Pixels]:
        run = found.open(path, threads)

        def noted(images: Pixels) -> Pixels:
            seen.append(torch.get_num_threads())
            return run(images)

        return noted

    monkeypatch.setattr(import_module(TORCH), "FORMAT", found._replace(open=opened))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert export(model, "torch", threads=2).card.threads == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen[-10:] == [2] * 10


def test_given_images_are_compared(model: Path, cut_pictures: Path) -> None:
    _, card = export(model, "torch", data=[str(cut_pictures)])
    assert (card.compared_on, card.agreement.num_images) == ("all", 60)
    assert card.agreement.top1 is not None


def test_without_images_noise_is_compared_and_the_card_says_so(model: Path) -> None:
    _, card = export(model, "torch")
    assert card.compared_on == "noise"
    assert card.agreement.top1 is None
    assert any("noise" in note for note in card.notes)


def test_a_damaged_export_is_refused(model: Path) -> None:
    """One flipped bit of the file; a card that was cut off."""
    folder, card = export(model, "torch")
    content = bytearray((folder / card.file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / card.file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{card.file} is missing or is not the file"):
        read_card(folder)
    text = (folder / "export.json").read_bytes()
    (folder / "export.json").write_bytes(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"export\.json"):
        read_card(folder)


def test_a_card_describes_one_file_and_its_digest(model: Path, tmp_path: Path) -> None:
    """A file without a digest could be any; one of another format ended in a traceback."""
    folder, card = export(model, "torch", out=tmp_path / "made")
    (tmp_path / "other.pt2").write_bytes((folder / card.file).read_bytes())
    document = json.loads((folder / "export.json").read_text())
    digest = document["files_sha256"][card.file]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"files_sha256": {}}, "files_sha256 lacks the digest of model.pt2"),
        ({"file": "notes.txt"}, "files_sha256 lacks the digest of notes.txt"),
        ({"file": "../other.pt2", "files_sha256": {"../other.pt2": digest}}, "must be the name of"),
        ({"files_sha256": {"/etc/hostname": digest, card.file: digest}}, "must be the name of"),
        ({"batch": 10**9}, "batch: .*less than or equal to 4096"),
        ({"threads": -1}, "threads: .*greater than or equal to 1"),
        (
            {"input_shape": [None, 3, 4, 4]},
            r"input_shape is \[None, 3, 4, 4\], but the model takes",
        ),
        ({"model": {}}, "the field 'family' is missing"),
        ({"format": "onnx"}, r"the file model\.pt2, but the format onnx has model\.onnx"),
        ({"format": "pt"}, "unknown format 'pt'"),
    ]
    for changes, message in wrong:
        write_edited(folder / "export.json", {**document, **changes})
        with pytest.raises(ValueError, match=message):
            list(predict(folder, []))
    (folder / card.file).write_bytes(b"nothing that PyTorch wrote")
    changed = {card.file: artifacts.sha256(folder / card.file)}
    write_edited(folder / "export.json", {**document, "files_sha256": changed})
    with pytest.raises(ValueError, match=r"torch cannot open .*model\.pt2 .*: export the model ag"):
        list(predict(folder, []))


def exported_apart(model: Path, name: str, to: Path, *words: str) -> Card:
    """The card of an export by a process of its own.

    OpenVINO computes int8 with AMX where the processor has it. From then on signals need larger
    stacks than the other tests of a process may have set aside, and the next one is its end.
    """
    command = ["export", str(model), "--format", name, "--to", str(to), *words]
    subprocess.run([sys.executable, "-m", "prenas", *command], check=True, capture_output=True)
    return read_card(to)


# --- int8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("onnx", "static"),
        ("openvino", "static"),
        ("openvino", "weight"),
        pytest.param("executorch", "static", marks=pytest.mark.slow),
    ],
)
def test_an_int8_file_is_smaller_and_judged_on_labelled_images(
    name: str, form: str, cut_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip({"openvino": "nncf"}.get(name, name))
    model = cut_run / "subnets/00"
    small = exported_apart(model, name, tmp_path, "--int8", form, "--most-drop", "100")
    assert small.int8 == form
    assert small.size_bytes < 0.5 * (model / "model.safetensors").stat().st_size
    assert small.agreement.difference > 0
    assert small.agreement.top1 is not None
    assert {*small.milliseconds} == {"torch", "float32", "int8"}
    if name == "onnx":
        assert [*tmp_path.glob("*.onnx")] == [tmp_path / "model.onnx"]
    if (name, form) in IN_INT8:  # the first has few weights, and all later ones get what it rounds
        first, *others = IN_INT8[name, form](tmp_path / small.file)
        assert not first
        assert len(others) > 5
        assert all(others)


def convolutions_in_int8_onnx(file: Path) -> list[bool]:
    """Of every convolution, whether its weights are int8."""
    import onnx

    nodes = onnx.load(file).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return [node.input[1] in dequantized for node in nodes if node.op_type == "Conv"]


def convolutions_in_int8_openvino(file: Path) -> list[bool]:
    """Of every convolution, whether its weights are int8."""
    kinds = []
    for node in nodes_of(file):
        if "Convolution" in node.get_type_name():
            weights = source_of(node, 1)
            while weights.get_type_name() != "Constant":  # they are converted and scaled
                weights = source_of(weights, 0)
            kinds.append(weights.get_element_type().get_type_name())
    return [kind in ("i8", "u8") for kind in kinds]


def nodes_of(file: Path) -> list[Any]:
    """The nodes of an OpenVINO file, in their order."""
    import openvino

    return list(openvino.Core().read_model(file).get_ordered_ops())


def source_of(node: Any, number: int) -> Any:
    """What gives a node of OpenVINO one of its inputs."""
    return node.input(number).get_source_output().get_node()


IN_INT8 = {
    ("onnx", "static"): convolutions_in_int8_onnx,
    ("openvino", "static"): convolutions_in_int8_openvino,
}


def test_an_int8_form_that_hardly_changes_a_network_is_said(cut_run: Path, tmp_path: Path) -> None:
    """Its convolutions stay in float32."""
    _, card = export(cut_run / "subnets/00", int8="dynamic", out=tmp_path / "onnx", most_drop=1.0)
    assert any("suits this network badly. Try static" in note for note in card.notes)


def test_an_int8_file_that_loses_accuracy_is_not_kept(
    cut_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantiser that writes another network's weights; an earlier export stays as it is."""
    model, out = cut_run / "subnets/00", tmp_path / "onnx"
    export(model, out=out)
    before = contents(out)

    def quantize(source: Written, to: Path, batches: Callable[[], Iterable[Pixels]]) -> None:
        import onnx

        document = onnx.load(source.path)
        for tensor in document.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim > 1:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
        onnx.save(document, to)

    changed = get_format("onnx")._replace(quantizers={"static": quantize})
    monkeypatch.setattr(import_module(ONNX), "FORMAT", changed)
    with pytest.raises(ValueError, match=r"points less, and at most 1 are allowed.*--most-drop"):
        export(model, int8="static", out=out)
    assert contents(out) == before
    assert [*tmp_path.iterdir()] == [out]


@pytest.mark.parametrize(("lost", "is_kept"), [(1, True), (2, False)])
def test_an_int8_file_may_lose_exactly_the_allowed_point(
    lost: int, is_kept: bool, cut_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """97 right answers of 100, and 96: as floats, they differ by more than 0.01."""
    assert 0.97 - 0.96 > 0.01
    judged = Agreement(
        num_images=100,
        difference=0.0,
        rounding=0.0,
        same_class=1.0,
        top1=(97 - lost) / 100,
        top1_of_network=0.97,
    )
    monkeypatch.setattr(exporting, "agreement", lambda *arguments: judged)

    def act() -> Card:
        return export(cut_run / "subnets/00", int8="dynamic", out=tmp_path / "onnx").card

    if is_kept:
        assert act().agreement == judged
    else:
        with pytest.raises(ValueError, match=r"2\.00 points less, and at most 1 are allowed"):
            act()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_batch_larger_than_the_set_is_calibrated_with_repeated_pictures(
    name: str, cut_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    words = ("--int8", "static", "--batch", "64", "--most-drop", "100")
    card = exported_apart(cut_run / "subnets/00", name, tmp_path / "x", *words)
    assert card.input_shape[0] == 64


def test_int8_without_labelled_images_is_refused(model: Path) -> None:
    before = contents(model)
    with pytest.raises(ValueError, match="must be judged on labelled images"):
        export(model, int8="static")
    assert contents(model) == before


@pytest.mark.parametrize(("spread", "pace"), [(0.3, 0.0), (0.0, 0.4), (0.02, 0.05)])
def test_times_of_a_busy_machine_are_said_to_be_such(
    spread: float, pace: float, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(calls: Mapping[str, object], **others: object) -> dict[str, Latency]:
        return {name: Latency(1e-3, spread, (1e-3, 1e-3), pace) for name in calls}

    monkeypatch.setattr(exporting, "latencies", timed)
    _, card = export(model, "torch")
    words = (
        f"spread by {100 * spread:.0f} % .* the pace of the machine varied by {100 * pace:.0f} %"
    )
    is_busy = max(spread, pace) > 0.1
    assert any(re.search(words, note) for note in card.notes) is is_busy


# --- what is refused -----------------------------------------------------------------------------


def test_a_file_that_computes_something_else_is_not_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = get_format("torch")
    before = contents(model)

    def opened(path: Path, threads: int) -> Callable[[Pixels], Pixels]:
        run = found.open(path, threads)
        return lambda images: run(images) * np.float32(1 + 1e-4)

    monkeypatch.setattr(import_module(TORCH), "FORMAT", found._replace(open=opened))
    with pytest.raises(ValueError, match=r"does not compute what .* Nothing was kept"):
        export(model, "torch")
    assert contents(model) == before


def test_logits_that_are_not_finite_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = get_format("torch")

    def opened(path: Path, threads: int) -> Callable[[Pixels], Pixels]:
        return lambda images: np.full((len(images), 3), np.nan, np.float32)

    monkeypatch.setattr(import_module(TORCH), "FORMAT", found._replace(open=opened))
    with pytest.raises(ValueError, match="not finite"):
        export(model, "torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "unknown format 'onx'.*onnx"),
        ({"int8": "statik"}, "unknown int8 form .*'statik'.*static"),
        ({"format": "torch", "int8": "static"}, "unknown int8 form of the format torch"),
        ({"opset": 3}, "opset 3 is not supported: choose 18 to"),
        ({"format": "torch", "opset": 18}, "opset 18 .* the format torch does not have: leave out"),
    ],
)
def test_unusable_options_are_named(options: dict[str, Any], message: str, model: Path) -> None:
    before = contents(model)
    with pytest.raises(ValueError, match=message):
        export(model, **options)
    assert contents(model) == before


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "nncf" else object())
    with pytest.raises(ValueError, match=r"openvino needs nncf.*pip install 'prenas\[openvino\]'"):
        export(model, "openvino")


def test_what_a_killed_export_left_is_removed(model: Path, tmp_path: Path) -> None:
    """By the next one; folders of processes that run, and other hidden ones, stay."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    left = tmp_path / f".prenas-out.{ended}.tmp"
    running = tmp_path / f".prenas-out.{os.getppid()}.tmp"
    others = tmp_path / ".out-abc.tmp"
    for one in (left, running, others):
        (one / "kept").mkdir(parents=True)
    export(model, "torch", out=tmp_path / "out")
    assert [one.exists() for one in (left, running, others)] == [False, True, True]
    assert not (tmp_path / f".prenas-out.{os.getpid()}.tmp").exists()


def test_a_command_on_the_run_leaves_an_export_alone_that_is_under_way(
    cut_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(cut_run, tmp_path / "run")
    under_way = run / f"subnets/00/.prenas-onnx.{os.getppid()}.tmp"
    under_way.mkdir()
    with Run(run).locked():
        assert under_way.exists()


def test_only_an_earlier_export_is_replaced(model: Path, tmp_path: Path) -> None:
    first = export(model, "torch", out=tmp_path / "out").folder
    assert export(model, "torch", batch=2, out=first).card.batch == 2
    (first / "notes.txt").write_text("mine")
    assert export(model, "onnx", out=first).card.file == "model.onnx"
    assert {one.name for one in first.iterdir()} == {"export.json", "model.onnx", "notes.txt"}
    assert read_card(first).format == "onnx"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no earlier export: choose another --to"):
        export(model, out=tmp_path / "other")
    assert (tmp_path / "other/notes.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match=r"arch\.json"):
        export(tmp_path / "other", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- on the command line -------------------------------------------------------------------------


def test_all_subnets_of_a_run_are_exported_and_used(
    cut_run: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(cut_run, tmp_path / "run")
    result = CliRunner().invoke(app, ["export", str(run)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for number in ("00", "01"):
        assert (run / f"subnets/{number}/onnx/model.onnx").exists()
        assert f"subnets/{number}/onnx/model.onnx" in result.output
    assert "validation images" in result.output
    picture = str(cut_pictures / "bee/3.png")
    answers = [
        CliRunner().invoke(app, ["predict", str(model), picture, "--json"], catch_exceptions=False)
        for model in (run / "subnets/00", run / "subnets/00/onnx")
    ]
    plain, exported = (json.loads(answer.output)["classes"] for answer in answers)
    assert [one["name"] for one in plain] == [one["name"] for one in exported]
    for one, other in zip(plain, exported, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_a_file_may_take_another_image_size(
    cut_run: Path, cut_pictures: Path, tmp_path: Path
) -> None:
    """It is compared on the run's pictures in that size, and predicts as the model does there."""
    run = shutil.copytree(cut_run, tmp_path / "run")
    model = run / "subnets/00"
    folder, card = export(model, "torch", image_size=56)
    assert folder == model / "torch-56px"
    assert card.input_shape[2:] == card.description.settings.image_size == (56, 56)
    assert card.compared_on == "validation"
    validation = Run(run, device="cpu").images.read().splits["validation"]
    assert card.agreement.num_images == num_samples(validation)
    size = load_described(model).description.arch.resized_to or 40
    assert any(
        f"at 56 x 56 pixels; the model was trained at {size} x {size}" in note
        for note in card.notes
    )
    costs = count(card.description.arch, card.description.settings)
    assert card.model["provenance"]["costs"] == costs
    assert costs["macs"] > Run(run).subnets.subnets[0].costs["macs"]
    pictures = [cut_pictures / name / "3.png" for name in ("ant", "bee", "cow")]
    for ours, theirs in zip(
        predict(folder, pictures), predict(model, pictures, image_size=56), strict=True
    ):
        assert ours.error is None
        assert dict(ours.classes) == pytest.approx(dict(theirs.classes), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "some"], "--batch is 'some': write dynamic, or a number"),
        (
            ["--batch", "\N{SUPERSCRIPT TWO}"],
            "--batch is '²': write dynamic, or a number from 1 to",
        ),
        (["--batch", "9" * 5000], "write dynamic, or a number from 1 to 4096"),
        (["--to", "x"], "x is one folder, but 2 files would be written"),
        (["--format", "onnx", "--format", "tflite"], "unknown format 'tflite'"),
    ],
)
def test_options_of_the_command_are_checked_first(
    words: list[str], message: str, cut_run: Path
) -> None:
    before = contents(cut_run)
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["export", str(cut_run), *words], catch_exceptions=False)
    assert contents(cut_run) == before


def test_a_format_is_a_value() -> None:
    for name in formats.FORMATS:
        module = import_module(f"prenas.devices.{name}_format")
        assert isinstance(module.FORMAT, Format)
        assert module.FORMAT.name == name
