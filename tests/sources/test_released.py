"""The authors' checkpoints: files of every kind, and runs made of them."""

import argparse
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import prenas
from data.making import write
from edits import write_edited
from families.test_vit_released import ARCH, SETTINGS, mini, random_native, to_original
from prenas import pipeline
from prenas.cost import count
from prenas.data import ImageData
from prenas.families import get_family, get_space
from prenas.families.base import envelope
from prenas.families.vit.published import PUBLISHED
from prenas.families.vit.space import VitArch
from prenas.proxy.importance import noise_images
from prenas.recipe import with_overrides
from prenas.runs.run import Run
from prenas.sources.released import imported_set, load_released_checkpoint
from prenas.steps import choosing, training
from reference.original import fill
from test_golden_vit import golden_images, golden_supernet, load_golden, read_arch
from training.runs import (
    contents,
    never,
    other_data,
)

pytest_plugins = "training.runs"


def golden_tensors() -> dict[str, Tensor]:
    """The measured micro network under the authors' names, in their layout."""
    return fill(load_golden("vit_micro")["parameter_shapes"])


def golden_archs() -> list[VitArch]:
    return [read_arch(entry["arch"]) for entry in load_golden("vit_micro")["archs"]]


def checkpoint(tensors: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """What the authors' training writes."""
    args = argparse.Namespace(cfg="x.yaml", lr=5e-4, **options)
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1}]}
    return {"model": OrderedDict(tensors), "optimizer": optimizer, "epoch": 1, "args": args}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture
def golden_file(tmp_path: Path) -> Path:
    return saved(tmp_path / "supernet-micro.pth", checkpoint(golden_tensors(), gp=True))


@pytest.fixture
def mini_file(tmp_path: Path) -> Path:
    return saved(tmp_path / "mini.pth", checkpoint(mini()))


# --- the files that are read ---------------------------------------------------------------------


def test_the_measured_logits(golden_file: Path) -> None:
    """Of every measured architecture, to 1e-5 of the largest."""
    supernet = load_released_checkpoint(golden_file)
    assert not supernet.training
    for entry in load_golden("vit_micro")["archs"]:
        logits = supernet(golden_images("vit_micro"), read_arch(entry["arch"])).double()
        expected = torch.tensor(entry["logits"], dtype=torch.float64)
        assert (logits - expected).abs().max() <= 1e-5 * logits.abs().max()


