"""Networks of this package in timm's registry.

`timm.create_model` builds the networks in `Family.timm_names` by name, and every other network as
`prenas_subnet` from its description, which the `config.json` of a handed-over model contains.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from prenas.families.base import Arch, Family, Settings
from prenas.families.registry import family_of, get_family
from prenas.randomness import drawn_generator, isolated_global_state
from prenas.values import explained

_log = logging.getLogger(__name__)

GENERIC = "prenas_subnet"
"""The name of any network, which needs its description."""

_NUM_FEATURES = 3
"""How many levels `features_only=True` gives if all have one size, as in timm."""
_OF_INPUT = ("image_size", "in_chans", "num_classes")
"""Settings that timm has names of its own for."""

default_cfgs: dict[str, Any] = {}
"""What timm knows about the weights of each name; timm's decorator looks for it in this module."""

__all__ = ["GENERIC"]  # timm's decorator adds the names that it registers


def description_of(arch: Arch, settings: Settings) -> dict[str, Any]:
    """The arguments with which `timm.create_model` builds a network as `prenas_subnet`."""
    shared = settings.model_dump(mode="json")
    height, width = settings.image_size
    return {
        "family": family_of(arch).name,
        "arch": arch.model_dump(mode="json"),
        "settings": {name: value for name, value in shared.items() if name not in _OF_INPUT},
        "img_size": [height, width],
        "in_chans": settings.in_chans,
        "num_classes": settings.num_classes,
    }


def first_conv_of(network: nn.Module) -> str | None:
    """Name of the convolution that sees the images; None if the network has no convolutions."""
    modules = network.named_modules()
    return next((name for name, one in modules if isinstance(one, nn.Conv2d)), None)


def pretrained_cfg_of(arch: Arch, settings: Settings, first_conv: str | None) -> dict[str, Any]:
    """What timm wants to know about weights of a network, except how pictures are prepared."""
    return {
        "architecture": GENERIC,
        "input_size": (settings.in_chans, *settings.image_size),
        "fixed_input_size": True,
        "num_classes": settings.num_classes,
        "pool_size": None,
        "first_conv": first_conv,
        "classifier": family_of(arch).classifier_of(settings),
    }


def add_to_timm(family: Family[Any, Any]) -> None:
    """Registers the names of a family in timm."""
    if not family.timm_names:
        return
    with torch.device("meta"):  # of one network: it is the same in all, and building takes time
        first_conv = first_conv_of(family.build(*next(iter(family.timm_names.values())), (), 0.0))
    for name, (arch, settings) in family.timm_names.items():
        known = {**pretrained_cfg_of(arch, settings, first_conv), "architecture": name}
        default_cfgs.update(generate_default_cfgs({name: known}))
        _register(name, partial(_build, name, family, arch, settings.model_dump()))


def add_generic_to_timm() -> None:
    """Registers `prenas_subnet` in timm."""
    _register(GENERIC, _build_described)


def _register(name: str, build: Callable[..., nn.Module]) -> None:
    if is_model(name) and model_entrypoint(name).__module__ != __name__:
        _log.warning("timm already has a model %s, which is not ours: it is kept", name)
        return

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return build(pretrained, **options)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Builds {name}; see timm.create_model."
    register_model(entry)


def _build_described(
    pretrained: bool,
    *,
    family: str | None = None,
    arch: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Any network, from its description.

    Raises:
        ValueError: the description is missing or wrong.
    """
    if family is None or arch is None:
        raise ValueError(
            f"{GENERIC} needs the description of a network (family, arch, settings): load a "
            "handed-over model with timm.create_model('local-dir:FOLDER', pretrained=True), or "
            "a published architecture by its name"
        )
    try:
        found = get_family(family)
        value = found.arch_type.model_validate(arch)
    except ValidationError as error:
        raise ValueError(f"the model_args of {GENERIC} are wrong: {explained(error)}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the model_args of {GENERIC} are wrong: {error}") from None
    return _build(GENERIC, found, value, dict(settings or {}), pretrained, **options)


def _build(
    name: str,
    family: Family[Any, Any],
    arch: Arch,
    settings: Mapping[str, Any],
    pretrained: bool,
    **options: Any,
) -> nn.Module:
    if name == GENERIC and not options.get("pretrained_cfg"):
        options["pretrained_cfg"] = {"architecture": GENERIC}
    _require_consistent(options)
    network: nn.Module = build_model_with_cfg(
        partial(_network, name, family, arch, settings),
        name,
        pretrained,
        pretrained_filter_fn=partial(_adapted, family),
        feature_cfg={"out_indices": None, "feature_cls": _features},
        **options,
    )
    return network


def _require_consistent(options: Mapping[str, Any]) -> None:
    """Raises ValueError if a `config.json` contradicts itself: timm would draw a new classifier."""
    stored = (options.get("pretrained_model_args") or {}).get("num_classes")
    known = options.get("pretrained_cfg")
    stated = known.get("num_classes") if isinstance(known, dict) else None
    if None not in (stored, stated) and stored != stated:
        raise ValueError(
            f"config.json says that the weights have {stated} classes, but its model_args say "
            f"{stored}: hand the model over again, or write the same number twice"
        )


def _network(
    name: str,
    family: Family[Any, Any],
    arch: Arch,
    settings: Mapping[str, Any],
    *,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    global_pool: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A network with random weights, drawn from the global generator as timm draws them.

    Raises:
        ValueError: the network cannot have this input or these classes.
    """
    given = dict(zip(_OF_INPUT, (img_size, in_chans, num_classes or None), strict=True))
    asked = {key: value for key, value in given.items() if value is not None}
    try:
        chosen = family.settings_type.model_validate({**settings, **asked})
    except ValidationError as error:
        raise ValueError(f"{name}: {explained(error)}") from None
    rates = family.drop_path_rates(arch, drop_path_rate) if drop_path_rate else ()
    with isolated_global_state(0, "constructors"):
        network = family.build(arch, chosen, rates, drop_rate)
    if num_classes == 0 or global_pool is not None:
        reset: Any = network.reset_classifier
        reset(chosen.num_classes if num_classes != 0 else 0, global_pool)
    if not next(network.parameters()).is_meta:
        with torch.no_grad():
            family.initialize(network, drawn_generator())
    found: Any = network
    found._traits = {**getattr(network, "_traits", {}), "fixed_input_size": True}
    return network.to(device=device, dtype=dtype)


def _features(
    network: Any, *, out_indices: int | tuple[int, ...] | None, output_fmt: str = "", **options: Any
) -> FeatureGetterNet:
    """What `features_only=True` gives: the maps of all levels, or of some.

    If all maps have the same size, as in a Vision Transformer, these are the last three. They are
    NCHW, whatever format (`output_fmt`) the network itself works in.
    """
    if out_indices is None:
        sizes = {level["reduction"] for level in network.feature_info}
        most = _NUM_FEATURES if len(sizes) == 1 else len(network.feature_info)
        out_indices = min(most, len(network.feature_info))
    return FeatureGetterNet(network, out_indices=out_indices, **options)


def _adapted(
    family: Family[Any, Any], tensors: Mapping[str, Tensor], network: Any
) -> dict[str, Tensor]:
    """Tensors of the image size that `pretrained_cfg` states, for the size of the network."""
    if family.resizing is None:
        return dict(tensors)
    new = network.settings
    size = tuple(network.pretrained_cfg["input_size"][1:])
    old = new.changed(image_size=size, num_classes=max(1, new.num_classes))
    new = old.changed(image_size=new.image_size)
    return family.resizing.resize(tensors, old, new)
