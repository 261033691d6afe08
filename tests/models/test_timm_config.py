"""A handed-over folder in timm: the same logits, the same pictures, and words for what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Tensor

import prenas
from families.drawing import fill_as_trained, timm_space
from models.handed_over import NAMES, model_of
from prenas.families import build, get_space
from prenas.families.base import SearchSpace
from prenas.models.export import read_description, write_model
from prenas.recipe.data import Preprocessing

SPACES: dict[str, SearchSpace[Any, Any]] = {
    "transformer": get_space("digits"),
    "convolutions": get_space("mobilenet-micro"),
    "cut of convolutions": timm_space("test_resnet", 64),
    "cut of a transformer": timm_space("test_vit3", 32),
}


def folder_of(space: SearchSpace[Any, Any], folder: Path) -> Path:
    """The smallest network of a space, handed over."""
    settings = space.settings
    write_model(
        folder,
        fill_as_trained(build(space.smallest, settings)).eval(),
        space.smallest,
        settings,
        family=space.family,
        class_names=tuple(f"class {number}" for number in range(settings.num_classes)),
        preprocessing=Preprocessing(
            mean=(0.4,) * settings.in_chans, std=(0.2,) * settings.in_chans, crop_pct=0.9
        ),
        provenance={"source": {"licence": "mit"}},
    )
    return folder


def loaded(folder: Path, **options: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


def images_for(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (network.settings.in_chans, *network.settings.image_size)
    return torch.randn(2, *size, generator=generator)


@pytest.fixture(scope="module", params=list(SPACES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(SPACES[request.param], tmp_path_factory.mktemp("handed") / "over")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small Transformer for 8 x 8 colour pictures of four animals."""
    return model_of(tmp_path / "model")


def test_timm_computes_what_prenas_computes(folder: Path) -> None:
    network = prenas.load(folder).network
    images = images_for(network)
    assert float(network(images).detach().abs().max()) > 0.01
    assert torch.equal(loaded(folder)(images), network(images))


def test_timm_knows_input_classes_and_licence(folder: Path) -> None:
    description = read_description(folder)
    for network in (loaded(folder), prenas.load(folder).network):
        known, size = network.pretrained_cfg, description.settings.image_size
        assert tuple(known["input_size"]) == (description.settings.in_chans, *size)
        assert [*known["label_names"]] == [*description.class_names]
        assert known["license"] == "mit"
        names = set(network.state_dict())
        assert {f"{known[part]}.weight" for part in ("first_conv", "classifier")} <= names
        assert resolve_data_config(model=network)["input_size"] == known["input_size"]


def test_timm_prepares_pictures_as_prenas_does(model: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    ours = prenas.load(model).transform(picture)
    theirs = create_transform(**resolve_data_config(model=loaded(model)), is_training=False)
    assert torch.allclose(ours, theirs(picture), atol=1e-6)


def test_timms_own_writer_writes_the_same(folder: Path, tmp_path: Path) -> None:
    """Of a network that timm loaded, and of one that prenas loaded: also after a fine-tuning."""
    ours = json.loads((folder / "config.json").read_text())
    images = images_for(prenas.load(folder).network)
    for number, network in enumerate((loaded(folder), prenas.load(folder).network)):
        out = tmp_path / str(number)
        save_for_hf(network, str(out), safe_serialization=True)
        theirs = json.loads((out / "config.json").read_text())
        assert theirs["architecture"] == ours["architecture"] == "prenas_subnet"
        assert theirs["num_features"] == ours["num_features"]
        assert {**theirs["model_args"], **ours["model_args"]} == theirs["model_args"]
        for name in ("input_size", "mean", "std", "crop_pct", "interpolation", "num_classes"):
            assert theirs["pretrained_cfg"][name] == ours["pretrained_cfg"][name], name
        assert torch.equal(loaded(out)(images), network(images))


def test_weights_adapt_to_other_classes_channels_and_sizes(folder: Path) -> None:
    whole, settings = loaded(folder), read_description(folder).settings
    channels = 1 if settings.in_chans == 3 else 3
    other = loaded(folder, num_classes=3, in_chans=channels)
    assert other(images_for(other)).shape == (2, 3)
    assert loaded(folder, num_classes=0)(images_for(whole)).shape == (2, whole.head_hidden_size)
    larger = tuple(2 * side for side in settings.image_size)
    resized = loaded(folder, img_size=larger)
    whole.set_input_size(larger)
    images = images_for(resized)
    assert images.shape[2:] == larger
    assert torch.equal(resized(images), whole(images))
    features = loaded(folder, features_only=True)
    assert [one.shape[1] for one in features(images_for(features.model))] == (
        features.feature_info.channels()
    )


def test_a_repository_of_the_hub_loads_from_the_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "cache" / "models--me--animals"
    shutil.copytree(model, kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    network = timm.create_model(
        "hf-hub:me/animals", pretrained=True, cache_dir=tmp_path / "cache"
    ).eval()
    images = images_for(network)
    assert torch.equal(network(images), prenas.load(model).network(images))
    assert [*network.pretrained_cfg["label_names"]] == [*NAMES]


# --- what is wrong -------------------------------------------------------------------------------


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(num_classes=3), "the weights have 3 classes, but its model_args say 4"),
        (lambda c: c["model_args"].pop("arch"), "needs the description of a network"),
        (lambda c: c["model_args"].update(family="cnn"), "unknown family 'cnn'"),
        (lambda c: c["model_args"].update(arch=3), "the model_args of prenas_subnet are wrong"),
        (lambda c: c["model_args"]["arch"].update(embed_dim=-8), "embed_dim: .* greater than"),
        (lambda c: c["model_args"]["settings"].update(patch_size=3), "not a multiple of patch_si"),
        (lambda c: c["model_args"]["arch"].update(embed_dim=16), "size mismatch for cls_token"),
        (lambda c: c["model_args"].update(depth=3), "unexpected keyword argument 'depth'"),
    ],
)
def test_an_edited_config_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, model: Path
) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError), match=words):
        loaded(edited(model, change))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(name: str, model: Path) -> None:
    (model / name).unlink()
    with pytest.raises((FileNotFoundError, RuntimeError), match=r"Config file|No suitable"):
        loaded(model)


def test_prenas_needs_no_config(model: Path) -> None:
    """Models of earlier versions have none."""
    images = images_for(prenas.load(model).network)
    before = prenas.load(model).network(images)
    (model / "config.json").unlink()
    assert torch.equal(prenas.load(model).network(images), before)
