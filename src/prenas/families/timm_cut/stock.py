"""Between timm's own tensors and ours, and the description with which timm alone builds a cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from timm.models import adapt_model_from_string
from torch import Tensor, nn

from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.timm_cut.network import (
    UnitMajorLinear,
    build,
    build_whole,
    resized,
    timm_model,
)


def from_timm(tensors: Mapping[str, Tensor], settings: TimmSettings) -> dict[str, Tensor]:
    """The tensors of timm's model in the order of `build_whole`: rows of projections by unit."""

    def by_unit(rows: Tensor, kinds: int, per_unit: int) -> Tensor:
        by_kind = rows.reshape(kinds, -1, per_unit, *rows.shape[1:])
        return by_kind.transpose(0, 1).flatten(0, 2)

    return _with_rows(tensors, settings, by_unit)


def to_timm(tensors: Mapping[str, Tensor], settings: TimmSettings) -> dict[str, Tensor]:
    """The inverse of `from_timm`; also for the tensors of a cut."""

    def by_kind(rows: Tensor, kinds: int, per_unit: int) -> Tensor:
        by_unit = rows.reshape(-1, kinds, per_unit, *rows.shape[1:])
        return by_unit.transpose(0, 1).flatten(0, 2)

    return _with_rows(tensors, settings, by_kind)


def _with_rows(
    tensors: Mapping[str, Tensor],
    settings: TimmSettings,
    change: Callable[[Tensor, int, int], Tensor],
) -> dict[str, Tensor]:
    changed = dict(tensors)
    for name, projection in reordered(settings).items():
        for tensor in (f"{name}.weight", f"{name}.bias"):
            if tensor in changed:
                rows = change(changed[tensor], projection.kinds, projection.per_unit)
                changed[tensor] = rows.contiguous()
    return changed


def reordered(settings: TimmSettings) -> dict[str, UnitMajorLinear]:
    """The layers whose rows are in another order than timm's, by name."""
    with torch.device("meta"):
        modules = build_whole(settings).named_modules()
    return {name: module for name, module in modules if isinstance(module, UnitMajorLinear)}


def shapes_text(arch: TimmArch, settings: TimmSettings) -> str:
    """The text from which `timm.models.adapt_model_from_string` builds the cut.

    Raises:
        ValueError: timm cannot build it, because more than channels of convolutions are cut.
    """
    if num_absent := sum(not units for _, units in arch.kept()):
        raise ValueError(
            f"this subnet is not a stock model of timm: it leaves out {num_absent} of its residual "
            "branches. Load it with prenas.load instead"
        )
    if joint := reordered(settings):
        has_heads = any(layer.kinds == 3 for layer in joint.values())
        what = "queries, keys and values" if has_heads else "gates and values"
        raise ValueError(
            f"this subnet is not a stock model of timm: its weights have the rows of {what} in "
            f"the order of the {'heads' if has_heads else 'units'}. Load it with prenas.load "
            "instead"
        )
    cut = {group.axis for group, units in arch.kept() if units < group.num_units}
    if cut - {"channels"}:
        raise ValueError(
            f"this subnet is not a stock model of timm: its {' and '.join(sorted(cut))} differ "
            "from block to block. Load it with prenas.load instead"
        )
    with torch.device("meta"):
        tensors = build(arch, settings).state_dict()
        shapes, text = {name: list(t.shape) for name, t in tensors.items()}, text_of(tensors)
        if cut:
            theirs = adapt_model_from_string(timm_model(settings), text)  # type: ignore[no-untyped-call]
            found = {name: list(t.shape) for name, t in theirs.state_dict().items()}
            if differing := sorted(name for name in shapes if found.get(name) != shapes[name]):
                raise ValueError(
                    "this subnet is not a stock model of timm: timm cannot change the size of "
                    f"{differing[0]}. Load it with prenas.load instead"
                )
    return text


def text_of(tensors: Mapping[str, Tensor]) -> str:
    """The shapes of a state dict, as `timm.models.adapt_model_from_string` reads them."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return "***".join(f"{name}:{shape}".replace(" ", "") for name, shape in shapes.items())


def describe_stock(arch: TimmArch, settings: TimmSettings) -> dict[str, object]:
    """The arguments of `timm.create_model`, and the text for `adapt_model_from_string`.

    `resize` has the arguments of `torch.nn.functional.interpolate` for images of a smaller cut.

    Raises:
        ValueError: as `shapes_text`.
    """
    fields: dict[str, object] = {
        "num_classes": settings.num_classes,
        "in_chans": settings.in_chans,
        "shapes": shapes_text(arch, settings),
    }
    if (size := _smaller(arch, settings)) is not None:
        fields["resize"] = {"size": size, "mode": "bicubic", "antialias": True}
    return {"model": settings.model, **fields}


def _smaller(arch: TimmArch, settings: TimmSettings) -> tuple[int, int] | None:
    """The size to which a cut resizes its images; None if it takes them as they are."""
    side = arch.resolution
    return None if side is None or settings.image_size == (side, side) else (side, side)


def stock(arch: TimmArch, settings: TimmSettings) -> nn.Module:
    """timm's own network of a cut, with the same state dict.

    Raises:
        ValueError: timm cannot build it; the message says why.
    """
    text = shapes_text(arch, settings)
    network = timm_model(settings)
    if any(units < group.num_units for group, units in arch.kept()):
        network = adapt_model_from_string(network, text)  # type: ignore[no-untyped-call]
    if (size := _smaller(arch, settings)) is not None:
        network.register_forward_pre_hook(lambda _, images: resized(images[0], size))
    return network
