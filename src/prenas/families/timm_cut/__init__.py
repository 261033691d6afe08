"""The family of cuts: a timm model, with fewer hidden units in every block."""

from __future__ import annotations

from prenas.families.base import Family, Pretrained, Rebuilding, Resizing
from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.timm_cut.arguments import built_by_arguments, describe_arguments
from prenas.families.timm_cut.initialization import initialize, prepare_for_scoring
from prenas.families.timm_cut.network import BRANCHES, build
from prenas.families.timm_cut.parts import classifier, stage_names, work
from prenas.families.timm_cut.pretrained import read_pretrained
from prenas.families.timm_cut.resizing import resize
from prenas.families.timm_cut.resolutions import deployed
from prenas.families.timm_cut.space import TimmSpace, cuts
from prenas.families.timm_cut.stock import describe_stock, stock, to_timm

FAMILY = Family[TimmArch, TimmSettings](
    name="timm",
    space_type=TimmSpace,
    spaces={},
    build=build,
    initialize=initialize,
    work=work,
    stage_names=stage_names,
    unit_tensors={},
    branches_per_layer=BRANCHES,
    classifier=classifier,
    resizing=Resizing(resize=resize),
    stock=stock,
    describe_stock=describe_stock,
    rebuilding=Rebuilding(describe=describe_arguments, build=built_by_arguments, tensors=to_timm),
    pretrained=Pretrained(prefix="timm/", read=read_pretrained),
    prepare_for_scoring=prepare_for_scoring,
    unit_groups=lambda arch: tuple(block.groups for block in arch.blocks),
    cuts=cuts,
    deployed=deployed,
)