def assert_is_mini(path: Path, *, exact: bool = True) -> None:
    supernet = prenas.load_released_checkpoint(path)
    assert (supernet.arch, supernet.settings) == (ARCH, SETTINGS)
    for name, tensor in random_native(ARCH, SETTINGS).items():
        found = supernet.network.get_parameter(name).detach()
        assert found.dtype == torch.float32
        assert torch.equal(found, tensor) if exact else torch.allclose(found, tensor, atol=2e-3)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(checkpoint(mini()), id="authors"),
        pytest.param({"state_dict": mini(), "epoch": 3}, id="state-dict"),
        pytest.param(mini(), id="bare"),
        pytest.param(OrderedDict(mini()), id="ordered"),
        pytest.param({"model": {f"module.{k}": v for k, v in mini().items()}}, id="data-parallel"),
        pytest.param(
            {"model": {f"module._orig_mod.{k}": v for k, v in mini().items()}}, id="compiled"
        ),
        pytest.param(
            {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in mini().items()},
            id="compiled-in-part",
        ),
        pytest.param(
            {**checkpoint(mini()), "best": np.float64(0.7), "means": np.ones(3), "to": Path("x")},
            id="numpy-beside",
        ),
        pytest.param({"model_ema": mini()}, id="only-ema"),
        pytest.param({k: v.double() for k, v in mini().items()}, id="float64"),
        pytest.param({k: nn.Parameter(v) for k, v in mini().items()}, id="parameters"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_form_of_a_checkpoint(content: Any, zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=zipped)
    assert_is_mini(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: (0.1 * tensor).to(dtype) for name, tensor in mini().items()}
    supernet = load_released_checkpoint(saved(tmp_path / "x.pth", {"model": tensors}))
    for name, tensor in random_native(ARCH, SETTINGS).items():
        found = supernet.network.get_parameter(name).detach()
        assert torch.equal(found, (0.1 * tensor).to(dtype).float())


def test_safetensors(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in mini().items()}, tmp_path / "x.safetensors")
    assert_is_mini(tmp_path / "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:900])
    with pytest.raises(
        ValueError, match=r"^\S+cut\.safetensors is not a readable safetensors file"
    ):
        load_released_checkpoint(tmp_path / "cut.safetensors")


def test_reading_writes_nothing(mini_file: Path) -> None:
    before = contents(mini_file.parent)
    load_released_checkpoint(str(mini_file))
    assert contents(mini_file.parent) == before


@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".pth"])
def test_safetensors_are_recognised_whatever_they_are_called(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    save_file({k: v.contiguous() for k, v in mini().items()}, path)
    assert_is_mini(path)


def test_one_of_several_weights_is_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which ones were taken is said, and recorded."""
    other = {name: tensor + 1 for name, tensor in mini().items()}
    path = saved(tmp_path / "x.pth", {**checkpoint(mini()), "model_ema": other})
    assert_is_mini(path)
    assert "model were taken, model_ema not (--weights" in caplog.text
    caplog.clear()
    averaged = load_released_checkpoint(path, "model_ema").network.get_parameter("head.bias")
    assert torch.equal(averaged.detach(), other["head.bias"])
    assert not caplog.records
    preferred = pipeline.import_released(path, tmp_path / "run", weights="model_ema")
    assert preferred.imported is not None
    assert preferred.imported.weights == "model_ema"
    assert preferred.imported.summary.startswith("imported from x.pth (model_ema), with")
    with pytest.raises(ValueError, match=r"unknown weights 'ema'.*available: model, model_ema"):
        load_released_checkpoint(path, "ema")


# --- the files that are refused ------------------------------------------------------------------


class Code:
    """Runs a command when it is unpickled carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("place", ["model", "args", "beside", "legacy", "plain pickle"])
def test_code_in_a_checkpoint_is_never_run(place: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "evil.pth"
    content = {**checkpoint(mini()), "note": 1}
    key = {"model": "model", "args": "args"}.get(place, "note")
    content[key] = Code(marker)
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        saved(path, content, _use_new_zipfile_serialization=place != "legacy")
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_released_checkpoint(path)
    assert not marker.exists()
    if place != "plain pickle":
        assert "contains code or whole objects (posix.system)" in str(caught.value)
    if place == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the file would not have run anything: this test shows nothing"


def test_a_whole_pickled_module(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"whole objects \(torch\.nn\.modules\.linear\.Linear\)"):
        load_released_checkpoint(path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "hello")


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("epoch,loss\n1,2.3\n"), id="text"),
        pytest.param(lambda path: path.write_bytes(bytes(range(256)) * 9), id="bytes"),
        pytest.param(write_zip, id="zip"),
    ],
)
def test_a_foreign_file(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write(path)
    with pytest.raises(
        ValueError, match=r"x\.pth is not a complete torch\.save file.*Download it again"
    ):
        load_released_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS pointer.*lfs pull",
        ),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is an HTML page"),
        (b"\n <html lang='en'>", "is an HTML page"),
    ],
)
def test_what_people_download_by_mistake_is_recognised(
    content: bytes, words: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_released_checkpoint(path)


def unusual(kind: str, tensor: Tensor) -> Tensor:
    if kind == "sparse":
        return tensor.to_sparse()
    if kind == "meta":
        return tensor.to("meta")
    if kind == "quantised":
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    return torch.complex(tensor, tensor)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised", "complex"])
def test_tensors_that_are_not_plain_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    tensors = mini()
    tensors["head.bias"] = unusual(kind, tensors["head.bias"])
    path = saved(tmp_path / "x.pth", tensors)
    with pytest.raises(ValueError, match=rf"x\.pth: head\.bias is .*{kind}.*must be dense"):
        load_released_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_small_file_of_endless_tensors_is_refused(zipped: bool, tmp_path: Path) -> None:
    """One number that is repeated 2^40 times takes a few bytes on disk and terabytes in memory."""
    tensors = {"cls_token": torch.zeros(1, dtype=torch.float16).expand(2**40)}
    path = saved(tmp_path / "x.pth", tensors, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"its tensors take 2,199,023,255,552 bytes, more than"):
        load_released_checkpoint(path)


def test_a_packed_zip_is_refused(tmp_path: Path) -> None:
    plain, packed = saved(tmp_path / "plain.pth", {"x": torch.zeros(10**6)}), tmp_path / "x.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"x\.pth would unpack to 4,00\d,\d+ bytes"):
        load_released_checkpoint(packed)


def test_names_that_differ_only_in_a_wrapper_are_refused(tmp_path: Path) -> None:
    tensors = {**mini(), "module.head.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"contains head\.bias twice"):
        load_released_checkpoint(saved(tmp_path / "x.pth", tensors))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_flipped_bit_is_noticed(share: float, tmp_path: Path) -> None:
    """torch.load alone would read it: it does not compare the checksums of its own format."""
    path = saved(tmp_path / "x.pth", mini())
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth is damaged: the checksum of .* is wrong"):
        load_released_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(share: float, zipped: bool, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "x.pth", checkpoint(golden_tensors()), _use_new_zipfile_serialization=zipped
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"x\.pth is not a complete torch\.save file") as caught:
        load_released_checkpoint(path)
    assert "weights_only" not in str(caught.value)  # torch's advice to run what is in the file
    assert "Weights only" not in str(caught.value)


def test_a_checkpoint_of_timm(tmp_path: Path) -> None:
    import timm

    deit = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2)
    path = saved(tmp_path / "deit.pth", {"model": deit.state_dict()})
    with pytest.raises(ValueError, match=r"unknown tensors patch_embed\.proj\.weight") as caught:
        load_released_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "lacks patch_embed_super.proj.weight" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    tensors = mini()
    tensors["blocks.1.fc1.bias"][3] = value
    with pytest.raises(ValueError, match=r"x\.pth: blocks\.1\.fc1\.bias .*not finite in float32"):
        load_released_checkpoint(saved(tmp_path / "x.pth", tensors))


def test_weights_that_are_no_floats(tmp_path: Path) -> None:
    tensors = {name: tensor.to(torch.int8) for name, tensor in mini().items()}
    with pytest.raises(ValueError, match=r"cls_token \(torch\.int8\)"):
        load_released_checkpoint(saved(tmp_path / "x.pth", tensors))


def test_options_saved_beside_are_heeded(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", checkpoint(mini(), gp=False))
    with pytest.raises(ValueError, match=r"x\.pth: it was trained without --gp"):
        load_released_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "it contains a list instead of a dict of tensors"),
        (torch.zeros(3), "it contains a Tensor"),
        ({"epoch": 3, "weights": mini()}, r"it is not a dict of tensors .*'epoch', 'weights'"),
        ({"model": 3}, "its 'model' is not a dict of tensors"),
        ({"model": {"cls_token": "x"}}, "its 'model' is not a dict of tensors"),
        ({}, "lacks cls_token"),
    ],
)
def test_content_of_another_form(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        load_released_checkpoint(saved(tmp_path / "x.pth", content))


def test_no_file(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "missing.pth", "does not exist"), (tmp_path, "is not a file")):
        with pytest.raises(FileNotFoundError, match=re.escape(f"{path} {what}: give a checkpoint")):
            load_released_checkpoint(path)


