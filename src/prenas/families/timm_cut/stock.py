"""Between timm's own tensors and ours, and the description with which timm alone builds a cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from timm.models import adapt_model_from_string
from torch import Tensor, nn

from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.timm_cut.network import build, build_whole, heads_of, timm_model


def from_timm(tensors: Mapping[str, Tensor], settings: TimmSettings) -> dict[str, Tensor]:
    """The tensors of timm's model in the order of `build_whole`: rows of `qkv` by head."""

    def by_head(rows: Tensor, num_heads: int) -> Tensor:
        by_kind = rows.reshape(3, num_heads, -1, *rows.shape[1:])
        return by_kind.transpose(0, 1).flatten(0, 2)

    return _with_rows(tensors, settings, by_head)


def to_timm(tensors: Mapping[str, Tensor], settings: TimmSettings) -> dict[str, Tensor]:
    """The inverse of `from_timm`."""

    def by_kind(rows: Tensor, num_heads: int) -> Tensor:
        by_head = rows.reshape(num_heads, 3, -1, *rows.shape[1:])
        return by_head.transpose(0, 1).flatten(0, 2)

    return _with_rows(tensors, settings, by_kind)


def _with_rows(
    tensors: Mapping[str, Tensor], settings: TimmSettings, change: Callable[[Tensor, int], Tensor]
) -> dict[str, Tensor]:
    with torch.device("meta"):
        heads = heads_of(build_whole(settings))
    changed = dict(tensors)
    for name, attention in heads.items():
        for tensor in (f"{name}.qkv.weight", f"{name}.qkv.bias"):
            if tensor in changed:
                changed[tensor] = change(changed[tensor], attention.num_heads).contiguous()
    return changed


def shapes_text(arch: TimmArch, settings: TimmSettings) -> str:
    """The text from which `timm.models.adapt_model_from_string` builds the cut.

    Raises:
        ValueError: timm cannot build it, because more than channels of convolutions are cut.
    """
    with torch.device("meta"):
        if heads_of(build_whole(settings)):
            raise ValueError(
                "this subnet is not a stock model of timm: its weights have the rows of queries, "
                "keys and values in the order of the heads. Load it with prenas.load instead"
            )
    cut = {group.axis for group, units in arch.kept() if units < group.num_units}
    if cut - {"channels"}:
        raise ValueError(
            f"this subnet is not a stock model of timm: its {' and '.join(sorted(cut))} differ "
            "from block to block. Load it with prenas.load instead"
        )
    with torch.device("meta"):
        shapes = {name: list(t.shape) for name, t in build(arch, settings).state_dict().items()}
        text = "***".join(f"{name}:{shape}".replace(" ", "") for name, shape in shapes.items())
        if cut:
            theirs = adapt_model_from_string(timm_model(settings), text)  # type: ignore[no-untyped-call]
            found = {name: list(t.shape) for name, t in theirs.state_dict().items()}
            if differing := sorted(name for name in shapes if found.get(name) != shapes[name]):
                raise ValueError(
                    "this subnet is not a stock model of timm: timm cannot change the size of "
                    f"{differing[0]}. Load it with prenas.load instead"
                )
    return text


def describe_stock(arch: TimmArch, settings: TimmSettings) -> dict[str, object]:
    """The arguments of `timm.create_model`, and the text for `adapt_model_from_string`.

    Raises:
        ValueError: as `shapes_text`.
    """
    fields = {"num_classes": settings.num_classes, "in_chans": settings.in_chans}
    return {"model": settings.model, **fields, "shapes": shapes_text(arch, settings)}


def stock(arch: TimmArch, settings: TimmSettings) -> nn.Module:
    """timm's own network of a cut, with the same state dict.

    Raises:
        ValueError: timm cannot build it; the message says why.
    """
    text = shapes_text(arch, settings)
    if all(units == group.num_units for group, units in arch.kept()):
        return timm_model(settings)
    network: nn.Module = adapt_model_from_string(timm_model(settings), text)  # type: ignore[no-untyped-call]
    return network
