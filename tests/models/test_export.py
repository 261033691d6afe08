"""Handed-over models: the supernet's logits, the data's inputs, and no damaged or foreign file."""

import hashlib
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prenas
from edits import write_edited
from prenas import artifacts, pipeline
from prenas.data import load_data
from prenas.evaluation.accuracy import Evaluation
from prenas.models import export
from prenas.models.export import load
from prenas.recipe import Recipe
from prenas.supernet import Supernet
from training.runs import MINI, contents, mini_recipe, own_data, own_recipe, value_error_of

pytest_plugins = "training.runs"


@pytest.fixture
def model(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a handed-over model, to damage."""
    return shutil.copytree(finished_run / "subnets" / "01", tmp_path / "model")


def digits_of(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Test images as the data set gives them, and as pixels of 0 to 255."""
    assert recipe.data is not None
    (mean,), (std,) = recipe.data.preprocessing.mean, recipe.data.preprocessing.std
    test = load_data(recipe.data, recipe.space.settings).splits["test"]
    images, _ = test[list(range(len(test)))]  # type: ignore[index,arg-type]
    return images, ((images * std + mean) * 255).round().to(torch.uint8)


# --- what is handed over -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_models_logits_are_the_supernets(number: int, finished_run: Path) -> None:
    supernet = pipeline.read_supernet(finished_run, device="cpu")
    arch = pipeline.read_preferred(finished_run).archs[number]
    network = load(finished_run / "subnets" / f"{number:02d}").network
    assert not any(module.training for module in network.modules())
    images, _ = digits_of(mini_recipe())
    with torch.inference_mode():
        logits, expected = network(images), supernet(images, arch)
    assert logits.shape == (len(images), 10)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_digit_as_a_picture_gives_the_data_sets_input(
    mode: str, finished_run: Path, tmp_path: Path
) -> None:
    """Saved as PNG, opened and transformed: the same numbers to 1e-6."""
    images, pixels = digits_of(mini_recipe())
    transform = load(finished_run / "subnets" / "00").transform
    for number in range(0, 360, 40):
        picture = Image.fromarray(pixels[number, 0].numpy()).convert(mode)
        picture.save(tmp_path / "digit.png")
        with Image.open(tmp_path / "digit.png") as opened:
            assert opened.mode == mode
            found = transform(opened)
        assert found.shape == (1, 8, 8)
        assert torch.allclose(found, images[number], atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (80, 80), (30, 20), (5, 9)])
def test_pictures_of_any_size_fit(size: tuple[int, int], finished_run: Path) -> None:
    network, transform = load(finished_run / "subnets" / "00")
    picture = Image.fromarray(np.full((size[1], size[0]), 255, dtype=np.uint8))
    tensor = transform(picture)
    white = (1 - mini_recipe().preprocessing.mean[0]) / mini_recipe().preprocessing.std[0]
    assert torch.allclose(tensor, torch.full((1, 8, 8), white), atol=1e-5)
    assert network(tensor[None]).shape == (1, 10)


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.full((8, 8), 30_000, dtype=np.uint16), id="16-bit"),
        pytest.param(np.full((8, 8), 30_000, dtype=np.int32), id="32-bit"),
    ],
)
def test_pictures_of_more_than_8_bits_are_never_silently_wrong(
    pixels: np.ndarray[Any, Any], finished_run: Path
) -> None:
    """PIL cuts them off at 255, which turns a middle grey into plain white or black."""
    (mean,), (std,) = mini_recipe().preprocessing.mean, mini_recipe().preprocessing.std
    transform, found = load(finished_run / "subnets" / "00").transform, []
    message = value_error_of(lambda: found.append(transform(Image.fromarray(pixels))))
    if message is None:
        assert float(found[0].mean()) * std + mean == pytest.approx(0.457, abs=0.02)
    else:
        assert "8" in message  # bits, as the pictures that are understood have them


