"""The convolutional family: MobileNet-like networks of inverted residual blocks."""

from __future__ import annotations

import re

from prenas.families.base import Family, TensorRole
from prenas.families.mobilenet.adaptation import adapt
from prenas.families.mobilenet.arch import (
    MobileNetArch,
    MobileNetSettings,
    balancing_group,
    check_contains,
    envelope,
)
from prenas.families.mobilenet.initialization import initialize, prepare_for_scoring
from prenas.families.mobilenet.network import MobileNet, build_shared
from prenas.families.mobilenet.parts import drop_path_rates, layers, owned_box, work
from prenas.families.mobilenet.space import MobileNetSpace, space_of
from prenas.families.mobilenet.spaces import SPACES
from prenas.families.mobilenet.stock import stock

_UNIT_TENSORS = {
    "kernel": (("conv_dw.weight", 2),),
    "expand": (("conv_pw.weight", 0), ("conv_dw.weight", 0), ("conv_pwl.weight", 1)),
}


def _role(arch: MobileNetArch, name: str) -> TensorRole:
    head = len(arch.stages) + 1
    if match := re.match(r"blocks\.(\d+)\.(\d+)\.", name):
        stage, block = int(match[1]) + 1, int(match[2])
        return TensorRole(stage, None if stage == head else block)
    return TensorRole(0 if name.startswith(("conv_stem.", "bn1.")) else head, None)


FAMILY = Family(
    name="mobilenet",
    arch_type=MobileNetArch,
    space_type=MobileNetSpace,
    settings_type=MobileNetSettings,
    spaces=SPACES,
    build=MobileNet,
    initialize=initialize,
    work=work,
    role=_role,
    unit_tensors=_UNIT_TENSORS,
    layers=layers,
    drop_path_rates=drop_path_rates,
    num_branches=lambda arch: arch.num_blocks,
    balancing_group=balancing_group,
    envelope=envelope,
    check_contains=check_contains,
    space_of=space_of,
    adapt=adapt,
    owned_box=owned_box,
    build_shared=build_shared,
    prepare_for_scoring=prepare_for_scoring,
    stock=stock,
)
