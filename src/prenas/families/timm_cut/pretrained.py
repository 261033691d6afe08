"""timm's models with their trained weights, or with weights of your own."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from prenas.families.base import PretrainedNetwork
from prenas.families.timm_cut.arch import TimmSettings, whole
from prenas.families.timm_cut.network import timm_model
from prenas.families.timm_cut.parts import classifier
from prenas.families.timm_cut.reading import read_groups
from prenas.families.timm_cut.stock import from_timm
from prenas.families.timm_weights import description_of, trained_model
from prenas.randomness import isolated_global_state
from prenas.values import explained


def read_pretrained(name: str, tensors: Mapping[str, Tensor] | None) -> PretrainedNetwork:
    """timm's model of this name, with its own weights or the given ones.

    Args:
        tensors: a state dict of this model, possibly for other classes, or one that timm converts,
            such as that of the model's authors.

    Raises:
        ValueError: timm has no such model, its weights cannot be downloaded, the tensors belong to
            another model, or no units of the model can be removed.
    """
    try:
        settings = TimmSettings(model=name)
    except ValidationError as error:
        raise explained(error) from None
    described = description_of(name)
    if described is None:
        raise ValueError(
            f"timm has no trained weights for {name}: choose a model that `timm.list_pretrained()` "
            f"lists, or give a file with weights (timm/{name}=FILE)"
        )
    in_chans, *image_size = described.input_size
    settings = settings.changed(image_size=tuple(image_size), in_chans=in_chans)
    if tensors is None:
        try:
            tensors = dict(trained_model(name).state_dict())
        except ValueError as error:
            raise ValueError(f"{error} and name it: timm/{name}=FILE") from None
    else:
        tensors = _under_timms_names(tensors, settings)
    head = f"{classifier(settings)}.weight"
    num_classes = tensors[head].shape[0] if head in tensors else 1  # a backbone has no classifier
    settings = settings.changed(num_classes=num_classes)
    with isolated_global_state(0, "constructors"):
        network = timm_model(settings)
    _fill(network, tensors, name)
    return PretrainedNetwork(
        arch=whole(read_groups(settings)),
        settings=settings,
        tensors=from_timm(network.state_dict(), settings),
        mean=tuple(described.mean),
        std=tuple(described.std),
        crop_pct=described.crop_pct,
        interpolation=described.interpolation,
        licence=described.license,
        origin=described.origin_url or described.hf_hub_id or described.url or None,
    )


def _under_timms_names(
    tensors: Mapping[str, Tensor], settings: TimmSettings
) -> Mapping[str, Tensor]:
    """The tensors under timm's names, if timm knows how to convert them; otherwise as they are."""
    with isolated_global_state(0, "constructors"), torch.device("meta"):
        names = timm_model(settings).state_dict().keys()
    if tensors.keys() <= names:
        return tensors
    given = {"state_dict": dict(tensors)}
    try:
        with isolated_global_state(0, "constructors"):
            network = timm.create_model(
                settings.model, pretrained=True, pretrained_cfg_overlay=given
            )
    except Exception:  # each model's conversion fails in its own way on the weights of another
        return tensors
    return network.state_dict()


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Loads the tensors; a classifier, and counters of batches, that they lack become zero."""
    own = network.state_dict()
    head = {f"{network.pretrained_cfg['classifier']}.{kind}" for kind in ("weight", "bias")}  # type: ignore[index]
    counters = {key for key in own if key.endswith(".num_batches_tracked")}
    missing = sorted(set(own) - set(tensors) - head - counters)
    unknown = sorted(set(tensors) - set(own))
    differing = [
        f"{key} has the shape {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
        for key in sorted(set(own) & set(tensors))
        if tensors[key].shape != own[key].shape
    ]
    problems = differing[:3]
    problems += [f"{key} is missing" for key in missing[:3]]
    problems += [f"{key} is not part of it" for key in unknown[:3]]
    if problems:
        count = len(differing) + len(missing) + len(unknown)
        raise ValueError(
            f"these weights are not those of timm's {name} ({count} differences: "
            f"{'; '.join(problems)}): name the model that they belong to"
        )
    empty = {key: own[key].zero_() for key in (head | counters) & set(own) - set(tensors)}
    network.load_state_dict({**tensors, **empty})