# --- which subnets become the preferred ones -----------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
@pytest.mark.parametrize("num_classes", [1000, 10])
def test_published_sizes_are_recognised(name: str, num_classes: int, mini_file: Path) -> None:
    """The supernet of the release, the searched space's largest, and the published envelope."""
    space = get_space(name).with_settings(num_classes=num_classes)
    published = PUBLISHED[name]
    for arch in (space.supernet, space.largest, envelope(published)):
        preferred = imported_set(arch, space.settings, mini_file)
        assert preferred.archs == published
        assert preferred.recipe.space == space
        assert preferred.imported.subnets == "published"
        assert preferred.imported.file == "mini.pth"


def test_an_imported_set_holds_no_scores(mini_file: Path) -> None:
    space = get_space("tiny")
    preferred = imported_set(space.supernet, space.settings, mini_file)
    assert preferred.recipe.name == "mini"
    assert preferred.recipe.data is preferred.recipe.training is None
    assert preferred.recipe.search.budgets[0] == "params=5994760"
    for number, subnet in enumerate(preferred.subnets):
        assert subnet.score is None
        assert subnet.costs["params"] == count(subnet.arch, space.settings)["params"]
        assert preferred.budgets_of(number) == [preferred.budgets[number]]
        assert preferred.choices[number].margin is None
    again = type(preferred).model_validate(json.loads(preferred.model_dump_json()))
    assert again == preferred


