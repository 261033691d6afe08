"""Builds a network with identity shortcuts as timm's own `MobileNetV3`."""

from __future__ import annotations

from timm.layers import get_act_layer
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv3 import MobileNetV3

from prenas.families.mobilenet.arch import MobileNetArch, MobileNetSettings
from prenas.families.mobilenet.blocks import squeeze_excite
from prenas.families.mobilenet.parts import block_specs

_ACT_CODES = {"relu": "re", "hard_swish": "hs", "silu": "sw"}


def stock(arch: MobileNetArch, settings: MobileNetSettings) -> MobileNetV3:
    """timm's `MobileNetV3` of this architecture, with the same state dict.

    Raises:
        ValueError: timm has no such network; the message says what differs.
    """
    problems = []
    if settings.shortcut != "identity":
        problems.append("blocks with projected shortcuts (choose a space with shortcut=identity)")
    if settings.stem_stride != 2:
        problems.append(f"a stem of stride {settings.stem_stride} instead of 2")
    if settings.stem_act != settings.head_act:
        problems.append(f"{settings.stem_act} in its stem but {settings.head_act} in its head")
    side = arch.resolution
    if side is not None and settings.image_size != (side, side):
        problems.append(
            f"an internal resize from {settings.image_size} to {side} pixels (set "
            f"image_size={side})"
        )
    if problems:
        raise ValueError(
            f"this subnet is not a stock model of timm: it has {', and '.join(problems)}. Load it "
            "with prenas.load instead"
        )
    stages: list[list[str]] = [[] for _ in arch.stages]
    for spec in block_specs(arch, settings):
        kind = f"ir_r1_e{spec.hidden / spec.in_width}" if spec.expansion else "ds_r1"
        se = "_se0.25" if spec.se else ""
        act = _ACT_CODES[spec.act]
        stages[spec.stage - 1].append(
            f"{kind}_k{spec.kernel}_s{spec.stride}_c{spec.out_width}{se}_n{act}"
        )
    last = int(arch.widths[-1] * settings.head_expand)
    return MobileNetV3(
        decode_arch_def([*stages, [f"cn_r1_k1_s1_c{last}"]]),  # type: ignore[no-untyped-call]
        num_classes=settings.num_classes,
        in_chans=settings.in_chans,
        stem_size=arch.stem,
        fix_stem=True,
        num_features=arch.head,
        head_bias=False,
        act_layer=get_act_layer(settings.stem_act),
        se_layer=squeeze_excite,
        round_chs_fn=int,
    )
