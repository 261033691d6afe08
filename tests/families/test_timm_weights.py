"""Published weights: from the cache without a network, and no long wait for one."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from prenas.families import timm_weights
from prenas.families.timm_weights import trained_model

NAME = "test_resnet.r160_in1k"


class UnpluggedError(Exception):
    """What a network that is not there raises."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub that cannot be reached; the names of what was asked of it."""
    asked = []

    def refuse(self: HfApi, repo: str, **options: Any) -> None:
        asked.append(repo)
        raise UnpluggedError("the cable hangs out\nof the wall")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    return asked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_weights_in_the_cache_need_no_network(cache: Path, offline: list[str]) -> None:
    repo = cache / f"models--timm--{NAME}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("c0ffee")
    (repo / "snapshots/c0ffee").mkdir(parents=True)
    theirs = timm.create_model(NAME).state_dict()
    save_file(theirs, repo / "snapshots/c0ffee/model.safetensors")
    ours = trained_model(NAME).state_dict()
    assert not offline
    assert [*ours] == [*theirs]
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_hub_that_cannot_be_reached_is_asked_once(
    cache: Path, offline: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="cable") as caught:
        trained_model(NAME)
    assert offline == [f"timm/{NAME}"]
    assert "retry" not in caplog.text.lower()
    assert str(caught.value) == (
        f"the weights of {NAME} are not in timm's cache and cannot be downloaded (UnpluggedError: "
        f"the cable hangs out). Get the file from https://huggingface.co/timm/{NAME}"
    )


def test_a_file_that_cannot_be_read_is_no_advice(cache: Path, offline: list[str]) -> None:
    """Google's files of arrays, of which timm knows the addresses."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert timm.get_pretrained_cfg(name).url.endswith(".npz")  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=rf"Get the file from https://huggingface\.co/timm/{name}$"
    ):
        trained_model(name)


def test_another_address_is_tried_where_timm_knows_one(
    cache: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, **options: Any) -> Any:
        asked.append(url)
        return timm.create_model("tf_efficientnet_lite0").state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", download)
    trained_model("tf_efficientnet_lite0")
    (address,) = asked
    assert address.endswith(".pth")


def test_a_hub_that_answers_has_the_last_word(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that one must ask for, for instance: timm asks with the user's token."""
    monkeypatch.setattr(timm_weights, "_why_unreachable", lambda repo: None)

    def refuse(*arguments: Any, **fields: Any) -> Any:
        assert fields["pretrained_cfg_overlay"] == {}
        raise PermissionError("you must accept the licence")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ValueError, match="accept the licence"):
        trained_model(NAME)


def test_a_model_without_published_weights() -> None:
    with pytest.raises(ValueError, match="timm has no trained weights for prenas_tiny_6m"):
        trained_model("prenas_tiny_6m")