def test_the_transform_crops_as_the_recipe_says(finished_run: Path, tmp_path: Path) -> None:
    """With crop_pct 0.5 an 8 x 8 input is the middle of the picture resized to 16 x 16."""
    description = json.loads((finished_run / "subnets" / "00" / "arch.json").read_text())
    description["preprocessing"] |= {"crop_pct": 0.5, "mean": [0.0], "std": [1.0]}
    folder = shutil.copytree(finished_run / "subnets" / "00", tmp_path / "model")
    write_edited(folder / "arch.json", description)
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[4:12, 4:12] = np.arange(64).reshape(8, 8)
    found = load(folder).transform(Image.fromarray(pixels))
    assert torch.allclose(found * 255, torch.arange(64.0).view(1, 8, 8), atol=1e-4)


def test_the_description_says_all_there_is_to_say(
    finished_run: Path, finished_rows: list[Evaluation]
) -> None:
    recipe = mini_recipe()
    for number, row in enumerate(finished_rows):
        folder = finished_run / "subnets" / f"{number:02d}"
        assert {path.name for path in folder.iterdir()} == {
            "arch.json",
            "config.json",
            "model.safetensors",
        }
        description = json.loads((folder / "arch.json").read_text())
        assert description["class_names"] == list("0123456789")
        assert description["arch"] == row.arch.model_dump(mode="json")
        assert description["settings"] == MINI.settings.model_dump(mode="json")
        assert description["preprocessing"] == recipe.preprocessing.model_dump(mode="json")
        provenance = description["provenance"]
        assert (provenance["recipe"], provenance["seed"], provenance["subnet"]) == (
            "mini",
            0,
            number,
        )
        assert provenance["costs"] == row.costs
        assert provenance["evaluation"] == {n: m.summary for n, m in row.splits.items()}
        weights = (finished_run / "supernet.safetensors").read_bytes()
        assert provenance["supernet_sha256"] == hashlib.sha256(weights).hexdigest()
        assert provenance["versions"]["prenas"] == prenas.__version__


def test_a_loaded_model_can_be_trained_further(finished_run: Path) -> None:
    network = load(str(finished_run / "subnets" / "00")).network.train()
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.ndim > 1)


# --- choosing and writing ------------------------------------------------------------------------