def test_files_from_before_imports_are_read(searched: Path) -> None:
    path = searched / "preferred.json"
    preferred, document = pipeline.read_preferred(searched), json.loads(path.read_text())
    del document["imported"]
    write_edited(path, document)
    assert pipeline.read_preferred(searched) == preferred
    assert preferred.imported is None


@pytest.mark.parametrize(
    "change",
    [{"image_size": (384, 384)}, {"patch_size": 32}, {"max_distance": 7}, {"head_dim": 32}],
    ids=str,
)
def test_another_input_is_no_published_space(change: dict[str, Any], mini_file: Path) -> None:
    space = get_space("tiny").with_settings(**change)
    preferred = imported_set(space.supernet, space.settings, mini_file)
    assert preferred.archs == (space.supernet,)
    assert preferred.imported.subnets == "largest"
    assert preferred.recipe.space.name == "imported"
    named = imported_set(space.supernet, space.settings, mini_file, space="tiny")
    assert named.archs == PUBLISHED["tiny"]
    assert named.recipe.space == space


def test_a_network_between_the_spaces_is_no_published_one(mini_file: Path) -> None:
    """Larger than tiny's supernet, so that its subnets would be a guess; and the user may guess."""
    space = get_space("tiny")
    arch = space.supernet.model_copy(update={"embed_dim": 320})
    assert imported_set(arch, space.settings, mini_file).imported.subnets == "largest"
    named = imported_set(arch, space.settings, mini_file, space="tiny")
    assert named.archs == PUBLISHED["tiny"]


def test_given_subnets_come_first(mini_file: Path) -> None:
    """Without repetition, from the cheapest on, and in the space that the sizes say."""
    space = get_space("tiny")
    preferred = imported_set(
        space.supernet, space.settings, mini_file, [space.largest, space.smallest, space.largest]
    )
    assert preferred.archs == (space.smallest, space.largest)
    assert preferred.imported.subnets == "given"
    assert preferred.recipe.space == space
    elsewhere = imported_set(ARCH, SETTINGS, mini_file, [ARCH])
    assert elsewhere.recipe.space.name == "imported"
    assert elsewhere.recipe.space.largest.num_heads == (2, 2)


