"""The convolutional family: MobileNet-like networks of inverted residual blocks."""

from __future__ import annotations

from prenas.families.base import Family
from prenas.families.mobilenet.arch import MobileNetArch, MobileNetSettings
from prenas.families.mobilenet.initialization import initialize, prepare_for_scoring
from prenas.families.mobilenet.network import MobileNet, build_shared, deployed
from prenas.families.mobilenet.parts import drop_path_rates, owned_box, stage_names, work
from prenas.families.mobilenet.space import MobileNetSpace
from prenas.families.mobilenet.spaces import SPACES
from prenas.families.mobilenet.stock import stock

_UNIT_TENSORS = {
    "kernel": (("conv_dw.weight", 2),),
    "expand": (("conv_pw.weight", 0), ("conv_dw.weight", 0), ("conv_pwl.weight", 1)),
}


FAMILY = Family[MobileNetArch, MobileNetSettings](
    name="mobilenet",
    space_type=MobileNetSpace,
    spaces=SPACES,
    build=MobileNet,
    initialize=initialize,
    work=work,
    stage_names=stage_names,
    unit_tensors=_UNIT_TENSORS,
    classifier="classifier",
    prepare_for_scoring=prepare_for_scoring,
    drop_path_rates=drop_path_rates,
    owned_box=owned_box,
    build_shared=build_shared,
    stock=stock,
    deployed=deployed,
)