def test_a_model_goes_where_it_is_asked_to(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for to in (tmp_path / "empty", tmp_path / "new" / "deep"):
        assert pipeline.specialize(finished, 1, to=to) == to
        for name in ("arch.json", "model.safetensors"):
            assert (to / name).read_bytes() == (finished / "subnets" / "01" / name).read_bytes()


def test_limits_choose_by_the_evaluation(
    finished: Path, finished_rows: list[Evaluation], tmp_path: Path
) -> None:
    middle = finished_rows[1]
    fitting = [row for row in finished_rows if row.costs["params"] <= middle.costs["params"]]
    best = max(fitting, key=lambda row: (row.splits["validation"].top1, -row.costs["params"]))
    limits = (
        middle.costs["params"],
        str(middle.costs["params"]),
        f"{middle.costs['params'] / 1000}k",
    )
    for number, limit in enumerate(limits):
        folder = pipeline.specialize(finished, limits={"params": limit}, to=tmp_path / str(number))
        provenance = json.loads((folder / "arch.json").read_text())["provenance"]
        assert provenance["costs"] == best.costs
    cheapest = min(row.costs["macs"] for row in finished_rows)
    folder = pipeline.specialize(finished, limits=f"params=1M,macs={cheapest}")
    assert folder == finished / "subnets" / "00"
    with pytest.raises(ValueError, match=f"The subnets are 0: macs {cheapest:,}"):
        pipeline.specialize(finished, limits={"macs": cheapest - 1})


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({}, "say which subnet: give either its number or limits such as params=6M"),
        ({"index": 0, "limits": {"params": 9999}}, "say which subnet"),
        ({"index": 3}, "subnet 3 does not exist: this run has subnets 0 to 2"),
        ({"index": -1}, "subnet -1 does not exist"),
        ({"limits": {"params": "lots"}}, "cannot read the amount 'lots'"),
        ({"limits": {"params": 0}}, "'0' is not a positive integer"),
        ({"limits": "params=1"}, "satisfies params <= 1. The subnets are 0: params 1"),
    ],
)
def test_an_unclear_choice_is_refused(
    choice: dict[str, Any], words: str, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        pipeline.specialize(finished, to=tmp_path / "model", **choice)
    assert not (tmp_path / "model").exists()


def test_a_folder_with_files_is_not_written_to(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=f"{folder} is not empty: choose another folder"):
        pipeline.specialize(finished, 0, to=folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    with pytest.raises((ValueError, OSError), match=r"thesis\.txt"):
        pipeline.specialize(finished, 0, to=folder / "thesis.txt")
    assert (folder / "thesis.txt").read_text() == "years of work"


def spoil_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every cut network differ a little from the supernet."""
    cut = Supernet.cut

    def spoilt(self: Supernet, arch: Any, statistics: Any = None) -> nn.Module:
        network = cut(self, arch, statistics)
        with torch.no_grad():
            network.get_parameter("head.bias")[0] += 1e-2
        return network

    monkeypatch.setattr(Supernet, "cut", spoilt)


def test_a_model_with_other_logits_is_never_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(finished / "subnets")
    before = contents(finished)
    spoil_cut(monkeypatch)
    for to in (None, tmp_path / "model"):
        with pytest.raises(
            ValueError, match="the logits of the cut network differ from the supernet's"
        ):
            pipeline.specialize(finished, 0, to=to)
    assert contents(finished) == before
    assert not (finished / "subnets").exists()
    assert not (tmp_path / "model").exists()


def test_a_model_that_reads_back_otherwise_is_taken_away(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a bad disk."""
    write = artifacts.write_tensors

    def spoilt(path: Path, tensors: dict[str, Tensor]) -> None:
        write(path, {name: tensor * 1.01 for name, tensor in tensors.items()})

    monkeypatch.setattr(artifacts, "write_tensors", spoilt)
    with pytest.raises(
        ValueError, match="the logits of the written model differ from the supernet's"
    ):
        pipeline.specialize(finished, 0, to=tmp_path / "model")
    assert list((tmp_path / "model").glob("*")) == []
    monkeypatch.undo()
    load(pipeline.specialize(finished, 0, to=tmp_path / "model"))


def test_a_model_half_written_is_written_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The description comes last, so a folder without it is not a model yet."""
    folder = finished / "subnets" / "00"
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)

    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            pipeline.specialize(finished, 0)
    assert not (folder / "arch.json").exists()
    with pytest.raises(FileNotFoundError, match=r"arch\.json does not exist"):
        load(folder)
    pipeline.specialize(finished, 0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4])
def test_models_of_any_channels_are_handed_over(in_chans: int, tmp_path: Path) -> None:
    """A picture has 1 or 3; a model of others takes tensors."""
    recipe = own_recipe(in_chans=in_chans, training={"epochs": 1})
    out = tmp_path / "run"
    pipeline.run(recipe, out, data=own_data(in_chans=in_chans))
    network = load(out / "subnets" / "00").network
    assert network(torch.randn(2, in_chans, 8, 8)).shape == (2, 10)


# --- damaged and foreign files -------------------------------------------------------------------


class Bomb:
    """Unpickling it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_bomb_would_explode(tmp_path: Path) -> None:
    """The tests below mean something."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "arch.json"])
@pytest.mark.parametrize("kind", ["torch", "bare"])
def test_pickles_are_refused_unopened(name: str, kind: str, model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    if kind == "torch":
        torch.save({"head.weight": Bomb(mark)}, model / name)
    else:
        (model / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load(model)
    assert not mark.exists()


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Changes the description."""

    def apply(folder: Path) -> None:
        path = folder / "arch.json"
        document = json.loads(path.read_text())
        change(document)
        write_edited(path, document)

    return apply


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(name: str, keep: float) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return apply


def retensor(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    """Changes the weights, in a sound file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def flipped_bit(name: str) -> Callable[[Path], object]:
    """In the middle of a file, which still reads."""

    def apply(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return apply


WEIGHTS, DESCRIPTION = "model.safetensors", "arch.json"


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        pytest.param(cut_short(WEIGHTS, 0.9), WEIGHTS, id="weights-cut-short"),
        pytest.param(cut_short(WEIGHTS, 0.001), WEIGHTS, id="weights-hardly-there"),
        pytest.param(write(WEIGHTS, b""), WEIGHTS, id="weights-empty"),
        pytest.param(write(WEIGHTS, b"hello" * 100), WEIGHTS, id="weights-text"),
        pytest.param(retensor(lambda t: t.pop("head.bias")), WEIGHTS, id="weights-one-missing"),
        pytest.param(
            retensor(lambda t: t.update(more=torch.ones(1))), WEIGHTS, id="weights-one-more"
        ),
        pytest.param(
            retensor(lambda t: t.update({"head.bias": torch.ones(11)})), WEIGHTS, id="weights-shape"
        ),
        pytest.param(cut_short(DESCRIPTION, 0.5), DESCRIPTION, id="json-cut-short"),
        pytest.param(write(DESCRIPTION, b""), DESCRIPTION, id="json-empty"),
        pytest.param(write(DESCRIPTION, b"\xff\xfe\x00"), DESCRIPTION, id="json-bytes"),
        pytest.param(write(DESCRIPTION, b"[1, 2]"), DESCRIPTION, id="json-list"),
        pytest.param(write(DESCRIPTION, b"{}"), DESCRIPTION, id="json-without-version"),
        pytest.param(edit(lambda d: d.pop("family")), DESCRIPTION, id="no-family"),
        pytest.param(edit(lambda d: d.pop("arch")), DESCRIPTION, id="no-arch"),
        pytest.param(edit(lambda d: d.pop("settings")), DESCRIPTION, id="no-settings"),
        pytest.param(edit(lambda d: d.pop("preprocessing")), DESCRIPTION, id="no-preprocessing"),
        pytest.param(edit(lambda d: d.update(family="mlp")), DESCRIPTION, id="unknown-family"),
        pytest.param(edit(lambda d: d.update(arch=None)), DESCRIPTION, id="arch-null"),
        pytest.param(
            edit(lambda d: d["arch"].update(embed_dim=-8)), DESCRIPTION, id="arch-negative"
        ),
        pytest.param(
            edit(lambda d: d["arch"].update(wings=2)), DESCRIPTION, id="arch-unknown-field"
        ),
        pytest.param(
            edit(lambda d: d["settings"].update(patch_size=3)), DESCRIPTION, id="settings-misfit"
        ),
        pytest.param(
            edit(lambda d: d["preprocessing"].update(mean=[0.1, 0.2, 0.3])),
            DESCRIPTION,
            id="mean-of-other-channels",
        ),
        pytest.param(
            edit(lambda d: d["arch"].update(embed_dim=12)), WEIGHTS, id="arch-of-another-width"
        ),
        pytest.param(
            edit(lambda d: d["arch"].update(num_heads=[1] * 4, mlp_ratio=[1.0] * 4)),
            WEIGHTS,
            id="arch-of-another-depth",
        ),
        pytest.param(
            edit(lambda d: d["settings"].update(num_classes=11)), WEIGHTS, id="other-classes"
        ),
        pytest.param(
            edit(lambda d: d.update(class_names="abcdefghij")), DESCRIPTION, id="names-one-text"
        ),
        pytest.param(edit(lambda d: d.update(class_names=[])), DESCRIPTION, id="names-empty"),
        pytest.param(
            edit(lambda d: d.update(class_names=[*range(10)])), DESCRIPTION, id="names-numbers"
        ),
        pytest.param(
            edit(lambda d: d.update(class_names=[*"abcdefghijk"])), DESCRIPTION, id="names-too-many"
        ),
        pytest.param(flipped_bit(WEIGHTS), WEIGHTS, id="weights-one-bit"),
        pytest.param(retensor(lambda t: t["head.bias"].add_(1)), WEIGHTS, id="weights-of-others"),
        pytest.param(
            retensor(lambda t: t["head.bias"].fill_(float("nan"))), WEIGHTS, id="weights-nan"
        ),
    ],
)
def test_damaged_and_foreign_models_are_refused_by_file(
    damage: Callable[[Path], object], file: str, model: Path
) -> None:
    """One readable error, which names the file that is wrong."""
    load(model)
    damage(model)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(model)
    assert str(model / file) in str(caught.value)


@pytest.mark.parametrize("name", ["arch", "settings", "preprocessing"])
def test_the_part_of_the_description_that_is_wrong_is_named(name: str, model: Path) -> None:
    edit(lambda document: document.update({name: 0}))(model)
    with pytest.raises(ValueError, match=rf"prenas: {name}: must be a group of fields \(got 0\)"):
        load(model)
    edit(lambda document: document.update({name: {"wings": 2}}))(model)
    with pytest.raises(ValueError, match=rf"prenas: {name}\.\w+: "):
        load(model)


@pytest.mark.parametrize("value", [0, None, ["vit"], {"vit": 1}])
def test_a_family_that_is_no_name_is_refused_in_words(value: object, model: Path) -> None:
    edit(lambda document: document.update(family=value))(model)
    with pytest.raises(ValueError, match=r"prenas: family is .*, which is no name: choose .*\bvit"):
        load(model)


def test_the_weights_of_another_subnet_are_refused(model: Path, finished_run: Path) -> None:
    shutil.copy(finished_run / "subnets" / "02" / WEIGHTS, model / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"model\.safetensors does not contain the weights of this"
    ):
        load(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["arch"].update(embed_dim=65_536),
        lambda d: d["arch"].update(num_heads=[65_536] * 2, mlp_ratio=[1.0] * 2),
        lambda d: d["arch"].update(mlp_ratio=[100.0] * 2, embed_dim=65_536),
        lambda d: d["arch"].update(num_heads=[1] * 1000, mlp_ratio=[1.0] * 1000),
        lambda d: d["settings"].update(num_classes=1_000_000),
        lambda d: d["settings"].update(image_size=[4096, 4096], patch_size=16),
        lambda d: d["settings"].update(in_chans=65_536) or d["preprocessing"].update(
            mean=[0.5] * 65_536, std=[0.5] * 65_536
        ),
    ],
    ids=["width", "heads", "ratio", "layers", "classes", "image", "channels"],
)  # fmt: skip
def test_a_description_of_a_huge_network_is_refused_before_it_is_built(
    change: Callable[[dict[str, Any]], object], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest sizes that a description may state would take terabytes."""
    built = []
    monkeypatch.setattr(export, "build", lambda *args: built.append(args))
    edit(change)(model)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"model\.safetensors does not contain the weights of thi"):
        load(model)
    assert built == []
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_pipe_in_place_of_a_file_is_refused(name: str, model: Path) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(model)
    assert str(model / name) in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, f'{{"schema_version": {"9" * 5_000}}}'], ids=len)
def test_a_description_without_bounds_is_refused(text: str, model: Path) -> None:
    (model / DESCRIPTION).write_text(text)
    with pytest.raises(ValueError, match=r"arch\.json is damaged or not valid JSON \("):
        load(model)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(name: str, model: Path) -> None:
    (model / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load(model)
    assert f"{model / name} does not exist" in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*folder that `prenas specialize` wrote"):
        load(tmp_path / "nowhere")


def test_a_newer_model_asks_for_a_newer_prenas(model: Path) -> None:
    edit(lambda d: d.update(schema_version=3))(model)
    with pytest.raises(
        ValueError, match=r"arch\.json has schema version 3, but this version of prenas reads 2"
    ):
        load(model)


def test_a_transform_goes_to_processes_that_read_pictures(finished_run: Path) -> None:
    """Also to those that are not forked, which get it pickled."""
    transform = load(finished_run / "subnets" / "00").transform
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(picture), transform(picture))
    assert re.match(r"EvaluationTransform\(.*mean=\(.*std=\(", str(transform), re.DOTALL)
    with pytest.raises(TypeError, match="takes a PIL image, not a str: open files with"):
        transform("three.png")  # type: ignore[arg-type]
