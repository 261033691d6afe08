"""timm's models with their published weights, without waiting for a network that is not there."""

from __future__ import annotations

from typing import Any

import timm
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from prenas.values import error_in_words, unknown_name

_PATIENCE = 10.0
"""Seconds until a Hub that does not answer counts as one that cannot be reached."""

_SAFE = ".safetensors"


def description_of(name: str) -> Any:
    """timm's description (`PretrainedCfg`) of the weights of this name; None if there are none.

    Raises:
        ValueError: the model has no weights of this tag; the message lists those that it has.
    """
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        model, _, tag = name.partition(".")
        raise unknown_name(f"weights of timm's {model}", tag, _tags(model)) from None


def _tags(model: str) -> list[str]:
    names = timm.list_models(f"{model}.*", pretrained=True)
    return [name.partition(".")[2] for name in names]


def trained_model(name: str) -> nn.Module:
    """Returns timm's model with its own weights, from timm's cache or downloaded.

    A safetensors file in the cache is taken as it is, so nothing is asked of the network. If the
    Hub cannot be reached, the other address that timm may know for the weights is tried: both fail
    within seconds, where the Hub's own client would go on for most of a minute.

    Raises:
        ValueError: nobody published weights of this model, or they are not in the cache and cannot
            be downloaded; it says where they are.
    """
    described = description_of(name)
    if described is None or not described.has_weights:
        raise ValueError(f"timm has no trained weights for {name}")
    overlay: dict[str, Any] = {}
    unreachable = None
    if repo := described.hf_hub_id:
        cached = _cached(repo, described.hf_hub_filename)
        if cached is not None and cached.endswith(_SAFE):
            overlay["file"] = cached
        elif cached is None and (unreachable := _why_unreachable(repo)):
            overlay["hf_hub_id"] = None
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # every hub and every network fails differently
        places = [f"https://huggingface.co/{repo}"] if repo else []
        places += [described.url] if described.url and not described.url.endswith(".npz") else []
        raise ValueError(
            f"the weights of {name} are not in timm's cache and cannot be downloaded "
            f"({error_in_words(unreachable or error)}). Get the file from "
            f"{' or '.join(places) or 'its authors'}"
        ) from None


def _cached(repo: str, filename: str | None) -> str | None:
    """The file that timm would take from the Hub's cache, if it is there."""
    names = [filename] if filename else [f"model{_SAFE}", "pytorch_model.bin"]
    if filename == "open_clip_pytorch_model.bin":
        names.insert(0, f"open_clip_model{_SAFE}")
    for name in names:
        path = try_to_load_from_cache(repo, name)
        if isinstance(path, str):
            return path
    return None


def _why_unreachable(repo: str) -> Exception | None:
    try:
        HfApi(library_name="prenas").model_info(repo, timeout=_PATIENCE)
    except HfHubHTTPError:
        return None  # it answered, so timm gets its word as well
    except Exception as error:  # each kind of missing network has its own class
        return error
    return None