@pytest.mark.parametrize(
    ("archs", "space", "words"),
    [
        ([], "tny", "unknown space 'tny': did you mean 'tiny'"),
        ([], "digits", "available: base, small, tiny"),
        ([], "tiny", "embed_dim 192 > 12"),
        ([], "tiny", "has no weights for the subnets published for 'tiny'"),
        ([ARCH.model_copy(update={"embed_dim": 13})], None, "embed_dim 13 > 12"),
        ([ARCH], "nowhere", f"available: {', '.join(sorted(get_family('vit').spaces))}"),
        (
            [
                VitArch(embed_dim=6, num_heads=(1, 1), mlp_ratio=(4.0, 7.0)),
                VitArch(embed_dim=12, num_heads=(1, 1), mlp_ratio=(1.0, 1.0)),
            ],
            None,
            "mlp_ratio 4 (48 units > 24) in layer 0",
        ),
    ],
)
def test_subnets_that_cannot_be_kept(
    archs: list[VitArch], space: str | None, words: str, mini_file: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        imported_set(ARCH, SETTINGS, mini_file, archs, space=space)


def test_only_pictures_of_three_channels(mini_file: Path) -> None:
    settings = SETTINGS.changed(in_chans=1)
    with pytest.raises(ValueError, match="takes images of 1 channels"):
        imported_set(ARCH, settings, mini_file)


# --- runs made of a checkpoint -------------------------------------------------------------------


def test_from_the_file_to_models(golden_file: Path, tmp_path: Path) -> None:
    """Import, specialise without data, load: the measured network's logits."""
    out, archs = tmp_path / "run", golden_archs()[:3]
    preferred = prenas.import_released(golden_file, out, archs)
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "recipe.json",
        "preferred.json",
        "supernet.safetensors",
    }
    assert pipeline.read_preferred(out) == preferred
    assert set(preferred.archs) == set(archs)
    images, measured = golden_images("vit_micro"), golden_supernet("vit_micro")
    imported = pipeline.read_supernet(out)
    for number, arch in enumerate(preferred.archs):
        expected = measured(images, arch)
        assert torch.allclose(imported(images, arch), expected, rtol=0, atol=1e-6)
        folder = pipeline.specialize(out, number)
        network, _ = prenas.load(folder)
        assert torch.allclose(network(images), expected, rtol=0, atol=1e-6)
        description = json.loads((folder / "arch.json").read_text())
        assert description["class_names"] == [str(n) for n in range(10)]
        assert description["provenance"]["evaluation"] == {}
        assert description["provenance"]["costs"] == preferred.subnets[number].costs
        assert pipeline.specialize(out, number) == folder


def test_the_largest_within_a_limit(golden_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    params = [
        s.costs["params"] for s in prenas.import_released(golden_file, out, golden_archs()).subnets
    ]
    assert pipeline.specialize(out, limits={"params": params[3]}).name == "03"
    assert pipeline.specialize(out, limits={"params": params[3] - 1}).name == "02"
    assert pipeline.specialize(out, limits="macs=1G").name == f"{len(params) - 1:02d}"
    with pytest.raises(ValueError, match="no subnet of this run satisfies params <= 1k"):
        pipeline.specialize(out, limits="params=1k")


def test_a_published_space_from_file_to_model(tmp_path: Path) -> None:
    """The subnets that the authors published, 1000 classes by name; small images to be quick."""
    space = get_space("tiny").with_settings(image_size=32)
    tensors = to_original(random_native(space.supernet, space.settings), 14, 64)
    out = tmp_path / "run"
    file = saved(tmp_path / "supernet-tiny.pth", {"model": {k: v / 50 for k, v in tensors.items()}})
    preferred = prenas.import_released(file, out, space="tiny")
    assert preferred.archs == PUBLISHED["tiny"]
    assert pipeline.read_supernet(out).arch == preferred.envelope == space.largest
    folder = pipeline.specialize(out, limits="params=6M")
    assert folder.name == "00" if preferred.subnets[1].costs["params"] > 6e6 else "01"
    assert json.loads((folder / "arch.json").read_text())["class_names"][1].startswith("goldfish")
    images = noise_images(2, 3, (32, 32), (0.0,) * 3, (1.0,) * 3, seed=1)
    network, _ = prenas.load(folder)
    arch = preferred.archs[int(folder.name)]
    logits = load_released_checkpoint(file)(images, arch).detach()
    assert torch.allclose(network(images), logits, rtol=0, atol=1e-5 * logits.abs().max().item())


def own_data() -> ImageData:
    generator = torch.Generator().manual_seed(1)
    split = TensorDataset(torch.randn(12, 3, 8, 8, generator=generator), torch.arange(12) % 5)
    return ImageData(split, split, split, tuple("abcde"))


def test_with_data_an_imported_run_is_like_any_other(mini_file: Path, tmp_path: Path) -> None:
    small = VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.0,))
    prenas.import_released(mini_file, tmp_path / "run", [small, ARCH])
    with pytest.raises(ValueError, match="names no data"):
        pipeline.evaluate(tmp_path / "run")
    rows = pipeline.evaluate(tmp_path / "run", data=own_data())
    best = max(rows, key=lambda row: (row.splits["validation"].top1, -row.costs["params"]))
    folder = pipeline.specialize(tmp_path / "run", limits="params=1M", data=own_data())
    assert folder.name == f"{rows.index(best):02d}"
    description = json.loads((folder / "arch.json").read_text())
    assert description["class_names"] == list("abcde")
    assert description["provenance"]["evaluation"]["validation"]["top1"] == (
        best.splits["validation"].top1
    )


def test_an_import_is_done_once(
    mini_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    first = prenas.import_released(mini_file, out)
    before = contents(out)
    assert prenas.import_released(mini_file, out) == first
    assert contents(out) == before
    (out / "supernet.safetensors").unlink()
    with pytest.raises(ValueError, match=r"supernet\.safetensors is missing.*prenas import FILE"):
        pipeline.read_supernet(out)
    prenas.import_released(mini_file, out)
    after = contents(out)
    assert {name: value[0] for name, value in after.items()} == {
        name: value[0] for name, value in before.items()
    }
    monkeypatch.setattr(training, "train_supernet", never)
    assert pipeline.train(out).arch == ARCH


def test_other_runs_are_not_overwritten(mini_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    prenas.import_released(mini_file, out)
    before = contents(out)
    small = VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.0,))
    with pytest.raises(ValueError, match="was made with another recipe"):
        prenas.import_released(mini_file, out, small)
    tensors = mini()
    tensors["head.bias"] += 1
    saved(mini_file, checkpoint(tensors))
    with pytest.raises(ValueError, match="already contains another run"):
        prenas.import_released(mini_file, out)
    assert {k: v for k, v in contents(out).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


def test_there_is_no_search_in_an_imported_run(
    mini_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "zero_cost_search", never)
    recipe = prenas.import_released(mini_file, tmp_path / "run").recipe
    for again in (recipe, with_overrides(recipe, ["search.further_seeds=1"])):
        with pytest.raises(ValueError, match=r"was imported .*, so there is nothing to search"):
            pipeline.search(again, tmp_path / "run")


def test_nothing_is_written_for_a_file_that_is_refused(mini_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown space"):
        prenas.import_released(mini_file, tmp_path / "run", space="nowhere")
    mini_file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a complete torch\.save file"):
        prenas.import_released(mini_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_of_an_imported_run(mini_file: Path, tmp_path: Path) -> None:
    pipeline.import_released(mini_file, tmp_path / "run")
    text = pipeline.report(tmp_path / "run").read_text()
    assert (
        f"imported from {mini_file.name}, with the largest network, because its sizes match" in text
    )
    assert f"prenas import {mini_file.name} --out run" in text
    assert "Nothing was chosen here, because the run was imported from mini.pth" in text
    assert "None" not in text.split("<details>")[0]


def test_an_imported_run_is_evaluated_on_each_folder_that_is_given(
    mini_file: Path, tmp_path: Path
) -> None:
    """The first becomes its validation; results on another are measured, and not kept."""
    out = tmp_path / "run"
    pipeline.import_released(mini_file, out)
    num_classes = pipeline.read_preferred(out).recipe.space.settings.num_classes
    folders = [tmp_path / name for name in ("first", "second")]
    for number, folder in enumerate(folders, start=1):
        write(folder, [f"{k:03d}/{n}.png" for k in range(num_classes) for n in range(number)])
    first = pipeline.evaluate(out, data=other_data(out, [str(folders[0])]))
    assert first[0].splits["validation"].num_images == num_classes
    assert pipeline.evaluate(out, data=other_data(out, [str(folders[0])])) == first
    second = pipeline.evaluate(out, data=other_data(out, [str(folders[1])]))
    assert second[0].splits["all"].num_images == 2 * num_classes
    assert Run(out).evaluations == first


def test_images_of_other_classes_do_not_evaluate_an_imported_run(
    mini_file: Path, tmp_path: Path
) -> None:
    """Their labels would be read as the first classes of the released weights."""
    import numpy as np
    from PIL import Image

    pipeline.import_released(mini_file, tmp_path / "run")
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((20, 20, 3), 40 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{number}.png")
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"these images have 2 classes, .* has \d+ outputs"):
        other_data(tmp_path / "run", [str(tmp_path / "photos")])
    assert contents(tmp_path / "run") == before
